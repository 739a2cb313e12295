/* Element types of tensors: one row each. */
#ifndef SH_BASE_DTYPE_H
#define SH_BASE_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Values are our own; the number in a GGUF file is in the row. */
typedef enum sh_dtype { SH_F32, SH_F16, SH_BF16, SH_Q8_0, SH_Q4_0, SH_N_DTYPE } sh_dtype;

typedef struct sh_dtype_info {
    const char *name; /* as people write it: "q8_0" */
    uint32_t gguf_id;
    int block;       /* elements of a block; 1 for plain types */
    int block_bytes; /* bytes of a block */
    /* n elements, a multiple of block */
    void (*to_f32)(float *y, const void *x, size_t n);
    void (*from_f32)(void *y, const float *x, size_t n);
} sh_dtype_info;

extern const sh_dtype_info sh_dtypes[SH_N_DTYPE];

/** The type of that name or GGUF number; -1 if unknown. */
int sh_dtype_by_name(const char *name);
int sh_dtype_by_gguf_id(uint32_t id);
/** The name of any GGUF type number, also of those this program does not read; NULL if unknown. */
const char *sh_gguf_type_name(uint32_t id);
/** "f32, f16, bf16, q8_0, q4_0" */
const char *sh_dtype_list(void);
/** Bytes of n elements (a multiple of the block). */
static inline size_t sh_dtype_bytes(sh_dtype t, size_t n)
{
    return n / (size_t)sh_dtypes[t].block * (size_t)sh_dtypes[t].block_bytes;
}

/* Single values. Rounding is to nearest, ties to even; NaN stays NaN. */
static inline float sh_f32_from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}
static inline uint32_t sh_f32_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}
static inline float sh_bf16_to_f32(uint16_t h)
{
    return sh_f32_from_bits((uint32_t)h << 16);
}
static inline uint16_t sh_bf16_from_f32(float f)
{
    uint32_t u = sh_f32_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
float sh_f16_to_f32(uint16_t h);
uint16_t sh_f16_from_f32(float f);

#endif
