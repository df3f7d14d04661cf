/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* conn-io.c - bytes from and to one client. */
#include <config.h>

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>

#include "conn-internal.h"
#include "log.h"

int64_t
conn_now_ns (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return ts.tv_sec * INT64_C (1000000000) + ts.tv_nsec;
}

/* Wait for the socket; false: too late. */
static bool
wait_for (struct conn *c, short events, int64_t deadline)
{
  struct pollfd pfd = { .fd = c->fd, .events = events };
  int64_t left = -1;
  int r;

  do {
    if (deadline) {
      left = (deadline - conn_now_ns () + 999999) / 1000000;
      if (left <= 0)
        return false;
    }
    r = poll (&pfd, 1, left);
  } while (r == -1 && errno == EINTR);
  return r > 0;
}

bool
conn_recv (struct conn *c, void *buf, size_t length, int64_t deadline)
{
  char *p = buf;
  ssize_t r;

  while (length > 0) {
    r = recv (c->fd, p, length, deadline ? MSG_DONTWAIT : 0);
    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1 && errno == EAGAIN && deadline) {
      if (!wait_for (c, POLLIN, deadline)) {
        log_debug ("no answer within the time allowed");
        return false;
      }
      continue;
    }
    if (r <= 0)
      return false;
    p += r;
    length -= r;
  }
  return true;
}

/* Take n sent bytes off the front. */
static void
iov_consume (struct iovec **iov, int *nr, size_t n)
{
  while (*nr > 0 && n >= (*iov)->iov_len) {
    n -= (*iov)->iov_len;
    (*iov)++;
    (*nr)--;
  }
  if (*nr > 0) {
    (*iov)->iov_base = (char *) (*iov)->iov_base + n;
    (*iov)->iov_len -= n;
  }
}

bool
conn_send (struct conn *c, struct iovec *iov, int nr, int64_t deadline)
{
  int flags = MSG_NOSIGNAL | (deadline ? MSG_DONTWAIT : 0);
  bool ok;

  pthread_mutex_lock (&c->send_lock);
  iov_consume (&iov, &nr, 0);
  while (nr > 0 && !atomic_load_explicit (&c->dead, memory_order_relaxed)) {
    struct msghdr msg = { .msg_iov = iov, .msg_iovlen = nr };
    ssize_t r = sendmsg (c->fd, &msg, flags);

    if (r >= 0)
      iov_consume (&iov, &nr, r);
    else if (errno == EINTR)
      continue;
    else if (errno != EAGAIN || !deadline || !wait_for (c, POLLOUT, deadline)) {
      /* A part of a reply may be out: nothing can follow it. */
      atomic_store (&c->dead, true);
      shutdown (c->fd, SHUT_RDWR);
    }
  }
  ok = nr == 0;
  pthread_mutex_unlock (&c->send_lock);
  return ok;
}
