/* SPDX-License-Identifier: BSD-3-Clause */
/* transaction-internal.h - what a transaction has gathered, for the files
 * transaction*.c.  Under the transaction's lock. */
#ifndef TRANSACTION_INTERNAL_H
#define TRANSACTION_INTERNAL_H

#include "plugin/backup-begin.h"
#include "plugin/job.h"
#include "plugin/transaction.h"

/* A bitmap that the transaction has looked at. */
typedef struct {
  Disk *disk;
  NamedBitmap *bm;
  bool changed, removed;
} Edit;

typedef struct {
  Job *job;
  Disk *disk;                   /* whose cut makes its snapshot; NULL: none */
  bool resumable;
} PendingJob;

typedef struct {
  Checkpoint *ckpt;
  GPtrArray *disks;             /* of Disk, a reference each */
  /* A backup instead, with a checkpoint or without. */
  BackupBegin *begin;
  GPtrArray *seen;              /* of Edit: its disks' bitmaps, as changed by
                                 * the actions before it */
  guint first_cut;              /* of its snapshots, one a disk */
} PendingCreate;

typedef struct {
  char *name;
  CheckpointDelete how;
  GPtrArray *kept;              /* of char *: those whose bitmaps are edits
                                   now */
  GPtrArray *deleted;           /* of char *, what went */
} PendingDelete;

struct Transaction {
  GPtrArray *edits;             /* of Edit */
  /* Of FleeceCutDisk, no disk twice; at the commit, behind these, one more for
   * each snapshot of a backup. */
  GArray *cuts;
  GPtrArray *created;           /* of PendingCreate */
  GPtrArray *deleted;           /* of PendingDelete */
  GPtrArray *layers;            /* of char *: names and paths, borrowed by
                                   cuts */
  GHashTable *going;            /* names of checkpoints that they delete */
  GArray *jobs;                 /* of PendingJob */
  JobGroup *group;              /* of all jobs; NULL: each its own */
  bool done;                    /* committed: the jobs run */
};

void transaction_edit_free (gpointer edit);

/* The checkpoint, or bitmap of one, of that name as the actions so far have
 * left it: *out_boundary; false: there is none. */
bool transaction_boundary (const Transaction *t, Disk *disk, const char *name,
                           uint64_t *out_boundary);

static inline int64_t
disk_row (Disk *disk)
{
  return epoch_log_disk_id (disk_epoch_log (disk));
}

#endif
