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
 * The session ends in the thread that is the leader then, after all other
 * threads have answered.
 */
#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "context.h"
#include "log.h"
#include "memory-pool.h"
#include "nbd-wire.h"
#include "op.h"
#include "pool.h"
#include "serve.h"
#include "status.h"
#include "steal.h"

#define RX_SIZE (1 << 20)
#define TX_SIZE (512 << 10)
/* A payload up to this size is received in the lane; a larger one in a buffer
 * of its own, which costs no copy but an allocation. */
#define RX_PAYLOAD (RX_SIZE / 2)
/* While a payload of which more than this is missing arrives, nothing behind it
 * is received: its successor then starts at the front of the lane again. */
#define GREEDY_BELOW (32 << 10)
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

struct lane {
  atomic_uint refs;

  /* The leader's; its successor's after a theft. */
  size_t pos, have;             /* rx[pos .. have) is not parsed yet */
  size_t tx_used;               /* replies that are ready */
  struct stats batch;           /* of them, not yet added to the connection's */
  uint64_t skipped;             /* of the refused request's payload */
  unsigned nr_calls;            /* since batch_start */
  uint64_t call_bytes;          /* that those calls moved */
  int64_t batch_start;

  /* Of the thread that made the call, also after a theft. */
  struct op op;
  unsigned char header[REPLY_MAX_HEADER];

  unsigned char rx[RX_SIZE];
  unsigned char tx[TX_SIZE];
};

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

/* Give the memory back, not the address space. */
static void
release_pages (void *start, size_t size)
{
  uintptr_t mask = sysconf (_SC_PAGESIZE) - 1;
  uintptr_t from = ((uintptr_t) start + mask) & ~mask;
  uintptr_t to = ((uintptr_t) start + size) & ~mask;

  madvise ((void *) from, to - from, MADV_DONTNEED);
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

/* Send the replies that are ready. */
static void
flush (struct conn *c, struct lane *l)
{
  struct iovec iov = { .iov_base = l->tx, .iov_len = l->tx_used };

  end_batch (c, l);
  if (l->tx_used == 0)
    return;
  stats_flush (&c->stats, &l->batch);
  l->tx_used = 0;
  conn_send (c, &iov, 1, 0);
}

/* A request of another thread has ended.  The connection may be gone when this
 * returns. */
static void
leave_flight (struct conn *c, size_t charge)
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

/* Somebody has asked this client's threads to come to an end. */
static bool
is_ending (struct conn *c)
{
  return conn_is_parking () ||
    atomic_load_explicit (&c->closing, memory_order_relaxed);
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

/* Enter a buffer (more = 0) or a request (more = 1) into the account, waiting
 * for others to finish where that is too much: no request is read meanwhile,
 * so the client is held back. */
static void
enter_flight (struct conn *c, struct lane *l, unsigned more, size_t charge)
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
      flush (c, l);
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

/* Release the bytes of an op that ran inline. */
static void
release_bytes (struct conn *c, size_t charge)
{
  if (charge == 0)
    return;
  pthread_mutex_lock (&c->lock);
  memory_give (c->in_flight_bytes, charge);
  c->in_flight_bytes -= charge;
  pthread_mutex_unlock (&c->lock);
}

/* This thread works for c now. */
static void
speak_for (struct conn *c)
{
  thread_context.conn = c;
  thread_context.plugin_name = backend_name (c->b);
  handle_use (c->handle);
}

/* Answer op from a thread that is not the leader, or one whose reply does not
 * fit into the lane. */
static void
answer (struct op *op, unsigned char *header)
{
  struct stats batch = { 0 };
  struct iovec iov = op_reply (op, header);

  op_count (op, &batch);
  stats_flush (&op->c->stats, &batch);
  conn_send (op->c, &iov, 1, 0);
}

/* Requests on threads of their own, of all clients. */
static atomic_uint nr_threads;

static bool
take_thread (const struct conn *c)
{
  if (atomic_fetch_add_explicit (&nr_threads, 1, memory_order_relaxed) <
      c->settings->limits.requests)
    return true;
  atomic_fetch_sub_explicit (&nr_threads, 1, memory_order_relaxed);
  return false;
}

static void
give_thread (void)
{
  atomic_fetch_sub_explicit (&nr_threads, 1, memory_order_relaxed);
}

unsigned
serve_nr_threads (void)
{
  return atomic_load_explicit (&nr_threads, memory_order_relaxed);
}

/* Takes op, which is not the lane's. */
static void
run_handed_over (struct op *op)
{
  struct conn *c = op->c;
  size_t charge = op->charge;
  unsigned char header[REPLY_MAX_HEADER];
  int64_t start = conn_now_ns ();
  bool counts = op->rq.type == NBD_CMD_READ || op->rq.type == NBD_CMD_WRITE;

  speak_for (c);
  op_execute (op);
  if (counts && !(op->rq.flags & NBD_CMD_FLAG_FUA))
    add_sample (c, conn_now_ns () - start, op->rq.length, 1);
  answer (op, header);
  op_clear (op);
  free (op);
  thread_context.conn = NULL;
  thread_context.export_name = NULL;
  leave_flight (c, charge);
}

static void
worker (void *arg)
{
  run_handed_over (arg);
  give_thread ();
}

/* As recv, but first what an earlier image of this program has received.  -1
 * with EAGAIN: look whether everybody shall stop. */
static ssize_t
receive (struct conn *c, void *buf, size_t n)
{
  if (c->inherited != NULL) {
    size_t size;
    const char *data = g_bytes_get_data (c->inherited, &size);

    n = MIN (n, size - c->inherited_pos);
    memcpy (buf, data + c->inherited_pos, n);
    c->inherited_pos += n;
    if (c->inherited_pos == size)
      g_clear_pointer (&c->inherited, g_bytes_unref);
    return n;
  }
  return conn_receive (c, buf, n, false);
}

/* Stop in the middle of a request: it is to be read again, with the n bytes of
 * its payload that are here no more (NULL: whatever they were). */
static void
keep_request (struct conn *c, const struct op *op, const void *payload,
              size_t n)
{
  unsigned char header[REQUEST_MAX_SIZE];
  unsigned size = request_size (c->mode);

  request_format (&op->rq, c->mode, header);
  c->unparsed = g_byte_array_new ();
  g_byte_array_append (c->unparsed, header, size);
  if (payload != NULL)
    g_byte_array_append (c->unparsed, payload, n);
  else {
    g_byte_array_set_size (c->unparsed, size + n);
    memset (c->unparsed->data + size, 0, n);
  }
}

/* What else was received, and is not parsed. */
static void
keep_rest (struct conn *c, struct lane *l)
{
  if (c->unparsed == NULL)
    c->unparsed = g_byte_array_new ();
  g_byte_array_append (c->unparsed, l->rx + l->pos, l->have - l->pos);
  if (c->inherited != NULL) {
    size_t size;
    const unsigned char *data = g_bytes_get_data (c->inherited, &size);

    g_byte_array_append (c->unparsed, data + c->inherited_pos,
                         size - c->inherited_pos);
  }
}

/* While n bytes are waited for. */
static bool
in_request (const struct lane *l, size_t n)
{
  return l->pos < l->have || n != NBD_REQUEST_SIZE;
}

/* No more is to be served: whether to read on nevertheless, to refuse it.  That
 * is done while replies are due. */
static bool
shall_leave (struct conn *c, bool is_drained)
{
  bool in_flight;

  if (!conn_is_draining ())
    return true;
  pthread_mutex_lock (&c->lock);
  in_flight = c->in_flight > 0;
  pthread_mutex_unlock (&c->lock);
  return is_drained && !in_flight;
}

/* Nothing has come for a while, of n bytes.  false: it has lasted too long. */
static bool
is_silent (struct conn *c, struct lane *l, size_t n)
{
  /* Pages that were used by larger requests: an idle client holds none. */
  if (l->pos == l->have && c->silent_since == 0) {
    release_pages (l->rx, sizeof l->rx);
    release_pages (l->tx, sizeof l->tx);
  }
  return conn_is_patient (c, in_request (l, n));
}

/* Receive until at least n bytes are unparsed, at most RX_SIZE - header; what
 * is ready is sent first.  exact: receive nothing behind them.  false: the
 * client is gone, or is not listened to any more, or is to be parked. */
static bool
fill (struct conn *c, struct lane *l, size_t n, bool exact)
{
  while (l->have - l->pos < n) {
    size_t end;
    ssize_t r;

    if (l->pos == l->have)
      l->pos = l->have = 0;
    else if (l->pos + n > RX_SIZE) {
      memmove (l->rx, l->rx + l->pos, l->have - l->pos);
      l->have -= l->pos;
      l->pos = 0;
    }
    end = exact ? l->pos + n : RX_SIZE;
    flush (c, l);
    if (atomic_load_explicit (&c->closing, memory_order_relaxed) &&
        shall_leave (c, conn_is_drained (in_request (l, n))))
      return false;
    if (conn_is_parking ()) {
      c->parked = true;
      return false;
    }
    steal_idle (c);
    r = receive (c, l->rx + l->have, end - l->have);
    if (r == -1 && errno == EAGAIN) {
      if (conn_is_parking ())
        continue;
      if (is_ending (c) ? shall_leave (c, !in_request (l, n)) :
          !is_silent (c, l, n))
        return false;
      continue;
    }
    if (r <= 0)
      return false;
    c->silent_since = 0;
    steal_busy (c);
    l->have += r;
  }
  return true;
}

/* Receive the payload of a refused request, and forget it. */
static bool
discard (struct conn *c, struct lane *l, uint64_t length)
{
  size_t n;

  for (l->skipped = 0; l->skipped < length;) {
    if (!fill (c, l, 1, false)) {
      /* The next image refuses it again.  What nobody can mean is not worth
       * being remembered: the client is closed. */
      if (c->parked && l->skipped <= EXPORT_MAX_PAYLOAD)
        keep_request (c, &l->op, NULL, l->skipped);
      else
        c->parked = false;
      return false;
    }
    n = MIN (length - l->skipped, l->have - l->pos);
    l->pos += n;
    l->skipped += n;
  }
  return true;
}

/* The op gets a buffer. */
static bool
give_buffer (struct conn *c, struct lane *l, struct op *op)
{
  size_t room = op->rq.type == NBD_CMD_READ ? REPLY_READ_ROOM : 0;

  enter_flight (c, l, 0, op->rq.length);
  op->charge = op->rq.length;
  op->own = malloc (room + op->rq.length);
  if (op->own == NULL) {
    release_bytes (c, op->charge);
    op->charge = 0;
    op->error = NBD_ENOMEM;
    return false;
  }
  op->data = (unsigned char *) op->own + room;
  return true;
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

  if (!c->can_steal)            /* only one call at a time, or only one thread */
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

/* Into the op's own buffer; have: how much of it is there. */
static bool
receive_payload (struct conn *c, const struct op *op, size_t have)
{
  while (have < op->rq.length) {
    ssize_t r;

    if (conn_is_parking ()) {
      c->parked = true;
      keep_request (c, op, op->data, have);
      return false;
    }
    if (conn_is_draining () && conn_is_drained (true))
      return false;
    r = receive (c, op->data + have, op->rq.length - have);
    if (r == -1 && errno == EAGAIN) {
      if (!is_ending (c) && !conn_is_patient (c, true))
        return false;
      continue;
    }
    if (r <= 0)
      return false;
    c->silent_since = 0;
    atomic_fetch_add_explicit (&c->progress, 1, memory_order_relaxed);
    have += r;
  }
  return true;
}

/* Receive the payload of a WRITE. */
static bool
take_payload (struct conn *c, struct lane *l, struct op *op)
{
  uint64_t length = op->rq.length;
  size_t have = l->have - l->pos;
  bool hurry = c->slow && length > GREEDY_BELOW, complete;

  if (length <= have || (length <= RX_PAYLOAD && !hurry)) {
    if (!fill (c, l, length, length > have && length - have > GREEDY_BELOW)) {
      if (c->parked)
        keep_request (c, op, "", 0);
      return false;
    }
    op->data = l->rx + l->pos;
    l->pos += length;
    return true;
  }
  if (!give_buffer (c, l, op))
    return discard (c, l, length);
  memcpy (op->data, l->rx + l->pos, have);
  l->pos = l->have = 0;
  flush (c, l);
  steal_idle (c);
  atomic_fetch_add_explicit (&c->progress, 1, memory_order_relaxed);
  atomic_store_explicit (&c->in_payload, true, memory_order_relaxed);
  complete = receive_payload (c, op, have);
  atomic_store_explicit (&c->in_payload, false, memory_order_relaxed);
  if (!complete) {
    release_bytes (c, op->charge);
    op_clear (op);
    return false;
  }
  steal_busy (c);
  return true;
}

/* Receive the payload of a BLOCK_STATUS: its request is complete then. */
static bool
take_range (struct conn *c, struct lane *l, struct op *op)
{
  uint64_t length = op->rq.payload;

  if (!fill (c, l, length, false)) {
    if (c->parked)
      keep_request (c, op, "", 0);
    return false;
  }
  op_take_range (op, l->rx + l->pos);
  l->pos += length;
  return true;
}

/* Receive what follows the request.  Of one that is refused it is forgotten. */
static bool
take_what_follows (struct conn *c, struct lane *l, struct op *op)
{
  if (op->rq.payload == 0)
    return true;
  if (op->error)
    return discard (c, l, op->rq.payload);
  return op->rq.type == NBD_CMD_WRITE ?
    take_payload (c, l, op) : take_range (c, l, op);
}

/* Put the reply to the lane's op among those that are ready. */
static void
gather (struct conn *c, struct lane *l)
{
  struct op *op = &l->op;

  if (op->own != NULL || op->status != NULL) {
    flush (c, l);
    answer (op, l->header);
    return;
  }
  l->tx_used += op_reply (op, l->tx + l->tx_used).iov_len;
  op_count (op, &l->batch);
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
      answer (op, l->header);
      op_clear (op);
      lane_unref (l);
      conn_set_leader (c, false);
      leave_flight (c, charge);
      give_thread ();
      return LOST_LEADERSHIP;
    }
  }
  l->nr_calls++;
  l->call_bytes += op->rq.length;
  gather (c, l);
  op_clear (op);
  release_bytes (c, charge);
  return ANSWERED;
}

/* Give the lane's op to another thread. */
static void
hand_over (struct conn *c, struct lane *l)
{
  struct op *op = malloc (sizeof *op);
  const unsigned char *payload = l->op.data;
  bool is_read = l->op.rq.type == NBD_CMD_READ && l->op.rq.length > 0;
  bool is_write = l->op.rq.type == NBD_CMD_WRITE && l->op.rq.length > 0;
  size_t cost;

  if (op != NULL && l->op.own == NULL && (is_read || is_write) &&
      give_buffer (c, l, &l->op) && is_write)
    memcpy (l->op.own, payload, l->op.rq.length);
  if (op == NULL)
    l->op.error = NBD_ENOMEM;
  if (l->op.error) {
    free (op);
    gather (c, l);
    release_bytes (c, l->op.charge);
    op_clear (&l->op);
    return;
  }
  if (l->op.rq.type == NBD_CMD_BLOCK_STATUS) {
    cost = status_cost (c->contexts, &l->op.rq);
    enter_flight (c, l, 1, cost);
    l->op.charge = cost;
  }
  else
    enter_flight (c, l, 1, 0);  /* its buffer was entered before */
  *op = l->op;
  l->op.own = NULL;
  if (take_thread (c)) {
    if (pool_run (worker, op))
      return;
    give_thread ();
  }
  else
    limit_count (LIMIT_REQUESTS);
  run_handed_over (op);         /* slower, but not wrong */
  speak_for (c);
}

/* Room in the lane for a reply that carries length bytes of data. */
static void
make_room (struct conn *c, struct lane *l, size_t length)
{
  if (l->tx_used + REPLY_MAX_HEADER + length > TX_SIZE)
    flush (c, l);
}

/* Where a READ that runs inline puts its data: behind the header to come. */
static void
place_data (struct conn *c, struct lane *l, struct op *op)
{
  if (op->rq.length > TX_SIZE - REPLY_MAX_HEADER)
    give_buffer (c, l, op);
  else {
    make_room (c, l, op->rq.length);
    op->data = l->tx + l->tx_used + reply_read_header_size (c->mode);
  }
}

/* The session is over for the leader: wait for the other threads. */
static void
end_session (struct conn *c, struct lane *l)
{
  flush (c, l);
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
    keep_rest (c, l);
  lane_unref (l);
  conn_finish (c);
}

/* Until the session ends or the leadership is lost. */
static void
lead (struct conn *c)
{
  struct lane *l = c->lane;
  struct op *op = &l->op;

  conn_set_leader (c, true);
  while (fill (c, l, request_size (c->mode), false)) {
    *op = (struct op) { .c = c };
    if (!request_parse (l->rx + l->pos, c->mode, &op->rq)) {
      log_debug ("bad request magic: closing");
      break;
    }
    l->pos += request_size (c->mode);
    if (op->rq.type == NBD_CMD_DISC)
      break;
    /* What 32 bits can say is still skipped for those who have no better way. */
    if (c->mode == REPLY_EXTENDED && op->rq.payload > EXPORT_MAX_PAYLOAD) {
      log_debug ("a payload of %" G_GUINT64_FORMAT " bytes: closing",
                 op->rq.payload);
      break;
    }
    op_check (op);
    if (atomic_load_explicit (&c->closing, memory_order_relaxed))
      op->error = NBD_ESHUTDOWN;
    if (!take_what_follows (c, l, op))
      break;

    make_room (c, l, 0);
    if (op->error == 0 && must_hand_over (c, l, op)) {
      hand_over (c, l);
      continue;
    }
    /* Where no thread can take over, a call that takes long shall not keep
     * replies that are ready. */
    if (op->error == 0 && !c->can_steal)
      flush (c, l);
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
  lead (c);
}

bool
serve_prepare_theft (struct conn *c)
{
  bool ok;

  pthread_mutex_lock (&c->lock);
  ok = c->in_flight < c->settings->threads && take_thread (c);
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
  give_thread ();
  leave_flight (c, 0);
}

void
serve_as_new_leader (void *arg)
{
  struct conn *c = arg;
  struct lane *old = c->lane, *l = lane_new ();

  speak_for (c);
  c->call_seq = atomic_load_explicit (&c->call, memory_order_relaxed);
  log_debug ("a request has been blocking: another thread goes on");
  old->nr_calls = 0;            /* their time is unknown */
  if (l == NULL) {
    /* Nobody can serve this client any more; it gets what is in flight. */
    log_error ("out of memory for a connection: closing it");
    atomic_store (&c->closing, true);
    flush (c, old);
    pthread_mutex_lock (&c->lock);
    while (c->in_flight > 0)
      pthread_cond_wait (&c->room, &c->lock);
    pthread_mutex_unlock (&c->lock);
    steal_unwatch (c);
    lane_unref (old);
    conn_finish (c);
    return;
  }
  flush (c, old);
  l->have = old->have - old->pos;
  memcpy (l->rx, old->rx + old->pos, l->have);
  c->lane = l;
  lane_unref (old);
  lead (c);
}
