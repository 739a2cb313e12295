/* shoal quantize: a GGUF file again, with its matrices in another element type. */
#define _GNU_SOURCE
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "cli/cli.h"
#include "formats/formats.h"
#include "model/family.h"

/* Per type: the number that other programs know in general.file_type, and the greatest magnitude
 * that it holds (block types: that of the f16 scale times the greatest quantum). */
static const struct {
    uint32_t file_type;
    float max;
} target[SH_N_DTYPE] = {
    [SH_F32] = {0, 3.4028235e38f},   [SH_F16] = {1, 65504.0f},      [SH_BF16] = {32, 3.3895314e38f},
    [SH_Q8_0] = {7, 65504.0f * 127}, [SH_Q4_0] = {2, 65504.0f * 8},
};

enum { CHUNK = 65536 }; /* elements converted at a time; a multiple of every block */

typedef struct job {
    const sh_model_file *in;
    sh_gguf_writer *out;
    sh_dtype dtype; /* of the matrices */
    float *x;       /* CHUNK */
    uint8_t *y;     /* CHUNK * 4 bytes */
    bool show;      /* progress, on a terminal */
} job;

static bool is_quantised(sh_dtype t)
{
    return sh_dtypes[t].block > 1;
}

/* Vectors are small and sensitive: f32. So are learned positions: never quantised. Rows that blocks
 * do not fill: f16. */
static sh_dtype dtype_for(const sh_tensor *t, sh_dtype want)
{
    if (t->n_dim == 1) return SH_F32;
    if (is_quantised(want) && sh_family_is_fine(t->name))
        return is_quantised(t->dtype) ? SH_F16 : t->dtype;
    return t->dim[0] % sh_dtypes[want].block ? SH_F16 : want;
}

static sh_err check_input(const sh_model_file *in, const char *out_path, bool requantize)
{
    struct stat a, b;
    if (stat(in->file.path, &a) == 0 && stat(out_path, &b) == 0 && a.st_dev == b.st_dev &&
        a.st_ino == b.st_ino)
        return sh_fail(SH_EARG, "%s: the output is the input; give another name", out_path);
    for (size_t i = 0; i < in->n_tensor && !requantize; i++)
        if (is_quantised(in->tensor[i].dtype))
            return sh_fail(
                SH_EARG,
                "%s is quantised already (tensor '%s' is %s): start from the f16, bf16 or "
                "f32 file, or accept the loss with --allow-requantize",
                in->file.path, in->tensor[i].name, sh_dtypes[in->tensor[i].dtype].name);
    return SH_OK;
}

static void put_header(const job *j)
{
    static const char file_type[] = "general.file_type", version[] = "general.quantization_version";
    for (size_t i = 0; i < j->in->n_meta; i++) {
        const sh_meta *v = &j->in->meta[i];
        if (strcmp(v->key, file_type) == 0) {
            sh_gguf_put_u32(j->out, file_type, target[j->dtype].file_type);
        } else if (strcmp(v->key, version) != 0) {
            sh_gguf_put_meta(j->out, v);
        }
    }
    if (!sh_model_file_meta(j->in, file_type))
        sh_gguf_put_u32(j->out, file_type, target[j->dtype].file_type);
    if (is_quantised(j->dtype))
        sh_gguf_put_u32(j->out, version, 2); /* the block layouts of today */
    for (size_t i = 0; i < j->in->n_tensor; i++) {
        const sh_tensor *t = &j->in->tensor[i];
        sh_dtype to = dtype_for(t, j->dtype);
        if (t->n_dim > 1 && t->dim[0] % sh_dtypes[j->dtype].block)
            fprintf(stderr, "note: %s has rows of %lld elements, not a multiple of %d: %s\n",
                    t->name, (long long)t->dim[0], sh_dtypes[j->dtype].block, sh_dtypes[to].name);
        sh_gguf_add_tensor(j->out, t->name, to, t->n_dim, t->dim);
    }
}

/* n elements of j->x must be numbers that `to` can hold. */
static sh_err check_values(const job *j, const sh_tensor *t, sh_dtype to, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (fabsf(j->x[i]) <= target[to].max) continue;
        if (!isfinite(j->x[i]))
            return sh_fail(SH_EFILE, "%s: tensor '%s' has a value that is not a finite number",
                           j->in->file.path, t->name);
        return sh_fail(SH_EARG, "%s: tensor '%s' has the value %g, more than %s holds; use bf16",
                       j->in->file.path, t->name, (double)j->x[i], sh_dtypes[to].name);
    }
    return SH_OK;
}

/* With SIGINT and SIGTERM blocked: whether one has come. */
static bool interrupted(void)
{
    sigset_t set;
    return sigpending(&set) == 0 &&
           (sigismember(&set, SIGINT) == 1 || sigismember(&set, SIGTERM) == 1);
}

static sh_err convert(const job *j, const sh_tensor *t)
{
    const sh_dtype_info *from = &sh_dtypes[t->dtype];
    sh_dtype to = dtype_for(t, j->dtype);
    size_t left = t->n_bytes / (size_t)from->block_bytes * (size_t)from->block;
    for (size_t at = 0; left; at += CHUNK) {
        size_t n = left < CHUNK ? left : CHUNK;
        const uint8_t *src = t->data + sh_dtype_bytes(t->dtype, at);
        if (interrupted()) return sh_fail(SH_ESYS, "interrupted; nothing was written");
        if (to == t->dtype) {
            SH_TRY(sh_gguf_write(j->out, src, sh_dtype_bytes(to, n)));
        } else {
            from->to_f32(j->x, src, n);
            SH_TRY(check_values(j, t, to, n));
            sh_dtypes[to].from_f32(j->y, j->x, n);
            SH_TRY(sh_gguf_write(j->out, j->y, sh_dtype_bytes(to, n)));
        }
        left -= n;
    }
    return SH_OK;
}

static sh_err convert_all(const job *j)
{
    size_t n = j->in->n_tensor;
    put_header(j);
    for (size_t i = 0; i < n; i++) {
        if (j->show) fprintf(stderr, "\rquantize: tensor %zu of %zu", i + 1, n);
        sh_err err = convert(j, &j->in->tensor[i]);
        if (j->show && (err != SH_OK || i + 1 == n)) fputs("\r\033[K", stderr);
        SH_TRY(err);
    }
    return SH_OK;
}

static void print_sizes(const char *in, const char *out)
{
    struct stat a, b;
    if (stat(in, &a) != 0 || stat(out, &b) != 0) return;
    fprintf(stderr, "%s: %.2f MiB -> %s: %.2f MiB (%.1f %%)\n", in, (double)a.st_size / (1 << 20),
            out, (double)b.st_size / (1 << 20), 100.0 * (double)b.st_size / (double)a.st_size);
}

static sh_err quantize(const char *in_path, const char *out_path, sh_dtype dtype, bool requantize)
{
    job j = {.dtype = dtype, .show = isatty(STDERR_FILENO)};
    sh_model_file *in = NULL;
    sh_err err, closed;
    SH_GOTO(sh_model_file_open(&in, in_path));
    SH_GOTO(check_input(in, out_path, requantize));
    j.in = in;
    SH_GOTO(sh_alloc(&j.x, CHUNK, sizeof *j.x, "a row of weights"));
    SH_GOTO(sh_alloc(&j.y, CHUNK, sizeof *j.x, "a row of weights"));
    SH_GOTO(sh_gguf_create(&j.out, out_path));
    err = convert_all(&j);
out:
    closed = sh_gguf_close(j.out, err == SH_OK);
    if (err == SH_OK) err = closed;
    if (err == SH_OK) print_sizes(in_path, out_path);
    free(j.x);
    free(j.y);
    sh_model_file_close(in);
    return err;
}

static int quantize_main(int argc, char **argv)
{
    bool help = false, requantize = false;
    const char *arg[3];
    int n_arg = 0;
    const sh_flag flags[] = {
        {"--allow-requantize", NULL, SH_FLAG_BOOL, &requantize, 0, 0,
         "accept an input that is quantised already; quality suffers twice"},
    };
    sh_err err = sh_flags_parse("shoal quantize IN OUT f32|f16|bf16|q8_0|q4_0", flags, 1, argc,
                                argv, arg, 3, &n_arg, &help);
    if (help || err != SH_OK) return sh_exit("quantize", err);
    if (n_arg < 3)
        return sh_exit("quantize", sh_fail(SH_EARG,
                                           "needs IN, OUT and a type (%s); see shoal quantize "
                                           "--help",
                                           sh_dtype_list()));
    int dtype = sh_dtype_by_name(arg[2]);
    if (dtype < 0)
        return sh_exit("quantize",
                       sh_fail(SH_EARG, "unknown type '%s' (known: %s)", arg[2], sh_dtype_list()));

    sigset_t stop, before; /* so that Ctrl-C leaves no half-written file */
    sigemptyset(&stop);
    sigaddset(&stop, SIGINT);
    sigaddset(&stop, SIGTERM);
    sigprocmask(SIG_BLOCK, &stop, &before);
    err = quantize(arg[0], arg[1], (sh_dtype)dtype, requantize);
    int status = sh_exit("quantize", err);
    sigprocmask(SIG_SETMASK, &before, NULL); /* ends here if one has come */
    return status;
}

const sh_command sh_command_quantize = {.name = "quantize",
                                        .summary = "write a model file with another element type",
                                        .main = quantize_main};
