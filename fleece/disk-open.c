/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* disk-open.c - one disk's tracking and snapshots from start to clean stop.
 *
 * After a clean stop the layers' maps are read back and every snapshot goes on.
 * After anything else the maps are gone, and with them the snapshots: each is
 * LOST, said so, and its scratch files are removed.  A lost snapshot's row stays
 * until somebody ends it, so that nobody mistakes it for one that never was.
 */
#include <config.h>

#include <string.h>

#include "fleece/fleece-internal.h"

bool
disk_identity (Disk *disk, DiskIdentity *out, GError **error)
{
  int err;

  memset (out, 0, sizeof *out);
  out->size = disk->size;
  /* Device numbers change from boot to boot: not part of the identity. */
  out->inode = disk->base->inode;
  err = disk->base->ops->mtime (disk->base, &out->mtime_ns);
  if (err < 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                 "cannot read the attributes of disk '%s' ('%s'): %s",
                 disk->name, disk->path, g_strerror (-err));
    return false;
  }
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
  fleece_note (disk->fleece, FLEECE_NOTE_WARNING, disk->name, snap->name, 0,
               "the snapshot is lost: %s", why);
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
  int err = layer_remove_files (disk->fleece->storage, row->file);

  if (err < 0)
    fleece_note (disk->fleece, FLEECE_NOTE_WARNING, disk->name, NULL, -err,
                 "cannot remove scratch file '%s': %s", row->file,
                 g_strerror (-err));
  if (!store_delete_layer (disk->fleece->cat, row->id, &error))
    fleece_note (disk->fleece, FLEECE_NOTE_WARNING, disk->name, NULL, 0,
                 "forgetting scratch file '%s': %s", row->file,
                 error->message);
}

/* Load layers, newest last.  One that cannot be loaded takes itself and all older
 * ones along, since older snapshots read through newer layers. */
static void
load_layers (Disk *disk, GPtrArray *rows, bool intact, char **out_why)
{
  for (unsigned i = 0; i < rows->len; i++) {
    const LayerRow *row = rows->pdata[i];
    g_autoptr (GError) error = NULL;
    Layer *layer = NULL;

    if (intact && row->live) {
      layer = layer_load (disk->fleece->storage, row->file, row->size,
                          row->id, &error);
      if (layer == NULL) {
        g_free (*out_why);
        *out_why = g_strdup (error->message);
        for (unsigned j = 0; j < disk->layers->len; j++)
          layer_remove_file (disk->layers->pdata[j]);
        g_ptr_array_set_size (disk->layers, 0);
      }
    }
    if (layer == NULL) {
      drop_layer_row (disk, row);
      continue;
    }
    if (disk->layers->len > 0) {
      Layer *last = disk->layers->pdata[disk->layers->len - 1];
      atomic_store (&last->newer, layer_ref (layer));
    }
    g_ptr_array_add (disk->layers, layer);
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
  bool intact = report->clean || report->created;

  rows = store_list_layers (disk->fleece->cat, epoch_log_disk_id (disk->log),
                            error);
  if (rows == NULL)
    return false;
  why = g_strdup (intact ? "its scratch file is missing" : report->reason);
  load_layers (disk, rows, intact, &why);
  return load_snapshots (disk, why, error);
}

static void
note_tracking (void *opaque, const char *disk, const char *text,
               int error_number)
{
  fleece_note (opaque, FLEECE_NOTE_WARNING, disk, NULL, error_number, "%s",
               text);
}

bool
disk_start (Disk *disk, GError **error)
{
  Segment *seg;
  DiskIdentity identity;
  EpochOptions options;

  if (!disk_identity (disk, &identity, error))
    return false;
  options = disk->fleece->epochs;
  options.storage = disk->fleece->storage;
  options.runtime = disk->fleece->runtime;
  options.notify = note_tracking;
  options.opaque = disk->fleece;
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
  disk->current = epoch_log_current (disk->log);
  seg = g_new0 (Segment, 1);
  seg->first_counter = INFLIGHT_FIRST_COUNTER;
  seg->layer_counter = INFLIGHT_FIRST_COUNTER;
  seg->epoch = disk->current;
  seg->bitmap = disk->current->bitmap;
  if (disk->layers->len > 0)
    seg->layer = layer_ref (disk->layers->pdata[disk->layers->len - 1]);
  atomic_store (&disk->newest, seg);
  atomic_store (&disk->drained, INFLIGHT_FIRST_COUNTER);
  pthread_mutex_lock (&disk->cut_lock);
  disk_drop_layers (disk);      /* of snapshots that broke or were lost */
  pthread_mutex_unlock (&disk->cut_lock);
  return true;
}

static bool
stop_locked (Disk *disk, GError **error)
{
  DiskIdentity identity;
  int err;

  if (!disk_finish_late (disk, disk->fleece->drain_timeout_ms, error))
    return false;
  disk_drop_layers (disk);
  for (unsigned i = 0; i < disk->layers->len; i++) {
    Layer *layer = disk->layers->pdata[i];

    /* A failed cut's layer still says "prepared" in its row, but older
     * snapshots read through it. */
    if (!layer_save (layer, error) ||
        !store_set_layer_live (disk->fleece->cat, layer->id, error))
      return false;
  }
  err = disk->base->ops->sync (disk->base);
  if (err < 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                 "cannot sync disk '%s' ('%s'): %s", disk->name, disk->path,
                 g_strerror (-err));
    return false;
  }
  if (disk->layers->len > 0) {
    err = disk->fleece->storage->ops->sync_dir (disk->fleece->storage,
                                                disk->fleece->scratch_dir);
    if (err < 0) {
      g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                   "cannot sync scratch directory '%s': %s",
                   disk->fleece->scratch_dir, g_strerror (-err));
      return false;
    }
  }
  return disk_identity (disk, &identity, error) &&
    epoch_log_close (disk->log, &identity, error);
}

bool
disk_stop (Disk *disk, GError **error)
{
  bool ok;

  pthread_mutex_lock (&disk->cut_lock);
  ok = stop_locked (disk, error);
  pthread_mutex_unlock (&disk->cut_lock);
  return ok;
}
