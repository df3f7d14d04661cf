/* SPDX-License-Identifier: BSD-3-Clause */
/* job-backup-new.c - the arguments of a backup job: checked, and a job made of
 * them. */
#include <config.h>

#include <string.h>

#include "plugin/commands.h"
#include "plugin/job-backup-internal.h"
#include "plugin/plugin.h"

static const char *const mode_names[] = {
  NULL, "never", "on-success", "always",
};

bool
backup_check_sync (BackupJob *b, json_t *args, GError **error)
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

bool
backup_check_perf (BackupJob *b, json_t *args, GError **error)
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

bool
backup_find_device (BackupJob *b, const char *name, GError **error)
{
  BackupDisk *bd;

  b->disk = command_find_active (name);
  if (b->disk != NULL)
    return true;
  bd = command_find_snapshot (name, &b->backup);
  if (bd == NULL || bd->disk == NULL || bd->snapshot == NULL) {
    command_set_error (error, "Cannot find device='%.100s' nor "
                       "node-name='%.100s'", name, name);
    return false;
  }
  b->disk = disk_ref (bd->disk);
  b->snap = bd->snapshot;
  b->bd = bd;
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

BackupJob *
backup_job_alloc (json_t *args)
{
  BackupJob *b = g_new0 (BackupJob, 1);

  pthread_mutex_init (&b->lock, NULL);
  b->args = json_deep_copy (args);
  b->on_source = job_on_error (qmp_get_str (args, "on-source-error"));
  b->on_target = job_on_error (qmp_get_str (args, "on-target-error"));
  return b;
}

bool
backup_add_filter (BackupJob *b, GError **error)
{
  const char *name = qmp_get_str (b->args, "filter-node-name");

  if (name == NULL)
    return true;
  if (!node_add_filter (name, "copy-before-write", b->disk, error)) {
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
  BackupJob *b = backup_job_alloc (args);
  JobOptions options = {
    .id = qmp_get_str (args, "job-id"),
    .speed = (uint64_t) qmp_get_int (args, "speed", 0),
    .auto_finalize = qmp_get_bool (args, "auto-finalize", true),
    .auto_dismiss = qmp_get_bool (args, "auto-dismiss", true),
    .group = group,
  };
  Job *job = NULL;

  if (backup_find_device (b, device, error) &&
      find_target (b, device, qmp_get_str (args, "target"), error) &&
      backup_check_sync (b, args, error) &&
      refuse_unsupported (b, args, error) &&
      backup_check_perf (b, args, error) && find_bitmap (b, t, error) &&
      node_claim (b->target, "backup", error)) {
    b->device = g_strdup (disk_name (b->disk));
    options.device = b->device;
    if (backup_add_filter (b, error))
      b->job = job = job_new (&backup_driver, b, &options, error);
    if (job == NULL) {
      b->bitmap_row = 0;        /* not pinned yet */
      backup_let_go (b);
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

void
backup_show_frozen (const BackupJob *b)
{
  if (b->bitmap_row != 0)
    bitmap_show_until (b->bitmap_row, snapshot_boundary (b->snap));
}

void
backup_job_set_snapshot (Job *job, JobSnapshot *shared)
{
  BackupJob *b = job_opaque (job);

  b->shared = job_snapshot_ref (shared);
  b->snap = job_snapshot_get (shared);
  backup_show_frozen (b);
}

bool
backup_job_is_resumable (Job *job)
{
  const BackupJob *b = job_opaque (job);

  return b->backup == NULL || !b->backup->node;
}

Job *
backup_job_new_copy (const BackupCopy *copy, JobGroup *group, GError **error)
{
  g_autoptr (json_t) args =
    json_pack ("{s:s, s:s, s:s, s:s}", "job-id", copy->id,
               "device", disk_name (copy->disk), "target", copy->target,
               "sync", "full");
  BackupJob *b = backup_job_alloc (args);
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
  if (backup_check_sync (b, args, error) &&
      backup_check_perf (b, args, error) &&
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
