/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* conn-io.c - bytes from and to one client. */
#include <config.h>

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>

#include "conn-internal.h"
#include "iov.h"
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

/* The one place that receives from a client's socket. */
static ssize_t
receive_raw (struct conn *c, void *buf, size_t n, bool dont_wait)
{
  ssize_t r;

  do
    r = recv (c->fd, buf, n, dont_wait ? MSG_DONTWAIT : 0);
  while (r == -1 && errno == EINTR);
  return r;
}

static ssize_t
receive_tls (struct conn *c, void *buf, size_t n, bool dont_wait)
{
  ssize_t r;

  while ((r = tls_decrypt (c->tls, buf, n)) == -EAGAIN) {
    size_t room;
    void *input = tls_input (c->tls, &room);

    r = receive_raw (c, input, room, dont_wait);
    if (r <= 0)
      return r;
    tls_input_add (c->tls, r);
  }
  if (r >= 0)
    return r;
  log_debug ("closing: a TLS record is not valid");
  errno = -r;
  return -1;
}

ssize_t
conn_receive (struct conn *c, void *buf, size_t n, bool dont_wait)
{
  if (c->tls != NULL)
    return receive_tls (c, buf, n, dont_wait);
  return receive_raw (c, buf, n, dont_wait);
}

/* It may go on sending without a pause. */
static bool
is_too_late (int64_t deadline)
{
  return (deadline && conn_now_ns () > deadline) || conn_handshakes_are_over ();
}

static bool
fail_too_late (struct conn *c)
{
  if (!atomic_load (&c->closing))
    limit_enforced (c, LIMIT_HANDSHAKE_TIMEOUT, "client dropped: it has not "
                    "chosen an export within %u seconds",
                    c->settings->handshake_timeout);
  return false;
}

bool
conn_recv (struct conn *c, void *buf, size_t length, int64_t deadline)
{
  char *p = buf;
  ssize_t r;

  while (length > 0) {
    if (is_too_late (deadline))
      return fail_too_late (c);
    r = conn_receive (c, p, length, deadline != 0);
    if (r == -1 && errno == EAGAIN && deadline) {
      if (!wait_for (c, POLLIN, deadline))
        return fail_too_late (c);
      continue;
    }
    if (r <= 0)
      return false;
    p += r;
    length -= r;
  }
  return true;
}

bool
conn_receive_tls (struct conn *c, TlsSession *t, int64_t deadline)
{
  size_t room;
  void *input = tls_input (t, &room);
  ssize_t r;

  if (is_too_late (deadline))
    return false;
  while ((r = receive_raw (c, input, room, deadline != 0)) == -1 &&
         errno == EAGAIN && deadline)
    if (!wait_for (c, POLLIN, deadline))
      return false;
  if (r > 0)
    tls_input_add (t, r);
  return r > 0;
}

/* The one place that sends to a client's socket.  true: all was sent. */
static bool
send_raw (struct conn *c, struct iovec *iov, int nr, int64_t deadline)
{
  int flags = MSG_NOSIGNAL | (deadline ? MSG_DONTWAIT : 0);

  iov_consume (&iov, &nr, 0);
  while (nr > 0 && !atomic_load_explicit (&c->dead, memory_order_relaxed)) {
    struct msghdr msg = { .msg_iov = iov, .msg_iovlen = nr };
    ssize_t r = sendmsg (c->fd, &msg, flags);

    if (r >= 0) {
      iov_consume (&iov, &nr, r);
      atomic_fetch_add_explicit (&c->progress, 1, memory_order_relaxed);
    }
    else if (errno == EINTR)
      continue;
    else if (errno != EAGAIN || !deadline || !wait_for (c, POLLOUT, deadline)) {
      if (errno == EAGAIN && !deadline)         /* SO_SNDTIMEO */
        limit_enforced (c, LIMIT_STALL_TIMEOUT, "client dropped: it has taken "
                        "nothing of its replies for %" G_GUINT64_FORMAT
                        " seconds", c->settings->limits.stall_timeout);
      /* A part of a reply may be out: nothing can follow it. */
      atomic_store (&c->dead, true);
      shutdown (c->fd, SHUT_RDWR);
    }
  }
  return nr == 0;
}

bool
conn_send_tls (struct conn *c, TlsSession *t, int64_t deadline)
{
  struct iovec iov;
  bool ok;

  iov.iov_base = (void *) tls_output (t, &iov.iov_len);
  ok = send_raw (c, &iov, 1, deadline);
  tls_output_sent (t);
  return ok;
}

static bool
send_encrypted (struct conn *c, struct iovec *iov, int nr, int64_t deadline)
{
  while (nr > 0 && !atomic_load_explicit (&c->dead, memory_order_relaxed)) {
    if (!tls_encrypt (c->tls, &iov, &nr)) {
      atomic_store (&c->dead, true);
      shutdown (c->fd, SHUT_RDWR);
    }
    else if (!conn_send_tls (c, c->tls, deadline))
      return false;
  }
  return nr == 0;
}

bool
conn_send (struct conn *c, struct iovec *iov, int nr, int64_t deadline)
{
  if (c->tls != NULL)
    return send_encrypted (c, iov, nr, deadline);
  return send_raw (c, iov, nr, deadline);
}

void
conn_say_goodbye (struct conn *c)
{
  size_t n;
  const void *output;

  if (c->tls == NULL || atomic_load (&c->dead))
    return;
  tls_bye (c->tls);
  output = tls_output (c->tls, &n);
  /* One that does not take its replies will not miss this. */
  if (send (c->fd, output, n, MSG_NOSIGNAL | MSG_DONTWAIT) == -1)
    log_debug ("cannot tell the client that TLS ends: %m");
}
