/* The text to learn from: files, and the documents in them. */
#ifndef SH_TRAIN_CORPUS_H
#define SH_TRAIN_CORPUS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "base/file.h"

/* A piece of the text; no token goes across its ends. */
typedef struct sh_doc {
    const char *p;
    size_t n;
    bool first; /* a document begins here */
    bool ends;  /* it ends here, with the end-of-text token if there is one */
} sh_doc;

typedef struct sh_docs {
    sh_doc *v;
    size_t n, cap;
} sh_docs;

typedef struct sh_corpus {
    sh_file *file; /* (n_file) */
    int n_file;
    char *from_stdin;
    size_t n_bytes; /* of all texts, separators included */
    size_t n_doc;
    sh_docs docs;
} sh_corpus;

/** Opens the texts ("-": stdin) and finds their documents: a text ends one, and so does `separator`
 *  where it stands in a text; it is no part of them. NULL: texts alone do.
 *  SH_EFILE: a text is missing, or a folder, or there is nothing in any of them.
 *  Close with sh_corpus_close, which accepts a zeroed, a half-open and a closed one. */
sh_err sh_corpus_open(sh_corpus *c, const char *const *path, int n_path, const char *separator);
void sh_corpus_close(sh_corpus *c);

/** train = the front of the text, val = the last `share` of it, in [0, 1): cut between documents
 * where that gives val at least half of its share and at most one and a half; else between two
 *  characters, as nanoGPT does: train has the first floor((1 - share) n) of n. Free with
 *  sh_docs_close. SH_EFILE: nothing would be left for one of them. */
sh_err sh_corpus_split(const sh_corpus *c, double share, sh_docs *train, sh_docs *val);

/** Adds to *out the pieces of a document of at most about max_bytes, cut between a letter (a to z)
 * and a space, where every pre-tokenizer cuts. */
sh_err sh_docs_add_cut(sh_docs *out, sh_doc doc, size_t max_bytes);
sh_err sh_docs_add(sh_docs *d, sh_doc doc);
void sh_docs_close(sh_docs *d);

#endif
