#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

/* Set once at start-up, before there are threads; the level may be read by any of them. */
static atomic_int max_level = SH_LOG_WARN;
static char who[64] = "shoal";

void sh_log_set_level(sh_log_level level)
{
    atomic_store(&max_level, (int)level);
}

void sh_log_set_name(const char *name)
{
    snprintf(who, sizeof who, "%s", name);
}

void sh_log(sh_log_level level, const char *fmt, ...)
{
    char line[1200];
    va_list ap;
    if ((int)level > atomic_load(&max_level)) return;
    int n = snprintf(line, sizeof line, "%s: ", who);
    va_start(ap, fmt);
    int m = vsnprintf(line + n, sizeof line - (size_t)n - 1, fmt, ap);
    va_end(ap);
    n = m < 0 ? n : n + m;
    if (n > (int)sizeof line - 2) n = (int)sizeof line - 2;
    line[n++] = '\n';
    fwrite(line, 1, (size_t)n, stderr); /* one call: lines of several processes do not mix */
}
