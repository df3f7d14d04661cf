/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* sim-bitmap.h - named bitmaps in a history, for sim-history.c and sim-check.c.
 *
 * The oracle keeps, for each bitmap, the granules that it must report and those
 * that it may.  There are two of it: what was promised last, and what a change
 * that is under way leads to.  After a crash either holds, as a whole: a change
 * may be of many bitmaps and come with snapshots, and all of it is one
 * transaction.
 *
 * Locking: a mutex inside, as others write while bitmaps change; changes and
 * checks are of one thread.
 */
#ifndef SIM_BITMAP_H
#define SIM_BITMAP_H

#include "fleece/fleece.h"
#include "tests/sim-history.h"

/* --- writes, resizes and trims of a thread: before and after.  all: a resize,
 * which bitmaps that do not record have as well.  Returns the write's
 * version. */
uint32_t sim_submit (unsigned thread, unsigned disk, uint64_t offset,
                     uint64_t length, bool all);
/* done: else nobody knows whether it took place. */
void sim_ack (unsigned thread, bool done);
/* The version of the oldest that may still be on its way, or of the next
 * one. */
uint32_t sim_oldest_in_flight (void);

/* --- changes */
typedef struct {
  Kind kind;                    /* ADD .. REMOVE */
  unsigned disk, bitmap;
  unsigned from_disk, from;     /* of MERGE */
  bool disabled;                /* of ADD */
} BitmapEdit;

typedef struct SimChange SimChange;

/* Those of the edits that make no sense as things are are left out; NULL: all
 * of them. */
SimChange *sim_change_begin (const BitmapEdit *edit, unsigned nr);
bool sim_change_needs_cut (const SimChange *change, unsigned disk);
/* In the transaction of the cut, if there is one. */
bool sim_change_write (SimChange *change, const FleeceCutDisk *part,
                       unsigned nr, GError **error);
/* It took place.  Frees change. */
void sim_change_end (SimChange *change);

/* --- what a snapshot keeps: before and after the cut. */
void sim_bitmaps_freeze (struct oracle_part *part, unsigned disk);
void sim_bitmaps_frozen (struct oracle_part *part, unsigned disk,
                         unsigned old);
/* For the latter: which state is what was promised. */
unsigned sim_bitmaps_promised (void);

/* --- checks.  After a crash: which of the two it is; *out_new: the change
 * under way took place.  now: the first word of each sector of each disk, to
 * tell whether the writes that were in flight at the crash are there. */
void sim_check_bitmaps (Crash crash, bool precise, uint64_t *const *now,
                        bool *out_old, bool *out_new);
/* Those of a snapshot. */
void sim_check_frozen (const struct oracle_part *part, unsigned disk,
                       const Snapshot *snap, Crash crash, bool precise);
/* Merging epochs changes nothing of what is reported. */
void sim_compact (bool alone);

#endif
