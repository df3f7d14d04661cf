/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* resize.c - a disk gets another size: a cut, since an epoch's geometry is
 * fixed.
 *
 * The image has its new size before the cut's transaction is committed, and
 * from the transaction before on, which prepares the epoch of the new size, the
 * catalog knows both sizes: whatever a crash leaves, the image has one of them,
 * and the next start goes by that (epoch-open.c, recover.c).
 *
 *   grow    prepare; make the image longer; cut.  Only writes after the flip
 *           reach what is new, which is dirty in the new epoch
 *   shrink  preserve the tail, as if it were to be overwritten, while guests
 *           write anywhere; prepare; admit no more writes to the tail, wait for
 *           those in flight; mark the tail dirty, as a power cut may bring back
 *           parts of it; cut the image off; cut
 *
 * A layer keeps the size that the disk had when it was made.  A layer that is
 * smaller than the disk need not preserve the rest: its snapshots, and those
 * that read through it, ended before that, or have it in an older layer since
 * the disk shrank.  For the same reason snapshots never read the base past its
 * end.
 *
 * Not a part of fleece_cut: a snapshot taken in the same instant would be of
 * one size and the epoch that starts there of another.
 */
#include <config.h>

#include <errno.h>

#include "bitmap/fail-point.h"
#include "fleece/cut-internal.h"
#include "fleece/overlay-internal.h"

/* Of data; a hole costs nothing. */
#define PRESERVE_STEP (UINT64_C (1) << 20)

static bool
io_error (const Disk *disk, const char *what, uint64_t size, int err,
          GError **error)
{
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
               "disk '%s' ('%s') cannot be resized to %" G_GUINT64_FORMAT
               " bytes: %s: %s", disk->name, disk->path, size, what,
               g_strerror (-err));
  return false;
}

/* Bytes [from, to) are about to be cut off: A4 for all snapshots. */
static bool
preserve_tail (Disk *disk, uint64_t from, uint64_t to, GError **error)
{
  const Segment *seg = atomic_load (&disk->newest);

  for (uint64_t offset = from; seg->layer != NULL && offset < to; ) {
    StorageFile *live = disk->live;
    uint64_t run;
    bool hole;
    int err = live->ops->run (live, offset, to - offset, &run, &hole);

    if (err < 0 || !hole)
      run = MIN (err < 0 ? to - offset : run, PRESERVE_STEP);
    FAIL_POINT ("Z-tail");
    err = disk_preserve (disk, seg, offset, run);
    if (err < 0)
      return io_error (disk, "what its snapshots need of the end cannot be "
                       "preserved", from, err, error);
    offset += run;
  }
  return true;
}

/* New connections see the disk shorter from here on; on failure longer
 * again. */
static bool
cut_off (Disk *disk, uint64_t size, GError **error)
{
  uint64_t old_size = disk->size;
  Layer *layer = atomic_load (&disk->newest)->layer;
  StorageFile *live = disk->live;
  bool ok;
  int err;

  FAIL_POINT ("Z-flip");
  disk_flip (disk, layer, size);
  ok = disk_drain (disk, disk->fleece->drain_timeout_ms, error);
  if (ok) {
    FAIL_POINT ("Z-lost");
    err = epoch_log_mark_lost (disk->log, size, old_size - size);
    if (err < 0)
      ok = io_error (disk, "the map of changed blocks cannot be stored", size,
                     err, error);
  }
  if (ok) {
    FAIL_POINT ("Z-shorter");
    err = live->ops->set_size (live, size);
    if (err < 0)
      ok = io_error (disk, "the image cannot be truncated", size, err, error);
  }
  if (!ok)
    disk_flip (disk, layer, old_size);
  return ok;
}

static bool
make_longer (Disk *disk, uint64_t size, GError **error)
{
  StorageFile *live = disk->live;
  int err;

  FAIL_POINT ("Z-longer");
  err = live->ops->set_size (live, size);
  return err == 0 ||
    io_error (disk, "the image cannot be extended", size, err, error);
}

/* Nobody but the device can change that, and it has done so. */
static bool
check_device (Disk *disk, uint64_t size, GError **error)
{
  StorageFile *live = disk->live;
  int err = live->ops->set_size (live, size);

  if (err == -EINVAL)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "disk '%s': block device '%s' has not %" G_GUINT64_FORMAT
                 " bytes, and its size cannot be changed from here",
                 disk->name, disk->path, size);
  else if (err < 0)
    io_error (disk, "the device's size is not known", size, err, error);
  return err == 0;
}

static bool
resize_locked (Cut *cut, uint64_t size, GError **error)
{
  CutPart *p = cut->part;
  Disk *disk = p->disk;
  StorageFile *live = disk->live;

  if (!overlay_check_size_free (disk, error) ||
      !disk_finish_late (disk, cut->f->drain_timeout_ms, error) ||
      (live->is_block && !check_device (disk, size, error)))
    return false;
  if (size == disk->size)
    return true;
  p->size = size;
  if (size < disk->size && !preserve_tail (disk, size, disk->size, error))
    return false;
  if (!cut_prepare (cut, error))
    return false;
  if (!(size < disk->size ? cut_off (disk, size, error)
        : make_longer (disk, size, error))) {
    cut_undo_prepare (cut);
    return false;
  }
  FAIL_POINT ("Z-sized");
  if (cut_run (cut, NULL, NULL, error))
    return true;
  g_prefix_error (error, "disk '%s' has %" G_GUINT64_FORMAT " bytes now, but "
                  "that is not recorded yet: ", disk->name, size);
  return false;
}

bool
fleece_resize (Fleece *f, Disk *disk, uint64_t size, GError **error)
{
  FleeceCutDisk req = { .disk = disk };
  CutPart part = { .req = &req, .disk = disk };
  Cut cut = { .f = f, .part = &part, .nr = 1 };
  bool ok;

  pthread_mutex_lock (&disk->cut_lock);
  ok = resize_locked (&cut, size, error);
  pthread_mutex_unlock (&disk->cut_lock);
  return ok;
}
