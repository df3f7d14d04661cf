/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* disk.c - the guest's I/O.  A write goes, in this order (durability.md 3):
 *   A1 admitted to the epoch that is open now; refused if it reaches past the
 *      disk's end there, as of a client that knows an older, larger size
 *   A2 its granules marked there, before anything is looked at
 *   A3 known to a power cut: by the durable map or an intent; only a write to a
 *      region that was cold waits
 *   A4 old blocks that a snapshot needs preserved in its own epoch's layer
 *   A5 submitted, A6 made stable where asked, then reported done
 * A7: on an error what was marked and preserved stays.
 */
#include <config.h>

#include <errno.h>
#include <string.h>

#include "bitmap/fail-point.h"
#include "fleece/overlay-internal.h"

/* A write in progress. */
typedef struct {
  const Segment *seg;
  struct inflight_slot *slot;
} Write;

static bool
range_fits (uint64_t size, uint64_t offset, uint64_t length)
{
  return length <= size && offset <= size - length;
}

/* A1 - A4.  On success write_end must follow; on error it has been done. */
static int
write_begin (Disk *disk, uint64_t offset, uint64_t length, bool preserve,
             Write *w)
{
  uint64_t counter;
  const Segment *seg;
  int err = 0;

  w->slot = inflight_enter (disk->inflight, &disk->fleece->cut_counter,
                            offset, offset + length, &counter);
  seg = atomic_load (&disk->newest);
  while (seg->first_counter > counter)  /* a cut has just been prepared */
    seg = seg->older;
  w->seg = seg;
  /* Never passed on: it would make the image longer again. */
  if (!range_fits (seg->size, offset, length)) {
    inflight_leave (disk->inflight, w->slot);
    return -ENOSPC;
  }
  FAIL_POINT ("A1-admitted");
  dirty_bitmap_set (seg->bitmap, offset, length);
  full_fence ();
  FAIL_POINT ("A2-marked");
#ifndef BROKEN_A3_WAIT          /* see test-crash-controls.sh */
  err = epoch_intend (disk->log, seg->epoch, offset, length);
#endif
  FAIL_POINT ("A3-intended");
  if (err == 0 && preserve && seg->layer != NULL)
    err = disk_preserve (disk, seg, offset, length);
  if (err < 0)
    inflight_leave (disk->inflight, w->slot);
  else
    FAIL_POINT ("A5-submit");
  return err;
}

static void
write_end (Disk *disk, Write *w)
{
  FAIL_POINT ("A6-done");
  inflight_leave (disk->inflight, w->slot);
}

int
disk_admit (Disk *disk, uint64_t offset, uint64_t length)
{
  Write w;
  int err = write_begin (disk, offset, length, true, &w);

  if (err == 0)
    write_end (disk, &w);
  return err;
}

int
disk_sync (Disk *disk)
{
  StorageFile *live = disk->live;
  int err = live->ops->sync (live);

  if (err < 0)
    atomic_store (&disk->sync_failed, true);
  return err;
}

/* For a guest, who is told what was kept for it as well. */
static int
sync_for_guest (Disk *disk)
{
  int err = disk_sync (disk);
  int untold = atomic_load_explicit (&disk->untold, memory_order_relaxed);

  if (untold < 0)
    untold = atomic_exchange (&disk->untold, 0);
  return err < 0 ? err : untold;
}

int
disk_pread (Disk *disk, void *buf, size_t length, uint64_t offset)
{
  StorageFile *live = disk->live;
  int err;

  if (!range_fits (atomic_load (&disk->size), offset, length))
    return -EINVAL;
  err = live->ops->pread (live, buf, length, offset);
  /* It may have shrunk meanwhile. */
  return err < 0 && !range_fits (atomic_load (&disk->size), offset, length)
    ? -EINVAL : err;
}

int
disk_pwrite (Disk *disk, const void *buf, size_t length, uint64_t offset,
             bool fua)
{
  Write w;
  int err;

  if (length == 0)
    return 0;
  err = write_begin (disk, offset, length, true, &w);
  if (err < 0)
    return err;
  err = w.seg->file->ops->pwrite (w.seg->file, buf, length, offset, fua);
  if (err < 0 && fua)
    atomic_store (&disk->sync_failed, true);
  write_end (disk, &w);
  return err;
}

static int
write_zeroes (StorageFile *file, uint64_t offset, uint64_t length)
{
  static const char zeroes[256 * 1024];
  int err = 0;

  while (err == 0 && length > 0) {
    size_t n = MIN (length, sizeof zeroes);

    err = file->ops->pwrite (file, zeroes, n, offset, false);
    offset += n;
    length -= n;
  }
  return err;
}

int
disk_zero (Disk *disk, uint64_t length, uint64_t offset, unsigned flags)
{
  StorageFile *file;
  Write w;
  int err;

  if (length == 0)
    return 0;
  err = write_begin (disk, offset, length, true, &w);
  if (err < 0)
    return err;
  file = w.seg->file;
  err = -EOPNOTSUPP;
  if (flags & DISK_MAY_PUNCH)
    err = file->ops->punch (file, offset, length);
  if (err == -EOPNOTSUPP)
    err = file->ops->zero (file, offset, length);
  if (err == -EOPNOTSUPP && !(flags & DISK_FAST))
    err = write_zeroes (file, offset, length);
  if (err == 0 && (flags & DISK_FUA)) {
    FAIL_POINT ("A6-sync");
    err = sync_for_guest (disk);
  }
  write_end (disk, &w);
  return err;
}

/* Punch those parts of the range whose blocks are all preserved.  A trimmed
 * range may read as anything, so keeping the rest is allowed, and saves copying
 * the whole disk on fstrim (H17). */
static int
punch_preserved (StorageFile *file, Layer *layer, uint64_t offset,
                 uint64_t length)
{
  uint64_t block = (offset + LAYER_BLOCK - 1) / LAYER_BLOCK;
  uint64_t end = (offset + length) / LAYER_BLOCK;
  uint64_t kept = MIN (end, layer->nr_blocks);
  int err = 0;

  while (err == 0 && block < kept) {
    uint64_t first = layer_next_present (layer, block, kept);

    block = layer_next_absent (layer, first, kept);
    if (block > first)
      err = file->ops->punch (file, first * LAYER_BLOCK,
                              (block - first) * LAYER_BLOCK);
  }
  /* What the disk has grown by since, no snapshot needs. */
  if (err == 0 && block < end)
    err = file->ops->punch (file, block * LAYER_BLOCK,
                            (end - block) * LAYER_BLOCK);
  return err;
}

int
disk_trim (Disk *disk, uint64_t length, uint64_t offset, bool fua)
{
  Write w;
  int err;

  if (length == 0)
    return 0;
  err = write_begin (disk, offset, length, false, &w);
  if (err < 0)
    return err == -ENOSPC &&
      !range_fits (atomic_load (&disk->size), offset, length) ? -EINVAL : err;
  if (w.seg->layer == NULL || atomic_load (&w.seg->layer->dead))
    err = w.seg->file->ops->punch (w.seg->file, offset, length);
  else
    err = punch_preserved (w.seg->file, w.seg->layer, offset, length);
  if (err == -EOPNOTSUPP)
    err = 0;
  if (err == 0 && fua) {
    FAIL_POINT ("A6-sync");
    err = sync_for_guest (disk);
  }
  write_end (disk, &w);
  return err;
}

int
disk_flush (Disk *disk)
{
  FAIL_POINT ("A6-flush");
  return sync_for_guest (disk);
}

int
disk_cache (Disk *disk, uint64_t length, uint64_t offset)
{
  StorageFile *live = disk->live;

  if (!range_fits (atomic_load (&disk->size), offset, length))
    return -EINVAL;
  return live->ops->prefetch (live, offset, length);
}

int
disk_extents (Disk *disk, uint64_t length, uint64_t offset,
              FleeceRunFn fn, void *opaque)
{
  uint64_t size = atomic_load (&disk->size);

  if (offset >= size)
    return length > 0 ? -EINVAL : 0;
  length = MIN (length, size - offset);
  while (length > 0) {
    StorageFile *live = disk->live;
    uint64_t run;
    bool hole;
    int err = live->ops->run (live, offset, length, &run, &hole);

    if (err < 0 && offset >= atomic_load (&disk->size))
      return -EINVAL;           /* it has shrunk meanwhile */
    if (err == 0)
      err = fn (opaque, run, hole);
    if (err != 0)
      return err;
    offset += run;
    length -= run;
  }
  return 0;
}

const char *
disk_name (const Disk *disk)
{
  return disk->name;
}

const char *
disk_path (const Disk *disk)
{
  return disk->path;
}

uint64_t
disk_size (const Disk *disk)
{
  return atomic_load (&disk->size);
}

bool
disk_is_block (const Disk *disk)
{
  StorageFile *base = disk->base;

  return base->is_block;
}

uint32_t
disk_granularity (const Disk *disk)
{
  return disk->granularity;
}

char *
disk_tracking_error (Disk *disk)
{
  char *text;

  pthread_mutex_lock (&disk->snap_lock);
  text = g_strdup (disk->tracking_error);
  pthread_mutex_unlock (&disk->snap_lock);
  return text;
}

EpochLog *
disk_epoch_log (Disk *disk)
{
  return disk->log;
}

void
disk_stats (Disk *disk, struct disk_stats *out)
{
  memset (out, 0, sizeof *out);
  out->cuts = atomic_load (&disk->cuts);
  pthread_mutex_lock (&disk->snap_lock);
  out->blocks_copied = disk->blocks_copied;
  out->blocks_zero = disk->blocks_zero;
  out->layers = disk->layers->len;
  out->snapshots = disk->snapshots->len;
  for (unsigned i = 0; i < disk->layers->len; i++) {
    Layer *layer = disk->layers->pdata[i];
    uint64_t data_blocks = atomic_load (&layer->data_blocks);

    out->blocks_copied += data_blocks;
    out->blocks_zero += atomic_load (&layer->zero_blocks);
    out->scratch_bytes += data_blocks * LAYER_BLOCK;
  }
  pthread_mutex_unlock (&disk->snap_lock);
}
