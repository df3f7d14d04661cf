/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/added-exports.h"
#include "plugin/backup-plan.h"
#include "plugin/backup-push.h"
#include "plugin/backup-store.h"
#include "plugin/commands.h"
#include "plugin/exports.h"
#include "plugin/job.h"
#include "plugin/lease.h"
#include "plugin/plugin.h"

/* --- backup-begin --- */

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

typedef struct {
  BackupPlan *plan;
  BackupPush *push;             /* NULL: a pull */
} Begin;

/* In the cut's transaction. */
static bool
begin_commit (void *opaque, GError **error)
{
  const Begin *begin = opaque;
  BackupPlan *plan = begin->plan;

  if (!check_increments (plan->backup, error))
    return false;
  if (plan->checkpoint != NULL) {
    for (guint i = 0; i < plan->cuts->len; i++) {
      const FleeceCutDisk *cut = &g_array_index (plan->cuts, FleeceCutDisk, i);

      if (g_ptr_array_find (plan->checkpoint_disks, cut->disk, NULL))
        checkpoint_add_disk (plan->checkpoint, disk_name (cut->disk),
                             plan->checkpoint->name, cut->boundary);
    }
    if (!checkpoint_insert (plugin.catalog, plan->checkpoint, error))
      return false;
  }
  return backup_store_insert (plugin.catalog, plan->backup, error) &&
    (begin->push == NULL || backup_push_store (begin->push, error));
}

/* Of a push. */
static json_t *
describe_job (const BackupDisk *bd)
{
  json_t *entry = json_pack ("{s:s, s:s, s:s}", "disk", bd->disk_name,
                             "target", bd->target, "job", bd->job);

  if (bd->since != NULL)
    json_object_set_new (entry, "incremental", json_string (bd->since));
  return entry;
}

static json_t *
describe_disk (const BackupDisk *bd)
{
  json_t *contexts = json_pack ("[s]", "base:allocation");
  json_t *entry = json_pack ("{s:s, s:s, s:o}", "disk", bd->disk_name,
                             "export", bd->export, "contexts", contexts);

  if (bd->bitmap != NULL) {
    g_autofree char *name =
      g_strconcat ("qemu:dirty-bitmap:", bd->bitmap, NULL);

    json_array_append_new (contexts, json_string (name));
  }
  if (bd->since != NULL)
    json_object_set_new (entry, "incremental", json_string (bd->since));
  return entry;
}

static json_t *
describe_backup (const Backup *backup, json_t *disks)
{
  json_t *entry = json_pack ("{s:s}", "id", backup->id);

  if (backup->checkpoint != NULL)
    json_object_set_new (entry, "checkpoint",
                         json_string (backup->checkpoint));
  json_object_set_new (entry, "disks", disks);
  return entry;
}

static bool
check_other_exports (const Backup *backup, GError **error)
{
  for (size_t i = 0; i < backup->disks->len; i++) {
    const BackupDisk *bd = backup->disks->pdata[i];

    g_autoptr (Disk) disk = fleece_find_disk (plugin.fleece, bd->export);

    if (disk != NULL || added_export_has_name (bd->export)) {
      command_set_error (error, "NBD server already has export named "
                         "'%.200s'", bd->export);
      return false;
    }
  }
  return true;
}

json_t *
command_backup_begin (struct qmp_session *session, json_t *args,
                      GError **error)
{
  g_autoptr (BackupPlan) plan = backup_plan_new (args, error);
  g_autoptr (BackupPush) push = NULL;
  Begin begin = { plan, NULL };
  Backup *backup;
  json_t *disks;

  if (plan == NULL)
    return NULL;
  backup = plan->backup;
  if (!backup_table_reserve (plugin.backups, backup, error))
    return NULL;
  /* After it: block-export-add and blockdev-add look at what is reserved. */
  if (!check_other_exports (backup, error)) {
    backup_table_remove (plugin.backups, backup);
    return NULL;
  }
  for (size_t i = 0; i < backup->disks->len; i++) {
    BackupDisk *bd = backup->disks->pdata[i];

    bd->copied_before = backup_disk_copied (bd);
  }
  if (backup->push)
    begin.push = push = backup_push_new (backup, error);
  if ((backup->push && push == NULL) ||
      !fleece_cut (plugin.fleece, (FleeceCutDisk *) plan->cuts->data,
                   plan->cuts->len, begin_commit, &begin, error)) {
    backup_table_remove (plugin.backups, backup);
    return NULL;
  }
  disks = json_array ();
  for (size_t i = 0; i < backup->disks->len; i++) {
    FleeceCutDisk *cut = &g_array_index (plan->cuts, FleeceCutDisk, i);
    BackupDisk *bd = backup->disks->pdata[i];

    bd->snapshot = g_steal_pointer (&cut->out_snapshot);
    json_array_append_new (disks, backup->push ? describe_job (bd)
                           : describe_disk (bd));
  }
  lease_renew (backup);         /* before anybody looks when it ends */
  backup_table_publish (plugin.backups, backup);
  lease_renew (backup);         /* now that it is found */
  keeper_wake (plugin.keeper);
  if (backup->checkpoint != NULL)
    command_checkpoint_event (backup->checkpoint, "created");
  if (push != NULL && !backup_push_start (push, error)) {
    json_decref (disks);
    return NULL;
  }
  return describe_backup (backup, disks);
}

/* --- backup-end --- */

bool
backup_end_snapshots (const Backup *backup, GError **error)
{
  bool ok = true;

  for (size_t i = 0; i < backup->disks->len; i++) {
    const BackupDisk *bd = backup->disks->pdata[i];

    if (bd->snapshot == NULL ||
        snapshot_end (bd->snapshot, ok ? error : NULL))
      continue;
    if (ok)
      g_prefix_error (error, "backup '%s' has ended, but its snapshot of disk "
                      "'%s' stays until the next start: ", backup->id,
                      bd->disk_name);
    ok = false;
  }
  return ok;
}

bool
command_end_backup (Backup *backup, bool failed, GError **error)
{
  bool checkpoint_gone, ok;

  if (!backup_table_hide (plugin.backups, backup))
    return false;
  added_export_delete_backup (backup);
  export_disconnect (backup);
  if (!backup_store_end (plugin.catalog, backup, failed, &checkpoint_gone,
                         error)) {
    backup_table_publish (plugin.backups, backup);
    return false;
  }
  ok = backup_end_snapshots (backup, error);
  backup_table_remove (plugin.backups, backup);
  command_forget_epochs ();

  for (size_t i = 0; i < backup->disks->len; i++) {
    const BackupDisk *bd = backup->disks->pdata[i];

    control_event (plugin.control, "BLOCK_EXPORT_DELETED",
                   json_pack ("{s:s}", "id", bd->export));
  }
  if (checkpoint_gone)
    command_checkpoint_event (backup->checkpoint, "deleted");
  return ok;
}

static json_t *
set_no_backup (const char *id, GError **error)
{
  command_set_error (error, "no backup with id '%.200s'", id);
  return NULL;
}

json_t *
command_backup_end (struct qmp_session *session, json_t *args, GError **error)
{
  const char *id = qmp_get_str (args, "id");
  bool failed = qmp_get_bool (args, "failed", false);
  g_autoptr (Backup) backup = backup_table_find (plugin.backups, id);
  g_autoptr (GError) local = NULL;

  if (backup == NULL)
    return set_no_backup (id, error);
  if (backup->push) {
    backup_push_cancel (backup);
    return json_object ();
  }
  if (command_end_backup (backup, failed, &local))
    return json_object ();
  if (local == NULL)            /* somebody else was faster */
    return set_no_backup (id, error);
  g_propagate_error (error, g_steal_pointer (&local));
  return NULL;
}

/* --- backup-renew --- */

json_t *
command_backup_renew (struct qmp_session *session, json_t *args,
                      GError **error)
{
  const char *id = qmp_get_str (args, "id");
  g_autoptr (Backup) backup = backup_table_find (plugin.backups, id);
  unsigned old;

  if (backup == NULL)
    return set_no_backup (id, error);
  old = atomic_load (&backup->lease);
  if (json_object_get (args, "lease") != NULL && backup->push) {
    command_set_error (error, "'lease' is for mode 'pull': a push ends by "
                       "itself");
    return NULL;
  }
  atomic_store (&backup->lease, (unsigned) qmp_get_int (args, "lease", old));
  if (atomic_load (&backup->lease) != old &&
      !backup_store_arguments (plugin.catalog, backup, error)) {
    atomic_store (&backup->lease, old);
    return NULL;
  }
  lease_renew (backup);
  return json_object ();
}

/* --- query-backups --- */

static char *
reason_of (const BackupDisk *bd)
{
  if (bd->disk == NULL)
    return g_strdup ("its disk is not served now");
  if (bd->snapshot == NULL)
    return g_strdup ("its snapshot is gone");
  return snapshot_reason (bd->snapshot);
}

#define BLOCK 4096              /* what old data are preserved in, bytes */

static void
add_progress (const BackupDisk *bd, json_t *entry)
{
  uint64_t left = bd->snapshot != NULL ? snapshot_scratch_left (bd->snapshot)
    : UINT64_MAX;

  if (left <= INT64_MAX)
    json_object_set_new (entry, "scratch-left",
                         json_integer ((json_int_t) left));
  if (bd->disk != NULL)
    json_object_set_new (entry, "preserved",
                         json_integer ((json_int_t)
                                       ((backup_disk_copied (bd) -
                                         bd->copied_before) * BLOCK)));
  if (bd->job == NULL) {
    json_object_set_new (entry, "read",
                         json_integer ((json_int_t) atomic_load (
                                         &bd->served->bytes_read)));
    json_object_set_new (entry, "extents",
                         json_integer ((json_int_t) atomic_load (
                                         &bd->served->extents)));
  }
}

static json_t *
query_disk (const BackupDisk *bd)
{
  json_t *entry = bd->job != NULL ? describe_job (bd) : describe_disk (bd);
  g_autofree char *reason = reason_of (bd);
  uint64_t used = 0, limit = 0;

  if (bd->snapshot != NULL) {
    snapshot_scratch (bd->snapshot, &used, &limit);
    json_object_set_new (entry, "durable",
                         json_boolean (snapshot_is_durable (bd->snapshot)));
  }
  json_object_set_new (entry, "state",
                       json_string (snapshot_state_name
                                    (backup_disk_state (bd))));
  if (reason != NULL)
    json_object_set_new (entry, "reason", qmp_text (reason));
  json_object_set_new (entry, "scratch-used", json_integer (used));
  json_object_set_new (entry, "scratch-limit", json_integer (limit));
  add_progress (bd, entry);
  if (bd->job != NULL)
    job_add_progress (bd->job, entry);
  else
    json_object_set_new (entry, "clients",
                         json_integer (export_nr_handles (bd)));
  return entry;
}

static json_t *
query_backup (Backup *backup)
{
  json_t *disks = json_array ();
  json_t *entry = describe_backup (backup, disks);
  SnapshotState worst = SNAPSHOT_LIVE;

  for (size_t i = 0; i < backup->disks->len; i++) {
    const BackupDisk *bd = backup->disks->pdata[i];

    worst = MAX (worst, backup_disk_state (bd));
    json_array_append_new (disks, query_disk (bd));
  }
  json_object_set_new (entry, "mode", json_string (backup->push ? "push"
                                                   : "pull"));
  if (atomic_load (&backup->lease) > 0)
    json_object_update_new (entry, json_pack (
      "{s:I, s:I}", "lease", (json_int_t) atomic_load (&backup->lease),
      "lease-left", (json_int_t) lease_left (backup)));
  json_object_set_new (entry, "creation-time",
                       json_integer (backup->created));
  json_object_set_new (entry, "state",
                       json_string (snapshot_state_name (worst)));
  return entry;
}

json_t *
command_query_backups (struct qmp_session *session, json_t *args,
                       GError **error)
{
  g_autoptr (GPtrArray) backups = backup_table_list (plugin.backups);
  json_t *list = json_array ();

  for (size_t i = 0; i < backups->len; i++)
    json_array_append_new (list, query_backup (backups->pdata[i]));
  return list;
}
