/* log.h - one line per event, key=value, to stderr; control characters are escaped. Any thread.
 *   log_info("dispatch", "node=%u layer=%u msg=\"%u rows moved\"", ...)
 * error: someone should act. warn: we coped. info: state changes only. debug: per request. trace: all. */
#ifndef MOESAIC_BASE_LOG_H
#define MOESAIC_BASE_LOG_H

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG, LOG_TRACE };

/* Set once at start, before threads. Default: LOG_INFO. `who` (static, e.g. "node-2") may be NULL. */
void log_setup(enum log_level level, const char *who);
/* "error" .. "trace"; -1 if unknown. */
int log_level_parse(const char *name);
int log_enabled(enum log_level level);
void log_line(enum log_level level, const char *mod, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#define log_error(mod, ...) log_line(LOG_ERROR, mod, __VA_ARGS__)
#define log_warn(mod, ...)  log_line(LOG_WARN, mod, __VA_ARGS__)
#define log_info(mod, ...)  log_line(LOG_INFO, mod, __VA_ARGS__)
#define log_debug(mod, ...)                                                                        \
    do {                                                                                           \
        if (log_enabled(LOG_DEBUG)) log_line(LOG_DEBUG, mod, __VA_ARGS__);                         \
    } while (0)
#define log_trace(mod, ...)                                                                        \
    do {                                                                                           \
        if (log_enabled(LOG_TRACE)) log_line(LOG_TRACE, mod, __VA_ARGS__);                         \
    } while (0)

#endif
