/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* overlay-store.c - the catalog rows of overlays, and where a disk's image
 * is. */
#include <config.h>

#include <string.h>

#include "fleece/overlay-internal.h"

static const char *const state_names[] = {
  [OVERLAY_PREPARED] = "prepared",
  [OVERLAY_LIVE] = "live",
  [OVERLAY_DETACHED] = "detached",
  [OVERLAY_PLANNED] = "planned",
  [OVERLAY_GONE] = "retired",
};

static void
row_free (gpointer p)
{
  OverlayRow *row = p;

  g_free (row->name);
  g_free (row->file);
  g_free (row);
}

static OverlayRow *
row_read (sqlite3_stmt *stmt)
{
  OverlayRow *row = g_new0 (OverlayRow, 1);
  const char *state = (const char *) sqlite3_column_text (stmt, 4);

  row->id = sqlite3_column_int64 (stmt, 0);
  row->name = g_strdup ((const char *) sqlite3_column_text (stmt, 1));
  row->file = g_strdup ((const char *) sqlite3_column_text (stmt, 2));
  row->capacity = sqlite3_column_int64 (stmt, 3);
  while (row->state < OVERLAY_GONE &&
         g_strcmp0 (state, state_names[row->state]) != 0)
    row->state++;
  row->keep = sqlite3_column_int (stmt, 5);
  row->zero = sqlite3_column_int (stmt, 6);
  row->tag = sqlite3_column_int64 (stmt, 7);
  row->has_nonce = sqlite3_column_bytes (stmt, 8) == RUNTIME_NONCE_BYTES;
  if (row->has_nonce)
    memcpy (row->nonce, sqlite3_column_blob (stmt, 8), sizeof row->nonce);
  return row;
}

GPtrArray *
store_list_overlays (Catalog *cat, const char *disk, GError **error)
{
  GPtrArray *rows = g_ptr_array_new_with_free_func (row_free);
  sqlite3_stmt *stmt;
  int r = -1;

  catalog_lock (cat);
  stmt = catalog_stmt (cat, "SELECT overlay.id, overlay.name, file, capacity,"
                       " state, keep, zero, tag, nonce"
                       " FROM overlay JOIN disk ON disk.id = overlay.disk"
                       " WHERE disk.name = ? ORDER BY place, overlay.id",
                       error);
  if (stmt != NULL) {
    sqlite3_bind_text (stmt, 1, disk, -1, SQLITE_TRANSIENT);
    while ((r = catalog_step_row (cat, stmt, error)) == 1)
      g_ptr_array_add (rows, row_read (stmt));
  }
  catalog_unlock (cat);
  if (r < 0)
    g_clear_pointer (&rows, g_ptr_array_unref);
  return rows;
}

bool
store_add_overlay (Catalog *cat, int64_t disk_id, const char *name,
                   const char *file, uint64_t capacity, bool keep, bool zero,
                   uint64_t tag, int64_t *out_id, GError **error)
{
  bool ok;

  catalog_lock (cat);
  ok = catalog_run (cat, "INSERT INTO overlay (disk, name, file, capacity,"
                    " state, keep, zero, tag)"
                    " VALUES (?, ?, ?, ?, 'planned', ?, ?, ?)", error,
                    "ittiiii", disk_id, name, file, (int64_t) capacity,
                    (int64_t) keep, (int64_t) zero, (int64_t) tag);
  if (ok)
    *out_id = catalog_last_id (cat);
  catalog_unlock (cat);
  return ok;
}

bool
store_check_overlay_file (Catalog *cat, const char *file, GError **error)
{
  sqlite3_stmt *stmt;
  int rc = -1;

  catalog_lock (cat);
  stmt = catalog_stmt (cat, "SELECT 1 FROM overlay WHERE file = ?", error);
  if (stmt != NULL) {
    sqlite3_bind_text (stmt, 1, file, -1, SQLITE_TRANSIENT);
    rc = catalog_step_row (cat, stmt, error);
  }
  catalog_unlock (cat);
  if (rc == 1)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS,
                 "layer file '%s' is in use already", file);
  return rc == 0;
}

bool
store_set_overlay_file (Catalog *cat, int64_t id, const char *file,
                        GError **error)
{
  return catalog_run (cat, "UPDATE overlay SET file = ? WHERE id = ?", error,
                      "ti", file, id);
}

bool
store_set_overlay_nonce (Catalog *cat, int64_t id, const uint8_t *nonce,
                         GError **error)
{
  return catalog_run (cat, "UPDATE overlay SET nonce = ? WHERE id = ?", error,
                      "ni", nonce, id);
}

bool
store_set_overlay_state (Catalog *cat, int64_t id, OverlayState state,
                         GError **error)
{
  bool ok = catalog_run (cat, "UPDATE overlay SET state = ? WHERE id = ?",
                         error, "ti", state_names[state], id);

  if (ok && state == OVERLAY_DETACHED)
    ok = catalog_run (cat, "UPDATE overlay SET place = 0 WHERE id = ?", error,
                      "i", id);
  /* On top of all that are there. */
  if (ok && (state == OVERLAY_PREPARED || state == OVERLAY_LIVE))
    ok = catalog_run (cat, "UPDATE overlay SET place ="
                      " (SELECT max (place) + 1 FROM overlay AS o"
                      "  WHERE o.disk = overlay.disk)"
                      " WHERE id = ? AND place = 0", error, "i", id);
  return ok;
}

bool
store_set_overlay_name (Catalog *cat, int64_t id, const char *name,
                        GError **error)
{
  return catalog_run (cat, "UPDATE overlay SET name = ? WHERE id = ?", error,
                      "ti", name, id);
}

bool
store_set_overlay_anonymous (Catalog *cat, int64_t id, GError **error)
{
  return store_set_overlay_name (cat, id, NULL, error);
}

bool
store_set_overlay_keep (Catalog *cat, int64_t id, GError **error)
{
  return catalog_run (cat, "UPDATE overlay SET keep = 1 WHERE id = ?", error,
                      "i", id);
}

bool
store_delete_overlay (Catalog *cat, int64_t id, GError **error)
{
  return catalog_run (cat, "DELETE FROM overlay WHERE id = ?", error, "i", id);
}

bool
store_knows_size (Catalog *cat, const char *disk, uint64_t size,
                  bool *out_known, GError **error)
{
  sqlite3_stmt *stmt;
  int r = -1;

  catalog_lock (cat);
  /* As is_known_size of epoch-open.c. */
  stmt = catalog_stmt (cat, "SELECT size = ?2 OR EXISTS (SELECT 1 FROM epoch"
                       "  WHERE epoch.disk = disk.id AND epoch.size = ?2"
                       "  AND blob IS NULL AND state IN ('open', 'prepared'))"
                       " FROM disk WHERE name = ?1", error);
  if (stmt != NULL) {
    sqlite3_bind_text (stmt, 1, disk, -1, SQLITE_TRANSIENT);
    sqlite3_bind_int64 (stmt, 2, (int64_t) size);
    r = catalog_step_row (cat, stmt, error);
    *out_known = r == 1 && sqlite3_column_int (stmt, 0);
  }
  catalog_unlock (cat);
  return r >= 0;
}

bool
store_find_layered (Catalog *cat, const char *disk, uint64_t inode,
                    int64_t birth_ns, char **out_other, GError **error)
{
  sqlite3_stmt *stmt;
  int r = -1;

  *out_other = NULL;
  catalog_lock (cat);
  stmt = catalog_stmt (cat, "SELECT name FROM disk WHERE name != ?1"
                       " AND inode = ?2 AND birth_ns = ?3 AND EXISTS"
                       " (SELECT 1 FROM overlay WHERE overlay.disk = disk.id"
                       "  AND overlay.state IN ('prepared', 'live'))", error);
  if (stmt != NULL) {
    sqlite3_bind_text (stmt, 1, disk, -1, SQLITE_TRANSIENT);
    sqlite3_bind_int64 (stmt, 2, (int64_t) inode);
    sqlite3_bind_int64 (stmt, 3, birth_ns);
    r = catalog_step_row (cat, stmt, error);
    if (r == 1)
      *out_other = g_strdup ((const char *) sqlite3_column_text (stmt, 0));
  }
  catalog_unlock (cat);
  return r >= 0;
}

bool
store_set_image (Catalog *cat, int64_t disk_id, const char *image,
                 const char *before, uint64_t inode, int64_t birth_ns,
                 GError **error)
{
  /* device: a file, see FORMAT. */
  return catalog_run (cat, "UPDATE disk SET image = ?, image_before = ?,"
                      " device = 1, inode = ?, birth_ns = ? WHERE id = ?",
                      error, "ttiii", image, before, (int64_t) inode, birth_ns,
                      disk_id);
}

bool
store_get_image (Catalog *cat, const char *disk, char **out_image,
                 char **out_before, GError **error)
{
  sqlite3_stmt *stmt;
  int r = -1;

  *out_image = *out_before = NULL;
  catalog_lock (cat);
  stmt = catalog_stmt (cat, "SELECT image, image_before FROM disk"
                       " WHERE name = ?", error);
  if (stmt != NULL) {
    sqlite3_bind_text (stmt, 1, disk, -1, SQLITE_TRANSIENT);
    r = catalog_step_row (cat, stmt, error);
    if (r == 1) {
      *out_image = g_strdup ((const char *) sqlite3_column_text (stmt, 0));
      *out_before = g_strdup ((const char *) sqlite3_column_text (stmt, 1));
    }
  }
  catalog_unlock (cat);
  return r >= 0;
}
