#define _GNU_SOURCE
#include "engine/text.h"

#include <string.h>

#include "tokenizer/utf8.h"

/* Length of the longest end of p[0..n) that begins a stop text. */
static size_t stop_begun(const sh_text *t, const char *p, size_t n)
{
    size_t most = 0;
    for (int i = 0; i < t->n_stop; i++) {
        size_t len = strlen(t->stop[i]), k = len - 1 < n ? len - 1 : n;
        for (; k > most; k--)
            if (memcmp(p + n - k, t->stop[i], k) == 0) most = k;
    }
    return most;
}

/* Where the first stop text begins, or n. */
static size_t stop_at(const sh_text *t, const char *p, size_t n)
{
    size_t first = n;
    for (int i = 0; i < t->n_stop; i++) {
        const char *at = memmem(p, n, t->stop[i], strlen(t->stop[i]));
        if (at && (size_t)(at - p) < first) first = (size_t)(at - p);
    }
    return first;
}

/* Never NULL, with no bytes either: memmem and pointer arithmetic want one. */
static const char *held(const sh_text *t)
{
    return t->held.p ? (const char *)t->held.p : "";
}

bool sh_text_put(sh_text *t, const char *piece, size_t n, const char **out, size_t *n_out)
{
    if (t->n_shown) memmove(t->held.p, t->held.p + t->n_shown, t->held.n - t->n_shown);
    t->held.n -= t->n_shown;
    sh_put_bytes(&t->held, piece, n);
    const char *p = held(t);
    size_t end = stop_at(t, p, t->held.n);
    bool stopped = end < t->held.n;
    if (!stopped) {
        end -= stop_begun(t, p, end);
        end = sh_utf8_whole(p, end);
    }
    *out = p;
    *n_out = t->n_shown = end;
    return stopped;
}

void sh_text_end(sh_text *t, const char **out, size_t *n_out)
{
    *out = held(t) + t->n_shown;
    *n_out = t->held.n - t->n_shown;
    t->n_shown = t->held.n;
}

void sh_text_free(sh_text *t)
{
    sh_buf_free(&t->held);
}
