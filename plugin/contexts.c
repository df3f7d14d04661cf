/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <errno.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/checkpoint.h"
#include "bitmap/named-bitmap.h"
#include "fleece/overlay.h"
#include "plugin/contexts.h"
#include "plugin/exports.h"
#include "plugin/map-cache.h"
#include "plugin/plugin.h"
#include "plugin/server-stats.h"
#include "plugin/thread.h"

#define QEMU_PREFIX "qemu:dirty-bitmap:"
#define ALIAS_PREFIX "qemu-dirty-bitmap:"
#define DEPTH "qemu:allocation-depth"

static bool
has_map (const HandleContexts *ctx, uint64_t key)
{
  for (guint i = 0; i < ctx->maps->len; i++)
    if (cached_map_key (g_array_index (ctx->maps, CachedMap *, i)) ==
        key)
      return true;
  return false;
}

static void
add_map (HandleContexts *ctx, uint64_t key)
{
  CachedMap *map;

  if (has_map (ctx, key))
    return;
  map = cached_map_get (ctx->bd, key);
  g_array_append_val (ctx->maps, map);
}

uint64_t
contexts_find_map (const BackupDisk *bd, const char *name, GError **error)
{
  g_autoptr (NamedBitmap) kept = NULL;
  uint64_t boundary;
  bool found;

  if (bd->bitmap != NULL && strcmp (name, bd->bitmap) == 0)
    return bd->since_boundary;
  found = checkpoint_boundary (plugin.catalog, bd->disk_name, name, &boundary,
                               error);
  if (found && boundary < snapshot_boundary (bd->snapshot))
    return boundary;
  kept = named_bitmap_find (plugin.catalog,
                            epoch_log_disk_id (disk_epoch_log (bd->disk)),
                            snapshot_id (bd->snapshot), name, NULL);
  if (kept != NULL) {
    g_clear_error (error);
    return MAP_KEY_BITMAP | (uint64_t) kept->id;
  }
  if (found)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND,
                 "checkpoint '%s' is not older than the snapshot", name);
  return 0;
}

bool
handle_contexts_init (HandleContexts *ctx, const BackupDisk *bd,
                      const char *since, GError **error)
{
  ctx->bd = bd;
  ctx->maps = g_array_new (FALSE, FALSE, sizeof (CachedMap *));
  pthread_mutex_init (&ctx->lock, NULL);
  if (bd->bitmap != NULL)
    add_map (ctx, bd->since_boundary);
  if (since != NULL) {
    if (!name_check_bitmap ("checkpoint name", since, error))
      return false;
    ctx->listed_key = contexts_find_map (bd, since, error);
    if (ctx->listed_key == 0) {
      g_prefix_error (error, "export '%s': ", bd->export);
      return false;
    }
    /* Not pinned by any row: build it now, while the checkpoint is there. */
    add_map (ctx, ctx->listed_key);
    if (cached_map_load (g_array_index (ctx->maps, CachedMap *,
                                        ctx->maps->len - 1), error) == NULL)
      return false;
    ctx->listed = g_strdup (since);
    ctx->since = true;
  }
  else if (bd->bitmap != NULL) {
    ctx->listed = g_strdup (bd->bitmap);
    ctx->listed_key = bd->since_boundary;
  }
  ctx->nr_pinned = ctx->maps->len;
  return true;
}

void
handle_contexts_init_added (HandleContexts *ctx, AddedExport *added)
{
  ctx->added = added;
}

static void
drop_maps (HandleContexts *ctx, guint keep)
{
  SCOPED_LOCK (&ctx->lock);

  g_clear_pointer (&ctx->dirty, change_set_unref);
  for (guint i = keep; i < ctx->maps->len; i++)
    cached_map_put (g_array_index (ctx->maps, CachedMap *, i));
  g_array_set_size (ctx->maps, keep);
}

void
handle_contexts_clear (HandleContexts *ctx)
{
  if (ctx->bd == NULL)
    return;
  drop_maps (ctx, 0);
  g_array_unref (ctx->maps);
  g_free (ctx->listed);
  pthread_mutex_destroy (&ctx->lock);
}

/* --- metacontext.h --- */

/* The bitmap's name within a full context name; NULL: not one of ours. */
static const char *
bitmap_part (const char *name)
{
  if (g_str_has_prefix (name, QEMU_PREFIX))
    return name + strlen (QEMU_PREFIX);
  if (g_str_has_prefix (name, ALIAS_PREFIX))
    return name + strlen (ALIAS_PREFIX);
  return NULL;
}

static bool
is_wildcard (const char *query)
{
  return strcmp (query, "") == 0 || strcmp (query, "qemu:") == 0 ||
    strcmp (query, QEMU_PREFIX) == 0 || strcmp (query, ALIAS_PREFIX) == 0;
}

/* --- the contexts of an export that was added */

/* Its number, -1: none.  That of DEPTH comes after all bitmaps. */
static int
find_added (const AddedExport *added, const char *name)
{
  const char *bitmap = bitmap_part (name);

  if (strcmp (name, DEPTH) == 0 && added_export_has_depth (added))
    return (int) added_export_nr_bitmaps (added);
  if (bitmap == NULL)
    return -1;
  for (unsigned i = 0; i < added_export_nr_bitmaps (added); i++)
    if (strcmp (added_export_bitmap (added, i), bitmap) == 0)
      return (int) i;
  return -1;
}

static int
list_added (const AddedExport *added, const char *query,
            struct metacontext_list *list)
{
  const char *prefix =
    strcmp (query, ALIAS_PREFIX) == 0 ? ALIAS_PREFIX : QEMU_PREFIX;

  if (!is_wildcard (query)) {
    if (find_added (added, query) != -1)
      plugin.host->list_add (list, query);
    return 0;
  }
  if ((strcmp (query, "") == 0 || strcmp (query, "qemu:") == 0) &&
      added_export_has_depth (added) &&
      plugin.host->list_add (list, DEPTH) == -1)
    return 0;
  for (unsigned i = 0; i < added_export_nr_bitmaps (added); i++) {
    g_autofree char *name =
      g_strconcat (prefix, added_export_bitmap (added, i), NULL);

    if (plugin.host->list_add (list, name) == -1)
      break;
  }
  return 0;
}

/* --- of all */

/* As change_set_run, for a handle that may be longer than the set: the disk has
 * shrunk since it was opened. */
static uint64_t
run_of (const ChangeSet *set, uint64_t offset, uint64_t limit, bool *out_dirty)
{
  if (offset < change_set_size (set))
    return change_set_run (set, offset, limit, out_dirty);
  *out_dirty = true;
  return limit;
}

static int
contexts_list (void *opaque, const char *query, struct metacontext_list *list)
{
  const Handle *handle = opaque;
  const HandleContexts *ctx = &handle->contexts;
  const char *bitmap = bitmap_part (query);

  if (ctx->added != NULL)
    return list_added (ctx->added, query, list);
  if (ctx->bd == NULL)
    return 0;
  if (is_wildcard (query)) {
    const char *prefix =
      strcmp (query, ALIAS_PREFIX) == 0 ? ALIAS_PREFIX : QEMU_PREFIX;

    if (ctx->listed != NULL) {
      g_autofree char *name = g_strconcat (prefix, ctx->listed, NULL);

      plugin.host->list_add (list, name);
    }
  }
  /* A full name: would it be granted? */
  else if (bitmap != NULL &&
           contexts_find_map (ctx->bd, bitmap, NULL) != 0)
    plugin.host->list_add (list, query);
  return 0;
}

static int
contexts_select (void *opaque, const char *name, uint64_t *out_cookie)
{
  Handle *handle = opaque;
  HandleContexts *ctx = &handle->contexts;
  const char *bitmap = bitmap_part (name);
  g_autoptr (GError) error = NULL;
  uint64_t key;
  guint before;

  if (ctx->added != NULL) {
    int nr = find_added (ctx->added, name);

    *out_cookie = nr;
    return nr != -1;
  }
  if (ctx->bd == NULL || bitmap == NULL || *bitmap == '\0' ||
      handle_check (handle) != 0)
    return 0;
  key = ctx->since && strcmp (bitmap, ctx->listed) == 0 ?
    ctx->listed_key : contexts_find_map (ctx->bd, bitmap, NULL);
  if (key == 0)
    return 0;

  /* Its checkpoint may be deleted while the client reads: build it now. */
  before = ctx->maps->len;
  add_map (ctx, key);
  if (ctx->maps->len > before) {
    CachedMap *map = g_array_index (ctx->maps, CachedMap *, before);

    if (cached_map_load (map, &error) == NULL) {
      cached_map_put (map);
      g_array_set_size (ctx->maps, before);
      if (g_error_matches (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND))
        return 0;
      nbdkit_error ("export '%s': cannot tell what changed since '%s': %s",
                    ctx->bd->export, bitmap, error->message);
      return -1;
    }
    pthread_mutex_lock (&ctx->lock);
    g_clear_pointer (&ctx->dirty, change_set_unref);
    pthread_mutex_unlock (&ctx->lock);
  }
  *out_cookie = key;
  return 1;
}

static void
contexts_deselect_all (void *opaque)
{
  Handle *handle = opaque;

  if (handle->contexts.bd != NULL)
    drop_maps (&handle->contexts, handle->contexts.nr_pinned);
}

static int
fail (int err, const GError *error)
{
  if (error != NULL)
    nbdkit_error ("%s", error->message);
  else
    nbdkit_debug ("block status: %s", strerror (err));
  nbdkit_set_error (err);
  errno = err;
  return -1;
}

static void
count_extents (const Handle *handle, uint64_t nr)
{
  if (handle->bd != NULL)
    atomic_fetch_add_explicit (&handle->bd->served->extents, nr,
                               memory_order_relaxed);
}

/* Joins what is alike. */
typedef struct {
  struct metacontext_extents *extents;
  uint64_t length;
  uint32_t depth;
} DepthEmitter;

enum { DEPTH_STOP = 1 };

static int
depth_flush (DepthEmitter *em)
{
  uint64_t length = em->length;
  int r;

  em->length = 0;
  if (length == 0)
    return 0;
  r = plugin.host->extent_add (em->extents, length, em->depth);
  return r < 0 ? -EIO : r == 0 ? DEPTH_STOP : 0;
}

static int
depth_run (void *opaque, uint64_t length, unsigned depth)
{
  DepthEmitter *em = opaque;
  int r = em->depth != depth ? depth_flush (em) : 0;

  em->depth = depth;
  em->length += length;
  return r;
}

static int
depth_of_run (void *opaque, uint64_t length, bool zero)
{
  return depth_run (opaque, length, zero ? 0 : 1);
}

static int
depth_extents (const Handle *handle, uint64_t count, uint64_t offset,
               struct metacontext_extents *extents)
{
  DepthEmitter em = { extents, 0, 0 };
  int r = handle->bd != NULL
    ? snapshot_extents (handle->bd->snapshot, count, offset, depth_of_run, &em)
    : disk_depth (handle->disk, count, offset, depth_run, &em);

  if (r == 0)
    r = depth_flush (&em);
  return r < 0 ? fail (-r, NULL) : 0;
}

static int
contexts_extents (void *opaque, uint64_t cookie, uint64_t count,
                  uint64_t offset, uint32_t flags,
                  struct metacontext_extents *extents)
{
  Handle *handle = opaque;
  const HandleContexts *ctx = &handle->contexts;
  g_autoptr (GError) error = NULL;
  g_autoptr (ChangeSet) own = NULL;
  const ChangeSet *set = NULL;
  uint64_t end = offset + count, nr = 0;
  int r = handle_check (handle);

  if (r != 0)
    return fail (-r, NULL);
  if (ctx->added != NULL && added_export_has_depth (ctx->added) &&
      cookie == added_export_nr_bitmaps (ctx->added))
    return depth_extents (handle, count, offset, extents);
  if (ctx->added != NULL && cookie < added_export_nr_bitmaps (ctx->added)) {
    set = own = added_export_load (ctx->added, (unsigned) cookie, &error);
    if (set == NULL)
      return fail (EIO, error);
  }
  for (guint i = 0; ctx->maps != NULL && i < ctx->maps->len && set == NULL;
       i++) {
    CachedMap *map = g_array_index (ctx->maps, CachedMap *, i);

    if (cached_map_key (map) == cookie) {
      set = cached_map_load (map, &error);
      if (set == NULL)
        return fail (EIO, error);
    }
  }
  if (set == NULL)              /* a cookie that we never gave */
    return fail (EINVAL, NULL);

  while (offset < end) {
    bool dirty;
    uint64_t length = run_of (set, offset, end - offset, &dirty);

    r = plugin.host->extent_add (extents, length, dirty);
    if (r < 0)
      return -1;
    if (r == 0)
      break;
    offset += length;
    nr++;
  }
  count_extents (handle, nr);
  return 0;
}

const struct metacontext_plugin contexts_table = {
  .size = sizeof (struct metacontext_plugin),
  .list = contexts_list,
  .select = contexts_select,
  .deselect_all = contexts_deselect_all,
  .extents = contexts_extents,
  .export_kind = export_kind,
  .metrics = server_stats_metrics,
};

/* --- base:allocation --- */

/* The OR of all maps that matter to this handle; borrowed until the selection
 * changes.  NULL without error: there is none. */
static const ChangeSet *
get_dirty (HandleContexts *ctx, GError **error)
{
  g_autofree ChangeSet **sets = NULL;
  SCOPED_LOCK (&ctx->lock);

  if (ctx->dirty != NULL || ctx->maps->len == 0)
    return ctx->dirty;
  sets = g_new0 (ChangeSet *, ctx->maps->len);
  for (guint i = 0; i < ctx->maps->len; i++) {
    sets[i] = cached_map_load (g_array_index (ctx->maps, CachedMap *, i),
                               error);
    if (sets[i] == NULL)
      return NULL;
  }
  if (ctx->maps->len == 1)
    ctx->dirty = change_set_ref (sets[0]);
  else
    ctx->dirty = change_set_or (sets, ctx->maps->len,
                                snapshot_size (ctx->bd->snapshot),
                                disk_granularity (ctx->bd->disk), error);
  return ctx->dirty;
}

/* A new reference to the OR of all bitmaps of an added export.  NULL without
 * error: it has none. */
static ChangeSet *
get_dirty_added (AddedExport *added, uint64_t size, uint32_t granularity,
                 GError **error)
{
  unsigned nr = added_export_nr_bitmaps (added), loaded = 0;
  g_autofree ChangeSet **sets = g_new0 (ChangeSet *, nr + 1);
  ChangeSet *all = NULL;

  while (loaded < nr &&
         (sets[loaded] = added_export_load (added, loaded, error)) != NULL)
    loaded++;
  if (nr == 1)
    return sets[0];
  if (nr > 1 && loaded == nr)
    all = change_set_or (sets, nr, size, granularity, error);
  for (unsigned i = 0; i < loaded; i++)
    change_set_unref (sets[i]);
  return all;
}

/* Joins what is alike, and for REQ_ONE stops after the first extent. */
typedef struct {
  struct nbdkit_extents *extents;
  const ChangeSet *dirty;       /* NULL: nothing is */
  uint64_t offset;              /* start of what is not added yet */
  uint64_t length;
  uint32_t type;
  bool one;
  uint64_t dirty_end;           /* is_dirty holds from offset to here */
  bool is_dirty;
  uint64_t nr;                  /* extents that were added */
} Emitter;

enum { EMIT_STOP = 1 };

static int
emit_flush (Emitter *em)
{
  if (em->length > 0 &&
      nbdkit_add_extent (em->extents, em->offset, em->length, em->type) == -1)
    return errno != 0 ? -errno : -ENOMEM;
  em->nr += em->length > 0;
  em->offset += em->length;
  em->length = 0;
  return em->one ? EMIT_STOP : 0;
}

static int
emit (Emitter *em, uint64_t length, uint32_t type)
{
  if (em->length > 0 && em->type != type) {
    int r = emit_flush (em);

    if (r != 0)
      return r;
  }
  em->type = type;
  em->length += length;
  return 0;
}

static int
emit_run (void *opaque, uint64_t length, bool zero)
{
  Emitter *em = opaque;
  int r = 0;

  if (!zero)
    return emit (em, length, 0);
  while (length > 0 && r == 0) {
    uint64_t at = em->offset + em->length;
    uint64_t part = length;
    uint32_t type = NBDKIT_EXTENT_ZERO;

    if (em->dirty != NULL) {
      if (at >= em->dirty_end)
        em->dirty_end = at +
          run_of (em->dirty, at, UINT32_MAX, &em->is_dirty);
      part = MIN (part, em->dirty_end - at);
    }
    if (em->dirty == NULL || !em->is_dirty)
      type |= NBDKIT_EXTENT_HOLE;
    r = emit (em, part, type);
    length -= part;
  }
  return r;
}

/* The map as allocation, for hosts that can serve nothing else. */
static int
emit_map (Emitter *em, const ChangeSet *set, uint64_t length)
{
  uint64_t at = em->offset, end = em->offset + length;
  int r = 0;

  while (at < end && r == 0) {
    bool dirty;
    uint64_t part = change_set_run (set, at, end - at, &dirty);

    r = emit (em, part, dirty ? 0 : NBDKIT_EXTENT_HOLE);
    at += part;
  }
  return r;
}

static const ChangeSet *
listed_map (const HandleContexts *ctx, GError **error)
{
  for (guint i = 0; i < ctx->maps->len; i++) {
    CachedMap *map = g_array_index (ctx->maps, CachedMap *, i);

    if (cached_map_key (map) == ctx->listed_key)
      return cached_map_load (map, error);
  }
  g_assert_not_reached ();
}

int
contexts_allocation (void *opaque, uint32_t count, uint64_t offset, bool one,
                     struct nbdkit_extents *extents)
{
  Handle *handle = opaque;
  HandleContexts *ctx = &handle->contexts;
  g_autoptr (GError) error = NULL;
  g_autoptr (ChangeSet) own = NULL;
  Emitter em = { .extents = extents, .offset = offset, .one = one };
  int r = handle_check (handle);

  if (r == 0 && handle->bd != NULL && handle->bd->kept != NULL) {
    bool kept;
    uint64_t run = change_set_run (handle->bd->kept, offset, count, &kept);

    /* As far as can be told. */
    count = (uint32_t) run;
    r = kept ? 0 : -EIO;
  }
  if (r != 0)
    return r;
  if (handle->rd != NULL)
    r = overlay_extents (handle->rd->overlay, count, offset, emit_run, &em);
  else if (ctx->added != NULL) {
    em.dirty = own =
      get_dirty_added (ctx->added, handle->bd != NULL ?
                       snapshot_size (handle->bd->snapshot)
                       : disk_size (handle->disk),
                       disk_granularity (handle->disk), &error);
    if (error == NULL)
      r = handle->bd != NULL ?
        snapshot_extents (handle->bd->snapshot, count, offset, emit_run, &em)
        : disk_extents (handle->disk, count, offset, emit_run, &em);
  }
  else if (ctx->bd == NULL)
    r = disk_extents (handle->disk, count, offset, emit_run, &em);
  else if (ctx->since && plugin.host == NULL) {
    const ChangeSet *set = listed_map (ctx, &error);

    if (set != NULL)
      r = emit_map (&em, set, count);
  }
  else {
    em.dirty = get_dirty (ctx, &error);
    if (error == NULL)
      r = snapshot_extents (ctx->bd->snapshot, count, offset, emit_run, &em);
  }
  if (error != NULL) {
    nbdkit_error ("%s", error->message);
    return -EIO;
  }
  if (r == 0)
    r = emit_flush (&em);
  count_extents (handle, em.nr);
  return r < 0 ? r : 0;
}
