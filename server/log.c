/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include "conn.h"
#include "context.h"
#include "log.h"
#include "log-journal.h"
#include "reload.h"

_Thread_local struct thread_context thread_context;

bool log_verbose;

enum target { TO_STDERR, TO_SYSLOG, TO_NULL, TO_JOURNAL, TO_FILE };

static _Atomic (enum target) current = TO_STDERR;
/* Set before current says TO_FILE; then only replaced, by dup3. */
static char *file_path;
static int file_fd = -1;
static atomic_uint nr_lost;     /* that the journal did not take */

#define JOURNAL_PREFIX "journal:"

static enum target
parse_target (const char *target)
{
  return strcmp (target, "stderr") == 0 ? TO_STDERR :
    strcmp (target, "syslog") == 0 ? TO_SYSLOG :
    strcmp (target, "null") == 0 ? TO_NULL :
    strcmp (target, "journal") == 0 ||
    g_str_has_prefix (target, JOURNAL_PREFIX) ? TO_JOURNAL : TO_FILE;
}

bool
log_target_is_valid (const char *target)
{
  if (g_str_has_prefix (target, JOURNAL_PREFIX))
    target += strlen (JOURNAL_PREFIX);
  return *target == '/' || parse_target (target) != TO_FILE;
}

/* -1: sets *out_why, which is valid until the next call.  The server never
 * waits for whoever reads from a pipe: not for him to come, and lines that he
 * does not take are lost. */
static int
open_file (const char **out_why)
{
  int flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, fd;
  struct stat st;

  fd = open (file_path, flags | O_NONBLOCK, 0640);
  if (fd == -1)
    *out_why = errno == ENXIO ? "it is a pipe that nobody reads from, or a "
      "socket" : g_strerror (errno);
  else if (fstat (fd, &st) == 0 && !S_ISFIFO (st.st_mode))
    fcntl (fd, F_SETFL, flags & ~O_NONBLOCK);
  return fd;
}

/* It has been moved away, and shall be there again. */
static bool
reopen_file (void)
{
  const char *why = NULL;
  int fd = open_file (&why);
  bool ok = fd != -1 && dup3 (fd, file_fd, O_CLOEXEC) != -1;

  if (!ok)
    log_error ("cannot open log file '%s' again: %s", file_path,
               why ? why : g_strerror (errno));
  if (fd != -1)
    close (fd);
  return ok;
}

bool
log_prepare (const char *target, GError **error)
{
  const char *why;

  if (parse_target (target) != TO_FILE)
    return true;
  file_path = g_strdup (target);
  file_fd = open_file (&why);
  if (file_fd == -1)
    g_set_error (error, g_quark_from_static_string ("nbdfleece-log"), 0,
                 "cannot open log file '%s': %s", target, why);
  return file_fd != -1;
}

/* Not through a link of either kind: in a folder that is that user's, he could
 * have made it lead to a file of root's that he wants. */
static bool
is_ours_alone (void)
{
  struct stat st, named;

  return fstat (file_fd, &st) == 0 && lstat (file_path, &named) == 0 &&
    S_ISREG (st.st_mode) && st.st_nlink == 1 && st.st_uid == geteuid () &&
    named.st_dev == st.st_dev && named.st_ino == st.st_ino;
}

bool
log_give_file (uid_t uid, gid_t gid, GError **error)
{
  if (file_fd == -1 || !is_ours_alone () || fchown (file_fd, uid, gid) == 0)
    return true;
  g_set_error (error, g_quark_from_static_string ("nbdfleece-log"), 0,
               "cannot give log file '%s' to the user that serves: %s",
               file_path, g_strerror (errno));
  return false;
}

void
log_set_target (const char *target)
{
  enum target to = parse_target (target);

  if (to == TO_SYSLOG)
    openlog (PACKAGE_NAME, LOG_PID, LOG_DAEMON);
  if (to == TO_JOURNAL) {
    const char *path = g_str_has_prefix (target, JOURNAL_PREFIX) ?
      target + strlen (JOURNAL_PREFIX) : JOURNAL_SOCKET;

    if (!journal_open (path)) {
      log_error ("warning: no journal at '%s': %m: messages go to standard "
                 "error", path);
      to = TO_STDERR;
    }
  }
  if (to == TO_FILE && atomic_load (&current) != TO_FILE)
    reload_add ("log file", reopen_file);
  atomic_store (&current, to);
}

/* A line longer than this is cut: nobody reads that, and a message may quote
 * what a client sent. */
#define MAX_LINE 2048

struct line {
  char text[MAX_LINE + 1];      /* room for the newline */
  size_t used;
};

static void __attribute__ ((format (printf, 2, 0)))
vadd (struct line *line, const char *fs, va_list args)
{
  size_t room = MAX_LINE - line->used;
  int r = vsnprintf (line->text + line->used, room, fs, args);

  if (r > 0)
    line->used += MIN ((size_t) r, room - 1);
}

static void __attribute__ ((format (printf, 2, 3)))
add (struct line *line, const char *fs, ...)
{
  va_list args;

  va_start (args, fs);
  vadd (line, fs, args);
  va_end (args);
}

static void
add_time (struct line *line)
{
  struct timespec now;
  struct tm tm;

  clock_gettime (CLOCK_REALTIME, &now);
  gmtime_r (&now.tv_sec, &tm);
  add (line, "%04d-%02d-%02dT%02d:%02d:%02d.%03ldZ ", tm.tm_year + 1900,
       tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec,
       now.tv_nsec / 1000000);
}

/* What is behind from, with escapes. */
static void
escape (struct line *line, size_t from)
{
  char raw[MAX_LINE];
  size_t n = line->used - from;

  for (size_t i = from; ; i++) {
    if (i == line->used)
      return;
    if (g_ascii_iscntrl (line->text[i]) && line->text[i] != '\t')
      break;
  }
  while (n > 0 && line->text[from + n - 1] == '\n')
    n--;                        /* some plugins end their messages with it */
  memcpy (raw, line->text + from, n);
  line->used = from;
  for (size_t i = 0; i < n; i++) {
    unsigned char c = raw[i];

    if (c == '\n')
      add (line, "\\n");
    else if (g_ascii_iscntrl (c) && c != '\t')
      add (line, "\\x%02x", c);
    else
      add (line, "%c", c);
  }
}

static void
write_line (int fd, struct line *line)
{
  ssize_t r;

  line->text[line->used] = '\n';
  do
    r = write (fd, line->text, line->used + 1);
  while (r == -1 && errno == EINTR);
}

static void
to_journal (int priority, const char *text)
{
  const struct thread_context *tc = &thread_context;
  unsigned number = tc->conn ? conn_number (tc->conn) : 0, lost;
  char summary[64];

  if (!journal_send (priority, number, tc->export_name, text)) {
    atomic_fetch_add (&nr_lost, 1);
    return;
  }
  lost = atomic_exchange (&nr_lost, 0);
  if (lost > 0) {
    snprintf (summary, sizeof summary, "warning: %u messages were lost", lost);
    journal_send (LOG_WARNING, 0, NULL, summary);
  }
}

static void __attribute__ ((format (printf, 3, 0)))
log_line (int priority, const char *level, const char *fs, va_list args)
{
  int saved_errno = errno;
  enum target to = atomic_load (&current);
  struct line line;
  size_t start;

  if (to == TO_NULL)
    return;
  line.used = 0;
  if (to == TO_FILE)
    add_time (&line);
  if (to == TO_STDERR || to == TO_FILE)
    add (&line, PACKAGE_NAME ": ");
  if (thread_context.conn != NULL)
    add (&line, "%.64s[%u]: ", thread_context.plugin_name,
         conn_number (thread_context.conn));
  add (&line, "%s: ", level);
  start = line.used;
  errno = saved_errno;          /* for %m */
  vadd (&line, fs, args);
  escape (&line, start);
  line.text[line.used] = '\0';
  if (to == TO_SYSLOG)
    syslog (priority, "%s", line.text);
  else if (to == TO_JOURNAL)
    to_journal (priority, line.text);
  else
    write_line (to == TO_FILE ? file_fd : STDERR_FILENO, &line);
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

#define BOUND_LINES 5
#define BOUND_US (10 * G_USEC_PER_SEC)

bool
log_may (struct log_bound *bound, unsigned *left_out)
{
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  int64_t now = g_get_monotonic_time ();
  bool may;

  *left_out = 0;
  pthread_mutex_lock (&lock);
  if (bound->window == 0 || now - bound->window >= BOUND_US) {
    *left_out = bound->left_out;
    bound->window = now;
    bound->lines = bound->left_out = 0;
  }
  may = bound->lines < (bound->most > 0 ? bound->most : BOUND_LINES);
  if (may)
    bound->lines++;
  else
    bound->left_out++;
  pthread_mutex_unlock (&lock);
  return may;
}

void
log_verror_bounded (struct log_bound *bound, const char *fs, va_list args)
{
  g_autofree char *text = NULL, *shown = NULL;
  int saved_errno = errno;
  unsigned left_out;

  if (!log_may (bound, &left_out))
    return;
  errno = saved_errno;          /* for %m */
  text = g_strchomp (g_strdup_vprintf (fs, args));
  if (left_out > 0)
    shown = g_strdup_printf ("%s (%u such messages were left out before)", text,
                             left_out);
  else
    shown = g_steal_pointer (&text);
  if (g_str_has_prefix (shown, WARNING))
    log_error (WARNING "%s", shown + strlen (WARNING));
  else
    log_error ("%s", shown);
  errno = saved_errno;
}

void
log_error_bounded (struct log_bound *bound, const char *fs, ...)
{
  va_list args;

  va_start (args, fs);
  log_verror_bounded (bound, fs, args);
  va_end (args);
}
