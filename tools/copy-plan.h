/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* copy-plan.h - what is still to be read, zeroed or left alone.
 *
 * Block status goes in at the far end, in order and without gaps; workers take
 * pieces of work out at the near end.  Every byte of [0, size) comes out
 * exactly once, as part of a piece, or is counted as skipped.
 *
 * Pieces start and end at multiples of `align` (but for the end of the disk).
 * A block of `align` bytes that is not of one kind is READ as a whole: the
 * source has the truth about all of it.
 *
 * Locking: one mutex inside; every function may be called from any thread.
 */
#ifndef NBDFLEECE_COPY_PLAN_H
#define NBDFLEECE_COPY_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

typedef struct Plan Plan;

enum plan_kind {
  PLAN_READ,                    /* data: read from the source */
  PLAN_ZERO,                    /* reads as zeroes: zero the target */
  PLAN_SKIP                     /* leave the target alone */
};

struct plan_piece {
  enum plan_kind kind;          /* READ or ZERO */
  uint64_t offset, length;
};

enum plan_answer {
  PLAN_PIECE,                   /* one piece was taken */
  PLAN_WAIT,                    /* nothing now: block status must come first */
  PLAN_END                      /* everything has been taken */
};

/* align: a power of 2.  read_max, zero_max: the longest pieces, multiples of
 * align.
 */
Plan *plan_new (uint64_t size, uint64_t align, uint64_t read_max,
                uint64_t zero_max);
void plan_free (Plan *plan);                    /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Plan, plan_free)

/* True if block status for [*out_offset, *out_offset + *out_length) should be
 * asked for now; the caller then owes a plan_status_done ().  At most one such
 * request is out at a time, and none while plenty of pieces are waiting, which
 * bounds memory.  The first requests are short, so that reading starts early.
 */
bool plan_wants_status (Plan *plan, uint64_t max_length, uint64_t *out_offset,
                        uint64_t *out_length);
void plan_status_done (Plan *plan);

/* The next `length` bytes are of this kind; more than is left is cut. */
void plan_append (Plan *plan, uint64_t length, enum plan_kind kind);

enum plan_answer plan_next (Plan *plan, struct plan_piece *out_piece);

/* For progress and the summary.  All bytes.  to_read grows until scanned
 * reaches the size.
 */
struct plan_totals {
  uint64_t scanned, to_read, zero, skipped;
};
void plan_totals (Plan *plan, struct plan_totals *out_totals);

#endif /* NBDFLEECE_COPY_PLAN_H */
