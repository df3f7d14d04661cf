/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* overlay-cut.c - a layer of new data comes onto a disk, in a cut.
 *
 * Its row says 'prepared' when guests begin to write to it, and 'live' with the
 * cut's transaction.  If the process dies in between, a start finds it
 * prepared: it goes if nothing is in it, else guests have used it and it stays,
 * without a name.  The same if the cut fails: it stays, without a name, until
 * what is in it has been moved down (overlay_settle).
 */
#include <config.h>

#include "bitmap/fail-point.h"
#include "fleece/cut-internal.h"
#include "fleece/overlay-internal.h"

bool
overlay_cut_check (const FleeceCutDisk *disks, size_t i, GError **error)
{
  for (size_t j = 0; disks[i].overlay != NULL && j < i; j++)
    if (disks[j].disk == disks[i].disk && disks[j].overlay != NULL) {
      g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                   "disk '%s' cannot have two new layers ('%s', '%s') at once",
                   disk_name (disks[i].disk), disks[j].overlay,
                   disks[i].overlay);
      return false;
    }
  return true;
}

bool
overlay_check_idle (Disk *disk, GError **error)
{
  OverlayStack *stack = disk->stack;
  bool busy;

  pthread_mutex_lock (&stack->lock);
  busy = stack->move != NULL;
  pthread_mutex_unlock (&stack->lock);
  if (busy)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_BUSY,
                 "disk '%s': data are being moved between its layers",
                 disk->name);
  return !busy;
}

bool
overlay_check_size_free (Disk *disk, GError **error)
{
  OverlayStack *stack = disk->stack;
  bool any;

  pthread_mutex_lock (&stack->lock);
  any = stack->detached->len > 0;
  pthread_mutex_unlock (&stack->lock);
  if (any)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_BUSY,
                 "disk '%s': a restore is pending", disk->name);
  return !any && overlay_check_idle (disk, error);
}

bool
overlay_cut_plan (CutPart *p, GError **error)
{
  return p->req->overlay == NULL ||
    overlay_plan (p->disk, p->req->overlay, p->req->overlay_file,
                  p->req->overlay_keep, false, &p->overlay_id,
                  &p->overlay_path, error);
}

bool
overlay_cut_prepare (CutPart *p, Segment *seg, GError **error)
{
  Disk *disk = p->disk;

  if (p->req->overlay == NULL)
    return true;
  p->overlay = overlay_prepare (disk, p->req->overlay, p->overlay_path,
                                p->overlay_id, p->req->overlay_keep, false,
                                disk->size, error);
  if (p->overlay == NULL)
    return false;
  FAIL_POINT ("O-row");
  if (!store_set_overlay_state (disk->fleece->cat, p->overlay_id,
                                OVERLAY_PREPARED, error))
    return false;
  p->overlay->below = seg->file;
  overlay_unref (seg->overlay);
  seg->overlay = overlay_ref (p->overlay);
  seg->file = &p->overlay->port;
  return true;
}

void
overlay_cut_undo (CutPart *p)
{
  if (p->overlay_id != 0)
    overlay_unprepare (p->disk, p->overlay, p->overlay_id, p->overlay_path,
                       p->req->overlay_keep);
  p->overlay = NULL;
}

void
overlay_cut_flip (CutPart *p, uint64_t counter)
{
  OverlayStack *stack = p->disk->stack;
  Overlay *ov = p->overlay;

  if (ov == NULL)
    return;
  FAIL_POINT ("O-first");
  ov->first_counter = counter;
  pthread_mutex_lock (&stack->lock);
  overlay_stack_publish (stack, chain_new (atomic_load (&stack->chain), ov, 0,
                                           0));
  pthread_mutex_unlock (&stack->lock);
}

void
overlay_cut_finish (CutPart *p)
{
  Overlay *ov = p->overlay;

  if (ov == NULL)
    return;
  atomic_store (&ov->state, OVERLAY_LIVE);
  /* K4 has synced what is below. */
  atomic_store (&ov->settled, true);
  overlay_stack_reap (p->disk->stack, 0);
  overlay_unref (ov);
}

void
overlay_cut_abort (CutPart *p)
{
  OverlayStack *stack = p->disk->stack;
  Overlay *ov = p->overlay;

  if (ov == NULL)
    return;
  /* If that fails, its state says the same. */
  store_set_overlay_anonymous (p->disk->fleece->cat, ov->id, NULL);
  pthread_mutex_lock (&stack->lock);
  g_clear_pointer (&ov->name, g_free);
  pthread_mutex_unlock (&stack->lock);
  overlay_unref (ov);
}
