/* SPDX-License-Identifier: BSD-3-Clause */
/* job-backup.h - blockdev-backup: a job that copies a snapshot, all of it or
 * what a bitmap marks, to a node.
 *
 * The bitmap is pinned while the job is there.  Its contents at the start are
 * its epochs up to the job's cut; what guests write meanwhile are the epochs
 * after it.  So there is no successor to make or to merge back: success drops
 * the first half of its row, in one transaction with all jobs of the group, and
 * failure changes nothing.  Queries count the first half alone meanwhile.
 *
 * A stop of the server, in order or not, does not end it: see job-store.h.
 * Made again, it opens its target when it is resumed, since that may have to be
 * started first.
 */
#ifndef JOB_BACKUP_H
#define JOB_BACKUP_H

#include "plugin/backup.h"
#include "plugin/job-snapshot.h"
#include "plugin/job.h"
#include "plugin/job-store.h"
#include "plugin/transaction.h"

/* Checks the arguments (blockdev-backup's), claims target and bitmap, and makes
 * the job, not started, in group (NULL: its own).  *out_disk: whose cut has to
 * have a snapshot for it; NULL if it reads one that exists. */
Job *backup_job_new (Transaction *t, json_t *args, JobGroup *group,
                     Disk **out_disk, GError **error);

/* Can it go on after a restart?  Not if it reads a node, which is gone then. */
bool backup_job_is_resumable (Job *job);

/* A part of something larger: a copy of a disk's snapshot to a node. */
typedef struct {
  const char *id;               /* of the job */
  Disk *disk;
  uint64_t since;               /* copy what changed since; 0: everything */
  const char *target;
  Backup *backup;               /* kept until the end */
  /* In the group's transaction; and in the end, once, whatever has happened. */
  bool (*commit) (void *opaque, GError **error);
  void (*end) (void *opaque, bool ok);
  void (*suspend) (void *opaque);       /* instead of end: the server stops */
  void *opaque;
  Snapshot *snap;               /* for backup_job_restore; NULL: gone */
} BackupCopy;

Job *backup_job_new_copy (const BackupCopy *copy, JobGroup *group,
                          GError **error);
/* After the cut, before job_start.  Borrowed from the backup. */
void backup_job_set_source (Job *job, Snapshot *snap);

/* After the cut, before job_start. */
void backup_job_set_snapshot (Job *job, JobSnapshot *snap);

/* In the transaction of the cut: from now on it outlives the server.  snapshot:
 * its name; NULL: of one that exists.  group: id of the first of those that end
 * together. */
bool backup_job_store (Job *job, const char *snapshot, const char *group,
                       GError **error);

/* At a start: the job of a row, not started, which will be paused.  shared: its
 * snapshot, NULL: it is gone, or a backup's; then copy, if the job is part of
 * one.  lost: why it cannot go on; NULL: it finds out itself.  One that cannot
 * fails as soon as it is started, and stays to be looked at. */
Job *backup_job_restore (const JobRow *row, JobGroup *group,
                         const BackupCopy *copy, JobSnapshot *shared,
                         const char *lost, GError **error);

#endif
