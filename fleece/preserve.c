/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* preserve.c - copy-before-write: durability.md A4.
 *
 * A block is preserved into the layer of the write's own epoch, not into the
 * newest one: a late write of an older epoch that went into the newer layer
 * would be missing in the older snapshot (H6b).  And a write of a newer epoch
 * first waits for overlapping older ones, before it takes any lock: else it
 * would preserve content that the older write is still changing, or deadlock.
 *
 * A scratch file may hang for ever, and the guest must not (durability.md 5):
 * what is done to it is done by a copier, which is waited for until the
 * snapshot's timeout.  A copy that was given up on may still be stored some
 * day: it is of old data, and right, since whoever overwrites them either found
 * the layer dead, and all its snapshots broken, or has preserved them itself,
 * after the copy's end.
 */
#include <config.h>

#include <errno.h>
#include <string.h>

#include "bitmap/fail-point.h"
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
  StorageFile *live = disk->live;

  if (length > left) {
    memset (buf + left, 0, length - left);
    length = left;
  }
  return live->ops->pread (live, buf, length, offset);
}

/* Goes on alone if the scratch file hangs: owns all that it touches. */
typedef struct {
  CopierJob job;
  Layer *layer;                 /* a reference */
  uint64_t block, nr;
  Presence what;                /* to be recorded, of a job without data */
  bool look_at_space;
  bool reserve_set;
  uint64_t reserve;             /* as in Fleece */
  char buf[];
} Copy;

/* What a copy returns when it has not begun: the reserve would be used. */
#define SPACE_IS_LOW 1

static void
copy_free (CopierJob *job)
{
  Copy *copy = (Copy *) job;

  layer_unref (copy->layer);
  g_free (copy);
}

static int
copy_data (CopierJob *job)
{
  Copy *copy = (Copy *) job;
  Layer *layer = copy->layer;

  if (copy->look_at_space &&
      space_is_low (layer->storage, layer->path, copy->reserve_set,
                    copy->reserve))
    return SPACE_IS_LOW;
  return layer_store (layer, copy->block, copy->nr, copy->buf);
}

static int
copy_record (CopierJob *job)
{
  Copy *copy = (Copy *) job;

  return layer_record (copy->layer, copy->block, copy->nr, copy->what);
}

static Copy *
copy_new (Disk *disk, Layer *layer, uint64_t block, uint64_t nr,
          size_t buf_bytes)
{
  Copy *copy = g_malloc (sizeof *copy + buf_bytes);

  memset (copy, 0, sizeof *copy);
  copy->job.free = copy_free;
  copy->layer = layer_ref (layer);
  copy->block = block;
  copy->nr = nr;
  copy->reserve_set = disk->fleece->scratch_reserve_set;
  copy->reserve = disk->fleece->scratch_reserve;
  return copy;
}

/* While one copy hangs all others fail: else those of a guest that goes on
 * trying would pile up. */
static int
copy_run (Disk *disk, Copy *copy, CopierDeadline deadline)
{
  Layer *layer = copy->layer;

  if (deadline != 0 && atomic_load (&layer->late_copies) > 0) {
    copy_free (&copy->job);
    return -ETIMEDOUT;
  }
  return copier_run (disk->fleece->copier, &copy->job, deadline,
                     &layer->late_copies);
}

/* Before layer_mark. */
static int
record (Disk *disk, Layer *layer, uint64_t block, uint64_t nr, Presence what,
        CopierDeadline deadline)
{
  Copy *copy;

  if (layer->log == NULL)
    return 0;
  copy = copy_new (disk, layer, block, nr, 0);
  copy->job.fn = copy_record;
  copy->what = what;
  return copy_run (disk, copy, deadline);
}

/* The watermark: is so little left of the scratch file system that what else
 * lives there, or the next copies, would fail soon?  Looked at now and then. */
static bool
time_to_look_at_space (Disk *disk, uint64_t nr)
{
  if (atomic_fetch_add (&disk->unchecked_blocks, nr) + nr < SPACE_CHECK_BLOCKS)
    return false;
  atomic_store (&disk->unchecked_blocks, 0);
  return true;
}

/* Blocks [block, block + nr) are absent and inside one stripe, which is
 * held. */
static int
preserve_run (Disk *disk, Layer *layer, uint64_t block, uint64_t nr,
              CopierDeadline deadline)
{
  Copy *copy = copy_new (disk, layer, block, nr, nr * LAYER_BLOCK);
  int err;

  FAIL_POINT ("A4-read");
  err = read_old (disk, layer, block, nr, copy->buf);
  if (err < 0) {
    copy_free (&copy->job);
    if (nr == 1) {
      /* The guest may be overwriting a bad sector: that must succeed. */
      err = record (disk, layer, block, 1, PRESENCE_UNREADABLE, deadline);
      return err < 0 ? err : layer_mark (layer, block, 1,
                                         PRESENCE_UNREADABLE);
    }
    err = 0;
    for (uint64_t i = 0; err == 0 && i < nr; i++)       /* which ones? */
      err = preserve_run (disk, layer, block + i, 1, deadline);
    return err;
  }
  copy->job.fn = copy_data;
  copy->look_at_space = time_to_look_at_space (disk, nr);
  err = copy_run (disk, copy, deadline);
  if (err == SPACE_IS_LOW)      /* the next one looks as well */
    atomic_store (&disk->unchecked_blocks, SPACE_CHECK_BLOCKS);
  return err;
}

/* Preserve what is absent of [first, end), all in one stripe. */
static int
preserve_stripe (Disk *disk, Layer *layer, uint64_t first, uint64_t end,
                 CopierDeadline deadline)
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

    err = preserve_run (disk, layer, first, next - first, deadline);
    first = next;
  }
  pthread_mutex_unlock (stripe);
  return err;
}

/* A hole of the base, as seen a moment ago: what is still absent is zero, since
 * only writes that preserve first could have changed it. */
static int
preserve_hole (Disk *disk, Layer *layer, uint64_t first, uint64_t end,
               CopierDeadline deadline)
{
  int err = record (disk, layer, first, end - first, PRESENCE_ZERO, deadline);

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
preserve_blocks (Disk *disk, Layer *layer, uint64_t first, uint64_t end,
                 CopierDeadline deadline)
{
  int err = 0;

  while (err == 0 && first < end && !atomic_load (&layer->dead)) {
    uint64_t stop = MIN (end, (first / STRIPE_BLOCKS + 1) * STRIPE_BLOCKS);

    err = preserve_stripe (disk, layer, first, stop, deadline);
    first = stop;
  }
  return err;
}

/* Large ranges (mkfs, write zeroes): skip the base's holes without reading. */
static int
preserve_large (Disk *disk, Layer *layer, uint64_t first, uint64_t end,
                CopierDeadline deadline)
{
  int err = 0;

  while (err == 0 && (first = layer_next_absent (layer, first, end)) < end) {
    uint64_t offset = first * LAYER_BLOCK;
    uint64_t limit = MIN (end * LAYER_BLOCK, layer->size) - offset;
    StorageFile *live = disk->live;
    uint64_t run, next;
    bool hole;

    err = live->ops->run (live, offset, limit, &run, &hole);
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
      err = preserve_hole (disk, layer, first, next, deadline);
    else
      err = preserve_blocks (disk, layer, first, next, deadline);
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
    return err == -EDQUOT ? -ENOSPC : err == -ETIMEDOUT ? -EIO : err;
  if (err == -EDQUOT) {
    if (disk_break_over_limit (disk) < 0)
      return -EIO;
    return -EAGAIN;             /* for the others, or another thread gave back
                                 * what it had taken of the budget */
  }
  return disk_break_snapshots (disk, layer, -err, what);
}

static int
preserve (Disk *disk, const Segment *seg, uint64_t first, uint64_t end)
{
  int64_t timeout_ms = atomic_load (&disk->cbw_timeout_ms);
  CopierDeadline deadline
    = timeout_ms == 0 ? 0 : copier_now_ms () + timeout_ms;

  if (end - first > 2 * STRIPE_BLOCKS)
    return preserve_large (disk, seg->layer, first, end, deadline);
  return preserve_blocks (disk, seg->layer, first, end, deadline);
}

/* For writes of older epochs to what is about to be copied: of a durable layer
 * whole stripes, see preserve_stripe. */
static bool
wait_for_older (Disk *disk, const Segment *seg, uint64_t first, uint64_t end)
{
  if (seg->layer->log != NULL) {
    first = first / STRIPE_BLOCKS * STRIPE_BLOCKS;
    end = (end + STRIPE_BLOCKS - 1) / STRIPE_BLOCKS * STRIPE_BLOCKS;
  }
  return inflight_wait_older (disk->inflight, seg->layer_counter,
                              first * LAYER_BLOCK, end * LAYER_BLOCK,
                              OVERLAP_TIMEOUT_MS);
}

int
disk_preserve (Disk *disk, const Segment *seg, uint64_t offset,
               uint64_t length)
{
  uint64_t first = offset / LAYER_BLOCK;
  Layer *layer = seg->layer;
  /* What the disk has grown by since the layer was made, no snapshot needs: one
   * of a larger disk that has shrunk before has it in an older layer. */
  uint64_t end = MIN ((offset + length - 1) / LAYER_BLOCK + 1,
                      layer->nr_blocks);
  int err;

  do {
    if (atomic_load (&layer->dead) || first >= end ||
        layer_next_absent (layer, first, end) == end)
      return 0;
    if (atomic_load (&disk->drained) < seg->layer_counter &&
        !wait_for_older (disk, seg, first, end))
      err = preserve_failed (disk, layer, -ETIMEDOUT,
                             "an older write to the same place hangs");
    else {
      err = preserve (disk, seg, first, end);
      if (err == SPACE_IS_LOW)
        err = preserve_failed (disk, layer, -ENOSPC,
                               "the scratch reserve would be used up");
      else if (err == -ETIMEDOUT)
        err = preserve_failed (disk, layer, err,
                               "old data cannot be preserved in time");
      else if (err < 0)
        err = preserve_failed (disk, layer, err, "cannot preserve old data");
    }
  } while (err == -EAGAIN);
  return err;
}
