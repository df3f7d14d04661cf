/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <string.h>

#include "plugin/backup-push.h"
#include "plugin/commands.h"
#include "plugin/job-backup.h"
#include "plugin/job-restore.h"
#include "plugin/plugin.h"

typedef struct {
  const GPtrArray *rows;        /* of JobRow */
  GHashTable *groups;           /* name -> JobGroup, a reference each */
  GHashTable *snapshots;        /* Snapshot -> JobSnapshot, a reference each */
  GHashTable *pushes;           /* id of the backup -> BackupPush, the same */
  GPtrArray *jobs;              /* of Job, borrowed */
} Restore;

static JobGroup *
find_group (Restore *r, const char *name)
{
  JobGroup *group = g_hash_table_lookup (r->groups, name);

  if (group == NULL) {
    group = job_group_new ();
    g_hash_table_insert (r->groups, (gpointer) name, group);
  }
  return group;
}

/* Of a job that has one of its own; NULL: it has not, or it is gone. */
static JobSnapshot *
find_snapshot (Restore *r, const JobRow *row)
{
  g_autoptr (Disk) disk = fleece_find_disk (plugin.fleece, row->disk_name);
  g_autoptr (Snapshot) snap = NULL;
  JobSnapshot *shared;

  if (disk == NULL ||
      g_strcmp0 (qmp_get_str (row->arguments, "device"), row->disk_name) != 0)
    return NULL;
  snap = disk_find_snapshot (disk, row->snapshot);
  if (snap == NULL)
    return NULL;
  shared = g_hash_table_lookup (r->snapshots, snap);
  if (shared == NULL) {
    shared = job_snapshot_new (g_steal_pointer (&snap));
    g_hash_table_insert (r->snapshots, job_snapshot_get (shared), shared);
  }
  return shared;
}

static BackupPush *
find_push (Restore *r, const JobRow *row)
{
  BackupPush *push = g_hash_table_lookup (r->pushes, row->backup);
  g_autoptr (Backup) backup = NULL;

  if (push != NULL)
    return push;
  backup = backup_table_find (plugin.backups, row->backup);
  if (backup == NULL || !backup->push)
    return NULL;
  push = backup_push_restore (backup);
  g_hash_table_insert (r->pushes, row->backup, push);
  return push;
}

static bool
restore_row (Restore *r, const JobRow *row, GError **error)
{
  JobGroup *group = find_group (r, row->group);
  BackupPush *push = NULL;
  Job *job;

  if (row->backup == NULL)
    job = backup_job_restore (row, group, NULL, find_snapshot (r, row), NULL,
                              error);
  else {
    push = find_push (r, row);
    if (push == NULL) {         /* backup and jobs go in one transaction */
      command_set_error (error, "the record of job '%s' is damaged: there is "
                         "no backup '%s'", row->id, row->backup);
      return false;
    }
    job = backup_push_restore_job (push, row, group, error);
  }
  if (job == NULL)
    return false;
  g_ptr_array_add (r->jobs, job);
  return true;
}

static bool
restore_jobs (const GPtrArray *rows, GError **error)
{
  Restore r = {
    rows,
    g_hash_table_new_full (g_str_hash, g_str_equal, NULL,
                           (GDestroyNotify) job_group_unref),
    g_hash_table_new_full (NULL, NULL, NULL,
                           (GDestroyNotify) job_snapshot_leave),
    g_hash_table_new_full (g_str_hash, g_str_equal, NULL,
                           (GDestroyNotify) backup_push_free),
    g_ptr_array_new (),
  };
  bool ok = true;

  for (guint i = 0; i < rows->len && ok; i++)
    ok = restore_row (&r, rows->pdata[i], error);
  for (guint i = 0; i < r.jobs->len; i++) {
    Job *job = r.jobs->pdata[i];

    if (!ok || !job_start (job, error)) {
      job_leave (job);
      ok = false;
    }
  }
  g_hash_table_unref (r.groups);
  g_hash_table_unref (r.snapshots);
  g_hash_table_unref (r.pushes);
  g_ptr_array_unref (r.jobs);
  return ok;
}

/* The row of the live bitmap that it uses, *out_id; 0: none. */
static bool
find_bitmap (const JobRow *row, int64_t *out_id, GError **error)
{
  const char *name = qmp_get_str (row->arguments, "bitmap");
  const char *device = qmp_get_str (row->arguments, "device");
  g_autoptr (GError) local = NULL;
  g_autoptr (NamedBitmap) bm = NULL;

  *out_id = 0;
  /* That of a snapshot goes with it. */
  if (name == NULL || g_strcmp0 (device, row->disk_name) != 0)
    return true;
  bm = named_bitmap_find (plugin.catalog, row->disk, 0, name, &local);
  if (bm != NULL)
    *out_id = bm->id;
  if (local == NULL)
    return true;
  g_propagate_error (error, g_steal_pointer (&local));
  return false;
}

bool
job_restore_bitmaps (GError **error)
{
  g_autoptr (GPtrArray) rows = job_store_list (plugin.catalog, error);
  g_autoptr (GArray) used = g_array_new (FALSE, FALSE, sizeof (int64_t));

  if (rows == NULL)
    return false;
  for (guint i = 0; i < rows->len; i++) {
    int64_t id;

    if (!find_bitmap (rows->pdata[i], &id, error))
      return false;
    if (id != 0)
      g_array_append_val (used, id);
  }
  return named_bitmap_delete_transient (plugin.catalog, 0, used, error);
}

static bool
is_wanted (void *opaque, Disk *disk, const char *snapshot)
{
  const GPtrArray *rows = opaque;

  for (guint i = 0; i < rows->len; i++) {
    const JobRow *row = rows->pdata[i];

    if (strcmp (row->snapshot, snapshot) == 0 &&
        row->disk == epoch_log_disk_id (disk_epoch_log (disk)))
      return true;
  }
  return false;
}

bool
job_restore_all (GError **error)
{
  g_autoptr (GPtrArray) rows = job_store_list (plugin.catalog, error);

  return rows != NULL && backup_push_recover (rows, error) &&
    backup_table_load (plugin.backups, plugin.catalog, plugin.fleece,
                       is_wanted, rows, error) &&
    restore_jobs (rows, error);
}
