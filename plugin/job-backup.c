/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/commands.h"
#include "plugin/job-copy.h"
#include "plugin/job-store.h"
#include "plugin/plugin.h"
#include "plugin/thread.h"

static const char *const mode_names[] = {
  NULL, "never", "on-success", "always",
};

struct JobSnapshot {
  atomic_uint refs;
  Snapshot *snap;
};

/* --- the snapshot --- */

JobSnapshot *
job_snapshot_new (Snapshot *snap)
{
  JobSnapshot *shared = g_new0 (JobSnapshot, 1);

  atomic_init (&shared->refs, 1);
  shared->snap = snap;
  return shared;
}

Snapshot *
job_snapshot_get (JobSnapshot *shared)
{
  return shared->snap;
}

void
job_snapshot_leave (JobSnapshot *shared)
{
  if (shared == NULL || atomic_fetch_sub (&shared->refs, 1) > 1)
    return;
  snapshot_unref (shared->snap);
  g_free (shared);
}

void
job_snapshot_unref (JobSnapshot *shared)
{
  g_autoptr (GError) error = NULL;

  if (shared == NULL || atomic_fetch_sub (&shared->refs, 1) > 1)
    return;
  if (!snapshot_end (shared->snap, &error))
    nbdkit_error ("warning: disk '%s': a backup's snapshot stays until the "
                  "next start: %s", disk_name (snapshot_disk (shared->snap)),
                  error->message);
  snapshot_unref (shared->snap);
  g_free (shared);
}

/* --- the work --- */

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

/* Before anything is copied: a bitmap that does not outlive the server would be
 * missed after a restart. */
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

/* It has failed, and so has its group.  bitmap-mode always: a retry onto the same
 * target copies just the rest. */
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

/* What it holds, but its snapshot. */
static void
let_go (BackupJob *b)
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
  let_go (b);
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
  let_go (b);
  b->snap = NULL;
  if (b->copy.suspend != NULL)
    b->copy.suspend (b->copy.opaque);
  g_clear_pointer (&b->shared, job_snapshot_leave);
  g_clear_pointer (&b->backup, backup_unref);
  g_clear_pointer (&b->disk, disk_unref);
}

static void
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

static const JobDriver backup_driver = {
  .type = "backup",
  .run = backup_run,
  .pausing = backup_pausing,
  .commit = backup_commit,
  .end = backup_end,
  .suspend = backup_suspend,
  .free = backup_free,
};

/* --- making one --- */

/* QEMU's checks of how sync, bitmap and bitmap-mode go together. */
static bool
check_sync (BackupJob *b, json_t *args, GError **error)
{
  const char *sync = qmp_get_str (args, "sync");
  const char *mode = qmp_get_str (args, "bitmap-mode");
  bool partial = strcmp (sync, "incremental") == 0 ||
    strcmp (sync, "bitmap") == 0;

  b->bitmap = g_strdup (qmp_get_str (args, "bitmap"));
  b->overwritten = strcmp (sync, "none") == 0;
  b->all = !partial && !b->overwritten;
  if (partial && b->bitmap == NULL) {
    command_set_error (error, "must provide a valid bitmap name for '%s' sync "
                       "mode", sync);
    return false;
  }
  if (strcmp (sync, "incremental") == 0) {
    if (mode != NULL && strcmp (mode, "on-success") != 0) {
      command_set_error (error, "Bitmap sync mode must be 'on-success' when "
                         "using sync mode 'incremental'");
      return false;
    }
    mode = "on-success";
  }
  if (b->bitmap == NULL && mode != NULL) {
    command_set_error (error, "Cannot specify bitmap sync mode without a "
                       "bitmap");
    return false;
  }
  if (b->bitmap == NULL)
    return true;
  if (mode == NULL) {
    command_set_error (error, "Bitmap sync mode must be given when providing "
                       "a bitmap");
    return false;
  }
  if (b->overwritten) {
    command_set_error (error, "sync mode 'none' does not produce meaningful "
                       "bitmap outputs");
    return false;
  }
  if (!partial && strcmp (mode, "never") == 0) {
    command_set_error (error, "Bitmap sync mode 'never' has no meaningful "
                       "effect when combined with sync mode '%s'", sync);
    return false;
  }
  for (unsigned i = MODE_NEVER; i <= MODE_ALWAYS; i++)
    if (strcmp (mode, mode_names[i]) == 0)
      b->mode = i;
  return true;
}

static bool
check_perf (BackupJob *b, json_t *args, GError **error)
{
  json_t *perf = json_object_get (args, "x-perf");
  int64_t workers = qmp_get_int (perf, "max-workers", 4);
  int64_t chunk = qmp_get_int (perf, "max-chunk", 0);
  int64_t cluster = qmp_get_int (perf, "min-cluster-size", 0);

  if (workers < 1 || workers > INT32_MAX) {
    command_set_error (error, "max-workers must be between 1 and %d",
                       INT32_MAX);
    return false;
  }
  if (chunk < 0) {
    command_set_error (error, "max-chunk must be zero (which means no limit) "
                       "or positive");
    return false;
  }
  if (chunk > 0 && chunk < 65536) {
    command_set_error (error, "Required max-chunk (%" G_GINT64_FORMAT
                       ") is less than backup cluster size (65536)", chunk);
    return false;
  }
  if ((cluster & (cluster - 1)) != 0) {         /* 0: not given */
    command_set_error (error, "min-cluster-size needs to be a power of 2");
    return false;
  }
  b->chunk = chunk == 0 ? BACKUP_CHUNK
    : MIN (BACKUP_CHUNK, (uint64_t) chunk / BACKUP_UNIT * BACKUP_UNIT);
  b->max_workers = MIN ((unsigned) workers, BACKUP_MAX_WORKERS);
  return true;
}

static bool
find_device (BackupJob *b, const char *name, GError **error)
{
  BackupDisk *bd;

  b->disk = fleece_find_disk (plugin.fleece, name);
  if (b->disk != NULL)
    return true;
  bd = backup_table_find_export (plugin.backups, name, &b->backup);
  if (bd == NULL || bd->disk == NULL || bd->snapshot == NULL) {
    command_set_error (error, "Cannot find device='%.100s' nor "
                       "node-name='%.100s'", name, name);
    return false;
  }
  b->disk = disk_ref (bd->disk);
  b->snap = bd->snapshot;
  return true;
}

static uint64_t
source_size (const BackupJob *b)
{
  return b->snap != NULL ? snapshot_size (b->snap) : disk_size (b->disk);
}

static bool
find_target (BackupJob *b, const char *device, const char *target,
             GError **error)
{
  g_autoptr (Disk) served = fleece_find_disk (plugin.fleece, target);

  if (strcmp (device, target) == 0) {
    command_set_error (error, "Source and target cannot be the same");
    return false;
  }
  if (served != NULL) {
    command_set_error (error, "Disk '%s' cannot be a target: it is served, and "
                       "guests write to it; serve it no more and open its "
                       "image by blockdev-add without 'disk'",
                       disk_name (served));
    return false;
  }
  b->target = node_find (target, error);
  if (b->target == NULL)
    return false;
  /* A copy, here and below: jansson looks at its counts without a lock. */
  b->target_options = json_deep_copy (node_options (b->target));
  if (node_size (b->target) != source_size (b)) {
    command_set_error (error, "Source and target image have different sizes");
    return false;
  }
  return true;
}

static bool
find_bitmap (BackupJob *b, Transaction *t, GError **error)
{
  g_autoptr (GError) local = NULL;
  NamedBitmap *bm;

  if (b->bitmap == NULL)
    return true;
  if (b->backup != NULL) {
    g_autoptr (NamedBitmap) kept =
      named_bitmap_find (plugin.catalog,
                         epoch_log_disk_id (disk_epoch_log (b->disk)),
                         snapshot_id (b->snap), b->bitmap, error);

    if (kept == NULL)
      command_set_error (&local, "Bitmap '%.1100s' could not be found",
                         b->bitmap);
    else if (b->mode != MODE_NEVER)
      command_set_error (&local, "Bitmap '%.1100s' is readonly and cannot be "
                         "modified", b->bitmap);
    if (local == NULL)
      return true;
    if (error != NULL && *error == NULL)
      g_propagate_error (error, g_steal_pointer (&local));
    return false;
  }
  if (!transaction_has_bitmap (t, b->disk, b->bitmap)) {
    command_set_error (error, "Bitmap '%.1100s' could not be found",
                       b->bitmap);
    return false;
  }
  bm = transaction_edit (t, b->disk, b->bitmap, false, error);
  if (bm == NULL)
    return false;
  if (bm->id == 0) {            /* added in this very transaction */
    command_set_error (error, "Bitmap '%.1100s' is not there yet: it is added "
                       "in the same transaction", b->bitmap);
    return false;
  }
  b->bitmap_row = bm->id;
  return true;
}

static BackupJob *
backup_new_job (json_t *args)
{
  BackupJob *b = g_new0 (BackupJob, 1);

  pthread_mutex_init (&b->lock, NULL);
  b->args = json_deep_copy (args);
  b->on_source = job_on_error (qmp_get_str (args, "on-source-error"));
  b->on_target = job_on_error (qmp_get_str (args, "on-target-error"));
  return b;
}

static bool
add_filter (BackupJob *b, GError **error)
{
  const char *name = qmp_get_str (b->args, "filter-node-name");

  if (name == NULL)
    return true;
  if (!node_add_filter (name, b->disk, error)) {
    g_prefix_error (error, "Could not create node: ");
    return false;
  }
  b->filter = g_strdup (name);
  return true;
}

/* To be accepted and not done would be worse. */
static bool
refuse_unsupported (const BackupJob *b, json_t *args, GError **error)
{
  if (qmp_get_bool (args, "compress", false))
    command_set_error (error, "Compression is not supported for this drive");
  else if (!qmp_get_bool (args, "discard-source", false))
    return true;
  else if (b->backup != NULL)
    command_set_error (error, "'discard-source' is not supported: the snapshot "
                       "'%s' stays readable until backup-end, which frees its "
                       "old data", qmp_get_str (args, "device"));
  else
    command_set_error (error, "'discard-source' is not supported: disk '%s' "
                       "is live, and the old data that the job preserves are "
                       "freed when it ends", disk_name (b->disk));
  return false;
}

Job *
backup_job_new (Transaction *t, json_t *args, JobGroup *group,
                Disk **out_disk, GError **error)
{
  const char *device = qmp_get_str (args, "device");
  BackupJob *b = backup_new_job (args);
  JobOptions options = {
    .id = qmp_get_str (args, "job-id"),
    .speed = (uint64_t) qmp_get_int (args, "speed", 0),
    .auto_finalize = qmp_get_bool (args, "auto-finalize", true),
    .auto_dismiss = qmp_get_bool (args, "auto-dismiss", true),
    .group = group,
  };
  Job *job = NULL;

  if (find_device (b, device, error) &&
      find_target (b, device, qmp_get_str (args, "target"), error) &&
      check_sync (b, args, error) && refuse_unsupported (b, args, error) &&
      check_perf (b, args, error) && find_bitmap (b, t, error) &&
      node_claim (b->target, "backup", error)) {
    b->device = g_strdup (disk_name (b->disk));
    options.device = b->device;
    if (add_filter (b, error))
      b->job = job = job_new (&backup_driver, b, &options, error);
    if (job == NULL) {
      b->bitmap_row = 0;        /* not pinned yet */
      let_go (b);
    }
  }
  if (job == NULL) {
    backup_unref (b->backup);
    backup_free (b);
    return NULL;
  }
  if (b->bitmap_row != 0)
    bitmap_pin (b->bitmap_row);
  *out_disk = b->backup == NULL ? b->disk : NULL;
  return job;
}

/* As QEMU: until the job ends, its bitmap is what it was at the start. */
static void
show_frozen (const BackupJob *b)
{
  if (b->bitmap_row != 0)
    bitmap_show_until (b->bitmap_row, snapshot_boundary (b->snap));
}

void
backup_job_set_snapshot (Job *job, JobSnapshot *shared)
{
  BackupJob *b = job_opaque (job);

  atomic_fetch_add (&shared->refs, 1);
  b->shared = shared;
  b->snap = shared->snap;
  show_frozen (b);
}

Job *
backup_job_new_copy (const BackupCopy *copy, JobGroup *group, GError **error)
{
  g_autoptr (json_t) args =
    json_pack ("{s:s, s:s, s:s, s:s}", "job-id", copy->id,
               "device", disk_name (copy->disk), "target", copy->target,
               "sync", "full");
  BackupJob *b = backup_new_job (args);
  JobOptions options = {
    .id = copy->id,
    .device = disk_name (copy->disk),
    .auto_finalize = true,
    .auto_dismiss = true,
    .group = group,
  };
  Job *job = NULL;

  b->disk = disk_ref (copy->disk);
  b->device = g_strdup (options.device);
  if (check_sync (b, args, error) && check_perf (b, args, error) &&
      find_target (b, b->device, copy->target, error) &&
      node_claim (b->target, "backup", error)) {
    b->all = copy->since == 0;
    b->job = job = job_new (&backup_driver, b, &options, error);
    if (job == NULL)
      node_release (b->target);
  }
  if (job == NULL) {
    backup_free (b);
    return NULL;
  }
  b->copy = *copy;
  b->backup = backup_ref (copy->backup);
  return job;
}

void
backup_job_set_source (Job *job, Snapshot *snap)
{
  BackupJob *b = job_opaque (job);

  b->snap = snap;
}

/* --- in the catalog --- */

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

/* A bitmap that was not to outlive the server is gone. */
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
    return error == NULL || *error == NULL;
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
      !qmp_check (commands_table, "blockdev-add", row->target, error)) {
    g_clear_error (error);
    command_set_error (error, "its record is damaged");
    return false;
  }
  b->disk = fleece_find_disk (plugin.fleece, row->disk_name);
  if (b->disk == NULL) {
    command_set_error (error, "disk '%s' is not served now", row->disk_name);
    return false;
  }
  if (!check_sync (b, row->arguments, error) ||
      !check_perf (b, row->arguments, error))
    return false;
  if (b->copy.commit != NULL)
    b->all = b->copy.since == 0;
  if (shared != NULL) {
    atomic_fetch_add (&shared->refs, 1);
    b->shared = shared;
    b->snap = shared->snap;
  }
  else if (b->copy.commit != NULL)
    b->snap = b->copy.snap;
  else {
    Disk *disk = g_steal_pointer (&b->disk);

    if (find_device (b, qmp_get_str (row->arguments, "device"), NULL))
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
  show_frozen (b);
  return restore_progress (b, row, error);
}

/* A disk may have that name by now, which the job can do without. */
static void
restore_filter (BackupJob *b)
{
  g_autoptr (GError) error = NULL;

  if (b->disk != NULL && b->lost == NULL && !add_filter (b, &error))
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
  BackupJob *b = backup_new_job (args);
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
    let_go (b);
    g_clear_pointer (&b->shared, job_snapshot_unref);
    g_clear_pointer (&b->backup, backup_unref);
    backup_free (b);
    return NULL;
  }
  show_progress (b, b->job);
  job_set_resumable (b->job);
  return b->job;
}
