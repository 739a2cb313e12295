/* The tokens of a text as `shoal prepare` writes them: train.bin and val.bin, raw little-endian
 * ids, two bytes each where the vocabulary has at most 65536 tokens (as nanoGPT's and MDI-LLM's),
 * else four. */
#ifndef SH_TRAIN_DATA_H
#define SH_TRAIN_DATA_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/file.h"

typedef struct sh_data {
    sh_file file;
    size_t n_tok;
    int id_bytes; /* 2 or 4 */
} sh_data;

/** Bytes of an id in a file of that vocabulary. */
static inline int sh_data_id_bytes(int n_vocab)
{
    return n_vocab <= 65536 ? 2 : 4;
}

/** Maps the file and looks at every id once.
 *  SH_EFILE: it is missing or empty, its size is no multiple of an id's, or an id is not below
 *  n_vocab; the sentence names the file. Close with sh_data_close, which accepts a zeroed, a closed
 *  and a half-open one. */
sh_err sh_data_open(sh_data *d, const char *path, int n_vocab);
void sh_data_close(sh_data *d);

/** SH_EFILE, with both numbers, if no window of n_ctx + 1 tokens fits into the text. */
sh_err sh_data_check(const sh_data *d, int n_ctx);

/** ids = the n tokens from position `at` on; at + n <= n_tok. */
void sh_data_window(const sh_data *d, size_t at, int n, int32_t *ids);

/** Where window number `counter` of n_ctx + 1 tokens begins: drawn uniformly from 0 to
 *  n_tok - n_ctx - 1, from seed and counter alone (base/rng.h). sh_data_check was passed. */
size_t sh_data_draw(const sh_data *d, uint64_t seed, uint64_t counter, int n_ctx);

#endif
