/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* conn-stop.c - the end of the server: finish and answer what has begun, refuse
 * what comes after it, and see the clients off.
 *
 * A client in transmission gets ESHUTDOWN for what it asks while requests of
 * its own are in the plugin, and then for what is waiting in its socket: until
 * nothing is there, or for a second where it goes on asking.  That second does
 * not begin before its last request has ended: a call of the plugin that keeps
 * the leader (no other thread can take over with -t1, or where the plugin wants
 * one call at a time) may take longer than that, and what has come meanwhile
 * would be lost.  It ends, since nothing is begun any more.
 *
 * A client in the handshake gets NBD_REP_ERR_SHUTDOWN for an option, and is
 * closed a moment after the first: what was on the way, and an ABORT, are still
 * answered.  One that sends nothing is left alone while others are in
 * transmission: they keep the server anyway, and it may still ask.  Once none
 * is (served_name tells, which unlike has_leader does not go and come when the
 * leadership is stolen), its stream ends.  That alone would not stop one that
 * sends without a pause over TCP, where a socket that was shut down for reading
 * still gives what is there: therefore handshakes_end.
 */
#include <config.h>

#include <errno.h>
#include <sys/socket.h>
#include <time.h>

#include "conn-list.h"
#include "log.h"
#include "quit.h"

#define SECOND_NS INT64_C (1000000000)
/* How often to look at clients that do not leave. */
#define LOOK_NS (SECOND_NS / 10)
/* Requests of a client that does not heed ESHUTDOWN; one that is not
 * complete. */
#define ASKING_NS SECOND_NS
#define COMPLETING_NS (2 * SECOND_NS)
/* For the plugin, once no client will hear of it. */
#define PLUGIN_NS (2 * SECOND_NS)

/* CLOCK_MONOTONIC; 0: not yet. */
static atomic_int_fast64_t began;
/* When nothing more is received from those in the handshake. */
static atomic_int_fast64_t handshakes_end;

bool
conn_is_draining (void)
{
  return atomic_load_explicit (&began, memory_order_relaxed) != 0;
}

bool
conn_is_drained (int64_t *since, bool in_request)
{
  int64_t now = conn_now_ns ();

  if (*since == 0)
    *since = now;
  return now - *since > (in_request ? COMPLETING_NS : ASKING_NS);
}

bool
conn_handshakes_are_over (void)
{
  int64_t end = atomic_load_explicit (&handshakes_end, memory_order_relaxed);

  return end != 0 && conn_now_ns () > end;
}

/* Wait a little, at most.  false: all are gone. */
static bool
wait_locked (void)
{
  struct timespec until;

  clock_gettime (CLOCK_REALTIME, &until);
  until.tv_nsec += LOOK_NS;
  until.tv_sec += until.tv_nsec / SECOND_NS;
  until.tv_nsec %= SECOND_NS;
  if (clients.conns->len > 0)
    pthread_cond_timedwait (&clients.left, &clients.lock, &until);
  return clients.conns->len > 0;
}

static void
begin_locked (int64_t now)
{
  /* In this order: a leader that sees the second has the first. */
  atomic_store (&began, now);
  for (guint i = 0; i < clients.conns->len; i++)
    atomic_store (&((struct conn *) clients.conns->pdata[i])->closing, true);
  for (guint i = 0; i < clients.conns->len; i++)
    conn_interrupt_locked (clients.conns->pdata[i]);
}

static bool
is_served (struct conn *c)
{
  bool served;

  pthread_mutex_lock (&c->lock);
  served = c->served_name != NULL;
  pthread_mutex_unlock (&c->lock);
  return served;
}

/* Those who choose no export, if nobody else is there any more. */
static void
end_handshakes_locked (int64_t now)
{
  for (guint i = 0; i < clients.conns->len; i++)
    if (is_served (clients.conns->pdata[i]))
      return;
  if (atomic_load (&handshakes_end) == 0)
    atomic_store (&handshakes_end, now + CONN_SEE_OFF_NS);
  for (guint i = 0; i < clients.conns->len; i++)
    shutdown (((struct conn *) clients.conns->pdata[i])->fd, SHUT_RD);
}

/* Those who do not take their last replies. */
static void
end_stalled_locked (int64_t now)
{
  for (guint i = 0; i < clients.conns->len; i++) {
    struct conn *c = clients.conns->pdata[i];

    if (conn_stalled_ns (c, now) >= GRACE_SECONDS * SECOND_NS)
      shutdown (c->fd, SHUT_RDWR);
  }
}

bool
conn_stop_all (void)
{
  int64_t now = conn_now_ns ();
  uint64_t seconds = clients.settings.limits.shutdown_timeout;
  int64_t start = now, end = seconds > 0 ? start + seconds * SECOND_NS :
    INT64_MAX;
  bool any;

  backend_stop_waiting (clients.settings.backend);
  pthread_mutex_lock (&clients.lock);
  begin_locked (start);
  do {
    any = wait_locked ();
    now = conn_now_ns ();
    if (any && now - start >= CONN_SEE_OFF_NS)
      end_handshakes_locked (now);
    if (any)
      end_stalled_locked (now);
  } while (any && now < end && !quit_at_once ());
  if (any) {
    log_error ("%u clients are cut off: %s", clients.conns->len,
               now < end ? "told to end at once" :
               "the time to shut down is over (--shutdown-timeout)");
    conn_shutdown_all_locked (SHUT_RDWR);
    for (end = now + PLUGIN_NS; any && now < end; now = conn_now_ns ())
      any = wait_locked ();
  }
  if (any)
    log_error ("requests of %u clients are still in the plugin: they are left "
               "behind", clients.conns->len);
  pthread_mutex_unlock (&clients.lock);
  if (any)
    return false;
  for (guint i = 0; i < clients.parked->len; i++)
    conn_free (clients.parked->pdata[i]);
  g_ptr_array_free (clients.parked, TRUE);
  g_ptr_array_free (clients.conns, TRUE);
  clients.conns = NULL;
  return true;
}
