/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fleece.c - the disks of a process: open, start, stop. */
#include <config.h>

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "bitmap/checkpoint.h"
#include "bitmap/fail-point.h"
#include "fleece/overlay-internal.h"

Fleece *
fleece_new (const FleeceOptions *options, GError **error)
{
  Fleece *f = g_new0 (Fleece, 1);

  f->storage = options->storage != NULL ? options->storage : &storage_posix;
  f->scratch_dir = g_strdup (options->scratch_dir);
  f->runtime_dir = g_strdup (options->runtime_dir);
  f->drain_timeout_ms = options->drain_timeout_ms != 0
    ? options->drain_timeout_ms : 60000;
  f->epochs = options->epochs;
  f->scratch_reserve_set = options->scratch_reserve_set;
  f->scratch_reserve = options->scratch_reserve;
  f->notify = options->notify;
  f->notify_opaque = options->notify_opaque;
  f->copier = copier_new ();
  fleece_init_table (f);
  pthread_mutex_init (&f->flip_lock, NULL);
  atomic_init (&f->cut_counter, INFLIGHT_FIRST_COUNTER);
  return f;
}

void
disk_free (Disk *disk)
{
  StorageFile *base = disk->base;
  Segment *seg = atomic_load (&disk->newest);

  while (seg != NULL) {
    Segment *older = seg->older;

    segment_free (seg);
    seg = older;
  }
  g_ptr_array_unref (disk->snapshots);
  g_ptr_array_unref (disk->layers);
  epoch_log_free (disk->log);
  overlay_stack_free (disk->stack);
  if (base != NULL)
    base->ops->close (base);
  inflight_destroy (disk->inflight);
  g_aligned_free (disk->inflight);
  for (unsigned i = 0; i < DISK_STRIPES; i++)
    pthread_mutex_destroy (&disk->stripe[i]);
  pthread_mutex_destroy (&disk->cut_lock);
  pthread_mutex_destroy (&disk->break_lock);
  pthread_mutex_destroy (&disk->snap_lock);
  g_free (disk->name);
  g_free (disk->path);
  g_free (disk->tracking_error);
  g_free (disk);
}

void
fleece_free (Fleece *f)
{
  if (f == NULL)
    return;
  copier_free (f->copier);      /* first: its jobs use what follows */
  fleece_destroy_table (f);
  pthread_mutex_destroy (&f->flip_lock);
  runtime_free (f->runtime);
  g_free (f->runtime_dir);
  g_free (f->scratch_dir);
  g_free (f);
}

static Disk *
disk_new (Fleece *f, const char *name, const char *path, uint32_t granularity)
{
  Disk *disk = g_new0 (Disk, 1);

  disk->fleece = f;
  disk->refs = 1;
  disk->index = f->next_index++;
  disk->name = g_strdup (name);
  disk->path = g_strdup (path);
  disk->granularity = granularity;
  /* g_new0 would not give the slots their cache lines. */
  disk->inflight = g_aligned_alloc0 (1, sizeof *disk->inflight,
                                     _Alignof (Inflight));
  inflight_init (disk->inflight);
  for (unsigned i = 0; i < DISK_STRIPES; i++)
    pthread_mutex_init (&disk->stripe[i], NULL);
  pthread_mutex_init (&disk->cut_lock, NULL);
  pthread_mutex_init (&disk->break_lock, NULL);
  pthread_mutex_init (&disk->snap_lock, NULL);
  disk->stack = overlay_stack_new (disk);
  disk->layers
    = g_ptr_array_new_with_free_func ((GDestroyNotify) layer_unref);
  disk->snapshots
    = g_ptr_array_new_with_free_func ((GDestroyNotify) snapshot_unref);
  return disk;
}

static bool
open_base (Disk *disk, GError **error)
{
  Storage *storage = disk->fleece->storage;
  StorageFile *base;
  int err;

  FAIL_POINT ("R1-lock");
  err = storage->ops->open (storage, disk->path, STORAGE_LOCK, 0, &base);
  if (err == 0) {
    disk->base = base;
    disk->size = base->size;
    overlay_stack_set_base (disk->stack, base);
    return true;
  }
  if (err == -EBUSY)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_BUSY,
                 "disk '%s': image '%s' is in use by another process, or "
                 "mounted",
                 disk->name, disk->path);
  else if (err == -ENOTBLK || err == -EISDIR)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "disk '%s': '%s' is neither a regular file nor a block device",
                 disk->name, disk->path);
  else
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                 "disk '%s': cannot open image '%s': %s", disk->name,
                 disk->path, g_strerror (-err));
  return false;
}

/* The same image under two names would have two bitmaps that each miss the
 * other's writes.  Found before opening: our own lock would only say "in
 * use". */
static bool
check_other_disks (Fleece *f, const char *name, const char *path,
                   GError **error)
{
  g_autoptr (DiskTable) disks = fleece_disks (f);
  struct stat st;
  bool have_stat = stat (path, &st) == 0;

  for (unsigned i = 0; i < disks->len; i++) {
    const Disk *other = disks->disk[i];
    const StorageFile *base = other->base;

    if (strcmp (other->name, name) == 0) {
      g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS,
                   "disk name '%s' is used twice", name);
      return false;
    }
    if (!have_stat)
      continue;
    if (base->is_block ? S_ISBLK (st.st_mode) && st.st_rdev == base->device
        : st.st_dev == base->device && st.st_ino == base->inode) {
      g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS,
                   "disks '%s' and '%s' are the same image '%s'", other->name,
                   name, path);
      return false;
    }
  }
  return true;
}

Disk *
fleece_open_disk (Fleece *f, const char *name, const char *path,
                  uint32_t granularity, GError **error)
{
  g_autoptr (Disk) disk = NULL;

  if (!name_check_id ("disk name", name, error))
    return NULL;
  if (granularity < GRANULARITY_MIN || granularity > GRANULARITY_MAX ||
      (granularity & (granularity - 1)) != 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "granularity of %u bytes is not a power of 2 from %u to %u",
                 granularity, GRANULARITY_MIN, GRANULARITY_MAX);
    return NULL;
  }
  if (!check_other_disks (f, name, path, error))
    return NULL;
  disk = disk_new (f, name, path, granularity);
  if (!open_base (disk, error) ||
      (f->cat != NULL && !disk_start (disk, error)))
    return NULL;
  return g_steal_pointer (&disk);
}

Disk *
fleece_add_disk (Fleece *f, const char *name, const char *path,
                 uint32_t granularity, GError **error)
{
  Disk *disk = fleece_open_disk (f, name, path, granularity, error);

  if (disk != NULL) {
    fleece_show_disk (f, disk);
    disk_unref (disk);
  }
  return disk;
}

/* Maps that no row needs: of a cut or a removal that a crash cut off. */
static void
sweep_runtime (Fleece *f)
{
  g_autoptr (GPtrArray) keep = g_ptr_array_new_with_free_func (g_free);

  if (epoch_list_runtime_maps (f->cat, keep, NULL))
    runtime_sweep (f->runtime, keep);
}

bool
fleece_start (Fleece *f, Catalog *cat, GError **error)
{
  g_autoptr (DiskTable) disks = fleece_disks (f);

  if (g_mkdir_with_parents (f->scratch_dir, 0700) < 0) {
    int err = errno;

    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                 "cannot create scratch directory '%s': %s", f->scratch_dir,
                 g_strerror (err));
    return false;
  }
  f->runtime = runtime_new (f->runtime_dir, catalog_uuid (cat), error);
  if (f->runtime == NULL)
    return false;
  if (!runtime_is_trusted (f->runtime))
    fleece_note (f, FLEECE_NOTE_WARNING, NULL, NULL, 0,
                 "runtime directory '%s' is not a tmpfs: what is there is not "
                 "trusted after a crash", runtime_dir (f->runtime));
  f->cat = cat;
  for (unsigned i = 0; i < disks->len; i++)
    if (!disk_start (disks->disk[i], error)) {
      fleece_stop (f, NULL);    /* the others must not suffer from it */
      runtime_tidy (f->runtime);        /* the process may end before _free */
      return false;
    }
  FAIL_POINT ("R6-sweep");
  sweep_runtime (f);
  return true;
}

bool
fleece_stop (Fleece *f, GError **error)
{
  g_autoptr (DiskTable) disks = fleece_disks (f);
  bool ok = true;

  for (unsigned i = 0; f->cat != NULL && i < disks->len; i++) {
    Disk *disk = disks->disk[i];

    /* One without a segment did not start. */
    if (atomic_load (&disk->newest) != NULL &&
        !disk_stop (disk, ok ? error : NULL))
      ok = false;
  }
  f->cat = NULL;
  return ok;
}

bool
fleece_drop_broken (Fleece *f)
{
  g_autoptr (DiskTable) disks = fleece_disks (f);
  bool all = true;

  for (unsigned i = 0; i < disks->len; i++) {
    Disk *disk = disks->disk[i];

    /* A cut may take a minute, and the caller has other things to do. */
    if (pthread_mutex_trylock (&disk->cut_lock) != 0) {
      all = false;
      continue;
    }
    if (!disk->stopped)
      disk_drop_layers (disk);
    pthread_mutex_unlock (&disk->cut_lock);
  }
  return all;
}

#define DEFAULT_RESERVE (UINT64_C (2) << 30)

uint64_t
space_left (Storage *storage, const char *path, bool reserve_set,
            uint64_t reserve)
{
  uint64_t available, total;

  if (storage->ops->space == NULL ||
      storage->ops->space (storage, path, &available, &total) < 0)
    return UINT64_MAX;
  if (!reserve_set)
    reserve = MAX (total / 20, DEFAULT_RESERVE);
  return available - MIN (available, reserve);
}

bool
space_is_low (Storage *storage, const char *path, bool reserve_set,
              uint64_t reserve)
{
  uint64_t available, total;

  if (storage->ops->space == NULL ||
      storage->ops->space (storage, path, &available, &total) < 0)
    return false;               /* a full one still fails the copy */
  if (!reserve_set)
    reserve = MAX (total / 20, DEFAULT_RESERVE);
  return available < reserve;
}

bool
fleece_store_epochs (Fleece *f, GError **error)
{
  g_autoptr (DiskTable) disks = fleece_disks (f);

  for (unsigned i = 0; i < disks->len; i++)
    if (!epoch_log_store (disks->disk[i]->log, error))
      return false;
  return true;
}

bool
fleece_compact_epochs (Fleece *f, GError **error)
{
  g_autoptr (DiskTable) disks = fleece_disks (f);

  for (unsigned i = 0; i < disks->len; i++)
    if (!epoch_log_compact (disks->disk[i]->log, error))
      return false;
  return true;
}

void
fleece_note (Fleece *f, FleeceNoteKind kind, const char *disk,
             const char *snapshot, int error_number, const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list ap;

  if (f->notify == NULL)
    return;
  va_start (ap, format);
  text = g_strdup_vprintf (format, ap);
  va_end (ap);
  f->notify (f->notify_opaque, kind, disk, snapshot, text, error_number);
}
