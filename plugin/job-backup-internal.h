/* SPDX-License-Identifier: BSD-3-Clause */
/* job-backup-internal.h - a backup job, for the files that make one (-new), do
 * its work (job-copy.h, job-target.c), end it (job-backup.c) and keep it over a
 * restart (-stored).
 *
 * Locking: BackupJob.lock, before the jobs' own, not held over I/O.
 */
#ifndef JOB_BACKUP_INTERNAL_H
#define JOB_BACKUP_INTERNAL_H

#include "bitmap/dirty-bitmap.h"
#include "plugin/job-backup.h"
#include "plugin/node.h"
#include "plugin/thread.h"

#define BACKUP_MAX_WORKERS 8
#define BACKUP_CHUNK (UINT64_C (1) << 20)       /* bytes copied at once */
/* What sync mode none copies: of what was overwritten in part, all. */
#define BACKUP_UNIT (UINT32_C (1) << 16)

typedef enum { MODE_NONE, MODE_NEVER, MODE_ON_SUCCESS, MODE_ALWAYS } BitmapMode;

typedef struct {
  /* Set in new, never changed. */
  char *device;                 /* name of the disk */
  /* A reference until it has ended; NULL: not served now, then lost is set. */
  Disk *disk;
  Backup *backup;               /* of a snapshot that exists; else NULL */
  const BackupDisk *bd;         /* then of it, if the job is no part of it */
  json_t *args;                 /* blockdev-backup's */
  json_t *target_options;       /* blockdev-add's */
  char *bitmap;                 /* NULL: none */
  char *filter;                 /* node_add_filter's, until it ends; NULL:
                                   none */
  int64_t bitmap_row;           /* pinned; 0: not */
  bool all;                     /* copies everything */
  bool overwritten;             /* copies what guests overwrite */
  BitmapMode mode;
  JobOnError on_source, on_target;
  uint64_t chunk;
  unsigned max_workers;
  BackupCopy copy;              /* of a backup's; else its functions are NULL */
  char *lost;                   /* made again, and why it cannot go on */

  /* Set before the start. */
  Job *job;
  JobSnapshot *shared;          /* NULL: backup's */
  Snapshot *snap;               /* borrowed from either */
  char *group;                  /* it is in the catalog; NULL: not */

  /* The job's thread's. */
  Node *target;                 /* NULL: made again, and not opened yet */
  bool set_is_stored;           /* todo, or it need not be */

  /* The work; under lock. */
  pthread_mutex_t lock;
  ChangeSet *todo;
  uint64_t next;                /* all of todo before it has been taken */
  uint64_t taken[BACKUP_MAX_WORKERS];   /* where its chunk begins;
                                           BACKUP_IDLE */
  int err;                      /* the first that ended it, errno */
  bool draining;                /* goes on although it is cancelled */
  DirtyBitmap *copied;          /* of sync mode none: what has been, in units */

  uint64_t flushed;             /* all of todo before it is safe on the
                                   target */
  ChangeSet *flushed_set;       /* of sync mode none */
  uint64_t unflushed;           /* bytes copied since */
  int64_t flushed_at;           /* monotonic */
  unsigned reconnects;          /* the target's, then */
  bool flushing;                /* by a thread, now */
  bool store_failed;
} BackupJob;

/* QEMU's checks of how sync, bitmap and bitmap-mode go together, and of x-perf;
 * from the arguments into the job. */
bool backup_check_sync (BackupJob *b, json_t *args, GError **error);
bool backup_check_perf (BackupJob *b, json_t *args, GError **error);
/* What it reads: a disk, or the snapshot that is exported under that name. */
bool backup_find_device (BackupJob *b, const char *name, GError **error);
bool backup_add_filter (BackupJob *b, GError **error);

extern const JobDriver backup_driver;
BackupJob *backup_job_alloc (json_t *args);
void backup_free (void *b);
/* What it holds, but its snapshot. */
void backup_let_go (BackupJob *b);

/* As QEMU: until the job ends, its bitmap is what it was at the start. */
void backup_show_frozen (const BackupJob *b);

#endif
