/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* conn-limit.c - who may connect, and who has to leave for others. */
#include <config.h>

#include <linux/sockios.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>

#include <linux/vm_sockets.h>

#include "conn-list.h"
#include "memory-pool.h"

/* How long a client may keep memory that others wait for without moving. */
#define STALLED_SECONDS 5
/* TCP: a silent peer is asked whether it is there after so many seconds, again
 * after so many, and so often. */
#define KEEPALIVE_IDLE     60
#define KEEPALIVE_INTERVAL 10
#define KEEPALIVE_PROBES   6
/* Those who wait for their rate look so often whether they still shall. */
#define RATE_STEP_NS 20000000
/* Seconds; how often a silent client's leader looks at what to do about it. */
#define MAX_TICK 10

/* Harmless failures where the socket is of another kind. */
static void
set_option (int fd, int level, int name, int value)
{
  setsockopt (fd, level, name, &value, sizeof value);
}

void
conn_set_socket (struct conn *c)
{
  set_option (c->fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option (c->fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option (c->fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE);
  set_option (c->fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL);
  set_option (c->fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES);
  /* One that has vanished with replies on the way. */
  if (c->settings->limits.stall_timeout > 0)
    set_option (c->fd, IPPROTO_TCP, TCP_USER_TIMEOUT,
                c->settings->limits.stall_timeout * 1000);
}

void
conn_set_timeouts (struct conn *c)
{
  const struct limits *limits = &c->settings->limits;
  struct timeval send = { .tv_sec = limits->stall_timeout }, receive = { 0 };

  c->tick = MAX_TICK;
  if (limits->stall_timeout > 0)
    c->tick = MIN (c->tick, limits->stall_timeout);
  if (limits->idle_timeout > 0)
    c->tick = MIN (c->tick, limits->idle_timeout);
  receive.tv_sec = c->tick;
  setsockopt (c->fd, SOL_SOCKET, SO_SNDTIMEO, &send, sizeof send);
  /* Others may be about to set a shorter one, see conn_interrupt_locked. */
  pthread_mutex_lock (&c->lock);
  if (!atomic_load (&c->closing) && !conn_is_parking ())
    setsockopt (c->fd, SOL_SOCKET, SO_RCVTIMEO, &receive, sizeof receive);
  pthread_mutex_unlock (&c->lock);
}

/* The leader has received nothing for a tick. */
bool
conn_is_patient (struct conn *c, bool in_request)
{
  const struct limits *limits = &c->settings->limits;
  int64_t now = conn_now_ns (), silent;
  bool in_flight;

  pthread_mutex_lock (&c->lock);
  in_flight = c->in_flight > 0;
  pthread_mutex_unlock (&c->lock);
  if (c->silent_since == 0 || (in_flight && !in_request))
    c->silent_since = now - c->tick * INT64_C (1000000000);
  silent = (now - c->silent_since) / 1000000000;
  if (in_request && limits->stall_timeout > 0 &&
      silent >= (int64_t) limits->stall_timeout) {
    limit_enforced (c, LIMIT_STALL_TIMEOUT, "client dropped: it has stopped in "
                    "a request for %" G_GUINT64_FORMAT " seconds",
                    limits->stall_timeout);
    return false;
  }
  if (!in_request && !in_flight && limits->idle_timeout > 0 &&
      silent >= (int64_t) limits->idle_timeout) {
    limit_enforced (c, LIMIT_IDLE_TIMEOUT, "client dropped: it has asked for "
                    "nothing for %" G_GUINT64_FORMAT " seconds",
                    limits->idle_timeout);
    return false;
  }
  return true;
}

void
conn_set_rates (struct conn *c)
{
  const struct limits *limits = &c->settings->limits;

  if (limits->rate > 0)
    c->rate = rate_new (limits->rate);
  if (limits->listener_rate > 0)
    c->listener_rate = rate_of_listener (c->listener, limits->listener_rate);
}

/* Wait so long; false: sooner, as nobody shall wait any more.  In steps: the
 * server may be told to end, or this client to leave.  One that has hung up
 * would wait for nothing, and keep a connection from others. */
static bool
wait_ns (struct conn *c, int64_t ns)
{
  int64_t until = conn_now_ns () + ns, left;

  while ((left = until - conn_now_ns ()) > 0) {
    struct timespec step = { .tv_nsec = MIN (left, RATE_STEP_NS) };
    struct pollfd pfd = { .fd = c->fd };

    if (conn_is_parking () || conn_is_closing (c))
      return false;
    if (ppoll (&pfd, 1, &step, NULL) == 1) {
      atomic_store (&c->dead, true);
      return false;
    }
  }
  return !conn_is_closing (c);
}

void
conn_wait_for_rates (struct conn *c, enum rate_direction direction,
                     uint64_t bytes)
{
  uint64_t slice = MIN (rate_slice (c->rate), rate_slice (c->listener_rate));
  bool own_met = false, shared_met = false, go_on = !conn_is_closing (c);

  while (bytes > 0 && go_on) {
    uint64_t n = MIN (bytes, slice);
    int64_t own = rate_take (c->rate, direction, n);
    int64_t shared = rate_take (c->listener_rate, direction, n);

    own_met = own_met || own > 0;
    shared_met = shared_met || shared > 0;
    go_on = wait_ns (c, MAX (own, shared));
    bytes -= n;
  }
  if (own_met)
    limit_count (LIMIT_RATE);
  if (shared_met)
    limit_count (LIMIT_LISTENER_RATE);
}

void
conn_name_peer (struct conn *c)
{
  struct sockaddr_storage addr;
  socklen_t n = sizeof addr;
  struct ucred cred;

  c->peer[0] = '\0';
  if (getpeername (c->fd, (struct sockaddr *) &addr, &n) == -1)
    return;
  if (addr.ss_family == AF_UNIX) {
    n = sizeof cred;
    if (getsockopt (c->fd, SOL_SOCKET, SO_PEERCRED, &cred, &n) == 0)
      snprintf (c->peer, sizeof c->peer, "uid %u", (unsigned) cred.uid);
  }
  else if (addr.ss_family == AF_VSOCK)
    snprintf (c->peer, sizeof c->peer, "cid %u",
              ((struct sockaddr_vm *) &addr)->svm_cid);
  else if (getnameinfo ((struct sockaddr *) &addr, n, c->peer, sizeof c->peer,
                        NULL, 0, NI_NUMERICHOST) != 0)
    c->peer[0] = '\0';
}

bool
conn_is_admitted_locked (const struct conn *c, enum limit_kind *out_met)
{
  const struct limits *limits = &c->settings->limits;
  unsigned of_listener = 0, of_peer = 0;

  if (clients.conns->len >= c->settings->max_connections) {
    *out_met = LIMIT_CONNECTIONS;
    return false;
  }
  if (limits->listener_connections == 0 && limits->peer_connections == 0)
    return true;
  for (guint i = 0; i < clients.conns->len; i++) {
    const struct conn *other = clients.conns->pdata[i];

    of_listener += other->listener == c->listener;
    of_peer += *c->peer && strcmp (other->peer, c->peer) == 0;
  }
  if (limits->listener_connections > 0 &&
      of_listener >= limits->listener_connections)
    *out_met = LIMIT_LISTENER_CONNECTIONS;
  else if (limits->peer_connections > 0 &&
           of_peer >= limits->peer_connections)
    *out_met = LIMIT_PEER_CONNECTIONS;
  else
    return true;
  return false;
}

bool
conn_is_waited_for (const struct conn *c)
{
  int unsent = 0;

  return atomic_load_explicit (&c->in_payload, memory_order_relaxed) ||
    (ioctl (c->fd, SIOCOUTQ, &unsent) == 0 && unsent > 0);
}

int64_t
conn_stalled_ns (struct conn *c, int64_t now)
{
  unsigned progress = atomic_load_explicit (&c->progress,
                                            memory_order_relaxed);

  if (!conn_is_waited_for (c) || progress != c->seen_progress ||
      c->stalled_since == 0) {
    c->seen_progress = progress;
    c->stalled_since = now;
  }
  return now - c->stalled_since;
}

/* Bytes that it keeps without having moved for long enough; 0: it may. */
static uint64_t
keeps_for_nothing (struct conn *c, int64_t now)
{
  uint64_t owned;

  if (conn_stalled_ns (c, now) < STALLED_SECONDS * INT64_C (1000000000))
    return 0;
  pthread_mutex_lock (&c->lock);
  owned = c->in_flight_bytes;
  pthread_mutex_unlock (&c->lock);
  return owned > MEMORY_FREE ? owned : 0;
}

void
conn_drop_stalled (void)
{
  int64_t now = conn_now_ns ();

  pthread_mutex_lock (&clients.lock);
  for (guint i = 0; i < clients.conns->len; i++) {
    struct conn *c = clients.conns->pdata[i];
    uint64_t kept = keeps_for_nothing (c, now);

    if (kept == 0 || atomic_exchange (&c->dead, true))
      continue;
    limit_enforced (c, LIMIT_MEMORY, "client dropped: it keeps %"
                    G_GUINT64_FORMAT " bytes that others wait for, and has not "
                    "moved for %d seconds", kept, STALLED_SECONDS);
    atomic_store (&c->closing, true);
    shutdown (c->fd, SHUT_RDWR);
  }
  pthread_mutex_unlock (&clients.lock);
}
