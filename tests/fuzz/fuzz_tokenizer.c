/* Any text through a tokenizer: the pieces must be the text again. The first byte chooses the flags
 * and one of four vocabularies: two of SentencePiece, two of byte-level BPE. */
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>

#include "../tokenizer/small_vocab.h"

enum { WITH_PREFIX = 4, BPE = 8, LLAMA_BPE = BPE | 4, META_BYTES = 3 };

static const char meta_space[] = "\xe2\x96\x81";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void add_control(small_vocab *v)
{
    small_add(v, "<|im_end|>", 10, 0, CONTROL);
    small_add(v, "<|im", 4, 0, CONTROL);
    small_add(v, "ab<", 3, 0, CONTROL);
}

static sh_tokenizer *open_vocab(small_vocab *v)
{
    sh_tokenizer *t;
    if (small_open(&t, v) != SH_OK) abort();
    small_free(v);
    return t;
}

static sh_tokenizer *build_bpe(const char *pre)
{
    /* Letters, spaces and newlines, the parts of a character; one merge makes no token. */
    static const char *const merge[] = {
        "a b", "\u0120 ab", "ab c",          "\u0120 \u0120", "\u0120\u0120 \u0120\u0120",
        "c a", "abc abc",   "\u010a \u010a", "\u00c3 \u00a4", "\u00f0 \u0141"};
    small_vocab v;
    small_init_bpe(&v, true);
    for (size_t i = 0; i < sizeof merge / sizeof *merge; i++) {
        char to[32];
        const char *space = strchr(merge[i], ' ');
        int n = snprintf(to, sizeof to, "%.*s%s", (int)(space - merge[i]), merge[i], space + 1);
        small_merge(&v, merge[i], strlen(merge[i]));
        if (strcmp(merge[i], "c a") != 0) small_add(&v, to, (size_t)n, 0, NORMAL);
    }
    add_control(&v);
    small_add(&v, "b\n", 2, 0, USER);
    v.pre = pre;
    v.bos = (int64_t)v.n - 2;
    v.add_bos = 1;
    return open_vocab(&v);
}

/* User tokens only where no prefix is put behind them: it would come back as a space. */
static sh_tokenizer *build_spm(bool prefix)
{
    static const char *const text[] = {"\xe2\x96\x81",
                                       "a",
                                       "b",
                                       "c",
                                       "ab",
                                       "▁ab",
                                       "abc",
                                       "\xe2\x96\x81\xe2\x96\x81",
                                       "\xc3\xa4",
                                       "\xf0\x9f\xa6\x99",
                                       "ca",
                                       "\xff",
                                       "s>",
                                       "\n\n",
                                       "bc",
                                       "abcabc"};
    small_vocab v;
    small_init(&v, true);
    for (size_t i = 0; i < sizeof text / sizeof *text; i++)
        small_add_text(&v, text[i], (float)-(int)(i % 7));
    add_control(&v);
    if (!prefix) {
        small_add(&v, "    ", 4, 0, USER);
        small_add(&v, "b\n", 2, 0, USER);
    }
    v.space_prefix = prefix;
    return open_vocab(&v);
}

/* Compares with the text, in which U+2581 may come back as a space. */
static void check(const char *got, size_t n_got, const char *text, size_t n)
{
    size_t g = 0;
    for (size_t i = 0; i < n; g++) {
        bool meta = n - i >= META_BYTES && memcmp(text + i, meta_space, META_BYTES) == 0;
        if (g >= n_got || (got[g] != text[i] && !(meta && got[g] == ' '))) abort();
        i += meta && got[g] == ' ' ? META_BYTES : 1;
    }
    if (g != n_got) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static sh_tokenizer *tokenizer[4];
    uint32_t *id;
    size_t n_id, n_piece, n_got = 0;
    if (n < 1) return 0;
    for (int i = 0; i < 2 && !tokenizer[2 + i]; i++) {
        tokenizer[i] = build_spm(i);
        tokenizer[2 + i] = build_bpe(i ? "llama-bpe" : "gpt-2");
    }
    bool prefix = (data[0] & LLAMA_BPE) == WITH_PREFIX;
    int flags = data[0] & (prefix ? SH_TOK_BOS : SH_TOK_BOS | SH_TOK_SPECIAL);
    const sh_tokenizer *t = tokenizer[(data[0] & LLAMA_BPE) / WITH_PREFIX];
    const char *text = (const char *)data + 1;
    if (sh_tokenizer_encode(t, text, --n, flags, &id, &n_id) != SH_OK) abort();
    size_t first = flags & SH_TOK_BOS ? 1 : 0;
    if (n_id < first || n_id - first > n + prefix + 2) abort();
    char *got = malloc(n + 16);
    if (!got) abort();
    for (size_t i = first; i < n_id; i++) {
        if (id[i] >= (uint32_t)sh_tokenizer_n_vocab(t)) abort();
        const char *p = sh_tokenizer_piece(t, id[i], &n_piece);
        if (n_piece == 0) { /* a control token, by name */
            p = sh_tokenizer_spelling(t, id[i]);
            n_piece = strlen(p);
        }
        if (n_piece == 0 || n_got + n_piece > n + 16) abort();
        memcpy(got + n_got, p, n_piece);
        n_got += n_piece;
    }
    size_t strip = prefix && n > 0;
    if (strip && got[0] != ' ') abort();
    check(got + strip, n_got - strip, text, n);
    free(got);
    free(id);
    return 0;
}
