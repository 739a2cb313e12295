/* Fuzz target: any bytes as every frame of the ring. What is accepted is within its limits, and is
 * the only way to write what it says. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "comm/wire.h"

static const sh_step_limits limits = {.n_slot = 5, .n_ctx = 200, .n_batch = 64};

static void must(int holds)
{
    if (!holds) abort();
}

static void check_step(const sh_step *s)
{
    uint64_t n_tok = 0;
    for (uint32_t i = 0; i < s->n_op; i++) {
        must(s->op[i].slot < limits.n_slot && s->op[i].src < limits.n_slot);
        must(s->op[i].n_pos <= limits.n_ctx);
    }
    for (uint32_t i = 0; i < s->n_seq; i++) {
        must(s->seq[i].slot < limits.n_slot && s->seq[i].n_tok > 0);
        must((uint64_t)s->seq[i].pos + s->seq[i].n_tok <= limits.n_ctx);
        n_tok += s->seq[i].n_tok;
    }
    must(n_tok == s->n_tok && n_tok <= limits.n_batch);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static sh_step step; /* used again and again, as a node does */
    sh_frame f;
    sh_buf b = {0};
    if (sh_wire_decode(&f, data, n) == SH_OK && f.protocol == SH_PROTOCOL) {
        sh_wire_encode(&f, &b);
        must(b.n == n && memcmp(b.p, data, n) == 0);
        if (f.type == SH_FRAME_LOAD) must(sh_wire_check_load(&f.load) == SH_OK);
    }
    b.n = 0;
    if (n >= SH_STEP_HEAD_BYTES) { /* of a session, whichever the bytes name */
        uint8_t session[SH_SESSION_BYTES];
        memcpy(session, data + SH_STEP_HEAD_BYTES - SH_SESSION_BYTES, sizeof session);
        if (sh_wire_is_step_of(data, n, session) && !sh_wire_get_step(&step, data, n, &limits)) {
            check_step(&step);
            sh_wire_put_step(&b, session, &step);
            must(b.n == n && memcmp(b.p, data, n) == 0);
        }
    }
    b.n = 0;
    sh_cursor c = sh_cursor_of(data, n);
    if (sh_step_decode(&step, &c, &limits) == SH_OK) {
        check_step(&step);
        sh_step_encode(&step, &b);
        must(b.n == n - sh_cursor_left(&c) && memcmp(b.p, data, b.n) == 0);
        must(b.n <= sh_step_max_bytes(&limits));
    }
    sh_buf_free(&b);
    return 0;
}
