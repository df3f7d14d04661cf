/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* snapshot-store.c - the catalog rows of snapshots and layers. */
#include <config.h>

#include <string.h>

#include "fleece/fleece-internal.h"

bool
store_check_layer_file (Catalog *cat, const char *file, GError **error)
{
  sqlite3_stmt *stmt;
  int rc = -1;

  catalog_lock (cat);
  stmt = catalog_stmt (cat, "SELECT 1 FROM layer WHERE file = ?", error);
  if (stmt != NULL) {
    sqlite3_bind_text (stmt, 1, file, -1, SQLITE_TRANSIENT);
    rc = catalog_step_row (cat, stmt, error);
  }
  catalog_unlock (cat);
  if (rc == 1)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS,
                 "scratch file '%s' is in use already", file);
  return rc == 0;
}

bool
store_add_layer (Catalog *cat, int64_t disk_id, const char *file,
                 uint64_t size, bool durable, bool keep, int64_t *out_id,
                 GError **error)
{
  bool ok;

  catalog_lock (cat);
  ok = catalog_run (cat, "INSERT INTO layer (disk, file, size, state, durable,"
                    " keep) VALUES (?, ?, ?, 'retired', ?, ?)", error, "itiii",
                    disk_id, file, (int64_t) size, (int64_t) durable,
                    (int64_t) keep);
  if (ok)
    *out_id = catalog_last_id (cat);
  catalog_unlock (cat);
  return ok;
}

bool
store_set_layer_nonce (Catalog *cat, int64_t id, const uint8_t *nonce,
                       GError **error)
{
  return catalog_run (cat, "UPDATE layer SET nonce = ? WHERE id = ?", error,
                      "ni", nonce, id);
}

bool
store_set_layer_prepared (Catalog *cat, int64_t id, const uint8_t *nonce,
                          GError **error)
{
  return catalog_run (cat, "UPDATE layer SET state = 'prepared', nonce = ?"
                      " WHERE id = ?", error, "ni", nonce, id);
}

bool
store_set_layer_file (Catalog *cat, int64_t id, const char *file,
                      GError **error)
{
  return catalog_run (cat, "UPDATE layer SET file = ? WHERE id = ?", error,
                      "ti", file, id);
}

bool
store_set_layer_live (Catalog *cat, int64_t id, GError **error)
{
  return catalog_run (cat, "UPDATE layer SET state = 'live' WHERE id = ?",
                      error, "i", id);
}

bool
store_delete_layer (Catalog *cat, int64_t id, GError **error)
{
  /* Broken snapshots may still point at it. */
  return catalog_run (cat, "UPDATE snapshot SET layer = NULL WHERE layer = ?",
                      error, "i", id) &&
    catalog_run (cat, "DELETE FROM layer WHERE id = ?", error, "i", id);
}

bool
store_retire_layer (Catalog *cat, int64_t id, GError **error)
{
  return catalog_run (cat, "UPDATE snapshot SET layer = NULL WHERE layer = ?",
                      error, "i", id) &&
    catalog_run (cat, "UPDATE layer SET state = 'retired', nonce = NULL"
                 " WHERE id = ?", error, "i", id);
}

static const char *
on_error_name (FleeceOnError on_error)
{
  return on_error == FLEECE_BREAK_GUEST_WRITE ? "break-guest-write"
    : "break-snapshot";
}

bool
store_add_snapshot (Catalog *cat, Snapshot *snap, int64_t disk_id,
                    int64_t layer_id, GError **error)
{
  bool ok;

  catalog_lock (cat);
  ok = catalog_run (cat, "INSERT INTO snapshot (disk, name, boundary, layer,"
                    " size, state, created, on_error, scratch_limit, durable,"
                    " cbw_timeout)"
                    " VALUES (?, ?, ?, ?, ?, 'prepared', ?, ?, ?, ?, ?)", error,
                    "itiiiitiii", disk_id, snap->name, (int64_t) snap->boundary,
                    layer_id, (int64_t) snap->size, snap->created,
                    on_error_name (snap->on_error), (int64_t) snap->limit_bytes,
                    (int64_t) snap->durable, (int64_t) snap->cbw_timeout);
  if (ok)
    snap->id = catalog_last_id (cat);
  catalog_unlock (cat);
  return ok;
}

bool
store_set_snapshot_live (Catalog *cat, Snapshot *snap, GError **error)
{
  return catalog_run (cat, "UPDATE snapshot SET state = 'live'"
                      " WHERE id = ? AND state = 'prepared'", error, "i",
                      snap->id);
}

bool
store_set_snapshot_state (Catalog *cat, int64_t id, SnapshotState state,
                          const char *reason, GError **error)
{
  return catalog_run (cat, "UPDATE snapshot SET state = ?, reason = ?"
                      " WHERE id = ?", error, "tti",
                      snapshot_state_name (state), reason, id);
}

bool
store_delete_prepared (Catalog *cat, int64_t disk_id, const char *name,
                       GError **error)
{
  return catalog_run (cat, "DELETE FROM snapshot WHERE disk = ? AND name = ?"
                      " AND state = 'prepared'", error, "it", disk_id, name);
}

bool
store_delete_snapshot (Catalog *cat, int64_t id, GError **error)
{
  return catalog_run (cat, "DELETE FROM snapshot WHERE id = ?", error, "i", id);
}

static void
layer_row_free (gpointer p)
{
  LayerRow *row = p;

  g_free (row->file);
  g_free (row);
}

static void
snapshot_row_free (gpointer p)
{
  SnapshotRow *row = p;

  g_free (row->name);
  g_free (row->reason);
  g_free (row);
}

static gpointer
layer_row_read (sqlite3_stmt *stmt)
{
  LayerRow *row = g_new0 (LayerRow, 1);

  row->id = sqlite3_column_int64 (stmt, 0);
  row->file = g_strdup ((const char *) sqlite3_column_text (stmt, 1));
  row->size = sqlite3_column_int64 (stmt, 2);
  row->retired = g_strcmp0 ((const char *) sqlite3_column_text (stmt, 3),
                            "retired") == 0;
  row->durable = sqlite3_column_int (stmt, 4);
  row->keep = sqlite3_column_int (stmt, 5);
  row->has_nonce = sqlite3_column_bytes (stmt, 6) == RUNTIME_NONCE_BYTES;
  if (row->has_nonce)
    memcpy (row->nonce, sqlite3_column_blob (stmt, 6), sizeof row->nonce);
  return row;
}

static SnapshotState
state_from_name (const char *name)
{
  for (SnapshotState s = SNAPSHOT_PREPARED; s < SNAPSHOT_ENDED; s++)
    if (g_strcmp0 (name, snapshot_state_name (s)) == 0)
      return s;
  return SNAPSHOT_LOST;
}

static gpointer
snapshot_row_read (sqlite3_stmt *stmt)
{
  SnapshotRow *row = g_new0 (SnapshotRow, 1);

  row->id = sqlite3_column_int64 (stmt, 0);
  row->name = g_strdup ((const char *) sqlite3_column_text (stmt, 1));
  row->boundary = sqlite3_column_int64 (stmt, 2);
  row->layer_id = sqlite3_column_int64 (stmt, 3);
  row->size = sqlite3_column_int64 (stmt, 4);
  row->state = state_from_name ((const char *) sqlite3_column_text (stmt, 5));
  row->reason = g_strdup ((const char *) sqlite3_column_text (stmt, 6));
  row->created = sqlite3_column_int64 (stmt, 7);
  row->on_error = g_strcmp0 ((const char *) sqlite3_column_text (stmt, 8),
                             "break-guest-write") == 0
    ? FLEECE_BREAK_GUEST_WRITE : FLEECE_BREAK_SNAPSHOT;
  row->limit_bytes = sqlite3_column_int64 (stmt, 9);
  row->durable = sqlite3_column_int (stmt, 10);
  row->cbw_timeout = sqlite3_column_int64 (stmt, 11);
  return row;
}

static GPtrArray *
list_rows (Catalog *cat, const char *sql, int64_t disk_id,
           gpointer (*read_row) (sqlite3_stmt *), GDestroyNotify free_row,
           GError **error)
{
  GPtrArray *rows = g_ptr_array_new_with_free_func (free_row);
  sqlite3_stmt *stmt;
  int r = -1;

  catalog_lock (cat);
  stmt = catalog_stmt (cat, sql, error);
  if (stmt != NULL) {
    sqlite3_bind_int64 (stmt, 1, disk_id);
    while ((r = catalog_step_row (cat, stmt, error)) == 1)
      g_ptr_array_add (rows, read_row (stmt));
  }
  catalog_unlock (cat);
  if (r < 0) {
    g_ptr_array_unref (rows);
    return NULL;
  }
  return rows;
}

GPtrArray *
store_list_layers (Catalog *cat, int64_t disk_id, GError **error)
{
  return list_rows (cat, "SELECT id, file, size, state, durable, keep, nonce"
                    " FROM layer WHERE disk = ? ORDER BY id", disk_id,
                    layer_row_read, layer_row_free, error);
}

GPtrArray *
store_list_snapshots (Catalog *cat, int64_t disk_id, GError **error)
{
  return list_rows (cat, "SELECT id, name, boundary, layer, size, state,"
                    " reason, created, on_error, scratch_limit, durable,"
                    " cbw_timeout FROM snapshot"
                    " WHERE disk = ? ORDER BY id", disk_id, snapshot_row_read,
                    snapshot_row_free, error);
}
