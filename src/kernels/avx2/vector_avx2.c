/* What happens to one token's vector. Whole steps of 8 in AVX2, what is left as in C. */
#include "kernels/avx2/avx2.h"

static void prepare_f32(void *y, const float *x, const sh_kdim *kd)
{
    for (int s = 0; s < kd->n_slice; s++) {
        size_t n = (size_t)(kd->k[s + 1] - kd->k[s]), np = (size_t)(kd->kp[s + 1] - kd->kp[s]);
        float *out = (float *)y + kd->kp[s];
        memcpy(out, x + kd->k[s], n * sizeof *out);
        memset(out + n, 0, (np - n) * sizeof *out);
    }
}

static void prepare_bf16(void *y, const float *x, const sh_kdim *kd)
{
    for (int s = 0; s < kd->n_slice; s++) {
        int n = kd->k[s + 1] - kd->k[s], np = kd->kp[s + 1] - kd->kp[s], i = 0;
        uint16_t *out = (uint16_t *)y + kd->kp[s];
        const float *in = x + kd->k[s];
        for (; i + 16 <= n; i += 16) {
            __m256i a = _mm256_srli_epi32(sh_round_bf16(_mm256_loadu_ps(in + i)), 16);
            __m256i b = _mm256_srli_epi32(sh_round_bf16(_mm256_loadu_ps(in + i + 8)), 16);
            a = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
            _mm256_storeu_si256((__m256i *)(out + i), a);
        }
        for (; i < n; i++) out[i] = sh_bf16_from_f32(in[i]);
        memset(out + n, 0, (size_t)(np - n) * sizeof *out);
    }
}

/* The largest of 8 integers, and their sum. */
SH_INLINE int max8(__m256i v)
{
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    return _mm_cvtsi128_si32(m);
}
SH_INLINE int sum8(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return _mm_cvtsi128_si32(s);
}

static void quantise_block(int8_t *q, float *scale, int32_t *sum, const float *x)
{
    const __m256i clear = _mm256_set1_epi32(0x7fffffff);
    const __m256 magic = _mm256_set1_ps(12582912.0f);
    __m256 v[4];
    __m256i big = _mm256_setzero_si256(), r[4];
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_loadu_ps(x + i * 8);
        big = _mm256_max_epi32(big, _mm256_and_si256(_mm256_castps_si256(v[i]), clear));
    }
    uint32_t bits = (uint32_t)max8(big);
    float amax = sh_f32_from_bits(bits);
    memset(q, 0, SH_RUN);
    *sum = 0;
    *scale = bits >= 0x7f800000u ? NAN : 0.0f;
    if (bits >= 0x7f800000u || amax < 1e-30f) return;
    *scale = amax / 127.0f;
    const __m256 inv = _mm256_set1_ps(127.0f / amax);
    for (int i = 0; i < 4; i++)
        r[i] = _mm256_cvtps_epi32(_mm256_sub_ps(_mm256_fmadd_ps(v[i], inv, magic), magic));
    *sum = sum8(_mm256_add_epi32(_mm256_add_epi32(r[0], r[1]), _mm256_add_epi32(r[2], r[3])));
    /* packing works in halves of 128 bits: put their dwords in order */
    __m256i p = _mm256_packs_epi16(_mm256_packs_epi32(r[0], r[1]), _mm256_packs_epi32(r[2], r[3]));
    p = _mm256_permutevar8x32_epi32(p, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)q, p);
}

static void prepare_i8(void *y, const float *x, const sh_kdim *kd)
{
    int kp = kd->kp[kd->n_slice];
    int8_t *q = y;
    float *scale = (float *)(q + kp);
    int32_t *sum = (int32_t *)(scale + kp / SH_RUN);
    for (int s = 0; s < kd->n_slice; s++)
        for (int p = kd->kp[s], k = kd->k[s]; p < kd->kp[s + 1]; p += SH_RUN, k += SH_RUN) {
            float last[SH_RUN] = {0}; /* zeros change neither the largest nor the sum */
            int n = kd->k[s + 1] - k;
            if (n < SH_RUN) memcpy(last, x + k, (size_t)n * sizeof *x);
            quantise_block(q + p, scale + p / SH_RUN, sum + p / SH_RUN, n < SH_RUN ? last : x + k);
        }
}

static void rmsnorm(float *y, const float *x, const float *g, int n, float eps)
{
    float lane[SH_LANES];
    __m256 a = _mm256_setzero_ps(), b = a;
    int i = 0;
    for (; i + SH_LANES <= n; i += SH_LANES) {
        __m256 u = _mm256_loadu_ps(x + i), v = _mm256_loadu_ps(x + i + 8);
        a = _mm256_fmadd_ps(u, u, a);
        b = _mm256_fmadd_ps(v, v, b);
    }
    _mm256_storeu_ps(lane, a);
    _mm256_storeu_ps(lane + 8, b);
    for (; i < n; i++) lane[i % SH_LANES] = fmaf(x[i], x[i], lane[i % SH_LANES]);
    float r = 1.0f / sqrtf(sh_sum_lanes(lane) / (float)n + eps);
    const __m256 rv = _mm256_set1_ps(r);
    for (i = 0; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_loadu_ps(g + i),
                                              _mm256_mul_ps(_mm256_loadu_ps(x + i), rv)));
    for (; i < n; i++) y[i] = g[i] * (x[i] * r);
}

static void layernorm(float *y, const float *x, const float *g, const float *b, int n, float eps)
{
    float lane[SH_LANES];
    __m256 s0 = _mm256_setzero_ps(), s1 = s0, q0 = s0, q1 = s0;
    int whole = n / SH_LANES * SH_LANES, i;
    for (i = 0; i < whole; i += SH_LANES) {
        s0 = _mm256_add_ps(s0, _mm256_loadu_ps(x + i));
        s1 = _mm256_add_ps(s1, _mm256_loadu_ps(x + i + 8));
    }
    _mm256_storeu_ps(lane, s0);
    _mm256_storeu_ps(lane + 8, s1);
    for (; i < n; i++) lane[i % SH_LANES] += x[i];
    float mean = sh_sum_lanes(lane) / (float)n;
    const __m256 m = _mm256_set1_ps(mean);
    for (i = 0; i < whole; i += SH_LANES) {
        __m256 u = _mm256_sub_ps(_mm256_loadu_ps(x + i), m);
        __m256 v = _mm256_sub_ps(_mm256_loadu_ps(x + i + 8), m);
        q0 = _mm256_fmadd_ps(u, u, q0);
        q1 = _mm256_fmadd_ps(v, v, q1);
    }
    _mm256_storeu_ps(lane, q0);
    _mm256_storeu_ps(lane + 8, q1);
    for (; i < n; i++) lane[i % SH_LANES] = fmaf(x[i] - mean, x[i] - mean, lane[i % SH_LANES]);
    float r = 1.0f / sqrtf(sh_sum_lanes(lane) / (float)n + eps);
    const __m256 rv = _mm256_set1_ps(r);
    for (i = 0; i + 8 <= n; i += 8) {
        __m256 v = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + i), m), rv);
        _mm256_storeu_ps(y + i, _mm256_fmadd_ps(_mm256_loadu_ps(g + i), v, _mm256_loadu_ps(b + i)));
    }
    for (; i < n; i++) y[i] = fmaf(g[i], (x[i] - mean) * r, b[i]);
}

static void add(float *y, const float *x, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_add_ps(_mm256_loadu_ps(y + i), _mm256_loadu_ps(x + i)));
    for (; i < n; i++) y[i] += x[i];
}

static void silu_mul(float *g, const float *u, size_t n)
{
    const __m256 one = _mm256_set1_ps(1.0f), minus = _mm256_set1_ps(-0.0f);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 v = _mm256_loadu_ps(g + i), e = sh_exp_avx2(_mm256_xor_ps(v, minus));
        v = _mm256_mul_ps(_mm256_div_ps(v, _mm256_add_ps(one, e)), _mm256_loadu_ps(u + i));
        _mm256_storeu_ps(g + i, v);
    }
    for (; i < n; i++) g[i] = g[i] / (1.0f + sh_expf(-g[i])) * u[i];
}

static void gelu(float *x, size_t n)
{
    const __m256 one = _mm256_set1_ps(1.0f), minus = _mm256_set1_ps(-0.0f);
    const __m256 c1 = _mm256_set1_ps(SH_GELU_1), c3 = _mm256_set1_ps(SH_GELU_3);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 v = _mm256_loadu_ps(x + i);
        __m256 u = _mm256_mul_ps(v, _mm256_fmadd_ps(_mm256_mul_ps(v, v), c3, c1));
        __m256 e = sh_exp_avx2(_mm256_xor_ps(u, minus));
        _mm256_storeu_ps(x + i, _mm256_div_ps(v, _mm256_add_ps(one, e)));
    }
    for (; i < n; i++) {
        float u = x[i] * fmaf(x[i] * x[i], SH_GELU_3, SH_GELU_1);
        x[i] = x[i] / (1.0f + sh_expf(-u));
    }
}

static void rope(float *x, const float *c, const float *s, int n_head, int head_dim, int n_rot)
{
    for (int h = 0; h < n_head; h++, x += head_dim) {
        int i = 0;
        for (; i + 4 <= n_rot / 2;
             i += 4) { /* four pairs; cs: c0 s0 c1 s1 .., sc: s0 c0 s1 c1 .. */
            __m128 ci = _mm_loadu_ps(c + i), si = _mm_loadu_ps(s + i);
            __m256 cs = _mm256_set_m128(_mm_unpackhi_ps(ci, si), _mm_unpacklo_ps(ci, si));
            __m256 sc = _mm256_permute_ps(cs, 0xb1), v = _mm256_loadu_ps(x + 2 * i);
            __m256 cross = _mm256_mul_ps(_mm256_movehdup_ps(v), sc);
            _mm256_storeu_ps(x + 2 * i, _mm256_fmaddsub_ps(_mm256_moveldup_ps(v), cs, cross));
        }
        for (; i < n_rot / 2; i++) {
            float x0 = x[2 * i], x1 = x[2 * i + 1];
            x[2 * i] = fmaf(x0, c[i], -(x1 * s[i]));
            x[2 * i + 1] = fmaf(x0, s[i], x1 * c[i]);
        }
    }
}

void sh_vector_avx2(sh_kernels *k)
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
