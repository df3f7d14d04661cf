/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* snapshot.h - the frozen view of one disk as of a cut.
 *
 * Reads take no lock and never make a guest wait.  A Snapshot is
 * reference-counted; snapshot_end makes it unusable at once (reads answer
 * -ESHUTDOWN) and its memory goes with the last reference.
 */
#ifndef SNAPSHOT_H
#define SNAPSHOT_H

#include "fleece/disk.h"

typedef enum {
  SNAPSHOT_PREPARED,            /* the cut is not through yet: not readable */
  SNAPSHOT_LIVE,
  SNAPSHOT_BROKEN,              /* scratch full or failing: reads answer -EIO */
  SNAPSHOT_LOST,                /* after a crash: reads answer -EIO */
  SNAPSHOT_ENDED,               /* reads answer -ESHUTDOWN */
} SnapshotState;
const char *snapshot_state_name (SnapshotState state);  /* "live", ... */

/* A new reference, or NULL. */
Snapshot *disk_find_snapshot (Disk *disk, const char *name);
/* Of Snapshot (each with a reference), oldest first. */
GPtrArray *disk_snapshots (Disk *disk);
Snapshot *snapshot_ref (Snapshot *snap);
void snapshot_unref (Snapshot *snap);           /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Snapshot, snapshot_unref)

const char *snapshot_name (const Snapshot *snap);
Disk *snapshot_disk (const Snapshot *snap);
int64_t snapshot_id (const Snapshot *snap);     /* catalog row */
uint64_t snapshot_size (const Snapshot *snap);          /* bytes */
uint64_t snapshot_boundary (const Snapshot *snap);      /* epoch behind it */
int64_t snapshot_created (const Snapshot *snap);        /* seconds since 1970 */
bool snapshot_is_durable (const Snapshot *snap);        /* over a power loss */
SnapshotState snapshot_state (const Snapshot *snap);
/* Why it is broken or lost: a phrase, caller frees; NULL otherwise. */
char *snapshot_reason (Snapshot *snap);
/* Scratch used by the layers that only this and older snapshots need, and this
 * one's limit (0: none), bytes. */
void snapshot_scratch (Snapshot *snap, uint64_t *out_used, uint64_t *out_limit);
/* Bytes that may still be preserved for it: the less of what its limit leaves
 * and of what is free, beyond the reserve, where its scratch file is.
 * UINT64_MAX: unknown. */
uint64_t snapshot_scratch_left (Snapshot *snap);

int snapshot_pread (Snapshot *snap, void *buf, size_t length, uint64_t offset);
/* As disk_extents, of the frozen view; never promises zeroes over data
 * (presence, SEEK_HOLE, fence, presence again). */
int snapshot_extents (Snapshot *snap, uint64_t length, uint64_t offset,
                      FleeceRunFn fn, void *opaque);

/* End it, whatever its state: its row goes, layers that nobody needs any more
 * are removed.  The reference stays the caller's.  Not inside a transaction of
 * the catalog: a cut that waits for the catalog would wait for ever. */
bool snapshot_end (Snapshot *snap, GError **error);

#endif
