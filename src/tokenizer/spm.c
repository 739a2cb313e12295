/* The kind `llama`: SentencePiece vocabularies with a score for each token. Of all neighbours that
 * spell a token when joined, those with the best score are joined first (the leftmost of equals),
 * until none are left. What then is no token is written as bytes.
 * Source: Kudo & Richardson 2018, arXiv:1808.06226, section 3.1 (a heap of pairs: n log n). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "tokenizer/kind.h"
#include "tokenizer/utf8.h"

static const char scores_key[] = "tokenizer.ggml.scores";
static const char meta_space[] = "\xe2\x96\x81"; /* U+2581, which stands for a space */

typedef struct spm {
    float *score;      /* (n_vocab) */
    int32_t byte[256]; /* id of <0xNN>, -1 if there is none */
    bool by_word; /* no token goes on with a space behind anything else: words are independent */
} spm;

/* A run of the text, a character at first. Runs that were joined to the one before have n = 0. */
typedef struct run {
    int32_t prev, next; /* -1 at the ends */
    uint32_t at, n;     /* bytes of the text */
} run;

/* Two neighbours that spell a token when joined; stale once their length is no longer n. */
typedef struct pair {
    float score;
    int32_t left, right;
    uint32_t n;
} pair;

typedef struct joiner {
    const sh_tokenizer *t;
    char *text; /* with meta spaces */
    size_t n_text, cap_text;
    run *run;
    size_t n_run, cap_run;
    pair *heap; /* the best pair is heap[0] */
    size_t n_heap, cap_heap;
} joiner;

static bool better(const pair *a, const pair *b)
{
    return a->score > b->score || (a->score == b->score && a->left < b->left);
}

static sh_err push(joiner *j, pair p)
{
    SH_TRY(sh_grow(&j->heap, &j->cap_heap, j->n_heap + 1, sizeof p, "the pairs of the text"));
    size_t i = j->n_heap++;
    for (; i > 0 && better(&p, &j->heap[(i - 1) / 2]); i = (i - 1) / 2)
        j->heap[i] = j->heap[(i - 1) / 2];
    j->heap[i] = p;
    return SH_OK;
}

static pair pop(joiner *j)
{
    pair top = j->heap[0], last = j->heap[--j->n_heap];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < j->n_heap) {
        if (child + 1 < j->n_heap && better(&j->heap[child + 1], &j->heap[child])) child++;
        if (!better(&j->heap[child], &last)) break;
        j->heap[i] = j->heap[child];
        i = child;
    }
    j->heap[i] = last;
    return top;
}

static sh_err try_pair(joiner *j, int32_t left, int32_t right)
{
    if (left < 0 || right < 0) return SH_OK;
    const run *l = &j->run[left];
    uint32_t n = l->n + j->run[right].n;
    if (n > SH_MAX_SPELLING) return SH_OK;
    int id = sh_vocab_find(&j->t->vocab, j->text + l->at, n, SH_TOKENS_TEXT);
    if (id < 0) return SH_OK;
    float score = ((const spm *)j->t->own)->score[id];
    return push(j, (pair){.score = score, .left = left, .right = right, .n = n});
}

/* The text with meta spaces, a prefix where it is due, and its characters as runs. */
static sh_err split(joiner *j, const char *text, size_t n, bool prefix)
{
    size_t n_space = prefix;
    for (size_t i = 0; i < n; i++) n_space += text[i] == ' ';
    SH_TRY(sh_grow(&j->text, &j->cap_text, n + prefix + 2 * n_space, 1, "the text"));
    SH_TRY(sh_grow(&j->run, &j->cap_run, n + prefix, sizeof *j->run, "the characters of the text"));
    j->n_text = j->n_run = 0;
    for (size_t i = 0; i < n + prefix;) {
        const char *p = i < prefix ? " " : text + i - prefix;
        int len = sh_utf8_char(p, i < prefix ? 1 : n - (i - prefix));
        size_t used = len < 1 ? 1 : (size_t)len; /* a byte of no character is a run of its own */
        size_t n_out = *p == ' ' ? 3 : used;
        int32_t k = (int32_t)j->n_run++;
        j->run[k] =
            (run){.prev = k - 1, .next = k + 1, .at = (uint32_t)j->n_text, .n = (uint32_t)n_out};
        memcpy(j->text + j->n_text, *p == ' ' ? meta_space : p, n_out);
        j->n_text += n_out;
        i += used;
    }
    j->run[j->n_run - 1].next = -1;
    return SH_OK;
}

static sh_err join(joiner *j)
{
    for (size_t i = 1; i < j->n_run; i++) SH_TRY(try_pair(j, (int32_t)i - 1, (int32_t)i));
    while (j->n_heap > 0) {
        pair p = pop(j);
        run *l = &j->run[p.left], *r = &j->run[p.right];
        if (l->n == 0 || r->n == 0 || l->n + r->n != p.n) continue;
        l->n = p.n;
        r->n = 0;
        l->next = r->next;
        if (r->next >= 0) j->run[r->next].prev = p.left;
        SH_TRY(try_pair(j, l->prev, p.left));
        SH_TRY(try_pair(j, p.left, l->next));
    }
    return SH_OK;
}

/* Bytes if the vocabulary has them all, else the unknown token. */
static sh_err put_bytes(const sh_tokenizer *t, const char *p, size_t n, sh_ids *ids)
{
    const spm *own = t->own;
    bool all = true;
    for (size_t i = 0; i < n; i++) all &= own->byte[(uint8_t)p[i]] >= 0;
    if (!all) return sh_ids_add(ids, (uint32_t)t->unknown);
    for (size_t i = 0; i < n; i++) SH_TRY(sh_ids_add(ids, (uint32_t)own->byte[(uint8_t)p[i]]));
    return SH_OK;
}

/* The bytes up to the next space that no token can hold together with what is before it. */
static size_t word_length(const sh_tokenizer *t, const char *p, size_t n)
{
    if (!((const spm *)t->own)->by_word) return n;
    for (size_t i = 1; i < n; i++)
        if (p[i] == ' ' && p[i - 1] != ' ' && (i < 3 || memcmp(p + i - 3, meta_space, 3) != 0))
            return i;
    return n;
}

static sh_err encode_word(joiner *j, const char *text, size_t n, bool prefix, sh_ids *ids)
{
    const sh_tokenizer *t = j->t;
    SH_TRY(split(j, text, n, prefix));
    SH_TRY(join(j));
    for (int32_t i = 0; i >= 0; i = j->run[i].next) {
        const char *p = j->text + j->run[i].at;
        int id = sh_vocab_find(&t->vocab, p, j->run[i].n, SH_TOKENS_TEXT);
        SH_TRY(id >= 0 ? sh_ids_add(ids, (uint32_t)id) : put_bytes(t, p, j->run[i].n, ids));
    }
    return SH_OK;
}

static sh_err encode(const sh_tokenizer *t, const char *text, size_t n, bool first, sh_ids *ids)
{
    joiner j = {.t = t};
    sh_err err = SH_OK;
    for (size_t at = 0, len; at < n; at += len) {
        len = word_length(t, text + at, n - at);
        SH_GOTO(encode_word(&j, text + at, len, t->space_prefix && first && at == 0, ids));
    }
out:
    free(j.text);
    free(j.run);
    free(j.heap);
    return err;
}

static sh_token_type type(const char *spelling, size_t n)
{
    if (sh_vocab_byte(spelling, n) >= 0) return SH_TOKEN_BYTE;
    if (n == 5 && memcmp(spelling, "<unk>", 5) == 0) return SH_TOKEN_UNKNOWN;
    if (n == 3 && memcmp(spelling, "<s>", 3) == 0) return SH_TOKEN_CONTROL;
    if (n == 4 && memcmp(spelling, "</s>", 4) == 0) return SH_TOKEN_CONTROL;
    return SH_TOKEN_NORMAL;
}

static size_t piece(char *out, const char *spelling, size_t n, sh_token_type token_type)
{
    size_t n_out = 0;
    (void)token_type;
    for (size_t i = 0; i < n;) {
        bool is_space = n - i >= 3 && memcmp(spelling + i, meta_space, 3) == 0;
        out[n_out++] = is_space ? ' ' : spelling[i];
        i += is_space ? 3 : 1;
    }
    return n_out;
}

static sh_err read_scores(const sh_tokenizer *t, spm *own, const sh_model_file *m)
{
    const sh_meta *a;
    const char *path = m->file.path;
    SH_TRY(sh_meta_array(m, scores_key, SH_META_F32, &a));
    if (!a) return sh_fail(SH_EFILE, "%s: %s is missing", path, scores_key);
    if (a->n != t->vocab.n)
        return sh_fail(SH_EFILE, "%s: %s has %llu entries, but there are %u tokens", path,
                       scores_key, (unsigned long long)a->n, t->vocab.n);
    SH_TRY(sh_alloc(&own->score, t->vocab.n, sizeof *own->score, "the scores of the tokens"));
    sh_cursor c = sh_meta_cursor(a);
    for (uint32_t i = 0; i < t->vocab.n; i++) {
        own->score[i] = sh_get_f32(&c);
        if (isnan(own->score[i]))
            return sh_fail(SH_EFILE, "%s: %s: the score of token %u is not a number", path,
                           scores_key, i);
    }
    return SH_OK;
}

static bool holds_later_space(const char *p, size_t n)
{
    for (size_t i = 1; i + 3 <= n; i++)
        if (memcmp(p + i, meta_space, 3) == 0 && (i < 3 || memcmp(p + i - 3, meta_space, 3) != 0))
            return true;
    return false;
}

static sh_err open_spm(sh_tokenizer *t, const sh_model_file *m)
{
    spm *own;
    bool all = true;
    SH_TRY(sh_alloc(&own, 1, sizeof *own, "the tokenizer"));
    t->own = own;
    SH_TRY(read_scores(t, own, m));
    own->by_word = true;
    for (int b = 0; b < 256; b++) own->byte[b] = -1;
    for (uint32_t i = t->vocab.n; i-- > 0;) { /* downwards, so that the first of a kind stays */
        const sh_token *token = &t->vocab.token[i];
        if (token->type == SH_TOKEN_BYTE)
            own->byte[(uint8_t)t->vocab.chars[token->piece_at]] = (int32_t)i;
        else if (SH_TOKENS_TEXT & SH_TOKEN_BIT(token->type) &&
                 holds_later_space(t->vocab.chars + token->at, token->n))
            own->by_word = false;
    }
    for (int b = 0; b < 256; b++) all &= own->byte[b] >= 0;
    if (!all && t->unknown < 0)
        return sh_fail(SH_EFILE,
                       "%s: tokenizer.ggml.tokens has no token for some bytes and "
                       "tokenizer.ggml.unknown_token_id is missing",
                       m->file.path);
    t->space_prefix = true;
    return sh_meta_bool(m, "tokenizer.ggml.add_space_prefix", &t->space_prefix);
}

static void close_spm(sh_tokenizer *t)
{
    spm *own = t->own;
    if (own) free(own->score);
    free(own);
    t->own = NULL;
}

const sh_tokenizer_kind sh_tokenizer_spm = {
    .name = "llama",
    .add_bos = true,
    .bos = 1,
    .eos = 2,
    .unknown = 0,
    .type = type,
    .piece = piece,
    .open = open_spm,
    .close = close_spm,
    .encode = encode,
};
