/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* serve-receive.c - requests and their payloads, as the leader receives
 * them. */
#include <config.h>

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "nbd-wire.h"
#include "serve-internal.h"
#include "steal.h"

/* A payload up to this size is received in the lane; a larger one in a buffer
 * of its own, which costs no copy but an allocation. */
#define RX_PAYLOAD (RX_SIZE / 2)
/* While a payload of which more than this is missing arrives, nothing behind it
 * is received: its successor then starts at the front of the lane again. */
#define GREEDY_BELOW (32 << 10)

/* Give the memory back, not the address space. */
static void
release_pages (void *start, size_t size)
{
  uintptr_t mask = sysconf (_SC_PAGESIZE) - 1;
  uintptr_t from = ((uintptr_t) start + mask) & ~mask;
  uintptr_t to = ((uintptr_t) start + size) & ~mask;

  madvise ((void *) from, to - from, MADV_DONTNEED);
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

void
lane_keep_rest (struct conn *c, struct lane *l)
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

static bool
in_request (const struct lane *l)
{
  return l->pos < l->have || l->awaits_payload;
}

/* Nothing of c's is with another thread.  The leader's own calls are over. */
static bool
is_alone (struct conn *c)
{
  bool alone;

  pthread_mutex_lock (&c->lock);
  alone = c->in_flight == 0;
  pthread_mutex_unlock (&c->lock);
  return alone;
}

/* No more is to be served: whether to read on nevertheless, to refuse it.  That
 * is done while replies are due, and then until nothing is there; *out_alone:
 * from now on that will do.  It is looked at before something is received: what
 * a client sends before it has its last reply is then there to be found,
 * whoever is quicker. */
static bool
shall_refuse (struct conn *c, struct lane *l, bool *out_alone)
{
  if (!conn_is_draining ())
    return false;
  *out_alone = is_alone (c);
  if (*out_alone)
    return !conn_is_drained (&c->asking_since, in_request (l));
  c->asking_since = 0;
  return true;
}

/* Nothing has come for a while.  false: it has lasted too long. */
static bool
is_silent (struct conn *c, struct lane *l)
{
  /* Pages that were used by larger requests: an idle client holds none. */
  if (l->pos == l->have && c->silent_since == 0) {
    release_pages (l->rx, sizeof l->rx);
    release_pages (l->tx, sizeof l->tx);
  }
  return conn_is_patient (c, in_request (l));
}

bool
lane_fill (struct conn *c, struct lane *l, size_t n, bool exact)
{
  while (l->have - l->pos < n) {
    bool closing, alone = false;
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
    steal_idle (c);
    serve_flush (c, l);
    /* It was set after what conn_is_draining looks at. */
    closing = atomic_load_explicit (&c->closing, memory_order_acquire);
    if (closing && !shall_refuse (c, l, &alone))
      return false;
    if (conn_is_parking ()) {
      c->parked = true;
      return false;
    }
    r = receive (c, l->rx + l->have, end - l->have);
    if (r == -1 && errno == EAGAIN) {
      if (alone && !in_request (l))
        return false;
      if (!is_ending (c) && !is_silent (c, l))
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
    if (!lane_fill (c, l, 1, false)) {
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

/* Into the op's own buffer; have: how much of it is there. */
static bool
receive_payload (struct conn *c, const struct op *op, size_t have)
{
  int64_t since = 0;

  while (have < op->rq.length) {
    ssize_t r;

    if (conn_is_parking ()) {
      c->parked = true;
      keep_request (c, op, op->data, have);
      return false;
    }
    if (conn_is_draining () && conn_is_drained (&since, true))
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
    if (!lane_fill (c, l, length,
                    length > have && length - have > GREEDY_BELOW)) {
      if (c->parked)
        keep_request (c, op, "", 0);
      return false;
    }
    op->data = l->rx + l->pos;
    l->pos += length;
    return true;
  }
  if (!flight_give_buffer (c, l, op))
    return discard (c, l, length);
  memcpy (op->data, l->rx + l->pos, have);
  l->pos = l->have = 0;
  serve_flush (c, l);
  steal_idle (c);
  atomic_fetch_add_explicit (&c->progress, 1, memory_order_relaxed);
  atomic_store_explicit (&c->in_payload, true, memory_order_relaxed);
  complete = receive_payload (c, op, have);
  atomic_store_explicit (&c->in_payload, false, memory_order_relaxed);
  if (!complete) {
    flight_release (c, op->charge);
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

  if (!lane_fill (c, l, length, false)) {
    if (c->parked)
      keep_request (c, op, "", 0);
    return false;
  }
  op_take_range (op, l->rx + l->pos);
  l->pos += length;
  return true;
}

bool
lane_take_payload (struct conn *c, struct lane *l, struct op *op)
{
  bool ok;

  if (op->rq.payload == 0)
    return true;
  l->awaits_payload = true;
  if (op->error)
    ok = discard (c, l, op->rq.payload);
  else if (op->rq.type == NBD_CMD_WRITE)
    ok = take_payload (c, l, op);
  else
    ok = take_range (c, l, op);
  l->awaits_payload = false;
  return ok;
}
