#include "base/cursor.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

const uint8_t *sh_get_bytes(sh_cursor *c, size_t n)
{
    const uint8_t *p = c->p;
    if (c->bad || n > sh_cursor_left(c)) {
        c->bad = true;
        return NULL;
    }
    c->p += n;
    return p;
}

static uint64_t get_le(sh_cursor *c, int n)
{
    const uint8_t *p = sh_get_bytes(c, (size_t)n);
    uint64_t v = 0;
    for (int i = 0; p && i < n; i++) v |= (uint64_t)p[i] << (8 * i);
    return v;
}

uint8_t sh_get_u8(sh_cursor *c)
{
    return (uint8_t)get_le(c, 1);
}
uint16_t sh_get_u16(sh_cursor *c)
{
    return (uint16_t)get_le(c, 2);
}
uint32_t sh_get_u32(sh_cursor *c)
{
    return (uint32_t)get_le(c, 4);
}
uint64_t sh_get_u64(sh_cursor *c)
{
    return get_le(c, 8);
}
float sh_get_f32(sh_cursor *c)
{
    uint32_t u = sh_get_u32(c);
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}
double sh_get_f64(sh_cursor *c)
{
    uint64_t u = sh_get_u64(c);
    double f;
    memcpy(&f, &u, sizeof f);
    return f;
}

void sh_put_bytes(sh_buf *b, const void *p, size_t n)
{
    if (b->bad || n > SIZE_MAX - b->n ||
        sh_grow(&b->p, &b->cap, b->n + n, 1, "a message") != SH_OK) {
        b->bad = true;
        return;
    }
    if (n) memcpy(b->p + b->n, p, n);
    b->n += n;
}

static void put_le(sh_buf *b, uint64_t v, int n)
{
    uint8_t p[8];
    for (int i = 0; i < n; i++) p[i] = (uint8_t)(v >> (8 * i));
    sh_put_bytes(b, p, (size_t)n);
}

void sh_put_u8(sh_buf *b, uint8_t v)
{
    put_le(b, v, 1);
}
void sh_put_u16(sh_buf *b, uint16_t v)
{
    put_le(b, v, 2);
}
void sh_put_u32(sh_buf *b, uint32_t v)
{
    put_le(b, v, 4);
}
void sh_put_u64(sh_buf *b, uint64_t v)
{
    put_le(b, v, 8);
}
void sh_put_f32(sh_buf *b, float v)
{
    uint32_t u;
    memcpy(&u, &v, sizeof u);
    put_le(b, u, 4);
}
void sh_put_f64(sh_buf *b, double v)
{
    uint64_t u;
    memcpy(&u, &v, sizeof u);
    put_le(b, u, 8);
}

void sh_buf_free(sh_buf *b)
{
    free(b->p);
    *b = (sh_buf){0};
}
