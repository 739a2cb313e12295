/* A vocabulary that is being made, and the file it becomes: kind gpt2, spelled in the alphabet of
 * bytes (tokenizer/byte_chars.h), without tensors. */
#ifndef SH_TOKENIZER_NEW_VOCAB_H
#define SH_TOKENIZER_NEW_VOCAB_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "formats/formats.h"
#include "tokenizer/bpe_train.h"

typedef struct sh_new_token {
    size_t at;      /* its bytes in sh_new_vocab.bytes */
    uint32_t n;     /* of them */
    uint32_t left;  /* the tokens that a merge makes it from; */
    uint32_t right; /* of one byte: both SH_NO_TOKEN */
} sh_new_token;

#define SH_NO_TOKEN UINT32_MAX

typedef struct sh_new_vocab {
    sh_new_token *token; /* (n): the id is the place in the list */
    size_t n, cap;
    char *bytes;
    size_t n_bytes, cap_bytes;
    uint32_t *merge; /* (n_merge): the tokens that merges make, in the order of the merges */
    size_t n_merge, cap_merge;
} sh_new_vocab;

/** The 256 bytes, then what the merges make. */
sh_err sh_new_vocab_bpe(sh_new_vocab *v, const sh_bpe_merge *merge, size_t n_merge);

/* The characters that a text has. */
typedef struct sh_char_set {
    uint64_t code[0x110000 / 64]; /* one bit each */
    uint64_t byte[256 / 64];      /* those that are part of no character */
} sh_char_set;

void sh_char_set_add(sh_char_set *set, const char *text, size_t n);

/** The characters in ascending order, each a token, as nanoGPT has them. Behind them stands what
 * those of several bytes are made from, as there are no other merges: bytes, and the fronts of
 *  characters. */
sh_err sh_new_vocab_chars(sh_new_vocab *v, const sh_char_set *set);

/** Writes it. The control token with the name `end`, if that is not NULL, comes last.
 *  SH_ESYS: nothing is left of the file. */
sh_err sh_new_vocab_write(const sh_new_vocab *v, const char *end, const char *path);
/** Accepts a zeroed and a closed one. */
void sh_new_vocab_close(sh_new_vocab *v);

#endif
