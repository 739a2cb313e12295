/* Every byte of every distinct word is a node, and a symbol is a run of nodes. A pair knows the
 * places where its two symbols met when it came to be, in ascending order; a merge visits those,
 * and passes over a place where they no longer meet. What it changes is summed for each neighbour
 * first, so that the table of pairs is asked once for each and not at every place. A heap knows the
 * best pair. */
#include "tokenizer/bpe_train.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

#define NONE UINT32_MAX

typedef struct node {
    uint32_t sym;  /* in the first and in the last node of a symbol: its id */
    uint32_t word; /* index into words */
} node;

/* Pairs that may be learned; others are not kept. */
typedef struct pair {
    uint64_t key;    /* left << 32 | right */
    uint64_t count;  /* of the places where they meet, each as often as its word */
    uint32_t *place; /* (n_place): first nodes of left; owned; NULL once none meet */
    size_t n_place;
} pair;

typedef struct candidate {
    uint64_t count; /* may be too high: it was true once, and only falls */
    uint32_t pair;
} candidate;

/* A symbol that stands beside the one that the merge under way makes. */
typedef struct neighbour {
    uint64_t count;
    uint32_t n_place;
    uint32_t pair; /* of it and the new symbol; NONE if it may not be learned */
} neighbour;

typedef struct meeting {
    uint32_t sym, place;
} meeting;

typedef struct side {
    neighbour *of; /* (n_sym), zeroed between merges */
    uint32_t *sym; /* (n): those that are not zero */
    size_t n;
    meeting *met; /* (n_met), places ascending */
    size_t n_met, cap_met;
} side;

typedef struct learner {
    const sh_words *words;
    node *node; /* (n_node): the bytes of the words one after the other */
    uint32_t n_node;
    uint32_t *n_bytes; /* of each symbol */
    pair *pair;
    size_t n_pair, cap_pair;
    uint32_t *slot; /* (n_slot, a power of two): pair + 1 by its key; 0 is free */
    size_t n_slot;
    candidate *heap;
    size_t n_heap, cap_heap;
    side left, right;
} learner;

sh_err sh_bpe_count(sh_words *words, const sh_pretoken *pretoken, const char *text, size_t n)
{
    sh_pretoken_walk walk = {0};
    sh_word_text batch[SH_WORDS_BATCH];
    sh_err err;
    int n_batch = 0;
    SH_GOTO(sh_pretoken_begin(&walk, pretoken, text, n));
    do {
        SH_GOTO(sh_pretoken_next(&walk, &batch[n_batch].p, &batch[n_batch].n));
        bool more = batch[n_batch].n > 0;
        n_batch += more;
        if (more && n_batch < SH_WORDS_BATCH) continue;
        SH_GOTO(sh_words_count(words, batch, n_batch));
        n_batch = more ? 0 : -1;
    } while (n_batch >= 0);
out:
    sh_pretoken_end(&walk);
    return err;
}

/* --- symbols in their words --- */

/* The symbol that follows the one at p in the same word; NONE at its end. */
static uint32_t after(const learner *l, uint32_t p)
{
    uint32_t q = p + l->n_bytes[l->node[p].sym];
    return q < l->n_node && l->node[q].word == l->node[p].word ? q : NONE;
}

static uint32_t before(const learner *l, uint32_t p)
{
    if (p == 0 || l->node[p - 1].word != l->node[p].word) return NONE;
    return p - l->n_bytes[l->node[p - 1].sym];
}

static uint64_t key_of(uint32_t left, uint32_t right)
{
    return (uint64_t)left << 32 | right;
}

static uint32_t left_of(const pair *p)
{
    return (uint32_t)(p->key >> 32);
}

static uint32_t right_of(const pair *p)
{
    return (uint32_t)p->key;
}

/* --- the heap of candidates: the most frequent on top, of equals the lowest key --- */

static bool goes_first(const learner *l, candidate a, candidate b)
{
    if (a.count != b.count) return a.count > b.count;
    return l->pair[a.pair].key < l->pair[b.pair].key;
}

static void sift_down(learner *l)
{
    candidate c = l->heap[0];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < l->n_heap; i = child) {
        if (child + 1 < l->n_heap && goes_first(l, l->heap[child + 1], l->heap[child])) child++;
        if (!goes_first(l, l->heap[child], c)) break;
        l->heap[i] = l->heap[child];
    }
    l->heap[i] = c;
}

static sh_err push(learner *l, candidate c)
{
    SH_TRY(sh_grow(&l->heap, &l->cap_heap, l->n_heap + 1, sizeof c, "the heap of pairs"));
    size_t i = l->n_heap++;
    for (size_t parent; i > 0 && goes_first(l, c, l->heap[parent = (i - 1) / 2]); i = parent)
        l->heap[i] = l->heap[parent];
    l->heap[i] = c;
    return SH_OK;
}

/* The most frequent pair; NULL if none stands in the words twice. */
static pair *best(learner *l)
{
    while (l->n_heap) {
        candidate *top = &l->heap[0];
        pair *p = &l->pair[top->pair];
        if (p->count == top->count) return p;
        if (p->count >= 2) {
            top->count = p->count;
        } else {
            free(p->place);
            p->place = NULL;
            *top = l->heap[--l->n_heap];
        }
        if (l->n_heap) sift_down(l);
    }
    return NULL;
}

/* --- pairs --- */

/* The slot of a pair, or the free one where it belongs. */
static uint32_t *find(const learner *l, uint64_t key)
{
    size_t mask = l->n_slot - 1, i = (size_t)((key * 0x9e3779b97f4a7c15u) >> 32) & mask;
    while (l->slot[i] && l->pair[l->slot[i] - 1].key != key) i = (i + 1) & mask;
    return &l->slot[i];
}

static sh_err grow_slots(learner *l)
{
    free(l->slot);
    l->n_slot = l->n_slot ? 2 * l->n_slot : 4096;
    SH_TRY(sh_alloc(&l->slot, l->n_slot, sizeof *l->slot, "the table of pairs"));
    for (size_t i = 0; i < l->n_pair; i++) *find(l, l->pair[i].key) = (uint32_t)i + 1;
    return SH_OK;
}

/* A new pair with room for its places, in n->pair. */
static sh_err add_pair(learner *l, uint32_t left, uint32_t right, neighbour *n)
{
    pair p = {.key = key_of(left, right), .count = n->count};
    n->pair = NONE;
    if (n->count < 2 || l->n_bytes[left] + l->n_bytes[right] > SH_BPE_MAX_TOKEN) return SH_OK;
    if (2 * l->n_pair >= l->n_slot) SH_TRY(grow_slots(l));
    SH_TRY(sh_grow(&l->pair, &l->cap_pair, l->n_pair + 1, sizeof p, "the pairs"));
    if (!(p.place = malloc(n->n_place * sizeof *p.place)))
        return sh_fail(SH_ENOMEM, "no memory for the places of a pair");
    n->pair = (uint32_t)l->n_pair;
    *find(l, p.key) = n->pair + 1;
    l->pair[l->n_pair++] = p;
    return push(l, (candidate){p.count, n->pair});
}

static void drop(learner *l, uint32_t left, uint32_t right, uint64_t count)
{
    uint32_t slot = *find(l, key_of(left, right));
    if (slot) l->pair[slot - 1].count -= count;
}

/* The neighbours of a side have their pairs: the places go there. */
static void put_places(learner *l, side *s)
{
    for (size_t i = 0; i < s->n_met; i++) {
        uint32_t k = s->of[s->met[i].sym].pair;
        if (k != NONE) l->pair[k].place[l->pair[k].n_place++] = s->met[i].place;
    }
    for (size_t i = 0; i < s->n; i++) s->of[s->sym[i]] = (neighbour){0};
    s->n = s->n_met = 0;
}

static sh_err meet(side *s, uint32_t sym, uint32_t place, uint64_t count)
{
    SH_TRY(sh_grow(&s->met, &s->cap_met, s->n_met + 1, sizeof *s->met, "the new pairs"));
    if (s->of[sym].n_place++ == 0) s->sym[s->n++] = sym;
    s->of[sym].count += count;
    s->met[s->n_met++] = (meeting){sym, place};
    return SH_OK;
}

/* --- learning --- */

/* Joins a and b to `sym` at the places where they still meet. Places ascend, so a run of one symbol
 * (aaaa) is joined from its front. */
static sh_err visit(learner *l, uint32_t a, uint32_t b, uint32_t sym, const uint32_t *place,
                    size_t n)
{
    enum { AHEAD = 16 }; /* the places lie far apart: memory is asked for them early */
    const sh_word *word = l->words->v;
    node *v = l->node;
    for (size_t i = 0; i < n; i++) {
        uint32_t p = place[i], q;
        if (i + 2 * AHEAD < n) __builtin_prefetch(&v[place[i + 2 * AHEAD]], 1);
        if (i + AHEAD < n) __builtin_prefetch(&word[v[place[i + AHEAD]].word]);
        if (v[p].sym != a || (q = after(l, p)) == NONE || v[q].sym != b) continue;
        uint32_t left = before(l, p), right = after(l, q);
        uint64_t count = word[v[p].word].value;
        v[q].sym = NONE; /* no symbol begins here any more */
        v[p].sym = v[p + l->n_bytes[sym] - 1].sym = sym;
        if (left != NONE) SH_TRY(meet(&l->left, v[left].sym, left, count));
        if (right != NONE) SH_TRY(meet(&l->right, v[right].sym, p, count));
    }
    return SH_OK;
}

static sh_err join(learner *l, uint32_t merged, uint32_t sym)
{
    uint32_t a = left_of(&l->pair[merged]), b = right_of(&l->pair[merged]), x;
    l->n_bytes[sym] = l->n_bytes[a] + l->n_bytes[b];
    SH_TRY(visit(l, a, b, sym, l->pair[merged].place, l->pair[merged].n_place));
    for (size_t i = 0; i < l->left.n; i++)
        SH_TRY((x = l->left.sym[i], add_pair(l, x, sym, &l->left.of[x])));
    for (size_t i = 0; i < l->right.n; i++)
        SH_TRY((x = l->right.sym[i], add_pair(l, sym, x, &l->right.of[x])));
    /* What is new on one side may be gone by the other: x a b a b y. */
    for (size_t i = 0; i < l->left.n; i++) x = l->left.sym[i], drop(l, x, a, l->left.of[x].count);
    for (size_t i = 0; i < l->right.n; i++)
        x = l->right.sym[i], drop(l, b, x, l->right.of[x].count);
    l->pair[merged].count = 0; /* best drops it */
    put_places(l, &l->left);
    put_places(l, &l->right);
    return SH_OK;
}

/* The pairs of bytes. */
static sh_err fill(learner *l)
{
    const sh_words *w = l->words;
    neighbour *of; /* (256, 256): left, right */
    uint32_t at = 0;
    sh_err err;
    SH_GOTO(sh_alloc(&of, 256 * 256, sizeof *of, "the pairs of bytes"));
    for (size_t i = 0; i < w->n; i++) {
        const uint8_t *p = (const uint8_t *)w->bytes + w->v[i].at;
        for (size_t k = 0; k < w->v[i].n; k++) {
            l->node[at++] = (node){p[k], (uint32_t)i};
            if (k == 0) continue;
            of[p[k - 1] * 256 + p[k]].count += w->v[i].value;
            of[p[k - 1] * 256 + p[k]].n_place++;
        }
    }
    for (uint32_t i = 0; i < 256 * 256; i++) SH_GOTO(add_pair(l, i / 256, i % 256, &of[i]));
    for (uint32_t p = 0; p + 1 < l->n_node; p++) {
        if (l->node[p].word != l->node[p + 1].word) continue;
        uint32_t k = of[l->node[p].sym * 256 + l->node[p + 1].sym].pair;
        if (k != NONE) l->pair[k].place[l->pair[k].n_place++] = p;
    }
out:
    free(of);
    return err;
}

static sh_err open_learner(learner *l, const sh_words *words, size_t n_sym)
{
    /* A node, two lists that it may be in, and the lists as they grow. */
    size_t each = sizeof(node) + 2 * (sizeof(uint32_t) + sizeof(meeting));
    size_t need = words->n_bytes * each, left = sh_memory_free_bytes();
    *l = (learner){.words = words, .n_node = (uint32_t)words->n_bytes};
    if (words->n_bytes >= NONE || (left && need > left))
        return sh_fail(SH_ENOMEM,
                       "the text has %zu MB of distinct words; learning tokens from them takes %zu "
                       "MB of memory, and %zu are free; give a part of the text",
                       words->n_bytes / 1000000, need / 1000000, left / 1000000);
    SH_TRY(sh_alloc(&l->node, l->n_node, sizeof *l->node, "the words of the text"));
    SH_TRY(sh_alloc(&l->n_bytes, n_sym, sizeof *l->n_bytes, "the tokens"));
    for (int i = 0; i < 256; i++) l->n_bytes[i] = 1;
    for (int i = 0; i < 2; i++) {
        side *s = i ? &l->right : &l->left;
        SH_TRY(sh_alloc(&s->of, n_sym, sizeof *s->of, "the tokens"));
        SH_TRY(sh_alloc(&s->sym, n_sym, sizeof *s->sym, "the tokens"));
    }
    SH_TRY(grow_slots(l));
    return fill(l);
}

static void close_learner(learner *l)
{
    for (size_t i = 0; i < l->n_pair; i++) free(l->pair[i].place);
    for (int i = 0; i < 2; i++) {
        side *s = i ? &l->right : &l->left;
        free(s->of);
        free(s->sym);
        free(s->met);
    }
    free(l->node);
    free(l->n_bytes);
    free(l->pair);
    free(l->slot);
    free(l->heap);
}

sh_err sh_bpe_learn(sh_bpe_merge *merge, size_t n_merge, size_t *n_learned, const sh_words *words)
{
    learner l;
    const pair *p;
    sh_err err;
    *n_learned = 0;
    SH_GOTO(open_learner(&l, words, 256 + n_merge));
    for (size_t i = 0; i < n_merge && (p = best(&l)); i++) {
        merge[i] = (sh_bpe_merge){left_of(p), right_of(p)};
        SH_GOTO(join(&l, (uint32_t)(p - l.pair), (uint32_t)(256 + i)));
        *n_learned = i + 1;
    }
out:
    close_learner(&l);
    return err;
}
