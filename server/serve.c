/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* serve.c - the transmission phase of one connection.
 *
 * One thread at a time is the leader.  It receives many requests at once into
 * its lane, calls the plugin for each, gathers the replies and sends them
 * together before it waits for the client again: no hand-off, two system calls
 * for a batch.  What would hold up the others goes to another thread:
 *
 *  1. requests that block by nature (must_hand_over);
 *  2. all, while calls have proved slow lately;
 *  3. an inline call that blocks unexpectedly keeps its thread, but the
 *     leadership is stolen from it (steal.h).
 *
 * A lane is a leader's work space.  When the leadership is stolen, the new
 * leader brings a lane of its own, copies what was received but not parsed,
 * and sends the replies that were ready; the old one still uses its lane for
 * its request, so lanes are counted.
 *
 * The session ends in the thread that is the leader then, after all that other
 * threads had is answered; which thread sends it: conn-queue.c.
 */
#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "context.h"
#include "log.h"
#include "nbd-wire.h"
#include "pool.h"
#include "serve-internal.h"
#include "serve.h"
#include "status.h"
#include "steal.h"

/* Less than this of waiting for a rate is not worth being counted. */
#define HELD_BACK_NS 1000000
/* Bytes; writes of this size and more are handed over. */
#define LARGE_WRITE (128 * 1024)

/* When to hand over everything: after so many batches of inline calls in a row
 * with a mean above this.  Not a moving average: on a busy machine a batch is
 * sometimes preempted for milliseconds, which says nothing about the plugin. */
#define SLOW_ABOVE_NS 50000
#define SLOW_BATCHES 8
/* When to stop again: at this moving average of all calls.  A hand-off costs
 * some 10 us. */
#define FAST_BELOW_NS 20000
#define MAX_SAMPLE_NS 500000
/* Copying takes time as well: bytes in one ns that do not count as waiting. */
#define FREE_BYTES_PER_NS 2

static struct lane *
lane_new (void)
{
  /* Large enough to be mapped: pages that are not used cost nothing. */
  struct lane *l = malloc (sizeof *l);

  if (l == NULL)
    return NULL;
  memset (l, 0, offsetof (struct lane, rx));
  atomic_init (&l->refs, 1);
  return l;
}

static void
lane_unref (struct lane *l)
{
  if (atomic_fetch_sub (&l->refs, 1) == 1)
    free (l);
}

/* The mean of some calls.  From any thread: updates may overwrite each other,
 * which an average can bear. */
static int64_t
add_sample (struct conn *c, int64_t ns, uint64_t bytes, unsigned nr_calls)
{
  int64_t average, weight = MIN (nr_calls, 8);

  ns = (ns - (int64_t) (bytes / FREE_BYTES_PER_NS)) / nr_calls;
  ns = CLAMP (ns, 0, MAX_SAMPLE_NS);
  average = atomic_load_explicit (&c->call_ns, memory_order_relaxed);
  average += (ns - average) * weight / 32;
  atomic_store_explicit (&c->call_ns, average, memory_order_relaxed);
  return ns;
}

/* The leader has finished a batch of calls. */
static void
end_batch (struct conn *c, struct lane *l)
{
  int64_t ns;

  if (l->nr_calls == 0)
    return;
  ns = add_sample (c, conn_now_ns () - l->batch_start, l->call_bytes,
                   l->nr_calls);
  l->nr_calls = 0;
  l->call_bytes = 0;
  c->slow_batches = ns > SLOW_ABOVE_NS ? c->slow_batches + 1 : 0;
  if (c->slow_batches >= SLOW_BATCHES)
    c->slow = true;
}

void
serve_flush (struct conn *c, struct lane *l)
{
  struct iovec iov = { .iov_base = l->tx, .iov_len = l->tx_used };

  end_batch (c, l);
  if (l->tx_used == 0)
    return;
  stats_flush (&c->stats, &l->batch);
  l->tx_used = 0;
  conn_send_reply (c, iov);
}

/* The same while there is more to do.  There is nothing for the monitor to see
 * while a client does not take its replies. */
static void
flush_aside (struct conn *c, struct lane *l)
{
  steal_idle (c);
  serve_flush (c, l);
  steal_busy (c);
}

/* This thread works for c now. */
static void
speak_for (struct conn *c)
{
  thread_context.conn = c;
  thread_context.plugin_name = backend_name (c->b);
  handle_use (c->handle);
}

/* The reply to op where it does not go among those of a lane; it counts as
 * answered. */
static struct iovec
reply_alone (struct op *op, unsigned char *header)
{
  struct stats batch = { 0 };
  struct iovec iov = op_reply (op, header);

  op_count (op, &batch);
  stats_flush (&op->c->stats, &batch);
  return iov;
}

/* A request that was given to another thread. */
struct handed_over {
  struct op op;
  unsigned char header[REPLY_MAX_HEADER];
  struct outgoing reply;
};

static void
end_handed_over (void *owner)
{
  struct handed_over *w = owner;
  struct conn *c = w->op.c;
  size_t charge = w->op.charge;

  op_clear (&w->op);
  free (w);
  flight_leave (c, charge);
}

/* Takes w.  Without it the connection may be gone. */
static void
run_handed_over (struct handed_over *w)
{
  struct op *op = &w->op;
  struct conn *c = op->c;
  int64_t start = conn_now_ns ();
  bool counts = op->rq.type == NBD_CMD_READ || op->rq.type == NBD_CMD_WRITE;

  speak_for (c);
  op_execute (op);
  if (counts && !(op->rq.flags & NBD_CMD_FLAG_FUA))
    add_sample (c, conn_now_ns () - start, op->rq.length, 1);
  w->reply = (struct outgoing) {
    .iov = reply_alone (op, w->header), .sent = end_handed_over, .owner = w };
  conn_post (c, &w->reply);
  thread_context.conn = NULL;
  thread_context.export_name = NULL;
}

static void
worker (void *arg)
{
  run_handed_over (arg);
  flight_give_thread ();
}

static bool
is_slow (struct conn *c)
{
  if (c->slow && atomic_load_explicit (&c->call_ns, memory_order_relaxed) <
      FAST_BELOW_NS) {
    c->slow = false;
    c->slow_batches = 0;
  }
  return c->slow;
}

static bool
must_hand_over (struct conn *c, struct lane *l, const struct op *op)
{
  unsigned others;

  if (!c->can_steal)            /* only one call at a time, or only one
                                   thread */
    return false;
  switch (op->rq.type) {
  case NBD_CMD_FLUSH:
  case NBD_CMD_TRIM:
  case NBD_CMD_WRITE_ZEROES:
  case NBD_CMD_CACHE:
    return true;
  case NBD_CMD_BLOCK_STATUS:
    if (op->rq.length > 64 << 20)
      return true;
    break;
  case NBD_CMD_WRITE:
    /* Of a large one the copy is the cost: it can go on while the next is
     * received (256 KiB, QD 8: 1.10 of nbdkit's file plugin, inline 0.76). */
    if ((op->rq.flags & NBD_CMD_FLAG_FUA) || op->rq.length >= LARGE_WRITE)
      return true;
    break;
  }
  if (!is_slow (c))
    return false;
  /* A client with one request at a time gains nothing from a hand-off. */
  if (l->pos < l->have)
    return true;
  pthread_mutex_lock (&c->lock);
  others = c->in_flight;
  pthread_mutex_unlock (&c->lock);
  return others > 0;
}

/* Put the reply to the lane's op among those that are ready. */
static void
gather (struct conn *c, struct lane *l)
{
  struct op *op = &l->op;

  if (op->own != NULL || op->status != NULL) {
    serve_flush (c, l);
    steal_idle (c);
    conn_send_reply (c, reply_alone (op, l->header));
    steal_busy (c);
    return;
  }
  l->tx_used += op_reply (op, l->tx + l->tx_used).iov_len;
  op_count (op, &l->batch);
}

/* The call of which the leadership was stolen has been answered. */
static void
end_stolen (void *owner)
{
  struct lane *l = owner;
  struct conn *c = l->op.c;
  size_t charge = l->op.charge;

  op_clear (&l->op);
  lane_unref (l);
  flight_leave (c, charge);
}

enum outcome { ANSWERED, LOST_LEADERSHIP };

/* Call the plugin in this thread. */
static enum outcome
run_inline (struct conn *c, struct lane *l)
{
  struct op *op = &l->op;
  size_t charge = op->charge;
  uint64_t seq;

  if (l->nr_calls == 0)
    l->batch_start = conn_now_ns ();
  if (!c->can_steal)
    op_execute (op);
  else {
    seq = steal_begin (c);
    op_execute (op);
    if (!steal_end (c, seq)) {
      conn_set_leader (c, false);
      l->reply = (struct outgoing) { .iov = reply_alone (op, l->header),
                                     .sent = end_stolen, .owner = l };
      conn_post (c, &l->reply);
      flight_give_thread ();
      return LOST_LEADERSHIP;
    }
  }
  l->nr_calls++;
  l->call_bytes += op->rq.length;
  gather (c, l);
  op_clear (op);
  flight_release (c, charge);
  return ANSWERED;
}

/* Give the lane's op to another thread. */
static void
hand_over (struct conn *c, struct lane *l)
{
  struct handed_over *w = malloc (sizeof *w);
  const unsigned char *payload = l->op.data;
  bool is_read = l->op.rq.type == NBD_CMD_READ && l->op.rq.length > 0;
  bool is_write = l->op.rq.type == NBD_CMD_WRITE && l->op.rq.length > 0;
  size_t cost;

  if (w != NULL && l->op.own == NULL && (is_read || is_write) &&
      flight_give_buffer (c, l, &l->op) && is_write)
    memcpy (l->op.own, payload, l->op.rq.length);
  if (w == NULL)
    l->op.error = NBD_ENOMEM;
  if (l->op.error) {
    free (w);
    gather (c, l);
    flight_release (c, l->op.charge);
    op_clear (&l->op);
    return;
  }
  if (l->op.rq.type == NBD_CMD_BLOCK_STATUS) {
    cost = status_cost (c->contexts, &l->op.rq);
    flight_enter (c, l, 1, cost);
    l->op.charge = cost;
  }
  else
    flight_enter (c, l, 1, 0);  /* its buffer was entered before */
  w->op = l->op;
  l->op.own = NULL;
  if (flight_take_thread (c)) {
    if (pool_run (worker, w))
      return;
    flight_give_thread ();
  }
  else
    limit_count (LIMIT_REQUESTS);
  run_handed_over (w);          /* slower, but not wrong */
  speak_for (c);
}

/* Room in the lane for a reply that carries length bytes of data. */
static void
make_room (struct conn *c, struct lane *l, size_t length)
{
  if (l->tx_used + REPLY_MAX_HEADER + length > TX_SIZE)
    flush_aside (c, l);
}

/* Where a READ that runs inline puts its data: behind the header to come. */
static void
place_data (struct conn *c, struct lane *l, struct op *op)
{
  if (op->rq.length > TX_SIZE - REPLY_MAX_HEADER)
    flight_give_buffer (c, l, op);
  else {
    make_room (c, l, op->rq.length);
    op->data = l->tx + l->tx_used + reply_read_header_size (c->mode);
  }
}

/* The session is over for the leader: wait for the other threads. */
static void
end_session (struct conn *c, struct lane *l)
{
  serve_flush (c, l);
  steal_idle (c);
  pthread_mutex_lock (&c->lock);
  while (c->in_flight > 0)
    pthread_cond_wait (&c->room, &c->lock);
  pthread_mutex_unlock (&c->lock);
  steal_unwatch (c);
  /* Not to be served any more, or with a session that cannot be handed on. */
  if (atomic_load (&c->closing) || atomic_load (&c->dead) || conn_is_tls (c))
    c->parked = false;
  if (c->parked)
    lane_keep_rest (c, l);
  lane_unref (l);
  conn_finish (c);
}

/* Nothing is received meanwhile: the client is held back. */
static void
keep_rate (struct conn *c, struct lane *l, const struct op *op)
{
  int64_t start;

  if (op->rq.type != NBD_CMD_READ && op->rq.type != NBD_CMD_WRITE)
    return;
  start = conn_now_ns ();
  steal_idle (c);
  serve_flush (c, l);
  conn_wait_for_rates (c, op->rq.type == NBD_CMD_READ ? RATE_READ : RATE_WRITE,
                       op->rq.length);
  steal_busy (c);
  if (conn_now_ns () - start > HELD_BACK_NS)
    l->batch.waits++;
}

/* Until the session ends or the leadership is lost. */
static void
lead (struct conn *c)
{
  struct lane *l = c->lane;
  struct op *op = &l->op;

  while (lane_fill (c, l, request_size (c->mode), false)) {
    *op = (struct op) { .c = c };
    if (!request_parse (l->rx + l->pos, c->mode, &op->rq)) {
      log_debug ("bad request magic: closing");
      break;
    }
    l->pos += request_size (c->mode);
    if (log_verbose)
      trace_request (&op->rq);
    if (op->rq.type == NBD_CMD_DISC)
      break;
    /* What 32 bits can say is still skipped for those who have no better
     * way. */
    if (c->mode == REPLY_EXTENDED && op->rq.payload > EXPORT_MAX_PAYLOAD) {
      log_debug ("a payload of %" G_GUINT64_FORMAT " bytes: closing",
                 op->rq.payload);
      break;
    }
    op_check (op);
    if (atomic_load_explicit (&c->closing, memory_order_relaxed))
      op->error = NBD_ESHUTDOWN;
    if (op->error == 0 && (c->rate != NULL || c->listener_rate != NULL))
      keep_rate (c, l, op);
    if (!lane_take_payload (c, l, op))
      break;

    make_room (c, l, 0);
    if (op->error == 0 && must_hand_over (c, l, op)) {
      hand_over (c, l);
      continue;
    }
    /* Where no thread can take over, a call that takes long shall not keep
     * replies that are ready. */
    if (op->error == 0 && !c->can_steal)
      serve_flush (c, l);
    if (op->error == 0 && op->rq.type == NBD_CMD_READ)
      place_data (c, l, op);
    if (op->error)
      gather (c, l);
    else if (run_inline (c, l) == LOST_LEADERSHIP)
      return;                   /* c may be gone by now */
  }
  end_session (c, l);
}

void
conn_serve (struct conn *c)
{
  thread_context.in_handshake = false;
  c->lane = lane_new ();
  if (c->lane == NULL) {
    log_error ("out of memory for a connection");
    conn_finish (c);
    return;
  }
  pthread_mutex_lock (&c->lock);
  c->served_name = g_strdup (handle_name (c->handle));
  pthread_mutex_unlock (&c->lock);
  handle_use (c->handle);
  conn_set_timeouts (c);
  if (c->can_steal)
    steal_watch (c);
  conn_set_leader (c, true);
  lead (c);
}

bool
serve_prepare_theft (struct conn *c)
{
  bool ok;

  pthread_mutex_lock (&c->lock);
  ok = c->in_flight < c->settings->threads && flight_take_thread (c);
  if (ok)
    c->in_flight++;
  pthread_mutex_unlock (&c->lock);
  if (ok)
    atomic_fetch_add (&c->lane->refs, 1);
  return ok;
}

void
serve_cancel_theft (struct conn *c)
{
  lane_unref (c->lane);
  flight_give_thread ();
  flight_leave (c, 0);
}

void
serve_as_new_leader (void *arg)
{
  struct conn *c = arg;
  struct lane *old = c->lane, *l = lane_new ();

  conn_set_leader (c, true);
  speak_for (c);
  c->call_seq = atomic_load_explicit (&c->call, memory_order_relaxed);
  log_debug ("a request has been blocking: another thread goes on");
  old->nr_calls = 0;            /* their time is unknown */
  if (l == NULL) {
    /* Nobody can serve this client any more; it gets what is in flight. */
    log_error ("out of memory for a connection: closing it");
    atomic_store (&c->closing, true);
    serve_flush (c, old);
    pthread_mutex_lock (&c->lock);
    while (c->in_flight > 0)
      pthread_cond_wait (&c->room, &c->lock);
    pthread_mutex_unlock (&c->lock);
    steal_unwatch (c);
    lane_unref (old);
    conn_finish (c);
    return;
  }
  serve_flush (c, old);
  l->have = old->have - old->pos;
  memcpy (l->rx, old->rx + old->pos, l->have);
  c->lane = l;
  lane_unref (old);
  lead (c);
}
