#include "tokenizer/words.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

static const uint64_t factor = 0x9e3779b97f4a7c15u;

static uint64_t load(const char *p, size_t n)
{
    uint64_t v = 0;
    memcpy(&v, p, n);
    return v;
}

/* Words of one length have different keys: of at most 16 bytes, which may overlap, all of them. */
static void make_key(uint64_t key[2], const char *p, size_t n)
{
    key[0] = key[1] = 0;
    if (n > 16) {
        uint64_t h = n;
        for (size_t i = 0; i + 8 <= n; i += 8) h = (h ^ load(p + i, 8)) * factor, h ^= h >> 32;
        key[0] = h;
        key[1] = load(p + n - 8, 8);
    } else if (n >= 8) {
        key[0] = load(p, 8);
        key[1] = load(p + n - 8, 8);
    } else if (n >= 4) {
        key[0] = load(p, 4);
        key[1] = load(p + n - 4, 4);
    } else if (n > 0) {
        key[0] = load(p, 1) | load(p + n / 2, 1) << 8 | load(p + n - 1, 1) << 16;
    }
}

static uint32_t hash(const uint64_t key[2], size_t n)
{
    uint64_t h = (key[0] ^ n << 56) * factor;
    h = (h ^ h >> 32 ^ key[1]) * factor;
    return (uint32_t)((h ^ h >> 29) * factor >> 32);
}

static bool is_word(const sh_words *w, const sh_word *word, const uint64_t key[2], const char *p,
                    size_t n)
{
    if (word->key[0] != key[0] || word->key[1] != key[1] || word->n != n) return false;
    return n <= 16 || memcmp(w->bytes + word->at, p, n) == 0;
}

static sh_err grow_slots(sh_words *w)
{
    size_t n_slot = w->n_slot ? 2 * w->n_slot : 1024;
    sh_word_slot *slot;
    SH_TRY(sh_alloc(&slot, n_slot, sizeof *slot, "the table of words"));
    for (size_t i = 0; i < w->n_slot; i++) {
        if (!w->slot[i].word) continue;
        size_t k = w->slot[i].hash & (n_slot - 1);
        while (slot[k].word) k = (k + 1) & (n_slot - 1);
        slot[k] = w->slot[i];
    }
    free(w->slot);
    w->slot = slot;
    w->n_slot = n_slot;
    return SH_OK;
}

static sh_err add(sh_words *w, const uint64_t key[2], const char *p, size_t n)
{
    if (w->n >= (size_t)1 << 31) return sh_fail(SH_ENOMEM, "more than 2^31 distinct words");
    SH_TRY(sh_grow(&w->v, &w->cap, w->n + 1, sizeof *w->v, "the table of words"));
    SH_TRY(sh_grow(&w->bytes, &w->cap_bytes, w->n_bytes + n, 1, "the table of words"));
    if (n) memcpy(w->bytes + w->n_bytes, p, n);
    w->v[w->n++] = (sh_word){.at = w->n_bytes, .n = n, .key = {key[0], key[1]}};
    w->n_bytes += n;
    return SH_OK;
}

static sh_err put(sh_words *w, const uint64_t key[2], uint32_t h, const char *p, size_t n,
                  sh_word **out)
{
    if (2 * w->n >= w->n_slot) SH_TRY(grow_slots(w));
    size_t i = h & (w->n_slot - 1);
    for (; w->slot[i].word; i = (i + 1) & (w->n_slot - 1)) {
        sh_word *word = &w->v[w->slot[i].word - 1];
        if (w->slot[i].hash != h || !is_word(w, word, key, p, n)) continue;
        *out = word;
        return SH_OK;
    }
    SH_TRY(add(w, key, p, n));
    w->slot[i] = (sh_word_slot){h, (uint32_t)w->n};
    *out = &w->v[w->n - 1];
    return SH_OK;
}

sh_err sh_words_put(sh_words *w, const char *p, size_t n, sh_word **out)
{
    uint64_t key[2];
    make_key(key, p, n);
    return put(w, key, hash(key, n), p, n, out);
}

sh_err sh_words_count(sh_words *w, const sh_word_text *text, int n)
{
    uint64_t key[SH_WORDS_BATCH][2];
    uint32_t h[SH_WORDS_BATCH];
    sh_word *word;
    for (int i = 0; i < n; i++) {
        make_key(key[i], text[i].p, text[i].n);
        h[i] = hash(key[i], text[i].n);
        if (w->slot) __builtin_prefetch(&w->slot[h[i] & (w->n_slot - 1)]);
    }
    for (int i = 0; i < n && w->slot; i++) {
        uint32_t at = w->slot[h[i] & (w->n_slot - 1)].word;
        if (at) __builtin_prefetch(&w->v[at - 1], 1);
    }
    for (int i = 0; i < n; i++) {
        SH_TRY(put(w, key[i], h[i], text[i].p, text[i].n, &word));
        word->value++;
    }
    return SH_OK;
}

void sh_words_clear(sh_words *w)
{
    if (w->slot) memset(w->slot, 0, w->n_slot * sizeof *w->slot);
    w->n = w->n_bytes = 0;
}

void sh_words_close(sh_words *w)
{
    free(w->v);
    free(w->bytes);
    free(w->slot);
    *w = (sh_words){0};
}
