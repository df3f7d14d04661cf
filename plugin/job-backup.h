/* SPDX-License-Identifier: BSD-3-Clause */
/* job-backup.h - blockdev-backup: a job that copies a snapshot, all of it or what a
 * bitmap marks, to a node.
 *
 * The bitmap is pinned while the job is there.  Its contents at the start are its
 * epochs up to the job's cut; what guests write meanwhile are the epochs after it.
 * So there is no successor to make or to merge back: success drops the first half
 * of its row, in one transaction with all jobs of the group, and failure changes
 * nothing.
 */
#ifndef JOB_BACKUP_H
#define JOB_BACKUP_H

#include "plugin/backup.h"
#include "plugin/job.h"
#include "plugin/transaction.h"

/* Checks the arguments (blockdev-backup's), claims target and bitmap, and makes the
 * job, not started, in group (NULL: its own).  *out_disk: whose cut has to have a
 * snapshot for it; NULL if it reads one that exists. */
Job *backup_job_new (Transaction *t, json_t *args, JobGroup *group,
                     Disk **out_disk, GError **error);

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
  void *opaque;
} BackupCopy;

Job *backup_job_new_copy (const BackupCopy *copy, JobGroup *group,
                          GError **error);
/* After the cut, before job_start.  Borrowed from the backup. */
void backup_job_set_source (Job *job, Snapshot *snap);

/* After the cut, before job_start.  snap: a reference that the jobs of a disk share:
 * the last one ends the snapshot. */
typedef struct JobSnapshot JobSnapshot;
JobSnapshot *job_snapshot_new (Snapshot *snap); /* takes the reference */
void job_snapshot_unref (JobSnapshot *snap);    /* NULL is fine */
void backup_job_set_snapshot (Job *job, JobSnapshot *snap);

#endif
