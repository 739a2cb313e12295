/* Operands made and products shared out; the sums are the kernels'. */
#include "train/products.h"

/* An operand with so many k's (tokens) is not in a cache any more when it is read. */
enum { FAR_K = 2048 };

void sh_left_rows(const sh_products *p, const sh_left *a, const float *x, size_t ldx, int lo,
                  int hi)
{
    for (int r = lo; r < hi; r++)
        p->k->prepare[sh_products_form(p)]((char *)a->data + (size_t)r * a->ld, x + (size_t)r * ldx,
                                           &a->kd);
}

void sh_left_cols(const sh_products *p, const sh_left *a, const float *x, size_t ldx, int lo,
                  int hi)
{
    size_t unit = p->dtype == SH_BF16 ? 2 : 4;
    for (int r = lo; r < hi; r += SH_LANES)
        for (int s = 0; s < a->kd.n_slice; s++)
            p->k->left_cols[p->dtype](
                (char *)a->data + (size_t)r * a->ld + (size_t)a->kd.kp[s] * unit, a->ld,
                x + (size_t)a->kd.k[s] * ldx + r, ldx, sh_min(hi - r, SH_LANES),
                a->kd.k[s + 1] - a->kd.k[s], a->ld >= FAR_K * unit);
}

/* Where slice s of panel i begins. */
static uint8_t *panel_slice(const sh_products *p, const sh_mat *b, int i, int s)
{
    size_t unit = p->dtype == SH_BF16 ? 2 : 4;
    return b->data + (size_t)i * b->panel_bytes + (size_t)b->kd.kp[s] * SH_LANES * unit;
}

void sh_right_rows(const sh_products *p, const sh_mat *b, const float *x, size_t ldx, int lo,
                   int hi)
{
    for (int i = lo; i < hi; i++)
        for (int s = 0; s < b->kd.n_slice; s++)
            p->k->right_rows[p->dtype](
                panel_slice(p, b, i, s), x + (size_t)i * SH_LANES * ldx + b->kd.k[s], ldx,
                sh_min(b->rows - i * SH_LANES, SH_LANES), b->kd.k[s + 1] - b->kd.k[s]);
}

void sh_right_cols(const sh_products *p, const sh_mat *b, const float *x, size_t ldx, int lo,
                   int hi)
{
    const bool far = b->panel_bytes >= FAR_K * SH_LANES * (p->dtype == SH_BF16 ? 2 : 4);
    for (int i = lo; i < hi; i++)
        for (int s = 0; s < b->kd.n_slice; s++)
            p->k->right_cols[p->dtype](
                panel_slice(p, b, i, s), x + (size_t)b->kd.k[s] * ldx + (size_t)i * SH_LANES, ldx,
                sh_min(b->rows - i * SH_LANES, SH_LANES), b->kd.k[s + 1] - b->kd.k[s], far);
}

void sh_product(const sh_products *p, float *y, size_t ldy, const sh_left *a, const sh_mat *b,
                int row_lo, int row_hi, int lo, int hi)
{
    sh_mat part = *b;
    part.kd = a->kd; /* the same k's, or the first of them */
    if (row_lo < row_hi && lo < hi)
        p->k->matmul[p->dtype][sh_products_form(p)](
            y + (size_t)row_lo * ldy, ldy, &part, lo, hi, 0, a->kd.n_slice,
            (const char *)a->data + (size_t)row_lo * a->ld, a->ld, row_hi - row_lo);
}

/* ---- over all threads ---- */

typedef enum kind { LEFT_ROWS, LEFT_COLS, RIGHT_ROWS, RIGHT_COLS } kind;

typedef struct operand_job {
    const sh_products *p;
    kind kind;
    const sh_left *a;
    const sh_mat *b;
    const float *x;
    size_t ldx;
    int n; /* rows or panels */
} operand_job;

static void operand_share(void *arg, int thread, int n_thread)
{
    const operand_job *j = arg;
    int lo, hi;
    if (j->kind == LEFT_COLS) { /* whole runs of 16 columns */
        sh_share((j->n + SH_LANES - 1) / SH_LANES, thread, n_thread, &lo, &hi);
        sh_left_cols(j->p, j->a, j->x, j->ldx, lo * SH_LANES, sh_min(hi * SH_LANES, j->n));
        return;
    }
    sh_share(j->n, thread, n_thread, &lo, &hi);
    if (j->kind == LEFT_ROWS) sh_left_rows(j->p, j->a, j->x, j->ldx, lo, hi);
    if (j->kind == RIGHT_ROWS) sh_right_rows(j->p, j->b, j->x, j->ldx, lo, hi);
    if (j->kind == RIGHT_COLS) sh_right_cols(j->p, j->b, j->x, j->ldx, lo, hi);
}

static void operand(operand_job j)
{
    sh_pool_run(j.p->pool, operand_share, &j);
}

void sh_left_rows_all(const sh_products *p, const sh_left *a, const float *x, size_t ldx, int m)
{
    operand((operand_job){p, LEFT_ROWS, a, NULL, x, ldx, m});
}
void sh_left_cols_all(const sh_products *p, const sh_left *a, const float *x, size_t ldx, int m)
{
    operand((operand_job){p, LEFT_COLS, a, NULL, x, ldx, m});
}
void sh_right_rows_all(const sh_products *p, const sh_mat *b, const float *x, size_t ldx)
{
    operand((operand_job){p, RIGHT_ROWS, NULL, b, x, ldx, b->n_panel});
}
void sh_right_cols_all(const sh_products *p, const sh_mat *b, const float *x, size_t ldx)
{
    operand((operand_job){p, RIGHT_COLS, NULL, b, x, ldx, b->n_panel});
}

/* Rows and panels of one piece of work. */
enum { PIECE_ROWS = 512, PIECE_PANELS = 32 };

typedef struct product_job {
    const sh_products *p;
    float *y;
    size_t ldy;
    const sh_left *a;
    const sh_mat *b;
    int m, rows, panels; /* of a piece */
    int across;          /* pieces side by side over the panels */
} product_job;

static void product_piece(void *arg, int i, int thread)
{
    const product_job *j = arg;
    int row = i / j->across * j->rows, panel = i % j->across * j->panels;
    (void)thread;
    sh_product(j->p, j->y, j->ldy, j->a, j->b, row, sh_min(row + j->rows, j->m), panel,
               sh_min(panel + j->panels, j->b->n_panel));
}

void sh_product_all(const sh_products *p, float *y, size_t ldy, const sh_left *a, const sh_mat *b,
                    int m)
{
    int n_thread = sh_pool_n_thread(p->pool);
    product_job j = {.p = p, .y = y, .ldy = ldy, .a = a, .b = b, .m = m};
    j.rows = sh_min(m, PIECE_ROWS);
    j.panels = sh_min(b->n_panel, PIECE_PANELS);
    /* at least four pieces for each thread, if they are not too small */
    while ((m + j.rows - 1) / j.rows * ((b->n_panel + j.panels - 1) / j.panels) < 4 * n_thread) {
        if (j.rows > 64 && j.rows >= j.panels * SH_LANES)
            j.rows = (j.rows / 2 + 31) / 32 * 32;
        else if (j.panels > 4)
            j.panels = (j.panels / 2 + 1) / 2 * 2;
        else
            break;
    }
    j.across = (b->n_panel + j.panels - 1) / j.panels;
    sh_pool_each(p->pool, (m + j.rows - 1) / j.rows * j.across, product_piece, &j);
}
