/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "listen.h"
#include "single.h"

#define SINGLE_ERROR (g_quark_from_static_string ("nbdfleece-single"))

#define CHUNK 65536

/* The client's; the same where standard input and output are one socket. */
static int in = -1, out = -1;

/* Pipes and files are pumped to and from one end of a pair of sockets, so that
 * the rest of the server knows nothing else. */
static int pair = -1;
static pthread_t reader, writer;

static bool
fail (GError **error, const char *what)
{
  g_set_error (error, SINGLE_ERROR, 0, "-s: %s: %s", what, g_strerror (errno));
  return false;
}

static bool
is_one_socket (void)
{
  struct stat a, b;

  return fstat (STDIN_FILENO, &a) == 0 && fstat (STDOUT_FILENO, &b) == 0 &&
    S_ISSOCK (a.st_mode) && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

bool
single_take_stdio (GError **error)
{
  int null;

  if (isatty (STDIN_FILENO)) {
    g_set_error (error, SINGLE_ERROR, 0, "-s: standard input is a terminal, "
                 "not an NBD client");
    return false;
  }
  in = fcntl (STDIN_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
  out = is_one_socket () ? in
    : fcntl (STDOUT_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
  if (in == -1 || out == -1)
    return fail (error, "standard input or output");
  null = open ("/dev/null", O_RDWR | O_CLOEXEC);
  if (null == -1 || dup2 (null, STDIN_FILENO) == -1 ||
      dup2 (null, STDOUT_FILENO) == -1)
    return fail (error, "/dev/null");
  close (null);
  return true;
}

bool
single_is_on (void)
{
  return in != -1;
}

static bool
write_all (int fd, const char *p, ssize_t n)
{
  while (n > 0) {
    ssize_t r = write (fd, p, n);

    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1)
      return false;
    p += r;
    n -= r;
  }
  return true;
}

static ssize_t
read_some (int fd, char *buf)
{
  ssize_t r;

  do
    r = read (fd, buf, CHUNK);
  while (r == -1 && errno == EINTR);
  return r;
}

/* Also ends when the server has closed its end: the client may never. */
static void *
reader_main (void *arg)
{
  struct pollfd fds[2] = { { .fd = in, .events = POLLIN }, { .fd = pair } };
  char *buf = arg;
  ssize_t n = 1;

  while (n > 0) {
    if (poll (fds, 2, -1) == -1)
      continue;
    if (fds[1].revents & (POLLHUP | POLLERR))
      break;
    n = read_some (in, buf);
    if (n > 0 && !write_all (pair, buf, n))
      break;
  }
  shutdown (pair, SHUT_WR);
  free (buf);
  return NULL;
}

static void *
writer_main (void *arg)
{
  char *buf = arg;
  ssize_t n;

  while ((n = read_some (pair, buf)) > 0)
    if (!write_all (out, buf, n))
      break;
  shutdown (pair, SHUT_RD);     /* the server finds that the client is gone */
  close (out);
  free (buf);
  return NULL;
}

static bool
start_pumps (GError **error)
{
  int fds[2];

  if (socketpair (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == -1)
    return fail (error, "socketpair");
  pair = fds[1];
  if ((errno = pthread_create (&reader, NULL, reader_main,
                               g_malloc (CHUNK))) ||
      (errno = pthread_create (&writer, NULL, writer_main,
                               g_malloc (CHUNK))))
    return fail (error, "cannot start a thread");
  listen_serve_one (fds[0]);
  return true;
}

bool
single_start (GError **error)
{
  if (in != out)
    return start_pumps (error);
  listen_serve_one (in);
  return true;
}

void
single_finish (void)
{
  if (pair == -1)
    return;
  pthread_join (writer, NULL);
  pthread_join (reader, NULL);
  close (in);
  close (pair);
}
