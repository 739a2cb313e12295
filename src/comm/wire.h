/* The frames of the ring, as bytes: what docs/protocol.md says. Every frame begins with the magic
 * "shoa", the protocol version and the type; all numbers are little-endian; a frame is exactly as
 * long as its fields. */
#ifndef SH_COMM_WIRE_H
#define SH_COMM_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cursor.h"
#include "base/err.h"
#include "comm/ring.h"
#include "comm/step.h"

enum {
    SH_SESSION_BYTES = 16,
    SH_STEP_HEAD_BYTES =
        8 + SH_SESSION_BYTES,    /* before the step in the first part of a data message */
    SH_CONTROL_MAX_BYTES = 2048, /* longest control frame that is taken in */
    SH_ACTIVATION_MAX_BYTES = 1 << 30,
};

typedef enum sh_frame_type {
    SH_FRAME_HELLO = 1,
    SH_FRAME_WELCOME,
    SH_FRAME_REFUSE,
    SH_FRAME_LOAD,
    SH_FRAME_READY,
    SH_FRAME_START,
    SH_FRAME_STARTED,
    SH_FRAME_END,
    SH_FRAME_FAIL,
    SH_FRAME_STEP, /* on data connections only; see sh_wire_put_step */
} sh_frame_type;

/* A control frame; only the fields of its type mean something. */
typedef struct sh_frame {
    sh_frame_type type;
    uint16_t protocol;                 /* of the sender */
    uint8_t session[SH_SESSION_BYTES]; /* HELLO */
    sh_welcome welcome;                /* WELCOME */
    sh_load load;                      /* LOAD */
    uint16_t port;   /* LOAD: data port to bind, 0 any. READY: the one bound. START: the next's */
    bool hearsay;    /* FAIL: the sentence is about a connection, whose other end may be to blame */
    char host[256];  /* START: the next node's address */
    char text[1024]; /* REFUSE, FAIL: a sentence. START: the next node's name in messages */
} sh_frame;

/** Appends the frame. Sentences are cut at 1023 bytes; control characters in them become spaces. */
void sh_wire_encode(const sh_frame *f, sh_buf *b);
/** Takes apart any frame but STEP. HELLO and REFUSE are understood from every protocol version, all
 *  others only from ours. SH_EPEER says what is wrong. */
sh_err sh_wire_decode(sh_frame *f, const void *p, size_t n);

/** What a LOAD may ask for. SH_EARG says what is out of range. */
sh_err sh_wire_check_load(const sh_load *load);

/** First part of a data message. */
void sh_wire_put_step(sh_buf *b, const uint8_t session[SH_SESSION_BYTES], const sh_step *s);
/** Is this the first part of a data message of that session? Says nothing of the step in it. */
bool sh_wire_is_step_of(const void *p, size_t n, const uint8_t session[SH_SESSION_BYTES]);
/** The step of a message for which sh_wire_is_step_of holds. Errors as sh_step_decode. */
sh_err sh_wire_get_step(sh_step *s, const void *p, size_t n, const sh_step_limits *limits);

/** Second part: n floats, 4 * n bytes. */
void sh_wire_put_floats(void *bytes, const float *x, size_t n);
void sh_wire_get_floats(float *x, const void *bytes, size_t n);

#endif
