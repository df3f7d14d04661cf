/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* conn-stop.c - the end of the server: finish and answer what has begun, refuse
 * what comes after it, and see the clients off.
 *
 * A client in transmission is read from until nothing more is waiting there, or
 * for a second where it goes on asking, and gets ESHUTDOWN for all of it.  In the
 * handshake it gets NBD_REP_ERR_SHUTDOWN.
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
/* For options that are on the way. */
#define HANDSHAKE_NS (SECOND_NS / 5)
/* Requests of a client that does not heed ESHUTDOWN; one that is not complete. */
#define ASKING_NS SECOND_NS
#define COMPLETING_NS (2 * SECOND_NS)
/* For the plugin, once no client will hear of it. */
#define PLUGIN_NS (2 * SECOND_NS)

/* CLOCK_MONOTONIC; 0: not yet. */
static atomic_int_fast64_t began;

bool
conn_is_draining (void)
{
  return atomic_load_explicit (&began, memory_order_relaxed) != 0;
}

bool
conn_is_drained (bool in_request)
{
  return conn_now_ns () - atomic_load_explicit (&began, memory_order_relaxed) >
    (in_request ? COMPLETING_NS : ASKING_NS);
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

/* Those who choose no export. */
static void
end_handshakes_locked (void)
{
  for (guint i = 0; i < clients.conns->len; i++) {
    struct conn *c = clients.conns->pdata[i];

    pthread_mutex_lock (&c->lock);
    if (!c->has_leader)
      shutdown (c->fd, SHUT_RD);
    pthread_mutex_unlock (&c->lock);
  }
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
    if (any && now - start >= HANDSHAKE_NS)
      end_handshakes_locked ();
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
