/* Families of models, as data: which tensors there are, their names, shapes and splits. Loader,
 * planner, converter, memory estimate and `shoal inspect` all walk these rows.
 *
 * A family is one const struct in families/ and one row in sh_families. */
#ifndef SH_MODEL_FAMILY_H
#define SH_MODEL_FAMILY_H

#include <stdbool.h>
#include <stddef.h>

#include "formats/formats.h"
#include "kernels/kernels.h"

/* Sizes that shapes are made of. */
typedef enum sh_dim {
    SH_DIM_ONE,
    SH_DIM_EMBD,
    SH_DIM_Q,  /* n_head * head_dim */
    SH_DIM_KV, /* n_kv_head * head_dim */
    SH_DIM_FF,
    SH_DIM_VOCAB,
    SH_DIM_ROT, /* pairs that are rotated: n_rot / 2 */
    SH_N_DIM
} sh_dim;

/* How a tensor is shared out among the ranks of a stage. */
typedef enum sh_split {
    SH_WHOLE,  /* every rank holds all of it */
    SH_BY_ROW, /* outputs are shared out; biases too */
    SH_BY_COL, /* inputs are shared out in canonical slices; the results are summed over ranks */
    SH_LOOKUP, /* rank 0 of the starter reads single rows from the file */
} sh_split;

/* A tensor as it is held in memory. */
typedef struct sh_weight {
    const sh_tensor *src; /* NULL: an optional tensor that the file does not have */
    sh_mat mat;           /* matrices */
    float *vec;           /* vectors, as float32 */
} sh_weight;

typedef struct sh_layer {
    sh_weight attn_norm, wq, wk, wv, wo, ffn_norm, gate, up, down;
} sh_layer;

/* What stands before and after the layers; all but rope_freqs are the starter's. */
typedef struct sh_ends {
    sh_weight embd, out_norm, head, rope_freqs;
} sh_ends;

typedef struct sh_tensor_row {
    size_t field;      /* offset of the sh_weight in sh_layer or sh_ends */
    const char *gguf;  /* its name in GGUF; %d is the layer */
    const char *hf;    /* its name in a Hugging Face folder */
    sh_dim rows, cols; /* (rows, cols), rows = outputs; a vector has cols SH_DIM_ONE */
    sh_split split;
    const char *instead; /* GGUF name of the tensor that serves where this one is missing */
    bool optional;
} sh_tensor_row;

typedef struct sh_config {
    const struct sh_family *family;
    int n_layer, n_head, n_kv_head, head_dim, n_ctx_train, n_rot;
    int dim[SH_N_DIM];
    float norm_eps;
    double rope_base, rope_linear; /* frequencies are base^(-2i/n_rot) / linear */
} sh_config;

typedef struct sh_family {
    const char *name;           /* general.architecture in GGUF */
    const sh_tensor_row *layer; /* end with a row whose gguf is NULL */
    const sh_tensor_row *ends;
    /* Fills all but family and dim[SH_DIM_VOCAB]. */
    sh_err (*configure)(sh_config *c, const sh_model_file *m);
} sh_family;

extern const sh_family *const sh_families[]; /* ends with NULL */
extern const sh_family sh_family_llama;

/** Which family the file is, its sizes, and that every tensor is there in the right shape and no
 * other is. SH_EFILE: the sentence names the file and the fault; for an unknown family it lists the
 * known. */
sh_err sh_config_read(sh_config *c, const sh_model_file *m);

/** The row that a tensor of that name belongs to, and its layer (-1: none); NULL if the family has
 * no such tensor. */
const sh_tensor_row *sh_family_row(const sh_config *c, const char *name, int *layer);

/** The tensor of a row and layer; NULL if the file has neither it nor its substitute. */
const sh_tensor *sh_family_tensor(const sh_model_file *m, const sh_tensor_row *row, int layer);

/** "whole", "by row", "by column", "lookup" */
const char *sh_split_name(sh_split s);

/** The largest quantisation block of a BY_COL tensor with that inner dimension: its slices must not
 * cut blocks. At least 1. */
int sh_config_block(const sh_config *c, const sh_model_file *m, sh_dim cols);

#endif
