/* Words repeat, so each thread remembers the ids of those that it has met; a round of groups is
 * encoded by all threads and then written in its order. */
#define _GNU_SOURCE
#include "train/encode.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "tokenizer/words.h"
#include "train/data.h"
#include "train/each.h"

enum {
    PIECE_BYTES = 1 << 18,
    GROUP_BYTES = 1 << 20, /* of text, at least, in a group of pieces */
    ROUND = 4,             /* groups for each thread */
    MAX_WORD = 256,        /* bytes of a word that is remembered */
    MAX_WORDS = 1 << 19,   /* then all are forgotten */
    N_ID_BITS = 10, /* a word's value: where its ids stand and, in these bits, their number */
};

typedef struct ids {
    uint32_t *v;
    size_t n, cap;
} ids;

struct sh_encoder_thread {
    sh_words words;
    ids known; /* of the words, one after the other */
    sh_pretoken_walk walk;
};

typedef struct group {
    size_t lo, hi; /* pieces */
    ids out;       /* after encoding the bytes of the file */
} group;

typedef struct round {
    sh_encoder *e;
    const sh_docs *pieces;
    group *group;
} round;

static sh_err put(ids *to, const uint32_t *id, size_t n)
{
    SH_TRY(sh_grow(&to->v, &to->cap, to->n + n, sizeof *id, "the tokens of the text"));
    if (n) memcpy(to->v + to->n, id, n * sizeof *id);
    to->n += n;
    return SH_OK;
}

/* Appends the ids of a text in one go. */
static sh_err put_text(const sh_encoder *e, const char *p, size_t n, int flags, ids *to)
{
    uint32_t *id;
    size_t n_id;
    SH_TRY(sh_tokenizer_encode(e->t, p, n, flags, &id, &n_id));
    sh_err err = put(to, id, n_id);
    free(id);
    return err;
}

static sh_err put_word(const sh_encoder *e, sh_encoder_thread *th, const char *p, size_t n, ids *to)
{
    sh_word *w;
    if (n > MAX_WORD) return put_text(e, p, n, 0, to);
    if (th->words.n == MAX_WORDS) {
        sh_words_clear(&th->words);
        th->known.n = 0;
    }
    SH_TRY(sh_words_put(&th->words, p, n, &w));
    if (w->value == 0) {
        size_t at = th->known.n;
        SH_TRY(put_text(e, p, n, 0, &th->known));
        w->value = (uint64_t)at << N_ID_BITS | (th->known.n - at);
    }
    size_t n_id = w->value & ((1 << N_ID_BITS) - 1);
    return put(to, th->known.v + (w->value >> N_ID_BITS), n_id);
}

static sh_err put_words(const sh_encoder *e, sh_encoder_thread *th, const sh_doc *d, ids *to)
{
    const char *p;
    size_t n;
    SH_TRY(sh_pretoken_begin(&th->walk, e->pretoken, d->p, d->n));
    for (;;) {
        SH_TRY(sh_pretoken_next(&th->walk, &p, &n));
        if (n == 0) return SH_OK;
        SH_TRY(put_word(e, th, p, n, to));
    }
}

static sh_err encode_group(void *arg, int thread, size_t i)
{
    round *r = arg;
    sh_encoder *e = r->e;
    group *g = &r->group[i];
    g->out.n = 0;
    for (size_t k = g->lo; k < g->hi; k++) {
        const sh_doc *d = &r->pieces->v[k];
        uint32_t bos = (uint32_t)e->bos, end = (uint32_t)e->end;
        if (d->first && e->bos >= 0) SH_TRY(put(&g->out, &bos, 1));
        if (e->pretoken)
            SH_TRY(put_words(e, &e->thread[thread], d, &g->out));
        else
            SH_TRY(put_text(e, d->p, d->n, 0, &g->out));
        if (d->ends && e->end >= 0) SH_TRY(put(&g->out, &end, 1));
    }
    uint8_t *to = (uint8_t *)g->out.v; /* an id is read before its place is written */
    for (size_t k = 0; k < g->out.n; k++) {
        uint32_t id = g->out.v[k];
        for (int b = 0; b < e->id_bytes; b++) *to++ = (uint8_t)(id >> 8 * b);
    }
    return SH_OK;
}

/* With SIGINT and SIGTERM blocked: whether one has come. */
static bool interrupted(void)
{
    sigset_t set;
    return sigpending(&set) == 0 &&
           (sigismember(&set, SIGINT) == 1 || sigismember(&set, SIGTERM) == 1);
}

static sh_err write_all(sh_encoder *e, const sh_docs *pieces, FILE *f, const char *path,
                        size_t *n_tok)
{
    size_t most = (size_t)(ROUND * sh_pool_n_thread(e->pool)), at = 0;
    round r = {.e = e, .pieces = pieces};
    sh_err err;
    SH_TRY(sh_alloc(&r.group, most, sizeof *r.group, "the text"));
    while (at < pieces->n) {
        size_t n = 0;
        for (; n < most && at < pieces->n; n++) {
            r.group[n].lo = at;
            for (size_t bytes = 0; at < pieces->n && bytes < GROUP_BYTES;)
                bytes += pieces->v[at++].n;
            r.group[n].hi = at;
        }
        SH_GOTO(sh_each(e->pool, n, encode_group, &r));
        if (interrupted()) SH_GOTO(sh_fail(SH_ESYS, "interrupted; nothing was written"));
        for (size_t i = 0; i < n; i++) {
            size_t n_id = r.group[i].out.n;
            if (fwrite(r.group[i].out.v, (size_t)e->id_bytes, n_id, f) != n_id)
                SH_GOTO(sh_fail(SH_ESYS, "%s: cannot write the file: %s", path, strerror(errno)));
            *n_tok += n_id;
        }
    }
    if (fflush(f) != 0 || fsync(fileno(f)) != 0)
        err = sh_fail(SH_ESYS, "%s: cannot write the file: %s", path, strerror(errno));
out:
    for (size_t i = 0; i < most; i++) free(r.group[i].out.v);
    free(r.group);
    return err;
}

sh_err sh_encoder_write(sh_encoder *e, const sh_docs *docs, const char *path, size_t *n_tok)
{
    sh_docs pieces = {0};
    FILE *f = NULL;
    sh_err err = SH_OK;
    *n_tok = 0;
    for (size_t i = 0; i < docs->n && e->pretoken; i++)
        SH_GOTO(sh_docs_add_cut(&pieces, docs->v[i], PIECE_BYTES));
    if (!(f = fopen(path, "wbx")))
        SH_GOTO(sh_fail(SH_ESYS, "%s: cannot create the file: %s", path, strerror(errno)));
    err = write_all(e, e->pretoken ? &pieces : docs, f, path, n_tok);
    if (fclose(f) != 0 && err == SH_OK)
        err = sh_fail(SH_ESYS, "%s: cannot write the file: %s", path, strerror(errno));
    if (err != SH_OK) unlink(path);
out:
    sh_docs_close(&pieces);
    return err;
}

/* Whether the tokens of a text are those of its words: byte-level BPE without tokens that are
 * looked for in the text before it is cut. */
static sh_err by_words(const sh_model_file *m, bool *yes)
{
    enum { USER = 4 }; /* of tokenizer.ggml.token_type */
    const sh_meta *type = sh_model_file_meta(m, "tokenizer.ggml.token_type");
    sh_str model;
    SH_TRY(sh_meta_need_str(m, "tokenizer.ggml.model", &model));
    *yes = model.n == 4 && memcmp(model.p, "gpt2", 4) == 0;
    if (!type) return SH_OK;
    sh_cursor c = sh_meta_cursor(type);
    for (uint64_t i = 0; i < type->n; i++)
        if (sh_get_u32(&c) == USER) *yes = false;
    return SH_OK;
}

static sh_err open_pretoken(sh_encoder *e, const sh_model_file *m)
{
    char name[65];
    bool words;
    sh_str pre = {0};
    SH_TRY(by_words(m, &words));
    if (!words) return SH_OK;
    SH_TRY(sh_meta_str(m, "tokenizer.ggml.pre", &pre));
    return sh_pretoken_open(&e->pretoken, pre.p ? sh_str_show(name, sizeof name, pre) : NULL);
}

sh_err sh_encoder_open(sh_encoder *e, const sh_model_file *m, sh_pool *pool)
{
    uint32_t end = UINT32_MAX, *bos;
    size_t n_bos;
    *e = (sh_encoder){.pool = pool, .end = -1, .bos = -1};
    SH_TRY(sh_tokenizer_open(&e->t, m));
    SH_TRY(open_pretoken(e, m));
    e->id_bytes = sh_data_id_bytes(sh_tokenizer_n_vocab(e->t));
    SH_TRY(sh_meta_u32(m, "tokenizer.ggml.eos_token_id", &end));
    if (end != UINT32_MAX) e->end = end;
    SH_TRY(sh_tokenizer_encode(e->t, "", 0, SH_TOK_BOS, &bos, &n_bos));
    if (n_bos) e->bos = bos[0];
    free(bos);
    return sh_alloc(&e->thread, (size_t)sh_pool_n_thread(pool), sizeof *e->thread, "the threads");
}

void sh_encoder_close(sh_encoder *e)
{
    for (int i = 0; e->thread && i < sh_pool_n_thread(e->pool); i++) {
        sh_words_close(&e->thread[i].words);
        free(e->thread[i].known.v);
        sh_pretoken_end(&e->thread[i].walk);
    }
    free(e->thread);
    sh_pretoken_close(e->pretoken);
    sh_tokenizer_close(e->t);
    *e = (sh_encoder){0};
}
