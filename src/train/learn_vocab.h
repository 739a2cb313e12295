/* A vocabulary learned from documents. */
#ifndef SH_TRAIN_LEARN_VOCAB_H
#define SH_TRAIN_LEARN_VOCAB_H

#include "base/threads.h"
#include "tokenizer/new_vocab.h"
#include "train/corpus.h"

/** A character table of all documents. */
sh_err sh_learn_chars(sh_new_vocab *v, const sh_docs *docs);

/** Byte-level BPE with n_vocab tokens, of which the last is left for the end of a text: 257 or
 * more. The number of threads changes nothing. SH_EARG: the text has too few pairs for it; the
 * sentence says how large it can be. */
sh_err sh_learn_bpe(sh_new_vocab *v, const sh_docs *docs, int n_vocab, sh_pool *pool);

#endif
