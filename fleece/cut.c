/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* cut.c - the atomic instant (durability.md K1 - K6').
 *
 *   K1 prepare  catalog rows, scratch files, epochs: all that can fail early.
 *               The names of the files are in the catalog before the files are
 *               there, so that none is left if the process dies
 *   K2 flip     publish each disk's next segment, then raise the one counter
 *   K3 drain    wait for writes admitted below the new counter
 *   K4 sync     the map of what is sealed, and the base: a backup must not copy
 *               what a power cut can take back (H2)
 *   K5 commit   seal the epochs, make the snapshots live, add the caller's rows
 *   K6          acknowledge
 *   K6' abort   after the flip the boundary and the layer cannot be taken back:
 *               guests use them, and older snapshots read through the layer.
 *               They stay as anonymous objects
 *
 * The previous layer's scratch file is not synced in K4: a volatile one is LOST
 * after a power cut with or without it, a durable one is stable before each
 * write goes on.
 */
#include <config.h>

#include <errno.h>
#include <string.h>

#include "bitmap/checkpoint.h"
#include "bitmap/fail-point.h"
#include "bitmap/granule.h"
#include "bitmap/named-bitmap.h"
#include "fleece/cut-internal.h"
#include "fleece/overlay-internal.h"

static gint
part_compare (gconstpointer a, gconstpointer b)
{
  const CutPart *x = a, *y = b;

  if (x->disk != y->disk)
    return x->disk->index < y->disk->index ? -1 : 1;
  return (x->req > y->req) - (x->req < y->req);
}

void
segment_free (Segment *seg)
{
  layer_unref (seg->layer);
  overlay_unref (seg->overlay);
  g_free (seg);
}

/* Free segments that no write can be in any more. */
static void
free_older_segments (Segment *seg)
{
  Segment *older = seg->older;

  seg->older = NULL;
  while (older != NULL) {
    Segment *next = older->older;

    segment_free (older);
    older = next;
  }
}

bool
disk_drain (Disk *disk, unsigned timeout_ms, GError **error)
{
  Segment *seg = atomic_load (&disk->newest);

  if (!inflight_wait_older (disk->inflight, seg->first_counter, 0, UINT64_MAX,
                            timeout_ms)) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_TIMEOUT,
                 "a write to disk '%s' did not finish within %u ms",
                 disk->name, timeout_ms);
    return false;
  }
  atomic_store (&disk->drained, seg->first_counter);
  free_older_segments (seg);
  return true;
}

static bool
disk_sync_base (Disk *disk, GError **error)
{
  int err = disk_sync (disk);

  if (err < 0) {
    atomic_store (&disk->untold, err);
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                 "cannot sync disk '%s' ('%s'): %s", disk->name, disk->path,
                 g_strerror (-err));
  }
  return err == 0;
}

bool
disk_finish_late (Disk *disk, unsigned timeout_ms, GError **error)
{
  Catalog *cat = disk->fleece->cat;
  Epoch *late = disk->late;

  if (late == NULL)
    return true;
  if (!disk_drain (disk, timeout_ms, error))
    return false;
  FAIL_POINT ("K6-late");
  epoch_log_sync_map (disk->log);
  /* The image has a new size, which the catalog is about to rely on. */
  if (late->size != epoch_log_current (disk->log)->size &&
      !disk_sync_base (disk, error))
    return false;
  if (!catalog_begin (cat, error))
    return false;
  if (atomic_load (&disk->sync_failed))
    epoch_log_carry (disk->log, late);
  disk->late = NULL;            /* in memory sealing never fails */
  if (epoch_log_seal (disk->log, late, error))
    return catalog_commit (cat, error);
  catalog_rollback (cat);
  return false;
}

char *
disk_default_scratch_path (const Disk *disk, int64_t layer_id)
{
  return g_strdup_printf ("%s/%s-%.8s-%" G_GINT64_FORMAT ".layer",
                          disk->fleece->scratch_dir, disk->name,
                          catalog_uuid (disk->fleece->cat), layer_id);
}

/* The row of a layer that is going to be. */
static bool
plan_layer (CutPart *p, GError **error)
{
  Disk *disk = p->disk;
  Catalog *cat = disk->fleece->cat;
  int64_t disk_id = epoch_log_disk_id (disk->log);

  /* Older snapshots read through the new layer (H4). */
  pthread_mutex_lock (&disk->snap_lock);
  p->durable = p->req->durable || disk_has_durable_locked (disk) ||
    (p->first != NULL && p[-1].durable);
  pthread_mutex_unlock (&disk->snap_lock);

  /* The default name has the row's id in it: two steps. */
  p->path = p->req->scratch_file != NULL ? g_strdup (p->req->scratch_file)
    : g_strdup_printf ("new/%s/%s", disk->name, p->req->snapshot);
  if ((p->req->scratch_file != NULL &&
       !store_check_layer_file (cat, p->path, error)) ||
      !store_add_layer (cat, disk_id, p->path, disk->size, p->durable,
                        p->req->scratch_keep, &p->layer_id, error))
    return false;
  if (p->req->scratch_file != NULL)
    return true;
  g_free (p->path);
  p->path = disk_default_scratch_path (disk, p->layer_id);
  return store_set_layer_file (cat, p->layer_id, p->path, error);
}

/* On failure no row remains. */
static bool
plan (Cut *cut, GError **error)
{
  Catalog *cat = cut->f->cat;
  bool ok = catalog_begin (cat, error);

  if (!ok)
    return false;
  for (size_t i = 0; ok && i < cut->nr; i++)
    ok = (cut->part[i].req->snapshot == NULL ||
          plan_layer (&cut->part[i], error)) &&
      overlay_cut_plan (&cut->part[i], error);
  if (!ok)
    catalog_rollback (cat);
  else {
    FAIL_POINT ("K1-plan");
    ok = catalog_commit (cat, error);
  }
  for (size_t i = 0; !ok && i < cut->nr; i++)
    cut->part[i].layer_id = cut->part[i].overlay_id = 0;
  return ok;
}

/* A layer's file by another name: those of our own making are not locked. */
static bool
check_reused (Fleece *f, const Layer *layer, GError **error)
{
  g_autoptr (DiskTable) all = fleece_disks (f);
  bool taken = false;

  for (size_t i = 0; !taken && i < all->len; i++) {
    Disk *disk = all->disk[i];

    pthread_mutex_lock (&disk->snap_lock);
    for (unsigned j = 0; j < disk->layers->len; j++) {
      const Layer *other = disk->layers->pdata[j];

      taken |= other->file->device == layer->file->device &&
        other->file->inode == layer->file->inode;
    }
    pthread_mutex_unlock (&disk->snap_lock);
  }
  if (taken)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS,
                 "scratch file '%s' is in use already", layer->path);
  return !taken;
}

/* The scratch file; rows of a snapshot and its layer; the objects. */
static bool
prepare_snapshot (CutPart *p, GError **error)
{
  Disk *disk = p->disk;
  Catalog *cat = disk->fleece->cat;
  int64_t disk_id = epoch_log_disk_id (disk->log);
  g_autofree char *map_name = NULL;
  uint8_t nonce[RUNTIME_NONCE_BYTES];
  LayerHome home;

  /* Ids come again when somebody puts back an old state directory. */
  if (p->req->scratch_file == NULL)
    layer_remove_files (disk->fleece->storage, p->path, false);
  home = disk_layer_home (disk, p->layer_id, p->durable, nonce, &map_name);
  home.keep = p->req->scratch_keep;
  FAIL_POINT ("K1-layer");
  p->layer = layer_create (disk->fleece->storage, p->path, disk->size,
                           p->layer_id, &home, error);
  if (p->layer == NULL ||
      (home.keep && !check_reused (disk->fleece, p->layer, error)) ||
      !store_set_layer_prepared (cat, p->layer_id, home.nonce, error))
    return false;
  if (space_is_low (disk->fleece->storage, p->path,
                    disk->fleece->scratch_reserve_set,
                    disk->fleece->scratch_reserve)) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                 "disk '%s': too little space is free for scratch file '%s' "
                 "beyond the scratch reserve", disk->name, p->path);
    return false;
  }
  p->snap = snapshot_new (disk, p->req->snapshot, p->epoch->id, p->layer);
  p->snap->limit_bytes = p->req->scratch_limit;
  p->snap->on_error = p->req->on_error;
  p->snap->cbw_timeout = p->req->cbw_timeout;
  p->snap->durable = p->req->durable;
  return store_delete_prepared (cat, disk_id, p->req->snapshot, error) &&
    store_add_snapshot (cat, p->snap, disk_id, p->layer_id, error);
}

/* The epoch and the segment of a disk, for all its parts. */
static bool
prepare_disk (CutPart *p, GError **error)
{
  Disk *disk = p->disk;
  Segment *now = atomic_load (&disk->newest);
  uint32_t granularity;
  /* A device that has shrunk is being resized to what is left of it. */
  StorageFile *live = disk->live;
  int err = live->is_block && p->size != disk->size ? 0
    : live->ops->check_size (live);

  /* A checkpoint would vouch for data that are no longer there. */
  if (err < 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                 err == -EIO ? "the image of disk '%s' ('%s') has shrunk, it "
                 "had %" G_GUINT64_FORMAT " bytes"
                 : "cannot get the size of disk '%s' ('%s'), %"
                 G_GUINT64_FORMAT " bytes when opened", disk->name,
                 disk->path, atomic_load (&live->size));
    return false;
  }
  FAIL_POINT ("K1-epoch");
  if (!named_bitmap_finest (disk->fleece->cat, epoch_log_disk_id (disk->log),
                            disk->granularity, &granularity, error))
    return false;
  if (p->granularity != 0)
    granularity = MIN (granularity, MAX (p->granularity, GRANULARITY_MIN));
  p->epoch = epoch_log_prepare (disk->log, p->size,
                                granule_fit (p->size, granularity), error);
  if (p->epoch == NULL)
    return false;
  p->seg = g_new0 (Segment, 1);
  p->seg->epoch = p->epoch;
  p->seg->bitmap = p->epoch->bitmap;
  p->seg->size = p->size;
  p->seg->layer = now->layer;
  if (p->seg->layer != NULL)
    layer_ref (p->seg->layer);
  p->seg->file = now->file;
  p->seg->overlay = now->overlay != NULL ? overlay_ref (now->overlay) : NULL;
  return true;
}

static bool
check_snapshot (const CutPart *p, GError **error)
{
  Disk *disk = p->disk;
  g_autoptr (Snapshot) taken = disk_find_snapshot (disk, p->req->snapshot);

  if (taken != NULL) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS,
                 "disk '%s' already has a snapshot '%s'", disk->name,
                 p->req->snapshot);
    return false;
  }
  if (p->req->durable && atomic_load (&disk->sync_failed)) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                 "disk '%s': a sync of the image ('%s') has failed, so that a "
                 "power loss may change it: no durable snapshot of it",
                 disk->name, disk->path);
    return false;
  }
  return true;
}

static bool
prepare_part (CutPart *p, GError **error)
{
  CutPart *first = p->first != NULL ? p->first : p;
  bool snapshot = p->req->snapshot != NULL;

  if ((snapshot && !check_snapshot (p, error)) ||
      (p->first == NULL && !prepare_disk (p, error)))
    return false;
  p->epoch = first->epoch;
  p->req->boundary = p->epoch->id;
  if (!overlay_cut_prepare (p, first->seg, error))
    return false;
  if (!snapshot)
    return true;
  if (!prepare_snapshot (p, error))
    return false;
  /* The newest one is written to; older ones are read through it. */
  if (first->seg->layer != NULL)
    layer_unref (first->seg->layer);
  first->seg->layer = layer_ref (p->layer);
  first->new_layer = true;
  return true;
}

/* A commit that failed as its sync did may be there at the next start.  Then
 * the row says "prepared", and without its files older snapshots would be lost:
 * they go only once it says something else for sure.  Else they stay, empty. */
static void
unprepare_layer (CutPart *p)
{
  Storage *storage = p->disk->fleece->storage;
  Catalog *cat = p->disk->fleece->cat;
  int err = 0;

  if (!store_retire_layer (cat, p->layer_id, NULL)) {
    layer_unref (p->layer);
    return;
  }
  if (p->layer != NULL)
    err = layer_remove_file (p->layer);
  else if (p->req->scratch_file == NULL)
    err = layer_remove_files (storage, p->path, false);
  /* Else what is there may be the user's: it was in the way. */
  layer_unref (p->layer);
  if (err == 0)                 /* else the next start tries again */
    store_delete_layer (cat, p->layer_id, NULL);
}

/* Take back what plan and prepare_part did; the rows of prepare_part are rolled
 * back by the caller. */
static void
unprepare_part (CutPart *p)
{
  if (p->seg != NULL)
    segment_free (p->seg);
  overlay_cut_undo (p);
  if (p->snap != NULL)
    snapshot_unref (p->snap);
  if (p->layer_id != 0)
    unprepare_layer (p);
  if (p->epoch != NULL && p->first == NULL)
    epoch_log_abandon (p->disk->log, p->epoch);
}

bool
cut_prepare (Cut *cut, GError **error)
{
  Catalog *cat = cut->f->cat;
  bool ok;

  if (!plan (cut, error))
    return false;
  FAIL_POINT ("K1-begin");
  ok = catalog_begin (cat, error);
  if (ok) {
    for (size_t i = 0; ok && i < cut->nr; i++)
      ok = prepare_part (&cut->part[i], error);
    if (!ok)
      catalog_rollback (cat);
    else {
      FAIL_POINT ("K1-commit");
      ok = catalog_commit (cat, error);
    }
  }
  for (size_t i = cut->nr; !ok && i > 0; i--)
    unprepare_part (&cut->part[i - 1]);
  return ok;
}

void
cut_undo_prepare (Cut *cut)
{
  for (size_t i = cut->nr; i > 0; i--)
    unprepare_part (&cut->part[i - 1]);
}

/* Readers of older snapshots must find the layer before anything can be
 * preserved in it. */
static void
add_layer (CutPart *p)
{
  Disk *disk = p->disk;

  pthread_mutex_lock (&disk->snap_lock);
  if (p->layer != NULL) {
    if (disk->layers->len > 0) {
      Layer *last = disk->layers->pdata[disk->layers->len - 1];

      atomic_store (&last->newer, layer_ref (p->layer));
      /* Limits are kept by the newest layer's budget alone; a few late
       * writes may exceed them. */
      atomic_store (&last->budget_blocks, UINT64_MAX);
    }
    p->layer->kept_size = 0;
    g_ptr_array_add (disk->layers, layer_ref (p->layer));
    g_ptr_array_add (disk->snapshots, snapshot_ref (p->snap));
  }
  disk_update_limits_locked (disk);
  pthread_mutex_unlock (&disk->snap_lock);
}

/* K2.  From the store of the counter on, all writes on all of these disks are
 * in the new segments; before it, none is. */
static void
flip (Cut *cut)
{
  Fleece *f = cut->f;

  pthread_mutex_lock (&f->flip_lock);
  cut->counter = atomic_load (&f->cut_counter) + 1;
  for (size_t i = 0; i < cut->nr; i++) {
    CutPart *p = &cut->part[i];
    Disk *disk = p->disk;
    Segment *now;

    if (p->first != NULL)
      continue;
    /* All parts of a disk stand together. */
    for (size_t j = i; j < cut->nr && cut->part[j].disk == disk; j++) {
      add_layer (&cut->part[j]);
      overlay_cut_flip (&cut->part[j], cut->counter);
    }
    now = atomic_load (&disk->newest);
    p->seg->first_counter = cut->counter;
    p->seg->layer_counter = p->new_layer ? cut->counter : now->layer_counter;
    p->seg->older = now;
    disk->current = p->epoch;
    atomic_store (&disk->size, p->size);
    atomic_store (&disk->newest, p->seg);
  }
  FAIL_POINT ("K2-count");
  atomic_store (&f->cut_counter, cut->counter);
  pthread_mutex_unlock (&f->flip_lock);
}

/* K3 and K4. */
static bool
drain_and_sync (Cut *cut, GError **error)
{
  for (size_t i = 0; i < cut->nr; i++) {
    CutPart *p = &cut->part[i];

    if (p->first != NULL)
      continue;
    if (!disk_drain (p->disk, cut->f->drain_timeout_ms, error))
      return false;
    p->drained = true;
  }
  for (size_t i = 0; i < cut->nr; i++) {
    Disk *disk = cut->part[i].disk;

    if (cut->part[i].first != NULL)
      continue;
    FAIL_POINT ("K4-map");
    epoch_log_sync_map (disk->log);
    FAIL_POINT ("K4-base");
#ifndef BROKEN_K4_SYNC          /* see test-crash-controls.sh */
    if (!disk_sync_base (disk, error))
      return false;
#endif
  }
  return true;
}

/* K5's transaction. */
static bool
commit_rows (Cut *cut, bool (*commit) (void *, GError **), void *opaque,
             GError **error)
{
  for (size_t i = 0; i < cut->nr; i++) {
    CutPart *p = &cut->part[i];

    if (p->snap != NULL &&
        (!store_set_layer_live (cut->f->cat, p->layer->id, error) ||
         !store_set_snapshot_live (cut->f->cat, p->snap, error) ||
         !named_bitmap_freeze (cut->f->cat, epoch_log_disk_id (p->disk->log),
                               p->snap->id, p->epoch->id, error)))
      return false;
    if (p->overlay != NULL &&
        !store_set_overlay_state (cut->f->cat, p->overlay_id, OVERLAY_LIVE,
                                  error))
      return false;
  }
#if !defined BROKEN_TXN && !defined BROKEN_BITMAP_CUT
  if (commit != NULL && !commit (opaque, error))
    return false;
#endif
  /* Last, since sealing changes what the log keeps in memory. */
  FAIL_POINT ("K5-seal");
  for (size_t i = 0; i < cut->nr; i++) {
    CutPart *p = &cut->part[i];

    if (p->first != NULL)
      continue;
    if (atomic_load (&p->disk->sync_failed))
      epoch_log_carry (p->disk->log, p->epoch);
    p->sealed = true;
    if (!epoch_log_seal (p->disk->log, p->epoch, error))
      return false;
  }
  return true;
}

#if defined BROKEN_TXN || defined BROKEN_BITMAP_CUT
/* The caller's rows in a transaction of their own. */
static bool
commit_alone (Cut *cut, bool (*commit) (void *, GError **), void *opaque,
              GError **error)
{
  if (commit == NULL)
    return true;
  return catalog_begin (cut->f->cat, error) && commit (opaque, error) &&
    catalog_commit (cut->f->cat, error);
}
#endif

static bool
commit_cut (Cut *cut, bool (*commit) (void *, GError **), void *opaque,
            GError **error)
{
  Catalog *cat = cut->f->cat;

  FAIL_POINT ("K5-begin");
  if (!catalog_begin (cat, error))
    return false;
  if (!commit_rows (cut, commit, opaque, error)) {
    catalog_rollback (cat);
    return false;
  }
  FAIL_POINT ("K5-commit");
#ifdef BROKEN_TXN               /* see test-crash-controls.sh */
  return catalog_commit (cat, error) &&
    commit_alone (cut, commit, opaque, error);
#endif
  return catalog_commit (cat, error);
}

/* K6'. */
static void
abort_flipped (Cut *cut)
{
  FAIL_POINT ("K6-abort");
  for (size_t i = 0; i < cut->nr; i++) {
    CutPart *p = &cut->part[i];
    g_autoptr (GError) error = NULL;

    if (p->first == NULL && !p->sealed)
      p->disk->late = p->epoch;
    overlay_cut_abort (p);
    if (p->snap != NULL) {
      /* If its row cannot be deleted, a next start or a next snapshot of that
       * name does it, by its state "prepared". */
      store_delete_snapshot (cut->f->cat, p->snap->id, &error);
      snapshot_forget_locked (p->snap);
      snapshot_unref (p->snap);
      layer_unref (p->layer);
    }
    /* Nothing better can be done about a failure: a next cut tries again. */
    if (error == NULL && p->drained)
      disk_finish_late (p->disk, 0, &error);
    if (error != NULL)
      fleece_note (cut->f, FLEECE_NOTE_WARNING, p->disk->name, NULL, 0,
                   "undoing a failed cut: %s", error->message);
  }
}

static bool
check_request (FleeceCutDisk *disks, size_t nr, GError **error)
{
  for (size_t i = 0; i < nr; i++) {
    for (size_t j = 0; j < i; j++)
      if (disks[i].disk == disks[j].disk && disks[i].snapshot != NULL &&
          g_strcmp0 (disks[i].snapshot, disks[j].snapshot) == 0) {
        g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS,
                     "disk '%s' cannot have two snapshots '%s'",
                     disks[i].disk->name, disks[i].snapshot);
        return false;
      }
    if (disks[i].snapshot != NULL &&
        !name_check_id ("snapshot name", disks[i].snapshot, error))
      return false;
    if (!overlay_cut_check (disks, i, error))
      return false;
    disks[i].out_snapshot = NULL;
    disks[i].boundary = 0;
  }
  return true;
}

/* Its snapshots go live, unless they broke meanwhile, and belong to the
 * caller. */
static void
finish (Cut *cut)
{
  for (size_t i = 0; i < cut->nr; i++) {
    CutPart *p = &cut->part[i];

    if (p->first == NULL)
      atomic_fetch_add (&p->disk->cuts, 1);
    if (p->snap != NULL) {
      SnapshotState prepared = SNAPSHOT_PREPARED;

      atomic_compare_exchange_strong (&p->snap->state, &prepared,
                                      SNAPSHOT_LIVE);
      layer_unref (p->layer);
    }
    p->req->out_snapshot = p->snap;
    overlay_cut_finish (p);
  }
}

bool
cut_run (Cut *cut, bool (*commit) (void *, GError **), void *opaque,
         GError **error)
{
  for (size_t i = 0; i < cut->nr; i++)
    disk_mark (cut->part[i].disk);
#ifdef BROKEN_BITMAP_CUT        /* see test-crash-controls.sh */
  if (!commit_alone (cut, commit, opaque, error))
    return false;
#endif
  FAIL_POINT ("K2-flip");
  flip (cut);
  FAIL_POINT ("K3-drain");
  if (!drain_and_sync (cut, error) ||
      !commit_cut (cut, commit, opaque, error)) {
    abort_flipped (cut);
    return false;
  }
  FAIL_POINT ("K6-live");
  finish (cut);
  return true;
}

static bool
run_locked (Cut *cut, bool (*commit) (void *, GError **), void *opaque,
            GError **error)
{
  for (size_t i = 0; i < cut->nr; i++) {
    CutPart *p = &cut->part[i];

    if ((p->req->overlay != NULL && !overlay_check_idle (p->disk, error)) ||
        !disk_finish_late (p->disk, cut->f->drain_timeout_ms, error))
      return false;
    p->size = p->disk->size;
  }
  return cut_prepare (cut, error) && cut_run (cut, commit, opaque, error);
}

/* Parts of one disk are neighbours: the first stands for all. */
static void
find_first_parts (Cut *cut)
{
  for (size_t i = 0; i < cut->nr; i++) {
    CutPart *p = &cut->part[i], *first = p;

    if (i > 0 && p[-1].disk == p->disk)
      first = p->first = p[-1].first != NULL ? p[-1].first : p - 1;
    if (p->req->granularity != 0)
      first->granularity = first->granularity == 0 ? p->req->granularity
        : MIN (first->granularity, p->req->granularity);
  }
}

bool
fleece_cut (Fleece *f, FleeceCutDisk *disks, size_t nr,
            bool (*commit) (void *, GError **), void *opaque, GError **error)
{
  g_autofree CutPart *part = NULL;
  Cut cut = { .f = f, .nr = nr };
  bool ok;

  if (!check_request (disks, nr, error))
    return false;
  part = g_new0 (CutPart, nr);     /* NULL without a disk, and qsort wants
                                      none */
  for (size_t i = 0; i < nr; i++)
    part[i] = (CutPart) { .req = &disks[i], .disk = disks[i].disk };
  if (nr > 1)
    qsort (part, nr, sizeof part[0], part_compare);
  cut.part = part;
  find_first_parts (&cut);
  for (size_t i = 0; i < nr; i++)
    if (part[i].first == NULL)
      pthread_mutex_lock (&part[i].disk->cut_lock);
  ok = run_locked (&cut, commit, opaque, error);
  for (size_t i = nr; i > 0; i--) {
    if (part[i - 1].first == NULL)
      pthread_mutex_unlock (&part[i - 1].disk->cut_lock);
    g_free (part[i - 1].path);
    g_free (part[i - 1].overlay_path);
  }
  return ok;
}

/* Does a snapshot need this layer that is readable, or that a next start would
 * believe to be?  break_lock and snap_lock held. */
static bool
layer_needed_locked (Disk *disk, const Layer *layer)
{
  for (unsigned i = 0; i < disk->snapshots->len; i++) {
    Snapshot *snap = disk->snapshots->pdata[i];
    SnapshotState state = atomic_load (&snap->state);

    if (snap->layer == NULL || snap->layer->id > layer->id)
      continue;
    if (state == SNAPSHOT_PREPARED || state == SNAPSHOT_LIVE)
      return true;
    if (layer->log != NULL && !atomic_load (&layer->dead) &&
        state == SNAPSHOT_BROKEN && snap->row != ROW_SAYS_SO)
      return true;
  }
  return false;
}

void
disk_flip (Disk *disk, Layer *layer, uint64_t size)
{
  const Segment *now = atomic_load (&disk->newest);

  disk_flip_to (disk, layer, now->file, now->overlay, size);
}

void
disk_next_segment (Disk *disk, Layer *layer, StorageFile *file,
                   Overlay *overlay, uint64_t size, uint64_t counter)
{
  Segment *seg = g_new0 (Segment, 1);

  seg->older = atomic_load (&disk->newest);
  seg->epoch = seg->older->epoch;
  seg->bitmap = seg->older->bitmap;
  seg->size = size;
  seg->file = file;
  seg->overlay = overlay != NULL ? overlay_ref (overlay) : NULL;
  seg->layer = layer != NULL ? layer_ref (layer) : NULL;
  seg->first_counter = counter;
  seg->layer_counter = layer != NULL ? seg->older->layer_counter : counter;
  atomic_store (&disk->size, size);
  atomic_store (&disk->newest, seg);
}

void
disk_flip_to (Disk *disk, Layer *layer, StorageFile *file, Overlay *overlay,
              uint64_t size)
{
  Fleece *f = disk->fleece;
  uint64_t counter;

  pthread_mutex_lock (&f->flip_lock);
  counter = atomic_load (&f->cut_counter) + 1;
  disk_next_segment (disk, layer, file, overlay, size, counter);
  atomic_store (&f->cut_counter, counter);
  pthread_mutex_unlock (&f->flip_lock);
}

static void
forget_layer (Disk *disk, Layer *layer)
{
  g_autoptr (GError) error = NULL;
  bool removed;

  FAIL_POINT ("E-file");
  removed = layer_remove_file (layer) == 0;
  layer_release_space (layer);
  FAIL_POINT ("E-layer-row");
  if (removed ? !store_delete_layer (disk->fleece->cat, layer->id, &error)
      : !store_retire_layer (disk->fleece->cat, layer->id, &error))
    fleece_note (disk->fleece, FLEECE_NOTE_WARNING, disk->name, NULL, 0,
                 "removing a layer: %s", error->message);
  layer_unref (layer);
}

void
disk_drop_layers (Disk *disk)
{
  g_autoptr (GPtrArray) gone = g_ptr_array_new ();
  bool any_left;

  /* A snapshot that is breaking has to be recorded as broken before its layer
   * is dead. */
  pthread_mutex_lock (&disk->break_lock);
  pthread_mutex_lock (&disk->snap_lock);
  while (disk->layers->len > 0 &&
         !layer_needed_locked (disk, disk->layers->pdata[0])) {
    Layer *layer = g_ptr_array_steal_index (disk->layers, 0);

    layer_kill (layer);
    disk->blocks_copied += atomic_load (&layer->data_blocks);
    disk->blocks_zero += atomic_load (&layer->zero_blocks);
    g_ptr_array_add (gone, layer);
  }
  any_left = disk->layers->len > 0;
  disk_update_limits_locked (disk);
  pthread_mutex_unlock (&disk->snap_lock);
  pthread_mutex_unlock (&disk->break_lock);

  if (gone->len > 0 && !any_left) {
    disk_flip (disk, NULL, disk->size);
    /* A write that hangs keeps the layer's memory until the next drain. */
    disk_drain (disk, disk->late != NULL ? 0 : 1000, NULL);
  }
  for (unsigned i = 0; i < gone->len; i++)
    forget_layer (disk, gone->pdata[i]);
}
