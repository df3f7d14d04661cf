/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* op.h - one request in hand: execute it, and form its reply.
 *
 * An op belongs to one thread at a time: the leader while it receives and runs
 * it, or the worker that it was handed to.
 */
#ifndef NBDFLEECE_OP_H
#define NBDFLEECE_OP_H

#include <stddef.h>
#include <stdint.h>

#include "conn-internal.h"
#include "log.h"
#include "reply.h"
#include "trace.h"

struct op {
  struct conn *c;
  struct request rq;
  /* WRITE: the payload.  READ: where it goes, REPLY_READ_ROOM behind the start
   * of what may be written to. */
  unsigned char *data;
  void *own;                    /* malloc'ed buffer of the op, or NULL */
  size_t charge;                /* its bytes, counted in in_flight_bytes */

  /* The result. */
  uint32_t error;               /* NBD_E*, or 0 */
  const char *text;             /* for the error; NULL: a general one */
  unsigned char *status;        /* BLOCK_STATUS: the whole reply, malloc'ed */
  size_t status_length;
  uint64_t nr_extents;
};

/* Check the request against the export; sets error and text. */
void op_check (struct op *op);
/* The payload of a BLOCK_STATUS has been received: take it into the request,
 * and check again. */
void op_take_range (struct op *op, const unsigned char *payload);

/* Call the plugin (for READ and WRITE data is set).  Length 0 is done at once.
 * Sets the result. */
void op_execute (struct op *op);

/* The reply, made in place where the op has data, else in header
 * (REPLY_MAX_HEADER bytes).  Once only. */
struct iovec op_reply (struct op *op, unsigned char *header);

/* It has been answered. */
static inline void
op_count (const struct op *op, struct stats *batch)
{
  if (log_verbose)
    trace_reply (op);
  stats_count (batch, op->rq.type, op->rq.length, op->error != 0);
  batch->extents += op->nr_extents;
}

/* Free what the op owns. */
void op_clear (struct op *op);

#endif /* NBDFLEECE_OP_H */
