/* SPDX-License-Identifier: BSD-3-Clause */
/* backup-push.h - backup-begin in mode push: a job a disk copies its snapshot
 * to a node, all in one group.
 *
 * All succeed, or the backup has failed: then the checkpoint that was made with
 * it goes again, since the one before still covers everything.  That is decided
 * in the catalog: the backup's rows go in the transaction of the group.  Rows
 * that a start finds are of a push that was interrupted: it goes on when its
 * jobs do.  If there are none of its jobs, these have failed, and it has not
 * been told any more.
 */
#ifndef BACKUP_PUSH_H
#define BACKUP_PUSH_H

#include "plugin/backup.h"
#include "plugin/job.h"
#include "plugin/job-store.h"

typedef struct BackupPush BackupPush;

/* Makes the jobs, not started, and takes hold of the targets. */
BackupPush *backup_push_new (Backup *backup, GError **error);
/* After the cut: from now on the backup ends by itself.  On an error it has
 * ended. */
bool backup_push_start (BackupPush *push, GError **error);
/* Without a start before: the jobs go without a trace.  NULL is fine. */
void backup_push_free (BackupPush *push);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (BackupPush, backup_push_free)

/* Waits until the jobs have ended: as cancelled, if they had not been
 * through. */
void backup_push_cancel (const Backup *backup);

/* In the transaction of the cut, with the backup. */
bool backup_push_store (BackupPush *push, GError **error);

/* --- at a start; rows: of JobRow */

/* Before backup_table_load: one that has no jobs has failed. */
bool backup_push_recover (const GPtrArray *rows, GError **error);
/* What was interrupted, as after the cut; and its jobs, not started.  Free it
 * then, as others. */
BackupPush *backup_push_restore (Backup *backup);
Job *backup_push_restore_job (BackupPush *push, const JobRow *row,
                              JobGroup *group, GError **error);

#endif
