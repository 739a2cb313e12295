/* Opens the tokenizer of a model file, finds control tokens in a text, and gives what lies between
 * them to the kind. */
#include "tokenizer/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "tokenizer/kind.h"

const sh_tokenizer_kind *const sh_tokenizer_kinds[] = {
    &sh_tokenizer_spm,
    &sh_tokenizer_bpe,
    NULL,
};

static const char model_key[] = "tokenizer.ggml.model";

/* Positions in a text are 32 bits wide, and an SPM space takes three bytes. */
enum { MAX_TEXT = 512 << 20 };

sh_err sh_ids_add(sh_ids *ids, uint32_t id)
{
    SH_TRY(sh_grow(&ids->v, &ids->cap, ids->n + 1, sizeof id, "the tokens of the text"));
    ids->v[ids->n++] = id;
    return SH_OK;
}

static sh_err find_kind(const sh_tokenizer_kind **out, const sh_model_file *m)
{
    char known[256] = "", unknown[65] = "";
    size_t at = 0;
    sh_str name;
    SH_TRY(sh_meta_need_str(m, model_key, &name));
    for (int i = 0; sh_tokenizer_kinds[i]; i++) {
        const sh_tokenizer_kind *k = sh_tokenizer_kinds[i];
        if (strlen(k->name) == name.n && memcmp(k->name, name.p, name.n) == 0) {
            *out = k;
            return SH_OK;
        }
        if (at < sizeof known)
            at += (size_t)snprintf(known + at, sizeof known - at, "%s%s", i ? ", " : "", k->name);
    }
    for (size_t i = 0; i < name.n && i < sizeof unknown - 1; i++)
        unknown[i] = name.p[i] > ' ' && name.p[i] < 0x7f ? name.p[i] : '?';
    return sh_fail(SH_EFILE,
                   "%s: %s is '%s', a kind of tokenizer this program does not have; it has: %s",
                   m->file.path, model_key, unknown, known);
}

/* The id under a key; `otherwise` where the key is missing, if that token has the type. */
static sh_err read_id(const sh_tokenizer *t, const sh_model_file *m, const char *key, int otherwise,
                      sh_token_type type, int *out)
{
    uint32_t id = UINT32_MAX, n = t->vocab.n;
    *out = -1;
    SH_TRY(sh_meta_u32(m, key, &id));
    if (sh_model_file_meta(m, key)) {
        if (id >= n)
            return sh_fail(SH_EFILE, "%s: %s is %u, but there are %u tokens", m->file.path, key, id,
                           n);
        *out = (int)id;
    } else if (otherwise >= 0 && (uint32_t)otherwise < n &&
               t->vocab.token[otherwise].type == type) {
        *out = otherwise;
    }
    return SH_OK;
}

static void add_end(sh_tokenizer *t, int id)
{
    if (id >= 0 && !sh_tokenizer_is_end(t, (uint32_t)id)) t->end[t->n_end++] = (uint32_t)id;
}

static sh_err read_ids(sh_tokenizer *t, const sh_model_file *m)
{
    static const char *const end_spelling[] = {"<|eot_id|>", "<|im_end|>", "<|end|>",
                                               "<end_of_turn>", "<|endoftext|>"};
    const sh_tokenizer_kind *k = t->kind;
    int eos, eot;
    SH_TRY(read_id(t, m, "tokenizer.ggml.bos_token_id", k->bos, SH_TOKEN_CONTROL, &t->bos));
    SH_TRY(read_id(t, m, "tokenizer.ggml.eos_token_id", k->eos, SH_TOKEN_CONTROL, &eos));
    SH_TRY(read_id(t, m, "tokenizer.ggml.eot_token_id", -1, SH_TOKEN_CONTROL, &eot));
    SH_TRY(read_id(t, m, "tokenizer.ggml.unknown_token_id", k->unknown, SH_TOKEN_UNKNOWN,
                   &t->unknown));
    t->add_bos = k->add_bos;
    SH_TRY(sh_meta_bool(m, "tokenizer.ggml.add_bos_token", &t->add_bos));
    add_end(t, eos);
    add_end(t, eot);
    for (size_t i = 0; i < sizeof end_spelling / sizeof *end_spelling; i++)
        add_end(t, sh_vocab_find(&t->vocab, end_spelling[i], strlen(end_spelling[i]),
                                 SH_TOKEN_BIT(SH_TOKEN_CONTROL)));
    return SH_OK;
}

static sh_err index_special(sh_tokenizer *t, const sh_model_file *m)
{
    for (uint32_t i = 0; i < t->vocab.n; i++) {
        const sh_token *token = &t->vocab.token[i];
        bool user = token->type == SH_TOKEN_USER;
        if (token->n == 0 || !(user || SH_TOKENS_CONTROL & SH_TOKEN_BIT(token->type))) continue;
        if (token->n > SH_MAX_SPECIAL)
            return sh_fail(SH_EFILE,
                           "%s: tokenizer.ggml.tokens: token %u has %u bytes; at most %d can be "
                           "used for a control or user-defined token",
                           m->file.path, i, (unsigned)token->n, SH_MAX_SPECIAL);
        uint8_t first = (uint8_t)t->vocab.chars[token->at];
        t->special[token->n][first / 64] |= UINT64_C(1) << first % 64;
        if (token->n > t->longest_special) t->longest_special = token->n;
        if (user && token->n > t->longest_user) t->longest_user = token->n;
    }
    return SH_OK;
}

sh_err sh_tokenizer_open(sh_tokenizer **out, const sh_model_file *m)
{
    sh_tokenizer *t = NULL;
    const sh_tokenizer_kind *kind;
    sh_err err;
    *out = NULL;
    SH_GOTO(find_kind(&kind, m));
    SH_GOTO(sh_alloc(&t, 1, sizeof *t, "the tokenizer"));
    t->kind = kind;
    SH_GOTO(sh_vocab_open(&t->vocab, m, kind));
    SH_GOTO(read_ids(t, m));
    SH_GOTO(index_special(t, m));
    SH_GOTO(kind->open(t, m));
    *out = t;
    t = NULL;
out:
    sh_tokenizer_close(t);
    return err;
}

void sh_tokenizer_close(sh_tokenizer *t)
{
    if (!t) return;
    if (t->kind) t->kind->close(t);
    sh_vocab_close(&t->vocab);
    free(t);
}

/* mark: (n) 0 where the text is plain, id + 1 where a special token begins, INSIDE in the rest of
 * it. Longer tokens go first, wherever they stand; so a token that was marked before is at least as
 * long as the one tried, and cannot lie within it without covering one of its ends. */
#define INSIDE UINT32_MAX

static void mark_special(const sh_tokenizer *t, const char *text, size_t n, unsigned types,
                         int longest, uint32_t *mark)
{
    static const uint64_t none[4];
    for (size_t len = (size_t)longest; len > 0; len--) {
        const uint64_t *first = t->special[len];
        if (memcmp(first, none, sizeof none) == 0) continue;
        for (size_t p = 0; p + len <= n; p++) {
            uint8_t byte = (uint8_t)text[p];
            if (!(first[byte / 64] >> byte % 64 & 1) || mark[p] || mark[p + len - 1]) continue;
            int id = sh_vocab_find(&t->vocab, text + p, len, types);
            if (id < 0) continue;
            for (size_t i = 1; i < len; i++) mark[p + i] = INSIDE;
            mark[p] = (uint32_t)id + 1;
            p += len - 1;
        }
    }
}

sh_err sh_tokenizer_encode(const sh_tokenizer *t, const char *text, size_t n, int flags,
                           uint32_t **ids, size_t *n_ids)
{
    sh_ids out = {0};
    uint32_t *mark = NULL;
    bool special = flags & SH_TOK_SPECIAL, first = true;
    unsigned types = SH_TOKEN_BIT(SH_TOKEN_USER) | (special ? (unsigned)SH_TOKENS_CONTROL : 0);
    int longest = special ? t->longest_special : t->longest_user;
    sh_err err;
    *ids = NULL;
    *n_ids = 0;
    if (n > MAX_TEXT)
        return sh_fail(SH_EARG, "the text has %zu bytes; at most %d can be read at once", n,
                       MAX_TEXT);
    SH_GOTO(sh_grow(&out.v, &out.cap, 1, sizeof *out.v, "the tokens of the text"));
    if (flags & SH_TOK_BOS && t->add_bos && t->bos >= 0)
        SH_GOTO(sh_ids_add(&out, (uint32_t)t->bos));
    if (longest > 0 && n > 0) {
        SH_GOTO(sh_alloc(&mark, n, sizeof *mark, "the control tokens of the text"));
        mark_special(t, text, n, types, longest, mark);
    }
    for (size_t p = 0, end; p < n; p = end) {
        end = p + 1;
        if (mark && mark[p]) {
            while (end < n && mark[end] == INSIDE) end++;
            SH_GOTO(sh_ids_add(&out, mark[p] - 1));
            first = true;
        } else {
            while (end < n && !(mark && mark[end])) end++;
            SH_GOTO(t->kind->encode(t, text + p, end - p, first, &out));
            first = false;
        }
    }
    *ids = out.v;
    *n_ids = out.n;
    out.v = NULL;
out:
    free(out.v);
    free(mark);
    return err;
}

int sh_tokenizer_n_vocab(const sh_tokenizer *t)
{
    return (int)t->vocab.n;
}

int sh_tokenizer_bos(const sh_tokenizer *t)
{
    return t->bos;
}

bool sh_tokenizer_is_end(const sh_tokenizer *t, uint32_t id)
{
    for (int i = 0; i < t->n_end; i++)
        if (t->end[i] == id) return true;
    return false;
}

const char *sh_tokenizer_piece(const sh_tokenizer *t, uint32_t id, size_t *n)
{
    *n = id < t->vocab.n ? t->vocab.token[id].n_piece : 0;
    return id < t->vocab.n ? t->vocab.chars + t->vocab.token[id].piece_at : "";
}

const char *sh_tokenizer_spelling(const sh_tokenizer *t, uint32_t id)
{
    return id < t->vocab.n ? t->vocab.chars + t->vocab.token[id].at : "";
}

bool sh_tokenizer_strips_first_space(const sh_tokenizer *t)
{
    return t->space_prefix;
}
