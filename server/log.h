/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* log.h - messages for the operator: one line each, one write each.
 *
 * Thread-safe.  errno is preserved, and %m works.  Lines of a thread that
 * serves a client carry the plugin's name and the connection's number.
 */
#ifndef NBDFLEECE_LOG_H
#define NBDFLEECE_LOG_H

#include <stdarg.h>
#include <stdbool.h>

enum log_target { LOG_TO_STDERR, LOG_TO_SYSLOG, LOG_TO_NULL };

extern bool log_verbose;        /* set by main before there are threads */

void log_set_target (enum log_target target);

void log_error (const char *fs, ...) __attribute__ ((format (printf, 1, 2)));
void log_verror (const char *fs, va_list args)
  __attribute__ ((format (printf, 1, 0)));
void log_vdebug (const char *fs, va_list args)
  __attribute__ ((format (printf, 1, 0)));
void log_debug_always (const char *fs, ...)
  __attribute__ ((format (printf, 1, 2)));

/* Costs a test of a global when it is off. */
#define log_debug(...) \
  do { if (log_verbose) log_debug_always (__VA_ARGS__); } while (0)

#endif /* NBDFLEECE_LOG_H */
