/* Distinct words, with a number for each: what a text is made of, counted, or what was found out
 * about a word before. */
#ifndef SH_TOKENIZER_WORDS_H
#define SH_TOKENIZER_WORDS_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

typedef struct sh_word {
    uint64_t value;  /* the user's; 0 in a new word */
    size_t at, n;    /* its bytes in sh_words.bytes */
    uint64_t key[2]; /* the same bytes, where they are at most 16 */
} sh_word;

typedef struct sh_word_text {
    const char *p;
    size_t n;
} sh_word_text;

enum { SH_WORDS_BATCH = 32 };

typedef struct sh_word_slot {
    uint32_t hash, word; /* word + 1; 0 is free */
} sh_word_slot;

typedef struct sh_words {
    sh_word *v; /* (n), in the order in which they came */
    size_t n, cap;
    char *bytes;
    size_t n_bytes, cap_bytes;
    sh_word_slot *slot; /* (n_slot, a power of two) */
    size_t n_slot;
} sh_words;

/** The word of n bytes, added if it is new; *out is valid until the next call.
 *  SH_ENOMEM: also where there are more than 2^31 distinct words. */
sh_err sh_words_put(sh_words *w, const char *p, size_t n, sh_word **out);
/** Adds 1 to the value of each of n <= SH_WORDS_BATCH words, adding the new ones. Faster than one
 * by one, where the table is larger than the caches. */
sh_err sh_words_count(sh_words *w, const sh_word_text *text, int n);
/** Forgets all words and keeps the memory. */
void sh_words_clear(sh_words *w);
/** Accepts a zeroed and a closed one. */
void sh_words_close(sh_words *w);

#endif
