/* Makes a model file of family llama, gpt2 or gptj with random weights and a small
 * SentencePiece-kind vocabulary, for tests. The same arguments give the same bytes everywhere. */
#define _GNU_SOURCE
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "formats/formats.h"

enum { N_FIXED = 259, PIECE_BYTES = 24 }; /* unknown, begin, end, 256 bytes; then the pieces */
enum { TOKEN_NORMAL = 1, TOKEN_UNKNOWN = 2, TOKEN_CONTROL = 3, TOKEN_BYTE = 6 };

typedef struct options {
    const char *family;
    int n_layer, n_embd, n_head, n_kv_head, head_dim, n_rot, n_ff, n_vocab, n_ctx;
    sh_dtype dtype;
    float rope_base, rope_linear;
    bool llama3, tied;
    uint64_t seed;
} options;

typedef struct maker {
    options o;
    sh_gguf_writer *w;
    uint64_t random; /* state */
    float *row;
    uint8_t *packed; /* the row in its element type */
    bool adding;     /* first walk over the tensors: their table; second: their data */
} maker;

/* Standard normal, near enough: the sum of four 16-bit numbers of a splitmix64 step. In integers
 * but for the last product, so that every machine gives the same. Source: Steele, Lea, Flood, "Fast
 * splittable pseudorandom number generators", OOPSLA 2014. */
static float normal(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    int sum =
        (int)(z & 0xffff) + (int)(z >> 16 & 0xffff) + (int)(z >> 32 & 0xffff) + (int)(z >> 48);
    return (float)(sum - 2 * 65535) * 2.6428979e-05f; /* 1 / standard deviation of the sum */
}

static sh_err put_row(maker *k, sh_dtype dtype, int cols)
{
    sh_dtypes[dtype].from_f32(k->packed, k->row, (size_t)cols);
    return sh_gguf_write(k->w, k->packed, sh_dtype_bytes(dtype, (size_t)cols));
}

/* (rows, cols) with the given standard deviation; the first n_quiet rows have 0.3 of it. */
static sh_err matrix(maker *k, const char *name, int rows, int cols, float std, int n_quiet)
{
    sh_dtype dtype = cols % sh_dtypes[k->o.dtype].block ? SH_F16 : k->o.dtype;
    if (k->adding) {
        sh_gguf_add_tensor(k->w, name, dtype, 2, (int64_t[]){cols, rows});
        return SH_OK;
    }
    for (int r = 0; r < rows; r++) {
        float s = r < n_quiet ? 0.3f * std : std;
        for (int c = 0; c < cols; c++) k->row[c] = s * normal(&k->random);
        SH_TRY(put_row(k, dtype, cols));
    }
    return SH_OK;
}

/* (n) with that mean and standard deviation. */
static sh_err vector(maker *k, const char *name, int n, float mean, float std)
{
    if (k->adding) {
        sh_gguf_add_tensor(k->w, name, SH_F32, 1, (int64_t[]){n});
        return SH_OK;
    }
    for (int i = 0; i < n; i++) k->row[i] = mean + std * normal(&k->random);
    return put_row(k, SH_F32, n);
}

static sh_err norm(maker *k, const char *name, int n)
{
    return vector(k, name, n, 1.0f, 0.1f);
}

static sh_err bias(maker *k, const char *name, int n)
{
    return vector(k, name, n, 0.0f, 0.2f);
}

/* The llama3 rule of frequency scaling as factors, (head_dim / 2), for a model that was made for
 * n_ctx positions and is stretched by 8. Source: Hugging Face's rope_type "llama3", low 1, high 4.
 */
static sh_err rope_factors(maker *k)
{
    int n = k->o.head_dim / 2;
    if (k->adding) {
        sh_gguf_add_tensor(k->w, "rope_freqs.weight", SH_F32, 1, (int64_t[]){n});
        return SH_OK;
    }
    for (int i = 0; i < n; i++) {
        double turns = k->o.n_ctx / (6.283185307179586 * pow(k->o.rope_base, (double)i / n));
        double smooth = turns >= 4 ? 1 : turns <= 1 ? 0 : (turns - 1) / 3;
        k->row[i] = (float)(1 / ((1 - smooth) / 8 + smooth));
    }
    return put_row(k, SH_F32, n);
}

static sh_err llama_tensors(maker *k)
{
    const options *o = &k->o;
    int q = o->n_head * o->head_dim, kv = o->n_kv_head * o->head_dim;
    float in = 1.0f / sqrtf((float)o->n_embd), head = 2.5f * in;
    SH_TRY(matrix(k, "token_embd.weight", o->n_vocab, o->n_embd, o->tied ? head : 1.0f,
                  o->tied ? N_FIXED : 0));
    if (o->llama3) SH_TRY(rope_factors(k));
    for (int i = 0; i < o->n_layer; i++) {
        char name[64];
#define NAME(what) (snprintf(name, sizeof name, "blk.%d." what ".weight", i), name)
        SH_TRY(norm(k, NAME("attn_norm"), o->n_embd));
        SH_TRY(matrix(k, NAME("attn_q"), q, o->n_embd, 1.2f * in, 0));
        SH_TRY(matrix(k, NAME("attn_k"), kv, o->n_embd, 1.2f * in, 0));
        SH_TRY(matrix(k, NAME("attn_v"), kv, o->n_embd, in, 0));
        SH_TRY(matrix(k, NAME("attn_output"), o->n_embd, q, 1.0f / sqrtf((float)q), 0));
        SH_TRY(norm(k, NAME("ffn_norm"), o->n_embd));
        SH_TRY(matrix(k, NAME("ffn_gate"), o->n_ff, o->n_embd, in, 0));
        SH_TRY(matrix(k, NAME("ffn_up"), o->n_ff, o->n_embd, in, 0));
        SH_TRY(matrix(k, NAME("ffn_down"), o->n_embd, o->n_ff, 1.5f / sqrtf((float)o->n_ff), 0));
#undef NAME
    }
    SH_TRY(norm(k, "output_norm.weight", o->n_embd));
    return o->tied ? SH_OK : matrix(k, "output.weight", o->n_vocab, o->n_embd, head, N_FIXED);
}

static sh_err gpt2_tensors(maker *k)
{
    const options *o = &k->o;
    int q = o->n_head * o->head_dim, qkv = q + 2 * o->n_kv_head * o->head_dim;
    float in = 1.0f / sqrtf((float)o->n_embd), head = 2.5f * in;
    SH_TRY(matrix(k, "token_embd.weight", o->n_vocab, o->n_embd, o->tied ? head : 1.0f,
                  o->tied ? N_FIXED : 0));
    SH_TRY(matrix(k, "position_embd.weight", o->n_ctx, o->n_embd, o->tied ? head : 0.5f, 0));
    for (int i = 0; i < o->n_layer; i++) {
        char name[64];
#define NAME(what) (snprintf(name, sizeof name, "blk.%d." what, i), name)
        SH_TRY(norm(k, NAME("attn_norm.weight"), o->n_embd));
        SH_TRY(bias(k, NAME("attn_norm.bias"), o->n_embd));
        SH_TRY(matrix(k, NAME("attn_qkv.weight"), qkv, o->n_embd, 1.1f * in, 0));
        SH_TRY(bias(k, NAME("attn_qkv.bias"), qkv));
        SH_TRY(matrix(k, NAME("attn_output.weight"), o->n_embd, q, 1.0f / sqrtf((float)q), 0));
        SH_TRY(bias(k, NAME("attn_output.bias"), o->n_embd));
        SH_TRY(norm(k, NAME("ffn_norm.weight"), o->n_embd));
        SH_TRY(bias(k, NAME("ffn_norm.bias"), o->n_embd));
        SH_TRY(matrix(k, NAME("ffn_up.weight"), o->n_ff, o->n_embd, in, 0));
        SH_TRY(bias(k, NAME("ffn_up.bias"), o->n_ff));
        SH_TRY(matrix(k, NAME("ffn_down.weight"), o->n_embd, o->n_ff, 1.5f / sqrtf((float)o->n_ff),
                      0));
        SH_TRY(bias(k, NAME("ffn_down.bias"), o->n_embd));
#undef NAME
    }
    SH_TRY(norm(k, "output_norm.weight", o->n_embd));
    SH_TRY(bias(k, "output_norm.bias", o->n_embd));
    return o->tied ? SH_OK : matrix(k, "output.weight", o->n_vocab, o->n_embd, head, N_FIXED);
}

static sh_err gptj_tensors(maker *k)
{
    const options *o = &k->o;
    int q = o->n_head * o->head_dim, kv = o->n_kv_head * o->head_dim;
    float in = 1.0f / sqrtf((float)o->n_embd), head = 2.5f * in;
    SH_TRY(matrix(k, "token_embd.weight", o->n_vocab, o->n_embd, 1.0f, 0));
    for (int i = 0; i < o->n_layer; i++) {
        char name[64];
#define NAME(what) (snprintf(name, sizeof name, "blk.%d." what, i), name)
        SH_TRY(norm(k, NAME("attn_norm.weight"), o->n_embd));
        SH_TRY(bias(k, NAME("attn_norm.bias"), o->n_embd));
        SH_TRY(matrix(k, NAME("attn_q.weight"), q, o->n_embd, 1.2f * in, 0));
        SH_TRY(matrix(k, NAME("attn_k.weight"), kv, o->n_embd, 1.2f * in, 0));
        SH_TRY(matrix(k, NAME("attn_v.weight"), kv, o->n_embd, in, 0));
        SH_TRY(matrix(k, NAME("attn_output.weight"), o->n_embd, q, 1.0f / sqrtf((float)q), 0));
        SH_TRY(matrix(k, NAME("ffn_up.weight"), o->n_ff, o->n_embd, in, 0));
        SH_TRY(bias(k, NAME("ffn_up.bias"), o->n_ff));
        SH_TRY(matrix(k, NAME("ffn_down.weight"), o->n_embd, o->n_ff, 1.5f / sqrtf((float)o->n_ff),
                      0));
        SH_TRY(bias(k, NAME("ffn_down.bias"), o->n_embd));
#undef NAME
    }
    SH_TRY(norm(k, "output_norm.weight", o->n_embd));
    SH_TRY(bias(k, "output_norm.bias", o->n_embd));
    SH_TRY(matrix(k, "output.weight", o->n_vocab, o->n_embd, head, N_FIXED));
    return bias(k, "output.bias", o->n_vocab);
}

static bool is(const options *o, const char *family)
{
    return strcmp(o->family, family) == 0;
}

/* Standard deviations are such that activations stay near 1 and logits near 2.5; control and byte
 * tokens are quiet in the head, so that mostly words come out. */
static sh_err tensors(maker *k)
{
    if (is(&k->o, "gptj")) return gptj_tensors(k);
    return is(&k->o, "gpt2") ? gpt2_tensors(k) : llama_tensors(k);
}

typedef char piece[PIECE_BYTES];

static bool known(piece *list, int n, const char *text)
{
    for (int i = N_FIXED; i < n; i++)
        if (strcmp(list[i], text) == 0) return true;
    return false;
}

/* Every beginning of every word, so that merging from the left can reach the word. */
static int add_words(piece *list, int n, int max)
{
    static const char words[] =
        "the of and to in is you that it he was for on are as with his they at be this have from "
        "or one "
        "had by word but not what all were we when your can said there use an each which she do "
        "how "
        "their if will up other about out many then them these so some her would make like him "
        "into "
        "time has look two more write go see number no way could people my than first water been "
        "call "
        "who oil its now find long down day did get come made may part little house world year "
        "work "
        "story light small once upon friend happy dog cat tree sun ball play big mom bird ran saw ";
    for (const char *w = words; *w; w = strchr(w, ' ') + 1) {
        int len = (int)(strchr(w, ' ') - w);
        for (int k = 1; k <= len; k++) {
            piece text;
            snprintf(text, sizeof text, "\xe2\x96\x81%.*s", k, w); /* U+2581 stands for the space */
            if (n < max && !known(list, n, text)) strcpy(list[n++], text);
        }
    }
    return n;
}

/* Then made-up syllables: "ba", "be", ... "zu", "baba", ... */
static void add_syllables(piece *list, int n, int max)
{
    static const char consonants[] = "bcdfghjklmnpqrstvwyz", vowels[] = "aeiou";
    for (int len = 1, count = 100; n < max; len++, count *= 100)
        for (int i = 0; i < count && n < max; i++, n++)
            for (int j = 0, v = i; j < len; j++, v /= 100) {
                list[n][2 * j] = consonants[v % 100 / 5];
                list[n][2 * j + 1] = vowels[v % 5];
            }
}

static sh_err vocabulary(maker *k)
{
    static const char singles[] =
        "abcdefghijklmnopqrstuvwxyz.,!?'-\"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    int n = k->o.n_vocab, at = 0;
    piece *list = NULL;
    sh_str *str = NULL;
    float *score = NULL;
    int32_t *type = NULL;
    sh_err err;
    SH_GOTO(sh_alloc(&list, (size_t)n, sizeof *list, "the vocabulary"));
    SH_GOTO(sh_alloc(&str, (size_t)n, sizeof *str, "the vocabulary"));
    SH_GOTO(sh_alloc(&score, (size_t)n, sizeof *score, "the vocabulary"));
    SH_GOTO(sh_alloc(&type, (size_t)n, sizeof *type, "the vocabulary"));
    strcpy(list[at++], "<unk>");
    strcpy(list[at++], "<s>");
    strcpy(list[at++], "</s>");
    for (int i = 0; i < 256; i++) snprintf(list[at++], sizeof *list, "<0x%02X>", i);
    strcpy(list[at++], "\xe2\x96\x81");
    for (const char *c = singles; *c && at < n; c++) list[at++][0] = *c;
    at = add_words(list, at, n);
    add_syllables(list, at, n);
    for (int i = 0; i < n; i++) {
        str[i] = (sh_str){list[i], strlen(list[i])};
        score[i] = i < N_FIXED ? 0 : (float)(N_FIXED - i);
        type[i] = i == 0        ? TOKEN_UNKNOWN
                  : i < 3       ? TOKEN_CONTROL
                  : i < N_FIXED ? TOKEN_BYTE
                                : TOKEN_NORMAL;
    }
    sh_gguf_put_str(k->w, "tokenizer.ggml.model", "llama", 5);
    sh_gguf_put_strs(k->w, "tokenizer.ggml.tokens", str, (size_t)n);
    sh_gguf_put_f32s(k->w, "tokenizer.ggml.scores", score, (size_t)n);
    sh_gguf_put_i32s(k->w, "tokenizer.ggml.token_type", type, (size_t)n);
    sh_gguf_put_u32(k->w, "tokenizer.ggml.bos_token_id", 1);
    sh_gguf_put_u32(k->w, "tokenizer.ggml.eos_token_id", 2);
    sh_gguf_put_u32(k->w, "tokenizer.ggml.unknown_token_id", 0);
    sh_gguf_put_bool(k->w, "tokenizer.ggml.add_bos_token", true);
out:
    free(list);
    free(str);
    free(score);
    free(type);
    return err;
}

/* "<family>.<what>" */
static void put_u32(maker *k, const char *what, int v)
{
    char key[64];
    snprintf(key, sizeof key, "%s.%s", k->o.family, what);
    sh_gguf_put_u32(k->w, key, (uint32_t)v);
}

static void metadata(maker *k)
{
    static const uint32_t file_type[SH_N_DTYPE] = {
        [SH_F32] = 0, [SH_F16] = 1, [SH_BF16] = 32, [SH_Q8_0] = 7, [SH_Q4_0] = 2};
    const options *o = &k->o;
    char name[64];
    snprintf(name, sizeof name, "random %d x %d, seed %llu", o->n_layer, o->n_embd,
             (unsigned long long)o->seed);
    sh_gguf_put_str(k->w, "general.architecture", o->family, strlen(o->family));
    sh_gguf_put_str(k->w, "general.name", name, strlen(name));
    sh_gguf_put_u32(k->w, "general.file_type", file_type[o->dtype]);
    put_u32(k, "context_length", o->n_ctx);
    put_u32(k, "embedding_length", o->n_embd);
    put_u32(k, "block_count", o->n_layer);
    put_u32(k, "feed_forward_length", o->n_ff);
    put_u32(k, "attention.head_count", o->n_head);
    if (is(o, "llama") || o->n_kv_head != o->n_head)
        put_u32(k, "attention.head_count_kv", o->n_kv_head);
    if (o->head_dim * o->n_head != o->n_embd) {
        put_u32(k, "attention.key_length", o->head_dim);
        put_u32(k, "attention.value_length", o->head_dim);
    }
    if (!is(o, "llama")) {
        snprintf(name, sizeof name, "%s.attention.layer_norm_epsilon", o->family);
        sh_gguf_put_f32(k->w, name, 1e-5f);
        if (is(o, "gptj")) put_u32(k, "rope.dimension_count", o->n_rot);
        return;
    }
    sh_gguf_put_f32(k->w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    put_u32(k, "rope.dimension_count", o->n_rot);
    sh_gguf_put_f32(k->w, "llama.rope.freq_base", o->rope_base);
    if (o->rope_linear > 0) {
        sh_gguf_put_str(k->w, "llama.rope.scaling.type", "linear", 6);
        sh_gguf_put_f32(k->w, "llama.rope.scaling.factor", o->rope_linear);
    }
    put_u32(k, "vocab_size", o->n_vocab);
}

static sh_err make(const char *path, const options *o)
{
    maker k = {.o = *o, .random = o->seed, .adding = true};
    int widest = o->n_ff;
    sh_err err, closed;
    if (o->n_embd > widest) widest = o->n_embd;
    int qkv = (o->n_head + 2 * o->n_kv_head) * o->head_dim;
    if (qkv > widest) widest = qkv;
    if (o->n_vocab > widest) widest = o->n_vocab; /* a head's bias */
    SH_GOTO(sh_alloc(&k.row, (size_t)widest, sizeof *k.row, "a row"));
    SH_GOTO(sh_alloc(&k.packed, (size_t)widest, sizeof *k.row, "a row"));
    SH_GOTO(sh_gguf_create(&k.w, path));
    metadata(&k);
    SH_GOTO(vocabulary(&k));
    SH_GOTO(tensors(&k));
    k.adding = false;
    err = tensors(&k);
out:
    closed = sh_gguf_close(k.w, err == SH_OK);
    free(k.row);
    free(k.packed);
    return err != SH_OK ? err : closed;
}

static sh_err check(options *o)
{
    if (!is(o, "llama") && !is(o, "gpt2") && !is(o, "gptj"))
        return sh_fail(SH_EARG, "--family must be llama, gpt2 or gptj");
    if (is(o, "gptj") && o->tied) return sh_fail(SH_EARG, "a head of family gptj is not tied");
    if (!o->n_kv_head) o->n_kv_head = is(o, "llama") ? 2 : o->n_head;
    if (!o->head_dim) o->head_dim = o->n_head > 0 ? o->n_embd / o->n_head : 0;
    if (!o->n_rot) o->n_rot = o->head_dim;
    const int all[] = {o->n_layer,  o->n_embd, o->n_head, o->n_kv_head,
                       o->head_dim, o->n_rot,  o->n_ff,   o->n_ctx};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i] < 1 || all[i] > 1 << 20) return sh_fail(SH_EARG, "a size is out of range");
    if (o->n_head % o->n_kv_head)
        return sh_fail(SH_EARG, "--heads must be a multiple of --kv-heads");
    if (o->head_dim % 2) return sh_fail(SH_EARG, "--head-dim must be even");
    if (o->n_rot % 2 || o->n_rot > o->head_dim)
        return sh_fail(SH_EARG, "--rot must be even and at most --head-dim");
    if (o->n_vocab <= N_FIXED || o->n_vocab > 1 << 20)
        return sh_fail(SH_EARG, "--vocab must be from %d to %d", N_FIXED + 1, 1 << 20);
    if (!(o->rope_base > 1)) return sh_fail(SH_EARG, "--rope-base must be above 1");
    return SH_OK;
}

int main(int argc, char **argv)
{
    options o = {"llama", 2, 64, 4, 0, 0, 0, 160, 512, 256, SH_F32, 10000.0f, 0, false, false, 1};
    static const struct option flags[] = {
        {"layers", 1, 0, 'l'},
        {"embd", 1, 0, 'e'},
        {"heads", 1, 0, 'h'},
        {"kv-heads", 1, 0, 'k'},
        {"head-dim", 1, 0, 'd'},
        {"ff", 1, 0, 'f'},
        {"vocab", 1, 0, 'v'},
        {"ctx", 1, 0, 'c'},
        {"type", 1, 0, 't'},
        {"rope-base", 1, 0, 'b'},
        {"rope-linear", 1, 0, 'r'},
        {"rope-llama3", 0, 0, '3'},
        {"tied", 0, 0, 'T'},
        {"seed", 1, 0, 's'},
        {"family", 1, 0, 'F'},
        {"rot", 1, 0, 'R'},
        {0},
    };
    int type = SH_F32;
    for (int c; (c = getopt_long(argc, argv, "", flags, NULL)) != -1;) switch (c) {
        case 'F':
            o.family = optarg;
            break;
        case 'l':
            o.n_layer = atoi(optarg);
            break;
        case 'e':
            o.n_embd = atoi(optarg);
            break;
        case 'h':
            o.n_head = atoi(optarg);
            break;
        case 'k':
            o.n_kv_head = atoi(optarg);
            break;
        case 'd':
            o.head_dim = atoi(optarg);
            break;
        case 'R':
            o.n_rot = atoi(optarg);
            break;
        case 'f':
            o.n_ff = atoi(optarg);
            break;
        case 'v':
            o.n_vocab = atoi(optarg);
            break;
        case 'c':
            o.n_ctx = atoi(optarg);
            break;
        case 't':
            type = sh_dtype_by_name(optarg);
            break;
        case 'b':
            o.rope_base = strtof(optarg, NULL);
            break;
        case 'r':
            o.rope_linear = strtof(optarg, NULL);
            break;
        case '3':
            o.llama3 = true;
            break;
        case 'T':
            o.tied = true;
            break;
        case 's':
            o.seed = strtoull(optarg, NULL, 10);
            break;
        default:
            return 2;
        }
    sh_err err = SH_OK;
    if (type < 0) {
        err = sh_fail(SH_EARG, "--type must be one of %s", sh_dtype_list());
    } else if (optind != argc - 1) {
        err = sh_fail(SH_EARG, "one argument is needed: the file to make");
    } else {
        o.dtype = (sh_dtype)type;
        err = check(&o);
        if (err == SH_OK) err = make(argv[optind], &o);
    }
    if (err != SH_OK) fprintf(stderr, "mkmodel: %s\n", sh_err_message());
    return err == SH_OK ? 0 : err == SH_EARG ? 2 : 1;
}
