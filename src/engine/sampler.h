/* From logits to a token. */
#ifndef SH_ENGINE_SAMPLER_H
#define SH_ENGINE_SAMPLER_H

#include "base/err.h"
#include "shoal.h"

typedef struct sh_candidate {
    float logit;
    uint32_t id;
} sh_candidate;

/* Scratch; one per engine. */
typedef struct sh_sampler {
    int n_vocab;
    sh_candidate *cand, *other; /* (n_vocab) */
    float *prob;                /* (n_vocab) */
    uint8_t *seen;              /* (n_vocab / 8 + 1): tokens the penalty has met */
} sh_sampler;

sh_err sh_sampler_open(sh_sampler *s, int n_vocab);
void sh_sampler_close(sh_sampler *s);

/** Whether the values can be sampled with; SH_EARG says which cannot. */
sh_err sh_sampling_check(const shoal_sampling *p);

/** Draws the token at position `pos` (0 = the sequence's first) of sample number `sample`. logits
 *  (n_vocab) are changed. history: the n tokens of the sequence before it.
 *
 *  In this order: repeat penalty (Keskar et al. 2019, arXiv:1909.05858, section 4.1), top-k, top-p
 *  (Holtzman et al. 2019, arXiv:1904.09751), min-p (Nguyen et al. 2024, arXiv:2407.01082),
 * temperature, draw. Equal logits are ordered by id. The random number is that of (seed, sample,
 * pos). SH_EFILE: the logits are not numbers. */
sh_err sh_sample(sh_sampler *s, uint32_t *token, float *logits, const shoal_sampling *p, int sample,
                 size_t pos, const uint32_t *history, size_t n);

#endif
