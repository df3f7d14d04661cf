/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* copy-op.c - what happens to one piece: read, look for zeroes, write. */
#include <config.h>

#include <errno.h>
#include <string.h>

#include "tools/copy-internal.h"

/* Zeroes inside data that was read: on a fresh file every run of 4 KiB is left
 * out, which costs nothing.  Elsewhere it takes a call or a request to zero
 * them, so only longer runs are; 64 KiB is a qcow2 cluster.
 */
#define FRESH_ZERO_RUN 4096
#define ZERO_RUN 65536

static bool
is_zero (const char *buf, size_t length)
{
  if (length < 16) {
    for (size_t i = 0; i < length; i++)
      if (buf[i] != 0)
        return false;
    return true;
  }
  return memcmp (buf, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16) == 0 &&
         memcmp (buf, buf + 16, length - 16) == 0;
}

/* Requests must be whole blocks; only the last one of a disk may not be, and
 * there the target is known to have room (main checked).
 */
static uint64_t
padded (const Peer *peer, uint64_t length)
{
  return (length + peer->min_block - 1) & ~(peer->min_block - 1);
}

static void
op_fail (struct op *op, const char *doing, const Peer *where, int err)
{
  if (err == ENODATA && where->kind != PEER_NBD)
    engine_fail (op->worker->engine, g_error_new (
      ENGINE_ERROR, ENGINE_ERROR_FAILED,
      "cannot read from '%s' at offset %" G_GUINT64_FORMAT
      ": the file ends before the %" G_GUINT64_FORMAT " bytes that it had",
      where->name, op->piece.offset, where->size));
  else
    engine_fail (op->worker->engine, g_error_new (
      ENGINE_ERROR, ENGINE_ERROR_FAILED,
      "cannot %s '%s' at offset %" G_GUINT64_FORMAT ": %s", doing,
      where->name, op->piece.offset, g_strerror (err)));
}

static void
op_release (struct op *op)
{
  struct worker *worker = op->worker;

  op->next = worker->free;
  worker->free = op;
  worker->nr_busy--;
}

static int
on_complete (void *opaque, int *error)
{
  struct op *op = opaque;

  if (*error != 0 && op->error == 0)
    op->error = *error;
  if (--op->pending == 0) {
    op->next = op->worker->ready;
    op->worker->ready = op;
  }
  return 1;                     /* libnbd forgets the request */
}

#define COMPLETION(op) \
  ((nbd_completion_callback) { .callback = on_complete, .user_data = (op) })

/* The request could not even be sent. */
static void
op_not_sent (struct op *op, const char *doing, const Peer *where)
{
  op->pending--;
  engine_fail (op->worker->engine, g_error_new (
    ENGINE_ERROR, ENGINE_ERROR_FAILED,
    "cannot %s '%s' at offset %" G_GUINT64_FORMAT ": %s", doing, where->name,
    op->piece.offset, peer_nbd_error ()));
}

static void
write_data (struct op *op, uint64_t start, uint64_t length)
{
  struct worker *worker = op->worker;
  struct engine *engine = worker->engine;
  const Peer *target = engine->c.target;
  uint64_t offset = op->piece.offset + start;

  atomic_fetch_add (&engine->copied, length);
  if (target->kind != PEER_NBD) {
    int r = peer_file_write (target, op->buf + start, length, offset);

    if (r < 0)
      op_fail (op, "write to", target, -r);
    return;
  }
  if (padded (target, length) != length)
    memset (op->buf + start + length, 0, padded (target, length) - length);
  op->pending++;
  if (nbd_aio_pwrite (worker->target, op->buf + start,
                      padded (target, length), offset, COMPLETION (op),
                      0) == -1)
    op_not_sent (op, "write to", target);
}

/* No WRITE_ZEROES: send real ones, from the op's own buffer. */
static void
write_zeroes_as_data (struct op *op, uint64_t offset, uint64_t length)
{
  struct engine *engine = op->worker->engine;
  uint64_t step = engine->c.request_size;

  memset (op->buf, 0, MIN (step, length));
  while (length > 0 && !atomic_load (&engine->stop)) {
    uint64_t n = MIN (step, length);

    op->pending++;
    if (nbd_aio_pwrite (op->worker->target, op->buf, n, offset,
                        COMPLETION (op), 0) == -1)
      op_not_sent (op, "write to", engine->c.target);
    offset += n;
    length -= n;
  }
}

static void
write_zeroes (struct op *op, uint64_t start, uint64_t length)
{
  struct worker *worker = op->worker;
  struct engine *engine = worker->engine;
  const Peer *target = engine->c.target;
  uint64_t offset = op->piece.offset + start;

  atomic_fetch_add (&engine->zeroed, length);
  if (engine->c.target_is_zero)
    return;
  if (target->kind != PEER_NBD) {
    int r = peer_file_zero (target, length, offset);

    if (r < 0)
      op_fail (op, "write zeroes to", target, -r);
    return;
  }
  length = padded (target, length);
  if (!target->can_zero) {
    write_zeroes_as_data (op, offset, length);
    return;
  }
  op->pending++;
  if (nbd_aio_zero (worker->target, length, offset, COMPLETION (op), 0) == -1)
    op_not_sent (op, "write zeroes to", target);
}

/* The length of the run of equal kind (zero or not) at buf. */
static uint64_t
next_run (const char *buf, uint64_t length, uint64_t unit, bool *out_zero)
{
  uint64_t n = MIN (unit, length);

  *out_zero = is_zero (buf, n);
  while (n < length) {
    uint64_t m = MIN (unit, length - n);

    if (is_zero (buf + n, m) != *out_zero)
      break;
    n += m;
  }
  return n;
}

static void
write_piece (struct op *op)
{
  struct engine *engine = op->worker->engine;
  const Peer *target = engine->c.target;
  uint64_t unit = engine->c.target_is_zero ? FRESH_ZERO_RUN : ZERO_RUN;
  uint64_t done = 0;

  unit = MAX (unit, target->min_block);
  /* While answers may come only once this thread polls, `pending` cannot
   * reach 0 half-way; hold one all the same, libnbd may answer at once.
   */
  op->pending = 1;
  op->doing = "write to";
  op->where = target;
  if (op->piece.kind == PLAN_ZERO) {
    atomic_fetch_add (&engine->zero_pieces, op->piece.length);
    write_zeroes (op, 0, op->piece.length);
  }
  else
    while (done < op->piece.length && !atomic_load (&engine->stop)) {
      bool zero;
      uint64_t n = next_run (op->buf + done, op->piece.length - done, unit,
                             &zero);

      if (zero && (target->kind != PEER_NBD || target->can_zero))
        write_zeroes (op, done, n);
      else
        write_data (op, done, n);
      done += n;
    }
  if (--op->pending == 0 && op->error == 0)
    op_release (op);
  else if (op->pending == 0)
    op_fail (op, op->doing, op->where, op->error);
}

static void
note_difference (struct engine *engine, uint64_t offset)
{
  uint64_t lowest = atomic_load (&engine->different);

  while (offset < lowest &&
         !atomic_compare_exchange_weak (&engine->different, &lowest, offset))
    ;
}

static void
compare_piece (struct op *op)
{
  struct engine *engine = op->worker->engine;
  uint64_t length = op->piece.length;

  atomic_fetch_add (&engine->compared, length);
  if (memcmp (op->buf, op->buf2, length) != 0) {
    uint64_t i = 0;

    while (op->buf[i] == op->buf2[i])
      i++;
    note_difference (engine, op->piece.offset + i);
  }
  op_release (op);
}

/* Reads what the target has, for a comparison. */
static void
read_target (struct op *op)
{
  const Peer *target = op->worker->engine->c.target;
  uint64_t offset = op->piece.offset, length = op->piece.length;

  op->doing = "read back";
  op->where = target;
  if (target->kind != PEER_NBD) {
    int r = peer_file_read (target, op->buf2, length, offset);

    if (r < 0)
      op_fail (op, op->doing, target, -r);
    else
      compare_piece (op);
    return;
  }
  op->pending = 1;
  if (nbd_aio_pread (op->worker->target, op->buf2, padded (target, length),
                     offset, COMPLETION (op), 0) == -1)
    op_not_sent (op, op->doing, target);
}

/* The source's data are in buf. */
static void
after_read (struct op *op)
{
  if (op->worker->engine->c.mode == ENGINE_COMPARE)
    read_target (op);
  else
    write_piece (op);
}

void
op_start (struct op *op)
{
  const Peer *source = op->worker->engine->c.source;

  op->pending = 0;
  op->error = 0;
  op->doing = "read from";
  op->where = source;
  if (op->piece.kind == PLAN_ZERO)
    write_piece (op);
  else if (source->kind != PEER_NBD) {
    int r = peer_file_read (source, op->buf, op->piece.length,
                            op->piece.offset);

    if (r < 0)
      op_fail (op, op->doing, source, -r);
    else
      after_read (op);
  }
  else {
    op->pending = 1;
    if (nbd_aio_pread (op->worker->source, op->buf, op->piece.length,
                       op->piece.offset, COMPLETION (op), 0) == -1)
      op_not_sent (op, op->doing, source);
  }
}

void
op_continue (struct op *op)
{
  if (op->error != 0)
    op_fail (op, op->doing, op->where, op->error);
  else if (op->where == op->worker->engine->c.source)
    after_read (op);
  else if (op->worker->engine->c.mode == ENGINE_COMPARE)
    compare_piece (op);
  else
    op_release (op);
}
