/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* log.h - messages for the operator: one line each, one write each.
 *
 * Thread-safe.  errno is preserved, and %m works.  Lines of a thread that
 * serves a client carry the plugin's name and the connection's number.  Control
 * characters, which a client's names may hold, are written as escapes: nobody
 * can make a second line.
 */
#ifndef NBDFLEECE_LOG_H
#define NBDFLEECE_LOG_H

#include <stdarg.h>
#include <stdbool.h>
#include <sys/types.h>

#include <glib.h>

extern bool log_verbose;        /* set by main before there are threads */

/* stderr, syslog, null, journal, journal:SOCKET, or an absolute path. */
bool log_target_is_valid (const char *target);
/* Open a file, so that what is wrong with it is known before the server goes
 * into the background.  Nothing goes there yet. */
bool log_prepare (const char *target, GError **error);
/* Whoever serves has to be able to open that file again.  Given to this user
 * and group (-1: stays) is a regular file that is ours, as one is that
 * log_prepare has made; anything else stays as it is.  false: that cannot be
 * done. */
bool log_give_file (uid_t uid, gid_t gid, GError **error);
/* Messages go there from now on; to standard error, with a line that says so,
 * if there is no journal. */
void log_set_target (const char *target);

void log_error (const char *fs, ...) __attribute__ ((format (printf, 1, 2)));
void log_verror (const char *fs, va_list args)
  __attribute__ ((format (printf, 1, 0)));
void log_vdebug (const char *fs, va_list args)
  __attribute__ ((format (printf, 1, 0)));
/* So many lines of one kind in so much time: a client that comes again and
 * again shall not fill the log.  Static; any thread. */
struct log_bound {
  unsigned most;                /* lines in 10 s; 0: 5 */
  int64_t window;               /* began then, monotonic us */
  unsigned lines, left_out;     /* in it */
};
/* Whether a line may be written; *left_out: how many were not, before it. */
bool log_may (struct log_bound *bound, unsigned *left_out);
/* If so, with how many were not. */
void log_error_bounded (struct log_bound *bound, const char *fs, ...)
  __attribute__ ((format (printf, 2, 3)));
void log_verror_bounded (struct log_bound *bound, const char *fs, va_list args)
  __attribute__ ((format (printf, 2, 0)));

void log_debug_always (const char *fs, ...)
  __attribute__ ((format (printf, 1, 2)));

/* Costs a test of a global when it is off. */
#define log_debug(...) \
  do { if (log_verbose) log_debug_always (__VA_ARGS__); } while (0)

#endif /* NBDFLEECE_LOG_H */
