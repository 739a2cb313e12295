#define _GNU_SOURCE
#include "train/corpus.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"

sh_err sh_docs_add(sh_docs *d, sh_doc doc)
{
    SH_TRY(sh_grow(&d->v, &d->cap, d->n + 1, sizeof doc, "the documents"));
    d->v[d->n++] = doc;
    return SH_OK;
}

void sh_docs_close(sh_docs *d)
{
    free(d->v);
    *d = (sh_docs){0};
}

/* What stands between separators; nothing is no document. */
static sh_err add_documents(sh_corpus *c, const char *p, size_t n, const char *separator)
{
    size_t n_separator = separator ? strlen(separator) : 0;
    while (n > 0) {
        const char *end = n_separator ? memmem(p, n, separator, n_separator) : NULL;
        size_t len = end ? (size_t)(end - p) : n;
        sh_doc doc = {p, len, .first = true, .ends = end != NULL};
        if (len) SH_TRY(sh_docs_add(&c->docs, doc));
        p += len + (end ? n_separator : 0);
        n -= len + (end ? n_separator : 0);
    }
    return SH_OK;
}

static sh_err add_text(sh_corpus *c, const char *path, const char *separator)
{
    const char *p;
    size_t n;
    struct stat st;
    if (strcmp(path, "-") == 0) {
        if (c->from_stdin) return sh_fail(SH_EARG, "stdin (-) can be read once only");
        SH_TRY(sh_file_read_text(&c->from_stdin, &n, path, SIZE_MAX / 2));
        p = c->from_stdin;
    } else {
        if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
            return sh_fail(SH_EFILE, "%s is a folder; name the text files in it", path);
        sh_file *f = &c->file[c->n_file];
        SH_TRY(sh_file_open(f, path));
        c->n_file++;
        p = (const char *)f->data;
        n = f->n_bytes;
    }
    c->n_bytes += n;
    size_t before = c->docs.n;
    SH_TRY(add_documents(c, p, n, separator));
    if (before > 0 && c->docs.n > before) c->docs.v[before - 1].ends = true;
    return SH_OK;
}

sh_err sh_corpus_open(sh_corpus *c, const char *const *path, int n_path, const char *separator)
{
    sh_err err;
    *c = (sh_corpus){0};
    SH_GOTO(sh_alloc(&c->file, (size_t)n_path, sizeof *c->file, "the texts"));
    for (int i = 0; i < n_path; i++) SH_GOTO(add_text(c, path[i], separator));
    if (c->docs.n == 0)
        err = sh_fail(SH_EFILE, "%s: there is no text in %s", path[0], n_path > 1 ? "them" : "it");
    c->n_doc = c->docs.n;
out:
    if (err != SH_OK) sh_corpus_close(c);
    return err;
}

void sh_corpus_close(sh_corpus *c)
{
    for (int i = 0; i < c->n_file; i++) sh_file_close(&c->file[i]);
    free(c->file);
    free(c->from_stdin);
    sh_docs_close(&c->docs);
    *c = (sh_corpus){0};
}

/* --- train and val --- */

static bool starts_character(char c)
{
    return ((unsigned char)c & 0xc0) != 0x80;
}

static size_t count_characters(const sh_doc *d)
{
    size_t n = 0;
    for (size_t i = 0; i < d->n; i++) n += starts_character(d->p[i]);
    return n;
}

/* The bytes of the first n_char characters. */
static size_t bytes_of(const sh_doc *d, size_t n_char)
{
    size_t i = 0;
    for (; i < d->n; i++)
        if (starts_character(d->p[i]) && n_char-- == 0) break;
    return i;
}

/* Where `n_train` of the text's n characters end: in document *doc, *at bytes from its front. */
static void find_cut(const sh_corpus *c, const size_t *n_char, size_t n_train, size_t n_val,
                     size_t *doc, size_t *at)
{
    size_t i = 0, n = 0;
    while (n + n_char[i] <= n_train && i + 1 < c->docs.n) n += n_char[i++];
    size_t over = n_train - n, under = n_char[i] > over ? n_char[i] - over : 0;
    *doc = i;
    *at = 0;
    if (i > 0 && over <= n_val / 2 && (over <= under || under > n_val / 2)) return;
    if (i + 1 < c->docs.n && under <= n_val / 2) {
        *doc = i + 1;
        return;
    }
    *at = bytes_of(&c->docs.v[i], over);
}

sh_err sh_corpus_split(const sh_corpus *c, double share, sh_docs *train, sh_docs *val)
{
    const size_t million = 1000000, n_doc = c->docs.n;
    size_t *n_char = NULL, n = 0, doc = n_doc, at = 0;
    size_t part = million - (size_t)lround(share * (double)million);
    sh_err err;
    SH_GOTO(sh_alloc(&n_char, n_doc, sizeof *n_char, "the documents"));
    for (size_t i = 0; i < n_doc; i++) n += n_char[i] = count_characters(&c->docs.v[i]);
    size_t n_train = n / million * part + n % million * part / million;
    if (part < million) find_cut(c, n_char, n_train, n - n_train, &doc, &at);
    for (size_t i = 0; i < n_doc; i++) {
        sh_doc d = c->docs.v[i], front = d;
        if (i == doc && at > 0) {
            front.n = at;
            front.ends = false;
            d.p += at;
            d.n -= at;
            d.first = false;
            SH_GOTO(sh_docs_add(train, front));
        }
        if (d.n) SH_GOTO(sh_docs_add(i < doc ? train : val, d));
    }
    if (part < million && (train->n == 0 || val->n == 0))
        err = sh_fail(SH_EFILE,
                      "the text has %zu characters, too few for both training and validation; give "
                      "more text, or another --val",
                      n);
out:
    free(n_char);
    return err;
}

/* --- pieces --- */

static bool is_cut(const char *p)
{
    return p[0] == ' ' && p[-1] >= 'a' && p[-1] <= 'z';
}

sh_err sh_docs_add_cut(sh_docs *out, sh_doc doc, size_t max_bytes)
{
    while (doc.n > max_bytes) {
        sh_doc front = doc;
        size_t at = max_bytes;
        while (at < doc.n && !is_cut(doc.p + at)) at++;
        if (at == doc.n) break;
        front.n = at;
        front.ends = false;
        SH_TRY(sh_docs_add(out, front));
        doc.p += at;
        doc.n -= at;
        doc.first = false;
    }
    return sh_docs_add(out, doc);
}
