/* What the files of a pass share; callers see pass.h. */
#ifndef SH_TRAIN_STATE_H
#define SH_TRAIN_STATE_H

#include "train/pass.h"

enum { SH_BLOCK = 32 }; /* tokens of a block, at most: whole runs of k's */
/* An operand that is larger is written past the caches: it would not be there when it is read. */
enum { SH_FAR_BYTES = 4 << 20 };

/* Some tokens of one slice of the batch that one thread works on together. Sums over tokens that
 * are no products are made by block, tokens ascending; then over the blocks of a slice, ascending;
 * then over slices, by the canonical tree. */
typedef struct sh_block {
    int t, n;  /* its first token of this rank's, and how many */
    int kp;    /* where it stands in operands whose k's are tokens */
    int slice; /* counted from this rank's first */
} sh_block;

/* What the way forward leaves for the way back, for each layer; (n_tok, ..) each. */
typedef struct sh_stash {
    float *x;         /* n_embd: what comes in */
    float *qkv;       /* n_q + 2 n_kv: products alone */
    float *ao;        /* n_q: attention's output */
    float *max, *sum; /* n_head: of the scores of a query, and the sum of e^(score - max) */
    float *x2;        /* n_embd: after attention */
    float *u;         /* n_up: products alone */
} sh_stash;

/* Where the time of a pass goes. */
typedef enum sh_part {
    SH_PART_PACK,    /* weights become operands */
    SH_PART_FORWARD, /* products y = x w^T */
    SH_PART_BACK,    /* dx = dy w */
    SH_PART_WEIGHTS, /* dw = dy^T x */
    SH_PART_HEAD,    /* all products of the head */
    SH_PART_LOSS,
    SH_PART_ATTEND,
    SH_PART_ATTEND_BACK,
    SH_PART_BLOCKS, /* norms, activations and operands, by block */
    SH_PART_BLOCKS_BACK,
    SH_N_PART
} sh_part;

struct sh_pass {
    const sh_params *p;
    const sh_products *products;
    int n_tok_max, n_thread;
    int n_q, n_kv, n_qkv, n_up;
    uint8_t *arena; /* all that follows, up to the batch */
    size_t arena_bytes;

    sh_stash *layer;              /* (n_layer + 1), the last one has x alone */
    float *cos, *sin, *minus_sin; /* (n_ctx, n_rot / 2) */
    float *dxn, *d;               /* (n_tok, n_embd), (n_tok, n_qkv or n_ff) */
    void *rows;                   /* left operand: tokens by outputs of norms and activations */
    void *cols[2];                /* left operands: gradients' columns by tokens */
    void *right[2];               /* right operands: inputs' columns by tokens */
    void *weights, *head_back;    /* right operands */
    float *logits;                /* (chunk, ld_logits) */
    void *dlogits;                /* left operand: a chunk's tokens by the vocabulary */
    float *part;                  /* (chunk, n_embd): sums over some words */
    size_t ld_logits;             /* floats */
    double *token_loss;           /* (n_tok) */
    float *sums;                  /* (n_block, n_sum): of blocks */
    uint8_t *scratch;             /* (n_thread, scratch_bytes) */
    size_t n_sum, scratch_bytes;
    sh_block *block;

    /* the batch at hand */
    const sh_batch *batch;
    const sh_dropout *drop; /* NULL: none */
    int seq_lo, n_seq, n_tok, n_block, n_slice;
    sh_kdim kd; /* this rank's tokens, by slices */

    double us[SH_N_PART], since_us;
};

static inline const sh_arch *sh_pass_arch(const sh_pass *s)
{
    return &s->p->arch;
}

/** Whether the columns of a head are whole runs and blocks are of one sequence each: then attention
 * makes operands of what it computes, head by head. */
static inline bool sh_pass_heads_apart(const sh_pass *s)
{
    return sh_pass_arch(s)->head_dim % SH_RUN == 0 && sh_pass_arch(s)->n_ctx % SH_BLOCK == 0;
}

/** A thread's scratch. */
static inline void *sh_pass_room(const sh_pass *s, int thread)
{
    return s->scratch + (size_t)thread * s->scratch_bytes;
}

/** Does the items [0, n), each on some thread. */
void sh_pass_each(sh_pass *s, int n, void (*item)(void *arg, int i, int thread), void *arg);
/** The time since the last call goes to that part. */
void sh_pass_tick(sh_pass *s, sh_part part);
/** Drops values of row `row` of x (n); `site` and row tell it from all others of the step. */
void sh_pass_drop(const sh_pass *s, float *x, size_t n, uint32_t site, uint32_t row);

/* Operands. A part of one whose k's are tokens begins at a multiple of SH_RUN. */

/* Rows of many cache lines are an odd number of them: then those of a tile are in different sets of
 * the cache. */
static inline sh_left sh_pass_left(const sh_pass *s, void *data, const sh_kdim *kd)
{
    size_t line = sh_left_ld(s->products, kd) / 64;
    return (sh_left){data, (line < 16 ? line : line | 1) * 64, *kd};
}
/** Its rows from `row` on, n k's from kp on. */
static inline sh_left sh_pass_left_part(const sh_pass *s, const sh_left *a, int row, int kp, int n)
{
    size_t unit = s->products->dtype == SH_BF16 ? 2 : 4;
    return (sh_left){(char *)a->data + (size_t)row * a->ld + (size_t)kp * unit, a->ld,
                     sh_kdim_whole(n)};
}
static inline sh_mat sh_pass_right(const sh_pass *s, void *data, int rows, const sh_kdim *kd)
{
    sh_mat m;
    sh_mat_layout(&m, s->products->dtype, rows, kd);
    m.data = data;
    return m;
}
/** n k's from kp on. */
static inline sh_mat sh_pass_right_part(const sh_mat *b, int kp, int n)
{
    sh_mat m = *b;
    m.data += (size_t)kp * SH_LANES * (b->dtype == SH_BF16 ? 2 : 4);
    m.kd = sh_kdim_whole(n);
    return m;
}

/* Products of a pass. Matrices are named by where they begin in p->w; (n_out, n_in). */

/** y (n_tok, n_out) = s->rows times the matrix. */
void sh_pass_multiply(sh_pass *s, float *y, size_t at, int n_out, int n_in);
/** The columns of the matrix as a right operand. */
void sh_pass_pack_cols(sh_pass *s, const sh_mat *m, size_t at, int n_out, int n_in);
/** dx (n_tok, n_in) = s->rows, which holds dy, times the matrix's columns. */
void sh_pass_multiply_back(sh_pass *s, float *dx, size_t at, int n_out, int n_in);
/** p->g at the matrix = s->cols[i] (dy's columns) times s->right[i] (x's columns). */
void sh_pass_gradient(sh_pass *s, int i, size_t at, int n_out, int n_in, sh_part part);

#endif
