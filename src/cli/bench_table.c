#include "cli/bench_table.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void sh_bench_name(char out[32], const sh_bench_row *r)
{
    static const char *const prefix[] = {"pp", "tg", "b"};
    snprintf(out, 32, "%s%d", prefix[r->kind], r->kind == SH_BENCH_BATCH ? r->n_seq : r->n);
}

static double round_to(double v, double unit)
{
    return round(v / unit) * unit;
}

static void print_json(sh_bench_table *t, const sh_bench_row *r)
{
    char name[32];
    const shoal_info *i = &r->info;
    sh_bench_name(name, r);
    json_t *j =
        json_pack("{s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:f, s:f, "
                  "s:f, s:s, s:s, s:s}",
                  "test", name, "model", t->model, "type", i->type, "threads", i->n_thread, "ranks",
                  i->n_rank, "stages", i->n_stage, "depth", r->depth, "batch", r->n_seq, "tps",
                  round_to(r->mean, 1e-3), "stddev", round_to(r->stddev, 1e-3), "ceiling_tps",
                  round_to(r->ceiling, 1e-3), "ratio", round_to(r->ratio, 1e-4), "median",
                  round_to(r->median, 1e-3), "min", round_to(r->min, 1e-3), "max",
                  round_to(r->max, 1e-3), "max_ceiling_tps", round_to(r->max_ceiling, 1e-3), "cpu",
                  i->cpu, "arith", i->arith, "kv", i->kv);
    char *text = j ? json_dumps(j, JSON_REAL_PRECISION(9)) : NULL;
    printf("%s  %s", t->begun ? ",\n" : "[\n", text ? text : "null");
    free(text);
    json_decref(j);
}

static void print_csv(sh_bench_table *t, const sh_bench_row *r)
{
    char name[32];
    const shoal_info *i = &r->info;
    sh_bench_name(name, r);
    if (!t->begun)
        puts("test,model,type,threads,ranks,stages,depth,batch,tps,stddev,ceiling_tps,ratio,median,"
             "min,max,max_ceiling_tps,cpu,arith,kv");
    printf("%s,%s,%s,%d,%d,%d,%d,%d,%.3f,%.3f,%.3f,%.4f,%.3f,%.3f,%.3f,%.3f,%s,%s,%s\n", name,
           t->model, i->type, i->n_thread, i->n_rank, i->n_stage, r->depth, r->n_seq, r->mean,
           r->stddev, r->ceiling, r->ratio, r->median, r->min, r->max, r->max_ceiling, i->cpu,
           i->arith, i->kv);
}

static void print_md(sh_bench_table *t, const sh_bench_row *r)
{
    char name[64], test[32], speed[64];
    const shoal_info *i = &r->info;
    sh_bench_name(test, r);
    snprintf(name, sizeof name, r->depth ? "%s @ d%d" : "%s", test, r->depth);
    snprintf(speed, sizeof speed, "%.2f ± %.2f", r->mean, r->stddev);
    if (!t->begun)
        printf("| %-16s | %-5s | %-6s | %7s | %5s | %6s | %-14s | %17s | %9s | %9s | %5s |\n"
               "| %s | %s | %s | %s: | %s: | %s: | %s | %s: | %s: | %s: | %s: |\n",
               "model", "type", "cpu", "threads", "ranks", "stages", "test", "tok/s", "median",
               "ceiling", "ratio", "----------------", "-----", "------", "------", "----", "-----",
               "--------------", "----------------", "--------", "--------", "----");
    /* "±" takes two bytes and one column */
    printf("| %-16s | %-5s | %-6s | %7d | %5d | %6d | %-14s | %18s | %9.2f | %9.2f | %5.3f |\n",
           t->model, i->type, i->cpu, i->n_thread, i->n_rank, i->n_stage, name, speed, r->median,
           r->ceiling, r->ratio);
}

void sh_bench_print(sh_bench_table *t, const sh_bench_row *r)
{
    if (strcmp(t->output, "json") == 0)
        print_json(t, r);
    else if (strcmp(t->output, "csv") == 0)
        print_csv(t, r);
    else
        print_md(t, r);
    fflush(stdout);
    t->begun = true;
}

void sh_bench_end(const sh_bench_table *t)
{
    if (t->begun && strcmp(t->output, "json") == 0) puts("\n]");
}
