/* Learning the merges of byte-level BPE from the words of a text. */
#ifndef SH_TOKENIZER_BPE_TRAIN_H
#define SH_TOKENIZER_BPE_TRAIN_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "tokenizer/pretoken.h"
#include "tokenizer/words.h"

enum { SH_BPE_MAX_TOKEN = 64 }; /* bytes of a learned token at most */

/* Token 256 + i is the bytes of two tokens before it, put together by merge i; 0 to 255 are bytes.
 */
typedef struct sh_bpe_merge {
    uint32_t left, right;
} sh_bpe_merge;

/** Adds to each word's value how often n bytes of text have it, cut by the pattern. */
sh_err sh_bpe_count(sh_words *words, const sh_pretoken *pretoken, const char *text, size_t n);

/** Learns at most n_merge merges, *n_learned of them: each joins the two neighbours that stand side
 * by side most often in all words, their values being their counts; of several pairs the one with
 * the lower left id, then the lower right id. A pair that stands there once is not learned, nor a
 *  token of more than SH_BPE_MAX_TOKEN bytes. The order of the words changes nothing.
 *  Source: Sennrich, Haddow & Birch 2016, arXiv:1508.07909, section 3.2.
 *  SH_ENOMEM: the words take more memory than there is; the sentence says how much. */
sh_err sh_bpe_learn(sh_bpe_merge *merge, size_t n_merge, size_t *n_learned, const sh_words *words);

#endif
