#include "tokenizer/new_vocab.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "tokenizer/byte_chars.h"
#include "tokenizer/kind.h"
#include "tokenizer/utf8.h"

static sh_err add(sh_new_vocab *v, const char *p, size_t n, uint32_t *id)
{
    SH_TRY(sh_grow(&v->token, &v->cap, v->n + 1, sizeof *v->token, "the tokens"));
    SH_TRY(sh_grow(&v->bytes, &v->cap_bytes, v->n_bytes + n, 1, "the tokens"));
    memcpy(v->bytes + v->n_bytes, p, n);
    v->token[v->n] = (sh_new_token){v->n_bytes, (uint32_t)n, SH_NO_TOKEN, SH_NO_TOKEN};
    v->n_bytes += n;
    *id = (uint32_t)v->n++;
    return SH_OK;
}

/* The bytes of `id` are those of left and right. */
static sh_err merge(sh_new_vocab *v, uint32_t left, uint32_t right, uint32_t id)
{
    SH_TRY(sh_grow(&v->merge, &v->cap_merge, v->n_merge + 1, sizeof id, "the merges"));
    v->token[id].left = left;
    v->token[id].right = right;
    v->merge[v->n_merge++] = id;
    return SH_OK;
}

sh_err sh_new_vocab_bpe(sh_new_vocab *v, const sh_bpe_merge *m, size_t n_merge)
{
    char joined[SH_BPE_MAX_TOKEN];
    uint32_t id;
    for (int b = 0; b < 256; b++) {
        char byte = (char)b;
        SH_TRY(add(v, &byte, 1, &id));
    }
    for (size_t i = 0; i < n_merge; i++) {
        const sh_new_token *l = &v->token[m[i].left], *r = &v->token[m[i].right];
        memcpy(joined, v->bytes + l->at, l->n);
        memcpy(joined + l->n, v->bytes + r->at, r->n);
        SH_TRY(add(v, joined, (size_t)l->n + r->n, &id));
        SH_TRY(merge(v, m[i].left, m[i].right, id));
    }
    return SH_OK;
}

/* --- characters --- */

static bool has(const uint64_t *set, uint32_t i)
{
    return set[i / 64] >> i % 64 & 1;
}

static void put(uint64_t *set, uint32_t i)
{
    set[i / 64] |= UINT64_C(1) << i % 64;
}

void sh_char_set_add(sh_char_set *set, const char *text, size_t n)
{
    for (size_t i = 0, len; i < n; i += len) {
        const uint8_t *p = (const uint8_t *)text + i;
        int found = p[0] < 0x80 ? 1 : sh_utf8_char(text + i, n - i);
        len = found > 0 ? (size_t)found : 1;
        if (found < 1) {
            put(set->byte, p[0]);
            continue;
        }
        uint32_t code = len == 1 ? p[0] : p[0] & (0x7fu >> len);
        for (size_t k = 1; k < len; k++) code = code << 6 | (p[k] & 0x3f);
        put(set->code, code);
    }
}

static size_t spell(char *out, uint32_t code)
{
    size_t n = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    if (n == 1) {
        out[0] = (char)code;
        return 1;
    }
    for (size_t i = n; i-- > 1; code >>= 6) out[i] = (char)(0x80 | (code & 0x3f));
    out[0] = (char)(0xf00u >> n | code); /* the low 8 bits: n ones, a zero */
    return n;
}

/* The token for one byte, made where it is needed first. */
static sh_err byte_token(sh_new_vocab *v, uint32_t *of, uint8_t b, uint32_t *id)
{
    char byte = (char)b;
    if (of[b] == SH_NO_TOKEN) SH_TRY(add(v, &byte, 1, &of[b]));
    *id = of[b];
    return SH_OK;
}

/* The merges that make the character `id`. Characters come in ascending order, so one front after
 * the other: `front` is the last one of each length. */
static sh_err build(sh_new_vocab *v, uint32_t *of, uint32_t front[5], uint32_t id)
{
    uint32_t left, right, n = v->token[id].n;
    char p[4];
    memcpy(p, v->bytes + v->token[id].at, n);
    SH_TRY(byte_token(v, of, (uint8_t)p[0], &left));
    for (uint32_t k = 2; k <= n; k++) {
        SH_TRY(byte_token(v, of, (uint8_t)p[k - 1], &right));
        uint32_t made = k == n ? id : front[k];
        bool there =
            k < n && made != SH_NO_TOKEN && memcmp(v->bytes + v->token[made].at, p, k) == 0;
        if (k < n && !there) {
            SH_TRY(add(v, p, k, &made));
            front[k] = made;
        }
        if (!there) SH_TRY(merge(v, left, right, made));
        left = made;
    }
    return SH_OK;
}

sh_err sh_new_vocab_chars(sh_new_vocab *v, const sh_char_set *set)
{
    uint32_t of[256], front[5], id;
    char p[4];
    for (int b = 0; b < 256; b++) of[b] = SH_NO_TOKEN;
    for (int k = 0; k < 5; k++) front[k] = SH_NO_TOKEN;
    for (uint32_t code = 0; code < 0x110000; code++) {
        if (!has(set->code, code)) continue;
        size_t n = spell(p, code);
        SH_TRY(add(v, p, n, &id));
        if (n == 1) of[code] = id;
    }
    uint32_t n_char = (uint32_t)v->n;
    for (uint32_t b = 0x80; b < 256; b++)
        if (has(set->byte, b)) SH_TRY(byte_token(v, of, (uint8_t)b, &id));
    for (uint32_t i = 0; i < n_char; i++)
        if (v->token[i].n > 1) SH_TRY(build(v, of, front, i));
    return SH_OK;
}

/* --- the file --- */

typedef struct spelled {
    sh_str *token, *merge;
    int32_t *type;
    char *chars;
    size_t n_chars;
} spelled;

/* Appends the spelling of a token. */
static void spell_token(spelled *s, const sh_new_vocab *v, uint32_t id)
{
    const sh_new_token *t = &v->token[id];
    for (uint32_t i = 0; i < t->n; i++)
        s->n_chars += sh_byte_char(s->chars + s->n_chars, (uint8_t)v->bytes[t->at + i]);
}

static sh_err spell_all(spelled *s, const sh_new_vocab *v, const char *end)
{
    size_t n_made = 0;
    for (size_t i = 0; i < v->n_merge; i++) n_made += v->token[v->merge[i]].n + 1;
    SH_TRY(sh_alloc(&s->token, v->n + 1, sizeof *s->token, "the spellings"));
    SH_TRY(sh_alloc(&s->type, v->n + 1, sizeof *s->type, "the spellings"));
    SH_TRY(sh_alloc(&s->merge, v->n_merge, sizeof *s->merge, "the spellings"));
    SH_TRY(sh_alloc(&s->chars, SH_BYTE_CHAR_MAX * (v->n_bytes + n_made), 1, "the spellings"));
    for (uint32_t i = 0; i < v->n; i++) {
        size_t at = s->n_chars;
        spell_token(s, v, i);
        s->token[i] = (sh_str){s->chars + at, s->n_chars - at};
        s->type[i] = SH_TOKEN_NORMAL;
    }
    for (size_t i = 0; i < v->n_merge; i++) {
        size_t at = s->n_chars;
        spell_token(s, v, v->token[v->merge[i]].left);
        s->chars[s->n_chars++] = ' ';
        spell_token(s, v, v->token[v->merge[i]].right);
        s->merge[i] = (sh_str){s->chars + at, s->n_chars - at};
    }
    if (end) {
        s->token[v->n] = (sh_str){end, strlen(end)};
        s->type[v->n] = SH_TOKEN_CONTROL;
    }
    return SH_OK;
}

sh_err sh_new_vocab_write(const sh_new_vocab *v, const char *end, const char *path)
{
    spelled s = {0};
    sh_gguf_writer *w = NULL;
    size_t n = v->n + (end != NULL);
    sh_err err;
    SH_GOTO(spell_all(&s, v, end));
    SH_GOTO(sh_gguf_create(&w, path));
    sh_gguf_put_str(w, "general.architecture", "gpt2", 4);
    sh_gguf_put_str(w, "tokenizer.ggml.model", "gpt2", 4);
    sh_gguf_put_str(w, "tokenizer.ggml.pre", "gpt-2", 5);
    sh_gguf_put_strs(w, "tokenizer.ggml.tokens", s.token, n);
    sh_gguf_put_i32s(w, "tokenizer.ggml.token_type", s.type, n);
    sh_gguf_put_strs(w, "tokenizer.ggml.merges", s.merge, v->n_merge);
    if (end) {
        sh_gguf_put_u32(w, "tokenizer.ggml.bos_token_id", (uint32_t)v->n);
        sh_gguf_put_u32(w, "tokenizer.ggml.eos_token_id", (uint32_t)v->n);
    }
    sh_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", false);
    err = sh_gguf_close(w, true);
out:
    free(s.token);
    free(s.type);
    free(s.merge);
    free(s.chars);
    return err;
}

void sh_new_vocab_close(sh_new_vocab *v)
{
    free(v->token);
    free(v->bytes);
    free(v->merge);
    *v = (sh_new_vocab){0};
}
