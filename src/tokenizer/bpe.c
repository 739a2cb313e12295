/* The kind `gpt2`: byte-level BPE. A text is cut into pieces, a piece into bytes; of all neighbours
 * that the file has a merge for, those whose merge stands first in its list are joined first (the
 * leftmost of equals), until none are left.
 * Source: Sennrich et al. 2016, arXiv:1508.07909, section 3.2; Radford et al. 2019, section 2.2. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "tokenizer/byte_chars.h"
#include "tokenizer/kind.h"
#include "tokenizer/pretoken.h"
#include "tokenizer/utf8.h"

static const char merges_key[] = "tokenizer.ggml.merges";
static const char pre_key[] = "tokenizer.ggml.pre";

enum { MAX_MERGES = 1 << 21 };
#define GONE UINT32_MAX /* no symbol */

/* A control token is never made from text; a user token is spelled in plain text, not in the
 * alphabet of bytes, and was found before. */
#define SPELLED (SH_TOKEN_BIT(SH_TOKEN_NORMAL) | SH_TOKEN_BIT(SH_TOKEN_UNUSED))

/* A symbol is what merges make and take: the token of that id, or from n_vocab on a spelling of
 * merges or a single byte that is no token. */
typedef struct merge {
    uint32_t left, right, to; /* symbols; left is GONE in a free slot */
    uint32_t rank;            /* its place in the file's list */
} merge;

typedef struct bpe {
    sh_pretoken *pretoken;
    uint32_t byte[256]; /* the symbol of each byte */
    merge *slot;        /* (n_slot, a power of two), by hash of left and right */
    uint32_t n_slot;
    size_t longest; /* bytes of the longest piece of a token */
} bpe;

/* --- the tables --- */

/* The spellings that are no tokens, while the file is read. */
typedef struct extra {
    sh_str *v; /* sorted once all are there: the symbol n_vocab + i */
    size_t n, cap;
    char *chars; /* of joined spellings and bytes */
    size_t n_chars;
} extra;

static int by_spelling(const void *a, const void *b)
{
    const sh_str *x = a, *y = b;
    int order = memcmp(x->p, y->p, x->n < y->n ? x->n : y->n);
    return order ? order : (x->n > y->n) - (x->n < y->n);
}

static sh_err note(extra *x, const sh_tokenizer *t, sh_str s)
{
    if (sh_vocab_find(&t->vocab, s.p, s.n, SPELLED) >= 0) return SH_OK;
    SH_TRY(sh_grow(&x->v, &x->cap, x->n + 1, sizeof *x->v, "the merges"));
    x->v[x->n++] = s;
    return SH_OK;
}

static uint32_t symbol_of(const extra *x, const sh_tokenizer *t, sh_str s)
{
    int id = sh_vocab_find(&t->vocab, s.p, s.n, SPELLED);
    if (id >= 0) return (uint32_t)id;
    const sh_str *found = bsearch(&s, x->v, x->n, sizeof s, by_spelling);
    assert(found);
    return t->vocab.n + (uint32_t)(found - x->v);
}

/* Cuts "left right". */
static bool cut(sh_str s, sh_str *left, sh_str *right)
{
    const char *space = s.n > 2 ? memchr(s.p + 1, ' ', s.n - 2) : NULL;
    if (!space) return false;
    *left = (sh_str){s.p, (size_t)(space - s.p)};
    *right = (sh_str){space + 1, s.n - left->n - 1};
    return !memchr(right->p, ' ', right->n);
}

/* The spelling of what a merge makes, at `out`. */
static sh_str joined(char *out, sh_str left, sh_str right)
{
    memcpy(out, left.p, left.n);
    memcpy(out + left.n, right.p, right.n);
    return (sh_str){out, left.n + right.n};
}

static sh_err note_all(extra *x, const sh_tokenizer *t, const sh_model_file *m, const sh_meta *a)
{
    sh_cursor c = sh_meta_cursor(a);
    sh_str left, right;
    SH_TRY(sh_alloc(&x->chars, a->bytes.n + 256 * SH_BYTE_CHAR_MAX, 1, "the merges"));
    for (int b = 0; b < 256; b++) {
        char *p = x->chars + x->n_chars;
        size_t n = sh_byte_char(p, (uint8_t)b);
        x->n_chars += n;
        SH_TRY(note(x, t, (sh_str){p, n}));
    }
    for (uint64_t i = 0; i < a->n; i++) {
        sh_str s = sh_get_str(&c);
        char shown[65];
        if (c.bad) return sh_fail(SH_EFILE, "%s: %s is cut off", m->file.path, merges_key);
        if (s.n > SH_MAX_SPELLING || !cut(s, &left, &right))
            return sh_fail(SH_EFILE, "%s: %s: merge %llu, '%s', is not two spellings with a space",
                           m->file.path, merges_key, (unsigned long long)i,
                           sh_str_show(shown, sizeof shown, s));
        SH_TRY(note(x, t, left));
        SH_TRY(note(x, t, right));
        sh_str to = joined(x->chars + x->n_chars, left, right);
        SH_TRY(note(x, t, to));
        x->n_chars += to.n;
    }
    if (x->n > 0) qsort(x->v, x->n, sizeof *x->v, by_spelling);
    return SH_OK;
}

static merge *find_slot(const bpe *own, uint64_t key, uint32_t left, uint32_t right)
{
    uint32_t mask = own->n_slot - 1;
    uint64_t h = ((uint64_t)left << 32 | right) * key;
    h = (h ^ h >> 32) * key;
    merge *slot = own->slot;
    for (uint32_t i = (uint32_t)(h >> 32) & mask;; i = (i + 1) & mask)
        if (slot[i].left == GONE || (slot[i].left == left && slot[i].right == right))
            return &slot[i];
}

/* Of equal merges the first counts. */
static void fill(bpe *own, const extra *x, const sh_tokenizer *t, const sh_meta *a)
{
    sh_cursor c = sh_meta_cursor(a);
    const char *to = x->chars; /* the spellings stand there in the order of note_all */
    sh_str left, right;
    for (int b = 0; b < 256; b++) {
        char none[SH_BYTE_CHAR_MAX];
        size_t n = sh_byte_char(none, (uint8_t)b);
        own->byte[b] = symbol_of(x, t, (sh_str){to, n});
        to += n;
    }
    for (uint32_t i = 0; i < own->n_slot; i++) own->slot[i].left = GONE;
    for (uint32_t i = 0; i < a->n; i++) {
        cut(sh_get_str(&c), &left, &right);
        uint32_t l = symbol_of(x, t, left), r = symbol_of(x, t, right);
        merge *slot = find_slot(own, t->vocab.key, l, r);
        if (slot->left == GONE)
            *slot = (merge){l, r, symbol_of(x, t, (sh_str){to, left.n + right.n}), i};
        to += left.n + right.n;
    }
}

static sh_err read_merges(bpe *own, const sh_tokenizer *t, const sh_model_file *m)
{
    const sh_meta *a;
    extra x = {0};
    sh_err err;
    SH_TRY(sh_meta_array(m, merges_key, SH_META_STR, &a));
    if (!a) return sh_fail(SH_EFILE, "%s: %s is missing", m->file.path, merges_key);
    if (a->n > MAX_MERGES)
        return sh_fail(SH_EFILE, "%s: %s has %llu merges; at most %d can be used", m->file.path,
                       merges_key, (unsigned long long)a->n, MAX_MERGES);
    for (own->n_slot = 2; own->n_slot < 2 * a->n;) own->n_slot *= 2;
    SH_GOTO(sh_alloc(&own->slot, own->n_slot, sizeof *own->slot, "the merges"));
    SH_GOTO(note_all(&x, t, m, a));
    fill(own, &x, t, a);
out:
    free(x.v);
    free(x.chars);
    return err;
}

static sh_err open_bpe(sh_tokenizer *t, const sh_model_file *m)
{
    bpe *own;
    char name[65];
    sh_str pre = {0};
    SH_TRY(sh_alloc(&own, 1, sizeof *own, "the tokenizer"));
    t->own = own;
    SH_TRY(sh_meta_str(m, pre_key, &pre));
    sh_err err =
        sh_pretoken_open(&own->pretoken, pre.p ? sh_str_show(name, sizeof name, pre) : NULL);
    if (err == SH_EARG) return sh_fail_in(SH_EFILE, "%s: %s", m->file.path, pre_key);
    SH_TRY(err);
    SH_TRY(read_merges(own, t, m));
    for (uint32_t i = 0; i < t->vocab.n; i++)
        if (t->vocab.token[i].n_piece > own->longest) own->longest = t->vocab.token[i].n_piece;
    t->add_bos = sh_pretoken_row_of(own->pretoken)->add_bos;
    return sh_meta_bool(m, "tokenizer.ggml.add_bos_token", &t->add_bos);
}

static void close_bpe(sh_tokenizer *t)
{
    bpe *own = t->own;
    if (own) {
        sh_pretoken_close(own->pretoken);
        free(own->slot);
    }
    free(own);
    t->own = NULL;
}

/* The bytes of a token; what is not in the alphabet stands for itself. */
static size_t piece(char *out, const char *spelling, size_t n, sh_token_type type)
{
    size_t n_out = 0;
    for (size_t i = 0, used; i < n; i += used) {
        int byte = type == SH_TOKEN_USER ? -1 : sh_byte_of_char(spelling + i, n - i, &used);
        if (byte < 0) used = 1;
        out[n_out++] = byte < 0 ? spelling[i] : (char)byte;
    }
    return n_out;
}

/* --- encoding --- */

/* run[i] begins at byte i of the piece and goes up to `next`; a run that was joined to the one
 * before it has the symbol GONE. */
typedef struct run {
    int32_t prev, next; /* -1 before the first; the length of the piece after the last */
    uint32_t symbol;
} run;

/* Two neighbours that a merge joins; stale once one of them is another symbol. */
typedef struct pair {
    uint64_t order; /* rank of the merge, then the byte where the left one begins */
    uint32_t slot;  /* of the merge */
} pair;

typedef struct joiner {
    const sh_tokenizer *t;
    const char *piece;
    size_t n;
    run *run; /* (n) */
    size_t cap_run;
    pair *heap; /* the first pair is heap[0] */
    size_t n_heap, cap_heap;
    char *spelled;
    size_t cap_spelled;
} joiner;

static sh_err push(joiner *j, pair p)
{
    SH_TRY(sh_grow(&j->heap, &j->cap_heap, j->n_heap + 1, sizeof p, "the pairs of the text"));
    size_t i = j->n_heap++;
    for (; i > 0 && p.order < j->heap[(i - 1) / 2].order; i = (i - 1) / 2)
        j->heap[i] = j->heap[(i - 1) / 2];
    j->heap[i] = p;
    return SH_OK;
}

static pair pop(joiner *j)
{
    pair top = j->heap[0], last = j->heap[--j->n_heap];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < j->n_heap) {
        if (child + 1 < j->n_heap && j->heap[child + 1].order < j->heap[child].order) child++;
        if (last.order <= j->heap[child].order) break;
        j->heap[i] = j->heap[child];
        i = child;
    }
    j->heap[i] = last;
    return top;
}

static sh_err try_pair(joiner *j, int32_t left)
{
    const bpe *own = j->t->own;
    if (left < 0 || (size_t)j->run[left].next >= j->n) return SH_OK;
    const merge *m =
        find_slot(own, j->t->vocab.key, j->run[left].symbol, j->run[j->run[left].next].symbol);
    if (m->left == GONE) return SH_OK;
    return push(j, (pair){(uint64_t)m->rank << 32 | (uint32_t)left, (uint32_t)(m - own->slot)});
}

static sh_err join(joiner *j)
{
    const bpe *own = j->t->own;
    SH_TRY(sh_grow(&j->run, &j->cap_run, j->n, sizeof *j->run, "the bytes of the text"));
    for (int32_t i = 0; (size_t)i < j->n; i++)
        j->run[i] = (run){i - 1, i + 1, own->byte[(uint8_t)j->piece[i]]};
    for (int32_t i = 0; (size_t)i < j->n; i++) SH_TRY(try_pair(j, i));
    while (j->n_heap > 0) {
        pair p = pop(j);
        const merge *m = &own->slot[p.slot];
        int32_t left = (int32_t)(uint32_t)p.order, right = j->run[left].next;
        if (j->run[left].symbol != m->left || (size_t)right >= j->n ||
            j->run[right].symbol != m->right)
            continue;
        j->run[left].symbol = m->to;
        j->run[left].next = j->run[right].next;
        j->run[right].symbol = GONE;
        if ((size_t)j->run[left].next < j->n) j->run[j->run[left].next].prev = left;
        SH_TRY(try_pair(j, j->run[left].prev));
        SH_TRY(try_pair(j, left));
    }
    return SH_OK;
}

/* The character that byte `at` of the piece belongs to is in no token. */
static sh_err no_token(const joiner *j, size_t at)
{
    size_t lo = at;
    while (lo > 0 && at - lo < 3 && ((uint8_t)j->piece[lo] & 0xc0) == 0x80) lo--;
    const uint8_t *p = (const uint8_t *)j->piece + lo;
    int len = sh_utf8_char((const char *)p, j->n - lo);
    if (len < 1)
        return sh_fail(SH_EARG,
                       "the byte 0x%02X of the text is in no token of this model; leave it out",
                       (uint8_t)j->piece[at]);
    uint32_t code = len == 1 ? p[0] : p[0] & (0x7fu >> len);
    for (int i = 1; i < len; i++) code = code << 6 | (p[i] & 0x3f);
    bool shown = code >= 0x20 && !(code >= 0x7f && code < 0xa0);
    return sh_fail(
        SH_EARG,
        "the character '%.*s' (U+%04X) of the text is in no token of this model; leave it "
        "out or write another",
        shown ? len : 1, shown ? (const char *)p : "?", code);
}

/* What is joined but is no token is written as its bytes. Where those are no tokens either, the
 * unknown token stands for all of it and for the rest of its character. */
static sh_err put(joiner *j, sh_ids *ids)
{
    const bpe *own = j->t->own;
    const uint8_t *p = (const uint8_t *)j->piece;
    uint32_t n_vocab = j->t->vocab.n;
    for (size_t i = 0, end, known; i < j->n; i = end) {
        uint32_t symbol = j->run[i].symbol;
        end = (size_t)j->run[i].next;
        if (symbol < n_vocab) {
            SH_TRY(sh_ids_add(ids, symbol));
            continue;
        }
        for (known = i; known < end && own->byte[p[known]] < n_vocab;) known++;
        if (known == end) {
            for (size_t k = i; k < end; k++) SH_TRY(sh_ids_add(ids, own->byte[p[k]]));
            continue;
        }
        if (j->t->unknown < 0) return no_token(j, known);
        SH_TRY(sh_ids_add(ids, (uint32_t)j->t->unknown));
        int len = sh_utf8_char(j->piece + i, j->n - i);
        while (len > 0 && end < i + (size_t)len) end = (size_t)j->run[end].next;
    }
    return SH_OK;
}

/* The token that is the whole piece, -1 if there is none. */
static sh_err find_whole(joiner *j, int *id)
{
    size_t n = 0;
    *id = -1;
    if (j->n > ((const bpe *)j->t->own)->longest) return SH_OK;
    SH_TRY(sh_grow(&j->spelled, &j->cap_spelled, j->n * SH_BYTE_CHAR_MAX, 1, "the text"));
    for (size_t i = 0; i < j->n; i++) n += sh_byte_char(j->spelled + n, (uint8_t)j->piece[i]);
    *id = sh_vocab_find(&j->t->vocab, j->spelled, n, SPELLED);
    return SH_OK;
}

static sh_err encode(const sh_tokenizer *t, const char *text, size_t n, bool first, sh_ids *ids)
{
    const sh_pretoken *pretoken = ((const bpe *)t->own)->pretoken;
    bool whole = sh_pretoken_row_of(pretoken)->whole;
    sh_pretoken_walk walk = {0};
    joiner j = {.t = t};
    sh_err err;
    (void)first;
    SH_GOTO(sh_pretoken_begin(&walk, pretoken, text, n));
    for (;;) {
        int id = -1;
        SH_GOTO(sh_pretoken_next(&walk, &j.piece, &j.n));
        if (j.n == 0) break;
        if (whole) SH_GOTO(find_whole(&j, &id));
        if (id >= 0) {
            SH_GOTO(sh_ids_add(ids, (uint32_t)id));
            continue;
        }
        SH_GOTO(join(&j));
        SH_GOTO(put(&j, ids));
    }
out:
    sh_pretoken_end(&walk);
    free(j.run);
    free(j.heap);
    free(j.spelled);
    return err;
}

/* The ids that other programs take where a file does not say are those of no common vocabulary. */
const sh_tokenizer_kind sh_tokenizer_bpe = {
    .name = "gpt2",
    .add_bos = false,
    .bos = -1,
    .eos = -1,
    .unknown = -1,
    .piece = piece,
    .open = open_bpe,
    .close = close_bpe,
    .encode = encode,
};
