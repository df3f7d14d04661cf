/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "listen.h"
#include "log.h"
#include "process.h"

static int ready_fd = -1;       /* the child's end of the pipe to its parent */
static bool is_daemon;

static void __attribute__ ((noreturn))
die (const char *what)
{
  log_error ("%s: %m", what);
  exit (EXIT_FAILURE);
}

static int
wait_for (pid_t pid)
{
  int status;

  while (waitpid (pid, &status, 0) == -1)
    if (errno != EINTR)
      return EXIT_FAILURE;
  return WIFEXITED (status) ? WEXITSTATUS (status) : 128 + WTERMSIG (status);
}

/* Returns 0 in the child.  In the parent: its pid, once it is ready; if it has
 * failed, the parent exits with its status. */
static pid_t
fork_server (void)
{
  int fds[2], status;
  ssize_t r;
  pid_t pid;
  char c;

  if (pipe2 (fds, O_CLOEXEC) == -1)
    die ("pipe");
  pid = fork ();
  if (pid == -1)
    die ("fork");
  if (pid == 0) {
    close (fds[0]);
    ready_fd = fds[1];
    return 0;
  }
  close (fds[1]);
  listen_forget_all ();
  do
    r = read (fds[0], &c, 1);
  while (r == -1 && errno == EINTR);
  close (fds[0]);
  if (r != 1) {
    status = wait_for (pid);
    if (status > 128)
      log_error ("the server was killed by signal %d", status - 128);
    _exit (status ? status : EXIT_FAILURE);
  }
  return pid;
}

void
process_daemonize (void)
{
  if (fork_server () != 0)
    _exit (EXIT_SUCCESS);
  is_daemon = true;
  setsid ();
  if (chdir ("/") == -1)
    die ("chdir /");
}

void
process_resume (bool daemon)
{
  if (daemon && chdir ("/") == -1)
    die ("chdir /");
}

bool
process_exit_with_parent (void)
{
  pid_t parent = getppid ();

  if (prctl (PR_SET_PDEATHSIG, SIGTERM) == -1)
    return false;
  if (getppid () != parent)     /* it was faster */
    raise (SIGTERM);
  return true;
}

/* What an exec would close.  Locks belong to open files, and those that the
 * plugin took before the fork to both of us: the server could not take them
 * again once it has replaced itself. */
static void
close_server_files (void)
{
  DIR *dir = opendir ("/proc/self/fd");
  struct dirent *entry;

  while (dir != NULL && (entry = readdir (dir)) != NULL) {
    int fd = atoi (entry->d_name), flags = fcntl (fd, F_GETFD);

    if (fd > STDERR_FILENO && fd != dirfd (dir) && flags != -1 &&
        (flags & FD_CLOEXEC))
      close (fd);
  }
  if (dir != NULL)
    closedir (dir);
}

/* Exits. */
static void __attribute__ ((noreturn))
run_command (const char *command, const char *const *env, pid_t server)
{
  pid_t pid;
  int status, server_status;

  /* The terminal sends these to the command as well, which decides; when we are
   * told to end, the server notices by PR_SET_PDEATHSIG. */
  signal (SIGINT, SIG_IGN);
  signal (SIGQUIT, SIG_IGN);
  signal (SIGTERM, SIG_DFL);
  signal (SIGHUP, SIG_DFL);
  close_server_files ();
  pid = fork ();
  if (pid == -1)
    die ("fork");
  if (pid == 0) {
    signal (SIGINT, SIG_DFL);
    signal (SIGQUIT, SIG_DFL);
    signal (SIGPIPE, SIG_DFL);
    for (; *env; env += 2)
      setenv (env[0], env[1], 1);
    execl ("/bin/sh", "sh", "-c", command, NULL);
    log_error ("/bin/sh: %m");
    _exit (127);
  }
  status = wait_for (pid);
  kill (server, SIGTERM);
  server_status = wait_for (server);
  if (server_status > 128)
    log_error ("the server was killed by signal %d", server_status - 128);
  _exit (status ? status : server_status ? EXIT_FAILURE : 0);
}

void
process_captive (const char *command, const char *const *env)
{
  pid_t parent = getpid (), server = fork_server ();

  if (server != 0)
    run_command (command, env, server);
  if (prctl (PR_SET_PDEATHSIG, SIGTERM) == -1)
    die ("prctl");
  if (getppid () != parent)
    raise (SIGTERM);
}

static void
use_dev_null (bool stderr_too)
{
  int fd = open ("/dev/null", O_RDWR | O_CLOEXEC);

  if (fd == -1)
    return;
  dup2 (fd, STDIN_FILENO);
  dup2 (fd, STDOUT_FILENO);
  if (stderr_too)
    dup2 (fd, STDERR_FILENO);
  close (fd);
}

void
process_ready (void)
{
  ssize_t r;

  if (ready_fd == -1)
    return;
  /* Before the parent returns: whoever reads from our output waits for its
   * end. */
  use_dev_null (is_daemon);
  r = write (ready_fd, "R", 1);
  (void) r;                     /* a parent that was killed misses nothing */
  close (ready_fd);
  ready_fd = -1;
}
