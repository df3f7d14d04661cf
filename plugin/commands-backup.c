/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/added-exports.h"
#include "plugin/backup-begin.h"
#include "plugin/backup-push.h"
#include "plugin/backup-store.h"
#include "plugin/commands.h"
#include "plugin/exports.h"
#include "plugin/job.h"
#include "plugin/lease.h"
#include "plugin/plugin.h"

/* --- backup-begin --- */

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
begin_commit (void *opaque, GError **error)
{
  BackupBegin *begin = opaque;

  return backup_begin_check (begin, error) &&
    backup_begin_store (begin, error);
}

json_t *
command_backup_begin (struct qmp_session *session, json_t *args,
                      GError **error)
{
  g_autoptr (BackupBegin) begin = backup_begin_new (args, error);
  const Backup *backup;
  GArray *cuts;
  json_t *disks;

  if (begin == NULL)
    return NULL;
  cuts = backup_begin_cuts (begin);
  if (!fleece_cut (plugin.fleece, (FleeceCutDisk *) cuts->data, cuts->len,
                   begin_commit, begin, error) ||
      !backup_begin_finish (begin, error))
    return NULL;
  backup = backup_begin_backup (begin);
  disks = json_array ();
  for (size_t i = 0; i < backup->disks->len; i++) {
    const BackupDisk *bd = backup->disks->pdata[i];

    json_array_append_new (disks, backup->push ? describe_job (bd)
                           : describe_disk (bd));
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
