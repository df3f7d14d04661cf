/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/wait.h>
#include <unistd.h>

#include "listen.h"
#include "log.h"
#include "quit.h"
#include "reexec.h"
#include "tls.h"

#define REEXEC_ERROR (g_quark_from_static_string ("nbdfleece-reexec"))

/* For the new program to answer a question. */
#define ANSWER_SECONDS 30
#define MAX_ANSWER 65536

/* Set by reexec_init, never changed afterwards. */
static char *program;           /* absolute */
static char **arguments;
static const char *forbidden;   /* by reexec_forbid; set before the fork */
static int folder = -1;         /* the current one when we were started */
static Handover *inherited;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_bool scheduled;
static Handover *outgoing;      /* the main thread's */

/* Under which name were we started?  Where that is a link, what it points to
 * may be another file by the time when we are replaced: that is how many
 * systems are upgraded.  Some ways to start a program leave no such name. */
static char *
find_program (void)
{
  g_autofree char *exe = realpath ("/proc/self/exe", NULL);
  const char *name = (const char *) getauxval (AT_EXECFN);
  g_autofree char *real = name ? realpath (name, NULL) : NULL;

  if (exe == NULL)
    return NULL;
  if (real != NULL && strcmp (real, exe) == 0 &&
      !g_str_has_prefix (name, "/proc/") && !g_str_has_prefix (name, "/dev/"))
    return g_canonicalize_filename (name, NULL);
  return g_strdup (exe);
}

bool
reexec_init (int argc, char **argv, GError **error)
{
  g_autofree char *value = g_strdup (getenv (REEXEC_VARIABLE));
  int version, fd, n = 0;

  unsetenv (REEXEC_VARIABLE);
  arguments = g_new0 (char *, argc + 1);
  for (int i = 0; i < argc; i++)
    arguments[i] = g_strdup (argv[i]);
  folder = open (".", O_PATH | O_DIRECTORY | O_CLOEXEC);
  program = find_program ();
  if (value == NULL)
    return true;

  if (sscanf (value, "%d:%d%n", &version, &fd, &n) != 2 || value[n] != '\0' ||
      version != HANDOVER_VERSION) {
    g_set_error (error, REEXEC_ERROR, 0, "environment variable "
                 REEXEC_VARIABLE " is '%.40s': not version %d of what "
                 "%s leaves to its next image", value, HANDOVER_VERSION,
                 PACKAGE_NAME);
    return false;
  }
  inherited = handover_load (fd, error);
  if (inherited == NULL)
    return false;
  close (fd);
  handover_set_cloexec (inherited, true);
  /* Not what started us this time: that may be what a wrapper has executed. */
  g_free (program);
  program = g_strdup (inherited->program);
  return true;
}

const Handover *
reexec_inherited (void)
{
  return inherited;
}

void
reexec_forget_conns (void)
{
  g_ptr_array_set_size (inherited->conns, 0);
}

bool
reexec_scheduled (void)
{
  return atomic_load (&scheduled);
}

/* --- the questions --- */

/* Output and error output of the program, until it closes them; NULL: errno. */
static GString *
read_answer (int fd)
{
  int64_t until = g_get_monotonic_time () + ANSWER_SECONDS * G_USEC_PER_SEC;
  g_autoptr (GString) answer = g_string_new (NULL);
  char buf[4096];
  ssize_t r;

  for (;;) {
    struct pollfd pfd = { .fd = fd, .events = POLLIN };
    int64_t left = (until - g_get_monotonic_time ()) / 1000;

    if (left <= 0 || answer->len > MAX_ANSWER) {
      errno = left <= 0 ? ETIMEDOUT : EMSGSIZE;
      return NULL;
    }
    if (poll (&pfd, 1, left) <= 0)
      continue;
    r = read (fd, buf, sizeof buf);
    if (r == 0)
      return g_steal_pointer (&answer);
    if (r > 0)
      g_string_append_len (answer, buf, r);
  }
}

/* In our first folder, with default signals; output goes to fd. */
static int
spawn (const char *question, int fd, pid_t *out_pid)
{
  g_autoptr (GPtrArray) argv = g_ptr_array_new ();
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attr;
  sigset_t set;
  int err;

  g_ptr_array_add (argv, arguments[0]);
  g_ptr_array_add (argv, (char *) question);
  for (char **p = arguments + 1; *p; p++)
    g_ptr_array_add (argv, *p);
  g_ptr_array_add (argv, NULL);

  posix_spawn_file_actions_init (&actions);
  posix_spawn_file_actions_addopen (&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2 (&actions, fd, 1);
  posix_spawn_file_actions_adddup2 (&actions, fd, 2);
  posix_spawn_file_actions_addfchdir_np (&actions, folder);
  posix_spawnattr_init (&attr);
  sigemptyset (&set);
  posix_spawnattr_setsigmask (&attr, &set);
  sigaddset (&set, SIGPIPE);
  posix_spawnattr_setsigdefault (&attr, &set);
  posix_spawnattr_setflags (&attr,
                            POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  err = posix_spawn (out_pid, program, &actions, &attr,
                     (char **) argv->pdata, environ);
  posix_spawnattr_destroy (&attr);
  posix_spawn_file_actions_destroy (&actions);
  return err;
}

static const char *
last_line (GString *answer)
{
  const char *line;

  g_strchomp (answer->str);
  line = strrchr (answer->str, '\n');
  return line ? line + 1 : answer->str;
}

/* question: an option that makes the program tell something and exit. */
static GString *
ask (const char *question, GError **error)
{
  g_autoptr (GString) answer = NULL;
  int fds[2], err, status = 0;
  pid_t pid;

  if (pipe2 (fds, O_CLOEXEC) == -1) {
    g_set_error (error, REEXEC_ERROR, 0, "pipe: %s", g_strerror (errno));
    return NULL;
  }
  err = spawn (question, fds[1], &pid);
  close (fds[1]);
  if (err) {
    close (fds[0]);
    g_set_error (error, REEXEC_ERROR, 0, "cannot run '%s': %s", program,
                 g_strerror (err));
    return NULL;
  }
  answer = read_answer (fds[0]);
  err = errno;
  close (fds[0]);
  if (answer == NULL)
    kill (pid, SIGKILL);
  while (waitpid (pid, &status, 0) == -1 && errno == EINTR)
    ;
  if (answer == NULL)
    g_set_error (error, REEXEC_ERROR, 0, "'%s %s' does not end well: %s",
                 program, question, g_strerror (err));
  else if (!WIFEXITED (status) || WEXITSTATUS (status) != 0)
    g_set_error (error, REEXEC_ERROR, 0, "'%s %s' has failed: %.400s",
                 program, question, last_line (answer));
  else
    return g_steal_pointer (&answer);
  return NULL;
}

static bool
has_line (const GString *answer, const char *line)
{
  g_auto (GStrv) lines = g_strsplit (answer->str, "\n", -1);

  return g_strv_contains ((const char *const *) lines, line);
}

void
reexec_forbid (const char *why)
{
  forbidden = why;
}

static bool
check_program (GError **error)
{
  g_autofree char *line = g_strdup_printf ("handover=%d", HANDOVER_VERSION);
  g_autoptr (GString) config = NULL, plugin = NULL;

  if (forbidden != NULL) {
    g_set_error (error, REEXEC_ERROR, 0, "%s", forbidden);
    return false;
  }
  if (program == NULL || folder == -1) {
    g_set_error (error, REEXEC_ERROR, 0, "it is not known how this server was "
                 "started");
    return false;
  }
  config = ask ("--dump-config", error);
  if (config == NULL)
    return false;
  if (!has_line (config, line)) {
    g_set_error (error, REEXEC_ERROR, 0, "'%s' cannot take over from this "
                 "version: it does not say %s", program, line);
    return false;
  }
  /* The plugin can be loaded, and knows its parameters. */
  plugin = ask ("--dump-plugin", error);
  return plugin != NULL;
}

bool
reexec_schedule (GError **error)
{
  bool ok = false;

  pthread_mutex_lock (&lock);
  if (atomic_load (&scheduled) || quit_requested ())
    g_set_error (error, REEXEC_ERROR, 0, "the server is about to end or to be "
                 "replaced already");
  else if (!tls_reload ())
    g_set_error (error, REEXEC_ERROR, 0, "the keys for TLS cannot be loaded");
  else
    ok = check_program (error);
  if (ok) {
    atomic_store (&scheduled, true);
    listen_wake ();
  }
  pthread_mutex_unlock (&lock);
  return ok;
}

/* --- leaving --- */

Handover *
reexec_begin (void)
{
  outgoing = handover_new ();
  outgoing->program = g_strdup (program);
  return outgoing;
}

Handover *
reexec_outgoing (void)
{
  return outgoing;
}

bool
reexec_keep_file (const char *name, int fd)
{
  bool ok;

  pthread_mutex_lock (&lock);
  ok = outgoing != NULL;
  if (ok)
    handover_add_file (outgoing, name, fd);
  pthread_mutex_unlock (&lock);
  return ok;
}

int
reexec_take_file (const char *name)
{
  int fd = -1;

  pthread_mutex_lock (&lock);
  for (guint i = 0; inherited && i < inherited->files->len && fd == -1; i++) {
    const struct handover_file *f = inherited->files->pdata[i];

    if (strcmp (f->name, name) == 0) {
      fd = f->fd;
      g_ptr_array_remove_index (inherited->files, i);
    }
  }
  pthread_mutex_unlock (&lock);
  return fd;
}

void
reexec_exec (void)
{
  g_autoptr (GError) error = NULL;
  g_autofree char *value = NULL;
  int fd = handover_save (outgoing, &error);

  if (fd == -1) {
    log_error ("%s", error->message);
    return;
  }
  value = g_strdup_printf ("%d:%d", HANDOVER_VERSION, fd);
  setenv (REEXEC_VARIABLE, value, 1);
  fcntl (fd, F_SETFD, 0);
  handover_set_cloexec (outgoing, false);
  if (fchdir (folder) == -1)
    log_error ("cannot go back to the first folder: %m");
  log_debug ("execute '%s'", program);
  execv (program, arguments);
  /* It was there a moment ago.  This one always is. */
  log_error ("cannot execute '%s': %m; going on with this version", program);
  execv ("/proc/self/exe", arguments);
  log_error ("cannot execute this version either: %m");
}
