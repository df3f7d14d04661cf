/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* overlay.c - writes to one overlay.
 *
 * What it has is written in place.  A block that it does not have is written
 * whole, with what is below it around the bytes that are new, and then counts
 * as present; that is done with the block's stripe held, else two writes to
 * parts of one block would each keep the old bytes of the other's.  First
 * writes that were sent to what is below, before this overlay was there, have
 * to be done (as in preserve.c): what they wrote would be hidden by what was
 * read before.
 *
 * A zeroed or trimmed block is present, and a hole of the file.
 */
#include <config.h>

#include <errno.h>
#include <string.h>

#include "fleece/overlay-internal.h"

/* How long a write waits for one that was sent below before, and hangs. */
#define OVERLAP_TIMEOUT_MS 30000

/* Zeroing takes all stripes above this. */
#define MANY_STRIPES 8u
#define ZERO_STEP (UINT64_C (1) << 30)

/* --- locks */

static bool
takes_all (uint64_t offset, uint64_t length)
{
  return (offset + length - 1) / OVERLAY_STRIPE_BYTES
    - offset / OVERLAY_STRIPE_BYTES >= MANY_STRIPES;
}

static uint64_t
stripes_of (uint64_t offset, uint64_t length)
{
  uint64_t set = 0;

  if (takes_all (offset, length))
    return (UINT64_C (1) << OVERLAY_STRIPES) - 1;
  for (uint64_t s = offset / OVERLAY_STRIPE_BYTES;
       s <= (offset + length - 1) / OVERLAY_STRIPE_BYTES; s++)
    set |= UINT64_C (1) << s % OVERLAY_STRIPES;
  return set;
}

void
overlay_lock_range (Overlay *ov, uint64_t offset, uint64_t length)
{
  for (uint64_t set = stripes_of (offset, length); set != 0; set &= set - 1)
    pthread_mutex_lock (&ov->stripe[__builtin_ctzll (set)]);
}

void
overlay_unlock_range (Overlay *ov, uint64_t offset, uint64_t length)
{
  for (uint64_t set = stripes_of (offset, length); set != 0; set &= set - 1)
    pthread_mutex_unlock (&ov->stripe[__builtin_ctzll (set)]);
}

/* --- what is below */

/* Older writes to these blocks may be on their way to what is below. */
static int
wait_for_older (Overlay *ov, uint64_t offset, uint64_t length)
{
  Disk *disk = ov->disk;
  uint64_t first = offset / OVERLAY_BLOCK * OVERLAY_BLOCK;

#ifdef BROKEN_OVERLAY_WAIT      /* see test-crash-controls.sh */
  return 0;
#endif
  if (atomic_load (&disk->drained) >= ov->first_counter ||
      inflight_wait_older (disk->inflight, ov->first_counter, first,
                           offset + length + OVERLAY_BLOCK,
                           OVERLAP_TIMEOUT_MS))
    return 0;
  return -EIO;
}

int
overlay_read_below (Overlay *ov, char *buf, uint64_t from, uint64_t to)
{
  OverlayStack *stack = ov->disk->stack;
  struct inflight_slot *slot;
  const Chain *chain;
  int index, err;

  if (ov->zero) {
    memset (buf, 0, to - from);
    return 0;
  }
  chain = overlay_stack_enter (stack, &slot);
  index = chain_index (chain, ov);
  /* A detached one is over all. */
  err = chain_pread (chain, index < 0 ? chain->nr : (unsigned) index, buf,
                     to - from, from);
  overlay_stack_leave (stack, slot);
  return err;
}

/* --- writing */

static void
set_present (Overlay *ov, uint64_t first, uint64_t end)
{
  overlay_map_set (ov->map, first, end - first);
}

/* Bytes [offset, offset + length), in blocks [first, end) none of which this
 * has; stripes held. */
static int
write_absent (Overlay *ov, const char *buf, size_t length, uint64_t offset,
              uint64_t first, uint64_t end, bool dsync)
{
  uint64_t from = first * OVERLAY_BLOCK;
  uint64_t to = MIN (end * OVERLAY_BLOCK, atomic_load (&ov->port.size));
  int err = overlay_map_reserve_data (ov->map, first, end - first);

  if (err < 0)
    return err;
  to = MAX (to, offset + length);
  if (from == offset && to == offset + length) {
    overlay_map_note (ov->map, first, buf, length, true);
    err = ov->file->ops->pwrite (ov->file, buf, length, offset, dsync);
  }
  else {
    g_autofree char *whole = g_malloc (to - from);

    if (from < offset)
      err = overlay_read_below (ov, whole, from, offset);
    if (err == 0 && offset + length < to)
      err = overlay_read_below (ov, whole + (offset + length - from),
                                offset + length, to);
    if (err == 0) {
      memcpy (whole + (offset - from), buf, length);
      overlay_map_note (ov->map, first, whole, to - from, true);
      err = ov->file->ops->pwrite (ov->file, whole, to - from, from, dsync);
    }
  }
  if (err == 0)
    set_present (ov, first, end);
  return err;
}

/* The same of blocks that it has, but not durably. */
static int
write_unstable (Overlay *ov, const char *buf, size_t length, uint64_t offset,
                uint64_t first, uint64_t end, bool dsync)
{
  uint64_t from = first * OVERLAY_BLOCK;
  uint64_t to = MAX (MIN (end * OVERLAY_BLOCK, atomic_load (&ov->file->size)),
                     offset + length);
  g_autofree char *whole = g_malloc (to - from);
  int err = overlay_map_reserve_data (ov->map, first, end - first);

  if (err == 0)
    err = ov->file->ops->pread (ov->file, whole, to - from, from);
  if (err < 0)
    return err;
  memcpy (whole + (offset - from), buf, length);
  overlay_map_note (ov->map, first, whole, to - from, false);
  err = ov->file->ops->pwrite (ov->file, buf, length, offset, dsync);
  if (err == 0)
    overlay_map_note (ov->map, first, whole, to - from, true);
  return err;
}

/* Does this have all blocks of the range, for good? */
static bool
has_all (const Overlay *ov, uint64_t offset, uint64_t length)
{
  uint64_t first = offset / OVERLAY_BLOCK;
  uint64_t end = (offset + length - 1) / OVERLAY_BLOCK + 1;

  return overlay_map_next_durable (ov->map, first, end, false) == end;
}

/* All in one stripe, which is held. */
static int
write_stripe (Overlay *ov, const char *buf, size_t length, uint64_t offset,
              bool dsync)
{
  int err = 0;

  while (err == 0 && length > 0) {
    uint64_t first = offset / OVERLAY_BLOCK;
    uint64_t end = (offset + length - 1) / OVERLAY_BLOCK + 1;
    bool has = overlay_map_has (ov->map, first);
    bool durable = overlay_map_next_durable (ov->map, first, first + 1, false)
      > first;
    uint64_t stop = has ? overlay_map_next_durable (ov->map, first, end,
                                                    !durable) : end;
    uint64_t n;

    stop = overlay_map_next (ov->map, first, stop, !has);
    n = MIN (stop * OVERLAY_BLOCK - offset, length);
    if (durable)
      err = ov->file->ops->pwrite (ov->file, buf, n, offset, dsync);
    else if (has)
      err = write_unstable (ov, buf, n, offset, first, stop, dsync);
    else
      err = write_absent (ov, buf, n, offset, first, stop, dsync);
    offset += n;
    buf += n;
    length -= n;
  }
  return err;
}

static int
sync_presence (Overlay *ov)
{
  return overlay_map_is_durable (ov->map) ? 0 : overlay_map_sync (ov->map);
}

int
overlay_port_write (Overlay *ov, const void *data, size_t length,
                    uint64_t offset, bool dsync)
{
  OverlayMove *mirror = atomic_load (&ov->mirror);
  const char *buf = data;
  int err = 0;

  if (length == 0)
    return 0;
  if (mirror == NULL && has_all (ov, offset, length))
    err = ov->file->ops->pwrite (ov->file, buf, length, offset, dsync);
  else {
    err = wait_for_older (ov, offset, length);
    for (size_t n; err == 0 && length > 0; offset += n, buf += n, length -= n) {
      n = MIN (length, OVERLAY_STRIPE_BYTES - offset % OVERLAY_STRIPE_BYTES);
      overlay_lock_range (ov, offset, n);
      err = write_stripe (ov, buf, n, offset, dsync);
      if (mirror != NULL)
        err = err < 0 ? overlay_mirror_missed (mirror, offset, err)
          : overlay_mirror_write (mirror, buf, n, offset, dsync);
      overlay_unlock_range (ov, offset, n);
    }
  }
  return err == 0 && (dsync || ov->write_through) ? sync_presence (ov) : err;
}

int
storage_file_clear (StorageFile *file, uint64_t offset, uint64_t length,
                    bool punch)
{
  static const char zeroes[65536];
  int err = punch ? file->ops->punch (file, offset, length) : -EOPNOTSUPP;

  if (err == -EOPNOTSUPP)
    err = file->ops->zero (file, offset, length);
  if (err != -EOPNOTSUPP)
    return err;
  err = 0;
  for (uint64_t n; err == 0 && length > 0; offset += n, length -= n) {
    n = MIN (length, sizeof zeroes);
    err = file->ops->pwrite (file, zeroes, n, offset, false);
  }
  return err;
}

/* Stripes held. */
static int
zero_locked (Overlay *ov, uint64_t offset, uint64_t length, bool punch)
{
  static const char zeroes[OVERLAY_BLOCK];
  uint64_t size = atomic_load (&ov->port.size), end = offset + length;
  uint64_t head = MIN ((offset + OVERLAY_BLOCK - 1) / OVERLAY_BLOCK
                       * OVERLAY_BLOCK, end);
  uint64_t tail = end >= size ? end : end / OVERLAY_BLOCK * OVERLAY_BLOCK;
  int err = 0;

  if (head > tail)              /* inside one block */
    return write_stripe (ov, zeroes, length, offset, false);
  if (head < tail) {
    uint64_t first = head / OVERLAY_BLOCK;
    uint64_t stop = (tail + OVERLAY_BLOCK - 1) / OVERLAY_BLOCK;

    err = overlay_map_reserve (ov->map, first, stop - first);
    /* Also what is absent: a power loss may have left anything there. */
    overlay_map_note_zero (ov->map, first, stop - first, false);
    if (err == 0)
      err = storage_file_clear (ov->file, head, tail - head, punch);
    if (err == 0) {
      overlay_map_note_zero (ov->map, first, stop - first, true);
      set_present (ov, first, stop);
    }
  }
  if (err == 0 && offset < head)
    err = write_stripe (ov, zeroes, head - offset, offset, false);
  if (err == 0 && tail < end)
    err = write_stripe (ov, zeroes, end - tail, tail, false);
  return err;
}

int
overlay_port_zero (Overlay *ov, uint64_t offset, uint64_t length, bool punch)
{
  OverlayMove *mirror = atomic_load (&ov->mirror);
  int err = 0;

  while (err == 0 && length > 0) {
    uint64_t n = MIN (length, ZERO_STEP);

    err = wait_for_older (ov, offset, n);
    if (err < 0)
      break;
    overlay_lock_range (ov, offset, n);
    err = zero_locked (ov, offset, n, punch);
    if (mirror != NULL)
      err = err < 0 ? overlay_mirror_missed (mirror, offset, err)
        : overlay_mirror_zero (mirror, offset, n, punch);
    overlay_unlock_range (ov, offset, n);
    offset += n;
    length -= n;
  }
  return err == 0 && ov->write_through ? sync_presence (ov) : err;
}

int
overlay_sync (Overlay *ov)
{
  OverlayMove *mirror = atomic_load (&ov->mirror);
  int err = overlay_map_sync (ov->map);

  if (err == 0 && !atomic_load (&ov->settled) && ov->below != NULL)
    err = ov->below->ops->sync (ov->below);
  if (err == 0 && mirror != NULL)
    err = overlay_mirror_sync (mirror);
  return err;
}

/* --- size */

int
overlay_cover (Overlay *ov, uint64_t offset, uint64_t length)
{
  uint64_t first = offset / OVERLAY_BLOCK;
  uint64_t end = (offset + length + OVERLAY_BLOCK - 1) / OVERLAY_BLOCK;
  int err = overlay_map_reserve (ov->map, first, end - first);

  while (err == 0 &&
         (first = overlay_map_next (ov->map, first, end, false)) < end) {
    uint64_t stop = overlay_map_next (ov->map, first, end, true);
    uint64_t from = first * OVERLAY_BLOCK;
    uint64_t to = MIN (stop * OVERLAY_BLOCK, atomic_load (&ov->file->size));

    if (from < to)
      err = storage_file_clear (ov->file, from, to - from, true);
    if (err == 0)
      set_present (ov, first, stop);
    first = stop;
  }
  return err;
}

/* What is added reads as zeroes whatever is below: it must be here, and durably
 * before the file has its new length, by which a next start goes. */
static int
grow (Overlay *ov, uint64_t from, uint64_t to)
{
  uint64_t block = from / OVERLAY_BLOCK;
  int err = overlay_map_reserve (ov->map, block,
                                 (to - 1) / OVERLAY_BLOCK + 1 - block);

  if (err == 0 && from % OVERLAY_BLOCK != 0 &&
      !overlay_map_has (ov->map, block)) {
    char buf[OVERLAY_BLOCK];
    uint64_t n = from % OVERLAY_BLOCK;

    err = overlay_read_below (ov, buf, from - n, from);
    overlay_lock_range (ov, from - n, n);
    if (err == 0)
      err = write_stripe (ov, buf, n, from - n, false);
    overlay_unlock_range (ov, from - n, n);
  }
  if (err == 0)
    err = overlay_cover (ov, from, to - from);
  return err == 0 ? overlay_map_sync (ov->map) : err;
}

int
overlay_set_size (Overlay *ov, uint64_t size)
{
  uint64_t from = atomic_load (&ov->file->size);
  /* The checksum of a last block is of what it has. */
  int err = size > from ? grow (ov, from, size) : overlay_map_sync (ov->map);

  if (err == 0)
    err = ov->file->ops->set_size (ov->file, size);
  if (err == 0)
    atomic_store (&ov->port.size, size);
  return err;
}

/* --- the port, as a StorageFile.  What is not to do with writes is not asked
 * of it. */

static int
port_pwrite (StorageFile *file, const void *buf, size_t length,
             uint64_t offset, bool dsync)
{
  return overlay_port_write ((Overlay *) file, buf, length, offset, dsync);
}

static int
port_sync (StorageFile *file)
{
  return overlay_sync ((Overlay *) file);
}

static int
port_punch (StorageFile *file, uint64_t offset, uint64_t length)
{
  return overlay_port_zero ((Overlay *) file, offset, length, true);
}

static int
port_zero (StorageFile *file, uint64_t offset, uint64_t length)
{
  return overlay_port_zero ((Overlay *) file, offset, length, false);
}

static const struct storage_file_ops port_ops = {
  .pwrite = port_pwrite,
  .sync = port_sync,
  .punch = port_punch,
  .zero = port_zero,
};

Overlay *
overlay_alloc (Disk *disk, const char *name, const char *path, uint64_t size)
{
  Overlay *ov = g_new0 (Overlay, 1);

  ov->port.ops = &port_ops;
  atomic_init (&ov->port.size, size);
  ov->disk = disk;
  ov->storage = disk->fleece->storage;
  ov->name = g_strdup (name);
  ov->path = g_strdup (path);
  ov->map_path = g_strconcat (path, ".map", NULL);
  ov->write_through = !runtime_is_trusted (disk->fleece->runtime);
  atomic_init (&ov->refs, 1);
  for (unsigned i = 0; i < OVERLAY_STRIPES; i++)
    pthread_mutex_init (&ov->stripe[i], NULL);
  return ov;
}

Overlay *
overlay_ref (Overlay *ov)
{
  atomic_fetch_add (&ov->refs, 1);
  return ov;
}

void
overlay_unref (Overlay *ov)
{
  if (ov == NULL || atomic_fetch_sub (&ov->refs, 1) > 1)
    return;
  overlay_map_free (ov->map, ov->keep_map);
  if (ov->file != NULL && !ov->file_given_away)
    ov->file->ops->close (ov->file);
  for (unsigned i = 0; i < OVERLAY_STRIPES; i++)
    pthread_mutex_destroy (&ov->stripe[i]);
  g_free (ov->map_path);
  g_free (ov->path);
  g_free (ov->name);
  g_free (ov);
}
