/* Errors: a code, and one sentence for the user, kept per thread.
 * Fail once, where the cause is known; pass it on with SH_TRY. */
#ifndef SH_BASE_ERR_H
#define SH_BASE_ERR_H

/* The values equal enum shoal_err of include/shoal.h (checked in engine/engine.c). */
typedef enum sh_err {
    SH_OK = 0,
    SH_EARG,   /* the caller's argument or the user's flag; exit status 2 */
    SH_EFILE,  /* the content of a file is bad, or it is not there; exit status 2 */
    SH_ENOMEM, /* not enough memory */
    SH_ESYS,   /* the operating system refused something */
    SH_EPEER,  /* a rank or node is lost, or refuses */
    SH_EEND,   /* an orderly end: nothing more will come */
} sh_err;

/** Stores the sentence (at most 1023 bytes) for this thread and returns `code`.
 *  Name the thing and what to do; no final newline. */
__attribute__((format(printf, 2, 3))) sh_err sh_fail(sh_err code, const char *fmt, ...);

/** Puts "what: " before the stored sentence and returns `code`. For adding a file or node name. */
__attribute__((format(printf, 2, 3))) sh_err sh_fail_in(sh_err code, const char *fmt, ...);

/** The sentence of this thread's last failure, "" if none. Valid until the next failure. */
const char *sh_err_message(void);

#define SH_TRY(call)                                                                               \
    do {                                                                                           \
        sh_err sh_try_err_ = (call);                                                               \
        if (sh_try_err_ != SH_OK) return sh_try_err_;                                              \
    } while (0)

/* Same, for functions with one exit: sets `err` and goes to `out`. */
#define SH_GOTO(call)                                                                              \
    do {                                                                                           \
        if ((err = (call)) != SH_OK) goto out;                                                     \
    } while (0)

#endif
