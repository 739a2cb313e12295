#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char message[1024];

sh_err sh_fail(sh_err code, const char *fmt, ...)
{
    char text[sizeof message]; /* an argument may be the old message */
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    memcpy(message, text, sizeof message);
    return code;
}

sh_err sh_fail_in(sh_err code, const char *fmt, ...)
{
    char what[sizeof message];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    return sh_fail(code, "%s: %s", what, message);
}

const char *sh_err_message(void)
{
    return message;
}
