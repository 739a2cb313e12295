/* A sample's text as it comes: token by token into whole characters, cut off at a stop text. */
#ifndef SH_ENGINE_TEXT_H
#define SH_ENGINE_TEXT_H

#include <stdbool.h>

#include "base/cursor.h"

typedef struct sh_text {
    char *const *stop; /* n_stop of them, borrowed */
    int n_stop;
    sh_buf held; /* what may not be shown yet; from n_shown on */
    size_t n_shown;
} sh_text;

/** Takes a token's n bytes. *out, *n_out: what may be shown now, valid until the next call. True if
 * a stop text was met; then *out ends before it, and nothing may follow. */
bool sh_text_put(sh_text *t, const char *piece, size_t n, const char **out, size_t *n_out);

/** What is still held, at the end of a text that no stop text ended. */
void sh_text_end(sh_text *t, const char **out, size_t *n_out);
void sh_text_free(sh_text *t);

#endif
