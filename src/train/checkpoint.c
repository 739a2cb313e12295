#define _GNU_SOURCE
#include "train/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"

enum { PATH = 4096, VERSION = 1, HASH = 16 };
static const char magic[8] = "SHOALOPT";

static void path_in(char out[PATH], const char *dir, const char *name)
{
    snprintf(out, PATH, "%s/%s", dir, name);
}

/* ---- the model ---- */

/* Keys of a family begin with its name. */
static void put_u32(sh_gguf_writer *w, const sh_arch *a, const char *key, int v)
{
    char name[96];
    snprintf(name, sizeof name, "%s.%s", a->family, key);
    sh_gguf_put_u32(w, name, (uint32_t)v);
}

static void put_f32(sh_gguf_writer *w, const sh_arch *a, const char *key, double v)
{
    char name[96];
    snprintf(name, sizeof name, "%s.%s", a->family, key);
    sh_gguf_put_f32(w, name, (float)v);
}

static void put_sizes(sh_gguf_writer *w, const sh_arch *a)
{
    put_u32(w, a, "context_length", a->n_ctx);
    put_u32(w, a, "embedding_length", a->n_embd);
    put_u32(w, a, "block_count", a->n_layer);
    put_u32(w, a, "feed_forward_length", a->n_ff);
    put_u32(w, a, "attention.head_count", a->n_head);
    put_f32(w, a,
            a->layer_norm ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon",
            (double)a->norm_eps);
    if (a->learned_pos) return;
    put_u32(w, a, "attention.head_count_kv", a->n_kv_head);
    put_u32(w, a, "vocab_size", a->n_vocab);
    put_u32(w, a, "rope.dimension_count", a->n_rot);
    put_f32(w, a, "rope.freq_base", a->rope_base);
    if (a->head_dim * a->n_head != a->n_embd) {
        put_u32(w, a, "attention.key_length", a->head_dim);
        put_u32(w, a, "attention.value_length", a->head_dim);
    }
    if (a->rope_linear != 1) { /* exactly: as it was read */
        char name[96];
        snprintf(name, sizeof name, "%s.rope.scaling.type", a->family);
        sh_gguf_put_str(w, name, "linear", 6);
        put_f32(w, a, "rope.scaling.factor", a->rope_linear);
    }
}

static void put_header(sh_gguf_writer *w, const sh_params *p, const sh_progress *at,
                       const sh_model_file *tokenizer)
{
    const sh_arch *a = &p->arch;
    static const char name[] = "trained by shoal";
    sh_gguf_put_str(w, "general.architecture", a->family, strlen(a->family));
    sh_gguf_put_str(w, "general.name", name, strlen(name));
    sh_gguf_put_u32(w, "general.file_type", 0); /* all f32 */
    put_sizes(w, a);
    sh_gguf_put_u32(w, "shoal.train.iterations", (uint32_t)at->iter);
    for (size_t i = 0; i < tokenizer->n_meta; i++)
        if (strncmp(tokenizer->meta[i].key, "tokenizer.", 10) == 0)
            sh_gguf_put_meta(w, &tokenizer->meta[i]);
    for (int i = 0; i < p->n; i++) {
        const sh_param *t = &p->list[i];
        int64_t vec[1] = {t->rows}, mat[2] = {t->cols, t->rows};
        sh_gguf_add_tensor(w, t->name, SH_F32, t->cols > 1 ? 2 : 1, t->cols > 1 ? mat : vec);
    }
    if (a->rope_freqs)
        sh_gguf_add_tensor(w, "rope_freqs.weight", SH_F32, 1, (int64_t[]){a->n_rot / 2});
}

static sh_err write_model(const char *path, const sh_params *p, const sh_progress *at,
                          const sh_model_file *tokenizer)
{
    sh_gguf_writer *w;
    sh_err err = SH_OK;
    SH_TRY(sh_gguf_create(&w, path));
    put_header(w, p, at, tokenizer);
    for (int i = 0; i < p->n && err == SH_OK; i++) {
        const sh_param *t = &p->list[i];
        err = sh_gguf_write(w, p->w + t->at, (size_t)t->rows * (size_t)t->cols * sizeof(float));
    }
    if (p->arch.rope_freqs && err == SH_OK)
        err = sh_gguf_write(w, p->arch.rope_freqs, (size_t)p->arch.n_rot / 2 * sizeof(float));
    sh_err closed = sh_gguf_close(w, err == SH_OK);
    return err == SH_OK ? closed : err;
}

static sh_err hash_model(uint8_t hash[HASH], const char *path)
{
    sh_model_file *m;
    SH_TRY(sh_model_file_open(&m, path));
    sh_model_file_hash(m, hash);
    sh_model_file_close(m);
    return SH_OK;
}

/* ---- the optimiser's state ---- */

static void put_progress(const sh_progress *at, sh_buf *b)
{
    sh_put_u64(b, (uint64_t)at->iter);
    sh_put_u64(b, at->n_tok);
    sh_put_u64(b, at->n_window);
    sh_put_f64(b, at->best_val);
    sh_put_u32(b, (uint32_t)at->n_worse);
    sh_put_f64(b, at->seconds);
}

static void get_progress(sh_progress *at, sh_cursor *c)
{
    at->iter = (int64_t)sh_get_u64(c);
    at->n_tok = sh_get_u64(c);
    at->n_window = sh_get_u64(c);
    at->best_val = sh_get_f64(c);
    at->n_worse = (int)sh_get_u32(c);
    at->seconds = sh_get_f64(c);
}

static sh_err write_all(int fd, const void *data, size_t n, const char *path)
{
    const char *p = data;
    while (n) {
        ssize_t m = write(fd, p, n < 1u << 30 ? n : 1u << 30);
        if (m < 0 && errno == EINTR) continue;
        if (m <= 0) return sh_fail(SH_ESYS, "%s: cannot write the file: %s", path, strerror(errno));
        p += m;
        n -= (size_t)m;
    }
    return SH_OK;
}

static sh_err write_opt(const char *path, const sh_params *p, const sh_settings *s,
                        const sh_progress *at, const uint8_t hash[HASH])
{
    sh_buf b = {0};
    sh_err err = SH_OK;
    sh_put_bytes(&b, magic, sizeof magic);
    sh_put_u32(&b, VERSION);
    sh_put_bytes(&b, hash, HASH);
    sh_settings_put(s, &b);
    put_progress(at, &b);
    sh_put_u64(&b, p->n_float);
    while (b.n % 64) sh_put_u8(&b, 0);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) err = sh_fail(SH_ESYS, "%s: cannot create the file: %s", path, strerror(errno));
    if (err == SH_OK && b.bad) err = sh_fail(SH_ENOMEM, "%s: no memory for the header", path);
    if (err == SH_OK) err = write_all(fd, b.p, b.n, path);
    if (err == SH_OK) err = write_all(fd, p->m, p->n_float * sizeof(float), path);
    if (err == SH_OK) err = write_all(fd, p->v, p->n_float * sizeof(float), path);
    if (err == SH_OK && fsync(fd) != 0)
        err = sh_fail(SH_ESYS, "%s: cannot write the file: %s", path, strerror(errno));
    if (fd >= 0 && close(fd) != 0 && err == SH_OK)
        err = sh_fail(SH_ESYS, "%s: cannot write the file: %s", path, strerror(errno));
    sh_buf_free(&b);
    return err;
}

bool sh_checkpoint_parse(sh_checkpoint *c, uint8_t hash[16], const void *p, size_t n)
{
    sh_cursor at = sh_cursor_of(p, n);
    const uint8_t *m = sh_get_bytes(&at, sizeof magic);
    uint32_t version = sh_get_u32(&at);
    const uint8_t *h = sh_get_bytes(&at, HASH);
    sh_settings_get(&c->settings, &at);
    get_progress(&c->at, &at);
    c->n_float = sh_get_u64(&at);
    c->moments_at = (n - sh_cursor_left(&at) + 63) / 64 * 64;
    if (at.bad || memcmp(m, magic, sizeof magic) != 0 || version != VERSION || c->at.iter < 0 ||
        c->at.iter > 1 << 30 || c->n_float > n / (2 * sizeof(float)) ||
        n != c->moments_at + c->n_float * 2 * sizeof(float))
        return false;
    memcpy(hash, h, HASH);
    return true;
}

/* Opens an .opt file if it belongs to the weights of that hash. */
static bool open_opt(sh_checkpoint *c, const char *path, const uint8_t hash[HASH])
{
    uint8_t its[HASH];
    if (access(path, F_OK) != 0 || sh_file_open(&c->opt, path) != SH_OK) return false;
    if (sh_checkpoint_parse(c, its, c->opt.data, c->opt.n_bytes) && memcmp(its, hash, HASH) == 0)
        return true;
    sh_file_close(&c->opt);
    return false;
}

/* ---- the pair ---- */

static const char *const names[][2] = {/* the newest first */
                                       {"next.gguf", "next.opt"},
                                       {"last.gguf", "next.opt"},
                                       {"last.gguf", "last.opt"}};
enum { N_PAIR = sizeof names / sizeof *names };

/* Which pair of the list is the newest complete one; -1: none is. */
static int find_pair(sh_checkpoint *c, const char *dir)
{
    char path[PATH];
    uint8_t hash[HASH];
    for (int i = 0; i < N_PAIR; i++) {
        path_in(path, dir, names[i][0]);
        if (access(path, F_OK) != 0 || sh_model_file_open(&c->model, path) != SH_OK) continue;
        sh_model_file_hash(c->model, hash);
        path_in(path, dir, names[i][1]);
        if (open_opt(c, path, hash)) return i;
        sh_model_file_close(c->model);
        c->model = NULL;
    }
    return -1;
}

bool sh_checkpoint_is_there(const char *dir)
{
    static const char *const files[] = {"last.gguf", "last.opt", "next.gguf", "next.opt"};
    char path[PATH];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        path_in(path, dir, files[i]);
        if (access(path, F_OK) == 0) return true;
    }
    return false;
}

sh_err sh_checkpoint_find(sh_checkpoint *c, const char *dir)
{
    *c = (sh_checkpoint){0};
    if (find_pair(c, dir) >= 0) return SH_OK;
    sh_checkpoint_close(c);
    if (!sh_checkpoint_is_there(dir))
        return sh_fail(SH_EFILE,
                       "%s: no checkpoint to go on from; it would be last.gguf and "
                       "last.opt",
                       dir);
    return sh_fail(SH_EFILE,
                   "%s: last.gguf and last.opt are not of one checkpoint, or damaged; begin anew "
                   "from the weights with --init %s/last.gguf and another --ckpt folder",
                   dir, dir);
}

void sh_checkpoint_close(sh_checkpoint *c)
{
    sh_model_file_close(c->model);
    sh_file_close(&c->opt);
    *c = (sh_checkpoint){0};
}

sh_err sh_checkpoint_load(const sh_checkpoint *c, sh_params *p)
{
    if (c->n_float != p->n_float)
        return sh_fail(SH_EFILE, "%s: it holds the state of %llu weights, but the model has %zu",
                       c->opt.path, (unsigned long long)c->n_float, p->n_float);
    SH_TRY(sh_params_load(p, c->model));
    memcpy(p->m, c->opt.data + c->moments_at, p->n_float * sizeof(float));
    memcpy(p->v, c->opt.data + c->moments_at + p->n_float * sizeof(float),
           p->n_float * sizeof(float));
    return SH_OK;
}

/* Makes names durable. Some file systems cannot; the data is safe without. */
static void sync_folder(const char *dir)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
}

static sh_err move(const char *dir, const char *from, const char *to)
{
    char a[PATH], b[PATH];
    path_in(a, dir, from);
    path_in(b, dir, to);
    if (rename(a, b) != 0)
        return sh_fail(SH_ESYS, "%s: cannot rename it to %s: %s", a, to, strerror(errno));
    sync_folder(dir);
    return SH_OK;
}

/* Removes what a save that did not end has left. */
static void drop_next(const char *dir)
{
    struct dirent *e;
    DIR *d = opendir(dir);
    while (d && (e = readdir(d)))
        if (strncmp(e->d_name, "next.", 5) == 0) unlinkat(dirfd(d), e->d_name, 0);
    if (d) closedir(d);
}

sh_err sh_checkpoint_settle(const char *dir)
{
    sh_checkpoint c = {0};
    int pair = find_pair(&c, dir);
    sh_checkpoint_close(&c);
    if (pair == 0) SH_TRY(move(dir, "next.gguf", "last.gguf"));
    if (pair == 0 || pair == 1) SH_TRY(move(dir, "next.opt", "last.opt"));
    drop_next(dir);
    return SH_OK;
}

/* best.gguf = the file, without writing it again where the file system can do so. */
static sh_err make_best(const char *dir, const char *from, const sh_params *p,
                        const sh_progress *at, const sh_model_file *tokenizer)
{
    char path[PATH];
    path_in(path, dir, "next.best");
    unlink(path);
    if (link(from, path) != 0) SH_TRY(write_model(path, p, at, tokenizer));
    return move(dir, "next.best", "best.gguf");
}

sh_err sh_checkpoint_save(const char *dir, const sh_params *p, const sh_settings *s,
                          const sh_progress *at, const sh_model_file *tokenizer, bool best)
{
    char model[PATH], opt[PATH];
    uint8_t hash[HASH];
    sh_err err;
    path_in(model, dir, "next.gguf");
    path_in(opt, dir, "next.opt.tmp");
    SH_GOTO(write_model(model, p, at, tokenizer));
    SH_GOTO(hash_model(hash, model));
    SH_GOTO(write_opt(opt, p, s, at, hash));
    SH_GOTO(move(dir, "next.opt.tmp", "next.opt"));
    if (best) SH_GOTO(make_best(dir, model, p, at, tokenizer));
    SH_GOTO(move(dir, "next.gguf", "last.gguf"));
    return move(dir, "next.opt", "last.opt");
out:
    drop_next(dir);
    return err;
}
