/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/ctl-hook.h"
#include "tools/ctl.h"

struct Hook {
  pid_t guard;                  /* 0: there is none */
  int fd;                       /* closing it asks for the thaw */
};

/* What the guard tells: one byte after the freeze, and its exit status. */
#define FROZEN 'f'
#define NOT_FROZEN 'n'

static G_GNUC_NORETURN void
run_child (const char *command, const char *word)
{
  g_autofree char *line = g_strconcat (command, " \"$1\"", NULL);
  sigset_t none;

  setpgid (0, 0);
  sigemptyset (&none);
  sigprocmask (SIG_SETMASK, &none, NULL);
  signal (SIGPIPE, SIG_DFL);
  /* stdout is for the verb's own output. */
  dup2 (STDERR_FILENO, STDOUT_FILENO);
  execl ("/bin/sh", "sh", "-c", line, "sh", word, NULL);
  _exit (127);
}

/* False, after having said why, unless it ends well within the timeout. */
static bool
run_hook (const char *command, const char *word, unsigned timeout_s)
{
  int status = 0, fd, r;
  pid_t pid = fork ();
  bool late = false;

  if (pid == 0)
    run_child (command, word);
  if (pid == -1) {
    ctl_fail ("cannot run the hook's %s: %m", word);
    return false;
  }
  setpgid (pid, pid);           /* both do it: whoever is first */
  fd = syscall (SYS_pidfd_open, pid, 0);
  if (fd >= 0) {
    struct pollfd pfd = { .fd = fd, .events = POLLIN };
    int64_t until = g_get_monotonic_time () + timeout_s * G_USEC_PER_SEC;

    do {
      int64_t left = (until - g_get_monotonic_time ()) / 1000;

      r = poll (&pfd, 1, MAX (left, 0));
    } while (r == -1 && errno == EINTR);
    late = r == 0;
    close (fd);
  }
  if (late)
    kill (-pid, SIGKILL);
  while (waitpid (pid, &status, 0) == -1 && errno == EINTR)
    ;
  if (late)
    ctl_fail ("the hook's %s took longer than %u s and was killed", word,
              timeout_s);
  else if (WIFSIGNALED (status))
    ctl_fail ("the hook's %s died of signal %d", word, WTERMSIG (status));
  else if (WEXITSTATUS (status) != 0)
    ctl_fail ("the hook's %s failed with status %d", word,
              WEXITSTATUS (status));
  return !late && status == 0;
}

static G_GNUC_NORETURN void
run_guard (int fd, const char *command, unsigned timeout_s)
{
  struct pollfd pfd = { .fd = fd, .events = POLLIN };
  bool frozen;
  char byte;
  int r;

  /* Outlives the caller, but not its locks and connections. */
  if (fd > 3)
    syscall (SYS_close_range, 3u, (unsigned) fd - 1, 0u);
  syscall (SYS_close_range, (unsigned) fd + 1, ~0u, 0u);
  setsid ();
  signal (SIGINT, SIG_IGN);
  signal (SIGTERM, SIG_IGN);
  signal (SIGHUP, SIG_IGN);
  frozen = run_hook (command, "freeze", timeout_s);
  byte = frozen ? FROZEN : NOT_FROZEN;
  if (send (fd, &byte, 1, MSG_NOSIGNAL) == 1 && frozen) {
    do
      r = poll (&pfd, 1, timeout_s * 1000);
    while (r == -1 && errno == EINTR);
    if (r == 0) {
      ctl_fail ("the cut took longer than %u s: thawing before it", timeout_s);
      frozen = false;
    }
  }
  /* Also after a freeze that failed: it may have frozen something. */
  if (!run_hook (command, "thaw", timeout_s))
    run_hook (command, "thaw", timeout_s);
  _exit (frozen ? 0 : 1);
}

Hook *
hook_freeze (const char *command, unsigned timeout_s)
{
  Hook *hook = g_new0 (Hook, 1);
  int fds[2];
  char byte = NOT_FROZEN;
  ssize_t n;

  hook->fd = -1;
  fflush (NULL);
  if (socketpair (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == -1) {
    ctl_fail ("cannot start the hook's guard: %m");
    return hook;
  }
  hook->guard = fork ();
  if (hook->guard == 0) {
    close (fds[0]);
    run_guard (fds[1], command, timeout_s);
  }
  close (fds[1]);
  hook->fd = fds[0];
  if (hook->guard == -1) {
    ctl_fail ("cannot start the hook's guard: %m");
    hook->guard = 0;
    return hook;
  }
  do
    n = read (hook->fd, &byte, 1);
  while (n == -1 && errno == EINTR);
  if (n != 1 || byte != FROZEN)
    fputs ("fleecectl: the guest is NOT frozen: the backup will be as after a "
           "power cut\n", stderr);
  return hook;
}

bool
hook_thaw (Hook *hook)
{
  int status = 1;

  if (hook->fd != -1)
    close (hook->fd);
  if (hook->guard > 0)
    while (waitpid (hook->guard, &status, 0) == -1 && errno == EINTR)
      ;
  g_free (hook);
  return status == 0;
}
