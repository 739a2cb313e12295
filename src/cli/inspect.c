/* shoal inspect: what is in a model file, for people or as JSON. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/cpu.h"
#include "base/mem.h"
#include "cli/cli.h"
#include "formats/formats.h"
#include "kernels/kernels.h"
#include "model/family.h"

enum { SHOW_ITEMS = 6, SHOW_BYTES = 72 }; /* of arrays and strings, for people */
enum { JSON_ITEMS = 16 };                 /* of arrays, in JSON */

static const char *const type_name[SH_N_META_TYPE] = {
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "array", "u64", "i64", "f64"};

/* A JSON string of at most max bytes of s; what is not UTF-8, DEL and the controls of U+0080 to
 * U+009F, which JSON lets pass but a terminal obeys, become U+FFFD. */
static json_t *json_of_str(sh_str s, size_t max)
{
    const utf8proc_uint8_t *p = (const utf8proc_uint8_t *)s.p;
    size_t n = s.n < max ? s.n : max, k = 0;
    char *text;
    if (sh_alloc(&text, n + 2, 3, "a string") != SH_OK) return NULL;
    for (size_t i = 0; i < n;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t len = utf8proc_iterate(p + i, (utf8proc_ssize_t)(s.n - i), &c);
        if (len < 1 || c == 0x7f || (c >= 0x80 && c < 0xa0)) {
            c = 0xfffd;
            len = len < 1 ? 1 : len;
        }
        k += (size_t)utf8proc_encode_char(c, (utf8proc_uint8_t *)text + k);
        i += (size_t)len;
    }
    if (n < s.n) k += (size_t)utf8proc_encode_char(0x2026, (utf8proc_uint8_t *)text + k);
    json_t *j = json_stringn(text, k);
    free(text);
    return j;
}

/* An f32 as the shortest decimal that reads back as the same. */
static json_t *json_of_real(double v, bool f32)
{
    char text[40];
    if (!isfinite(v)) return json_string(isnan(v) ? "nan" : v > 0 ? "inf" : "-inf");
    for (int digits = 1; f32 && digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if ((float)strtod(text, NULL) == (float)v) break;
    }
    return json_real(f32 ? strtod(text, NULL) : v);
}

static json_t *json_of_u64(uint64_t v)
{
    char text[24];
    if (v <= INT64_MAX) return json_integer((json_int_t)v);
    snprintf(text, sizeof text, "%" PRIu64, v); /* beyond JSON's integers here: a string */
    return json_string(text);
}

/* The next item of an array; NULL for a nested one. */
static json_t *json_of_item(sh_cursor *c, sh_meta_type type, size_t max)
{
    switch (type) {
    case SH_META_U8:
        return json_integer(sh_get_u8(c));
    case SH_META_I8:
        return json_integer((int8_t)sh_get_u8(c));
    case SH_META_U16:
        return json_integer(sh_get_u16(c));
    case SH_META_I16:
        return json_integer((int16_t)sh_get_u16(c));
    case SH_META_U32:
        return json_integer(sh_get_u32(c));
    case SH_META_I32:
        return json_integer((int32_t)sh_get_u32(c));
    case SH_META_U64:
        return json_of_u64(sh_get_u64(c));
    case SH_META_I64:
        return json_integer((int64_t)sh_get_u64(c));
    case SH_META_F32:
        return json_of_real((double)sh_get_f32(c), true);
    case SH_META_F64:
        return json_of_real(sh_get_f64(c), false);
    case SH_META_BOOL:
        return json_boolean(sh_get_u8(c));
    case SH_META_STR:
        return json_of_str(sh_get_str(c), max);
    default:
        return NULL;
    }
}

static json_t *json_of_scalar(const sh_meta *v, size_t max)
{
    switch (v->type) {
    case SH_META_BOOL:
        return json_boolean(v->u);
    case SH_META_F32:
    case SH_META_F64:
        return json_of_real(v->f, v->type == SH_META_F32);
    case SH_META_STR:
        return json_of_str(v->str, max);
    case SH_META_I8:
    case SH_META_I16:
    case SH_META_I32:
    case SH_META_I64:
        return json_integer(v->i);
    default:
        return json_of_u64(v->u);
    }
}

/* The first items of an array. */
static json_t *json_of_items(const sh_meta *v, uint64_t n_max, size_t max)
{
    json_t *list = json_array();
    sh_cursor c = sh_meta_cursor(v);
    for (uint64_t i = 0; i < v->n && i < n_max && v->item_type != SH_META_ARRAY; i++)
        json_array_append_new(list, json_of_item(&c, v->item_type, max));
    return list;
}

static json_t *json_of_meta(const sh_meta *v)
{
    enum { WHOLE = 1 << 16 }; /* chat templates fit */
    if (v->type != SH_META_ARRAY) return json_of_scalar(v, WHOLE);
    return json_pack("{s:s, s:o, s:o}", "items", type_name[v->item_type], "n", json_of_u64(v->n),
                     "first", json_of_items(v, JSON_ITEMS, WHOLE));
}

/* Prints and frees. */
static void print_json(json_t *j)
{
    if (!j || json_dumpf(j, stdout, JSON_ENCODE_ANY | JSON_REAL_PRECISION(15)) != 0)
        fputs("null", stdout);
    json_decref(j);
}

/* The sizes that the metadata states; 0 where it does not. */
typedef struct sizes {
    char family[64];
    uint64_t n_param;
    uint32_t n_layer, n_embd, n_head, n_kv_head, head_dim, n_ff, n_vocab, n_ctx;
    sh_config config;
    char problem[512]; /* why it cannot be run; "" if it can, and config is good */
} sizes;

static uint32_t size_of(const sh_model_file *m, const char *family, const char *what)
{
    char key[128];
    uint32_t v = 0;
    snprintf(key, sizeof key, "%s.%s", family, what);
    return sh_meta_u32(m, key, &v) == SH_OK ? v : 0; /* one per layer in some families: not shown */
}

static void get_sizes(sizes *s, const sh_model_file *m)
{
    const sh_meta *tokens = NULL;
    sh_str family = {"unknown", 7};
    *s = (sizes){0};
    (void)sh_meta_str(m, "general.architecture", &family);
    sh_str_show(s->family, sizeof s->family, family);
    s->n_layer = size_of(m, s->family, "block_count");
    s->n_embd = size_of(m, s->family, "embedding_length");
    s->n_head = size_of(m, s->family, "attention.head_count");
    s->n_kv_head = size_of(m, s->family, "attention.head_count_kv");
    s->head_dim = size_of(m, s->family, "attention.key_length");
    s->n_ff = size_of(m, s->family, "feed_forward_length");
    s->n_vocab = size_of(m, s->family, "vocab_size");
    s->n_ctx = size_of(m, s->family, "context_length");
    if (!s->n_kv_head) s->n_kv_head = s->n_head;
    if (!s->head_dim && s->n_head) s->head_dim = s->n_embd / s->n_head;
    (void)sh_meta_array(m, "tokenizer.ggml.tokens", SH_META_STR, &tokens);
    if (!s->n_vocab && tokens && tokens->n <= UINT32_MAX) s->n_vocab = (uint32_t)tokens->n;
    for (size_t i = 0; i < m->n_tensor; i++) {
        const sh_dtype_info *d = &sh_dtypes[m->tensor[i].dtype];
        s->n_param += m->tensor[i].n_bytes / (size_t)d->block_bytes * (size_t)d->block;
    }
    if (sh_config_read(&s->config, m) == SH_OK) return;
    const char *why = sh_err_message();
    size_t n = strlen(m->file.path);
    if (strncmp(why, m->file.path, n) == 0 && strncmp(why + n, ": ", 2) == 0) why += n + 2;
    sh_str_show(s->problem, sizeof s->problem, (sh_str){why, strlen(why)});
}

/* Row-major, rows first: "(512, 64)". */
static void shape_text(char *out, size_t cap, const sh_tensor *t)
{
    size_t n = 0;
    for (int d = t->n_dim - 1; d >= 0; d--)
        n += (size_t)snprintf(out + n, cap - n, "%s%" PRId64, n ? ", " : "(", t->dim[d]);
    snprintf(out + n, cap - n, ")");
}

/* How tensor parallelism cuts it; "" where the family is not known. */
static const char *split_of(const sizes *s, const sh_tensor *t)
{
    int layer;
    const sh_tensor_row *row = *s->problem ? NULL : sh_family_row(&s->config, t->name, &layer);
    return row ? sh_split_name(row->split) : "";
}

static void print_meta_text(const sh_meta *v)
{
    if (v->type != SH_META_ARRAY) {
        printf("  %s (%s) = ", v->key, type_name[v->type]);
        print_json(json_of_scalar(v, SHOW_BYTES));
    } else {
        printf("  %s (%" PRIu64 " x %s) = ", v->key, v->n, type_name[v->item_type]);
        json_t *list = json_of_items(v, SHOW_ITEMS, SHOW_BYTES / SHOW_ITEMS), *item;
        size_t i;
        putchar('[');
        json_array_foreach(list, i, item)
        {
            fputs(i ? ", " : "", stdout);
            print_json(json_incref(item));
        }
        fputs(v->n > i ? i ? ", ...]" : "...]" : "]", stdout);
        json_decref(list);
    }
    putchar('\n');
}

static void print_text(const sh_model_file *m, const sizes *s)
{
    const struct {
        const char *name;
        uint32_t v;
    } row[] = {{"layers", s->n_layer},     {"embd", s->n_embd},       {"heads", s->n_head},
               {"kv heads", s->n_kv_head}, {"head dim", s->head_dim}, {"ff", s->n_ff},
               {"vocab", s->n_vocab},      {"context", s->n_ctx}};
    int width = 6;
    printf("%-12s%s\n%-12s%s version %u\n%-12s%s\n", "file", m->file.path, "format",
           m->format->name, m->version, "family", s->family);
    printf("%-12s%zu bytes (%.2f MiB)\n%-12s%" PRIu64 "\n", "size", m->file.n_bytes,
           (double)m->file.n_bytes / (1 << 20), "parameters", s->n_param);
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        if (row[i].v) printf("%-12s%u\n", row[i].name, row[i].v);
    if (*s->problem) printf("%-12s%s\n", "cannot run", s->problem);

    for (size_t i = 0; i < m->n_tensor; i++) {
        int n = (int)strnlen(m->tensor[i].name, 64);
        if (n > width) width = n;
    }
    printf("\n%-*s  %-5s %-20s %12s  %s\n", width, "tensor", "type", "shape", "bytes", "split");
    for (size_t i = 0; i < m->n_tensor; i++) {
        const sh_tensor *t = &m->tensor[i];
        char shape[96];
        shape_text(shape, sizeof shape, t);
        printf("%-*s  %-5s %-20s %12zu  %s\n", width, t->name, sh_dtypes[t->dtype].name, shape,
               t->n_bytes, split_of(s, t));
    }
    puts("\nmetadata");
    for (size_t i = 0; i < m->n_meta; i++) print_meta_text(&m->meta[i]);
}

static json_t *json_of_tensor(const sizes *s, const sh_tensor *t)
{
    json_t *shape = json_array();
    for (int d = t->n_dim - 1; d >= 0; d--) json_array_append_new(shape, json_integer(t->dim[d]));
    const char *split = split_of(s, t);
    return json_pack("{s:s, s:s, s:o, s:o, s:s*}", "name", t->name, "type",
                     sh_dtypes[t->dtype].name, "shape", shape, "bytes", json_of_u64(t->n_bytes),
                     "split", *split ? split : NULL);
}

/* One object, written piece by piece: it may be larger than we want in memory. */
static void print_as_json(const sh_model_file *m, const sizes *s)
{
    sh_str path = {m->file.path, strlen(m->file.path)};
    json_t *head = json_pack(
        "{s:o, s:s, s:i, s:s, s:s*, s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "file",
        json_of_str(path, path.n), "format", m->format->name, "version", (int)m->version, "family",
        s->family, "problem", *s->problem ? s->problem : NULL, "bytes",
        json_of_u64(m->file.n_bytes), "parameters", json_of_u64(s->n_param), "n_layer",
        (json_int_t)s->n_layer, "n_embd", (json_int_t)s->n_embd, "n_head", (json_int_t)s->n_head,
        "n_kv_head", (json_int_t)s->n_kv_head, "head_dim", (json_int_t)s->head_dim, "n_ff",
        (json_int_t)s->n_ff, "n_vocab", (json_int_t)s->n_vocab, "n_ctx", (json_int_t)s->n_ctx);
    const char *key;
    json_t *v;
    printf("{");
    json_object_foreach(head, key, v)
    {
        printf("\"%s\": ", key);
        print_json(json_incref(v));
        printf(",\n");
    }
    json_decref(head);
    printf("\"tensors\": [");
    for (size_t i = 0; i < m->n_tensor; i++) {
        printf(i ? ",\n  " : "\n  ");
        print_json(json_of_tensor(s, &m->tensor[i]));
    }
    printf("],\n\"metadata\": {");
    for (size_t i = 0; i < m->n_meta; i++) {
        sh_str name = {m->meta[i].key, strlen(m->meta[i].key)};
        printf(i ? ",\n  " : "\n  ");
        print_json(json_of_str(name, name.n));
        printf(": ");
        print_json(json_of_meta(&m->meta[i]));
    }
    printf("}}\n");
}

static void print_kernel(void *arg, const char *row, const char *isa)
{
    (void)arg;
    printf("%-24s  %s\n", row, isa);
}

/* Which instruction set serves each row of the kernels' table, here and now. */
static sh_err print_kernels(void)
{
    char cpu[128];
    sh_cpu_name(cpu, sizeof cpu);
    printf("%s\n\n%-24s  %s\n", *cpu ? cpu : "unknown processor", "kernel", "instruction set");
    return sh_kernels_list(NULL, print_kernel, NULL);
}

static int inspect_main(int argc, char **argv)
{
    bool help = false, as_json = false, kernels = false;
    const char *path = NULL;
    int n_arg = 0;
    const sh_flag flags[] = {
        {"--json", NULL, SH_FLAG_BOOL, &as_json, 0, 0, "print one JSON object"},
        {"--kernels", NULL, SH_FLAG_BOOL, &kernels, 0, 0,
         "say which instruction set serves each kernel on this machine"},
    };
    sh_model_file *m = NULL;
    sizes s;
    sh_err err = sh_flags_parse("shoal inspect (FILE | --kernels)", flags, 2, argc, argv, &path, 1,
                                &n_arg, &help);
    if (help || err != SH_OK) return sh_exit("inspect", err);
    if (kernels) return sh_exit("inspect", print_kernels());
    if (n_arg < 1)
        return sh_exit("inspect", sh_fail(SH_EARG, "which file? see shoal inspect --help"));
    SH_GOTO(sh_model_file_open(&m, path));
    get_sizes(&s, m);
    if (as_json) {
        print_as_json(m, &s);
    } else {
        print_text(m, &s);
    }
out:
    sh_model_file_close(m);
    return sh_exit("inspect", err);
}

const sh_command sh_command_inspect = {
    .name = "inspect", .summary = "say what is in a model file", .main = inspect_main};
