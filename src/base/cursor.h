/* A bounds-checked reader and a growing writer of little-endian bytes: the only way that bytes from
 * files, sockets and other processes are taken apart. A read past the end sets `bad` and gives
 * zeros; check `bad` once after a group of reads. */
#ifndef SH_BASE_CURSOR_H
#define SH_BASE_CURSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

typedef struct sh_cursor {
    const uint8_t *p, *end;
    bool bad; /* a read went past the end */
} sh_cursor;

static inline sh_cursor sh_cursor_of(const void *p, size_t n)
{
    return (sh_cursor){.p = p, .end = n ? (const uint8_t *)p + n : p}; /* p may be NULL for none */
}
static inline size_t sh_cursor_left(const sh_cursor *c)
{
    return (size_t)(c->end - c->p);
}
/** n bytes in place, or NULL and `bad`. */
const uint8_t *sh_get_bytes(sh_cursor *c, size_t n);
uint8_t sh_get_u8(sh_cursor *c);
uint16_t sh_get_u16(sh_cursor *c);
uint32_t sh_get_u32(sh_cursor *c);
uint64_t sh_get_u64(sh_cursor *c);
float sh_get_f32(sh_cursor *c);
double sh_get_f64(sh_cursor *c);

/* The writer owns its memory; free with sh_buf_free. A failed allocation sets `bad`. */
typedef struct sh_buf {
    uint8_t *p;
    size_t n, cap;
    bool bad;
} sh_buf;

void sh_put_bytes(sh_buf *b, const void *p, size_t n);
void sh_put_u8(sh_buf *b, uint8_t v);
void sh_put_u16(sh_buf *b, uint16_t v);
void sh_put_u32(sh_buf *b, uint32_t v);
void sh_put_u64(sh_buf *b, uint64_t v);
void sh_put_f32(sh_buf *b, float v);
void sh_put_f64(sh_buf *b, double v);
void sh_buf_free(sh_buf *b);

#endif
