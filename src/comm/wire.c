/* The frames of the ring: structs to bytes and back, every length and range checked on the way in.
 */
#define _GNU_SOURCE
#include "comm/wire.h"

#include <inttypes.h>
#include <string.h>

static const uint8_t magic[4] = {'s', 'h', 'o', 'a'};

static void put_head(sh_buf *b, uint16_t protocol, sh_frame_type type)
{
    sh_put_bytes(b, magic, sizeof magic);
    sh_put_u16(b, protocol);
    sh_put_u16(b, (uint16_t)type);
}

static bool get_head(sh_cursor *c, uint16_t *protocol, uint16_t *type)
{
    const uint8_t *m = sh_get_bytes(c, sizeof magic);
    *protocol = sh_get_u16(c);
    *type = sh_get_u16(c);
    return !c->bad && memcmp(m, magic, sizeof magic) == 0;
}

/* Text is a u16 length and that many bytes, without a NUL. What arrives may be shown on a terminal,
 * so control characters do not travel. */
static bool is_control(unsigned char ch)
{
    return ch < 0x20 || ch == 0x7f;
}

static void put_text(sh_buf *b, const char *s, size_t cap)
{
    size_t n = strnlen(s, cap - 1);
    sh_put_u16(b, (uint16_t)n);
    for (size_t i = 0; i < n; i++) sh_put_u8(b, is_control((uint8_t)s[i]) ? ' ' : (uint8_t)s[i]);
}

static void get_text(sh_cursor *c, char *out, size_t cap)
{
    size_t n = sh_get_u16(c);
    const uint8_t *p = n < cap ? sh_get_bytes(c, n) : NULL;
    out[0] = '\0';
    if (!p) {
        c->bad = true;
        return;
    }
    for (size_t i = 0; i < n; i++) c->bad |= is_control(p[i]);
    memcpy(out, p, n);
    out[n] = '\0';
}

static void get_array(sh_cursor *c, uint8_t *out, size_t n)
{
    const uint8_t *p = sh_get_bytes(c, n);
    if (p) memcpy(out, p, n);
}

static bool get_bool(sh_cursor *c)
{
    uint8_t v = sh_get_u8(c);
    c->bad |= v > 1;
    return v == 1;
}

static void put_welcome(sh_buf *b, const sh_welcome *w)
{
    sh_put_bytes(b, w->model_hash, sizeof w->model_hash);
    sh_put_u32(b, w->n_layer);
    sh_put_u32(b, w->n_embd);
    sh_put_u32(b, w->n_rank);
    sh_put_u8(b, w->has_amx);
    put_text(b, w->version, sizeof w->version);
}

static void get_welcome(sh_cursor *c, sh_welcome *w)
{
    get_array(c, w->model_hash, sizeof w->model_hash);
    w->n_layer = sh_get_u32(c);
    w->n_embd = sh_get_u32(c);
    w->n_rank = sh_get_u32(c);
    w->has_amx = get_bool(c);
    get_text(c, w->version, sizeof w->version);
}

static void put_load(sh_buf *b, const sh_load *l)
{
    const uint32_t v[] = {l->stage, l->n_stage, l->layer_lo, l->layer_hi, l->n_embd,
                          l->n_ctx, l->n_slot,  l->n_batch,  l->arith,    l->kv};
    sh_put_bytes(b, l->model_hash, sizeof l->model_hash);
    for (size_t i = 0; i < sizeof v / sizeof v[0]; i++) sh_put_u32(b, v[i]);
}

static void get_load(sh_cursor *c, sh_load *l)
{
    uint32_t *v[] = {&l->stage, &l->n_stage, &l->layer_lo, &l->layer_hi, &l->n_embd,
                     &l->n_ctx, &l->n_slot,  &l->n_batch,  &l->arith,    &l->kv};
    get_array(c, l->model_hash, sizeof l->model_hash);
    for (size_t i = 0; i < sizeof v / sizeof v[0]; i++) *v[i] = sh_get_u32(c);
    c->bad |= sh_wire_check_load(l) != SH_OK;
}

sh_err sh_wire_check_load(const sh_load *l)
{
    if (l->n_stage > SH_MAX_STAGE || l->stage >= l->n_stage)
        return sh_fail(SH_EARG, "stage %" PRIu32 " of %" PRIu32 ": there can be at most %d",
                       l->stage, l->n_stage, SH_MAX_STAGE);
    if (l->layer_lo > l->layer_hi)
        return sh_fail(SH_EARG, "layers %" PRIu32 " to %" PRIu32 " are not a range", l->layer_lo,
                       l->layer_hi);
    if (!l->n_embd || !l->n_batch || !l->n_ctx || !l->n_slot || l->n_slot > 1 << 20)
        return sh_fail(SH_EARG, "a size of the session is 0 or there are over a million slots");
    if ((uint64_t)l->n_embd * l->n_batch > SH_ACTIVATION_MAX_BYTES / 4)
        return sh_fail(SH_EARG,
                       "a microbatch of %" PRIu32 " tokens with %" PRIu32
                       " floats is over 1 GiB; make "
                       "it smaller",
                       l->n_batch, l->n_embd);
    return SH_OK;
}

void sh_wire_encode(const sh_frame *f, sh_buf *b)
{
    put_head(b, f->protocol, f->type);
    switch (f->type) {
    case SH_FRAME_HELLO:
        sh_put_bytes(b, f->session, sizeof f->session);
        break;
    case SH_FRAME_WELCOME:
        put_welcome(b, &f->welcome);
        break;
    case SH_FRAME_FAIL:
        sh_put_u8(b, f->hearsay);
        put_text(b, f->text, sizeof f->text);
        break;
    case SH_FRAME_REFUSE:
        put_text(b, f->text, sizeof f->text);
        break;
    case SH_FRAME_LOAD:
        sh_put_u16(b, f->port);
        put_load(b, &f->load);
        break;
    case SH_FRAME_READY:
        sh_put_u16(b, f->port);
        break;
    case SH_FRAME_START:
        sh_put_u16(b, f->port);
        put_text(b, f->host, sizeof f->host);
        put_text(b, f->text, sizeof f->text);
        break;
    case SH_FRAME_STARTED:
    case SH_FRAME_END:
    case SH_FRAME_STEP:
        break;
    }
}

sh_err sh_wire_decode(sh_frame *f, const void *p, size_t n)
{
    sh_cursor c = sh_cursor_of(p, n);
    uint16_t type;
    *f = (sh_frame){0};
    if (!get_head(&c, &f->protocol, &type))
        return sh_fail(SH_EPEER, "%zu bytes that are not a frame of shoal", n);
    f->type = (sh_frame_type)type;
    /* These two keep their first fields in all versions, so that a mismatch can be said. */
    bool any_version = type == SH_FRAME_HELLO || type == SH_FRAME_REFUSE;
    if (f->protocol != SH_PROTOCOL && !any_version)
        return sh_fail(SH_EPEER, "a frame of protocol %u, this is protocol %d", f->protocol,
                       SH_PROTOCOL);
    switch (type) {
    case SH_FRAME_HELLO:
        get_array(&c, f->session, sizeof f->session);
        break;
    case SH_FRAME_WELCOME:
        get_welcome(&c, &f->welcome);
        break;
    case SH_FRAME_FAIL:
        f->hearsay = get_bool(&c);
        get_text(&c, f->text, sizeof f->text);
        break;
    case SH_FRAME_REFUSE:
        get_text(&c, f->text, sizeof f->text);
        break;
    case SH_FRAME_LOAD:
        f->port = sh_get_u16(&c);
        get_load(&c, &f->load);
        break;
    case SH_FRAME_READY:
        f->port = sh_get_u16(&c);
        c.bad |= f->port == 0;
        break;
    case SH_FRAME_START:
        f->port = sh_get_u16(&c);
        get_text(&c, f->host, sizeof f->host);
        get_text(&c, f->text, sizeof f->text);
        c.bad |= f->port == 0;
        break;
    case SH_FRAME_STARTED:
    case SH_FRAME_END:
        break;
    default:
        return sh_fail(SH_EPEER, "a frame of unknown type %u", type);
    }
    if (c.bad || (sh_cursor_left(&c) && f->protocol == SH_PROTOCOL))
        return sh_fail(SH_EPEER, "a frame of type %u with bad content (%zu bytes)", type, n);
    return SH_OK;
}

void sh_wire_put_step(sh_buf *b, const uint8_t session[SH_SESSION_BYTES], const sh_step *s)
{
    put_head(b, SH_PROTOCOL, SH_FRAME_STEP);
    sh_put_bytes(b, session, SH_SESSION_BYTES);
    sh_step_encode(s, b);
}

bool sh_wire_is_step_of(const void *p, size_t n, const uint8_t session[SH_SESSION_BYTES])
{
    sh_cursor c = sh_cursor_of(p, n);
    uint16_t protocol, type;
    if (!get_head(&c, &protocol, &type) || protocol != SH_PROTOCOL || type != SH_FRAME_STEP)
        return false;
    const uint8_t *s = sh_get_bytes(&c, SH_SESSION_BYTES);
    return s && memcmp(s, session, SH_SESSION_BYTES) == 0;
}

sh_err sh_wire_get_step(sh_step *s, const void *p, size_t n, const sh_step_limits *limits)
{
    sh_cursor c = sh_cursor_of(p, n);
    sh_get_bytes(&c, SH_STEP_HEAD_BYTES);
    SH_TRY(sh_step_decode(s, &c, limits));
    if (sh_cursor_left(&c) == 0) return SH_OK;
    sh_fail(SH_EPEER, "step %" PRIu64 " has %zu bytes too many", s->id, sh_cursor_left(&c));
    sh_step_clear(s);
    return SH_EPEER;
}

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
void sh_wire_put_floats(void *bytes, const float *x, size_t n)
{
    if (n) memcpy(bytes, x, n * 4);
}

void sh_wire_get_floats(float *x, const void *bytes, size_t n)
{
    if (n) memcpy(x, bytes, n * 4);
}
#else
void sh_wire_put_floats(void *bytes, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, &x[i], 4);
        u = __builtin_bswap32(u);
        memcpy((uint8_t *)bytes + 4 * i, &u, 4);
    }
}

void sh_wire_get_floats(float *x, const void *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, (const uint8_t *)bytes + 4 * i, 4);
        u = __builtin_bswap32(u);
        memcpy(&x[i], &u, 4);
    }
}
#endif
