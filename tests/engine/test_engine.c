/* The engine through shoal.h alone, as any caller sees it: requests beside each other get what they
 * get alone, on one process, on ranks and on a ring; and nothing is left behind. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "shoal.h"

enum { MAX_SAMPLE = 4, MAX_REQUEST = 8, N_CTX = 128, N_VOCAB = 400 };

#define OK(call)                                                                                   \
    do {                                                                                           \
        if ((call) != SHOAL_OK) fail_msg("%s", shoal_error());                                     \
    } while (0)

static char model[] = "/tmp/shoal-engine-XXXXXX";

/* What a sample has become. */
typedef struct result {
    uint32_t token[N_CTX];
    char text[N_CTX * 32];
    size_t n_token, n_text, n_prompt, n_read;
    bool ended;
    shoal_finish finish;
    uint64_t hash;
} result;

typedef struct results {
    uint64_t id[MAX_REQUEST];
    int n;
    result r[MAX_REQUEST][MAX_SAMPLE];
} results;

static uint32_t prompt_of(int request, uint32_t *ids)
{
    static const uint32_t length[MAX_REQUEST] = {5, 40, 1, 17, 70, 2, 33, 9};
    for (uint32_t i = 0; i < length[request]; i++)
        ids[i] = i == 0 ? 1 : (uint32_t)(i * 37 + (uint32_t)request * 101) % (N_VOCAB - 259) + 259;
    return length[request];
}

/* Request number i of all tests. */
static shoal_request request(int i, uint32_t *ids)
{
    shoal_request r = {
        .ids = ids, .n_sample = 1 + i % 3, .n_predict = 12 + i % 4, .ignore_end = true};
    r.n_ids = prompt_of(i, ids);
    r.sampling =
        (shoal_sampling){.temp = i % 2 ? 0.9f : 0, .top_p = 1, .repeat_penalty = 1, .seed = 7};
    if (i == 3) r.sampling.top_k = 20;
    if (i == 5) r.sampling.repeat_penalty = 1.3f, r.sampling.repeat_last_n = -1;
    return r;
}

static shoal *open_engine(shoal_options o)
{
    shoal *s;
    o.model = model;
    if (!o.n_ctx) o.n_ctx = N_CTX;
    OK(shoal_open(&s, &o));
    return s;
}

static void submit(shoal *s, results *all, int i, const shoal_request *r)
{
    OK(shoal_submit(s, r, &all->id[i]));
    assert_true(all->id[i] != 0);
    if (i >= all->n) all->n = i + 1;
}

static result *find(results *all, const shoal_event *e)
{
    for (int i = 0; i < all->n; i++)
        if (all->id[i] == e->request && e->sample < MAX_SAMPLE) return &all->r[i][e->sample];
    fail_msg("an event of an unknown request");
    return NULL;
}

/* Takes an event; false: idle. */
static bool take(shoal *s, results *all, shoal_event *e)
{
    OK(shoal_next(s, e));
    if (e->kind == SHOAL_IDLE) return false;
    result *r = find(all, e);
    assert_false(r->ended); /* nothing follows the end */
    if (e->kind == SHOAL_PROMPT) {
        assert_true(e->n_prompt > r->n_read); /* it grows */
        assert_int_equal(r->n_token, 0);      /* and no token comes before all is read */
        r->n_read = e->n_prompt;
        return true;
    }
    assert_true(r->n_text + e->n_text < sizeof r->text);
    memcpy(r->text + r->n_text, e->text, e->n_text);
    r->n_text += e->n_text;
    if (e->kind == SHOAL_TOKEN) {
        assert_true(r->n_token < N_CTX);
        r->token[r->n_token++] = e->token;
        return true;
    }
    r->ended = true;
    r->finish = e->finish;
    r->hash = e->logits_hash;
    r->n_prompt = e->n_prompt;
    assert_true(r->n_read < r->n_prompt);
    assert_int_equal(e->n_token, r->n_token);
    assert_memory_equal(e->tokens, r->token, r->n_token * sizeof *r->token);
    return true;
}

static void drain(shoal *s, results *all)
{
    shoal_event e;
    while (take(s, all, &e)) {
    }
    OK(shoal_next(s, &e));
    assert_int_equal(e.kind, SHOAL_IDLE);
}

static void same(const result *a, const result *b)
{
    assert_true(a->ended && b->ended);
    assert_int_equal(a->n_token, b->n_token);
    assert_memory_equal(a->token, b->token, a->n_token * sizeof *a->token);
    assert_int_equal(a->n_text, b->n_text);
    assert_memory_equal(a->text, b->text, a->n_text);
    assert_int_equal(a->finish, b->finish);
    assert_true(a->hash == b->hash);
}

static bool no_children(void)
{
    return waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD;
}

static int n_open_files(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    assert_non_null(d);
    while (readdir(d)) n++;
    closedir(d);
    return n;
}

/* ---- the answer ---- */

static results alone; /* each request by itself, one slot, one thread, one token at a time */

static int make_alone(void **state)
{
    char command[1024];
    const char *mkmodel = getenv("SHOAL_MKMODEL");
    int fd = mkstemp(model);
    (void)state;
    if (!mkmodel || fd < 0) return -1;
    close(fd);
    snprintf(command, sizeof command,
             "'%s' --layers 3 --embd 64 --heads 6 --kv-heads 3 --head-dim 16 --ff 160 --vocab %d "
             "--type q8_0 --ctx 256 '%s'",
             mkmodel, N_VOCAB, model);
    if (system(command) != 0) return -1;
    for (int i = 0; i < MAX_REQUEST; i++) {
        uint32_t ids[N_CTX];
        shoal *s =
            open_engine((shoal_options){.n_slot = 1, .n_thread = 1, .n_batch = 1, .arith = "int8"});
        shoal_request r = request(i, ids);
        static results one;
        memset(&one, 0, sizeof one);
        submit(s, &one, 0, &r);
        drain(s, &one);
        if (one.r[0]->n_read + 1 != one.r[0]->n_prompt)
            return -1; /* n_batch 1: each token is said */
        memcpy(alone.r[i], one.r[0], sizeof alone.r[i]);
        shoal_close(s);
    }
    return 0;
}

static int remove_model(void **state)
{
    (void)state;
    return unlink(model);
}

/* All requests at once, some of them while others are under way. */
static void together(shoal_options o)
{
    static results all;
    memset(&all, 0, sizeof all);
    o.arith = "int8";
    shoal *s = open_engine(o);
    for (int i = 0; i < MAX_REQUEST; i++) {
        uint32_t ids[N_CTX];
        shoal_event e;
        shoal_request r = request(i, ids);
        submit(s, &all, i, &r);
        memset(ids, 0xff, sizeof ids); /* they were borrowed for the call */
        for (int j = 0; i >= 4 && j < 3; j++) (void)take(s, &all, &e);
    }
    drain(s, &all);
    for (int i = 0; i < MAX_REQUEST; i++)
        for (int k = 0; k < 1 + i % 3; k++) same(&all.r[i][k], &alone.r[i][k]);
    shoal_stats st;
    shoal_get_stats(s, &st);
    assert_true(st.max_in_flight <= (uint32_t)(o.n_ring > 1 ? o.n_ring : 1) && st.n_step > 0);
    shoal_close(s);
    assert_true(no_children());
}

static void test_alone(void **state)
{
    (void)state;
    for (int i = 0; i < MAX_REQUEST; i++)
        for (int k = 0; k < 1 + i % 3; k++) {
            const result *r = &alone.r[i][k];
            assert_int_equal(r->n_token, 12 + i % 4);
            assert_int_equal(r->finish, SHOAL_FINISH_LENGTH);
            assert_true(r->n_text > 0 && r->hash != 0);
        }
    /* greedy samples agree, others do not */
    assert_memory_equal(alone.r[2][0].token, alone.r[2][1].token, 12 * sizeof(uint32_t));
    assert_memory_not_equal(alone.r[1][0].token, alone.r[1][1].token, 12 * sizeof(uint32_t));
}

static void test_together(void **state)
{
    (void)state;
    together((shoal_options){.n_slot = 1, .n_thread = 1, .n_batch = 7});
    together((shoal_options){.n_slot = 2, .n_thread = 2, .n_batch = 32});
    together((shoal_options){.n_slot = 8, .n_thread = 3, .n_batch = 128});
    together((shoal_options){.n_slot = 16, .n_thread = 1});
}

static void test_ranks(void **state)
{
    (void)state;
    together((shoal_options){.n_slot = 4, .n_thread = 1, .n_rank = 2});
    together((shoal_options){.n_slot = 8, .n_thread = 1, .n_rank = 3, .n_batch = 11});
}

static void test_ring(void **state)
{
    (void)state;
    together((shoal_options){.n_slot = 4, .n_thread = 1, .n_ring = 2});
    together((shoal_options){.n_slot = 8, .n_thread = 1, .n_ring = 3, .n_batch = 11});
    together((shoal_options){.n_slot = 3, .n_thread = 1, .n_ring = 2, .n_rank = 2});
}

/* ---- requests ---- */

/* A cancelled request ends, every sample of it, and the others are as if it had never been. */
static void test_cancel(void **state)
{
    (void)state;
    for (int after = 0; after < 40; after += 3) {
        static results all;
        uint32_t ids[N_CTX];
        shoal_event e;
        char text[64];
        memset(&all, 0, sizeof all);
        shoal *s = open_engine((shoal_options){
            .n_slot = 3, .n_thread = 1, .n_batch = 16, .n_ring = 1 + after % 2, .arith = "int8"});
        for (int i = 0; i < 4; i++) {
            shoal_request r = request(i, ids);
            submit(s, &all, i, &r);
        }
        e = (shoal_event){.text = ""};
        for (int i = 0; i < after; i++) (void)take(s, &all, &e);
        size_t n = e.n_text < sizeof text ? e.n_text : sizeof text;
        memcpy(text, e.text, n);
        shoal_cancel(s, all.id[1]);
        assert_memory_equal(text, e.text, n); /* the event is still valid */
        shoal_cancel(s, all.id[1]);
        shoal_cancel(s, 12345678);
        drain(s, &all);
        for (int i = 0; i < 4; i++)
            for (int k = 0; k < 1 + i % 3; k++) {
                const result *r = &all.r[i][k], *a = &alone.r[i][k];
                if (i != 1 || r->finish != SHOAL_FINISH_CANCEL) {
                    same(r, a);
                    continue;
                }
                assert_true(r->ended && r->n_token <= a->n_token);
                assert_memory_equal(r->token, a->token, r->n_token * sizeof *r->token);
                assert_memory_equal(r->text, a->text, r->n_text);
            }
        if (after == 0) assert_int_equal(all.r[1][0].finish, SHOAL_FINISH_CANCEL);
        shoal_close(s);
    }
}

/* 0, 1 and 2 tokens; as many as the context holds; closing with all of it under way. */
static void test_lengths(void **state)
{
    static results all;
    uint32_t ids[N_CTX];
    (void)state;
    memset(&all, 0, sizeof all);
    shoal *s = open_engine((shoal_options){.n_slot = 4, .n_thread = 1, .arith = "int8"});
    for (int i = 0; i < 5; i++) {
        shoal_request r = request(1, ids);
        r.n_predict = i < 3 ? i : i == 3 ? -1 : 1000000;
        submit(s, &all, i, &r);
    }
    drain(s, &all);
    for (int i = 0; i < 5; i++)
        for (int k = 0; k < 2; k++) {
            const result *r = &all.r[i][k];
            size_t want = i < 3 ? (size_t)i : N_CTX - r->n_prompt;
            assert_true(r->ended && r->finish == SHOAL_FINISH_LENGTH && r->n_prompt == 40);
            assert_int_equal(r->n_token, want);
            assert_true(r->hash != 0);
            size_t n = want < 13 ? want : 13;
            assert_memory_equal(r->token, alone.r[1][k].token, n * sizeof *r->token);
        }
    assert_true(all.r[0][0].hash ==
                all.r[1][0].hash); /* the prompt's logits, sampled from or not */
    for (int i = 0; i < 6; i++) {
        shoal_request r = request(i, ids);
        shoal_event e;
        OK(shoal_submit(s, &r, &all.id[0]));
        OK(shoal_next(s, &e));
    }
    shoal_close(s);
}

/* A stop text ends the sample there; its number does not depend on its neighbours. */
static void test_stop(void **state)
{
    static results all;
    uint32_t ids[N_CTX];
    (void)state;
    for (size_t at = 1; at < 12; at += 5) {
        const result *a = &alone.r[0][0];
        char stop[8] = {0};
        memset(&all, 0, sizeof all);
        memcpy(stop, a->text + at, 3);
        shoal *s = open_engine((shoal_options){.n_slot = 2, .n_thread = 1, .arith = "int8"});
        shoal_request r = request(0, ids);
        r.stop = (const char *[]){"no such text", stop};
        r.n_stop = 2;
        submit(s, &all, 0, &r);
        r = request(0, ids);
        r.n_sample = 2;
        r.first_sample = 1;
        submit(s, &all, 1, &r);
        drain(s, &all);
        const result *got = &all.r[0][0];
        assert_int_equal(got->finish, SHOAL_FINISH_STOP);
        assert_int_equal(got->n_text, (size_t)(strstr(a->text, stop) - a->text));
        assert_memory_equal(got->text, a->text, got->n_text);
        assert_memory_equal(got->token, a->token, got->n_token * sizeof *a->token);
        assert_false(all.r[1][0].ended);
        assert_true(all.r[1][1].ended && all.r[1][2].ended);
        shoal_close(s);
    }
}

/* What cannot be done is refused before anything changes. */
static void test_bad_requests(void **state)
{
    uint32_t ids[N_CTX + 1] = {0}, high[] = {1, N_VOCAB};
    uint64_t id = 77;
    shoal_event e;
    (void)state;
    shoal *s = open_engine((shoal_options){.n_slot = 2, .n_thread = 1});
    shoal_request good = request(0, ids), bad[12];
    for (int i = 0; i < 12; i++) bad[i] = good;
    bad[0].n_ids = 0;
    bad[1].ids = high;
    bad[1].n_ids = 2;
    bad[2].n_ids = N_CTX;
    bad[3].n_sample = 0;
    bad[4].n_predict = -2;
    bad[5].n_stop = 1;
    bad[5].stop = (const char *[]){""};
    bad[6].sampling.temp = NAN;
    bad[7].sampling.top_p = 0;
    bad[8].sampling.repeat_penalty = 0;
    bad[9].n_sample = -1;
    bad[10].sampling.top_k = -1;
    bad[11].n_ids = SIZE_MAX;
    for (int i = 0; i < 12; i++) {
        assert_int_equal(shoal_submit(s, &bad[i], &id), SHOAL_EARG);
        assert_true(*shoal_error());
        assert_int_equal(id, 77);
    }
    OK(shoal_next(s, &e));
    assert_int_equal(e.kind, SHOAL_IDLE);
    good.n_ids = N_CTX - 1; /* just fits: one token */
    good.n_predict = -1;
    OK(shoal_submit(s, &good, &id));
    OK(shoal_next(s, &e));
    assert_int_equal(e.kind, SHOAL_TOKEN);
    OK(shoal_next(s, &e));
    assert_int_equal(e.kind, SHOAL_END);
    assert_int_equal(e.n_token, 1);
    shoal_close(s);
}

/* ---- processes ---- */

/* An engine that cannot be opened leaves no process and no open file, and says why. */
static void test_open_errors(void **state)
{
    const struct {
        shoal_options o;
        shoal_err err;
        const char *word;
    } bad[] = {
        {{.model = NULL}, SHOAL_EARG, "model"},
        {{.model = "/no/such/file"}, SHOAL_EFILE, "/no/such/file"},
        {{.model = "/dev/null"}, SHOAL_EFILE, "/dev/null"},
        {{.model = "/tmp"}, SHOAL_EFILE, "/tmp"},
        {{.n_ctx = -1}, SHOAL_EARG, "-c"},
        {{.n_slot = 257}, SHOAL_EARG, "257"},
        {{.n_batch = -3}, SHOAL_EARG, "-b"},
        {{.n_rank = 9}, SHOAL_EARG, "9 ranks"},
        {{.n_rank = -1}, SHOAL_EARG, "ranks"},
        {{.n_ring = 4}, SHOAL_EARG, "4 stages"}, /* of 3 layers */
        {{.n_ring = 100}, SHOAL_EARG, "100"},
        {{.n_ring = 2, .arith = "int4"}, SHOAL_EARG, "int4"},
        {{.n_rank = 2, .arith = "fp8"}, SHOAL_EARG, "fp8"},
        {{.kv = "q4_0"}, SHOAL_EARG, "q4_0"},
        {{.nodes = "/no/such/nodes.json"}, SHOAL_EFILE, "/no/such/nodes.json"},
        {{.nodes = "/dev/null"}, SHOAL_EFILE, "/dev/null"},
        {{.nodes = "/dev/null", .n_ring = 2}, SHOAL_EARG, "not both"},
        {{.n_thread = 100000}, SHOAL_EARG, "100000 threads"},
        {{.n_thread = -1}, SHOAL_EARG, "threads"},
        {{.n_rank = 3, .n_thread = 5000}, SHOAL_EARG, "threads"},
    };
    (void)state;
    int n_file = n_open_files();
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        shoal *s = (shoal *)&n_file;
        shoal_options o = bad[i].o;
        if (i > 0 && !o.model) o.model = model;
        shoal_err err = shoal_open(&s, &o);
        if (err != bad[i].err || !strstr(shoal_error(), bad[i].word))
            fail_msg("case %zu: code %d, '%s'", i, (int)err, shoal_error());
        assert_null(s);
        assert_true(no_children());
        assert_int_equal(n_open_files(), n_file);
    }
    shoal_close(NULL);
}

/* A program that is no shoal in its place. */
static void test_wrong_program(void **state)
{
    (void)state;
    char *was = strdup(getenv("SHOAL_PROGRAM"));
    assert_non_null(was);
    const char *const wrong[] = {"/no/such/program", "/bin/false"};
    for (int i = 0; i < 4; i++) {
        shoal *s;
        setenv("SHOAL_PROGRAM", wrong[i % 2], 1);
        shoal_options o = {
            .model = model, .n_thread = 1, .n_rank = i < 2 ? 2 : 1, .n_ring = i < 2 ? 1 : 2};
        shoal_err err = shoal_open(&s, &o);
        assert_true(err == SHOAL_ESYS || err == SHOAL_EPEER);
        assert_true(*shoal_error());
        assert_true(no_children());
    }
    setenv("SHOAL_PROGRAM", was, 1);
    free(was);
}

/* A child of this process, or 0. */
static pid_t some_child(void)
{
    pid_t found = 0;
    DIR *d = opendir("/proc");
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        char path[300], line[512];
        int parent = 0;
        char *end;
        snprintf(path, sizeof path, "/proc/%s/stat", e->d_name);
        FILE *f = fopen(path, "r");
        if (!f) continue;
        if (fgets(line, sizeof line, f) && (end = strrchr(line, ')')))
            sscanf(end + 1, " %*c %d", &parent);
        fclose(f);
        if (parent == getpid()) found = (pid_t)atoi(e->d_name);
    }
    closedir(d);
    return found;
}

/* A rank or a node is killed in the middle: an error that stays, no hang, and closing cleans up. */
static void test_killed(void **state)
{
    (void)state;
    for (int ring = 0; ring < 2; ring++)
        for (int rest = 0; rest < 2 - ring; rest++) { /* while tokens come, and between requests */
            uint32_t ids[N_CTX];
            uint64_t id;
            shoal_event e = {.kind = SHOAL_TOKEN};
            shoal *s = open_engine((shoal_options){
                .n_slot = 2, .n_thread = 1, .n_rank = ring ? 1 : 3, .n_ring = ring ? 3 : 1});
            shoal_request r = request(0, ids);
            r.n_predict = 60;
            if (rest) r.n_predict = 2;
            OK(shoal_submit(s, &r, &id));
            for (int i = 0; i < 3; i++) OK(shoal_next(s, &e));
            pid_t pid = some_child();
            assert_true(pid > 0);
            kill(pid, SIGKILL);
            if (rest) OK(shoal_submit(s, &r, &id));
            shoal_err err = SHOAL_OK;
            for (int i = 0; i < 200 && err == SHOAL_OK; i++) err = shoal_next(s, &e);
            if (err != SHOAL_EPEER) fail_msg("code %d: %s", (int)err, shoal_error());
            assert_true(*shoal_error());
            assert_int_equal(shoal_next(s, &e), SHOAL_EPEER);
            shoal_close(s);
            assert_true(no_children());
        }
}

/* Two engines of one process do not know of each other. */
static void test_two_engines(void **state)
{
    static results all[2];
    uint32_t ids[N_CTX];
    shoal *s[2];
    shoal_event e;
    (void)state;
    for (int i = 0; i < 2; i++) {
        memset(&all[i], 0, sizeof all[i]);
        s[i] = open_engine(
            (shoal_options){.n_slot = 2, .n_thread = 2, .n_rank = 1 + i, .arith = "int8"});
    }
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 3; j++) {
            shoal_request r = request(j, ids);
            submit(s[i], &all[i], j, &r);
        }
    for (bool more = true; more;) {
        more = take(s[0], &all[0], &e);
        more |= take(s[1], &all[1], &e);
    }
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 3; j++)
            for (int k = 0; k < 1 + j % 3; k++) same(&all[i].r[j][k], &alone.r[j][k]);
        shoal_close(s[i]);
    }
    assert_true(no_children());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alone),       cmocka_unit_test(test_together),
        cmocka_unit_test(test_ranks),       cmocka_unit_test(test_ring),
        cmocka_unit_test(test_cancel),      cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_stop),        cmocka_unit_test(test_bad_requests),
        cmocka_unit_test(test_open_errors), cmocka_unit_test(test_wrong_program),
        cmocka_unit_test(test_killed),      cmocka_unit_test(test_two_engines),
    };
    return cmocka_run_group_tests(tests, make_alone, remove_model);
}
