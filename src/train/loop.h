/* Training: iterations, evaluations, checkpoints, on every rank of a group. Ranks share the batch,
 * sum their gradients and make the same step, so they hold the same weights all the time. */
#ifndef SH_TRAIN_LOOP_H
#define SH_TRAIN_LOOP_H

#include "comm/group.h"
#include "train/setup.h"

/* What the one who asked for the training does meanwhile; on rank 0. */
typedef struct sh_train_hooks {
    void *arg;
    /* Whether to end after this iteration. */
    bool (*stop)(void *arg);
    /* After an evaluation: the model at `path` was written. ids: the first n of a validation text.
     */
    sh_err (*saved)(void *arg, const char *path, const int32_t *ids, int n);
} sh_train_hooks;

/** Trains on rank 0 until max_iters, the end of patience or hooks->stop. *stopped: it was the last.
 *  Says on the log (SH_LOG_INFO) how it goes. SH_EARG, SH_EFILE: nothing was written. SH_ESYS,
 *  SH_EPEER, and SH_EFILE for a loss that is no number: the last checkpoint stays. */
sh_err sh_train(const sh_train_options *o, const sh_train_hooks *hooks, bool *stopped);

/** Trains as another rank of the group, which it closes. */
sh_err sh_train_follow(sh_group *g);

#endif
