/* SPDX-License-Identifier: BSD-3-Clause */
/* backup-begin.h - what the command backup-begin and the action of a
 * transaction do around the cut, which is the caller's.
 *
 * new, then a cut of backup_begin_cuts, with check and store in its catalog
 * transaction, then finish.  Freed before finish it leaves no trace, if the cut
 * has failed or there was none.  No locking: one command's own.
 */
#ifndef BACKUP_BEGIN_H
#define BACKUP_BEGIN_H

#include "plugin/backup-plan.h"

typedef struct BackupBegin BackupBegin;

/* Checks the arguments (backup-begin's) and reserves all names: nobody sees the
 * backup yet, and nobody else can have them.  Of a push it makes the jobs. */
BackupBegin *backup_begin_new (json_t *args, GError **error);
void backup_begin_free (BackupBegin *begin);    /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (BackupBegin, backup_begin_free)

const Backup *backup_begin_backup (const BackupBegin *begin);
/* NULL: none is made with it. */
const Checkpoint *backup_begin_checkpoint (const BackupBegin *begin);
/* Of FleeceCutDisk: what to cut at one instant; first the disks of the backup,
 * in its order, each with a snapshot, then others without.  The outputs belong
 * here. */
GArray *backup_begin_cuts (BackupBegin *begin);

/* Are the checkpoints that it starts from still what they were?  Call it before
 * others are deleted or made. */
bool backup_begin_check (const BackupBegin *begin, GError **error);
/* Its checkpoint, itself and its jobs.  Needs the boundaries of the cut. */
bool backup_begin_store (BackupBegin *begin, GError **error);

/* After the cut: it is seen from now on.  On an error, which only a push has,
 * it has ended. */
bool backup_begin_finish (BackupBegin *begin, GError **error);

#endif
