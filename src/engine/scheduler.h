/* Which tokens go into the next step. Sequences wait for a slot, read their prompt in chunks, and
 * are then sampled token by token; with S stages, S microbatches of about equal size are on the
 * ring.
 *
 * Nothing here computes: the engine takes steps from it and brings back tokens. */
#ifndef SH_ENGINE_SCHEDULER_H
#define SH_ENGINE_SCHEDULER_H

#include <stdbool.h>

#include "comm/step.h"
#include "engine/text.h"
#include "shoal.h"

/* What the samples of a request share. */
typedef struct sh_request {
    uint64_t id;
    int n_ref; /* sequences that belong to it */
    shoal_sampling sampling;
    int n_predict;
    bool ignore_end, strip_space; /* the text's first space is not part of it */
    char **stop;
    int n_stop;
    float
        *logits; /* (n_vocab) of the prompt's last token, once known, while samples wait for them */
    double submit_s;
} sh_request;

typedef struct sh_sequence {
    sh_request *req;
    struct sh_sequence *next; /* in the waiting list or the list of ended ones */
    int sample;
    int slot;      /* -1: it has none */
    uint32_t *tok; /* prompt, then sampled tokens */
    size_t n_tok, n_prompt, n_sent, cap;
    int n_in_flight; /* microbatches on the ring that it is part of */
    uint64_t turn;   /* when it was last part of a step */
    bool done;
    sh_text text;
    double first_s, last_s; /* when its first and last tokens were sampled */
} sh_sequence;

/* A microbatch under way. seq[i] is the sequence of step.seq[i]. */
typedef struct sh_flight {
    sh_step step;
    sh_sequence **seq;
} sh_flight;

typedef struct sh_scheduler {
    int n_stage, n_slot, n_batch, n_ctx;
    sh_sequence **active;         /* (n_slot): who holds each slot, or NULL */
    sh_sequence *waiting, *ended; /* lists; ended ones are kept until sh_scheduler_sweep */
    sh_sequence **last_waiting;
    sh_step_op *op; /* for the next step, n_op of them, room for 4 n_slot */
    uint32_t n_op;
    sh_flight *flight; /* (n_stage): a queue, oldest first */
    int first_flight, n_flight;
    uint64_t n_step, turn;
} sh_scheduler;

sh_err sh_scheduler_open(sh_scheduler *s, int n_stage, int n_slot, int n_batch, int n_ctx);
void sh_scheduler_close(sh_scheduler *s);

/** Takes over a new sequence: it waits. */
void sh_scheduler_add(sh_scheduler *s, sh_sequence *q);

/** Gives free slots to waiting sequences. Returns one whose prompt another sample of its request
 * has already read (its logits are in req->logits), so that its first token can be sampled at once:
 * the caller then calls sh_scheduler_start or sh_scheduler_end on it, and this again. NULL: no
 * more. */
sh_sequence *sh_scheduler_admit(sh_scheduler *s);
/** Its first token is in: shares the prompt's positions with the sample that has them. */
void sh_scheduler_start(sh_scheduler *s, sh_sequence *q);

/** The next microbatch, or NULL: none is ready, or enough are under way. It counts as under way. */
sh_flight *sh_scheduler_next(sh_scheduler *s);
/** The oldest microbatch under way; NULL: none. */
sh_flight *sh_scheduler_oldest(sh_scheduler *s);
/** It has gone round. */
void sh_scheduler_retire(sh_scheduler *s);

/** A sampled token. SH_ENOMEM. */
sh_err sh_sequence_push(sh_sequence *q, uint32_t token);
/** The sequence has ended: its slot is free for the next at once. */
void sh_scheduler_end(sh_scheduler *s, sh_sequence *q);
/** Frees ended sequences that no microbatch under way refers to. */
void sh_scheduler_sweep(sh_scheduler *s);

bool sh_scheduler_is_idle(const sh_scheduler *s);
/** Whether some sequence's prompt is not yet read. */
bool sh_scheduler_reads_prompt(const sh_scheduler *s);

void sh_sequence_free(sh_sequence *q);
/** Gives one reference back; the last one frees. */
void sh_request_release(sh_request *r);

#endif
