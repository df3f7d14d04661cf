/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* preserve.c - copy-before-write: durability.md A4.
 *
 * A block is preserved into the layer of the write's own epoch, not into the
 * newest one: a late write of an older epoch that went into the newer layer
 * would be missing in the older snapshot (H6b).  And a write of a newer epoch
 * first waits for overlapping older ones, before it takes any lock: else it
 * would preserve content that the older write is still changing, or deadlock.
 */
#include <config.h>

#include <errno.h>
#include <string.h>

#include "fleece/fleece-internal.h"

#define STRIPE_BLOCKS (STRIPE_BYTES / LAYER_BLOCK)

/* Blocks copied between two looks at the free space: 4 MiB. */
#define SPACE_CHECK_BLOCKS 1024

/* How long a write waits for an overlapping older one before its snapshot is
 * broken instead (durability.md 5: guest first). */
#define OVERLAP_TIMEOUT_MS 30000

static pthread_mutex_t *
stripe_of (Disk *disk, uint64_t block)
{
  return &disk->stripe[block / STRIPE_BLOCKS % DISK_STRIPES];
}

/* Read nr old blocks; short at the end of the disk as it was when the layer was
 * made: zero-padded.  (It may be longer now, not shorter: see resize.c.) */
static int
read_old (Disk *disk, const Layer *layer, uint64_t block, uint64_t nr,
          char *buf)
{
  uint64_t offset = block * LAYER_BLOCK, length = nr * LAYER_BLOCK;
  uint64_t left = layer->size - offset;

  if (length > left) {
    memset (buf + left, 0, length - left);
    length = left;
  }
  return disk->base->ops->pread (disk->base, buf, length, offset);
}

/* Blocks [block, block + nr) are absent and inside one stripe, which is held. */
static int
copy_run (Disk *disk, Layer *layer, uint64_t block, uint64_t nr)
{
  char buf[STRIPE_BYTES];
  int err = read_old (disk, layer, block, nr, buf);

  if (err < 0 && nr > 1) {      /* find out which ones */
    err = 0;
    for (uint64_t i = 0; err == 0 && i < nr; i++)
      err = copy_run (disk, layer, block + i, 1);
    return err;
  }
  if (err < 0) {
    /* The guest may be overwriting a bad sector: that must succeed. */
    err = layer_record (layer, block, 1, PRESENCE_UNREADABLE);
    return err < 0 ? err : layer_mark (layer, block, 1, PRESENCE_UNREADABLE);
  }
  atomic_fetch_add_explicit (&disk->unchecked_blocks, nr,
                             memory_order_relaxed);
  return layer_store (layer, block, nr, buf);
}

/* Preserve what is absent of [first, end), all in one stripe. */
static int
preserve_stripe (Disk *disk, Layer *layer, uint64_t first, uint64_t end)
{
  pthread_mutex_t *stripe = stripe_of (disk, first);
  int err = 0;

  if (layer_next_absent (layer, first, end) == end)
    return 0;
  if (layer->log != NULL) {
    /* The syncs cost more than the copy: the whole stripe in one go. */
    first = first / STRIPE_BLOCKS * STRIPE_BLOCKS;
    end = MIN (first + STRIPE_BLOCKS, layer->nr_blocks);
  }
  pthread_mutex_lock (stripe);
  while (err == 0 &&
         (first = layer_next_absent (layer, first, end)) < end &&
         !atomic_load (&layer->dead)) {
    uint64_t next = layer_next_present (layer, first, end);

    err = copy_run (disk, layer, first, next - first);
    first = next;
  }
  pthread_mutex_unlock (stripe);
  return err;
}

/* A hole of the base, as seen a moment ago: what is still absent is zero, since
 * only writes that preserve first could have changed it. */
static int
preserve_hole (Disk *disk, Layer *layer, uint64_t first, uint64_t end)
{
  int err = layer_record (layer, first, end - first, PRESENCE_ZERO);

  while (err == 0 && first < end) {
    uint64_t stop = MIN (end, (first / STRIPE_BLOCKS + 1) * STRIPE_BLOCKS);
    pthread_mutex_t *stripe = stripe_of (disk, first);

    pthread_mutex_lock (stripe);
    while (err == 0 &&
           (first = layer_next_absent (layer, first, stop)) < stop) {
      uint64_t next = layer_next_present (layer, first, stop);

      err = layer_mark (layer, first, next - first, PRESENCE_ZERO);
      first = next;
    }
    pthread_mutex_unlock (stripe);
  }
  return err;
}

static int
preserve_blocks (Disk *disk, Layer *layer, uint64_t first, uint64_t end)
{
  int err = 0;

  while (err == 0 && first < end && !atomic_load (&layer->dead)) {
    uint64_t stop = MIN (end, (first / STRIPE_BLOCKS + 1) * STRIPE_BLOCKS);

    err = preserve_stripe (disk, layer, first, stop);
    first = stop;
  }
  return err;
}

/* Large ranges (mkfs, write zeroes): skip the base's holes without reading. */
static int
preserve_large (Disk *disk, Layer *layer, uint64_t first, uint64_t end)
{
  int err = 0;

  while (err == 0 && (first = layer_next_absent (layer, first, end)) < end) {
    uint64_t offset = first * LAYER_BLOCK;
    uint64_t limit = MIN (end * LAYER_BLOCK, layer->size) - offset;
    uint64_t run, next;
    bool hole;

    err = disk->base->ops->run (disk->base, offset, limit, &run, &hole);
    if (err < 0) {              /* then reading tells */
      run = limit;
      hole = false;
    }
    /* Whole blocks: a hole is rounded inwards, data outwards. */
    next = run == limit ? end
      : hole ? (offset + run) / LAYER_BLOCK
      : (offset + run + LAYER_BLOCK - 1) / LAYER_BLOCK;
    if (next == first) {
      next = first + 1;
      hole = false;
    }
    if (hole)
      err = preserve_hole (disk, layer, first, next);
    else
      err = preserve_blocks (disk, layer, first, next);
    first = next;
    if (atomic_load (&layer->dead))
      break;
  }
  return err;
}

/* Preserving failed with err: the snapshot's policy decides. */
static int
preserve_failed (Disk *disk, Layer *layer, int err, const char *what)
{
  bool guest_fails = false;

  pthread_mutex_lock (&disk->snap_lock);
  for (unsigned i = 0; i < disk->snapshots->len; i++) {
    Snapshot *snap = disk->snapshots->pdata[i];
    SnapshotState state = atomic_load (&snap->state);

    if (snap->on_error == FLEECE_BREAK_GUEST_WRITE &&
        (state == SNAPSHOT_LIVE || state == SNAPSHOT_PREPARED) &&
        (err != -EDQUOT || snapshot_over_limit_locked (snap)))
      guest_fails = true;
  }
  pthread_mutex_unlock (&disk->snap_lock);
  if (guest_fails)
    return err == -EDQUOT ? -ENOSPC : err;
  if (err == -EDQUOT) {
    disk_break_over_limit (disk);
    return -EAGAIN;             /* for the others, or another thread gave back
                                 * what it had taken of the budget */
  }
  disk_break_snapshots (disk, layer, -err, what);
  return 0;
}

/* The watermark: is so little left of the scratch file system that what else
 * lives there, or the next copies, would fail soon?  Looked at now and then. */
static bool
space_is_low (Disk *disk, const Layer *layer)
{
  if (atomic_load_explicit (&disk->unchecked_blocks, memory_order_relaxed) <
      SPACE_CHECK_BLOCKS)
    return false;
  atomic_store (&disk->unchecked_blocks, 0);
  return disk_space_is_low (disk, layer->path);
}

int
disk_preserve (Disk *disk, const Segment *seg, uint64_t offset,
               uint64_t length)
{
  uint64_t first = offset / LAYER_BLOCK;
  Layer *layer = seg->layer;
  /* What the disk has grown by since the layer was made, no snapshot needs: one of
   * a larger disk that has shrunk before has it in an older layer. */
  uint64_t end = MIN ((offset + length - 1) / LAYER_BLOCK + 1,
                      layer->nr_blocks);
  int err;

  do {
    if (atomic_load (&layer->dead) || first >= end ||
        layer_next_absent (layer, first, end) == end)
      return 0;
    if (atomic_load (&disk->drained) < seg->layer_counter &&
        !inflight_wait_older (disk->inflight, seg->layer_counter,
                              first * LAYER_BLOCK, end * LAYER_BLOCK,
                              OVERLAP_TIMEOUT_MS))
      err = -ETIMEDOUT;
    else if (end - first > 2 * STRIPE_BLOCKS)
      err = preserve_large (disk, layer, first, end);
    else
      err = preserve_blocks (disk, layer, first, end);
    if (err < 0)
      err = preserve_failed (disk, layer, err, "cannot preserve old data");
    else if (space_is_low (disk, layer))
      err = preserve_failed (disk, layer, -ENOSPC,
                             "the scratch reserve would be used up");
  } while (err == -EAGAIN);
  return err;
}
