/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* named-bitmap-store.c - rows of named bitmaps: tables bitmap, bitmap_interval,
 * bitmap_blob and change_blob. */
#include "config.h"

#include "bitmap/bitmap-error.h"
#include "bitmap/dirty-bitmap.h"
#include "bitmap/fail-point.h"
#include "bitmap/named-bitmap.h"

static void
free_element (gpointer data)
{
  named_bitmap_free (data);
}

/* --- reading */

typedef struct {
  int64_t disk;
  GPtrArray *list;
  GHashTable *by_id;            /* the same bitmaps; borrowed */
} Listing;

typedef void (*RowFn) (Listing *listing, sqlite3_stmt *stmt);

/* sql: a literal; its ?1 is the disk and ?2 key.  fn: for each row. */
static bool
each_row (Catalog *cat, const char *sql, int64_t key, RowFn fn,
          Listing *listing, GError **error)
{
  sqlite3_stmt *stmt = catalog_stmt (cat, sql, error);
  int rc;

  if (stmt == NULL)
    return false;
  sqlite3_bind_int64 (stmt, 1, listing->disk);
  sqlite3_bind_int64 (stmt, 2, key);
  while ((rc = catalog_step_row (cat, stmt, error)) == 1)
    fn (listing, stmt);
  return rc == 0;
}

static void
add_bitmap (Listing *listing, sqlite3_stmt *stmt)
{
  NamedBitmap *bm =
    named_bitmap_new (listing->disk,
                      (const char *) sqlite3_column_text (stmt, 1),
                      (uint32_t) sqlite3_column_int64 (stmt, 2),
                      (uint64_t) sqlite3_column_int64 (stmt, 6), false);

  bm->id = sqlite3_column_int64 (stmt, 0);
  bm->persistent = sqlite3_column_int (stmt, 3);
  bm->recording = sqlite3_column_int (stmt, 4);
  bm->inconsistent = sqlite3_column_int (stmt, 5);
  g_ptr_array_add (listing->list, bm);
  g_hash_table_insert (listing->by_id, &bm->id, bm);
}

/* Whose row this is, by its first column; NULL: of none in the list. */
static NamedBitmap *
bitmap_of (const Listing *listing, sqlite3_stmt *stmt)
{
  int64_t id = sqlite3_column_int64 (stmt, 0);

  return g_hash_table_lookup (listing->by_id, &id);
}

static void
add_interval (Listing *listing, sqlite3_stmt *stmt)
{
  NamedBitmap *bm = bitmap_of (listing, stmt);
  BitmapInterval iv = {
    .disk = sqlite3_column_int64 (stmt, 1),
    .from = (uint64_t) sqlite3_column_int64 (stmt, 2),
    .to = sqlite3_column_type (stmt, 3) == SQLITE_NULL ? BITMAP_OPEN
      : (uint64_t) sqlite3_column_int64 (stmt, 3),
    .granularity = (uint32_t) sqlite3_column_int64 (stmt, 4),
  };

  if (bm != NULL)
    g_array_append_val (bm->intervals, iv);
}

static void
add_blob_of_row (Listing *listing, sqlite3_stmt *stmt)
{
  NamedBitmap *bm = bitmap_of (listing, stmt);
  BitmapBlob blob = {
    .id = sqlite3_column_int64 (stmt, 1),
    .granularity = (uint32_t) sqlite3_column_int64 (stmt, 2),
  };

  if (bm != NULL)
    g_array_append_val (bm->blobs, blob);
}

/* snapshot: 0 stands for NULL. */
static GPtrArray *
list_all (Catalog *cat, int64_t disk, int64_t snapshot, GError **error)
{
  g_autoptr (GPtrArray) list = g_ptr_array_new_with_free_func (free_element);
  g_autoptr (GHashTable) by_id = g_hash_table_new (g_int64_hash,
                                                   g_int64_equal);
  Listing listing = { disk, list, by_id };
  bool ok;

  catalog_lock (cat);
  ok =
    each_row (cat,
      "SELECT id, name, granularity, persistent, recording, inconsistent, size"
      " FROM bitmap WHERE disk = ?1 AND ifnull (snapshot, 0) = ?2"
      " ORDER BY name", snapshot, add_bitmap, &listing, error) &&
    each_row (cat,
      "SELECT i.bitmap, i.disk, i.from_epoch, i.to_epoch, i.granularity"
      " FROM bitmap AS b JOIN bitmap_interval AS i ON i.bitmap = b.id"
      " WHERE b.disk = ?1 AND ifnull (b.snapshot, 0) = ?2",
      snapshot, add_interval, &listing, error) &&
    each_row (cat,
      "SELECT r.bitmap, r.blob, r.granularity"
      " FROM bitmap AS b JOIN bitmap_blob AS r ON r.bitmap = b.id"
      " WHERE b.disk = ?1 AND ifnull (b.snapshot, 0) = ?2",
      snapshot, add_blob_of_row, &listing, error);
  catalog_unlock (cat);
  return ok ? g_steal_pointer (&list) : NULL;
}

GPtrArray *
named_bitmap_list (Catalog *cat, int64_t disk, int64_t snapshot,
                   GError **error)
{
  GPtrArray *list = list_all (cat, disk, snapshot, error);

  for (guint i = list != NULL ? list->len : 0; i > 0; i--) {
    const NamedBitmap *bm = list->pdata[i - 1];

    if (bm->name[0] == BITMAP_INTERNAL)
      g_ptr_array_remove_index (list, i - 1);
  }
  return list;
}

/* The row of that name, into the list.  Two statements: each of the partial
 * indexes serves only one that has its condition. */
static bool
find_row (Catalog *cat, Listing *listing, int64_t snapshot, const char *name,
          GError **error)
{
  sqlite3_stmt *stmt = catalog_stmt (cat, snapshot == 0 ?
    "SELECT id, name, granularity, persistent, recording, inconsistent, size"
    " FROM bitmap WHERE disk = ?1 AND name = ?2 AND snapshot IS NULL" :
    "SELECT id, name, granularity, persistent, recording, inconsistent, size"
    " FROM bitmap WHERE +disk = ?1 AND name = ?2 AND snapshot = ?3", error);
  int rc;

  if (stmt == NULL)
    return false;
  sqlite3_bind_int64 (stmt, 1, listing->disk);
  sqlite3_bind_text (stmt, 2, name, -1, SQLITE_STATIC);
  if (snapshot != 0)
    sqlite3_bind_int64 (stmt, 3, snapshot);
  while ((rc = catalog_step_row (cat, stmt, error)) == 1)
    add_bitmap (listing, stmt);
  sqlite3_clear_bindings (stmt);
  return rc == 0;
}

/* Costs the same however many there are: a transaction looks up thousands. */
NamedBitmap *
named_bitmap_find (Catalog *cat, int64_t disk, int64_t snapshot,
                   const char *name, GError **error)
{
  g_autoptr (GPtrArray) list = g_ptr_array_new_with_free_func (free_element);
  g_autoptr (GHashTable) by_id = g_hash_table_new (g_int64_hash,
                                                   g_int64_equal);
  Listing listing = { disk, list, by_id };
  NamedBitmap *bm = NULL;
  bool ok;

  catalog_lock (cat);
  ok = find_row (cat, &listing, snapshot, name, error);
  if (ok && list->len > 0) {
    bm = list->pdata[0];
    ok =
      each_row (cat, "SELECT bitmap, disk, from_epoch, to_epoch, granularity"
                " FROM bitmap_interval WHERE bitmap = ?2", bm->id,
                add_interval, &listing, error) &&
      each_row (cat, "SELECT bitmap, blob, granularity FROM bitmap_blob"
                " WHERE bitmap = ?2", bm->id, add_blob_of_row, &listing,
                error);
  }
  catalog_unlock (cat);
  return ok && bm != NULL ? g_ptr_array_steal_index (list, 0) : NULL;
}

bool
named_bitmap_find_user (Catalog *cat, int64_t disk, char **out_name,
                        char **out_disk, GError **error)
{
  sqlite3_stmt *stmt;
  int rc = -1;

  catalog_lock (cat);
  stmt = catalog_stmt (cat,
    "SELECT b.name, d.name FROM bitmap_interval AS i"
    " JOIN bitmap AS b ON b.id = i.bitmap JOIN disk AS d ON d.id = b.disk"
    " WHERE i.disk = ?1 AND b.disk != ?1 LIMIT 1", error);
  if (stmt != NULL) {
    sqlite3_bind_int64 (stmt, 1, disk);
    rc = catalog_step_row (cat, stmt, error);
  }
  if (rc == 1) {
    *out_name = g_strdup ((const char *) sqlite3_column_text (stmt, 0));
    *out_disk = g_strdup ((const char *) sqlite3_column_text (stmt, 1));
  }
  catalog_unlock (cat);
  return rc >= 0;
}

/* --- writing */

static bool
drop_unused_blobs (Catalog *cat, GError **error)
{
  return catalog_run (cat, "DELETE FROM change_blob WHERE NOT EXISTS"
                      " (SELECT 1 FROM bitmap_blob"
                      "  WHERE bitmap_blob.blob = change_blob.id)", error, "");
}

/* snapshot: that keeps it; 0: it is a live one. */
static bool
put_row (Catalog *cat, NamedBitmap *bm, int64_t snapshot, GError **error)
{
  sqlite3_stmt *stmt = catalog_stmt (cat,
    "INSERT INTO bitmap (id, disk, name, granularity, persistent, recording,"
    "                    inconsistent, size, snapshot)"
    " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)"
    " ON CONFLICT (id) DO UPDATE SET persistent = excluded.persistent,"
    "   recording = excluded.recording, inconsistent = excluded.inconsistent,"
    "   size = excluded.size", error);
  bool ok;

  if (stmt == NULL)
    return false;
  if (bm->id != 0)              /* else NULL: the next */
    sqlite3_bind_int64 (stmt, 1, bm->id);
  sqlite3_bind_int64 (stmt, 2, bm->disk);
  sqlite3_bind_text (stmt, 3, bm->name, -1, SQLITE_STATIC);
  sqlite3_bind_int64 (stmt, 4, bm->granularity);
  sqlite3_bind_int (stmt, 5, bm->persistent);
  sqlite3_bind_int (stmt, 6, bm->recording);
  sqlite3_bind_int (stmt, 7, bm->inconsistent);
  sqlite3_bind_int64 (stmt, 8, (int64_t) bm->size);
  if (snapshot != 0)
    sqlite3_bind_int64 (stmt, 9, snapshot);
  ok = catalog_step_done (cat, stmt, error);
  sqlite3_clear_bindings (stmt);
  if (ok && bm->id == 0)
    bm->id = catalog_last_id (cat);
  return ok;
}

static bool
put_interval (Catalog *cat, int64_t id, const BitmapInterval *iv,
              GError **error)
{
  sqlite3_stmt *stmt = catalog_stmt (cat,
    "INSERT INTO bitmap_interval (bitmap, disk, from_epoch, to_epoch,"
    "                             granularity)"
    " VALUES (?1, ?2, ?3, ?4, ?5)", error);

  if (stmt == NULL)
    return false;
  sqlite3_bind_int64 (stmt, 1, id);
  sqlite3_bind_int64 (stmt, 2, iv->disk);
  sqlite3_bind_int64 (stmt, 3, (int64_t) iv->from);
  if (iv->to != BITMAP_OPEN)
    sqlite3_bind_int64 (stmt, 4, (int64_t) iv->to);
  sqlite3_bind_int64 (stmt, 5, iv->granularity);
  return catalog_step_done (cat, stmt, error);
}

static bool
put_blob (Catalog *cat, int64_t id, const BitmapBlob *blob, GError **error)
{
  return catalog_run (cat,
    "INSERT INTO bitmap_blob (bitmap, blob, granularity) VALUES (?, ?, ?)",
    error, "iii", id, blob->id, (int64_t) blob->granularity);
}

static bool
name_is_free (Catalog *cat, const NamedBitmap *bm, GError **error)
{
  sqlite3_stmt *stmt = catalog_stmt (cat,
    "SELECT 1 FROM bitmap WHERE disk = ?1 AND name = ?2 AND snapshot IS NULL"
    " UNION ALL SELECT 1 FROM checkpoint_disk AS cd"
    "   JOIN checkpoint AS c ON c.id = cd.checkpoint"
    "   WHERE cd.disk = ?1 AND (cd.bitmap = ?2 OR c.name = ?2)", error);
  int rc = -1;

  if (stmt != NULL) {
    sqlite3_bind_int64 (stmt, 1, bm->disk);
    sqlite3_bind_text (stmt, 2, bm->name, -1, SQLITE_STATIC);
    rc = catalog_step_row (cat, stmt, error);
    sqlite3_reset (stmt);
    sqlite3_clear_bindings (stmt);
  }
  if (rc == 1)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS,
                 "Bitmap already exists: %s", bm->name);
  return rc == 0;
}

static bool
put_parts (Catalog *cat, const NamedBitmap *bm, GError **error)
{
  for (guint i = 0; i < bm->intervals->len; i++)
    if (!put_interval (cat, bm->id,
                       &g_array_index (bm->intervals, BitmapInterval, i),
                       error))
      return false;
  for (guint i = 0; i < bm->blobs->len; i++)
    if (!put_blob (cat, bm->id, &g_array_index (bm->blobs, BitmapBlob, i),
                   error))
      return false;
  return true;
}

static bool
put_all (Catalog *cat, NamedBitmap *bm, GError **error)
{
  FAIL_POINT ("N-put");
  if ((bm->id == 0 && !name_is_free (cat, bm, error)) ||
      !put_row (cat, bm, 0, error) ||
      !catalog_run (cat, "DELETE FROM bitmap_interval WHERE bitmap = ?", error,
                    "i", bm->id) ||
      !catalog_run (cat, "DELETE FROM bitmap_blob WHERE bitmap = ?", error, "i",
                    bm->id))
    return false;
  FAIL_POINT ("N-parts");
  if (!put_parts (cat, bm, error))
    return false;
  FAIL_POINT ("N-blobs");
  return drop_unused_blobs (cat, error);
}

bool
named_bitmap_put (Catalog *cat, NamedBitmap *bm, GError **error)
{
  int64_t id = bm->id;

  if (!catalog_begin (cat, error))
    return false;
  if (put_all (cat, bm, error)) {
    if (catalog_commit (cat, error))
      return true;
  }
  else
    catalog_rollback (cat);
  bm->id = id;
  return false;
}

bool
named_bitmap_delete (Catalog *cat, int64_t id, GError **error)
{
  if (!catalog_begin (cat, error))
    return false;
  FAIL_POINT ("N-delete");
  if (!catalog_run (cat, "DELETE FROM bitmap WHERE id = ?", error, "i", id) ||
      !drop_unused_blobs (cat, error)) {
    catalog_rollback (cat);
    return false;
  }
  return catalog_commit (cat, error);
}

/* Ids of int64_t. */
static GArray *
list_transient (Catalog *cat, int64_t disk, GError **error)
{
  g_autoptr (GArray) ids = g_array_new (FALSE, FALSE, sizeof (int64_t));
  sqlite3_stmt *stmt =
    catalog_stmt (cat, "SELECT id FROM bitmap WHERE persistent = 0"
                  " AND snapshot IS NULL AND (?1 = 0 OR disk = ?1)", error);
  int rc;

  if (stmt == NULL)
    return NULL;
  sqlite3_bind_int64 (stmt, 1, disk);
  while ((rc = catalog_step_row (cat, stmt, error)) == 1) {
    int64_t id = sqlite3_column_int64 (stmt, 0);

    g_array_append_val (ids, id);
  }
  return rc == 0 ? g_steal_pointer (&ids) : NULL;
}

static bool
contains (const GArray *ids, int64_t id)
{
  for (guint i = 0; ids != NULL && i < ids->len; i++)
    if (g_array_index (ids, int64_t, i) == id)
      return true;
  return false;
}

static bool
delete_transient (Catalog *cat, int64_t disk, const GArray *keep,
                  GError **error)
{
  g_autoptr (GArray) ids = list_transient (cat, disk, error);

  for (guint i = 0; ids != NULL && i < ids->len; i++) {
    int64_t id = g_array_index (ids, int64_t, i);

    if (!contains (keep, id) &&
        !catalog_run (cat, "DELETE FROM bitmap WHERE id = ?", error, "i", id))
      return false;
  }
  return ids != NULL && drop_unused_blobs (cat, error);
}

bool
named_bitmap_delete_transient (Catalog *cat, int64_t disk, const GArray *keep,
                               GError **error)
{
  if (!catalog_begin (cat, error))
    return false;
  FAIL_POINT ("N-delete");
  if (!delete_transient (cat, disk, keep, error)) {
    catalog_rollback (cat);
    return false;
  }
  return catalog_commit (cat, error);
}

bool
named_bitmap_store_blob (Catalog *cat, const ChangeSet *set,
                         int64_t *out_blob, GError **error)
{
  g_autoptr (GBytes) blob = change_set_serialize (set, error);
  bool ok;

  if (blob == NULL)
    return false;
  catalog_lock (cat);
  ok = catalog_run (cat, "INSERT INTO change_blob (blob) VALUES (?)", error,
                    "b", blob);
  if (ok)
    *out_blob = catalog_last_id (cat);
  catalog_unlock (cat);
  return ok;
}

/* --- all of a disk's */

static bool
freeze_rows (Catalog *cat, int64_t disk, int64_t snapshot, int64_t boundary,
             GError **error)
{
  return catalog_run (cat,
    "INSERT INTO bitmap (disk, snapshot, name, granularity, persistent,"
    "                    recording, inconsistent, size)"
    " SELECT disk, ?2, name, granularity, persistent, 0, inconsistent, size"
    "   FROM bitmap WHERE disk = ?1 AND snapshot IS NULL",
    error, "ii", disk, snapshot) &&
  catalog_run (cat,
    "INSERT INTO bitmap_interval (bitmap, disk, from_epoch, to_epoch,"
    "                             granularity)"
    " SELECT kept.id, i.disk, i.from_epoch,"
    "        CASE WHEN i.disk = ?1 THEN min (ifnull (i.to_epoch, ?3), ?3)"
    "             ELSE i.to_epoch END, i.granularity"
    "   FROM bitmap AS live"
    "   JOIN bitmap AS kept ON kept.snapshot = ?2 AND kept.name = live.name"
    "   JOIN bitmap_interval AS i ON i.bitmap = live.id"
    "   WHERE live.disk = ?1 AND live.snapshot IS NULL"
    "     AND NOT (i.disk = ?1 AND i.from_epoch >= ?3)",
    error, "iii", disk, snapshot, boundary) &&
  catalog_run (cat,
    "INSERT INTO bitmap_blob (bitmap, blob, granularity)"
    " SELECT kept.id, r.blob, r.granularity"
    "   FROM bitmap AS live"
    "   JOIN bitmap AS kept ON kept.snapshot = ?2 AND kept.name = live.name"
    "   JOIN bitmap_blob AS r ON r.bitmap = live.id"
    "   WHERE live.disk = ?1 AND live.snapshot IS NULL",
    error, "ii", disk, snapshot);
}

bool
named_bitmap_freeze (Catalog *cat, int64_t disk, int64_t snapshot,
                     uint64_t boundary, GError **error)
{
  if (!catalog_begin (cat, error))
    return false;
  if (!freeze_rows (cat, disk, snapshot, (int64_t) boundary, error)) {
    catalog_rollback (cat);
    return false;
  }
  FAIL_POINT ("N-freeze");
  return catalog_commit (cat, error);
}

bool
named_bitmap_keep (Catalog *cat, int64_t snapshot, const char *name,
                   NamedBitmap *bm, GError **error)
{
  bool ok;

  if (!catalog_begin (cat, error))
    return false;
  ok = catalog_run (cat, "DELETE FROM bitmap WHERE snapshot = ? AND name = ?",
                    error, "it", snapshot, name);
  if (ok && bm != NULL) {
    bm->id = 0;
    ok = put_row (cat, bm, snapshot, error) && put_parts (cat, bm, error);
  }
  if (!ok) {
    catalog_rollback (cat);
    return false;
  }
  return catalog_commit (cat, error);
}

bool
named_bitmap_shrink (Catalog *cat, int64_t disk, uint64_t size,
                     GError **error)
{
  bool ok;

  catalog_lock (cat);
  FAIL_POINT ("N-shrink");
  ok = catalog_run (cat, "UPDATE bitmap SET size = min (size, ?)"
                    " WHERE disk = ? AND snapshot IS NULL", error, "ii",
                    (int64_t) size, disk);
  catalog_unlock (cat);
  return ok;
}

bool
named_bitmap_finest (Catalog *cat, int64_t disk, uint32_t most,
                     uint32_t *out_granularity, GError **error)
{
  sqlite3_stmt *stmt;
  int rc = -1;

  catalog_lock (cat);
  stmt = catalog_stmt (cat,
    "SELECT min (granularity) FROM bitmap WHERE disk = ?1"
    " AND recording = 1 AND snapshot IS NULL", error);
  if (stmt != NULL) {
    sqlite3_bind_int64 (stmt, 1, disk);
    rc = catalog_step_row (cat, stmt, error);
  }
  if (rc == 1) {
    int64_t finest = sqlite3_column_type (stmt, 0) == SQLITE_NULL ? most
      : sqlite3_column_int64 (stmt, 0);

    *out_granularity = (uint32_t) CLAMP (finest, (int64_t) GRANULARITY_MIN,
                                         (int64_t) most);
    sqlite3_reset (stmt);
  }
  catalog_unlock (cat);
  return rc == 1;
}
