/* SPDX-License-Identifier: BSD-3-Clause */
/* job-copy.h - the work of a backup job: a few threads copy chunks of a snapshot,
 * in the order of the disk, and now and then the target is flushed and the catalog
 * told how far it is.
 *
 * Each worker has at most one chunk; everything before the first of those, or
 * before the next one to be taken, has been copied.  Once the target has been
 * flushed that is the job's progress: one number, or the set of what was copied
 * if the order is not the disk's (sync mode none).  When a flush fails, or a
 * connection to the target was made anew, all since the last flush is copied
 * again, since nobody knows what became of it.
 *
 * Locking: BackupJob.lock, before the jobs' own, not held over I/O.
 */
#ifndef JOB_COPY_H
#define JOB_COPY_H

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
  json_t *args;                 /* blockdev-backup's */
  json_t *target_options;       /* blockdev-add's */
  char *bitmap;                 /* NULL: none */
  char *filter;                 /* node_add_filter's, until it ends; NULL: none */
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
  uint64_t taken[BACKUP_MAX_WORKERS];   /* where its chunk begins; BACKUP_IDLE */
  int err;                      /* the first that ended it, errno */
  bool draining;                /* goes on although it is cancelled */
  DirtyBitmap *copied;          /* of sync mode none: what has been, in units */

  uint64_t flushed;             /* all of todo before it is safe on the target */
  ChangeSet *flushed_set;       /* of sync mode none */
  uint64_t unflushed;           /* bytes copied since */
  int64_t flushed_at;           /* monotonic */
  unsigned reconnects;          /* the target's, then */
  bool flushing;                /* by a thread, now */
  bool store_failed;
} BackupJob;

#define BACKUP_IDLE UINT64_MAX

/* How long a request to the target may take once the job is to end or to pause; and
 * in sync mode none, where being cancelled is the normal end.  Microseconds. */
#define BACKUP_PATIENCE (3 * G_USEC_PER_SEC)
#define BACKUP_DRAIN_TIME (10 * G_USEC_PER_SEC)
int64_t backup_patience (void *b);              /* a NodePatience */

/* Once there is a target.  False: an error, or it shall end. */
bool backup_copy (BackupJob *b, GError **error);
bool backup_copy_overwritten (BackupJob *b, GError **error);

/* Opens the target of a job that was made again, once somebody has said that it shall
 * go on, and holds it while that cannot be done.  False: it shall end. */
bool backup_reopen_target (BackupJob *b);

/* A worker pauses: the last one to do so tells how far all of them are. */
void backup_copy_pausing (BackupJob *b);

/* Bytes of set before offset. */
uint64_t backup_bytes_before (const ChangeSet *set, uint64_t offset);

#endif
