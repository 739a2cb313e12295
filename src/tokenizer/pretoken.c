/* Pre-tokenizers: patterns for PCRE2, compiled to machine code where the system lets it. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "tokenizer/pretoken.h"

#include <assert.h>
#include <pcre2.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "tokenizer/utf8.h"

/* Sources: Radford et al. 2019, the code published with GPT-2; the tokenizer published with
 * Llama 3. PCRE2's \s is Unicode's White_Space and U+180E, which was part of it once. */
const sh_pretoken_row sh_pretoken_rows[] = {
    {.name = "gpt-2",
     .pattern =
         "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"},
    {.name = "llama-bpe",
     .pattern = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
                " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
     .whole = true,
     .add_bos = true},
    {.name = NULL},
};

struct sh_pretoken {
    const sh_pretoken_row *row;
    pcre2_code *code;
    pcre2_match_context *context;
};

static sh_err find_row(const sh_pretoken_row **out, const char *name)
{
    char known[256] = "";
    size_t at = 0;
    for (const sh_pretoken_row *r = sh_pretoken_rows; r->name; r++) {
        if (!name || strcmp(name, "default") == 0 || strcmp(name, r->name) == 0) {
            *out = r;
            return SH_OK;
        }
        if (at < sizeof known)
            at += (size_t)snprintf(known + at, sizeof known - at, "%s%s", at ? ", " : "", r->name);
    }
    return sh_fail(SH_EARG,
                   "'%s' is a pre-tokenizer that this program does not have; it has: default, %s",
                   name, known);
}

sh_err sh_pretoken_open(sh_pretoken **out, const char *name)
{
    const sh_pretoken_row *row = NULL;
    sh_pretoken *p = NULL;
    size_t where;
    int code;
    sh_err err;
    *out = NULL;
    SH_GOTO(find_row(&row, name));
    SH_GOTO(sh_alloc(&p, 1, sizeof *p, "the pre-tokenizer"));
    p->row = row;
    p->code = pcre2_compile((PCRE2_SPTR)row->pattern, PCRE2_ZERO_TERMINATED,
                            PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &code, &where, NULL);
    p->context = pcre2_match_context_create(NULL);
    if (!p->code || !p->context)
        SH_GOTO(sh_fail(SH_ENOMEM, "not enough memory for the pattern of '%s'", row->name));
    /* The patterns go back over a run of spaces at most once, so a long text is no attack. */
    pcre2_set_match_limit(p->context, UINT32_MAX);
    pcre2_set_heap_limit(p->context, UINT32_MAX);
    pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE); /* where it may not, matching is interpreted */
    *out = p;
    p = NULL;
out:
    sh_pretoken_close(p);
    return err;
}

void sh_pretoken_close(sh_pretoken *p)
{
    if (!p) return;
    pcre2_match_context_free(p->context);
    pcre2_code_free(p->code);
    free(p);
}

const sh_pretoken_row *sh_pretoken_row_of(const sh_pretoken *p)
{
    return p->row;
}

sh_err sh_pretoken_begin(sh_pretoken_walk *w, const sh_pretoken *p, const char *text, size_t n)
{
    if (!w->match && !(w->match = pcre2_match_data_create(1, NULL)))
        return sh_fail(SH_ENOMEM, "not enough memory to cut the text into pieces");
    *w = (sh_pretoken_walk){.pretoken = p, .match = w->match, .text = text, .n = n};
    return SH_OK;
}

/* The bytes from `at` on that are no part of a character; then w->valid is the end of the
 * characters behind them. */
static size_t scan(sh_pretoken_walk *w)
{
    size_t at = w->at;
    int len;
    while (at < w->n && sh_utf8_char(w->text + at, w->n - at) < 1) at++;
    w->valid = at;
    while (w->valid < w->n && (len = sh_utf8_char(w->text + w->valid, w->n - w->valid)) > 0)
        w->valid += (size_t)len;
    return at - w->at;
}

sh_err sh_pretoken_next(sh_pretoken_walk *w, const char **piece, size_t *n)
{
    const sh_pretoken *p = w->pretoken;
    *piece = w->text + w->at;
    *n = w->at == w->valid && w->at < w->n ? scan(w) : 0;
    if (*n == 0 && w->at < w->n) {
        int found = pcre2_match(p->code, (PCRE2_SPTR)*piece, w->valid - w->at, 0,
                                PCRE2_NO_UTF_CHECK, w->match, p->context);
        if (found < 0)
            return sh_fail(SH_ENOMEM, "the pattern of '%s' does not get through the text: error %d",
                           p->row->name, found);
        *n = pcre2_get_ovector_pointer(w->match)[1];
        assert(*n > 0);
    }
    w->at += *n;
    return SH_OK;
}

void sh_pretoken_end(sh_pretoken_walk *w)
{
    pcre2_match_data_free(w->match);
    *w = (sh_pretoken_walk){0};
}
