/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* serve-flight.c - how much is in flight: requests and buffers of one client,
 * and threads of all.
 */
#include <config.h>

#include <stdlib.h>

#include "memory-pool.h"
#include "nbd-wire.h"
#include "serve-internal.h"
#include "serve.h"

void
flight_leave (struct conn *c, size_t charge)
{
  pthread_mutex_lock (&c->lock);
  c->in_flight--;
  memory_give (c->in_flight_bytes, charge);
  c->in_flight_bytes -= charge;
  pthread_cond_signal (&c->room);
  pthread_mutex_unlock (&c->lock);
}

/* The client's own limits. */
static bool
has_room_locked (const struct conn *c, unsigned more, size_t charge)
{
  return c->in_flight + more <= c->settings->threads &&
    (c->in_flight == 0 ||
     c->in_flight_bytes + charge <= c->settings->limits.client_memory);
}

/* Everybody's memory is used up: wait for others, without the lock. */
static void
wait_for_memory (struct conn *c, size_t charge)
{
  size_t owned = c->in_flight_bytes;

  pthread_mutex_unlock (&c->lock);
  memory_wait (owned, charge);
  conn_drop_stalled ();
  pthread_mutex_lock (&c->lock);
}

void
flight_enter (struct conn *c, struct lane *l, unsigned more, size_t charge)
{
  bool flushed = false;

  pthread_mutex_lock (&c->lock);
  for (;;) {
    bool has_room = has_room_locked (c, more, charge);

    if (has_room &&
        memory_take (c->in_flight_bytes, charge, is_ending (c)))
      break;
    if (!flushed) {             /* then look again */
      pthread_mutex_unlock (&c->lock);
      limit_count (has_room ? LIMIT_MEMORY : more ? LIMIT_CLIENT_REQUESTS :
                   LIMIT_CLIENT_MEMORY);
      l->batch.waits++;
      serve_flush (c, l);
      flushed = true;
      pthread_mutex_lock (&c->lock);
    }
    else if (has_room)
      wait_for_memory (c, charge);
    else
      pthread_cond_wait (&c->room, &c->lock);
  }
  c->in_flight += more;
  c->in_flight_bytes += charge;
  pthread_mutex_unlock (&c->lock);
}

void
flight_release (struct conn *c, size_t charge)
{
  if (charge == 0)
    return;
  pthread_mutex_lock (&c->lock);
  memory_give (c->in_flight_bytes, charge);
  c->in_flight_bytes -= charge;
  pthread_mutex_unlock (&c->lock);
}

bool
flight_give_buffer (struct conn *c, struct lane *l, struct op *op)
{
  size_t room = op->rq.type == NBD_CMD_READ ? REPLY_READ_ROOM : 0;

  flight_enter (c, l, 0, op->rq.length);
  op->charge = op->rq.length;
  op->own = malloc (room + op->rq.length);
  if (op->own == NULL) {
    flight_release (c, op->charge);
    op->charge = 0;
    op->error = NBD_ENOMEM;
    return false;
  }
  op->data = (unsigned char *) op->own + room;
  return true;
}

/* Requests on threads of their own, of all clients. */
static atomic_uint nr_threads;

bool
flight_take_thread (const struct conn *c)
{
  if (atomic_fetch_add_explicit (&nr_threads, 1, memory_order_relaxed) <
      c->settings->limits.requests)
    return true;
  atomic_fetch_sub_explicit (&nr_threads, 1, memory_order_relaxed);
  return false;
}

void
flight_give_thread (void)
{
  atomic_fetch_sub_explicit (&nr_threads, 1, memory_order_relaxed);
}

unsigned
serve_nr_threads (void)
{
  return atomic_load_explicit (&nr_threads, memory_order_relaxed);
}
