/* Checkpoints in a folder: last.gguf, a model that runs, with last.opt, from which training goes on
 * with the very numbers of a run that was never broken off; and best.gguf, the model of the best
 * evaluation.
 *
 * A new pair is written as next.gguf and next.opt, each complete on the disk before it has that
 * name; then next.gguf becomes last.gguf, and next.opt last.opt. An .opt file carries the hash of
 * the weights it belongs to, so at every moment one complete pair can be told: the newest one is
 * taken. */
#ifndef SH_TRAIN_CHECKPOINT_H
#define SH_TRAIN_CHECKPOINT_H

#include "train/params.h"
#include "train/settings.h"

/* How far a run is. */
typedef struct sh_progress {
    int64_t iter;      /* iterations done */
    uint64_t n_tok;    /* tokens seen */
    uint64_t n_window; /* windows of the text drawn */
    double best_val;   /* the best validation loss; infinite before the first */
    int n_worse;       /* evaluations since then */
    double seconds;    /* of training, all parts of a broken run together */
} sh_progress;

typedef struct sh_checkpoint {
    sh_model_file *model;
    sh_file opt;
    sh_settings settings;
    sh_progress at;
    size_t moments_at; /* in opt: m, then v */
    uint64_t n_float;  /* of each */
} sh_checkpoint;

/** Opens the newest complete pair of the folder. SH_EFILE: there is none; the sentence says why.
 *  Close with sh_checkpoint_close, which accepts a zeroed and a closed one. */
sh_err sh_checkpoint_find(sh_checkpoint *c, const char *dir);
void sh_checkpoint_close(sh_checkpoint *c);

/** What an .opt file of n bytes says, and the hash of its weights; false if it is none or cut. For
 * c->model and c->opt nothing is done. */
bool sh_checkpoint_parse(sh_checkpoint *c, uint8_t hash[16], const void *p, size_t n);

/** Whether the folder holds a file of a checkpoint. */
bool sh_checkpoint_is_there(const char *dir);

/** w, m and v of the checkpoint's architecture. SH_EFILE: another one. */
sh_err sh_checkpoint_load(const sh_checkpoint *c, sh_params *p);

/** Before the first save of a run that goes on: gives the newest pair its final names. One process
 * does it, when no other is looking. */
sh_err sh_checkpoint_settle(const char *dir);

/** Writes a new pair; with `best` best.gguf is the same model. `tokenizer` gives the vocabulary.
 *  SH_ESYS: the pair that was there stays. */
sh_err sh_checkpoint_save(const char *dir, const sh_params *p, const sh_settings *s,
                          const sh_progress *at, const sh_model_file *tokenizer, bool best);

#endif
