/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>

#include <glib.h>

#include "conn.h"
#include "context.h"
#include "log.h"

_Thread_local struct thread_context thread_context;

bool log_verbose;

static _Atomic (enum log_target) log_target = LOG_TO_STDERR;

void
log_set_target (enum log_target target)
{
  if (target == LOG_TO_SYSLOG)
    openlog (PACKAGE_NAME, LOG_PID, LOG_DAEMON);
  atomic_store (&log_target, target);
}

/* A line longer than this is cut: nobody reads that, and a message may quote
 * what a client sent. */
#define MAX_LINE 2048

static void __attribute__ ((format (printf, 3, 0)))
log_line (int priority, const char *level, const char *fs, va_list args)
{
  int saved_errno = errno;
  enum log_target target = atomic_load (&log_target);
  char line[MAX_LINE + 2];
  size_t n = 0;
  ssize_t r;

  if (target == LOG_TO_NULL)
    return;
  if (target == LOG_TO_STDERR)
    n += snprintf (line, MAX_LINE, PACKAGE_NAME ": ");
  if (thread_context.conn != NULL)
    n += snprintf (line + n, MAX_LINE - n, "%.64s[%u]: ",
                   thread_context.plugin_name,
                   conn_number (thread_context.conn));
  n += snprintf (line + n, MAX_LINE - n, "%s: ", level);
  errno = saved_errno;          /* for %m */
  r = vsnprintf (line + n, MAX_LINE - n, fs, args);
  if (r > 0)
    n += (size_t) r < MAX_LINE - n ? (size_t) r : MAX_LINE - n - 1;
  if (target == LOG_TO_SYSLOG)
    syslog (priority, "%s", line);
  else {
    line[n++] = '\n';
    do
      r = write (STDERR_FILENO, line, n);
    while (r == -1 && errno == EINTR);
  }
  errno = saved_errno;
}

/* nbdkit's API has no call for warnings: plugins say so in the text. */
#define WARNING "warning: "

void
log_verror (const char *fs, va_list args)
{
  if (g_str_has_prefix (fs, WARNING))
    log_line (LOG_WARNING, "warning", fs + strlen (WARNING), args);
  else
    log_line (LOG_ERR, "error", fs, args);
}

void
log_error (const char *fs, ...)
{
  va_list args;

  va_start (args, fs);
  log_verror (fs, args);
  va_end (args);
}

void
log_vdebug (const char *fs, va_list args)
{
  if (log_verbose)
    log_line (LOG_DEBUG, "debug", fs, args);
}

void
log_debug_always (const char *fs, ...)
{
  va_list args;

  va_start (args, fs);
  log_vdebug (fs, args);
  va_end (args);
}
