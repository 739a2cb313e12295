/* The table of tokens that all kinds share: spellings, types, pieces, and finding a spelling. */
#define _GNU_SOURCE
#include "tokenizer/kind.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/mem.h"

static const char tokens_key[] = "tokenizer.ggml.tokens";
static const char types_key[] = "tokenizer.ggml.token_type";

static uint64_t hash(const sh_vocab *v, const char *p, size_t n)
{
    uint64_t h = v->key ^ n, word;
    for (; n >= 8; p += 8, n -= 8) {
        memcpy(&word, p, 8);
        h = (h ^ word) * v->key;
        h ^= h >> 32;
    }
    if (n > 0) {
        word = 0;
        memcpy(&word, p, n);
        h = (h ^ word) * v->key;
        h ^= h >> 32;
    }
    h *= 0x9e3779b97f4a7c15u;
    return h ^ h >> 29;
}

int sh_vocab_find(const sh_vocab *v, const char *p, size_t n, unsigned types)
{
    uint32_t mask = v->n_slot - 1;
    for (uint32_t i = (uint32_t)hash(v, p, n) & mask; v->slot[i]; i = (i + 1) & mask) {
        const sh_token *t = &v->token[v->slot[i] - 1];
        if (t->n == n && memcmp(v->chars + t->at, p, n) == 0 && types & SH_TOKEN_BIT(t->type))
            return (int)v->slot[i] - 1;
    }
    return -1;
}

/* A second token of one spelling and type is never found, so it needs no slot. */
static void insert(sh_vocab *v, uint32_t id)
{
    const sh_token *t = &v->token[id];
    const char *p = v->chars + t->at;
    uint32_t mask = v->n_slot - 1, i = (uint32_t)hash(v, p, t->n) & mask;
    if (sh_vocab_find(v, p, t->n, SH_TOKEN_BIT(t->type)) >= 0) return;
    while (v->slot[i]) i = (i + 1) & mask;
    v->slot[i] = id + 1;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
}

int sh_vocab_byte(const char *spelling, size_t n)
{
    if (n != 6 || memcmp(spelling, "<0x", 3) != 0 || spelling[5] != '>') return -1;
    int hi = hex_digit(spelling[3]), lo = hex_digit(spelling[4]);
    return hi < 0 || lo < 0 ? -1 : hi * 16 + lo;
}

/* The array of strings, its number and the bytes of all spellings together. */
static sh_err find_tokens(const sh_model_file *m, const sh_meta **out, size_t *n_bytes)
{
    const sh_meta *a;
    const char *path = m->file.path;
    SH_TRY(sh_meta_array(m, tokens_key, SH_META_STR, &a));
    if (!a) return sh_fail(SH_EFILE, "%s: %s is missing", path, tokens_key);
    if (a->n < 1 || a->n > SH_MAX_VOCAB)
        return sh_fail(SH_EFILE, "%s: %s has %llu tokens; at least 1 and at most %d can be used",
                       path, tokens_key, (unsigned long long)a->n, SH_MAX_VOCAB);
    sh_cursor c = sh_meta_cursor(a);
    *n_bytes = 0;
    for (uint64_t i = 0; i < a->n; i++) {
        sh_str s = sh_get_str(&c);
        if (c.bad) return sh_fail(SH_EFILE, "%s: %s is cut off", path, tokens_key);
        if (s.n > SH_MAX_SPELLING)
            return sh_fail(SH_EFILE, "%s: %s: token %llu has %zu bytes; at most %d can be used",
                           path, tokens_key, (unsigned long long)i, s.n, SH_MAX_SPELLING);
        *n_bytes += s.n;
    }
    if (*n_bytes > SH_MAX_VOCAB_BYTES)
        return sh_fail(SH_EFILE, "%s: %s has %zu bytes of spellings; at most %d can be used", path,
                       tokens_key, *n_bytes, SH_MAX_VOCAB_BYTES);
    *out = a;
    return SH_OK;
}

/* *out NULL if the file has no types. */
static sh_err find_types(const sh_model_file *m, uint64_t n, const sh_meta **out)
{
    const sh_meta *a = sh_model_file_meta(m, types_key);
    *out = a;
    if (!a) return SH_OK;
    if (a->type != SH_META_ARRAY || (a->item_type != SH_META_I32 && a->item_type != SH_META_U32))
        return sh_fail(SH_EFILE, "%s: %s is not an array of 32-bit integers", m->file.path,
                       types_key);
    if (a->n != n)
        return sh_fail(SH_EFILE, "%s: %s has %llu entries, but there are %llu tokens", m->file.path,
                       types_key, (unsigned long long)a->n, (unsigned long long)n);
    return SH_OK;
}

/* Puts the piece of a token behind its spelling; returns the bytes used. -1: a bad byte token. */
static long put_piece(sh_vocab *v, sh_token *t, const sh_tokenizer_kind *kind)
{
    const char *spelling = v->chars + t->at;
    char *out = v->chars + t->at + t->n + 1;
    size_t n = 0;
    if (t->type == SH_TOKEN_BYTE) {
        int byte = sh_vocab_byte(spelling, t->n);
        if (byte < 0) return -1;
        out[n++] = (char)byte;
    } else if (SH_TOKENS_TEXT & SH_TOKEN_BIT(t->type)) {
        n = kind->piece(out, spelling, t->n, t->type);
    }
    t->n_piece = (uint16_t)n;
    if (n <= t->n && memcmp(out, spelling, n) == 0) {
        t->piece_at = t->at; /* the same bytes, or the first of them */
        return 0;
    }
    t->piece_at = (uint32_t)(out - v->chars);
    return (long)n;
}

static sh_err fill(sh_vocab *v, const sh_model_file *m, const sh_tokenizer_kind *kind,
                   const sh_meta *tokens, const sh_meta *types)
{
    sh_cursor c = sh_meta_cursor(tokens), ct = {0};
    size_t at = 0;
    if (types) ct = sh_meta_cursor(types);
    for (uint32_t i = 0; i < v->n; i++) {
        sh_str s = sh_get_str(&c);
        uint32_t type = SH_TOKEN_NORMAL;
        if (types)
            type = sh_get_u32(&ct);
        else if (kind->type)
            type = kind->type(s.p, s.n);
        if (type < SH_TOKEN_NORMAL || type > SH_TOKEN_BYTE)
            return sh_fail(SH_EFILE, "%s: %s: token %u has the type %d; known are 1 to %d",
                           m->file.path, types_key, i, (int)type, SH_TOKEN_BYTE);
        sh_token *t = &v->token[i];
        *t = (sh_token){.at = (uint32_t)at, .n = (uint16_t)s.n, .type = (uint8_t)type};
        if (s.n) memcpy(v->chars + at, s.p, s.n);
        v->chars[at + s.n] = 0; /* the piece before may have been tried here */
        long n_piece = put_piece(v, t, kind);
        if (n_piece < 0)
            return sh_fail(SH_EFILE,
                           "%s: %s: token %u is a byte but is not spelled <0x00> to <0xFF>",
                           m->file.path, tokens_key, i);
        at += s.n + 1 + (size_t)n_piece;
        insert(v, i);
    }
    return SH_OK;
}

sh_err sh_vocab_open(sh_vocab *v, const sh_model_file *m, const sh_tokenizer_kind *kind)
{
    const sh_meta *tokens = NULL, *types = NULL;
    size_t n_bytes = 0;
    SH_TRY(find_tokens(m, &tokens, &n_bytes));
    SH_TRY(find_types(m, tokens->n, &types));
    v->n = (uint32_t)tokens->n;
    for (v->n_slot = 2; v->n_slot < 2 * v->n;) v->n_slot *= 2;
    if (getrandom(&v->key, sizeof v->key, GRND_NONBLOCK) != sizeof v->key)
        v->key = (uint64_t)(uintptr_t)v * 0x9e3779b97f4a7c15u;
    v->key |= 1; /* a multiplier must be odd */
    SH_TRY(sh_alloc(&v->token, v->n, sizeof *v->token, "the table of tokens"));
    SH_TRY(sh_alloc(&v->slot, v->n_slot, sizeof *v->slot, "the table of tokens"));
    /* A spelling, its NUL and its piece; a piece is no longer than its spelling. */
    SH_TRY(sh_alloc(&v->chars, 2 * n_bytes + v->n, 1, "the spellings of the tokens"));
    return fill(v, m, kind, tokens, types);
}

void sh_vocab_close(sh_vocab *v)
{
    free(v->token);
    free(v->chars);
    free(v->slot);
    *v = (sh_vocab){0};
}
