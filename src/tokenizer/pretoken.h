/* Cuts a text into the pieces that byte-level BPE works in: no token goes across a cut. */
#ifndef SH_TOKENIZER_PRETOKEN_H
#define SH_TOKENIZER_PRETOKEN_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

typedef struct sh_pretoken_row {
    const char *name;    /* tokenizer.ggml.pre */
    const char *pattern; /* PCRE2: matches at least one character at every position of any text */
    bool whole;          /* a piece that is a token as a whole is not built from merges */
    bool add_bos;        /* where the file does not say */
} sh_pretoken_row;

extern const sh_pretoken_row sh_pretoken_rows[]; /* ends with a name of NULL; [0] is the default */

/* A compiled pattern. Threads may share it; each walk belongs to one thread. */
typedef struct sh_pretoken sh_pretoken;

/** The pattern of that name; NULL or "default" is the first row. Free with sh_pretoken_close, which
 *  accepts NULL.
 *  SH_EARG: there is no such pattern; the sentence lists the known ones. */
sh_err sh_pretoken_open(sh_pretoken **out, const char *name);
void sh_pretoken_close(sh_pretoken *p);
const sh_pretoken_row *sh_pretoken_row_of(const sh_pretoken *p);

/* One text on its way through. Zeroed before begin. */
typedef struct sh_pretoken_walk {
    const sh_pretoken *pretoken;
    void *match;
    const char *text;
    size_t n, at, valid; /* bytes; text[at, valid) is whole UTF-8 characters */
} sh_pretoken_walk;

/** Starts at the front of n bytes, any bytes, borrowed until the end of the walk. A walk may begin
 *  again with another text. */
sh_err sh_pretoken_begin(sh_pretoken_walk *w, const sh_pretoken *p, const char *text, size_t n);
/** The next piece, in place; *n is 0 after the last. All pieces together are the text. A run of
 * bytes that are not UTF-8 is a piece. Linear in the text for the walk as a whole. */
sh_err sh_pretoken_next(sh_pretoken_walk *w, const char **piece, size_t *n);
/** Frees what the walk holds; accepts a zeroed walk and one that has ended. */
void sh_pretoken_end(sh_pretoken_walk *w);

#endif
