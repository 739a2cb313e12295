#include "train/learn_vocab.h"

#include <stdlib.h>

#include "base/mem.h"
#include "tokenizer/bpe_train.h"
#include "train/each.h"

enum { PIECE_BYTES = 1 << 20 };

sh_err sh_learn_chars(sh_new_vocab *v, const sh_docs *docs)
{
    sh_char_set *set;
    SH_TRY(sh_alloc(&set, 1, sizeof *set, "the characters"));
    for (size_t i = 0; i < docs->n; i++) sh_char_set_add(set, docs->v[i].p, docs->v[i].n);
    sh_err err = sh_new_vocab_chars(v, set);
    free(set);
    return err;
}

typedef struct counting {
    sh_pretoken *pretoken;
    sh_words *words; /* (n_thread) */
    sh_docs pieces;
} counting;

static sh_err count_piece(void *arg, int thread, size_t i)
{
    counting *c = arg;
    return sh_bpe_count(&c->words[thread], c->pretoken, c->pieces.v[i].p, c->pieces.v[i].n);
}

/* The counts of all threads, in words[0]. */
static sh_err gather(counting *c, int n_thread)
{
    for (int t = 1; t < n_thread; t++) {
        const sh_words *from = &c->words[t];
        for (size_t i = 0; i < from->n; i++) {
            sh_word *to;
            SH_TRY(sh_words_put(&c->words[0], from->bytes + from->v[i].at, from->v[i].n, &to));
            to->value += from->v[i].value;
        }
        sh_words_close(&c->words[t]);
    }
    return SH_OK;
}

sh_err sh_learn_bpe(sh_new_vocab *v, const sh_docs *docs, int n_vocab, sh_pool *pool)
{
    int n_thread = sh_pool_n_thread(pool);
    size_t n_merge = (size_t)n_vocab - 257, n_learned;
    sh_bpe_merge *merge = NULL;
    counting c = {0};
    sh_err err;
    SH_GOTO(sh_alloc(&c.words, (size_t)n_thread, sizeof *c.words, "the words"));
    SH_GOTO(sh_alloc(&merge, n_merge, sizeof *merge, "the merges"));
    SH_GOTO(sh_pretoken_open(&c.pretoken, NULL));
    for (size_t i = 0; i < docs->n; i++)
        SH_GOTO(sh_docs_add_cut(&c.pieces, docs->v[i], PIECE_BYTES));
    SH_GOTO(sh_each(pool, c.pieces.n, count_piece, &c));
    SH_GOTO(gather(&c, n_thread));
    SH_GOTO(sh_bpe_learn(merge, n_merge, &n_learned, &c.words[0]));
    if (n_learned < n_merge)
        err = sh_fail(SH_EARG,
                      "the text is too small for %d tokens: no pair stands in it twice after %zu; "
                      "give --vocab-size %zu or more text",
                      n_vocab, n_learned + 257, n_learned + 257);
    else
        err = sh_new_vocab_bpe(v, merge, n_merge);
out:
    for (int t = 0; c.words && t < n_thread; t++) sh_words_close(&c.words[t]);
    free(c.words);
    free(merge);
    sh_docs_close(&c.pieces);
    sh_pretoken_close(c.pretoken);
    return err;
}
