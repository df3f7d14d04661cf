/* SPDX-License-Identifier: BSD-3-Clause */
/* job-copy.h - the work of a backup job: a few threads copy chunks of a
 * snapshot, in the order of the disk, and now and then the target is flushed
 * and the catalog told how far it is.
 *
 * Each worker has at most one chunk; everything before the first of those, or
 * before the next one to be taken, has been copied.  Once the target has been
 * flushed that is the job's progress: one number, or the set of what was copied
 * if the order is not the disk's (sync mode none).  When a flush fails, or a
 * connection to the target was made anew, all since the last flush is copied
 * again, since nobody knows what became of it.
 */
#ifndef JOB_COPY_H
#define JOB_COPY_H

#include "plugin/job-backup-internal.h"

#define BACKUP_IDLE UINT64_MAX

/* How long a request to the target may take once the job is to end or to pause;
 * and in sync mode none, where being cancelled is the normal end.
 * Microseconds. */
#define BACKUP_PATIENCE (3 * G_USEC_PER_SEC)
#define BACKUP_DRAIN_TIME (10 * G_USEC_PER_SEC)
int64_t backup_patience (void *b);              /* a NodePatience */

/* Once there is a target.  False: an error, or it shall end. */
bool backup_copy (BackupJob *b, GError **error);
bool backup_copy_overwritten (BackupJob *b, GError **error);

/* Opens the target of a job that was made again, once somebody has said that it
 * shall go on, and holds it while that cannot be done.  False: it shall end. */
bool backup_reopen_target (BackupJob *b);

/* A worker pauses: the last one to do so tells how far all of them are. */
void backup_copy_pausing (BackupJob *b);

/* Bytes of set before offset. */
uint64_t backup_bytes_before (const ChangeSet *set, uint64_t offset);

#endif
