/* What a run of training is asked to do, and what it begins with: the architecture, the vocabulary,
 * the weights. The same on every rank. */
#ifndef SH_TRAIN_SETUP_H
#define SH_TRAIN_SETUP_H

#include "train/checkpoint.h"

enum { SH_MAX_TRAIN_CPU = 64 };

/* Sizes of a new model; 0 or NULL: not said. */
typedef struct sh_train_shape {
    const char *family; /* "llama" or "gpt2"; NULL: the shape's, or gpt2 */
    const char *name;   /* a known shape */
    int n_layer, n_embd, n_head, n_kv_head, n_ff, n_ctx;
    bool tied, untied;
} sh_train_shape;

typedef struct sh_train_options {
    const char *ckpt;    /* folder of the checkpoints */
    const char *dataset; /* folder of train.bin, val.bin, tokenizer.gguf */
    const char *init;    /* a model file to finetune; NULL: from scratch */
    bool resume;         /* from the checkpoint in `ckpt`, whose sizes and settings these are */
    sh_train_shape shape;
    sh_settings settings;
    int n_rank, n_here, n_thread; /* of all ranks those on this host; threads of each rank */
    int cpu[SH_MAX_TRAIN_CPU];    /* (n_cpu), for the ranks here, if there are enough */
    int n_cpu;
} sh_train_options;

/** SH_EARG: values that cannot be, in a sentence that names the flag. */
sh_err sh_train_check(const sh_train_options *o);

/* For the other ranks: the options as bytes. */
void sh_train_encode(const sh_train_options *o, sh_buf *b);
bool sh_train_is(const void *blob, size_t n);
/** *o points into the blob. SH_EARG: malformed. */
sh_err sh_train_decode(sh_train_options *o, const void *blob, size_t n);

/* What a run begins with. */
typedef struct sh_start {
    sh_model_file *tokenizer; /* of the dataset */
    int n_vocab;              /* its tokens */
    sh_model_file *init;      /* to finetune; NULL: none */
    sh_checkpoint checkpoint; /* to go on from; zeroed: none */
    sh_arch arch;
} sh_start;

/** Opens the files and makes the architecture. SH_EARG, SH_EFILE: what does not fit together.
 *  SH_ENOMEM: the model would need more memory than there is. Close with sh_start_close, which
 *  accepts a zeroed and a closed one. */
sh_err sh_start_open(sh_start *s, const sh_train_options *o);
/** The weights, and of a checkpoint all that training needs; *at is how far it is. */
sh_err sh_start_params(const sh_start *s, const sh_train_options *o, sh_params *p, sh_progress *at);
void sh_start_close(sh_start *s);

#endif
