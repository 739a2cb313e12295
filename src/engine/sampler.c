#include "engine/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/fmath.h"
#include "base/mem.h"
#include "base/rng.h"

sh_err sh_sampler_open(sh_sampler *s, int n_vocab)
{
    *s = (sh_sampler){.n_vocab = n_vocab};
    SH_TRY(sh_alloc(&s->cand, (size_t)n_vocab, sizeof *s->cand, "the sampler"));
    SH_TRY(sh_alloc(&s->other, (size_t)n_vocab, sizeof *s->other, "the sampler"));
    SH_TRY(sh_alloc(&s->prob, (size_t)n_vocab, sizeof *s->prob, "the sampler"));
    return sh_alloc(&s->seen, (size_t)n_vocab / 8 + 1, 1, "the sampler");
}

void sh_sampler_close(sh_sampler *s)
{
    free(s->cand);
    free(s->other);
    free(s->prob);
    free(s->seen);
    *s = (sh_sampler){0};
}

sh_err sh_sampling_check(const shoal_sampling *p)
{
    if (!(p->temp >= 0 && p->temp < 1e6f))
        return sh_fail(SH_EARG, "temperature %g: give 0 (greedy) or more", (double)p->temp);
    if (p->top_k < 0) return sh_fail(SH_EARG, "top-k %d: give 1 or more, or 0 for all", p->top_k);
    if (!(p->top_p > 0 && p->top_p <= 1))
        return sh_fail(SH_EARG, "top-p %g: give more than 0, at most 1", (double)p->top_p);
    if (!(p->min_p >= 0 && p->min_p <= 1))
        return sh_fail(SH_EARG, "min-p %g: give 0 to 1", (double)p->min_p);
    if (!(p->repeat_penalty > 0 && p->repeat_penalty < 1e6f))
        return sh_fail(SH_EARG, "repeat penalty %g: give more than 0; 1 is none",
                       (double)p->repeat_penalty);
    return SH_OK;
}

static void penalise(sh_sampler *s, float *logits, const shoal_sampling *p, const uint32_t *history,
                     size_t n)
{
    size_t lo =
        p->repeat_last_n < 0 || (size_t)p->repeat_last_n > n ? 0 : n - (size_t)p->repeat_last_n;
    if (p->repeat_penalty == 1.0f) return;
    for (size_t i = lo; i < n; i++) {
        uint32_t id = history[i];
        if (s->seen[id / 8] >> (id % 8) & 1) continue;
        s->seen[id / 8] |= (uint8_t)(1u << (id % 8));
        logits[id] =
            logits[id] > 0 ? logits[id] / p->repeat_penalty : logits[id] * p->repeat_penalty;
    }
    for (size_t i = lo; i < n; i++) s->seen[history[i] / 8] = 0;
}

static bool before(sh_candidate a, sh_candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static int compare(const void *a, const void *b)
{
    return before(*(const sh_candidate *)a, *(const sh_candidate *)b) ? -1 : 1;
}

/* Ascending where the logits descend. Zeros of both signs are equal. */
static uint32_t sort_key(float logit)
{
    uint32_t bits;
    logit += 0.0f;
    memcpy(&bits, &logit, sizeof bits);
    return bits >> 31 ? bits : bits ^ 0x7fffffff;
}

/* Sorts the whole vocabulary, which is in the order of ids: by 11 bits of the key after the other,
 * the lowest first, each time keeping the order of those alike. Source: Knuth, The Art of Computer
 * Programming, volume 3, section 5.2.5. */
static void sort_all(sh_sampler *s)
{
    enum { BITS = 11, N_PILE = 1 << BITS };
    for (int shift = 0; shift < 32; shift += BITS) {
        int at[N_PILE + 1] = {0};
        for (int i = 0; i < s->n_vocab; i++)
            at[(sort_key(s->cand[i].logit) >> shift) % N_PILE + 1]++;
        for (int i = 1; i < N_PILE; i++) at[i] += at[i - 1];
        for (int i = 0; i < s->n_vocab; i++)
            s->other[at[(sort_key(s->cand[i].logit) >> shift) % N_PILE]++] = s->cand[i];
        sh_candidate *t = s->cand;
        s->cand = s->other;
        s->other = t;
    }
}

/* The k best of n come first, in no order (Hoare's selection). */
static void select_best(sh_candidate *c, int n, int k)
{
    int lo = 0, hi = n - 1;
    while (lo < hi) {
        sh_candidate pivot = c[lo + (hi - lo) / 2];
        int i = lo, j = hi;
        while (i <= j) {
            while (before(c[i], pivot)) i++;
            while (before(pivot, c[j])) j--;
            if (i <= j) {
                sh_candidate t = c[i];
                c[i++] = c[j];
                c[j--] = t;
            }
        }
        if (k <= j)
            hi = j;
        else if (k >= i)
            lo = i;
        else
            return;
    }
}

/* The k best of the vocabulary (all, if k is its size) come first, in no order. Whenever 4 k wait,
 * the k best of them stay, and from then on only what is above the worst of these is looked at: as
 * likely with a later id is worse. */
static void gather_best(sh_sampler *s, const float *logits, int k)
{
    int n = 0, room = s->n_vocab / 4 > k ? 4 * k : s->n_vocab + 1;
    float bound = 0;
    bool bounded = false;
    for (int i = 0; i < s->n_vocab; i++) {
        if (bounded && logits[i] <= bound) continue;
        s->cand[n++] = (sh_candidate){logits[i], (uint32_t)i};
        if (n < room) continue;
        select_best(s->cand, n, k);
        n = k;
        bounded = true;
        bound = s->cand[0].logit;
        for (int j = 1; j < k; j++) bound = fminf(bound, s->cand[j].logit);
    }
    if (n > k) select_best(s->cand, n, k);
}

/* prob[i] of the n sorted candidates at temperature temp, not normalised (the first is 1); returns
 * the sum, in ascending order, in float64. */
static double exponentials(sh_sampler *s, int n, float temp)
{
    double sum = 0;
    for (int i = 0; i < n; i++) {
        s->prob[i] = sh_expf((s->cand[i].logit - s->cand[0].logit) / temp);
        sum += (double)s->prob[i];
    }
    return sum;
}

static uint32_t draw(sh_sampler *s, int n, const shoal_sampling *p, int sample, size_t pos)
{
    uint32_t bits[4];
    const uint32_t key[2] = {(uint32_t)p->seed, (uint32_t)(p->seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)pos, (uint32_t)((uint64_t)pos >> 32), (uint32_t)sample,
                                 0};
    sh_philox(bits, counter, key);
    double u =
        (double)(((uint64_t)bits[0] << 32 | bits[1]) >> 11) / 9007199254740992.0; /* [0, 1) */
    double target = u * exponentials(s, n, p->temp), sum = 0;
    for (int i = 0; i < n; i++) {
        sum += (double)s->prob[i];
        if (sum > target) return s->cand[i].id;
    }
    return s->cand[n - 1].id;
}

static uint32_t sample_from(sh_sampler *s, const float *logits, const shoal_sampling *p, int sample,
                            size_t pos)
{
    int n = p->top_k > 0 && p->top_k < s->n_vocab ? p->top_k : s->n_vocab;
    gather_best(s, logits, n);
    if (n == s->n_vocab)
        sort_all(s);
    else
        qsort(s->cand, (size_t)n, sizeof *s->cand, compare);
    if (p->top_p < 1) {
        double sum = exponentials(s, n, 1.0f), have = 0;
        int i = 0;
        while (i < n && have < (double)p->top_p * sum) have += (double)s->prob[i++];
        n = i > 0 ? i : 1;
    }
    if (p->min_p > 0) {
        exponentials(s, n, 1.0f);
        int i = 1;
        while (i < n && s->prob[i] >= p->min_p) i++;
        n = i;
    }
    return draw(s, n, p, sample, pos);
}

/* *top: the largest; false if none is possible, or one is no number. */
static bool largest(float *top, const float *logits, int n)
{
    enum { N_LANE = 16 }; /* side by side: it is the whole of a vocabulary for each token */
    float lane[N_LANE];
    int bad = 0, whole = n / N_LANE * N_LANE;
    for (int j = 0; j < N_LANE; j++) lane[j] = -INFINITY;
    for (int i = 0; i < whole; i += N_LANE)
        for (int j = 0; j < N_LANE; j++) {
            float x = logits[i + j];
            lane[j] = x > lane[j] ? x : lane[j];
            bad |= !(x < INFINITY);
        }
    *top = -INFINITY;
    for (int j = 0; j < N_LANE; j++) *top = lane[j] > *top ? lane[j] : *top;
    for (int i = whole; i < n; i++) {
        *top = logits[i] > *top ? logits[i] : *top;
        bad |= !(logits[i] < INFINITY);
    }
    return !bad && *top > -INFINITY;
}

static uint32_t first_of(const float *logits, float x)
{
    uint32_t i = 0;
    while (logits[i] != x) i++;
    return i;
}

sh_err sh_sample(sh_sampler *s, uint32_t *token, float *logits, const shoal_sampling *p, int sample,
                 size_t pos, const uint32_t *history, size_t n)
{
    float top;
    uint64_t state = sh_cpu_enter(); /* the same arithmetic as everywhere */
    penalise(s, logits, p, history, n);
    bool numbers = largest(&top, logits, s->n_vocab);
    if (numbers)
        *token = p->temp > 0 ? sample_from(s, logits, p, sample, pos) : first_of(logits, top);
    sh_cpu_leave(state);
    return numbers ? SH_OK
                   : sh_fail(SH_EFILE, "the model's output is not a number: the file is damaged");
}
