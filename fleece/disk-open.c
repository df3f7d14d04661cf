/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* disk-open.c - one disk's tracking and snapshots from start to clean stop.
 *
 * A snapshot goes on where the maps of its layer and of all newer ones are
 * found: a durable layer's in its log, another's in the runtime directory (kill
 * -9) or in the file that a clean stop wrote.  The catalog has the nonce of the
 * one that counts, and only that one is believed, however the last run ended.
 * Without them, or if the image is not the same any more, the snapshot is LOST,
 * said so, and its scratch files are removed (one that a user lent is kept,
 * empty).  A lost snapshot's row stays until somebody ends it, so that nobody
 * mistakes it for one that never was.
 *
 * A layer of a cut that was not through is loaded like any other: guests may
 * have used it, and older snapshots read through it (H5).
 */
#include <config.h>

#include <errno.h>
#include <string.h>

#include "bitmap/fail-point.h"
#include "fleece/overlay-internal.h"

static char *
mark_name (const Disk *disk)
{
  return g_strconcat (disk->name, EPOCH_MARK_SUFFIX, NULL);
}

/* With the image if it can be; else in the runtime directory, which at least
 * outlives us. */
typedef struct {
  CopierJob job;
  StorageFile *base;
  char *text;
} MarkJob;

/* Touches nothing after the call: see copier_free. */
static int
set_mark (CopierJob *job)
{
  MarkJob *mark = (MarkJob *) job;
  const struct storage_file_ops *ops = mark->base->ops;

  return ops->set_mark != NULL ? ops->set_mark (mark->base, mark->text)
    : -EOPNOTSUPP;
}

static void
free_mark (CopierJob *job)
{
  MarkJob *mark = (MarkJob *) job;

  g_free (mark->text);
  g_free (mark);
}

/* It waits for the image's inode, and so for a guest's write that hangs: no
 * longer than this.  It still comes, and is still right, when that write
 * ends. */
#define MARK_WAIT_MS 1000

void
disk_mark (Disk *disk)
{
  g_autofree char *text = epoch_log_mark (disk->log);
  MarkJob *mark;
  int err;

  /* One that is late could otherwise come after a newer one. */
  if (atomic_load (&disk->late_marks) > 0)
    return;
  mark = g_new0 (MarkJob, 1);
  mark->job.fn = set_mark;
  mark->job.free = free_mark;
  mark->base = disk->base;
  mark->text = g_strdup (text);
  err = copier_run (disk->fleece->copier, &mark->job,
                    copier_now_ms () + MARK_WAIT_MS, &disk->late_marks);

  /* Without it, less is found out; nothing else depends on it. */
  if (err < 0 && err != -ETIMEDOUT) {
    g_autofree char *name = mark_name (disk);

    runtime_write_text (disk->fleece->runtime, name, text);
  }
}

static void
read_mark (Disk *disk, DiskIdentity *out)
{
  StorageFile *base = disk->base;
  const struct storage_file_ops *ops = base->ops;
  int err = ops->get_mark != NULL
    ? ops->get_mark (base, out->mark, sizeof out->mark) : -EOPNOTSUPP;

  if (err == -EOPNOTSUPP) {
    g_autofree char *name = mark_name (disk);

    runtime_read_text (disk->fleece->runtime, name, out->mark,
                       sizeof out->mark);
  }
  else if (err == -ERANGE)
    g_strlcpy (out->mark, "?", sizeof out->mark);       /* not one of ours */
  else if (err < 0)
    out->mark[0] = '\0';
}

bool
disk_identity (Disk *disk, DiskIdentity *out, GError **error)
{
  StorageFile *base = disk->base;
  int64_t layers = 0;
  int err;

  memset (out, 0, sizeof *out);
  out->size = atomic_load (&disk->size);
  /* Device numbers change from boot to boot: what is part of the identity is
   * whether it is a file or a device. */
  out->device = base->is_block ? 2 : 1;
  out->inode = base->inode;
  out->birth_ns = base->birth_ns;
  read_mark (disk, out);
  err = base->ops->mtime (base, &out->mtime_ns);
  if (err == 0)
    err = overlay_mtimes (disk, &layers);
  if (err < 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                 "cannot read the attributes of disk '%s' ('%s'): %s",
                 disk->name, disk->path, g_strerror (-err));
    return false;
  }
  /* That nobody else wrote to the layers either. */
  out->mtime_ns = (int64_t) ((uint64_t) out->mtime_ns + (uint64_t) layers);
  /* 0 would be "not known". */
  if (!base->is_block && out->mtime_ns == 0)
    out->mtime_ns = 1;
  return true;
}

static Snapshot *
snapshot_from_row (Disk *disk, const SnapshotRow *row)
{
  Snapshot *snap = snapshot_new (disk, row->name, row->boundary, NULL);

  snap->id = row->id;
  snap->created = row->created;
  snap->size = row->size;
  snap->limit_bytes = row->limit_bytes;
  snap->on_error = row->on_error;
  snap->cbw_timeout = row->cbw_timeout;
  snap->durable = row->durable;
  snap->reason = g_strdup (row->reason);
  atomic_store (&snap->state, row->state);
  g_ptr_array_add (disk->snapshots, snap);
  return snap;
}

static bool
lose (Disk *disk, Snapshot *snap, const char *why, GError **error)
{
  SnapshotState state = atomic_load (&snap->state);

  if (state == SNAPSHOT_LOST || state == SNAPSHOT_BROKEN)
    return true;
  g_free (snap->reason);
  snap->reason = g_strdup (why);
  atomic_store (&snap->state, SNAPSHOT_LOST);
  fleece_note (disk->fleece, FLEECE_NOTE_SNAPSHOT_LOST, disk->name, snap->name,
               0, "%s", why);
  return store_set_snapshot_state (disk->fleece->cat, snap->id, SNAPSHOT_LOST,
                                   why, error);
}

static Layer *
find_layer (Disk *disk, int64_t id)
{
  for (unsigned i = 0; i < disk->layers->len; i++) {
    Layer *layer = disk->layers->pdata[i];

    if (layer->id == id)
      return layer;
  }
  return NULL;
}

static void
drop_layer_row (Disk *disk, const LayerRow *row)
{
  g_autoptr (GError) error = NULL;
  int err = layer_remove_files (disk->fleece->storage, row->file, row->keep);

  if (err < 0)
    fleece_note (disk->fleece, FLEECE_NOTE_WARNING, disk->name, NULL, -err,
                 "cannot remove scratch file '%s': %s", row->file,
                 g_strerror (-err));
  if (err < 0 ? !store_retire_layer (disk->fleece->cat, row->id, &error)
      : !store_delete_layer (disk->fleece->cat, row->id, &error))
    fleece_note (disk->fleece, FLEECE_NOTE_WARNING, disk->name, NULL, 0,
                 "forgetting scratch file '%s': %s", row->file,
                 error->message);
}

char *
disk_layer_map_name (const Disk *disk, int64_t layer_id)
{
  return g_strdup_printf ("%s.%" G_GINT64_FORMAT ".p", disk->name, layer_id);
}

LayerHome
disk_layer_home (const Disk *disk, int64_t layer_id, bool durable,
                 uint8_t nonce[RUNTIME_NONCE_BYTES], char **out_name)
{
  LayerHome home = { .rt = disk->fleece->runtime, .durable = durable };

  *out_name = NULL;
  /* Elsewhere than in a tmpfs it would cost page faults and be worth
   * nothing. */
  if (!durable && runtime_is_trusted (home.rt)) {
    *out_name = disk_layer_map_name (disk, layer_id);
    runtime_draw_nonce (nonce);
    home.map_name = *out_name;
    home.nonce = nonce;
  }
  return home;
}

/* From the file of a clean stop; the maps move to a new home. */
static Layer *
load_stopped (Disk *disk, const LayerRow *row, GError **error)
{
  Fleece *f = disk->fleece;
  uint8_t nonce[RUNTIME_NONCE_BYTES];
  g_autofree char *name = NULL;
  LayerHome home = disk_layer_home (disk, row->id, false, nonce, &name);
  Layer *layer;

  home.keep = row->keep;
  layer = layer_load (f->storage, row->file, row->size, row->id, row->nonce,
                      &home, error);
  if (layer == NULL)
    return NULL;
  /* From here on the file is old. */
  if (!store_set_layer_nonce (f->cat, row->id, home.nonce, error)) {
    layer_unref (layer);
    return NULL;
  }
  layer_remove_map (f->storage, row->file);
  return layer;
}

static Layer *
load_layer (Disk *disk, const LayerRow *row, GError **error)
{
  Fleece *f = disk->fleece;
  bool clean = epoch_log_report (disk->log)->clean;
  g_autofree char *name = disk_layer_map_name (disk, row->id);
  LayerHome home = { .rt = f->runtime, .map_name = name,
                     .nonce = row->nonce, .keep = row->keep };
  g_autoptr (GError) not_resumed = NULL;
  g_autoptr (GError) not_loaded = NULL;
  Layer *layer;

  if (row->durable)
    return layer_replay (f->storage, row->file, row->size, row->id, row->keep,
                         error);
  if (!row->has_nonce) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_LOST,
                 "its block map was in memory only, since the runtime "
                 "directory was not a tmpfs, and tracking was not stopped "
                 "cleanly");
    return NULL;
  }
  layer = layer_resume (f->storage, row->file, row->size, row->id, &home,
                        &not_resumed);
  if (layer != NULL) {
    layer_remove_map (f->storage, row->file);
    return layer;
  }
  layer = load_stopped (disk, row, &not_loaded);
  if (layer == NULL && clean)
    g_propagate_error (error, g_steal_pointer (&not_loaded));
  else if (layer == NULL &&     /* the map was found */
           !g_error_matches (not_resumed, BITMAP_ERROR,
                             BITMAP_ERROR_NOT_FOUND))
    g_propagate_error (error, g_steal_pointer (&not_resumed));
  else if (layer == NULL)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_LOST,
                 "tracking was not stopped cleanly, and its block map is not "
                 "usable any more after a power loss or with another runtime "
                 "directory than '%s': %s", runtime_dir (f->runtime),
                 not_resumed->message);
  return layer;
}

/* Of a cut that had got no further than to say where its layer would be.  At a
 * path that a user chose there may be a file of his by now. */
static void
drop_retired_row (Disk *disk, const LayerRow *row)
{
  Fleece *f = disk->fleece;
  g_autofree char *own = disk_default_scratch_path (disk, row->id);
  g_autoptr (GError) error = NULL;
  int err = strcmp (row->file, own) == 0
    ? layer_remove_files (f->storage, row->file, row->keep)
    : layer_remove_unused (f->storage, row->file, row->size, row->keep);

  if (err < 0)
    fleece_note (f, FLEECE_NOTE_WARNING, disk->name, NULL, -err,
                 "a backup that had hardly begun may have left '%s'; it is not "
                 "removed: %s", row->file, g_strerror (-err));
  if (err < 0 && err != -EEXIST)
    return;                     /* the next start tries again */
  if (!store_delete_layer (f->cat, row->id, &error))
    fleece_note (f, FLEECE_NOTE_WARNING, disk->name, NULL, 0,
                 "forgetting scratch file '%s': %s", row->file,
                 error->message);
}

/* Newest first: one that cannot be loaded takes all older ones along, since
 * older snapshots read through newer layers. */
static void
load_layers (Disk *disk, GPtrArray *rows, char **why)
{
  for (unsigned i = rows->len; i > 0; i--) {
    const LayerRow *row = rows->pdata[i - 1];
    g_autoptr (GError) error = NULL;
    Layer *layer = NULL;

    FAIL_POINT ("R6-layer");
    if (row->retired) {
      drop_retired_row (disk, row);
      continue;
    }
    if (*why == NULL) {
      layer = load_layer (disk, row, &error);
      if (layer == NULL)
        *why = g_strdup (error->message);
    }
    if (layer == NULL) {
      drop_layer_row (disk, row);
      continue;
    }
    if (disk->layers->len > 0)
      atomic_store (&layer->newer, layer_ref (disk->layers->pdata[0]));
    g_ptr_array_insert (disk->layers, 0, layer);
    disk->blocks_copied -= atomic_load (&layer->data_blocks);
    disk->blocks_zero -= atomic_load (&layer->zero_blocks);
  }
}

static bool
load_snapshots (Disk *disk, const char *why, GError **error)
{
  Catalog *cat = disk->fleece->cat;
  g_autoptr (GPtrArray) rows
    = store_list_snapshots (cat, epoch_log_disk_id (disk->log), error);

  if (rows == NULL)
    return false;
  for (unsigned i = 0; i < rows->len; i++) {
    const SnapshotRow *row = rows->pdata[i];
    Layer *layer = find_layer (disk, row->layer_id);
    Snapshot *snap;

    if (row->state == SNAPSHOT_PREPARED) {      /* its cut never happened */
      FAIL_POINT ("R4-prepared");
      if (!store_delete_snapshot (cat, row->id, error))
        return false;
      continue;
    }
    snap = snapshot_from_row (disk, row);
    if (row->state == SNAPSHOT_LIVE && layer != NULL)
      snap->layer = layer_ref (layer);
    else if (!lose (disk, snap, why, error))
      return false;
  }
  return true;
}

static bool
open_snapshots (Disk *disk, GError **error)
{
  const EpochOpenReport *report = epoch_log_report (disk->log);
  g_autoptr (GPtrArray) rows = NULL;
  g_autofree char *why = NULL;

  rows = store_list_layers (disk->fleece->cat, epoch_log_disk_id (disk->log),
                            error);
  if (rows == NULL)
    return false;
  if (!report->same_image)
    why = g_strdup (report->reason);
  load_layers (disk, rows, &why);
  FAIL_POINT ("R6-snapshots");
  return load_snapshots (disk, why != NULL ? why : "its layer is missing",
                         error);
}

static void
note_tracking (void *opaque, const char *name, const char *text,
               int error_number)
{
  Disk *disk = opaque;

  pthread_mutex_lock (&disk->snap_lock);
  g_free (disk->tracking_error);
  disk->tracking_error = g_strdup (text);
  pthread_mutex_unlock (&disk->snap_lock);
  fleece_note (disk->fleece, FLEECE_NOTE_TRACKING, name, NULL, error_number,
               "%s", text);
}

bool
disk_start (Disk *disk, GError **error)
{
  Segment *seg;
  DiskIdentity identity;
  EpochOptions options;

  if (!overlay_start (disk, error) || !disk_identity (disk, &identity, error))
    return false;
  options = disk->fleece->epochs;
  options.storage = disk->fleece->storage;
  options.runtime = disk->fleece->runtime;
  options.notify = note_tracking;
  options.opaque = disk;
  disk->log = epoch_log_open (disk->fleece->cat, disk->name,
                              disk->granularity, &identity, &options, error);
  if (disk->log == NULL) {
    g_prefix_error (error, "disk '%s': ", disk->name);
    return false;
  }
  if (!open_snapshots (disk, error)) {
    g_prefix_error (error, "disk '%s': ", disk->name);
    return false;
  }
  disk_mark (disk);
  disk->current = epoch_log_current (disk->log);
  seg = g_new0 (Segment, 1);
  seg->first_counter = INFLIGHT_FIRST_COUNTER;
  seg->layer_counter = INFLIGHT_FIRST_COUNTER;
  seg->size = disk->size;
  seg->epoch = disk->current;
  seg->bitmap = disk->current->bitmap;
  overlay_first_segment (disk, seg);
  if (disk->layers->len > 0)
    seg->layer = layer_ref (disk->layers->pdata[disk->layers->len - 1]);
  atomic_store (&disk->newest, seg);
  atomic_store (&disk->drained, INFLIGHT_FIRST_COUNTER);
  pthread_mutex_lock (&disk->cut_lock);
  FAIL_POINT ("R6-drop");
  disk_drop_layers (disk);      /* of snapshots that broke or were lost */
  pthread_mutex_unlock (&disk->cut_lock);
  return true;
}

/* The directory of a scratch file, so that it and its map are found again. */
static bool
sync_scratch_dir (Disk *disk, const Layer *layer, GError **error)
{
  Storage *storage = disk->fleece->storage;
  g_autofree char *dir = g_path_get_dirname (layer->path);
  int err = storage->ops->sync_dir (storage, dir);

  if (err < 0)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                 "cannot sync scratch directory '%s': %s", dir,
                 g_strerror (-err));
  return err == 0;
}

static bool
stop_layer (Disk *disk, Layer *layer, GError **error)
{
  Catalog *cat = disk->fleece->cat;
  uint8_t nonce[RUNTIME_NONCE_BYTES];

  if (layer->log == NULL) {
    runtime_draw_nonce (nonce);
    FAIL_POINT ("S-save");
    if (!layer_save (layer, nonce, error) ||
        !sync_scratch_dir (disk, layer, error))
      return false;
    FAIL_POINT ("S-nonce");
    if (!store_set_layer_nonce (cat, layer->id, nonce, error))
      return false;
    atomic_store (&layer->removed, true);       /* the map in the tmpfs */
  }
  /* A failed cut's layer still says "prepared" in its row, but older snapshots
   * read through it. */
  return store_set_layer_live (cat, layer->id, error);
}

static bool
stop_locked (Disk *disk, GError **error)
{
  DiskIdentity identity;
  int err;

  if (!disk_finish_late (disk, disk->fleece->drain_timeout_ms, error))
    return false;
  disk_drop_layers (disk);
  for (unsigned i = 0; i < disk->layers->len; i++)
    if (!stop_layer (disk, disk->layers->pdata[i], error))
      return false;
  FAIL_POINT ("S-base");
  err = disk_sync (disk);
  if (err < 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                 "cannot sync disk '%s' ('%s'): %s", disk->name, disk->path,
                 g_strerror (-err));
    return false;
  }
  if (!overlay_stop (disk, error) ||
      !disk_identity (disk, &identity, error) ||
      !epoch_log_close (disk->log, &identity, error))
    return false;
  disk_mark (disk);
  return true;
}

bool
disk_stop (Disk *disk, GError **error)
{
  bool ok;

  pthread_mutex_lock (&disk->cut_lock);
  disk->stopped = true;
  ok = stop_locked (disk, error);
  pthread_mutex_unlock (&disk->cut_lock);
  return ok;
}
