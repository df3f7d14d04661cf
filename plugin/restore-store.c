/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <sqlite3.h>

#include "bitmap/bitmap-error.h"
#include "plugin/qmp.h"
#include "plugin/restore-store.h"

bool
restore_store_insert (Catalog *cat, const Restore *r, GError **error)
{
  sqlite3_stmt *stmt =
    catalog_stmt (cat, "INSERT INTO backup (id, state, created, arguments)"
                  " VALUES (?1, '" STATE_RESTORE "', ?2, ?3)", error);
  json_t *disks = json_array ();
  g_autoptr (json_t) args =
    json_pack ("{s:b, s:b, s:o}", "zero", r->zero, "force", r->force, "disks",
               disks);
  char *text;
  bool ok;

  if (stmt == NULL)
    return false;
  for (guint i = 0; i < r->disks->len; i++) {
    const RestoreDisk *rd = r->disks->pdata[i];

    json_array_append_new (disks, json_pack ("{s:s, s:s}", "disk",
                                             rd->disk_name, "exportname",
                                             rd->export));
  }
  text = json_dumps (args, JSON_COMPACT);
  sqlite3_bind_text (stmt, 1, r->id, -1, SQLITE_STATIC);
  sqlite3_bind_int64 (stmt, 2, r->created);
  sqlite3_bind_text (stmt, 3, text, -1, SQLITE_STATIC);
  ok = catalog_step_done (cat, stmt, error);
  free (text);
  return ok;
}

bool
restore_store_delete (Catalog *cat, const char *id, GError **error)
{
  sqlite3_stmt *stmt =
    catalog_stmt (cat, "DELETE FROM backup WHERE id = ?1 AND state = '"
                  STATE_RESTORE "'", error);

  if (stmt == NULL)
    return false;
  sqlite3_bind_text (stmt, 1, id, -1, SQLITE_STATIC);
  return catalog_step_done (cat, stmt, error);
}

bool
restore_store_delete_now (Catalog *cat, const char *id, GError **error)
{
  if (!catalog_begin (cat, error))
    return false;
  if (!restore_store_delete (cat, id, error)) {
    catalog_rollback (cat);
    return false;
  }
  return catalog_commit (cat, error);
}

/* NULL and CORRUPT: something else than what restore_store_insert writes. */
static Restore *
parse (const char *id, int64_t created, const char *text, GError **error)
{
  g_autoptr (json_t) args = text != NULL ? json_loads (text, 0, NULL) : NULL;
  g_autoptr (Restore) r =
    restore_new (id, created, qmp_get_bool (args, "zero", false),
                 qmp_get_bool (args, "force", false));
  json_t *item;
  size_t i;

  json_array_foreach (json_object_get (args, "disks"), i, item) {
    const char *disk = qmp_get_str (item, "disk");
    const char *export = qmp_get_str (item, "exportname");

    if (disk == NULL || export == NULL)
      break;
    restore_add_disk (r, disk, export);
  }
  if (r->disks->len > 0 &&
      r->disks->len == json_array_size (json_object_get (args, "disks")))
    return g_steal_pointer (&r);
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_CORRUPT,
               "the record of restore '%s' is damaged", id);
  return NULL;
}

static bool
list_locked (Catalog *cat, GPtrArray *list, GError **error)
{
  sqlite3_stmt *stmt =
    catalog_stmt (cat, "SELECT id, created, arguments FROM backup"
                  " WHERE state = '" STATE_RESTORE "' ORDER BY created, id",
                  error);
  int row;

  if (stmt == NULL)
    return false;
  while ((row = catalog_step_row (cat, stmt, error)) == 1) {
    Restore *r = parse ((const char *) sqlite3_column_text (stmt, 0),
                        sqlite3_column_int64 (stmt, 1),
                        (const char *) sqlite3_column_text (stmt, 2), error);

    if (r == NULL)
      return false;
    g_ptr_array_add (list, r);
  }
  return row == 0;
}

GPtrArray *
restore_store_list (Catalog *cat, GError **error)
{
  g_autoptr (GPtrArray) list =
    g_ptr_array_new_with_free_func ((GDestroyNotify) restore_unref);
  bool ok;

  catalog_lock (cat);
  ok = list_locked (cat, list, error);
  catalog_unlock (cat);
  return ok ? g_steal_pointer (&list) : NULL;
}
