/* SPDX-License-Identifier: BSD-3-Clause */
/* job-backup-stored.c - a backup job in the catalog, and made again from
 * there. */
#include <config.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/commands.h"
#include "plugin/job-backup-internal.h"
#include "plugin/job-copy.h"
#include "plugin/job-store.h"
#include "plugin/plugin.h"

bool
backup_job_store (Job *job, const char *snapshot, const char *group,
                  GError **error)
{
  BackupJob *b = job_opaque (job);
  g_autoptr (JobRow) row = job_row_new ();

  b->group = g_strdup (group);
  row->id = g_strdup (job_id (job));
  row->disk = epoch_log_disk_id (disk_epoch_log (b->disk));
  row->snapshot = g_strdup (snapshot != NULL ? snapshot
                            : snapshot_name (b->snap));
  row->backup = b->copy.commit != NULL ? g_strdup (b->backup->id) : NULL;
  row->group = g_strdup (group);
  row->arguments = json_deep_copy (b->args);
  row->target = json_deep_copy (b->target_options);
  row->speed = job_speed (job);
  if (!job_store_insert (plugin.catalog, row, error))
    return false;
  job_set_resumable (job);
  return true;
}

/* Takes why. */
static void
lose (BackupJob *b, char *why)
{
  if (b->lost == NULL)
    b->lost = why;
  else
    g_free (why);
}

static bool
restore_bitmap (BackupJob *b, GError **error)
{
  g_autoptr (NamedBitmap) bm = NULL;

  if (b->bitmap == NULL || b->backup != NULL)
    return true;
  bm = named_bitmap_find (plugin.catalog,
                          epoch_log_disk_id (disk_epoch_log (b->disk)), 0,
                          b->bitmap, error);
  if (bm == NULL)
    return error == NULL || *error == NULL;     /* an older server deleted it */
  b->bitmap_row = bm->id;
  bitmap_pin (b->bitmap_row);
  return true;
}

static bool
restore_progress (BackupJob *b, const JobRow *row, GError **error)
{
  uint64_t size = snapshot_size (b->snap);
  ChangeSet *map = NULL;

  if (row->map != NULL) {
    map = change_set_deserialize (row->map, error);
    if (map == NULL)
      return false;
  }
  if ((map != NULL && change_set_size (map) != size) || row->copied > size) {
    change_set_unref (map);
    command_set_error (error, "its record is of a disk of another size");
    return false;
  }
  if (b->overwritten)
    b->flushed_set = map;
  else
    b->todo = map;
  if (b->all)
    b->todo = change_set_new_full (size, disk_granularity (b->disk), error);
  b->set_is_stored = map != NULL;
  b->next = b->flushed = row->copied;
  return !b->all || b->todo != NULL;
}

/* All but the Job.  False: why it cannot go on. */
static bool
restore (BackupJob *b, const JobRow *row, JobSnapshot *shared, GError **error)
{
  if (row->arguments == NULL || row->target == NULL ||
      !qmp_check (commands_table, "blockdev-backup", row->arguments, error) ||
      !node_check_options (row->target, error)) {
    g_clear_error (error);
    command_set_error (error, "its record is damaged");
    return false;
  }
  b->disk = fleece_find_disk (plugin.fleece, row->disk_name);
  if (b->disk == NULL) {
    command_set_error (error, "disk '%s' is not served now", row->disk_name);
    return false;
  }
  if (!backup_check_sync (b, row->arguments, error) ||
      !backup_check_perf (b, row->arguments, error))
    return false;
  if (b->copy.commit != NULL)
    b->all = b->copy.since == 0;
  if (shared != NULL) {
    b->shared = job_snapshot_ref (shared);
    b->snap = job_snapshot_get (shared);
  }
  else if (b->copy.commit != NULL)
    b->snap = b->copy.snap;
  else {
    Disk *disk = g_steal_pointer (&b->disk);

    if (backup_find_device (b, qmp_get_str (row->arguments, "device"), NULL))
      disk_unref (disk);
    else
      b->disk = disk;           /* that backup has ended */
  }
  if (!restore_bitmap (b, error))
    return false;
  if (b->snap == NULL) {
    command_set_error (error, "its snapshot of disk '%s' is gone",
                       row->disk_name);
    return false;
  }
  if (snapshot_state (b->snap) != SNAPSHOT_LIVE) {
    g_autofree char *reason = snapshot_reason (b->snap);

    command_set_error (error, "its snapshot of disk '%s' is %s: %s",
                       row->disk_name,
                       snapshot_state_name (snapshot_state (b->snap)),
                       reason != NULL ? reason : "unknown");
    return false;
  }
  backup_show_frozen (b);
  return restore_progress (b, row, error);
}

/* A disk may have that name by now, which the job can do without. */
static void
restore_filter (BackupJob *b)
{
  g_autoptr (GError) error = NULL;

  if (b->disk != NULL && b->lost == NULL && !backup_add_filter (b, &error))
    nbdkit_error ("warning: job of disk '%s': it has no filter node any more: "
                  "%s", b->device, error->message);
}

static void
show_progress (BackupJob *b, Job *job)
{
  const ChangeSet *all = b->overwritten ? b->flushed_set : b->todo;

  if (all == NULL)
    return;
  job_set_total (job, command_dirty_bytes (all));
  job_set_done (job, b->overwritten ? command_dirty_bytes (all)
                : backup_bytes_before (all, b->flushed));
}

Job *
backup_job_restore (const JobRow *row, JobGroup *group, const BackupCopy *copy,
                    JobSnapshot *shared, const char *lost, GError **error)
{
  g_autoptr (json_t) none = json_object ();
  json_t *args = row->arguments != NULL ? row->arguments : none;
  BackupJob *b = backup_job_alloc (args);
  g_autoptr (GError) why = NULL;
  JobOptions options = {
    .id = row->id,
    .device = row->disk_name,
    .speed = row->speed,
    .auto_finalize = qmp_get_bool (args, "auto-finalize", true),
    .auto_dismiss = qmp_get_bool (args, "auto-dismiss", true),
    .group = group,
  };

  b->device = g_strdup (row->disk_name);
  b->group = g_strdup (row->group);
  b->target_options = row->target != NULL ? json_deep_copy (row->target) : NULL;
  if (copy != NULL) {
    b->copy = *copy;
    b->backup = backup_ref (copy->backup);
  }
  if (!restore (b, row, shared, &why))
    lose (b, g_strdup (why->message));
  if (lost != NULL)
    lose (b, g_strdup (lost));
  restore_filter (b);
  if (b->lost != NULL) {
    nbdkit_error ("warning: job '%s' was interrupted, and cannot go on: %s",
                  row->id, b->lost);
    options.auto_dismiss = false;       /* nobody can have heard of it yet */
  }
  else if (!plugin.resumed) {
    options.paused = "the end of the server has interrupted it";
    nbdkit_error ("warning: job '%s' was interrupted: it is paused, and "
                  "job-resume lets it go on", row->id);
  }
  else if (row->paused)
    options.paused = "it was paused before the server replaced itself";
  b->job = job_new (&backup_driver, b, &options, error);
  if (b->job == NULL) {
    backup_let_go (b);
    g_clear_pointer (&b->shared, job_snapshot_unref);
    g_clear_pointer (&b->backup, backup_unref);
    backup_free (b);
    return NULL;
  }
  show_progress (b, b->job);
  job_set_resumable (b->job);
  return b->job;
}
