/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <stdlib.h>

#include "nbd-errno.h"
#include "nbd-wire.h"
#include "op.h"
#include "status.h"

/* Blocks of zeroes of this size, bytes, are not sent among data.  Looking for
 * them costs nothing that can be measured: most are told from data by their
 * first bytes.  But clients pay for each chunk (libnbd with some system calls):
 * of 256 KiB in which every other 4 KiB was zeroes, it read less than half as
 * fast with 64 chunks as with one. */
#define HOLE_SIZE 32768

static struct request_rules
rules_of (const struct conn *c)
{
  return (struct request_rules) {
    .info = handle_info (c->handle),
    .mode = c->mode,
    .nr_contexts = metactx_set_count (c->contexts),
  };
}

void
op_check (struct op *op)
{
  const struct request_rules rules = rules_of (op->c);

  op->error = request_check (&op->rq, &rules, &op->text);
}

void
op_take_range (struct op *op, const unsigned char *payload)
{
  const struct request_rules rules = rules_of (op->c);

  op->error = request_take_range (&op->rq, &rules, payload, &op->text);
  if (op->error == NBD_SUCCESS)
    op->error = request_check (&op->rq, &rules, &op->text);
}

static uint32_t
plugin_flags (const struct op *op)
{
  uint32_t flags = 0;

  if (op->rq.flags & NBD_CMD_FLAG_FUA)
    flags |= NBDKIT_FLAG_FUA;
  if (op->rq.flags & NBD_CMD_FLAG_FAST_ZERO)
    flags |= NBDKIT_FLAG_FAST_ZERO;
  if (op->rq.type == NBD_CMD_WRITE_ZEROES &&
      !(op->rq.flags & NBD_CMD_FLAG_NO_HOLE))
    flags |= NBDKIT_FLAG_MAY_TRIM;
  return flags;
}

void
op_execute (struct op *op)
{
  struct conn *c = op->c;
  Handle *h = c->handle;
  const struct request *rq = &op->rq;
  int err = 0;

  if (rq->length == 0 && rq->type != NBD_CMD_FLUSH)
    return;
  switch (rq->type) {
  case NBD_CMD_READ:
    err = handle_pread (h, op->data, rq->length, rq->offset);
    break;
  case NBD_CMD_WRITE:
    err = handle_pwrite (h, op->data, rq->length, rq->offset,
                         plugin_flags (op));
    break;
  case NBD_CMD_FLUSH:
    err = handle_flush (h);
    break;
  case NBD_CMD_TRIM:
    err = handle_trim (h, rq->length, rq->offset, plugin_flags (op));
    break;
  case NBD_CMD_CACHE:
    err = handle_cache (h, rq->length, rq->offset);
    break;
  case NBD_CMD_WRITE_ZEROES:
    err = handle_zero (h, rq->length, rq->offset, plugin_flags (op));
    break;
  case NBD_CMD_BLOCK_STATUS:
    err = status_reply (h, c->contexts, rq, c->mode, &op->status,
                        &op->status_length, &op->nr_extents);
    break;
  }
  op->error = nbd_errno (err, rq->flags);
}

struct iovec
op_reply (struct op *op, unsigned char *header)
{
  const struct request *rq = &op->rq;
  enum reply_mode mode = op->c->mode;

  if (op->error == NBD_SUCCESS && op->status != NULL)
    return (struct iovec) { op->status, op->status_length };
  if (op->error == NBD_SUCCESS && rq->type == NBD_CMD_READ && rq->length > 0) {
    unsigned char *reply = op->data - reply_read_header_size (mode);
    uint32_t min = handle_info (op->c->handle)->block.min;

    return (struct iovec) {
      reply, reply_read (reply, mode, rq, MAX (min, HOLE_SIZE)) };
  }
  return (struct iovec) {
    header, reply_status (header, mode, rq, op->error, op->text) };
}

void
op_clear (struct op *op)
{
  free (op->own);
  free (op->status);
  op->own = op->status = NULL;
}
