/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* overlay-copy.c - the data of a move.
 *
 * Down (commit): layers below the top do not change, nor does anybody see what
 * happens in the target, since the layers above it have all that is written
 * there.  Of the top, guests change what has been copied: so from before the
 * first copy on they write to both, with the stripe held (overlay_mirror_*), as
 * is every copy, so that copies and writes are in the same order in both.
 *
 * Up (stream): a block that the layer has by now is left alone.
 */
#include <config.h>

#include <errno.h>
#include <isa-l.h>

#include "fleece/overlay-move.h"

#define HOLE_STEP (UINT64_C (256) << 20)

/* --- writes of guests */

static int
mirror_failed (OverlayMove *move, uint64_t offset, int err)
{
  uint64_t at = atomic_load (&move->failed_at);

  if (err == 0)
    return 0;
  if (atomic_load (&move->settling))
    return err;
  atomic_store (&move->failed_err, err);
  while (offset < at &&
         !atomic_compare_exchange_weak (&move->failed_at, &at, offset))
    ;
  return 0;
}

int
overlay_mirror_write (OverlayMove *move, const void *buf, size_t length,
                      uint64_t offset, bool dsync)
{
  StorageFile *to = move->target;

#ifdef BROKEN_OVERLAY_MIRROR    /* see test-crash-controls.sh */
  return 0;
#endif
  return mirror_failed (move, offset,
                        to->ops->pwrite (to, buf, length, offset, dsync));
}

static int
clear_target (OverlayMove *move, uint64_t offset, uint64_t length, bool punch)
{
  return move->target_overlay != NULL
    ? overlay_port_zero (move->target_overlay, offset, length, punch)
    : storage_file_clear (move->target, offset, length, punch);
}

int
overlay_mirror_zero (OverlayMove *move, uint64_t offset, uint64_t length,
                     bool punch)
{
  return mirror_failed (move, offset,
                        clear_target (move, offset, length, punch));
}

/* What it left in the source is what is to be in the target. */
int
overlay_mirror_missed (OverlayMove *move, uint64_t offset, int err)
{
  mirror_failed (move, offset, err);
  return err;
}

int
overlay_mirror_sync (OverlayMove *move)
{
  return atomic_load (&move->settling) ? move->target->ops->sync (move->target)
    : 0;
}

/* --- a piece */

/* Bytes [offset, offset + length): the piece at offset that comes from one
 * place, at most a stripe of data, or a longer hole. */
static int
find_piece (const OverlayMove *move, uint64_t offset, uint64_t length,
            uint64_t *out_length, bool *out_hole)
{
  const Chain *chain = move->chain;
  int err = chain_run (chain, move->end, offset, MIN (length, HOLE_STEP),
                       out_length, out_hole);

  /* Whole blocks, but for the last one. */
  if (err == 0 && *out_length < length && *out_hole)
    *out_length -= (offset + *out_length) % OVERLAY_BLOCK;
  if (err == 0 && *out_length > 0 && *out_hole)
    return 0;
  *out_hole = false;
  *out_length = MIN (length, OVERLAY_STRIPE_BYTES
                     - offset % OVERLAY_STRIPE_BYTES);
  return err;
}

/* The end of the run of blocks at block, in which each is in one of the
 * layers. */
static uint64_t
end_of_run (const OverlayMove *move, uint64_t block, uint64_t end)
{
  uint64_t b = block, before;

  do {
    before = b;
    for (unsigned i = move->first; i < move->end; i++)
      b = overlay_map_next (move->chain->ov[i]->map, b, end, false);
  } while (b != before && b < end);
  return b;
}

/* Of what is to be moved at offset or behind it: where it begins (move->length:
 * nothing is left), and how long that is. */
static uint64_t
find_next (const OverlayMove *move, uint64_t offset, uint64_t *out_length)
{
  uint64_t end = (move->length + OVERLAY_BLOCK - 1) / OVERLAY_BLOCK;
  uint64_t block = offset / OVERLAY_BLOCK, stop = end;

  while (block < end) {
    if (move->into != NULL)
      block = overlay_map_next (move->into->map, block, end, false);
    stop = end;
    if (move->into != NULL)
      stop = overlay_map_next (move->into->map, block, end, true);
    if (!move->whole) {
      uint64_t first = chain_next (move->chain, move->first, move->end, block,
                                   stop);

      if (first == stop) {
        block = stop;
        continue;
      }
      block = first;
      stop = end_of_run (move, block, stop);
    }
    break;
  }
  if (block >= end)
    return move->length;
  *out_length = MIN (stop * OVERLAY_BLOCK, move->length)
    - block * OVERLAY_BLOCK;
  return block * OVERLAY_BLOCK;
}

static int
put_down (OverlayMove *move, const char *buf, uint64_t offset, uint64_t length)
{
  if (isal_zero_detect ((void *) buf, length) == 0)
    return clear_target (move, offset, length, true);
  return move->target->ops->pwrite (move->target, buf, length, offset, false);
}

static int
put_up (OverlayMove *move, const char *buf, uint64_t offset, uint64_t length)
{
  Overlay *ov = move->into;
  uint64_t first = offset / OVERLAY_BLOCK;
  uint64_t nr = (length + OVERLAY_BLOCK - 1) / OVERLAY_BLOCK;
  int err;

  if (isal_zero_detect ((void *) buf, length) == 0)
    return overlay_cover (ov, offset, length);
  err = overlay_map_reserve_data (ov->map, first, nr);
  if (err == 0) {
    overlay_map_note (ov->map, first, buf, length, true);
    err = ov->file->ops->pwrite (ov->file, buf, length, offset, false);
  }
  if (err == 0)
    overlay_map_set (ov->map, first, nr);
  return err;
}

/* Is it still so?  Guests write to a layer that is streamed into. */
static bool
still_absent (const OverlayMove *move, uint64_t offset, uint64_t length)
{
  uint64_t first = offset / OVERLAY_BLOCK;
  uint64_t end = (offset + length - 1) / OVERLAY_BLOCK + 1;

  return overlay_map_next (move->into->map, first, end, true) == end;
}

static int
copy_locked (OverlayMove *move, uint64_t offset, uint64_t length, bool hole,
             bool *out_write)
{
  g_autofree char *buf = NULL;
  int err;

  *out_write = false;
  if (hole) {
    *out_write = true;
    return move->into != NULL ? overlay_cover (move->into, offset, length)
      : clear_target (move, offset, length, true);
  }
  buf = g_malloc (length);
  err = chain_pread (move->chain, move->end, buf, length, offset);
  if (err == 0) {
    *out_write = true;
    err = (move->into != NULL ? put_up : put_down) (move, buf, offset, length);
  }
  return err;
}

/* The piece at offset of length bytes that are to be moved: *out_done of
 * them. */
static int
copy_piece (OverlayMove *move, uint64_t offset, uint64_t length,
            uint64_t *out_done, bool *out_hole, bool *out_write)
{
  const Chain *chain = move->chain;
  Overlay *source = move->into != NULL ? move->into
    : move->active ? chain->ov[chain->nr - 1] : NULL;
  int err;

  *out_write = false;
  err = find_piece (move, offset, length, out_done, out_hole);
  if (err < 0)
    return err;
  if (source != NULL) {
    uint64_t locked = *out_done;

    overlay_lock_range (source, offset, locked);
    if (move->into != NULL && !still_absent (move, offset, *out_done))
      *out_done = 0;            /* look again */
    else {
      /* What was a hole may have been written to. */
      err = find_piece (move, offset, *out_done, out_done, out_hole);
      if (err == 0)
        err = copy_locked (move, offset, *out_done, *out_hole, out_write);
    }
    overlay_unlock_range (source, offset, locked);
    return err;
  }
  return copy_locked (move, offset, *out_done, *out_hole, out_write);
}

int
overlay_move_step (OverlayMove *move, uint64_t max_bytes,
                   uint64_t *out_copied, bool *out_write)
{
  uint64_t failed = atomic_exchange (&move->failed_at, UINT64_MAX);
  uint64_t copied = 0, looked = 0;

  *out_write = false;
  *out_copied = 0;
  if (failed != UINT64_MAX) {
    move->offset = MIN (move->offset, failed);
    *out_write = true;
    return atomic_load (&move->failed_err);
  }
  while (move->offset < move->length && copied < max_bytes &&
         looked < 4 * HOLE_STEP) {
    uint64_t length = 0, done;
    uint64_t at = find_next (move, move->offset, &length);
    bool hole = false;
    int err;

    move->offset = at;
    if (at == move->length)
      break;
    err = copy_piece (move, at, length, &done, &hole, out_write);
    *out_copied = copied;
    if (err < 0)
      return err;
    move->offset = at + done;
    if (hole)
      looked += done;
    else
      copied += done;
  }
  *out_copied = copied;
  *out_write = false;
  return move->offset < move->length;
}
