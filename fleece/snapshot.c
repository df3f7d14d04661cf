/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* snapshot.c - the life of a snapshot; reading it is in snapshot-read.c. */
#include <config.h>

#include <errno.h>
#include <string.h>
#include <time.h>

#include "bitmap/fail-point.h"
#include "fleece/fleece-internal.h"

const char *
snapshot_state_name (SnapshotState state)
{
  static const char *const names[] = {
    [SNAPSHOT_PREPARED] = "prepared", [SNAPSHOT_LIVE] = "live",
    [SNAPSHOT_BROKEN] = "broken", [SNAPSHOT_LOST] = "lost",
    [SNAPSHOT_ENDED] = "ended",
  };

  return names[state];
}

Snapshot *
snapshot_new (Disk *disk, const char *name, uint64_t boundary, Layer *layer)
{
  Snapshot *snap = g_new0 (Snapshot, 1);

  atomic_init (&snap->refs, 1);
  snap->disk = disk;
  snap->name = g_strdup (name);
  snap->created = time (NULL);
  snap->size = disk->size;
  snap->boundary = boundary;
  snap->layer = layer != NULL ? layer_ref (layer) : NULL;
  atomic_init (&snap->state, SNAPSHOT_PREPARED);
  return snap;
}

Snapshot *
snapshot_ref (Snapshot *snap)
{
  atomic_fetch_add (&snap->refs, 1);
  return snap;
}

void
snapshot_unref (Snapshot *snap)
{
  if (snap == NULL || atomic_fetch_sub (&snap->refs, 1) != 1)
    return;
  layer_unref (snap->layer);
  g_free (snap->name);
  g_free (snap->reason);
  g_free (snap);
}

Snapshot *
disk_find_snapshot (Disk *disk, const char *name)
{
  Snapshot *found = NULL;

  pthread_mutex_lock (&disk->snap_lock);
  for (unsigned i = 0; found == NULL && i < disk->snapshots->len; i++) {
    Snapshot *snap = disk->snapshots->pdata[i];

    if (strcmp (snap->name, name) == 0)
      found = snapshot_ref (snap);
  }
  pthread_mutex_unlock (&disk->snap_lock);
  return found;
}

GPtrArray *
disk_snapshots (Disk *disk)
{
  GPtrArray *all
    = g_ptr_array_new_with_free_func ((GDestroyNotify) snapshot_unref);

  pthread_mutex_lock (&disk->snap_lock);
  for (unsigned i = 0; i < disk->snapshots->len; i++)
    g_ptr_array_add (all, snapshot_ref (disk->snapshots->pdata[i]));
  pthread_mutex_unlock (&disk->snap_lock);
  return all;
}

const char *
snapshot_name (const Snapshot *snap)
{
  return snap->name;
}

int64_t
snapshot_id (const Snapshot *snap)
{
  return snap->id;
}

Disk *
snapshot_disk (const Snapshot *snap)
{
  return snap->disk;
}

uint64_t
snapshot_size (const Snapshot *snap)
{
  return snap->size;
}

uint64_t
snapshot_boundary (const Snapshot *snap)
{
  return snap->boundary;
}

int64_t
snapshot_created (const Snapshot *snap)
{
  return snap->created;
}

SnapshotState
snapshot_state (const Snapshot *snap)
{
  return atomic_load (&snap->state);
}

char *
snapshot_reason (Snapshot *snap)
{
  char *reason;

  pthread_mutex_lock (&snap->disk->snap_lock);
  reason = g_strdup (snap->reason);
  pthread_mutex_unlock (&snap->disk->snap_lock);
  return reason;
}

/* Bytes in the layers from snap's on.  snap_lock held. */
static uint64_t
used_locked (const Snapshot *snap)
{
  Disk *disk = snap->disk;
  uint64_t blocks = 0;

  for (unsigned i = 0; snap->layer != NULL && i < disk->layers->len; i++) {
    Layer *layer = disk->layers->pdata[i];

    if (layer->id >= snap->layer->id)
      blocks += atomic_load (&layer->data_blocks);
  }
  return blocks * LAYER_BLOCK;
}

void
snapshot_scratch (Snapshot *snap, uint64_t *out_used, uint64_t *out_limit)
{
  pthread_mutex_lock (&snap->disk->snap_lock);
  *out_used = used_locked (snap);
  pthread_mutex_unlock (&snap->disk->snap_lock);
  *out_limit = snap->limit_bytes;
}

uint64_t
snapshot_scratch_left (Snapshot *snap)
{
  const Fleece *f = snap->disk->fleece;
  g_autofree char *path = NULL;
  uint64_t used, limit, left = UINT64_MAX;

  pthread_mutex_lock (&snap->disk->snap_lock);
  if (snap->layer != NULL)
    path = g_strdup (snap->layer->path);
  pthread_mutex_unlock (&snap->disk->snap_lock);
  snapshot_scratch (snap, &used, &limit);
  if (path != NULL)
    left = space_left (f->storage, path, f->scratch_reserve_set,
                       f->scratch_reserve);
  return limit == 0 ? left : MIN (left, limit - MIN (used, limit));
}

static bool
is_readable (const Snapshot *snap)
{
  SnapshotState state = atomic_load (&snap->state);

  return state == SNAPSHOT_PREPARED || state == SNAPSHOT_LIVE;
}

/* What is left of snap's limit for the newest layer, in blocks. */
static uint64_t
budget_of (const Snapshot *snap, const Layer *newest)
{
  uint64_t sealed = used_locked (snap)
    - atomic_load (&newest->data_blocks) * LAYER_BLOCK;

  return snap->limit_bytes > sealed
    ? (snap->limit_bytes - sealed) / LAYER_BLOCK : 0;
}

void
disk_update_limits_locked (Disk *disk)
{
  uint64_t budget = UINT64_MAX;
  uint32_t timeout = 0;
  Layer *newest;

  if (disk->layers->len == 0)
    return;
  newest = disk->layers->pdata[disk->layers->len - 1];
  for (unsigned i = 0; i < disk->snapshots->len; i++) {
    Snapshot *snap = disk->snapshots->pdata[i];

    if (!is_readable (snap))
      continue;
    if (snap->limit_bytes != 0)
      budget = MIN (budget, budget_of (snap, newest));
    if (snap->cbw_timeout != 0)
      timeout = timeout == 0 ? snap->cbw_timeout
        : MIN (timeout, snap->cbw_timeout);
  }
  atomic_store (&newest->budget_blocks, budget);
  atomic_store (&disk->cbw_timeout_ms, (int64_t) timeout * 1000);
}

/* Mark it unreadable; *broken gets a reference if that is news, or if its row
 * does not say so yet.  break_lock and snap_lock held. */
static void
break_locked (Snapshot *snap, const char *reason, GPtrArray *broken)
{
  if (is_readable (snap)) {
    snap->reason = g_strdup (reason);
    snap->row = ROW_SAYS_LIVE;
    atomic_store (&snap->state, SNAPSHOT_BROKEN);
  }
  else if (atomic_load (&snap->state) != SNAPSHOT_BROKEN ||
           snap->row == ROW_SAYS_SO)
    return;
  g_ptr_array_add (broken, snapshot_ref (snap));
}

/* The durable half, and the news.  break_lock held.  False: some rows still
 * call their snapshots live. */
static bool
record_broken (Disk *disk, GPtrArray *broken, int error_number)
{
  bool all = true;

  FAIL_POINT ("B-record");
  for (unsigned i = 0; i < broken->len; i++) {
    Snapshot *snap = broken->pdata[i];
    bool is_news = snap->row == ROW_SAYS_LIVE;
    g_autoptr (GError) error = NULL;

    snap->row = ROW_SAYS_SO;
    if (!store_set_snapshot_state (disk->fleece->cat, snap->id,
                                   SNAPSHOT_BROKEN, snap->reason, &error)) {
      all = false;
      snap->row = ROW_FAILED;
      if (is_news)
        fleece_note (disk->fleece, FLEECE_NOTE_WARNING, disk->name,
                     snap->name, 0, "cannot record that the snapshot broke: "
                     "%s", error->message);
    }
    if (is_news)
      fleece_note (disk->fleece, FLEECE_NOTE_SNAPSHOT_BROKEN, disk->name,
                   snap->name, error_number, "%s", snap->reason);
  }
  return all;
}

/* Last: a write that finds the layer dead overwrites at once, and a reader that
 * gets what it wrote must find the snapshot broken, also after a crash (H4).  A
 * volatile layer's map says so itself; a durable one must not be there any more
 * if the rows cannot be changed, as on a file system that is full: names can be
 * removed there.  0, or -EIO: neither can be, so nothing may be overwritten. */
static int
kill_broken (Disk *disk, Layer *layer, bool recorded)
{
  int err = 0;

  FAIL_POINT ("B-kill");
  if (!recorded && layer->log != NULL)
    err = layer_remove_log (layer);
  if (err == 0)
    layer_kill (layer);
  return err == 0 ? 0 : -EIO;
}

int
disk_break_snapshots (Disk *disk, Layer *layer, int error_number,
                      const char *what)
{
  g_autoptr (GPtrArray) broken
    = g_ptr_array_new_with_free_func ((GDestroyNotify) snapshot_unref);
  /* ETIMEDOUT is about networks, to its readers. */
  g_autofree char *reason = error_number == ETIMEDOUT ? g_strdup (what)
    : g_strdup_printf ("%s: %s", what, g_strerror (error_number));
  int err;

  pthread_mutex_lock (&disk->break_lock);
  pthread_mutex_lock (&disk->snap_lock);
  for (unsigned i = 0; i < disk->snapshots->len; i++) {
    Snapshot *snap = disk->snapshots->pdata[i];

    if (snap->layer != NULL && snap->layer->id <= layer->id)
      break_locked (snap, reason, broken);
  }
  disk_update_limits_locked (disk);
  pthread_mutex_unlock (&disk->snap_lock);
  err = kill_broken (disk, layer, record_broken (disk, broken, error_number));
  pthread_mutex_unlock (&disk->break_lock);
  return err;
}

bool
snapshot_over_limit_locked (const Snapshot *snap)
{
  /* The copy that failed was of 16 blocks (a stripe) at most. */
  return snap->limit_bytes != 0 &&
    used_locked (snap) + STRIPE_BYTES > snap->limit_bytes;
}

/* Break those over their limit; nobody left to preserve for: *out_idle is the
 * layer that writers need not go on with, a reference. */
static void
break_over_limit_locked (Disk *disk, GPtrArray *broken, Layer **out_idle)
{
  bool any = false;

  for (unsigned i = 0; i < disk->snapshots->len; i++) {
    Snapshot *snap = disk->snapshots->pdata[i];
    g_autofree char *reason = NULL;

    if (!snapshot_over_limit_locked (snap))
      continue;
    reason = g_strdup_printf ("its scratch limit of %" G_GUINT64_FORMAT
                              " bytes is used up", snap->limit_bytes);
    break_locked (snap, reason, broken);
  }
  disk_update_limits_locked (disk);
  for (unsigned i = 0; i < disk->snapshots->len; i++)
    any |= is_readable (disk->snapshots->pdata[i]);
  if (broken->len > 0 && disk->layers->len > 0 && !any)
    *out_idle = layer_ref (disk->layers->pdata[disk->layers->len - 1]);
}

int
disk_break_over_limit (Disk *disk)
{
  g_autoptr (GPtrArray) broken
    = g_ptr_array_new_with_free_func ((GDestroyNotify) snapshot_unref);
  g_autoptr (Layer) idle = NULL;
  bool recorded;
  int err = 0;

  pthread_mutex_lock (&disk->break_lock);
  pthread_mutex_lock (&disk->snap_lock);
  break_over_limit_locked (disk, broken, &idle);
  pthread_mutex_unlock (&disk->snap_lock);
  recorded = record_broken (disk, broken, ENOSPC);
  if (idle != NULL)
    err = kill_broken (disk, idle, recorded);
  pthread_mutex_unlock (&disk->break_lock);
  return err;
}

bool
disk_has_durable_locked (Disk *disk)
{
  for (unsigned i = 0; i < disk->snapshots->len; i++) {
    Snapshot *snap = disk->snapshots->pdata[i];

    if (snap->durable && is_readable (snap))
      return true;
  }
  return false;
}

bool
snapshot_is_durable (const Snapshot *snap)
{
  return snap->durable;
}

void
snapshot_forget_locked (Snapshot *snap)
{
  Disk *disk = snap->disk;

  pthread_mutex_lock (&disk->snap_lock);
  atomic_store (&snap->state, SNAPSHOT_ENDED);
  g_ptr_array_remove (disk->snapshots, snap);
  pthread_mutex_unlock (&disk->snap_lock);
  disk_drop_layers (disk);
}

static bool
end_locked (Snapshot *snap, GError **error)
{
  if (atomic_load (&snap->state) == SNAPSHOT_ENDED)
    return true;
  /* The row first: what is acknowledged is durable, and on failure the snapshot
   * is as it was. */
  FAIL_POINT ("E-row");
  if (!store_delete_snapshot (snap->disk->fleece->cat, snap->id, error))
    return false;
  FAIL_POINT ("E-forget");
  snapshot_forget_locked (snap);
  return true;
}

bool
snapshot_end (Snapshot *snap, GError **error)
{
  Disk *disk = snap->disk;
  bool ok;

  pthread_mutex_lock (&disk->cut_lock);
  ok = end_locked (snap, error);
  pthread_mutex_unlock (&disk->cut_lock);
  return ok;
}
