/* One token's vector: preparation for products, norm, activation, rotation. */
#include <math.h>
#include <string.h>

#include "kernels/avx512/avx512.h"

static void prepare_f32(void *y, const float *x, const sh_kdim *kd)
{
    for (int s = 0; s < kd->n_slice; s++)
        for (int p = kd->kp[s], k = kd->k[s]; p < kd->kp[s + 1]; p += 16, k += 16) {
            __mmask16 m = kd->k[s + 1] > k ? first_lanes(kd->k[s + 1] - k) : 0;
            _mm512_store_ps((float *)y + p, _mm512_maskz_loadu_ps(m, x + k));
        }
}

static void prepare_bf16(void *y, const float *x, const sh_kdim *kd)
{
    for (int s = 0; s < kd->n_slice; s++)
        for (int p = kd->kp[s], k = kd->k[s]; p < kd->kp[s + 1]; p += 16, k += 16) {
            __mmask16 m = kd->k[s + 1] > k ? first_lanes(kd->k[s + 1] - k) : 0;
            __m512i r = _mm512_srli_epi32(round_bf16(_mm512_maskz_loadu_ps(m, x + k)), 16);
            _mm256_store_si256((__m256i *)((uint16_t *)y + p), _mm512_cvtepi32_epi16(r));
        }
}

static void prepare_i8(void *y, const float *x, const sh_kdim *kd)
{
    const __m512 magic = _mm512_set1_ps(12582912.0f);
    int kp = kd->kp[kd->n_slice];
    int8_t *q = y;
    float *scale = (float *)(q + kp);
    int32_t *sum = (int32_t *)(scale + kp / SH_RUN);
    for (int s = 0; s < kd->n_slice; s++)
        for (int p = kd->kp[s], k = kd->k[s]; p < kd->kp[s + 1]; p += SH_RUN, k += SH_RUN) {
            int n = kd->k[s + 1] - k, b = p / SH_RUN;
            __m512 a = _mm512_maskz_loadu_ps(first_lanes(n), x + k);
            __m512 c = n > 16 ? _mm512_maskz_loadu_ps(first_lanes(n - 16), x + k + 16)
                              : _mm512_setzero_ps();
            const __m512i bits = _mm512_set1_epi32(0x7fffffff);
            uint32_t big = (uint32_t)_mm512_reduce_max_epi32(
                _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(a), bits),
                                 _mm512_and_si512(_mm512_castps_si512(c), bits)));
            float amax = sh_f32_from_bits(big), inv = 127.0f / amax;
            if (big >= 0x7f800000u || amax < 1e-30f) {
                memset(q + p, 0, SH_RUN);
                scale[b] = big >= 0x7f800000u ? NAN : 0;
                sum[b] = 0;
                continue;
            }
            __m512 v = _mm512_set1_ps(inv);
            __m512i i0 = _mm512_cvtps_epi32(_mm512_sub_ps(_mm512_fmadd_ps(a, v, magic), magic));
            __m512i i1 = _mm512_cvtps_epi32(_mm512_sub_ps(_mm512_fmadd_ps(c, v, magic), magic));
            _mm_storeu_si128((__m128i *)(q + p), _mm512_cvtepi32_epi8(i0));
            _mm_storeu_si128((__m128i *)(q + p + 16), _mm512_cvtepi32_epi8(i1));
            scale[b] = amax / 127.0f;
            sum[b] = _mm512_reduce_add_epi32(_mm512_add_epi32(i0, i1));
        }
}

static void rmsnorm(float *y, const float *x, const float *g, int n, float eps)
{
    __m512 lane = _mm512_setzero_ps();
    for (int i = 0; i < n; i += 16) {
        __mmask16 m = first_lanes(n - i);
        __m512 v = _mm512_maskz_loadu_ps(m, x + i);
        lane = _mm512_mask3_fmadd_ps(v, v, lane, m);
    }
    __m512 r = _mm512_set1_ps(1.0f / sqrtf(sum_halves(lane) / (float)n + eps));
    for (int i = 0; i < n; i += 16) {
        __mmask16 m = first_lanes(n - i);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(m, x + i), r);
        _mm512_mask_storeu_ps(y + i, m, _mm512_mul_ps(_mm512_maskz_loadu_ps(m, g + i), v));
    }
}

static void layernorm(float *y, const float *x, const float *g, const float *b, int n, float eps)
{
    __m512 sum = _mm512_setzero_ps(), square = sum;
    for (int i = 0; i < n; i += 16) {
        __mmask16 live = first_lanes(n - i);
        sum = _mm512_mask_add_ps(sum, live, sum, _mm512_maskz_loadu_ps(live, x + i));
    }
    const __m512 mean = _mm512_set1_ps(sum_halves(sum) / (float)n);
    for (int i = 0; i < n; i += 16) {
        __mmask16 live = first_lanes(n - i);
        __m512 d = _mm512_sub_ps(_mm512_maskz_loadu_ps(live, x + i), mean);
        square = _mm512_mask3_fmadd_ps(d, d, square, live);
    }
    const __m512 r = _mm512_set1_ps(1.0f / sqrtf(sum_halves(square) / (float)n + eps));
    for (int i = 0; i < n; i += 16) {
        __mmask16 live = first_lanes(n - i);
        __m512 v = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(live, x + i), mean), r);
        v = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(live, g + i), v,
                            _mm512_maskz_loadu_ps(live, b + i));
        _mm512_mask_storeu_ps(y + i, live, v);
    }
}

static void add(float *y, const float *x, size_t n)
{
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(y + i, _mm512_add_ps(_mm512_loadu_ps(y + i), _mm512_loadu_ps(x + i)));
    for (; i < n; i++) y[i] += x[i];
}

static void silu_mul(float *g, const float *u, size_t n)
{
    const __m512 one = _mm512_set1_ps(1.0f), sign = _mm512_set1_ps(-0.0f);
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = first_lanes(n - i >= 16 ? 16 : (int)(n - i));
        __m512 v = _mm512_maskz_loadu_ps(m, g + i);
        __m512 e = exp16(_mm512_xor_ps(v, sign));
        __m512 s = _mm512_div_ps(v, _mm512_add_ps(one, e));
        _mm512_mask_storeu_ps(g + i, m, _mm512_mul_ps(s, _mm512_maskz_loadu_ps(m, u + i)));
    }
}

static void gelu(float *x, size_t n)
{
    const __m512 one = _mm512_set1_ps(1.0f), sign = _mm512_set1_ps(-0.0f);
    const __m512 c1 = _mm512_set1_ps(SH_GELU_1), c3 = _mm512_set1_ps(SH_GELU_3);
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = first_lanes(n - i >= 16 ? 16 : (int)(n - i));
        __m512 v = _mm512_maskz_loadu_ps(m, x + i);
        __m512 u = _mm512_mul_ps(v, _mm512_fmadd_ps(_mm512_mul_ps(v, v), c3, c1));
        __m512 e = exp16(_mm512_xor_ps(u, sign));
        _mm512_mask_storeu_ps(x + i, m, _mm512_div_ps(v, _mm512_add_ps(one, e)));
    }
}

/* Eight pairs at once: out = fma(x0, A, x1 B) with A = c, s, c, s, .. and B = -s, c, -s, c, .. */
static void rope(float *x, const float *c, const float *s, int n_head, int head_dim, int n_rot)
{
    const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const __mmask16 odd = 0xaaaa;
    for (int i = 0; i < n_rot; i += 16) {
        __mmask16 m = first_lanes(n_rot - i),
                  half = first_lanes((n_rot - i) / 2 > 8 ? 8 : (n_rot - i) / 2);
        __m512 c2 = _mm512_permutexvar_ps(twice, _mm512_maskz_loadu_ps(half, c + i / 2));
        __m512 s2 = _mm512_permutexvar_ps(twice, _mm512_maskz_loadu_ps(half, s + i / 2));
        __m512 a = _mm512_mask_mov_ps(c2, odd, s2);
        __m512 b = _mm512_mask_mov_ps(_mm512_xor_ps(s2, _mm512_set1_ps(-0.0f)), odd, c2);
        for (int h = 0; h < n_head; h++) {
            float *p = x + (size_t)h * (size_t)head_dim + i;
            __m512 v = _mm512_maskz_loadu_ps(m, p);
            __m512 x1b = _mm512_mul_ps(_mm512_movehdup_ps(v), b);
            _mm512_mask_storeu_ps(p, m, _mm512_fmadd_ps(_mm512_moveldup_ps(v), a, x1b));
        }
    }
}

void sh_vector_avx512(sh_kernels *k)
{
    k->prepare[SH_FORM_F32] = prepare_f32;
    k->prepare[SH_FORM_BF16] = prepare_bf16;
    k->prepare[SH_FORM_I8] = prepare_i8;
    k->rmsnorm = rmsnorm;
    k->layernorm = layernorm;
    k->add = add;
    k->silu_mul = silu_mul;
    k->gelu = gelu;
    k->rope = rope;
}
