/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/commands.h"
#include "plugin/job-backup-internal.h"
#include "plugin/job-copy.h"
#include "plugin/job-store.h"
#include "plugin/plugin.h"

/* What is to be copied. */
static ChangeSet *
find_todo (BackupJob *b, GError **error)
{
  uint64_t size = snapshot_size (b->snap);
  uint32_t granularity = disk_granularity (b->disk);
  g_autoptr (NamedBitmap) bm = NULL;
  g_autoptr (ChangeSet) set = NULL;
  bool damaged = false;

  if (b->all)
    return change_set_new_full (size, granularity, error);
  if (b->copy.since != 0) {
    set = epoch_log_changed (disk_epoch_log (b->disk), b->copy.since,
                             snapshot_boundary (b->snap), &damaged, error);
    if (set == NULL || !damaged)
      return g_steal_pointer (&set);
    command_set_error (error, "the record of changes of disk '%s' is damaged",
                       disk_name (b->disk));
    return NULL;
  }
  bm = named_bitmap_find (plugin.catalog,
                          epoch_log_disk_id (disk_epoch_log (b->disk)),
                          b->backup != NULL ? snapshot_id (b->snap) : 0,
                          b->bitmap, error);
  if (bm == NULL) {
    if (error != NULL && *error == NULL)
      command_set_error (error, "Bitmap '%s' could not be found", b->bitmap);
    return NULL;
  }
  named_bitmap_end_at (bm, snapshot_boundary (b->snap));
  set = command_bitmap_changes (b->disk, bm, size, &damaged, error);
  if (set != NULL && damaged) {
    command_set_error (error, "Bitmap '%s' is inconsistent and cannot be used",
                       b->bitmap);
    return NULL;
  }
  return g_steal_pointer (&set);
}

/* Before anything is copied: what counts as copied is told by it alone,
 * whatever becomes of the bitmap or the record of changes. */
static bool
store_todo (BackupJob *b, GError **error)
{
  if (b->all || b->group == NULL || b->set_is_stored)
    return true;
  b->set_is_stored = true;
  return job_store_set_map (plugin.catalog, job_id (b->job), b->todo, error);
}

int64_t
backup_patience (void *opaque)
{
  const BackupJob *b = opaque;

  if (job_is_cancelled (b->job))
    return b->overwritten ? BACKUP_DRAIN_TIME : BACKUP_PATIENCE;
  return job_is_suspended (b->job) || job_wants_pause (b->job) ?
    BACKUP_PATIENCE : INT64_MAX;
}

static bool
backup_run (Job *job, void *opaque, GError **error)
{
  BackupJob *b = opaque;

  if (b->lost != NULL) {
    command_set_error (error, "%s", b->lost);
    return false;
  }
  if (b->target == NULL && !backup_reopen_target (b))
    return false;
  node_set_patience (b->target, backup_patience, b);
  if (b->overwritten)
    return backup_copy_overwritten (b, error);
  if (b->todo == NULL)
    b->todo = find_todo (b, error);
  if (b->todo == NULL || !store_todo (b, error))
    return false;
  job_set_total (job, command_dirty_bytes (b->todo));
  return backup_copy (b, error);
}

static void
backup_pausing (Job *job, void *opaque)
{
  backup_copy_pausing (opaque);
}

/* --- the bitmap's fate --- */

/* What the guest has written since the start; with keep, and what has not been
 * copied. */
static bool
advance_bitmap (BackupJob *b, bool keep, GError **error)
{
  g_autoptr (NamedBitmap) bm = NULL;
  int64_t blob;

  bm = named_bitmap_find (plugin.catalog,
                          epoch_log_disk_id (disk_epoch_log (b->disk)), 0,
                          b->bitmap, error);
  if (bm == NULL)
    return error == NULL || *error == NULL;     /* nothing to do: it is gone */
  named_bitmap_begin_at (bm, snapshot_boundary (b->snap), disk_size (b->disk));
  if (keep && b->todo != NULL) {
    g_autoptr (ChangeSet) left =
      change_set_from (b->todo, b->flushed, error);

    if (left == NULL ||
        !named_bitmap_store_blob (plugin.catalog, left, &blob, error))
      return false;
    named_bitmap_add_blob (bm, blob);
  }
  return named_bitmap_put (plugin.catalog, bm, error);
}

static bool
backup_commit (Job *job, void *opaque, GError **error)
{
  BackupJob *b = opaque;

  if (b->group != NULL &&
      !job_store_delete (plugin.catalog, job_id (job), error))
    return false;
  if (b->copy.commit != NULL)
    return b->copy.commit (b->copy.opaque, error);
  return (b->mode != MODE_ON_SUCCESS && b->mode != MODE_ALWAYS) ||
    advance_bitmap (b, false, error);
}

/* It has failed, and so has its group.  bitmap-mode always: a retry onto the
 * same target copies just the rest. */
static bool
store_failure (BackupJob *b, GError **error)
{
  bool keep = b->mode == MODE_ALWAYS && b->todo != NULL && b->snap != NULL;

  if (!catalog_begin (plugin.catalog, error))
    return false;
  if ((b->group != NULL &&
       !job_store_delete_group (plugin.catalog, b->group, error)) ||
      (keep && !advance_bitmap (b, true, error))) {
    catalog_rollback (plugin.catalog);
    return false;
  }
  return catalog_commit (plugin.catalog, error);
}

void
backup_let_go (BackupJob *b)
{
  if (b->bitmap_row != 0)
    bitmap_unpin (b->bitmap_row);
  b->bitmap_row = 0;
  if (b->filter != NULL)
    node_remove_filter (b->filter);
  g_clear_pointer (&b->filter, g_free);
  if (b->target != NULL) {
    node_set_patience (b->target, NULL, NULL);
    node_release (b->target);
  }
}

static void
backup_end (Job *job, void *opaque, bool ok)
{
  BackupJob *b = opaque;
  g_autoptr (GError) error = NULL;

  if (!ok && (b->mode == MODE_ALWAYS || b->group != NULL) &&
      !store_failure (b, &error))
    nbdkit_error ("warning: job '%s' has failed, and that cannot be stored: "
                  "%s", job_id (job), error->message);
  backup_let_go (b);
  b->snap = NULL;
  if (b->copy.end != NULL)
    b->copy.end (b->copy.opaque, ok);
  g_clear_pointer (&b->shared, job_snapshot_unref);
  g_clear_pointer (&b->backup, backup_unref);
  g_clear_pointer (&b->disk, disk_unref);
  command_forget_epochs ();
  keeper_wake (plugin.keeper);
}

/* The server stops.  The snapshot stays, and the next start finds it. */
static void
backup_suspend (Job *job, void *opaque, bool paused)
{
  BackupJob *b = opaque;
  g_autoptr (GError) error = NULL;

  /* The work may not have begun, or be through. */
  if (!job_store_set_progress (plugin.catalog, job_id (job), b->flushed,
                               job_speed (job), paused, &error))
    nbdkit_error ("warning: job '%s': how far it is cannot be stored: %s",
                  job_id (job), error->message);
  backup_let_go (b);
  b->snap = NULL;
  if (b->copy.suspend != NULL)
    b->copy.suspend (b->copy.opaque);
  g_clear_pointer (&b->shared, job_snapshot_leave);
  g_clear_pointer (&b->backup, backup_unref);
  g_clear_pointer (&b->disk, disk_unref);
}

void
backup_free (void *opaque)
{
  BackupJob *b = opaque;

  node_unref (b->target);
  disk_unref (b->disk);
  json_decref (b->args);
  json_decref (b->target_options);
  change_set_unref (b->todo);
  change_set_unref (b->flushed_set);
  dirty_bitmap_free (b->copied);
  g_free (b->device);
  g_free (b->bitmap);
  g_free (b->lost);
  g_free (b->group);
  pthread_mutex_destroy (&b->lock);
  g_free (b);
}

const JobDriver backup_driver = {
  .type = "backup",
  .run = backup_run,
  .pausing = backup_pausing,
  .commit = backup_commit,
  .end = backup_end,
  .suspend = backup_suspend,
  .free = backup_free,
};
