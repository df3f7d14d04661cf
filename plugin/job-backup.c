/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/commands.h"
#include "plugin/job-backup.h"
#include "plugin/node.h"
#include "plugin/plugin.h"
#include "plugin/thread.h"

#define CHUNK (UINT64_C (1) << 20)      /* bytes copied at once */
#define MAX_WORKERS 8

typedef enum { MODE_NONE, MODE_NEVER, MODE_ON_SUCCESS, MODE_ALWAYS } BitmapMode;
static const char *const mode_names[] = {
  NULL, "never", "on-success", "always",
};

struct JobSnapshot {
  atomic_uint refs;
  Snapshot *snap;
};

typedef struct {
  /* Set in new, never changed. */
  Disk *disk;                   /* a reference until it has ended */
  Backup *backup;               /* of a snapshot that exists; else NULL */
  Node *target;
  char *bitmap;                 /* NULL: none */
  int64_t bitmap_row;           /* pinned; 0: not */
  bool all;                     /* copies everything */
  BitmapMode mode;
  JobOnError on_source, on_target;
  uint64_t chunk;
  unsigned workers;
  BackupCopy copy;              /* of a backup's; else its functions are NULL */

  /* Set before the start. */
  JobSnapshot *shared;          /* NULL: backup's */
  Snapshot *snap;               /* borrowed from either */

  /* The work; under lock. */
  Job *job;
  pthread_mutex_t lock;
  ChangeSet *todo;
  uint64_t next;                /* all of todo before it has been taken */
  int err;                      /* the first that ended it, errno */
} BackupJob;

/* --- the snapshot --- */

JobSnapshot *
job_snapshot_new (Snapshot *snap)
{
  JobSnapshot *shared = g_new0 (JobSnapshot, 1);

  atomic_init (&shared->refs, 1);
  shared->snap = snap;
  return shared;
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

/* --- copying --- */

/* false: nothing is left. */
static bool
take_chunk (BackupJob *b, uint64_t *out_offset, uint64_t *out_length)
{
  uint64_t size = change_set_size (b->todo);
  SCOPED_LOCK (&b->lock);

  while (b->next < size && b->err == 0) {
    bool dirty;
    uint64_t length = change_set_run (b->todo, b->next,
                                      MIN (b->chunk, size - b->next), &dirty);

    if (!dirty) {
      b->next += change_set_run (b->todo, b->next, size - b->next, &dirty);
      continue;
    }
    *out_offset = b->next;
    *out_length = length;
    b->next += length;
    return true;
  }
  return false;
}

/* Runs of the snapshot within a chunk, as they are copied. */
typedef struct {
  BackupJob *b;
  void *buf;
  uint64_t offset;              /* where the next run begins */
  bool reading;                 /* when it failed */
} Copy;

static int
copy_run (void *opaque, uint64_t length, bool zero)
{
  Copy *copy = opaque;
  BackupJob *b = copy->b;
  int r = 0;

  copy->reading = false;
  if (zero)
    r = node_zero (b->target, length, copy->offset);
  else {
    copy->reading = true;
    r = snapshot_pread (b->snap, copy->buf, length, copy->offset);
    if (r == 0) {
      copy->reading = false;
      r = node_pwrite (b->target, copy->buf, length, copy->offset);
    }
  }
  if (r == 0)
    copy->offset += length;
  return r;
}

static bool
copy_chunk (BackupJob *b, void *buf, uint64_t offset, uint64_t length)
{
  for (;;) {
    Copy copy = { b, buf, offset, true };
    int r = snapshot_extents (b->snap, length, offset, copy_run, &copy);

    if (r == 0)
      return true;
    if (!job_io_error (b->job, copy.reading ? b->on_source : b->on_target,
                       copy.reading, -r)) {
      SCOPED_LOCK (&b->lock);

      if (b->err == 0)
        b->err = -r;
      /* What was taken and not copied is not done: for bitmap-mode always. */
      b->next = MIN (b->next, offset);
      return false;
    }
  }
}

static void *
worker (void *opaque)
{
  BackupJob *b = opaque;
  g_autofree void *buf = g_try_malloc (b->chunk);
  uint64_t offset, length, last = 0;

  if (buf == NULL) {
    SCOPED_LOCK (&b->lock);

    if (b->err == 0)
      b->err = ENOMEM;
    return NULL;
  }
  while (job_pause_point (b->job, last) && take_chunk (b, &offset, &length)) {
    if (!copy_chunk (b, buf, offset, length))
      break;
    job_advance (b->job, length);
    last = length;
  }
  return NULL;
}

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

static bool
backup_run (Job *job, void *opaque, GError **error)
{
  BackupJob *b = opaque;
  pthread_t threads[MAX_WORKERS];
  unsigned nr = 0;
  int err;

  b->job = job;
  b->todo = find_todo (b, error);
  if (b->todo == NULL)
    return false;
  job_set_total (job, command_dirty_bytes (b->todo));
  /* This thread is one of them. */
  while (nr + 1 < b->workers &&
         thread_create (&threads[nr], worker, b) == 0)
    nr++;
  worker (b);
  while (nr > 0)
    pthread_join (threads[--nr], NULL);
  if (job_is_cancelled (job))
    return false;

  err = b->err;
  while (err == 0) {
    err = -node_flush (b->target);
    if (err == 0)
      return true;
    if (!job_io_error (job, b->on_target, false, err))
      break;
    err = 0;
  }
  command_set_error (error, "%s", g_strerror (err));
  return false;
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
      change_set_from (b->todo, b->next, error);

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

  if (b->copy.commit != NULL)
    return b->copy.commit (b->copy.opaque, error);
  return (b->mode != MODE_ON_SUCCESS && b->mode != MODE_ALWAYS) ||
    advance_bitmap (b, false, error);
}

/* bitmap-mode always: a retry onto the same target copies just the rest. */
static void
keep_rest (BackupJob *b)
{
  g_autoptr (GError) error = NULL;
  bool ok = catalog_begin (plugin.catalog, &error);

  if (ok) {
    ok = advance_bitmap (b, true, &error);
    if (ok)
      ok = catalog_commit (plugin.catalog, &error);
    else
      catalog_rollback (plugin.catalog);
  }
  if (!ok)
    nbdkit_error ("warning: disk '%s': bitmap '%s' stays as it was before the "
                  "backup: %s", disk_name (b->disk), b->bitmap,
                  error->message);
}

static void
backup_end (Job *job, void *opaque, bool ok)
{
  BackupJob *b = opaque;

  /* todo: the work has begun. */
  if (!ok && b->mode == MODE_ALWAYS && b->todo != NULL)
    keep_rest (b);
  if (b->bitmap_row != 0)
    bitmap_unpin (b->bitmap_row);
  b->bitmap_row = 0;
  node_release (b->target);
  b->snap = NULL;
  if (b->copy.end != NULL)
    b->copy.end (b->copy.opaque, ok);
  g_clear_pointer (&b->shared, job_snapshot_unref);
  g_clear_pointer (&b->backup, backup_unref);
  g_clear_pointer (&b->disk, disk_unref);
  command_forget_epochs ();
  keeper_wake (plugin.keeper);
}

static void
backup_free (void *opaque)
{
  BackupJob *b = opaque;

  node_unref (b->target);
  disk_unref (b->disk);
  change_set_unref (b->todo);
  g_free (b->bitmap);
  pthread_mutex_destroy (&b->lock);
  g_free (b);
}

static const JobDriver backup_driver = {
  .type = "backup",
  .run = backup_run,
  .commit = backup_commit,
  .end = backup_end,
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
  b->all = !partial;
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
  if (strcmp (sync, "none") == 0) {
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
  b->chunk = chunk > 0 ? MIN (CHUNK, (uint64_t) chunk / 4096 * 4096) : CHUNK;
  b->workers = MIN (MIN ((unsigned) workers, MAX_WORKERS),
                    node_parallel (b->target));
  if (b->mode == MODE_ALWAYS)   /* what is left is then one range */
    b->workers = 1;
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
  if (strcmp (device, target) == 0) {
    command_set_error (error, "Source and target cannot be the same");
    return false;
  }
  b->target = node_find (target, error);
  if (b->target == NULL)
    return false;
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

static bool
refuse_unsupported (json_t *args, GError **error)
{
  if (qmp_get_bool (args, "compress", false))
    command_set_error (error, "Compression is not supported for this drive");
  else if (strcmp (qmp_get_str (args, "sync"), "none") == 0)
    command_set_error (error, "sync mode 'none' is not supported: a snapshot "
                       "of backup-begin can be read at any time");
  else
    return true;
  return false;
}

Job *
backup_job_new (Transaction *t, json_t *args, JobGroup *group,
                Disk **out_disk, GError **error)
{
  const char *device = qmp_get_str (args, "device");
  BackupJob *b = g_new0 (BackupJob, 1);
  JobOptions options = {
    .id = qmp_get_str (args, "job-id"),
    .speed = (uint64_t) qmp_get_int (args, "speed", 0),
    .auto_finalize = qmp_get_bool (args, "auto-finalize", true),
    .auto_dismiss = qmp_get_bool (args, "auto-dismiss", true),
    .group = group,
  };
  Job *job = NULL;

  pthread_mutex_init (&b->lock, NULL);
  b->on_source = job_on_error (qmp_get_str (args, "on-source-error"));
  b->on_target = job_on_error (qmp_get_str (args, "on-target-error"));
  if (find_device (b, device, error) &&
      find_target (b, device, qmp_get_str (args, "target"), error) &&
      check_sync (b, args, error) && refuse_unsupported (args, error) &&
      check_perf (b, args, error) && find_bitmap (b, t, error) &&
      node_claim (b->target, "backup", error)) {
    options.device = disk_name (b->disk);
    job = job_new (&backup_driver, b, &options, error);
    if (job == NULL)
      node_release (b->target);
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
backup_job_set_snapshot (Job *job, JobSnapshot *shared)
{
  BackupJob *b = job_opaque (job);

  atomic_fetch_add (&shared->refs, 1);
  b->shared = shared;
  b->snap = shared->snap;
}

Job *
backup_job_new_copy (const BackupCopy *copy, JobGroup *group, GError **error)
{
  BackupJob *b = g_new0 (BackupJob, 1);
  JobOptions options = {
    .id = copy->id,
    .device = disk_name (copy->disk),
    .auto_finalize = true,
    .auto_dismiss = true,
    .group = group,
  };
  Job *job = NULL;

  pthread_mutex_init (&b->lock, NULL);
  b->disk = disk_ref (copy->disk);
  b->all = copy->since == 0;
  b->chunk = CHUNK;
  if (find_target (b, options.device, copy->target, error) &&
      node_claim (b->target, "backup", error)) {
    b->workers = MIN (4, node_parallel (b->target));
    job = job_new (&backup_driver, b, &options, error);
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
