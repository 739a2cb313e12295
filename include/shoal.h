/* Shoal: one language model on several devices, the same answer on any of them.
 *
 * The unit is a request, not a forward pass: submit requests, drive the engine with shoal_next, and
 * take events in whatever order they come. One thread at a time may use an engine; several engines
 * are independent. Strings and ids that go in are borrowed for the call; those that come out say
 * how long they live.
 *
 * Functions that can fail return SHOAL_OK or a code; shoal_error() then has one sentence for the
 * user. */
#ifndef SHOAL_H
#define SHOAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum shoal_err {
    SHOAL_OK = 0,
    SHOAL_EARG,   /* an argument is wrong; nothing changed */
    SHOAL_EFILE,  /* a file is missing, damaged, or of an unknown kind */
    SHOAL_ENOMEM, /* not enough memory; the sentence says how much was needed */
    SHOAL_ESYS,   /* the operating system refused something */
    SHOAL_EPEER,  /* a rank or node was lost or refused; the engine can only be closed */
} shoal_err;

/** The sentence of this thread's last failure; valid until its next one. */
const char *shoal_error(void);

typedef struct shoal shoal;

/* ---- opening ---- */

typedef struct shoal_options {
    const char
        *model;   /* path of a GGUF file, or "shape:NAME:TYPE": random weights, for measuring */
    int n_ctx;    /* positions of a sequence; 0: the model's, at most 4096 */
    int n_slot;   /* sequences at once; 0: 8 */
    int n_batch;  /* prompt tokens in one step; 0: 512 */
    int n_thread; /* per rank; 0: this host's cores shared out among ranks and local nodes */
    int n_rank;   /* tensor-parallel ranks of a stage, 1 to 8; 0: 1, or those of mpirun */
    int n_ring;   /* nodes of a ring on this host, started by shoal_open; 0: 1 */
    const char *nodes; /* JSON file of a ring over hosts; NULL: none */
    const char *arith; /* arithmetic of prompts: "auto", "int8", "bf16"; NULL: auto */
    const char *kv;    /* element type of the KV cache: "f16", "bf16", "f32", "q8_0"; NULL: f16 */
} shoal_options;

/** Loads the model, starts ranks and local nodes, joins the ring. *opt zeroed but for model is a
 * good start. SHOAL_EARG, _EFILE, _ENOMEM, _ESYS, _EPEER: nothing stays behind. Close with
 * shoal_close. */
shoal_err shoal_open(shoal **out, const shoal_options *opt);

/** Ends ranks and local nodes. Accepts NULL. Events taken before are gone with it. */
void shoal_close(shoal *s);

typedef struct shoal_info {
    const char *family; /* lives as long as the engine, as does `type` and `arith` */
    const char *arith;  /* of prompts: "int8" or "bf16" */
    const char *kv;
    int n_ctx, n_ctx_train, n_vocab, n_layer, n_embd, n_thread, n_rank, n_stage, n_slot;
    size_t weight_bytes; /* of this process's share */
    size_t memory_bytes; /* resident in this process now */
    double load_s;
    const char *type; /* of most of the weights: "q8_0" */
    const char *cpu;  /* the instruction set of the kernels: "amx" */
    /* What a token takes of the whole model, over all ranks and stages: bytes of packed weights of
     * the layers and of the head; bytes of KV cache for each position it looks at; operations, 2
     * for each multiply-add, for the same three. */
    uint64_t layer_bytes, head_bytes, pos_bytes, layer_ops, head_ops, pos_ops;
} shoal_info;

void shoal_get_info(const shoal *s, shoal_info *info);

/* What this host's cores that the engine uses (those of its ranks and local nodes too) can do. */
typedef struct shoal_ceiling {
    double read_bytes_per_s;  /* of memory, all of them reading at once */
    double prompt_ops_per_s;  /* in the arithmetic of prompts */
    double sampled_ops_per_s; /* in the arithmetic of sampled tokens */
    int n_thread;
} shoal_ceiling;

/** Measures, for less than a second, what they do now: on a shared host that changes from one
 * moment to the next. The engine should be idle. Needs 1 GiB of memory for the time. SHOAL_ENOMEM,
 * SHOAL_ESYS: the engine is as it was. */
shoal_err shoal_measure(const shoal *s, shoal_ceiling *ceiling);

/* ---- text ---- */

enum {
    SHOAL_BOS = 1,     /* put the token that begins a text in front, if the model wants one */
    SHOAL_SPECIAL = 2, /* text that spells a control token becomes that token */
};

/** Token ids of n bytes of text. *ids is malloc'ed; free it with free(). */
shoal_err shoal_tokenize(const shoal *s, const char *text, size_t n, int flags, uint32_t **ids,
                         size_t *n_ids);

/* ---- requests ---- */

typedef struct shoal_sampling {
    float temp;           /* 0: greedy */
    int top_k;            /* 0: all */
    float top_p;          /* 1: all */
    float min_p;          /* 0: all */
    float repeat_penalty; /* 1: none */
    int repeat_last_n;    /* tokens the penalty looks back on; -1: all */
    uint64_t seed;        /* sample i of a request draws from the stream (seed, i) */
} shoal_sampling;

typedef struct shoal_request {
    const uint32_t *ids; /* the prompt, n_ids token ids, each below n_vocab */
    size_t n_ids;
    int n_sample;     /* independent continuations; at least 1 */
    int first_sample; /* the number of the first of them (for its random stream and events) */
    int n_predict;    /* tokens of each at most; -1: until the context is full */
    bool ignore_end;  /* go on after a token that ends the text */
    shoal_sampling sampling;
    const char *const *stop; /* n_stop texts that end a sample; they are not part of its text */
    int n_stop;
} shoal_request;

/** Queues a request. *id: its number, never 0.
 *  SHOAL_EARG: an id out of range, an empty prompt, one that does not fit the context, a bad
 * sampling value; nothing changed. */
shoal_err shoal_submit(shoal *s, const shoal_request *request, uint64_t *id);

/** Ends all samples of a request; each still gets its SHOAL_END event. Unknown ids do nothing. */
void shoal_cancel(shoal *s, uint64_t id);

typedef enum shoal_finish {
    SHOAL_FINISH_LENGTH, /* n_predict tokens, or the context is full */
    SHOAL_FINISH_STOP,   /* a stop text */
    SHOAL_FINISH_EOS,    /* the model ended the text */
    SHOAL_FINISH_CANCEL,
} shoal_finish;

/** "length", "stop", "eos", "cancel" */
const char *shoal_finish_name(shoal_finish f);

typedef enum shoal_event_kind {
    SHOAL_IDLE,   /* nothing is queued or under way */
    SHOAL_TOKEN,  /* a sample has a new token */
    SHOAL_END,    /* a sample has ended */
    SHOAL_PROMPT, /* a step has read more of a sample's prompt, but not its end */
} shoal_event_kind;

typedef struct shoal_event {
    shoal_event_kind kind;
    uint64_t request;
    int sample;
    uint32_t token; /* SHOAL_TOKEN */
    const char
        *text; /* n_text bytes that may be shown now: whole UTF-8 characters as far as the model
                  made any, and never a part of a stop text. Valid until the next shoal_next. */
    size_t n_text;
    shoal_finish finish;    /* SHOAL_END, as all below */
    const uint32_t *tokens; /* the sample's n_token tokens, without the one that ended the text;
                               valid until the next shoal_next */
    size_t n_token;
    size_t n_prompt;      /* tokens of the prompt; SHOAL_PROMPT: those that are read */
    double first_s;       /* from submit to the sample's first token */
    double decode_s;      /* from its first token to its last */
    uint64_t logits_hash; /* of the bits of the last logits it sampled from */
} shoal_event;

/** Works until there is an event. SHOAL_EPEER: a rank or node was lost; the engine can only be
 * closed. SHOAL_EFILE: the model's logits are not numbers. */
shoal_err shoal_next(shoal *s, shoal_event *event);

typedef struct shoal_stats {
    uint64_t n_prompt_token, n_sampled_token, n_step;
    double prompt_s;        /* time in which at least one prompt was under way */
    double decode_s;        /* the rest of the time in which something was */
    uint32_t max_in_flight; /* microbatches that were on the ring at once */
} shoal_stats;

void shoal_get_stats(const shoal *s, shoal_stats *stats);

/* ---- the other processes ---- */

typedef struct shoal_worker_options {
    const char *listen; /* "ADDR:PORT"; port 0: any free one */
    const char *model;
    int n_thread, n_rank; /* as above */
    int report_fd; /* the port is written here once it is open, as decimal text; -1: nowhere */
    int stop_fd;   /* the worker ends when this becomes readable; -1: never */
} shoal_worker_options;

/** A node of a ring: serves starters, one after the other, until stop_fd says stop.
 *  SHOAL_EARG: the port is in use; other codes as shoal_open. */
shoal_err shoal_worker(const shoal_worker_options *opt);

#ifdef __cplusplus
}
#endif

#endif
