/* The parameters of a model under training: one float32 array in a fixed order, its gradients and
 * the optimiser's moments beside it, and what each part is called in GGUF. */
#ifndef SH_TRAIN_PARAMS_H
#define SH_TRAIN_PARAMS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "model/family.h"

/* What the blocks of a family do and how large they are. */
typedef struct sh_arch {
    const char *family; /* "llama" or "gpt2" */
    int n_layer, n_head, n_kv_head, head_dim, n_embd, n_ff, n_vocab, n_ctx, n_rot;
    bool layer_norm;  /* LayerNorm, else RMSNorm */
    bool gelu;        /* up then GELU, else gate and up with SwiGLU */
    bool learned_pos; /* learned positions, else rotary ones in adjacent pairs */
    bool bias;        /* biases of norms and products */
    bool tied;        /* the head is the embedding */
    float norm_eps;
    double rope_base, rope_linear;
    float *rope_freqs; /* (n_rot / 2) factors that divide the frequencies, or NULL; owned */
} sh_arch;

/* One tensor of the file. */
typedef struct sh_param {
    char name[64];
    int rows, cols; /* (rows, cols), rows = outputs; a vector has cols 1 */
    size_t at;      /* its first float in w, g, m, v */
    bool decay;     /* weight decay applies: matrices */
} sh_param;

/* Where a layer's parts begin. Matrices with the same input stand one after the other and are one
 * product: q, k, v (n_q + 2 n_kv rows); gate, up (2 n_ff rows) or up (n_ff). */
typedef struct sh_layer_at {
    size_t attn_norm, attn_norm_b, qkv, qkv_b, wo, wo_b;
    size_t ffn_norm, ffn_norm_b, up, up_b, down, down_b;
} sh_layer_at;

typedef struct sh_params {
    sh_arch arch;
    sh_param *list; /* (n), in the order of w */
    int n;
    size_t n_float;                               /* of w, padding included */
    size_t embd, pos, out_norm, out_norm_b, head; /* head == embd if tied */
    sh_layer_at *layer;                           /* (n_layer) */
    float *w, *g, *m, *v;                         /* (n_float) each; padding stays 0 */
} sh_params;

/** The sizes of a model file of a family that trains. SH_EFILE if its family does not. Free with
 * sh_arch_free. */
sh_err sh_arch_of(sh_arch *a, const sh_config *c, const sh_model_file *m);
void sh_arch_free(sh_arch *a);
/** What sh_params_open would allocate for it, about. */
size_t sh_arch_bytes(const sh_arch *a);

/** Allocates for that architecture (copied), all zeros. SH_EARG: sizes that do not fit together.
 * SH_ENOMEM says how much was needed. */
sh_err sh_params_open(sh_params *p, const sh_arch *a);
void sh_params_close(sh_params *p);

/** Draws w: embeddings and a head of its own normal(0, 0.02); matrices of layers as GPT-2 (width
 * 768) does, 0.02 sqrt(768 / n_embd), so that narrower models begin with activations of the same
 * size; of those the two products back into the residual stream by 1/sqrt(2 n_layer) less; biases
 * 0, norms 1. Depends on the seed and the tensors' names alone. */
void sh_params_draw(sh_params *p, uint64_t seed);
/** Reads w from a model file of the same architecture, any element type; of learned positions the
 * first n_ctx, and an untied head from the embedding where the file has none. SH_EFILE. */
sh_err sh_params_load(sh_params *p, const sh_model_file *m);

#endif
