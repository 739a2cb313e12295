/* The sampler against a naive one in float64 that sorts everything, and against statistics. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>

#include "base/rng.h"
#include "engine/sampler.h"

enum { MAX_VOCAB = 400 };

static uint64_t random_state;
static sh_sampler sampler;

static uint32_t random_u32(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 32);
}
static int random_in(int lo, int hi) /* [lo, hi] */
{
    return lo + (int)(random_u32() % (uint32_t)(hi - lo + 1));
}

static shoal_sampling plain(float temp)
{
    return (shoal_sampling){.temp = temp, .top_p = 1, .repeat_penalty = 1, .seed = 1};
}

static uint32_t draw(const float *logits, const shoal_sampling *p, int sample, size_t pos)
{
    float copy[MAX_VOCAB];
    uint32_t token = UINT32_MAX;
    memcpy(copy, logits, (size_t)sampler.n_vocab * sizeof *copy);
    assert_int_equal(sh_sampling_check(p), SH_OK);
    assert_int_equal(sh_sample(&sampler, &token, copy, p, sample, pos, NULL, 0), SH_OK);
    assert_in_range(token, 0, (uint32_t)sampler.n_vocab - 1);
    return token;
}

static void open_sampler(int n_vocab)
{
    sh_sampler_close(&sampler);
    assert_int_equal(sh_sampler_open(&sampler, n_vocab), SH_OK);
}

/* Logits of few distinct values, so that there are ties everywhere. */
static void random_logits(float *x, int n)
{
    int step = random_in(0, 2);
    for (int i = 0; i < n; i++)
        x[i] = step == 0 ? (float)random_in(-8, 8)
                         : (float)random_in(-8000, 8000) / (step == 1 ? 1000.0f : 400.0f);
}

/* ---- the naive sampler ---- */

typedef struct naive {
    uint32_t id[MAX_VOCAB];
    double p[MAX_VOCAB]; /* of id[i], n of them, best first; their sum is 1 */
    int n;
    bool at_edge; /* a cut fell so close to a value that rounding decides */
} naive;

static void naive_sort(naive *s, const float *logits, int n)
{
    for (int i = 0; i < n; i++) { /* insertion: equal logits stay in the order of ids */
        int j = i;
        for (; j > 0 && logits[s->id[j - 1]] < logits[i]; j--) s->id[j] = s->id[j - 1];
        s->id[j] = (uint32_t)i;
    }
    s->n = n;
}

static void naive_softmax(naive *s, const float *logits, double temp)
{
    double sum = 0;
    for (int i = 0; i < s->n; i++)
        sum += s->p[i] = exp(((double)logits[s->id[i]] - (double)logits[s->id[0]]) / temp);
    for (int i = 0; i < s->n; i++) s->p[i] /= sum;
}

static void naive_cut(naive *s, const float *logits, const shoal_sampling *p)
{
    if (p->top_k > 0 && p->top_k < s->n) s->n = p->top_k;
    naive_softmax(s, logits, 1);
    if (p->top_p < 1) {
        double have = 0;
        for (int i = 0; i < s->n; i++) {
            have += s->p[i];
            s->at_edge |= fabs(have - (double)p->top_p) < 1e-6;
            if (have >= (double)p->top_p) s->n = i + 1;
        }
    }
    for (int i = 0; i < s->n; i++) {
        double share = s->p[i] / s->p[0];
        s->at_edge |= p->min_p > 0 && i > 0 && fabs(share - (double)p->min_p) < 1e-6;
        if (share < (double)p->min_p) s->n = i;
    }
    naive_softmax(s, logits, (double)p->temp);
}

/* Where the random number of (seed, sample, pos) falls; -1: on an edge, within rounding. */
static int naive_pick(const naive *s, const shoal_sampling *p, int sample, size_t pos)
{
    uint32_t bits[4], key[2] = {(uint32_t)p->seed, (uint32_t)(p->seed >> 32)};
    uint32_t counter[4] = {(uint32_t)pos, (uint32_t)((uint64_t)pos >> 32), (uint32_t)sample, 0};
    sh_philox(bits, counter, key);
    double u = ldexp(bits[0], -32) + ldexp(bits[1], -64), have = 0;
    for (int i = 0; i < s->n; i++) {
        have += s->p[i];
        if (fabs(have - u) < 1e-6 && i < s->n - 1) return -1;
        if (have > u) return (int)s->id[i];
    }
    return (int)s->id[s->n - 1];
}

static shoal_sampling random_sampling(int n)
{
    shoal_sampling p = plain((float)random_in(1, 30) / 10);
    if (random_in(0, 1)) p.top_k = random_in(1, n + 5);
    if (random_in(0, 1)) p.top_p = (float)random_in(1, 999) / 1000;
    if (random_in(0, 1)) p.min_p = (float)random_in(0, 1000) / 1000;
    p.seed = (uint64_t)random_u32() << 32 | random_u32();
    return p;
}

/* Random logits, random cuts: each draw is the naive one's. */
static void test_naive(void **state)
{
    int n_edge = 0, n_draw = 0;
    (void)state;
    random_state = 1;
    for (int round = 0; round < 400; round++) {
        float x[MAX_VOCAB];
        int n = round % 10 ? random_in(1, 40) : MAX_VOCAB;
        shoal_sampling p = random_sampling(n);
        naive s = {.n = 0};
        open_sampler(n);
        random_logits(x, n);
        naive_sort(&s, x, n);
        naive_cut(&s, x, &p);
        for (int i = 0; i < 30; i++, n_draw++) {
            int sample = random_in(0, 1000);
            size_t pos = (size_t)random_in(0, 5000) << (i == 7 ? 30 : 0);
            int want = naive_pick(&s, &p, sample, pos);
            uint32_t got = draw(x, &p, sample, pos);
            if (s.at_edge || want < 0)
                n_edge++;
            else
                assert_int_equal(got, want);
        }
    }
    assert_true(n_edge < n_draw / 20);
}

/* At a temperature at which all that is left is equally likely, all of it comes, and nothing else.
 */
static void test_sets(void **state)
{
    (void)state;
    random_state = 2;
    open_sampler(40);
    for (int round = 0; round < 60; round++) {
        float x[40];
        bool in[40] = {false}, came[40] = {false};
        shoal_sampling p = random_sampling(40);
        naive s = {.n = 0};
        p.temp = 1e5f;
        random_logits(x, 40);
        naive_sort(&s, x, 40);
        naive_cut(&s, x, &p);
        if (s.at_edge) continue;
        for (int i = 0; i < s.n; i++) in[s.id[i]] = true;
        for (int i = 0; i < 40 * s.n + 20; i++) came[draw(x, &p, 0, (size_t)i)] = true;
        for (int i = 0; i < 40; i++) assert_int_equal(came[i], in[i]);
    }
}

/* Temperature 0 takes the largest; on a tie, here and at every cut, the least id. */
static void test_greedy(void **state)
{
    (void)state;
    random_state = 3;
    for (int round = 0; round < 200; round++) {
        float x[50];
        int n = random_in(1, 50), best = 0;
        shoal_sampling p = plain(0);
        open_sampler(n);
        random_logits(x, n);
        for (int i = 1; i < n; i++)
            if (x[i] > x[best]) best = i;
        assert_int_equal(draw(x, &p, 0, (size_t)round), best);
        p = plain(1);
        p.top_k = 1;
        assert_int_equal(draw(x, &p, 0, (size_t)round), best);
        p.top_k = 0;
        p.min_p = 1; /* the largest and its equals */
        assert_true(x[draw(x, &p, 0, (size_t)round)] == x[best]);
        p.min_p = 0;
        p.top_p = 1e-6f;
        assert_int_equal(draw(x, &p, 0, (size_t)round), best);
    }
}

/* Sum of (seen - expected)^2 / expected. */
static double chi_square(const int *seen, const double *p, int n, int n_draw)
{
    double sum = 0;
    for (int i = 0; i < n; i++) {
        double e = p[i] * n_draw;
        sum += (seen[i] - e) * (seen[i] - e) / e;
    }
    return sum;
}

/* Draws follow the softmax, along positions, along samples and along seeds; neighbours know nothing
 * of each other. The bounds are those that chance passes once in a thousand. */
static void test_distribution(void **state)
{
    enum { N = 10, N_DRAW = 20000 };
    float x[N];
    double p[N], pair[N * N];
    naive s = {.n = 0};
    (void)state;
    open_sampler(N);
    for (int i = 0; i < N; i++) x[i] = (float)(i * 7 % N) * 0.3f;
    naive_sort(&s, x, N);
    naive_softmax(&s, x, 0.8);
    for (int i = 0; i < N; i++) p[s.id[i]] = s.p[i];
    for (int i = 0; i < N * N; i++) pair[i] = p[i / N] * p[i % N];
    for (int along = 0; along < 3; along++) {
        int seen[N] = {0}, pairs[N * N] = {0};
        uint32_t last = 0;
        for (int i = 0; i < N_DRAW; i++) {
            shoal_sampling o = plain(0.8f);
            if (along == 2) o.seed = (uint64_t)i;
            uint32_t t = draw(x, &o, along == 1 ? i : 3, along == 0 ? (size_t)i : 5);
            seen[t]++;
            if (i % 2) pairs[last * N + t]++;
            last = t;
        }
        assert_true(chi_square(seen, p, N, N_DRAW) < 27.9);              /* 9 degrees */
        assert_true(chi_square(pairs, pair, N * N, N_DRAW / 2) < 148.3); /* 99 */
    }
}

/* The draw is that of (seed, sample, pos), whatever was drawn before; each of them matters, all
 * bits. */
static void test_keys(void **state)
{
    enum { N_DRAW = 64 };
    float x[MAX_VOCAB] = {0};
    uint32_t first[N_DRAW];
    shoal_sampling p = plain(1);
    (void)state;
    open_sampler(MAX_VOCAB);
    for (size_t i = 0; i < N_DRAW; i++) first[i] = draw(x, &p, 2, i);
    for (size_t i = N_DRAW; i-- > 0;) assert_int_equal(draw(x, &p, 2, i), first[i]);
    for (int what = 0; what < 4; what++) {
        int same = 0;
        shoal_sampling q = p;
        if (what == 0) q.seed += 1;
        if (what == 1) q.seed += (uint64_t)1 << 40;
        for (size_t i = 0; i < N_DRAW; i++)
            same += draw(x, &q, what == 2 ? 3 : 2, what == 3 ? i + N_DRAW : i) == first[i];
        assert_true(same < 5); /* one in 400 by chance */
    }
}

/* The penalty meets each token of the last ones once; what it met is forgotten afterwards. */
static void test_penalty(void **state)
{
    (void)state;
    random_state = 4;
    for (int round = 0; round < 500; round++) {
        float x[50], want[50], got[50];
        bool hit[50] = {false};
        uint32_t history[30], token, best = 0;
        int n = random_in(0, 30), last = random_in(-1, 35);
        shoal_sampling p = plain(0);
        p.repeat_penalty = (float)random_in(1, 30) / 10;
        p.repeat_last_n = last;
        open_sampler(50);
        random_logits(x, 50);
        memcpy(want, x, sizeof x);
        for (int i = 0; i < n; i++) history[i] = (uint32_t)random_in(0, 49);
        for (int i = last < 0 || last > n ? 0 : n - last; i < n; i++) hit[history[i]] = true;
        for (int i = 0; i < 50; i++)
            if (hit[i]) want[i] = x[i] > 0 ? x[i] / p.repeat_penalty : x[i] * p.repeat_penalty;
        for (uint32_t i = 1; i < 50; i++)
            if (want[i] > want[best]) best = i;
        for (int again = 0; again < 2; again++) {
            memcpy(got, x, sizeof x);
            assert_int_equal(sh_sample(&sampler, &token, got, &p, 0, (size_t)n, history, (size_t)n),
                             SH_OK);
            assert_int_equal(token, best);
        }
    }
}

/* Logits that are no numbers are an error wherever they are, and the sampler can go on after it. */
static void test_not_numbers(void **state)
{
    const float bad[] = {NAN, -NAN, INFINITY};
    float x[30], copy[30];
    uint32_t token;
    (void)state;
    random_state = 5;
    open_sampler(30);
    for (int i = 0; i < 30 * 3 * 2; i++) {
        shoal_sampling p = plain(i % 2 ? 1 : 0);
        random_logits(x, 30);
        memcpy(copy, x, sizeof x);
        copy[i / 6] = bad[i / 2 % 3];
        assert_int_equal(sh_sample(&sampler, &token, copy, &p, 0, 0, NULL, 0), SH_EFILE);
        (void)draw(x, &p, 0, 0);
        for (int j = 0; j < 30; j++)
            x[j] = j == i % 30 ? 1 : -INFINITY; /* impossible, but numbers */
        assert_int_equal(draw(x, &p, 0, 0), i % 30);
        for (int j = 0; j < 30; j++) x[j] = -INFINITY; /* nothing is possible */
        assert_int_equal(sh_sample(&sampler, &token, x, &p, 0, 0, NULL, 0), SH_EFILE);
    }
}

/* Very low and very high temperatures are greedy and uniform, not a division by zero. */
static void test_extremes(void **state)
{
    float x[4] = {1, 3, 3, 2};
    int seen[4] = {0};
    const double quarter[4] = {0.25, 0.25, 0.25, 0.25};
    (void)state;
    open_sampler(4);
    for (size_t i = 0; i < 100; i++) {
        shoal_sampling p = plain(1e-30f);
        uint32_t t = draw(x, &p, 0, i);
        assert_true(t == 1 || t == 2);
        p.temp = 1e-42f; /* not normal */
        t = draw(x, &p, 0, i);
        assert_true(t == 1 || t == 2);
    }
    for (size_t i = 0; i < 4000; i++) {
        shoal_sampling p = plain(9e5f);
        seen[draw(x, &p, 0, i)]++;
    }
    assert_true(chi_square(seen, quarter, 4, 4000) < 16.3);
}

static void test_check(void **state)
{
    const shoal_sampling good = plain(0.7f);
    shoal_sampling bad[] = {good, good, good, good, good, good, good, good, good};
    (void)state;
    assert_int_equal(sh_sampling_check(&good), SH_OK);
    bad[0].temp = -1;
    bad[1].temp = NAN;
    bad[2].top_k = -1;
    bad[3].top_p = 0;
    bad[4].top_p = 1.5f;
    bad[5].min_p = -0.1f;
    bad[6].min_p = NAN;
    bad[7].repeat_penalty = 0;
    bad[8].temp = INFINITY;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(sh_sampling_check(&bad[i]), SH_EARG);
}

static int close_sampler(void **state)
{
    (void)state;
    sh_sampler_close(&sampler);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_naive),       cmocka_unit_test(test_sets),
        cmocka_unit_test(test_greedy),      cmocka_unit_test(test_distribution),
        cmocka_unit_test(test_keys),        cmocka_unit_test(test_penalty),
        cmocka_unit_test(test_not_numbers), cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_check),
    };
    return cmocka_run_group_tests(tests, NULL, close_sampler);
}
