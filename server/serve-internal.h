/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* serve-internal.h - a leader's work space; for serve.c, serve-receive.c and
 * serve-flight.c.
 */
#ifndef NBDFLEECE_SERVE_INTERNAL_H
#define NBDFLEECE_SERVE_INTERNAL_H

#include "conn-internal.h"
#include "op.h"
#include "reply.h"

#define RX_SIZE (1 << 20)
#define TX_SIZE (512 << 10)

struct lane {
  atomic_uint refs;

  /* The leader's; its successor's after a theft. */
  size_t pos, have;             /* rx[pos .. have) is not parsed yet */
  size_t tx_used;               /* replies that are ready */
  struct stats batch;           /* of them, not yet added to the connection's */
  bool awaits_payload;          /* of op; else the next request */
  uint64_t skipped;             /* of the refused request's payload */
  unsigned nr_calls;            /* since batch_start */
  uint64_t call_bytes;          /* that those calls moved */
  int64_t batch_start;

  /* Of the thread that made the call, also after a theft. */
  struct op op;
  unsigned char header[REPLY_MAX_HEADER];
  struct outgoing reply;        /* after a theft */

  unsigned char rx[RX_SIZE];
  unsigned char tx[TX_SIZE];
};

/* Somebody has asked this client's threads to come to an end. */
static inline bool
is_ending (struct conn *c)
{
  return conn_is_parking () ||
    atomic_load_explicit (&c->closing, memory_order_relaxed);
}

/* serve.c.  Send the replies that are ready. */
void serve_flush (struct conn *c, struct lane *l);

/* serve-receive.c.  Receive until at least n bytes are unparsed, at most
 * RX_SIZE
 * - header; what is ready is sent first.  exact: receive nothing behind them.
 * false: the client is gone, or is not listened to any more, or is to be
 * parked. */
bool lane_fill (struct conn *c, struct lane *l, size_t n, bool exact);
/* Receive what follows the request.  Of one that is refused it is forgotten. */
bool lane_take_payload (struct conn *c, struct lane *l, struct op *op);
/* To be parked: what else was received, and is not parsed. */
void lane_keep_rest (struct conn *c, struct lane *l);

/* serve-flight.c.  Enter a buffer (more = 0) or a request (more = 1) into the
 * account, waiting for others to finish where that is too much: no request is
 * read meanwhile, so the client is held back. */
void flight_enter (struct conn *c, struct lane *l, unsigned more,
                   size_t charge);
/* A request of another thread has ended.  The connection may be gone when this
 * returns. */
void flight_leave (struct conn *c, size_t charge);
/* Release the bytes of an op that ran inline. */
void flight_release (struct conn *c, size_t charge);
/* The op gets a buffer.  false: its error is set. */
bool flight_give_buffer (struct conn *c, struct lane *l, struct op *op);
/* A thread for a request, of those that all clients may have.  false: none. */
bool flight_take_thread (const struct conn *c);
void flight_give_thread (void);

#endif /* NBDFLEECE_SERVE_INTERNAL_H */
