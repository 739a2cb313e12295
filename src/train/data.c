#include "train/data.h"

#include <assert.h>

#include "base/rng.h"

static uint32_t id_at(const sh_data *d, size_t i)
{
    const uint8_t *p = d->file.data + i * (size_t)d->id_bytes;
    uint32_t lo = (uint32_t)p[0] | (uint32_t)p[1] << 8;
    return d->id_bytes == 2 ? lo : lo | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* First whether all is well, which is fast; then where it is not. */
static sh_err check_ids(const sh_data *d, int n_vocab)
{
    uint32_t most = 0;
    for (size_t i = 0; i < d->n_tok; i++) most = id_at(d, i) > most ? id_at(d, i) : most;
    if (most < (uint32_t)n_vocab) return SH_OK;
    size_t i = 0;
    while (id_at(d, i) < (uint32_t)n_vocab) i++;
    return sh_fail(SH_EFILE,
                   "%s: token %zu has the id %u, but the vocabulary has %d tokens; the file was "
                   "prepared with another tokenizer",
                   d->file.path, i, id_at(d, i), n_vocab);
}

sh_err sh_data_open(sh_data *d, const char *path, int n_vocab)
{
    sh_err err;
    *d = (sh_data){.id_bytes = sh_data_id_bytes(n_vocab)};
    SH_TRY(sh_file_open(&d->file, path));
    d->n_tok = d->file.n_bytes / (size_t)d->id_bytes;
    if (d->file.n_bytes == 0) {
        err = sh_fail(SH_EFILE, "%s: the file is empty", path);
    } else if (d->file.n_bytes % (size_t)d->id_bytes) {
        err = sh_fail(SH_EFILE, "%s: %zu bytes are no whole number of ids of %d bytes", path,
                      d->file.n_bytes, d->id_bytes);
    } else {
        err = check_ids(d, n_vocab);
    }
    if (err != SH_OK) sh_data_close(d);
    return err;
}

void sh_data_close(sh_data *d)
{
    sh_file_close(&d->file);
    *d = (sh_data){0};
}

sh_err sh_data_check(const sh_data *d, int n_ctx)
{
    if (d->n_tok > (size_t)n_ctx) return SH_OK;
    return sh_fail(SH_EFILE,
                   "%s: the text has %zu tokens, but a context of %d needs at least %d; give more "
                   "text or a shorter context",
                   d->file.path, d->n_tok, n_ctx, n_ctx + 1);
}

void sh_data_window(const sh_data *d, size_t at, int n, int32_t *ids)
{
    assert(n >= 0 && at <= d->n_tok && (size_t)n <= d->n_tok - at);
    for (int i = 0; i < n; i++) ids[i] = (int32_t)id_at(d, at + (size_t)i);
}

size_t sh_data_draw(const sh_data *d, uint64_t seed, uint64_t counter, int n_ctx)
{
    enum { STREAM = 0x77696e64 }; /* "wind": other draws of the same seed have other streams */
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    const uint32_t count[4] = {(uint32_t)counter, (uint32_t)(counter >> 32), STREAM, 0};
    uint32_t r[4];
    assert(d->n_tok > (size_t)n_ctx);
    sh_philox(r, count, key);
    uint64_t u = (uint64_t)r[1] << 32 | r[0];
    return (size_t)(u % (d->n_tok - (size_t)n_ctx)); /* uneven by less than n_tok / 2^64 */
}
