/* Fuzz target: any bytes as a GGUF file. Accepted ones are walked through as their users do, and
 * their tokenizer, if they have a good one, reads a text. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "formats/formats.h"
#include "tokenizer/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static volatile uint8_t sink;

static void walk(const sh_model_file *m)
{
    uint8_t hash[16];
    uint32_t u;
    float f;
    bool b;
    sh_str s;
    const sh_meta *a;
    for (size_t i = 0; i < m->n_tensor; i++) {
        const sh_tensor *t = &m->tensor[i];
        if (sh_model_file_tensor(m, t->name) != t) abort();
        if (t->data < m->file.data || t->n_bytes == 0) abort();
        for (size_t j = 0; j < t->n_bytes; j++) sink = t->data[j];
    }
    for (size_t i = 0; i < m->n_meta; i++) {
        const char *key = m->meta[i].key;
        if (sh_model_file_meta(m, key) != &m->meta[i]) abort();
        (void)sh_meta_u32(m, key, &u);
        (void)sh_meta_f32(m, key, &f);
        (void)sh_meta_bool(m, key, &b);
        (void)sh_meta_str(m, key, &s);
        if (sh_meta_array(m, key, SH_META_STR, &a) == SH_OK && a) {
            sh_cursor c = sh_meta_cursor(a);
            for (uint64_t k = 0; k < a->n; k++) {
                s = sh_get_str(&c);
                for (size_t j = 0; j < s.n; j++) sink = (uint8_t)s.p[j];
            }
            if (c.bad || c.p != c.end) abort();
        }
    }
    sh_model_file_hash(m, hash);
}

static void tokenize(const sh_model_file *m)
{
    static const char text[] = "ab <s>\xc3\xa4 aab\n\xff b";
    sh_tokenizer *t;
    uint32_t *id;
    size_t n;
    sh_err err = sh_tokenizer_open(&t, m);
    if (err != SH_OK && err != SH_EFILE) abort();
    if (err == SH_EFILE) return;
    err = sh_tokenizer_encode(t, text, sizeof text - 1, SH_TOK_BOS | SH_TOK_SPECIAL, &id, &n);
    if (err != SH_OK && err != SH_EARG) abort();
    for (size_t i = 0; i < n; i++)
        if (id[i] >= (uint32_t)sh_tokenizer_n_vocab(t)) abort();
    free(id);
    sh_tokenizer_close(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    sh_model_file *m = calloc(1, sizeof *m);
    char *path = strdup("fuzz.gguf");
    if (!m || !path) abort();
    m->file = (sh_file){.path = path, .data = data, .n_bytes = n};
    sh_err err = sh_model_file_parse(m);
    if (err == SH_OK) {
        walk(m);
        tokenize(m);
    } else if (err != SH_EFILE || strncmp(sh_err_message(), "fuzz.gguf: ", 11) != 0) {
        abort();
    }
    m->file.data = NULL; /* not a map */
    sh_model_file_close(m);
    return 0;
}
