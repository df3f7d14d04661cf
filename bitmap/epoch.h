/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* epoch.h - one disk's epochs: one open and recording, the sealed ones
 * immutable.
 *
 * Epoch ids grow by time within a disk and never repeat (also not over
 * restarts).  A boundary is named by the id of the epoch that STARTS there:
 * "changed between boundary F and boundary T" is the OR of all epochs with
 * F <= id < T, and T = 0 means up to now, the open epoch included.
 *
 * Tracking survives a clean stop exactly.  After anything else
 * epoch_log_open puts in a sealed epoch that is dirty everywhere, so that every
 * boundary older than the crash reads all dirty (fine-grained recovery is the
 * job of the durable map).  Also when the image changed behind our back: see
 * DiskIdentity.
 *
 * Locking: an EpochLog has a mutex of its own, taken inside the catalog's.
 * Epoch::bitmap is lock-free; everything else of an Epoch is immutable or under
 * the log's mutex.
 */
#ifndef EPOCH_H
#define EPOCH_H

#include <stdbool.h>
#include <stdint.h>
#include <glib.h>
#include "bitmap/catalog.h"
#include "bitmap/change-set.h"
#include "bitmap/dirty-bitmap.h"

/* What tells that an image is still the one we tracked (H8).  Recorded at a
 * clean stop, compared at the next open. */
typedef struct {
  uint64_t size;                /* bytes */
  uint64_t device, inode;       /* st_dev (st_rdev of a block device), st_ino */
  int64_t mtime_ns;             /* 0 for block devices */
  /* device, inode and mtime_ns are not compared where either side is 0: give
   * 0 for what may change by itself, as numbers of block device nodes do. */
} DiskIdentity;

/* A recording epoch, or one that was. */
typedef struct {
  uint64_t id;
  uint64_t size;                /* geometry is fixed for the epoch's life */
  uint32_t granularity;
  DirtyBitmap *bitmap;          /* of guest writes; NULL once stored */
  /*< private >*/
  uint64_t prev;                /* id of the epoch before; 0: none */
  ChangeSet *sealed;            /* cache of bitmap, once it cannot change */
} Epoch;

typedef struct EpochLog EpochLog;

/* What epoch_log_open found; for the log and for query-block. */
typedef struct {
  bool created;                 /* the disk was unknown; counts as clean */
  bool clean;                   /* tracking continues exactly */
  char *reason;                 /* why not clean, one phrase; the log's */
} EpochOpenReport;

/* Opens the log of the disk called name, creating its rows if it is new, makes
 * a new open epoch and marks the disk as in use (not clean), all durable on
 * return.  granularity: for the new epoch. */
EpochLog *epoch_log_open (Catalog *cat, const char *name, uint32_t granularity,
                          const DiskIdentity *identity, GError **error);
const EpochOpenReport *epoch_log_report (const EpochLog *log);

/* Clean stop: no write may be in flight or follow.  Stores every epoch, also
 * the open one, then records identity and "clean" in one transaction.  The
 * caller has fdatasync'ed the image before it read the identity. */
bool epoch_log_close (EpochLog *log, const DiskIdentity *identity,
                      GError **error);
void epoch_log_free (EpochLog *log);            /* without close: not clean */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (EpochLog, epoch_log_free)

int64_t epoch_log_disk_id (const EpochLog *log);        /* catalog's disk row */
const char *epoch_log_disk_name (const EpochLog *log);
/* The open one; borrowed, lives as long as the log (its bitmap does not). */
Epoch *epoch_log_current (EpochLog *log);

/* The cut, in three steps (durability.md K1, K5, K6').
 * prepare: allocates the next epoch, its id durable; no writer sees it yet.
 *   At most one prepared epoch a log.
 * seal: inside the caller's catalog transaction: next becomes the open one and
 *   what was open is sealed.  No write may be in flight on the old one.  Its
 *   bits stay in memory until epoch_log_store.  In memory this holds even if
 *   the transaction then fails, since writers have moved on: the rows follow
 *   with the next store, seal or close.
 * abandon: drop a prepared epoch that no writer has seen. */
Epoch *epoch_log_prepare (EpochLog *log, uint64_t size, uint32_t granularity,
                          GError **error);
bool epoch_log_seal (EpochLog *log, Epoch *next, GError **error);
void epoch_log_abandon (EpochLog *log, Epoch *next);

/* K7: write the blobs of sealed epochs that are still in memory, then free
 * their bitmaps.  Any thread, also while guests write; not inside a
 * transaction (INVALID), whose failure would come after the freeing. */
bool epoch_log_store (EpochLog *log, GError **error);

/* What changed from boundary from to boundary to (0: now), as of the disk's
 * size at that instant.  Loads blobs on demand, one at a time, and keeps none.
 * A blob that cannot be read or fails its checks, or a gap in the rows, counts
 * as all dirty (*out_damaged is then set, if not NULL), never as clean.
 * NOT_FOUND if from or to is older than the oldest epoch kept, or unknown. */
ChangeSet *epoch_log_changed (EpochLog *log, uint64_t from, uint64_t to,
                              bool *out_damaged, GError **error);

/* Drop epochs that no boundary needs any more: all sealed ones with id <
 * keep_from.  Part of the caller's transaction if one is open. */
bool epoch_log_forget_before (EpochLog *log, uint64_t keep_from,
                              GError **error);

#endif
