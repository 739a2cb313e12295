/* Tokenizers: text to token ids and back. A kind is one const struct in one file and one row in
 * sh_tokenizer_kinds. */
#ifndef SH_TOKENIZER_TOKENIZER_H
#define SH_TOKENIZER_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "formats/formats.h"

typedef struct sh_tokenizer sh_tokenizer;

enum {
    SH_TOK_BOS = 1,     /* put BOS before the text if the model wants one */
    SH_TOK_SPECIAL = 2, /* text that spells a control token becomes that token */
};

/** Builds the tokenizer that the model file describes. Borrows nothing after it returns.
 *  SH_EFILE: no tokenizer in the file, an unknown kind (the sentence lists the known ones), or bad
 *  tables. Close with sh_tokenizer_close, which accepts NULL. */
sh_err sh_tokenizer_open(sh_tokenizer **out, const sh_model_file *m);
void sh_tokenizer_close(sh_tokenizer *t);

int sh_tokenizer_n_vocab(const sh_tokenizer *t);
/** -1 if the model has none. */
int sh_tokenizer_bos(const sh_tokenizer *t);
/** Whether this id ends a text (EOS, EOT). */
bool sh_tokenizer_is_end(const sh_tokenizer *t, uint32_t id);

/** Tokens of n bytes of text (any bytes; invalid UTF-8 goes through byte fallback), with flags of
 *  SH_TOK_. *ids is malloc'ed, *n_ids of them; free(*ids). n log n in the text.
 *  SH_EARG: the text has more than 512 MiB, or a character in no token while there is no unknown
 *  token. */
sh_err sh_tokenizer_encode(const sh_tokenizer *t, const char *text, size_t n, int flags,
                           uint32_t **ids, size_t *n_ids);

/** The bytes of one token, in place and valid while t is open; control tokens are empty.
 *  SPM's meta symbol is already a space. *n is 0 for an id out of range. */
const char *sh_tokenizer_piece(const sh_tokenizer *t, uint32_t id, size_t *n);

/** The token as the file spells it, for lists ("<s>", "▁the"); "" for an id out of range. */
const char *sh_tokenizer_spelling(const sh_tokenizer *t, uint32_t id);

/** Whether the first token of a decoded text loses one leading space (space prefix). */
bool sh_tokenizer_strips_first_space(const sh_tokenizer *t);

#endif
