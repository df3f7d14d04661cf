/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <string.h>

#include "plugin/added-exports.h"
#include "plugin/backup-begin.h"
#include "plugin/backup-push.h"
#include "plugin/backup-store.h"
#include "plugin/commands.h"
#include "plugin/lease.h"
#include "plugin/plugin.h"
#include "plugin/restore.h"

struct BackupBegin {
  BackupPlan *plan;
  BackupPush *push;             /* NULL: a pull */
  bool reserved;                /* in the table, and not to stay there yet */
};

static bool
check_other_exports (const Backup *backup, GError **error)
{
  if (restore_has_id (backup->id)) {
    command_set_error (error, "Restore id '%s' is already in use", backup->id);
    return false;
  }
  for (size_t i = 0; i < backup->disks->len; i++) {
    const BackupDisk *bd = backup->disks->pdata[i];

    g_autoptr (Disk) disk = fleece_find_disk (plugin.fleece, bd->export);

    if (disk != NULL || added_export_has_name (bd->export) ||
        restore_has_export (bd->export)) {
      command_set_error (error, "NBD server already has export named "
                         "'%.200s'", bd->export);
      return false;
    }
  }
  return true;
}

BackupBegin *
backup_begin_new (json_t *args, GError **error)
{
  g_autoptr (BackupBegin) begin = g_new0 (BackupBegin, 1);
  Backup *backup;

  begin->plan = backup_plan_new (args, error);
  if (begin->plan == NULL)
    return NULL;
  backup = begin->plan->backup;
  begin->reserved = backup_table_reserve (plugin.backups, backup, error);
  /* After it: block-export-add and blockdev-add look at what is reserved. */
  if (!begin->reserved || !check_other_exports (backup, error))
    return NULL;
  for (size_t i = 0; i < backup->disks->len; i++) {
    BackupDisk *bd = backup->disks->pdata[i];

    bd->copied_before = backup_disk_copied (bd);
  }
  if (backup->push) {
    begin->push = backup_push_new (backup, error);
    if (begin->push == NULL)
      return NULL;
  }
  return g_steal_pointer (&begin);
}

void
backup_begin_free (BackupBegin *begin)
{
  if (begin == NULL)
    return;
  backup_push_free (begin->push);
  if (begin->reserved)
    backup_table_remove (plugin.backups, begin->plan->backup);
  backup_plan_free (begin->plan);
  g_free (begin);
}

const Backup *
backup_begin_backup (const BackupBegin *begin)
{
  return begin->plan->backup;
}

const Checkpoint *
backup_begin_checkpoint (const BackupBegin *begin)
{
  return begin->plan->checkpoint;
}

GArray *
backup_begin_cuts (BackupBegin *begin)
{
  return begin->plan->cuts;
}

/* A client that asks for the map of a checkpoint by name must never get another
 * one, which may say less. */
static bool
check_map_name (const BackupDisk *bd, GError **error)
{
  uint64_t boundary;

  if (strcmp (bd->bitmap, bd->since) == 0 ||
      !checkpoint_boundary (plugin.catalog, bd->disk_name, bd->bitmap,
                            &boundary, NULL))
    return true;
  command_set_error (error, "disk '%s': exportbitmap '%s' is the name of "
                     "another checkpoint", bd->disk_name, bd->bitmap);
  return false;
}

/* Were the checkpoints that the increments start from deleted, or made anew,
 * since the plan was made? */
static bool
check_increments (const Backup *backup, GError **error)
{
  for (size_t i = 0; i < backup->disks->len; i++) {
    const BackupDisk *bd = backup->disks->pdata[i];
    uint64_t boundary;

    if (bd->since == NULL)
      continue;
    if (!checkpoint_boundary (plugin.catalog, bd->disk_name, bd->since,
                              &boundary, NULL) ||
        boundary != bd->since_boundary) {
      command_set_error (error, "Checkpoint '%s' for incremental backup of "
                         "disk '%s' not found", bd->since, bd->disk_name);
      return false;
    }
    if (!check_map_name (bd, error))
      return false;
  }
  return true;
}

bool
backup_begin_check (const BackupBegin *begin, GError **error)
{
  return check_increments (begin->plan->backup, error);
}

static bool
store_checkpoint (BackupPlan *plan, GError **error)
{
  for (guint i = 0; i < plan->cuts->len; i++) {
    const FleeceCutDisk *cut = &g_array_index (plan->cuts, FleeceCutDisk, i);

    if (g_ptr_array_find (plan->checkpoint_disks, cut->disk, NULL))
      checkpoint_add_disk (plan->checkpoint, disk_name (cut->disk),
                           plan->checkpoint->name, cut->boundary);
  }
  return checkpoint_insert (plugin.catalog, plan->checkpoint, error);
}

bool
backup_begin_store (BackupBegin *begin, GError **error)
{
  BackupPlan *plan = begin->plan;

  return (plan->checkpoint == NULL || store_checkpoint (plan, error)) &&
    backup_store_insert (plugin.catalog, plan->backup, error) &&
    (begin->push == NULL || backup_push_store (begin->push, error));
}

bool
backup_begin_finish (BackupBegin *begin, GError **error)
{
  Backup *backup = begin->plan->backup;

  for (size_t i = 0; i < backup->disks->len; i++) {
    FleeceCutDisk *cut = &g_array_index (begin->plan->cuts, FleeceCutDisk, i);
    BackupDisk *bd = backup->disks->pdata[i];

    bd->snapshot = g_steal_pointer (&cut->out_snapshot);
  }
  begin->reserved = false;
  lease_renew (backup);         /* before anybody looks when it ends */
  backup_table_publish (plugin.backups, backup);
  lease_renew (backup);         /* now that it is found */
  keeper_wake (plugin.keeper);
  if (backup->checkpoint != NULL)
    command_checkpoint_event (backup->checkpoint, "created");
  return begin->push == NULL || backup_push_start (begin->push, error);
}
