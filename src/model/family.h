/* Families of models, as data: which tensors there are, their names, shapes and splits. Loader,
 * planner, converter, memory estimate and `shoal inspect` all walk these rows.
 *
 * A family is one const struct in families/ and one row in sh_families. */
#ifndef SH_MODEL_FAMILY_H
#define SH_MODEL_FAMILY_H

#include <stdbool.h>
#include <stddef.h>

#include "comm/group.h"
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
    SH_DIM_CTX, /* positions that are learned: n_ctx_train */
    SH_N_DIM
} sh_dim;

/* How a tensor is shared out among the ranks of a stage. */
typedef enum sh_split {
    SH_WHOLE,  /* every rank holds all of it */
    SH_BY_ROW, /* outputs are shared out; biases too */
    SH_BY_COL, /* inputs are shared out in canonical slices; the results are summed over ranks */
    SH_LOOKUP, /* rank 0 of the starter reads single rows from the file */
} sh_split;

/* A tensor, or its part, as it is held in memory, with its bias. */
typedef struct sh_weight {
    const sh_tensor *src; /* NULL: the family has none, or it is optional and not in the file */
    sh_mat mat;           /* matrices */
    float *vec;           /* vectors, as float32 */
    float *bias;          /* as float32; NULL: none */
} sh_weight;

typedef struct sh_layer {
    sh_weight attn_norm, wq, wk, wv, wo, ffn_norm, gate, up, down;
} sh_layer;

/* What stands before and after the layers; all but rope_freqs are the starter's. */
typedef struct sh_ends {
    sh_weight embd, pos, out_norm, head, rope_freqs;
} sh_ends;

typedef struct sh_tensor_row {
    size_t field;      /* offset of the sh_weight in sh_layer or sh_ends */
    const char *gguf;  /* its name in GGUF; %d is the layer */
    const char *hf;    /* its name in a Hugging Face folder */
    sh_dim rows, cols; /* (rows, cols), rows = outputs; a vector has cols SH_DIM_ONE */
    sh_split split;
    int part;  /* fused: rows of the table numbered 0, 1, .. are one tensor's parts, in its order */
    bool bias; /* it is the bias of its field. BY_ROW: each rank adds its part to its outputs;
                  WHOLE: added once, after the sum over ranks */
    bool fine; /* small and sensitive: never quantised; so are vectors */
    bool optional;
    const char *instead; /* GGUF name of the tensor that serves where this one is missing */
} sh_tensor_row;

/* Where families differ. */
typedef enum sh_norm { SH_NORM_RMS, SH_NORM_LAYER } sh_norm;
typedef enum sh_act {
    SH_ACT_SILU, /* silu(gate) * up */
    SH_ACT_GELU, /* gelu(up) */
} sh_act;

typedef struct sh_config {
    const struct sh_family *family;
    int n_layer, n_head, n_kv_head, head_dim, n_ctx_train, n_rot;
    int n_ctx_max; /* positions of a sequence at most */
    int dim[SH_N_DIM];
    sh_norm norm;
    sh_act act;
    float norm_eps;
    bool learned_pos; /* a vector for each position is added to the embedding */
    bool parallel;    /* attention and feed-forward read one norm, and are added at once */
    double rope_base, rope_linear; /* frequencies are base^(-2i/n_rot) / linear; n_rot 0: none */
} sh_config;

typedef struct sh_family {
    const char *name;           /* general.architecture in GGUF */
    const sh_tensor_row *layer; /* end with a row whose gguf is NULL */
    const sh_tensor_row *ends;
    /* Fills in what is the family's own; sh_config_read has read the sizes that all have. */
    sh_err (*configure)(sh_config *c, const sh_model_file *m);
} sh_family;

extern const sh_family *const sh_families[]; /* ends with NULL */
extern const sh_family sh_family_llama, sh_family_gpt2, sh_family_gptj;

/** Which family the file is, its sizes, and that every tensor is there in the right shape and no
 * other is. SH_EFILE: the sentence names the file and the fault; for an unknown family it lists the
 * known. */
sh_err sh_config_read(sh_config *c, const sh_model_file *m);

/** For families: the norm epsilon under the key "<family>.<what>"; 1e-5 where it is missing. */
sh_err sh_config_eps(sh_config *c, const sh_model_file *m, const char *what);

/** For families: how positions are rotated, under "<family>.rope.": all of a head, base 10000 and
 * no scaling where nothing is said. */
sh_err sh_config_rope(sh_config *c, const sh_model_file *m);

/** The row that a tensor of that name belongs to (the first of a fused one), and its layer (-1:
 * none); NULL if the family has no such tensor. */
const sh_tensor_row *sh_family_row(const sh_config *c, const char *name, int *layer);

/** The tensor of a row and layer; NULL if the file has neither it nor its substitute. */
const sh_tensor *sh_family_tensor(const sh_model_file *m, const sh_tensor_row *row, int layer);

/** Which rows (of a vector: values) of its tensor a row of the table is; all, if it is not fused.
 */
sh_range sh_family_part(const sh_config *c, const sh_tensor_row *row);

/** The bytes of that part of the tensor. */
size_t sh_family_bytes(const sh_config *c, const sh_tensor_row *row, const sh_tensor *t);

/** Whether some family keeps the tensor of that name, which stands outside the layers, unquantised.
 */
bool sh_family_is_fine(const char *name);

/** "whole", "by row", "by column", "lookup" */
const char *sh_split_name(sh_split s);

/** The largest quantisation block of a BY_COL tensor with that inner dimension: its slices must not
 * cut blocks. At least 1. */
int sh_config_block(const sh_config *c, const sh_model_file *m, sh_dim cols);

#endif
