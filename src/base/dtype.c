/* Block layouts are those of GGUF:
 * q8_0: f16 scale d, 32 int8 q: x = d * q.   Source: the GGUF format, ggml-common.h block_q8_0.
 * q4_0: f16 scale d, 16 bytes: low nibbles are elements 0..15, high nibbles 16..31: x = d * (q -
 * 8). */
#include "base/dtype.h"

#include <math.h>

float sh_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exp = (h >> 10) & 31u, man = h & 0x3ffu;
    if (exp == 31) return sh_f32_from_bits(sign | 0x7f800000u | man << 13);
    if (exp) return sh_f32_from_bits(sign | (exp + 112) << 23 | man << 13);
    if (!man) return sh_f32_from_bits(sign);
    int shift = __builtin_clz(man) - 21; /* a subnormal half is a normal float */
    return sh_f32_from_bits(sign | (uint32_t)(113 - shift) << 23 | ((man << shift) & 0x3ffu) << 13);
}

uint16_t sh_f16_from_f32(float f)
{
    uint32_t u = sh_f32_bits(f), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (a >> 13 & 0x3ffu));
    if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds to infinity */
    if (a >= 0x38800000u)
        return (uint16_t)(sign | ((a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13));
    if (a < 0x33000000u) return (uint16_t)sign; /* at most half the least subnormal */
    uint32_t man = (a & 0x7fffffu) | 0x800000u, shift = 126u - (a >> 23);
    uint32_t half = man >> shift, rest = man & ((1u << shift) - 1), mid = 1u << (shift - 1);
    return (uint16_t)(sign | (half + (rest > mid || (rest == mid && (half & 1u)))));
}

static void f32_copy_to(float *y, const void *x, size_t n)
{
    memcpy(y, x, n * sizeof *y);
}
static void f32_copy_from(void *y, const float *x, size_t n)
{
    memcpy(y, x, n * sizeof *x);
}

static uint16_t load16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}
static void store16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static void f16_to(float *y, const void *x, size_t n)
{
    const uint8_t *p = x;
    for (size_t i = 0; i < n; i++) y[i] = sh_f16_to_f32(load16(p + 2 * i));
}
static void f16_from(void *y, const float *x, size_t n)
{
    uint8_t *p = y;
    for (size_t i = 0; i < n; i++) store16(p + 2 * i, sh_f16_from_f32(x[i]));
}
static void bf16_to(float *y, const void *x, size_t n)
{
    const uint8_t *p = x;
    for (size_t i = 0; i < n; i++) y[i] = sh_bf16_to_f32(load16(p + 2 * i));
}
static void bf16_from(void *y, const float *x, size_t n)
{
    uint8_t *p = y;
    for (size_t i = 0; i < n; i++) store16(p + 2 * i, sh_bf16_from_f32(x[i]));
}

static void q8_0_to(float *y, const void *x, size_t n)
{
    const uint8_t *b = x;
    for (size_t i = 0; i < n; i += 32, b += 34) {
        float d = sh_f16_to_f32(load16(b));
        for (int j = 0; j < 32; j++) y[i + (size_t)j] = d * (float)(int8_t)b[2 + j];
    }
}
/* d = amax / 127; q = x / d rounded to nearest even. */
static void q8_0_from(void *y, const float *x, size_t n)
{
    uint8_t *b = y;
    for (size_t i = 0; i < n; i += 32, b += 34) {
        float amax = 0;
        for (int j = 0; j < 32; j++) amax = fmaxf(amax, fabsf(x[i + (size_t)j]));
        float d = amax / 127.0f, id = d > 0 ? 1.0f / d : 0.0f;
        if (!isfinite(id)) d = id = 0;
        store16(b, sh_f16_from_f32(d));
        for (int j = 0; j < 32; j++) {
            float v = x[i + (size_t)j] * id;
            v = v < -127 ? -127 : v > 127 ? 127 : v == v ? v : 0;
            b[2 + j] = (uint8_t)(int8_t)lrintf(v);
        }
    }
}
static void q4_0_to(float *y, const void *x, size_t n)
{
    const uint8_t *b = x;
    for (size_t i = 0; i < n; i += 32, b += 18) {
        float d = sh_f16_to_f32(load16(b));
        for (int j = 0; j < 16; j++) {
            y[i + (size_t)j] = d * (float)((b[2 + j] & 15) - 8);
            y[i + (size_t)j + 16] = d * (float)((b[2 + j] >> 4) - 8);
        }
    }
}
/* d = the element of largest magnitude / -8, so that it is met exactly by q = 0. */
static void q4_0_from(void *y, const float *x, size_t n)
{
    uint8_t *b = y;
    for (size_t i = 0; i < n; i += 32, b += 18) {
        float big = 0;
        uint8_t q[32];
        for (int j = 0; j < 32; j++)
            if (fabsf(x[i + (size_t)j]) > fabsf(big)) big = x[i + (size_t)j];
        float d = big / -8.0f, id = d != 0 ? 1.0f / d : 0.0f;
        if (!isfinite(id)) d = id = 0;
        for (int j = 0; j < 32; j++) {
            float v = x[i + (size_t)j] * id + 8.5f;
            q[j] = (uint8_t)(v < 0 ? 0 : v > 15 ? 15 : v == v ? v : 8);
        }
        store16(b, sh_f16_from_f32(d));
        for (int j = 0; j < 16; j++) b[2 + j] = (uint8_t)(q[j] | q[j + 16] << 4);
    }
}

const sh_dtype_info sh_dtypes[SH_N_DTYPE] = {
    [SH_F32] = {"f32", 0, 1, 4, f32_copy_to, f32_copy_from},
    [SH_F16] = {"f16", 1, 1, 2, f16_to, f16_from},
    [SH_BF16] = {"bf16", 30, 1, 2, bf16_to, bf16_from},
    [SH_Q8_0] = {"q8_0", 8, 32, 34, q8_0_to, q8_0_from},
    [SH_Q4_0] = {"q4_0", 2, 32, 18, q4_0_to, q4_0_from},
};

int sh_dtype_by_name(const char *name)
{
    for (int t = 0; t < SH_N_DTYPE; t++)
        if (strcmp(sh_dtypes[t].name, name) == 0) return t;
    return -1;
}

int sh_dtype_by_gguf_id(uint32_t id)
{
    for (int t = 0; t < SH_N_DTYPE; t++)
        if (sh_dtypes[t].gguf_id == id) return t;
    return -1;
}

const char *sh_gguf_type_name(uint32_t id)
{
    static const char *const name[] = {
        "f32",   "f16",        "q4_0",       "q4_1",       "q4_2",     "q4_3",     "q5_0",
        "q5_1",  "q8_0",       "q8_1",       "q2_k",       "q3_k",     "q4_k",     "q5_k",
        "q6_k",  "q8_k",       "iq2_xxs",    "iq2_xs",     "iq3_xxs",  "iq1_s",    "iq4_nl",
        "iq3_s", "iq2_s",      "iq4_xs",     "i8",         "i16",      "i32",      "i64",
        "f64",   "iq1_m",      "bf16",       "q4_0_4_4",   "q4_0_4_8", "q4_0_8_8", "tq1_0",
        "tq2_0", "iq4_nl_4_4", "iq4_nl_4_8", "iq4_nl_8_8", "mxfp4",
    };
    return id < sizeof name / sizeof *name ? name[id] : NULL;
}

const char *sh_dtype_list(void)
{
    return "f32, f16, bf16, q8_0, q4_0";
}
