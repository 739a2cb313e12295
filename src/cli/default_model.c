/* The model that a command takes when none is named: the project's own (models/README.md). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/spawn.h"
#include "cli/cli.h"

/* From the folder of the program: the source tree's, and the installed one. */
static const char *const places[] = {"../models/stories.gguf", "../share/shoal/stories.gguf"};

sh_err sh_default_model(const char **model, const char *command)
{
    static char path[4096 + 64];
    char program[4096];
    if (*model) return SH_OK;
    const char *env = getenv("SHOAL_MODEL");
    if (env && *env) {
        *model = env;
        return SH_OK;
    }
    SH_TRY(sh_program_path(program, sizeof program));
    char *slash = strrchr(program, '/');
    if (slash) *slash = 0;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        snprintf(path, sizeof path, "%s/%s", slash ? program : ".", places[i]);
        if (access(path, R_OK) != 0) continue;
        *model = path;
        return SH_OK;
    }
    return sh_fail(
        SH_EARG,
        "give the model with -m FILE: the project's own, stories.gguf, is not beside the "
        "program; see shoal %s --help",
        command);
}
