/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* overlay-detached.c - overlays that no guest sees yet: I/O to them, and their
 * end, on the disk or nowhere.
 *
 * Applying one is a write to all that it has, at one instant: its blocks are
 * marked dirty and what is below is preserved for snapshots first, as for a
 * guest's write (A1 - A4), which takes as long as it takes; then the catalog
 * says that it is on the disk; then writes and reads go there.  If the process
 * dies between the last two, a start finds it applied, after all that guests
 * have written.
 */
#include <config.h>

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "bitmap/fail-point.h"
#include "fleece/overlay-internal.h"

/* Preserved at once, at most. */
#define APPLY_STEP (UINT64_C (1) << 20)

/* --- who uses it */

static int
enter (Overlay *ov)
{
  atomic_fetch_add (&ov->users, 1);
  if (atomic_load (&ov->state) == OVERLAY_DETACHED)
    return 0;
  atomic_fetch_sub (&ov->users, 1);
  return -ESHUTDOWN;
}

static int
leave (Overlay *ov, int err)
{
  atomic_fetch_sub (&ov->users, 1);
  return err;
}

/* Nobody else gets in, and nobody is in any more.  It happens once in its life,
 * to one that clients have been sent away from: so it may poll. */
static bool
close_entry (Overlay *ov, OverlayState state, GError **error)
{
  OverlayState detached = OVERLAY_DETACHED;
  unsigned left = ov->disk->fleece->drain_timeout_ms;

  if (!atomic_compare_exchange_strong (&ov->state, &detached, state)) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "layer '%s' of disk '%s' is not detached", ov->name,
                 ov->disk->name);
    return false;
  }
  for (; atomic_load (&ov->users) > 0 && left > 0; left--)
    g_usleep (1000);
  if (atomic_load (&ov->users) == 0)
    return true;
  atomic_store (&ov->state, OVERLAY_DETACHED);
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_TIMEOUT,
               "a request to layer '%s' of disk '%s' did not finish within %u "
               "ms", ov->name, ov->disk->name,
               ov->disk->fleece->drain_timeout_ms);
  return false;
}

/* --- I/O */

static bool
fits (const Overlay *ov, uint64_t offset, uint64_t length)
{
  uint64_t size = atomic_load (&ov->port.size);

  return length <= size && offset <= size - length;
}

/* The run at offset that it has, or has not. */
static uint64_t
run_at (const Overlay *ov, uint64_t offset, uint64_t length, bool *out_has)
{
  uint64_t first = offset / OVERLAY_BLOCK;
  uint64_t end = (offset + length - 1) / OVERLAY_BLOCK + 1;

  *out_has = overlay_map_has (ov->map, first);
  end = overlay_map_next (ov->map, first, end, !*out_has);
  return MIN (end * OVERLAY_BLOCK - offset, length);
}

int
overlay_pread (Overlay *ov, void *data, size_t length, uint64_t offset)
{
  char *buf = data;
  int err = enter (ov);

  if (err < 0)
    return err;
  if (!fits (ov, offset, length))
    return leave (ov, -EINVAL);
  while (err == 0 && length > 0) {
    bool has;
    uint64_t n = run_at (ov, offset, length, &has);

    err = has ? ov->file->ops->pread (ov->file, buf, n, offset)
      : overlay_read_below (ov, buf, offset, offset + n);
    buf += n;
    offset += n;
    length -= n;
  }
  return leave (ov, err);
}

int
overlay_pwrite (Overlay *ov, const void *buf, size_t length, uint64_t offset,
                bool fua)
{
  int err = enter (ov);

  if (err < 0)
    return err;
  return leave (ov, fits (ov, offset, length)
                ? overlay_port_write (ov, buf, length, offset, fua) : -ENOSPC);
}

int
overlay_zero (Overlay *ov, uint64_t length, uint64_t offset, unsigned flags)
{
  int err = enter (ov);

  if (err < 0)
    return err;
  err = fits (ov, offset, length)
    ? overlay_port_zero (ov, offset, length, (flags & DISK_MAY_PUNCH) != 0)
    : -ENOSPC;
  if (err == 0 && (flags & DISK_FUA))
    err = overlay_sync (ov);
  return leave (ov, err);
}

int
overlay_trim (Overlay *ov, uint64_t length, uint64_t offset, bool fua)
{
  int err = overlay_zero (ov, length, offset,
                          DISK_MAY_PUNCH | (fua ? DISK_FUA : 0));

  return err == -ENOSPC && !fits (ov, offset, length) ? -EINVAL : err;
}

int
overlay_flush (Overlay *ov)
{
  int err = enter (ov);

  return err < 0 ? err : leave (ov, overlay_sync (ov));
}

/* Of what is below it. */
static int
run_below (Overlay *ov, uint64_t offset, uint64_t length, uint64_t *out_run,
           bool *out_hole)
{
  OverlayStack *stack = ov->disk->stack;
  struct inflight_slot *slot;
  const Chain *chain;
  int err;

  if (ov->zero) {
    *out_run = length;
    *out_hole = true;
    return 0;
  }
  chain = overlay_stack_enter (stack, &slot);
  err = chain_run (chain, chain->nr, offset, length, out_run, out_hole);
  overlay_stack_leave (stack, slot);
  return err;
}

int
overlay_extents (Overlay *ov, uint64_t length, uint64_t offset,
                 FleeceRunFn fn, void *opaque)
{
  uint64_t size = atomic_load (&ov->port.size);
  int err = enter (ov);

  if (err < 0)
    return err;
  if (offset >= size && length > 0)
    err = -EINVAL;
  length = offset >= size ? 0 : MIN (length, size - offset);
  while (err == 0 && length > 0) {
    bool has, hole = false;
    uint64_t n = run_at (ov, offset, length, &has);

    err = has ? ov->file->ops->run (ov->file, offset, n, &n, &hole)
      : run_below (ov, offset, n, &n, &hole);
    if (err == 0)
      err = fn (opaque, n, hole);
    offset += n;
    length -= n;
  }
  return leave (ov, err);
}

/* --- begin and end */

const char *
overlay_name (const Overlay *ov)
{
  return ov->name;
}

Disk *
overlay_disk (const Overlay *ov)
{
  return ov->disk;
}

Overlay *
overlay_find (Disk *disk, const char *name)
{
  OverlayStack *stack = disk->stack;
  Overlay *found = NULL;

  pthread_mutex_lock (&stack->lock);
  for (unsigned i = 0; found == NULL && i < stack->detached->len; i++) {
    Overlay *ov = stack->detached->pdata[i];

    if (g_strcmp0 (ov->name, name) == 0)
      found = overlay_ref (ov);
  }
  pthread_mutex_unlock (&stack->lock);
  return found;
}

static bool
plan_alone (Disk *disk, const OverlayOptions *o, int64_t *out_id,
            char **out_path, GError **error)
{
  Catalog *cat = disk->fleece->cat;

  if (!catalog_begin (cat, error))
    return false;
  if (overlay_plan (disk, o->name, o->path, false, o->zero, out_id, out_path,
                    error))
    return catalog_commit (cat, error);
  catalog_rollback (cat);
  return false;
}

static bool
make (Disk *disk, const OverlayOptions *o, int64_t id, const char *path,
      bool (*commit) (void *, GError **), void *opaque, Overlay **out,
      GError **error)
{
  Catalog *cat = disk->fleece->cat;

  if (!catalog_begin (cat, error))
    return false;
  *out = overlay_prepare (disk, o->name, path, id, false, o->zero, disk->size,
                          error);
  if (*out != NULL &&
      store_set_overlay_state (cat, id, OVERLAY_DETACHED, error) &&
      (commit == NULL || commit (opaque, error))) {
    FAIL_POINT ("V-made");
    return catalog_commit (cat, error);
  }
  catalog_rollback (cat);
  return false;
}

Overlay *
overlay_new (Disk *disk, const OverlayOptions *options,
             bool (*commit) (void *, GError **), void *opaque, GError **error)
{
  OverlayStack *stack = disk->stack;
  g_autofree char *path = NULL;
  Overlay *ov = NULL;
  int64_t id;
  bool ok;

  pthread_mutex_lock (&disk->cut_lock);
  FAIL_POINT ("V-plan");
  ok = plan_alone (disk, options, &id, &path, error);
  FAIL_POINT ("V-planned");
  if (ok) {
    ok = make (disk, options, id, path, commit, opaque, &ov, error);
    if (!ok)
      overlay_unprepare (disk, ov, id, path, false);
  }
  FAIL_POINT ("V-begun");
  if (ok) {
    atomic_store (&ov->state, OVERLAY_DETACHED);
    atomic_store (&ov->settled, true);
    ov->first_counter = INFLIGHT_FIRST_COUNTER;
    pthread_mutex_lock (&stack->lock);
    g_ptr_array_add (stack->detached, overlay_ref (ov));
    pthread_mutex_unlock (&stack->lock);
  }
  pthread_mutex_unlock (&disk->cut_lock);
  return ok ? ov : NULL;
}

static void
forget (Overlay *ov)
{
  OverlayStack *stack = ov->disk->stack;

  pthread_mutex_lock (&stack->lock);
  g_ptr_array_remove (stack->detached, ov);
  pthread_mutex_unlock (&stack->lock);
}

static bool
retire (Overlay *ov, bool (*commit) (void *, GError **), void *opaque,
        GError **error)
{
  Catalog *cat = ov->disk->fleece->cat;

  if (!catalog_begin (cat, error))
    return false;
  if (store_set_overlay_anonymous (cat, ov->id, error) &&
      store_set_overlay_state (cat, ov->id, OVERLAY_GONE, error) &&
      (commit == NULL || commit (opaque, error))) {
    FAIL_POINT ("V-retire");
    return catalog_commit (cat, error);
  }
  catalog_rollback (cat);
  return false;
}

bool
overlay_discard (Overlay *ov, bool (*commit) (void *, GError **),
                 void *opaque, GError **error)
{
  Disk *disk = ov->disk;
  bool ok;

  pthread_mutex_lock (&disk->cut_lock);
  ok = close_entry (ov, OVERLAY_GONE, error);
  if (ok && !retire (ov, commit, opaque, error)) {
    atomic_store (&ov->state, OVERLAY_DETACHED);
    ok = false;
  }
  if (ok) {
    overlay_remove (ov);
    forget (ov);
  }
  pthread_mutex_unlock (&disk->cut_lock);
  return ok;
}

/* --- apply */

/* As a guest's write to all that it has would. */
static bool
admit (Overlay *ov, GError **error)
{
  Disk *disk = ov->disk;
  uint64_t size = disk->size;
  int err = 0;

  /* What it has not are zeroes then, wherever it is. */
  if (ov->zero)
    err = overlay_cover (ov, 0, size);
  for (uint64_t offset = 0; err == 0 && offset < size; ) {
    bool has;
    uint64_t n = run_at (ov, offset, size - offset, &has);

    if (has) {
      n = MIN (n, APPLY_STEP);
#ifndef BROKEN_OVERLAY_ADMIT     /* see test-crash-controls.sh */
      err = disk_admit (disk, offset, n);
#endif
    }
    offset += n;
  }
  FAIL_POINT ("V-admitted");
  if (err == 0)
    err = overlay_map_sync (ov->map);
  if (err < 0)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                 "layer '%s' cannot be put on disk '%s': %s", ov->name,
                 disk->name, g_strerror (-err));
  return err == 0;
}

/* cut_lock held. */
static bool
check (Overlay *ov, GError **error)
{
  Disk *disk = ov->disk;

  if (!overlay_check_idle (disk, error) ||
      !disk_finish_late (disk, disk->fleece->drain_timeout_ms, error))
    return false;
  if (!disk->stopped && atomic_load (&ov->port.size) == disk->size)
    return true;
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
               "layer '%s' of %" G_GUINT64_FORMAT " bytes does not fit on disk "
               "'%s' of %" G_GUINT64_FORMAT " bytes", ov->name,
               atomic_load (&ov->port.size), disk->name,
               atomic_load (&disk->size));
  return false;
}

static bool
record (Fleece *f, Overlay **ov, size_t nr, bool (*commit) (void *, GError **),
        void *opaque, GError **error)
{
  bool ok = catalog_begin (f->cat, error);

  if (!ok)
    return false;
  for (size_t i = 0; ok && i < nr; i++)
    ok = store_set_overlay_state (f->cat, ov[i]->id, OVERLAY_LIVE, error);
  if (ok && (commit == NULL || commit (opaque, error))) {
    FAIL_POINT ("V-record");
    return catalog_commit (f->cat, error);
  }
  catalog_rollback (f->cat);
  return false;
}

/* All disks at once: one counter.  A write that was admitted before it goes
 * below; readers may see the overlay some instructions before that, which
 * matters to none but a guest that was left on its disk while that was
 * restored. */
static void
flip (Fleece *f, Overlay **ov, size_t nr)
{
  uint64_t counter;

  FAIL_POINT ("V-recorded");
  pthread_mutex_lock (&f->flip_lock);
  counter = atomic_load (&f->cut_counter) + 1;
  for (size_t i = 0; i < nr; i++) {
    Disk *disk = ov[i]->disk;
    OverlayStack *stack = disk->stack;
    Segment *now = atomic_load (&disk->newest);

    ov[i]->first_counter = counter;
    ov[i]->below = now->file;
    atomic_store (&ov[i]->settled, false);
    atomic_store (&ov[i]->state, OVERLAY_LIVE);
    disk_next_segment (disk, now->layer, &ov[i]->port, ov[i], disk->size,
                       counter);
    pthread_mutex_lock (&stack->lock);
    overlay_stack_publish (stack, chain_new (atomic_load (&stack->chain),
                                             ov[i], 0, 0));
    pthread_mutex_unlock (&stack->lock);
  }
  atomic_store (&f->cut_counter, counter);
  pthread_mutex_unlock (&f->flip_lock);
}

/* A failure leaves it to each flush to sync what is below, too. */
static void
settle (Overlay *ov)
{
  Disk *disk = ov->disk;

  FAIL_POINT ("V-settle");
  forget (ov);
  if (disk_drain (disk, disk->fleece->drain_timeout_ms, NULL) &&
      ov->below->ops->sync (ov->below) == 0)
    atomic_store (&ov->settled, true);
  overlay_stack_reap (disk->stack, 0);
}

/* Those that no longer let anybody in: nr_closed. */
static bool
apply_locked (Fleece *f, Overlay **ov, size_t nr, size_t *nr_closed,
              bool (*commit) (void *, GError **), void *opaque,
              GError **error)
{
  for (size_t i = 0; i < nr; i++)
    if (!check (ov[i], error))
      return false;
  for (; *nr_closed < nr; ++*nr_closed)
    if (!close_entry (ov[*nr_closed], OVERLAY_PREPARED, error))
      return false;
  for (size_t i = 0; i < nr; i++)
    if (!admit (ov[i], error))
      return false;
  if (record (f, ov, nr, commit, opaque, error))
    return true;
  /* As far as it is there after all. */
  for (size_t i = 0; i < nr; i++)
    store_set_overlay_state (f->cat, ov[i]->id, OVERLAY_DETACHED, NULL);
  return false;
}

static gint
compare (gconstpointer a, gconstpointer b)
{
  const Overlay *x = *(Overlay *const *) a, *y = *(Overlay *const *) b;

  return (x->disk->index > y->disk->index) -
    (x->disk->index < y->disk->index);
}

bool
fleece_apply_overlays (Fleece *f, Overlay **list, size_t nr,
                       bool (*commit) (void *, GError **), void *opaque,
                       GError **error)
{
  g_autofree Overlay **ov = g_memdup2 (list, nr * sizeof *list);
  size_t nr_closed = 0;
  bool ok;

  if (nr > 1)
    qsort (ov, nr, sizeof *ov, compare);
  for (size_t i = 1; i < nr; i++)
    if (ov[i]->disk == ov[i - 1]->disk) {
      g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                   "disk '%s' cannot have two layers applied at once",
                   ov[i]->disk->name);
      return false;
    }
  for (size_t i = 0; i < nr; i++)
    pthread_mutex_lock (&ov[i]->disk->cut_lock);
  ok = apply_locked (f, ov, nr, &nr_closed, commit, opaque, error);
  if (ok)
    flip (f, ov, nr);
  for (size_t i = 0; i < nr; i++)
    if (ok)
      settle (ov[i]);
    else if (i < nr_closed)
      atomic_store (&ov[i]->state, OVERLAY_DETACHED);
  for (size_t i = nr; i > 0; i--)
    pthread_mutex_unlock (&ov[i - 1]->disk->cut_lock);
  return ok;
}
