#define _GNU_SOURCE
#include "model/weights.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/mem.h"

/* Calls fn for every tensor of this rank: those of its layers, and on the starter those of the
 * ends. */
typedef sh_err visit_fn(void *arg, const sh_tensor_row *r, const sh_tensor *t, sh_weight *w);

static sh_err visit(sh_weights *w, const sh_model_file *m, visit_fn *fn, void *arg)
{
    const sh_plan *p = w->plan;
    for (const sh_tensor_row *r = w->config->family->ends; r->gguf; r++) {
        const sh_tensor *t = sh_family_tensor(m, r, -1);
        bool everywhere = r->field == offsetof(sh_ends, rope_freqs);
        if (!t || (p->stage != 0 && !everywhere)) continue;
        SH_TRY(fn(arg, r, t, (sh_weight *)((char *)&w->ends + r->field)));
    }
    for (int l = p->layer.lo; l < p->layer.hi; l++)
        for (const sh_tensor_row *r = w->config->family->layer; r->gguf; r++) {
            const sh_tensor *t = sh_family_tensor(m, r, l);
            if (t)
                SH_TRY(fn(arg, r, t, (sh_weight *)((char *)&w->layer[l - p->layer.lo] + r->field)));
        }
    return SH_OK;
}

static bool is_matrix(const sh_tensor_row *r)
{
    return r->cols != SH_DIM_ONE && r->split != SH_LOOKUP;
}

typedef struct load {
    const sh_config *config;
    const sh_plan *plan;
    bool mapped;
    sh_pool *pool;
    uint8_t *arena; /* where the next matrix goes; NULL: only count */
    size_t n_bytes;
} load;

/* The rows of the tensor that this rank takes for a row of the table. */
static sh_range rows_of(const load *ld, const sh_tensor_row *r)
{
    sh_range part = sh_family_part(ld->config, r), local = ld->plan->local[r->rows];
    if (r->split != SH_BY_ROW) return part;
    return (sh_range){part.lo + local.lo, part.lo + local.hi};
}

/* Shape of this rank's share. */
static void lay_out(sh_mat *mat, const load *ld, const sh_tensor_row *r, const sh_tensor *t)
{
    const sh_plan *p = ld->plan;
    sh_kdim kd = sh_kdim_whole((int)t->dim[0]);
    if (r->split == SH_BY_COL) {
        const int *bound = r->cols == SH_DIM_Q ? p->q_bound : p->ff_bound;
        kd = sh_kdim_slices(bound + p->slice.lo, sh_range_n(p->slice));
    }
    sh_mat_layout(mat, t->dtype, sh_range_n(rows_of(ld, r)), &kd);
}

/* One matrix being packed by all threads. */
typedef struct pack_job {
    const sh_mat *mat;
    const uint8_t *first;          /* this rank's first value in the file */
    size_t row_bytes, share_bytes; /* of a row in the file, and of what this rank takes of it */
    bool mapped;                   /* the file's pages can be let go */
} pack_job;

static const uint8_t *file_row(const void *arg, int r)
{
    const pack_job *j = arg;
    return j->first + (size_t)r * j->row_bytes;
}

/* Panels at a time: what is read and not yet let go stays small. */
static int panels_at_once(const pack_job *j)
{
    enum { BYTES = 4 << 20 };
    size_t n = BYTES / (j->row_bytes * SH_LANES);
    return n < 1 ? 1 : n > 4096 ? 4096 : (int)n;
}

/* Tells the system to map, or that nobody will read, the file's pages that lie under rows [lo, hi).
 */
static void advise_rows(const pack_job *j, int lo, int hi, int advice)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t a = (uintptr_t)file_row(j, lo) / page * page;
    uintptr_t b = ((uintptr_t)file_row(j, hi - 1) + j->share_bytes) / page * page;
    if (j->mapped && hi > lo && b > a)
        (void)madvise((void *)a, b - a, advice); /* a wish, not a need */
}

static void pack_share(void *arg, int thread, int n_thread)
{
    const pack_job *j = arg;
    int lo, hi, n = panels_at_once(j);
    sh_share(j->mat->n_panel, thread, n_thread, &lo, &hi);
    for (int p = lo; p < hi; p += n) {
        int end = hi - p < n ? hi : p + n;
        int row_lo = p * SH_LANES,
            row_hi = end * SH_LANES < j->mat->rows ? end * SH_LANES : j->mat->rows;
        advise_rows(j, row_lo, row_hi, MADV_POPULATE_READ);
        sh_mat_pack(j->mat, p, end, file_row, j);
        advise_rows(j, row_lo, row_hi, MADV_DONTNEED); /* they are clean: the file has them */
    }
}

static sh_err load_matrix(load *ld, const sh_tensor_row *r, const sh_tensor *t, sh_weight *w)
{
    lay_out(&w->mat, ld, r, t);
    size_t n = w->mat.panel_bytes * (size_t)w->mat.n_panel;
    if (ld->arena) {
        w->mat.data = ld->arena + ld->n_bytes;
        size_t row_bytes = sh_dtype_bytes(t->dtype, (size_t)t->dim[0]);
        int row_lo = rows_of(ld, r).lo;
        int col_lo = r->split == SH_BY_COL ? ld->plan->local[r->cols].lo : 0;
        pack_job job = {&w->mat,
                        t->data + (size_t)row_lo * row_bytes +
                            sh_dtype_bytes(t->dtype, (size_t)col_lo),
                        row_bytes, sh_dtype_bytes(t->dtype, (size_t)w->mat.kd.k[w->mat.kd.n_slice]),
                        ld->mapped};
        sh_pool_run(ld->pool, pack_share, &job);
    }
    ld->n_bytes += n;
    return SH_OK;
}

static sh_err load_one(void *arg, const sh_tensor_row *r, const sh_tensor *t, sh_weight *w)
{
    load *ld = arg;
    if (!r->bias) w->src = t;
    if (is_matrix(r)) return load_matrix(ld, r, t, w);
    if (r->split == SH_LOOKUP || !ld->arena) return SH_OK;
    sh_range part = rows_of(ld, r);
    size_t n = (size_t)sh_range_n(part);
    float **v = r->bias ? &w->bias : &w->vec;
    SH_TRY(sh_alloc(v, n, sizeof **v, t->name));
    sh_dtypes[t->dtype].to_f32(*v, t->data + sh_dtype_bytes(t->dtype, (size_t)part.lo), n);
    return SH_OK;
}

static sh_err begin(sh_weights *w, const sh_config *c, const sh_plan *p)
{
    *w = (sh_weights){.config = c, .plan = p};
    return sh_alloc(&w->layer, (size_t)sh_range_n(p->layer), sizeof *w->layer, "the layers");
}

size_t sh_weights_bytes(const sh_config *c, const sh_model_file *m, const sh_plan *p)
{
    sh_weights w;
    load ld = {.config = c, .plan = p};
    if (begin(&w, c, p) == SH_OK) (void)visit(&w, m, load_one, &ld); /* counting does not fail */
    sh_weights_free(&w);
    return ld.n_bytes;
}

sh_err sh_weights_load(sh_weights *w, const sh_config *c, const sh_model_file *m, const sh_plan *p,
                       sh_pool *pool)
{
    sh_err err;
    load ld = {.config = c, .plan = p, .pool = pool, .mapped = m->file.mapped};
    size_t n_bytes = sh_weights_bytes(c, m, p);
    SH_TRY(begin(w, c, p));
    w->n_bytes = n_bytes;
    SH_GOTO(sh_map(&w->arena, n_bytes, "the weights"));
    ld.arena = w->arena;
    SH_GOTO(visit(w, m, load_one, &ld));
    return SH_OK;
out:
    sh_weights_free(w);
    return err;
}

static void free_vectors(const sh_tensor_row *row, void *fields)
{
    for (const sh_tensor_row *r = row; r->gguf; r++) {
        sh_weight *w = (sh_weight *)((char *)fields + r->field);
        free(r->bias ? w->bias : w->vec);
    }
}

void sh_weights_free(sh_weights *w)
{
    for (int l = 0; w->layer && l < sh_range_n(w->plan->layer); l++)
        free_vectors(w->config->family->layer, &w->layer[l]);
    if (w->config) free_vectors(w->config->family->ends, &w->ends);
    free(w->layer);
    sh_unmap(w->arena, w->n_bytes);
    *w = (sh_weights){0};
}
