/* SPDX-License-Identifier: BSD-3-Clause */
/* backup-plan.h - backup-begin, from its arguments to what one cut shall do.
 *
 * Everything that can be refused is refused while the plan is made; nothing
 * has happened by then.  No locking: one command's own.
 */
#ifndef BACKUP_PLAN_H
#define BACKUP_PLAN_H

#include "bitmap/checkpoint.h"
#include "fleece/fleece.h"
#include "plugin/backup.h"
#include "plugin/qmp.h"

typedef struct {
  Backup *backup;               /* snapshots still missing */
  Checkpoint *checkpoint;       /* NULL: none; disks still missing */
  GPtrArray *checkpoint_disks;  /* of Disk, a reference each */
  GArray *cuts;                 /* of FleeceCutDisk: first the disks of the
                                 * backup, in its order, then others */
  GPtrArray *strings;           /* owned, borrowed by cuts */
} BackupPlan;

BackupPlan *backup_plan_new (json_t *args, GError **error);
void backup_plan_free (BackupPlan *plan);       /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (BackupPlan, backup_plan_free)

#endif
