/* Log lines on stderr. Nothing in the library prints in any other way. */
#ifndef SH_BASE_LOG_H
#define SH_BASE_LOG_H

typedef enum sh_log_level { SH_LOG_ERROR, SH_LOG_WARN, SH_LOG_INFO, SH_LOG_DEBUG } sh_log_level;

/** Lines above `level` are dropped; SH_LOG_WARN at the start. */
void sh_log_set_level(sh_log_level level);

/** What each line begins with, e.g. "worker 127.0.0.1:5000"; at most 63 bytes; "shoal" at the
 * start. */
void sh_log_set_name(const char *name);

/** One line "name: text". Safe from every thread. */
__attribute__((format(printf, 2, 3))) void sh_log(sh_log_level level, const char *fmt, ...);

#endif
