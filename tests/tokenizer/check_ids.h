/* Opening and encoding in a cmocka test, which fails with what was found. Included after cmocka.h.
 */
#ifndef SH_TEST_CHECK_IDS_H
#define SH_TEST_CHECK_IDS_H

#include "small_vocab.h"

static inline sh_tokenizer *open_small(const small_vocab *v)
{
    sh_tokenizer *t;
    if (small_open(&t, v) != SH_OK) fail_msg("%s", sh_err_message());
    return t;
}

enum { END = -1 };

/* The ids of a text are the numbers up to END. */
static inline void check_ids(const sh_tokenizer *t, const char *text, size_t n, int flags,
                             const int *want)
{
    uint32_t *id;
    size_t n_id, i = 0;
    assert_int_equal(sh_tokenizer_encode(t, text, n, flags, &id, &n_id), SH_OK);
    assert_non_null(id);
    for (; i < n_id && want[i] != END; i++)
        if (id[i] != (uint32_t)want[i])
            fail_msg("'%s': token %zu is %u, not %d", text, i, id[i], want[i]);
    if (i < n_id || want[i] != END) fail_msg("'%s': %zu tokens are too few or many", text, n_id);
    free(id);
}
#define IDS(t, text, flags, ...) check_ids(t, text, strlen(text), flags, (const int[]){__VA_ARGS__})

static inline void small_words(small_vocab *v)
{
    small_init(v, true);
    small_add_text(v, "\xe2\x96\x81", -10); /* 259 */
    small_add_text(v, "a", -11);            /* 260 */
    small_add_text(v, "b", -12);            /* 261 */
    small_add_text(v, "▁a", -1);            /* 262 */
    small_add_text(v, "ab", -2);            /* 263 */
    small_add_text(v, "▁ab", -3);           /* 264 */
    small_add(v, "<x>", 3, 0, CONTROL);     /* 265 */
    small_add(v, "<x>b", 4, 0, CONTROL);    /* 266 */
    small_add(v, "a<x", 3, 0, CONTROL);     /* 267 */
    small_add(v, "[u]", 3, 0, USER);        /* 268 */
}

#endif
