/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* overlay-open.c - overlays from their row to their file, and back.
 *
 * A row comes first ('planned'), then the files, then 'prepared' or 'detached'
 * with the nonce of the map, and for one that guests may write to 'live' with
 * the cut.  What goes is 'retired' before its files go.  So a start knows of
 * every file that there may be, and whether anything is in it that counts.
 *
 * A disk whose chain is not all there does not start: its image alone is not
 * what the guest wrote.
 */
#include <config.h>

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "bitmap/checkpoint.h"
#include "bitmap/fail-point.h"
#include "bitmap/sector.h"
#include "fleece/overlay-internal.h"

#define CAPACITY_MIN (UINT64_C (16) << 30)      /* bytes */

/* Blocks; room to grow to at least twice the size.  0: too large. */
static uint64_t
capacity_for (uint64_t size)
{
  uint64_t most = SECTORS_MAX * SECTOR_BITS;
  uint64_t bytes = CAPACITY_MIN;

  while (bytes / 2 < size && bytes / OVERLAY_BLOCK < most)
    bytes *= 2;
  return size / OVERLAY_BLOCK >= most ? 0 : MIN (bytes / OVERLAY_BLOCK, most);
}

static char *
own_path (const Disk *disk, int64_t id)
{
  return g_strdup_printf ("%s/%s-%.8s-%" G_GINT64_FORMAT ".overlay",
                          disk->fleece->scratch_dir, disk->name,
                          catalog_uuid (disk->fleece->cat), id);
}

static char *
runtime_name (const Disk *disk, int64_t id)
{
  return g_strdup_printf ("%s.%" G_GINT64_FORMAT ".o", disk->name, id);
}

/* --- new ones */

static bool
check_name (Disk *disk, const char *name, GError **error)
{
  OverlayStack *stack = disk->stack;
  const Chain *chain;
  bool taken = false;

  if (!name_check_id ("layer name", name, error))
    return false;
  pthread_mutex_lock (&stack->lock);
  chain = atomic_load (&stack->chain);
  for (unsigned i = 0; i < chain->nr; i++)
    taken |= g_strcmp0 (chain->ov[i]->name, name) == 0;
  for (unsigned i = 0; i < stack->detached->len; i++)
    taken |= g_strcmp0 (((Overlay *) stack->detached->pdata[i])->name,
                        name) == 0;
  pthread_mutex_unlock (&stack->lock);
  if (taken)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS,
                 "disk '%s' already has a layer '%s'", disk->name, name);
  return !taken;
}

bool
overlay_plan (Disk *disk, const char *name, const char *path, bool keep,
              bool zero, int64_t *out_id, char **out_path, GError **error)
{
  Catalog *cat = disk->fleece->cat;
  uint64_t capacity = capacity_for (disk->size), tag;
  uint8_t random[RUNTIME_NONCE_BYTES];
  char *own;

  if (!check_name (disk, name, error))
    return false;
  if (capacity == 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "disk '%s' of %" G_GUINT64_FORMAT
                 " bytes is too large for a layer", disk->name, disk->size);
    return false;
  }
  if (path != NULL && !store_check_overlay_file (cat, path, error))
    return false;
  runtime_draw_nonce (random);
  memcpy (&tag, random, sizeof tag);
  /* The default path has the row's id in it: two steps. */
  own = g_strdup_printf ("new/%s/%s", disk->name, name);
  if (!store_add_overlay (cat, epoch_log_disk_id (disk->log), name,
                          path != NULL ? path : own, capacity, keep, zero,
                          tag, out_id, error)) {
    g_free (own);
    return false;
  }
  g_free (own);
  *out_path = path != NULL ? g_strdup (path) : own_path (disk, *out_id);
  return path != NULL ||
    store_set_overlay_file (cat, *out_id, *out_path, error);
}

static bool
file_error (const Disk *disk, const char *what, const char *path, int err,
            GError **error)
{
  g_set_error (error, BITMAP_ERROR,
               err == -EBUSY ? BITMAP_ERROR_BUSY
               : err == -EEXIST ? BITMAP_ERROR_EXISTS
               : err == -ENOENT ? BITMAP_ERROR_NOT_FOUND : BITMAP_ERROR_IO,
               "disk '%s': cannot %s layer file '%s': %s", disk->name, what,
               path, err == -EBUSY ? "it is in use already"
               : g_strerror (-err));
  return false;
}

/* A user's: empty, since what is in it would be neither on the disk nor
 * kept. */
static bool
adopt_file (Overlay *ov, uint64_t size, GError **error)
{
  uint64_t run = 0;
  bool hole = true;
  int err = ov->storage->ops->open (ov->storage, ov->path, STORAGE_LOCK, 0,
                                    &ov->file);

  if (err == 0 && ov->file->is_block)
    err = -ENOTBLK;
  if (err == 0 && ov->file->size > 0)
    err = ov->file->ops->run (ov->file, 0, ov->file->size, &run, &hole);
  if (err < 0)
    return file_error (ov->disk, "use", ov->path, err, error);
  if (!hole || run < ov->file->size) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "disk '%s': layer file '%s' is not empty", ov->disk->name,
                 ov->path);
    return false;
  }
  err = ov->file->ops->set_size (ov->file, size);
  return err == 0 || file_error (ov->disk, "extend", ov->path, err, error);
}

static bool
create_files (Overlay *ov, uint64_t size, GError **error)
{
  int err;

  if (ov->keep)
    return adopt_file (ov, size, error);
  err = ov->storage->ops->open (ov->storage, ov->path,
                                STORAGE_CREATE | STORAGE_LOCK, size,
                                &ov->file);
  return err == 0 || file_error (ov->disk, "create", ov->path, err, error);
}

static bool
sync_files (Overlay *ov, GError **error)
{
  g_autofree char *dir = g_path_get_dirname (ov->path);
  int err = ov->file->ops->sync (ov->file);

  if (err == 0)
    err = ov->storage->ops->sync_dir (ov->storage, dir);
  return err == 0 || file_error (ov->disk, "sync", ov->path, err, error);
}

static OverlayMapHome
map_home (Overlay *ov, uint64_t tag, uint64_t capacity, const char *name)
{
  return (OverlayMapHome) {
    .storage = ov->storage, .path = ov->map_path, .capacity = capacity,
    .tag = tag, .data = ov->file, .rt = ov->disk->fleece->runtime,
    .name = name, .nonce = ov->nonce,
  };
}

static int
remove_files (Storage *storage, const char *path, bool keep)
{
  g_autofree char *map = g_strconcat (path, ".map", NULL);
  g_autofree char *dir = g_path_get_dirname (path);
  int err = storage->ops->remove (storage, map);

  if ((err == 0 || err == -ENOENT) && !keep)
    err = storage->ops->remove (storage, path);
  return err == -ENOENT ? 0
    : err == 0 ? storage->ops->sync_dir (storage, dir) : err;
}

static OverlayRow *
find_row (GPtrArray *rows, int64_t id)
{
  for (unsigned i = 0; i < rows->len; i++)
    if (((OverlayRow *) rows->pdata[i])->id == id)
      return rows->pdata[i];
  return NULL;
}

Overlay *
overlay_prepare (Disk *disk, const char *name, const char *path, int64_t id,
                 bool keep, bool zero, uint64_t size, GError **error)
{
  Catalog *cat = disk->fleece->cat;
  g_autoptr (GPtrArray) rows = store_list_overlays (cat, disk->name, error);
  g_autoptr (Overlay) ov = overlay_alloc (disk, name, path, size);
  g_autofree char *own = own_path (disk, id);
  g_autofree char *map_name = runtime_name (disk, id);
  const OverlayRow *row = rows != NULL ? find_row (rows, id) : NULL;
  OverlayMapHome home;

  if (row == NULL)
    return NULL;
  ov->id = id;
  ov->keep = keep;
  ov->zero = zero;
  /* Ids come again when somebody puts back an old state directory. */
  if (strcmp (own, path) == 0)
    remove_files (ov->storage, path, false);
  FAIL_POINT ("O-files");
  if (!create_files (ov, size, error))
    return NULL;
  runtime_draw_nonce (ov->nonce);
  home = map_home (ov, row->tag, row->capacity, map_name);
  FAIL_POINT ("O-map");
  ov->map = overlay_map_create (&home, error);
  FAIL_POINT ("O-nonce");
  if (ov->map != NULL && sync_files (ov, error) &&
      store_set_overlay_nonce (cat, id, ov->nonce, error)) {
    ov->keep_map = true;
    return g_steal_pointer (&ov);
  }
  if (!keep)
    ov->storage->ops->remove (ov->storage, path);
  if (ov->map != NULL)
    ov->storage->ops->remove (ov->storage, ov->map_path);
  return NULL;
}

void
overlay_remove (Overlay *ov)
{
  Disk *disk = ov->disk;
  g_autoptr (GError) error = NULL;
  int err;

  FAIL_POINT ("O-remove");
  ov->keep_map = false;
  err = remove_files (ov->storage, ov->path, ov->keep || ov->file_given_away);
  FAIL_POINT ("O-forget");
  /* Writes that hang, and old chains, may have it open for a while. */
  if (err == 0 && !ov->keep && !ov->file_given_away)
    ov->file->ops->punch (ov->file, 0, atomic_load (&ov->file->size));
  if (err < 0)
    fleece_note (disk->fleece, FLEECE_NOTE_WARNING, disk->name, NULL, -err,
                 "removing layer file '%s': %s; the next start tries again",
                 ov->path, g_strerror (-err));
  else if (!store_delete_overlay (disk->fleece->cat, ov->id, &error))
    fleece_note (disk->fleece, FLEECE_NOTE_WARNING, disk->name, NULL, 0,
                 "forgetting layer file '%s': %s", ov->path, error->message);
}

void
overlay_unprepare (Disk *disk, Overlay *ov, int64_t id, const char *path,
                   bool keep)
{
  Catalog *cat = disk->fleece->cat;
  g_autofree char *own = own_path (disk, id);
  bool retired = store_set_overlay_anonymous (cat, id, NULL) &&
    store_set_overlay_state (cat, id, OVERLAY_GONE, NULL);

  /* As unprepare_layer of cut.c: the row may yet say otherwise, and then a next
   * start wants the files. */
  if (ov == NULL && retired) {
    if (strcmp (own, path) == 0)
      remove_files (disk->fleece->storage, path, false);
    store_delete_overlay (cat, id, NULL);
  }
  if (ov != NULL && retired) {
    atomic_store (&ov->state, OVERLAY_GONE);
    overlay_remove (ov);
  }
  overlay_unref (ov);
}

/* --- start */

static bool
refuse (const Disk *disk, const OverlayRow *row, GError **error)
{
  g_prefix_error (error, "disk '%s' is not served without its layer '%s' "
                  "('%s'): ", disk->name,
                  row->name != NULL ? row->name : "(unnamed)", row->file);
  return false;
}

static Overlay *
load (Disk *disk, const OverlayRow *row, GError **error)
{
  g_autoptr (Overlay) ov = overlay_alloc (disk, row->name, row->file, 0);
  g_autofree char *map_name = runtime_name (disk, row->id);
  OverlayMapHome home;
  uint64_t dropped = 0;
  bool new_map = false;
  int err;

  ov->id = row->id;
  ov->keep = row->keep;
  ov->zero = row->zero;
  ov->first_counter = INFLIGHT_FIRST_COUNTER;
  atomic_store (&ov->state, row->state);
  atomic_store (&ov->settled, true);
  err = ov->storage->ops->open (ov->storage, ov->path, STORAGE_LOCK, 0,
                                &ov->file);
  if (err < 0) {
    file_error (disk, "open", ov->path, err, error);
    refuse (disk, row, error);
    return NULL;
  }
  atomic_store (&ov->port.size, atomic_load (&ov->file->size));
  if (ov->file->size / OVERLAY_BLOCK >= row->capacity) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_CORRUPT,
                 "it has %" G_GUINT64_FORMAT " bytes, more than it can have",
                 atomic_load (&ov->file->size));
    refuse (disk, row, error);
    return NULL;
  }
  runtime_draw_nonce (ov->nonce);
  home = map_home (ov, row->tag, row->capacity, map_name);
  ov->keep_map = true;
  ov->map = overlay_map_open (&home, row->has_nonce ? row->nonce : NULL,
                              &new_map, error);
  if (ov->map == NULL) {
    refuse (disk, row, error);
    return NULL;
  }
  err = new_map ? 0 : overlay_map_verify (ov->map, atomic_load (&ov->port.size),
                                          &dropped);
  if (err < 0) {
    file_error (disk, "read", ov->path, err, error);
    return NULL;
  }
  if (dropped > 0)
    fleece_note (disk->fleece, FLEECE_NOTE_WARNING, disk->name, NULL, 0,
                 "%" G_GUINT64_FORMAT " blocks that were written to layer file "
                 "'%s' after the last flush are lost: its file system was not "
                 "kept as it was", dropped, row->file);
  if (new_map && row->has_nonce)
    fleece_note (disk->fleece, FLEECE_NOTE_WARNING, disk->name, NULL, 0,
                 "the block map of layer file '%s' is not in the runtime "
                 "directory any more: what was written after the last flush is "
                 "not there", row->file);
  if (!new_map)
    memcpy (ov->nonce, row->nonce, sizeof ov->nonce);
  else if (!store_set_overlay_nonce (disk->fleece->cat, ov->id, ov->nonce,
                                     error))
    return NULL;
  return g_steal_pointer (&ov);
}

/* Planned or retired. */
static void
drop_row (Disk *disk, const OverlayRow *row)
{
  Fleece *f = disk->fleece;
  g_autofree char *own = own_path (disk, row->id);
  int err = 0;

  /* At a path that a user chose there may be a file of his: a planned one's is
   * left. */
  if (row->state == OVERLAY_GONE || strcmp (row->file, own) == 0)
    err = remove_files (f->storage, row->file, row->keep);
  if (err == 0)
    store_delete_overlay (f->cat, row->id, NULL);
  else
    fleece_note (f, FLEECE_NOTE_WARNING, disk->name, NULL, -err,
                 "removing layer file '%s': %s", row->file, g_strerror (-err));
}

/* After a kill what lies below the top may not be stable yet, and a guest's
 * flush does not go there any more. */
static bool
settle_below (Disk *disk, const Chain *chain, GError **error)
{
  int err = chain->nr > 0 ? chain->base->ops->sync (chain->base) : 0;

  for (unsigned i = 0; err == 0 && i + 1 < chain->nr; i++)
    err = overlay_map_sync (chain->ov[i]->map);
  return err == 0 || file_error (disk, "sync", disk->path, err, error);
}

static bool
is_same_file (const char *a, const char *b)
{
  g_autofree char *given = g_canonicalize_filename (a, NULL);
  struct stat sa, sb;

  return strcmp (given, b) == 0 ||
    (stat (a, &sa) == 0 && stat (b, &sb) == 0 && sa.st_dev == sb.st_dev &&
     sa.st_ino == sb.st_ino);
}

/* Any other file than the last one is refused, not only the one before: there
 * may have been several streams, and files have several names. */
bool
overlay_moved_image (Catalog *cat, const char *disk, const char *path,
                     char **out_image, GError **error)
{
  g_autofree char *image = NULL, *before = NULL;

  *out_image = NULL;
  if (!store_get_image (cat, disk, &image, &before, error))
    return false;
  if (image != NULL && !is_same_file (path, image))
    *out_image = g_steal_pointer (&image);
  return true;
}

/* An image alone is not what the disk was that has layers on it. */
static bool
check_owner (Disk *disk, GError **error)
{
  g_autofree char *other = NULL;
  DiskIdentity identity;

  if (!disk_identity (disk, &identity, error))
    return false;
  if (identity.inode == 0)
    return true;                /* of a block device nothing is known */
  if (!store_find_layered (disk->fleece->cat, disk->name, identity.inode,
                           identity.birth_ns, &other, error))
    return false;
  if (other == NULL)
    return true;
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
               "disk '%s': '%s' is the image of disk '%s', which has layers on "
               "it: serve it by that name", disk->name, disk->path, other);
  return false;
}

/* The image that the user names must be the one that a stream moved to. */
static bool
check_image (Disk *disk, GError **error)
{
  g_autofree char *image = NULL;

  if (!overlay_moved_image (disk->fleece->cat, disk->name, disk->path, &image,
                            error))
    return false;
  if (image == NULL)
    return true;
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
               "disk '%s' is not in '%s': block-stream has moved it to '%s'; "
               "name that as its image", disk->name, disk->path, image);
  return false;
}

static bool
start_rows (Disk *disk, GPtrArray *rows, GError **error)
{
  OverlayStack *stack = disk->stack;

  for (unsigned i = 0; i < rows->len; i++) {
    const OverlayRow *row = rows->pdata[i];
    Overlay *ov;

    if (row->state == OVERLAY_GONE || row->state == OVERLAY_PLANNED) {
      drop_row (disk, row);
      continue;
    }
    ov = load (disk, row, error);
    if (ov == NULL)
      return false;
    if (row->state == OVERLAY_DETACHED)
      g_ptr_array_add (stack->detached, ov);
    else if (row->state == OVERLAY_PREPARED &&
             overlay_map_count (ov->map) == 0)
      overlay_unprepare (disk, ov, ov->id, ov->path, ov->keep);
    else {
      /* Of a cut that was not through, but had begun: guests have used it. */
      if (row->state == OVERLAY_PREPARED)
        g_clear_pointer (&ov->name, g_free);
      overlay_stack_publish (stack, chain_new (atomic_load (&stack->chain), ov,
                                               0, 0));
      overlay_unref (ov);
    }
  }
  return settle_below (disk, atomic_load (&stack->chain), error);
}

/* A top layer that somebody has cut short would make the disk shorter. */
static bool
take_size (Disk *disk, const Overlay *top, GError **error)
{
  uint64_t size = atomic_load (&top->port.size);
  bool known;

  if (!store_knows_size (disk->fleece->cat, disk->name, size, &known, error))
    return false;
  if (!known) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_CORRUPT,
                 "disk '%s' is not served: its layer file '%s' has %"
                 G_GUINT64_FORMAT " bytes, which the disk had not", disk->name,
                 top->path, size);
    return false;
  }
  atomic_store (&disk->size, size);
  return true;
}

bool
overlay_start (Disk *disk, GError **error)
{
  g_autoptr (GPtrArray) rows = store_list_overlays (disk->fleece->cat,
                                                    disk->name, error);
  bool ok = rows != NULL && check_image (disk, error) &&
    check_owner (disk, error) && start_rows (disk, rows, error);
  const Chain *chain = atomic_load (&disk->stack->chain);

  g_ptr_array_set_size (disk->stack->old_chains, 0);
  return ok && (chain->nr == 0 ||
                take_size (disk, chain->ov[chain->nr - 1], error));
}

void
overlay_first_segment (Disk *disk, Segment *seg)
{
  const Chain *chain = atomic_load (&disk->stack->chain);

  seg->file = chain_port (chain);
  if (chain->nr > 0)
    seg->overlay = overlay_ref (chain->ov[chain->nr - 1]);
}

/* --- stop */

static bool
stop_one (Overlay *ov, GError **error)
{
  int err = overlay_map_sync (ov->map);

  if (err < 0)
    return file_error (ov->disk, "sync", ov->path, err, error);
  if (!store_set_overlay_nonce (ov->disk->fleece->cat, ov->id, NULL, error))
    return false;
  ov->keep_map = false;
  return true;
}

bool
overlay_stop (Disk *disk, GError **error)
{
  OverlayStack *stack = disk->stack;
  const Chain *chain = atomic_load (&stack->chain);
  bool ok = settle_below (disk, chain, error);

  for (unsigned i = 0; ok && i < chain->nr; i++)
    ok = stop_one (chain->ov[i], error);
  for (unsigned i = 0; ok && i < stack->detached->len; i++)
    ok = stop_one (stack->detached->pdata[i], error);
  return ok;
}

int
overlay_mtimes (Disk *disk, int64_t *out_sum)
{
  const Chain *chain = atomic_load (&disk->stack->chain);
  uint64_t sum = 0;
  int err = 0;

  for (unsigned i = 0; err == 0 && i < chain->nr; i++) {
    int64_t ns = 0;

    err = chain->ov[i]->file->ops->mtime (chain->ov[i]->file, &ns);
    sum += (uint64_t) ns * (2 * i + 3);
  }
  *out_sum = (int64_t) sum;
  return err;
}
