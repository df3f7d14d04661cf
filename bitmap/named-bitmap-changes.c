/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* named-bitmap-changes.c - what a named bitmap says: the OR of its parts, each
 * rounded out to its own granularity first. */
#include "config.h"

#include "bitmap/bitmap-error.h"
#include "bitmap/dirty-bitmap.h"
#include "bitmap/fail-point.h"
#include "bitmap/granule.h"
#include "bitmap/named-bitmap.h"

typedef struct {
  Catalog *cat;
  NamedBitmapFindLog find_log;
  void *opaque;
  GPtrArray *sets;              /* of ChangeSet, a reference each */
  bool damaged;
} Parts;

static bool
is_damage (const GError *error)
{
  return !g_error_matches (error, BITMAP_ERROR, BITMAP_ERROR_NO_MEMORY);
}

/* Takes set. */
static bool
add_rounded (Parts *parts, ChangeSet *set, uint32_t granularity,
             GError **error)
{
  ChangeSet *rounded = change_set_round_out (set, granularity, error);

  change_set_unref (set);
  if (rounded == NULL)
    return false;
  g_ptr_array_add (parts->sets, rounded);
  return true;
}

/* false: no memory; what cannot be read is damage instead. */
static bool
add_interval (Parts *parts, const BitmapInterval *iv, GError **error)
{
  EpochLog *log = parts->find_log (parts->opaque, iv->disk);
  g_autoptr (GError) local = NULL;
  ChangeSet *set = NULL;
  bool damaged = false;

  if (log != NULL)
    set = epoch_log_changed (log, iv->from,
                             iv->to == BITMAP_OPEN ? 0 : iv->to, &damaged,
                             &local);
  if (set == NULL && local != NULL && !is_damage (local)) {
    g_propagate_error (error, g_steal_pointer (&local));
    return false;
  }
  parts->damaged |= damaged || set == NULL;
  return set == NULL || add_rounded (parts, set, iv->granularity, error);
}

/* NULL with an error; see is_damage. */
static ChangeSet *
load_blob (Catalog *cat, int64_t id, GError **error)
{
  ChangeSet *set = NULL;
  sqlite3_stmt *stmt;
  int rc = -1;

  catalog_lock (cat);
  stmt = catalog_stmt (cat, "SELECT blob FROM change_blob WHERE id = ?1",
                       error);
  if (stmt != NULL) {
    sqlite3_bind_int64 (stmt, 1, id);
    rc = catalog_step_row (cat, stmt, error);
  }
  if (rc == 0)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_CORRUPT,
                 "change set %" G_GINT64_FORMAT " has gone", id);
  else if (rc == 1) {
    const void *data = sqlite3_column_blob (stmt, 0);
    g_autoptr (GBytes) blob =
      g_bytes_new_static (data, (size_t) sqlite3_column_bytes (stmt, 0));

    set = change_set_deserialize (blob, error);
    sqlite3_reset (stmt);
  }
  catalog_unlock (cat);
  return set;
}

static bool
add_blob (Parts *parts, const BitmapBlob *blob, GError **error)
{
  g_autoptr (GError) local = NULL;
  ChangeSet *set = load_blob (parts->cat, blob->id, &local);

  if (set == NULL && !is_damage (local)) {
    g_propagate_error (error, g_steal_pointer (&local));
    return false;
  }
  parts->damaged |= set == NULL;
  return set == NULL || add_rounded (parts, set, blob->granularity, error);
}

static bool
collect (Parts *parts, const NamedBitmap *bm, GError **error)
{
  for (guint i = 0; i < bm->intervals->len && !parts->damaged; i++)
    if (!add_interval (parts, &g_array_index (bm->intervals, BitmapInterval,
                                              i), error))
      return false;
  for (guint i = 0; i < bm->blobs->len && !parts->damaged; i++)
    if (!add_blob (parts, &g_array_index (bm->blobs, BitmapBlob, i), error))
      return false;
  return true;
}

ChangeSet *
named_bitmap_changes (Catalog *cat, const NamedBitmap *bm, uint64_t disk_size,
                      NamedBitmapFindLog find_log, void *opaque,
                      bool *out_damaged, GError **error)
{
  g_autoptr (GPtrArray) sets =
    g_ptr_array_new_with_free_func ((GDestroyNotify) change_set_unref);
  Parts parts = { cat, find_log, opaque, sets, bm->inconsistent };
  uint32_t granularity = granule_fit (disk_size, CLAMP (bm->granularity,
                                                        GRANULARITY_MIN,
                                                        GRANULARITY_MAX));
  g_autoptr (ChangeSet) set = NULL;

  if (granularity == 0)
    granularity = GRANULARITY_MAX;      /* refused below, with a reason */
  FAIL_POINT ("N-changes");
  if (!collect (&parts, bm, error))
    return NULL;
  if (out_damaged != NULL)
    *out_damaged = parts.damaged;
  if (parts.damaged)
    return change_set_new_full (disk_size, granularity, error);

  /* An empty set of what the bitmap was made for: what lies beyond is dirty, as
   * change_set_or has it. */
  set = change_set_new_empty (MIN (bm->size, disk_size), granularity, error);
  if (set == NULL)
    return NULL;
  g_ptr_array_add (sets, g_steal_pointer (&set));
  set = change_set_or ((ChangeSet *const *) sets->pdata, sets->len, disk_size,
                       granularity, error);
  return set != NULL ? change_set_round_out (set, bm->granularity, error)
    : NULL;
}

uint64_t
named_bitmap_count (const NamedBitmap *bm, const ChangeSet *set)
{
  uint64_t size = change_set_size (set), offset = 0, bytes = 0;
  uint64_t granularity = bm->granularity;

  if (granularity == change_set_granularity (set))
    return change_set_count (set) * granularity;
  /* Runs are of whole granules of the bitmap's, but for the disk's last. */
  while (offset < size) {
    bool dirty;
    uint64_t length = change_set_run (set, offset, size - offset, &dirty);

    if (dirty)
      bytes += (length + granularity - 1) / granularity * granularity;
    offset += length;
  }
  return bytes;
}

/* --- many at once */

/* Has it been recording since one moment, and nothing else? */
static bool
is_simple (const NamedBitmap *bm, uint64_t disk_size)
{
  const BitmapInterval *iv = &g_array_index (bm->intervals, BitmapInterval, 0);

  return bm->intervals->len == 1 && bm->blobs->len == 0 &&
    bm->size >= disk_size && iv->disk == bm->disk && iv->to == BITMAP_OPEN &&
    iv->granularity <= bm->granularity;
}

typedef struct {
  const NamedBitmap *bm;
  uint64_t from;
  guint index;                  /* in the caller's array */
} Simple;

static gint
simple_compare (gconstpointer a, gconstpointer b)
{
  const Simple *x = a, *y = b;

  return (x->from < y->from) - (x->from > y->from);
}

/* The youngest first: each adds the epochs up to the one before. */
static bool
count_simple (GArray *simple, EpochLog *log, uint64_t disk_size,
              NamedBitmapCount *counts, GError **error)
{
  g_autoptr (ChangeSet) sum = NULL;
  bool damaged = false;
  uint64_t to = 0;

  g_array_sort (simple, simple_compare);
  for (guint i = 0; i < simple->len; i++) {
    const Simple *s = &g_array_index (simple, Simple, i);
    g_autoptr (ChangeSet) rounded = NULL;

    if (s->from != to && !damaged) {
      g_autoptr (ChangeSet) part =
        epoch_log_changed (log, s->from, to, &damaged, NULL);

      if (part == NULL)
        damaged = true;
      else {
        ChangeSet *both[] = { part, sum };
        ChangeSet *all = change_set_or (both, sum != NULL ? 2 : 1, disk_size,
                                        0, error);

        if (all == NULL)
          return false;
        change_set_unref (sum);
        sum = all;
      }
      to = s->from;
    }
    counts[s->index].damaged = damaged;
    if (damaged)
      continue;
    rounded = change_set_round_out (sum, s->bm->granularity, error);
    if (rounded == NULL)
      return false;
    counts[s->index].bytes = named_bitmap_count (s->bm, rounded);
  }
  return true;
}

NamedBitmapCount *
named_bitmap_count_all (Catalog *cat, const GPtrArray *bitmaps,
                        uint64_t disk_size, NamedBitmapFindLog find_log,
                        void *opaque, GError **error)
{
  g_autofree NamedBitmapCount *counts = g_new0 (NamedBitmapCount,
                                                bitmaps->len);
  g_autoptr (GArray) simple = g_array_new (FALSE, FALSE, sizeof (Simple));
  EpochLog *log = NULL;

  for (guint i = 0; i < bitmaps->len; i++) {
    const NamedBitmap *bm = bitmaps->pdata[i];
    g_autoptr (ChangeSet) set = NULL;

    log = find_log (opaque, bm->disk);
    if (log != NULL && is_simple (bm, disk_size)) {
      Simple s = { bm, g_array_index (bm->intervals, BitmapInterval, 0).from,
                   i };

      g_array_append_val (simple, s);
      continue;
    }
    set = named_bitmap_changes (cat, bm, disk_size, find_log, opaque,
                                &counts[i].damaged, error);
    if (set == NULL)
      return NULL;
    counts[i].bytes = named_bitmap_count (bm, set);
  }
  if (simple->len > 0 &&
      !count_simple (simple, log, disk_size, counts, error))
    return NULL;
  return g_steal_pointer (&counts);
}
