/* SPDX-License-Identifier: BSD-3-Clause */
/* stale-socket.h - a unix socket's file is there: is it of a server that is
 * gone?
 *
 * Shared by server/ and plugin/, which share nothing else but metacontext.h.
 */
#ifndef STALE_SOCKET_H
#define STALE_SOCKET_H

#include <errno.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* Between another server's bind and its listen a connect is refused as if it
 * were dead: believe it only after this many attempts, this far apart. */
#define STALE_SOCKET_ATTEMPTS 4
#define STALE_SOCKET_WAIT_NS 50000000

/* Does anybody listen at addr?  1: yes, 0: no, or -errno (-EACCES: somebody
 * else's). */
static inline int
socket_is_alive (const struct sockaddr_un *addr)
{
  for (int attempt = 0; attempt < STALE_SOCKET_ATTEMPTS; attempt++) {
    const struct timespec wait = { .tv_nsec = STALE_SOCKET_WAIT_NS };
    int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int r, err;

    if (fd == -1)
      return -errno;
    r = connect (fd, (const struct sockaddr *) addr, sizeof *addr);
    err = errno;
    close (fd);
    if (r == 0 || err == EAGAIN)        /* EAGAIN: its backlog is full */
      return 1;
    if (err == ENOENT)
      return 0;
    if (err != ECONNREFUSED)
      return -err;
    nanosleep (&wait, NULL);
  }
  return 0;
}

/* Removes the file if nobody listens.  0: there is none now; 1: somebody does;
 * or -errno: -ENOTSOCK, what is there is not a socket; -EBUSY, it was replaced
 * meanwhile. */
static inline int
remove_stale_socket (const struct sockaddr_un *addr)
{
  struct stat before, now;
  int alive;

  if (lstat (addr->sun_path, &before) == -1)
    return errno == ENOENT ? 0 : -errno;
  if (!S_ISSOCK (before.st_mode))
    return -ENOTSOCK;
  alive = socket_is_alive (addr);
  if (alive != 0)
    return alive;
  if (lstat (addr->sun_path, &now) == -1)
    return errno == ENOENT ? 0 : -errno;
  if (now.st_dev != before.st_dev || now.st_ino != before.st_ino)
    return -EBUSY;
  return unlink (addr->sun_path) == 0 || errno == ENOENT ? 0 : -errno;
}

#endif /* STALE_SOCKET_H */
