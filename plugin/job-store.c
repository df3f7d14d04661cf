/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <sqlite3.h>

#include "plugin/job-store.h"

JobRow *
job_row_new (void)
{
  return g_new0 (JobRow, 1);
}

void
job_row_free (JobRow *row)
{
  if (row == NULL)
    return;
  g_free (row->id);
  g_free (row->disk_name);
  g_free (row->snapshot);
  g_free (row->backup);
  g_free (row->group);
  json_decref (row->arguments);
  json_decref (row->target);
  g_clear_pointer (&row->map, g_bytes_unref);
  g_free (row);
}

/* NULL becomes NULL.  The text outlives the step. */
static void
bind_text (sqlite3_stmt *stmt, int column, const char *text)
{
  sqlite3_bind_text (stmt, column, text, -1, SQLITE_STATIC);
}

static void
bind_json (sqlite3_stmt *stmt, int column, const json_t *object)
{
  sqlite3_bind_text (stmt, column, json_dumps (object, JSON_COMPACT), -1,
                     free);
}

bool
job_store_insert (Catalog *cat, const JobRow *row, GError **error)
{
  sqlite3_stmt *stmt =
    catalog_stmt (cat,
                  "INSERT INTO job (id, disk, snapshot, backup, job_group,"
                  " arguments, target, paused, speed, copied)"
                  " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)", error);

  if (stmt == NULL)
    return false;
  bind_text (stmt, 1, row->id);
  sqlite3_bind_int64 (stmt, 2, row->disk);
  bind_text (stmt, 3, row->snapshot);
  bind_text (stmt, 4, row->backup);
  bind_text (stmt, 5, row->group);
  bind_json (stmt, 6, row->arguments);
  bind_json (stmt, 7, row->target);
  sqlite3_bind_int (stmt, 8, row->paused);
  sqlite3_bind_int64 (stmt, 9, (int64_t) row->speed);
  sqlite3_bind_int64 (stmt, 10, (int64_t) row->copied);
  return catalog_step_done (cat, stmt, error);
}

/* One with the text of ?1 alone. */
static bool
run_with (Catalog *cat, sqlite3_stmt *stmt, const char *text, GError **error)
{
  if (stmt == NULL)
    return false;
  bind_text (stmt, 1, text);
  return catalog_step_done (cat, stmt, error);
}

bool
job_store_delete (Catalog *cat, const char *id, GError **error)
{
  return run_with (cat, catalog_stmt (cat, "DELETE FROM job WHERE id = ?1",
                                      error), id, error);
}

bool
job_store_delete_group (Catalog *cat, const char *group, GError **error)
{
  return run_with (cat, catalog_stmt (cat, "DELETE FROM job"
                                      " WHERE job_group = ?1", error), group,
                   error);
}

static bool
set_map (Catalog *cat, const char *id, GBytes *blob, GError **error)
{
  sqlite3_stmt *stmt = catalog_stmt (cat, "UPDATE job SET map = ?2"
                                     " WHERE id = ?1", error);
  gsize length;
  const void *data = g_bytes_get_data (blob, &length);

  if (stmt == NULL)
    return false;
  bind_text (stmt, 1, id);
  sqlite3_bind_blob64 (stmt, 2, data, length, SQLITE_STATIC);
  return catalog_step_done (cat, stmt, error);
}

bool
job_store_set_map (Catalog *cat, const char *id, const ChangeSet *map,
                   GError **error)
{
  g_autoptr (GBytes) blob = change_set_serialize (map, error);
  bool ok;

  if (blob == NULL)
    return false;
  catalog_lock (cat);
  ok = set_map (cat, id, blob, error);
  catalog_unlock (cat);
  return ok;
}

static bool
set_progress (Catalog *cat, const char *id, uint64_t copied, uint64_t speed,
              bool paused, GError **error)
{
  sqlite3_stmt *stmt = catalog_stmt (cat, "UPDATE job SET copied = ?2,"
                                     " speed = ?3, paused = ?4"
                                     " WHERE id = ?1", error);

  if (stmt == NULL)
    return false;
  bind_text (stmt, 1, id);
  sqlite3_bind_int64 (stmt, 2, (int64_t) copied);
  sqlite3_bind_int64 (stmt, 3, (int64_t) speed);
  sqlite3_bind_int (stmt, 4, paused);
  return catalog_step_done (cat, stmt, error);
}

bool
job_store_set_progress (Catalog *cat, const char *id, uint64_t copied,
                        uint64_t speed, bool paused, GError **error)
{
  bool ok;

  catalog_lock (cat);
  ok = set_progress (cat, id, copied, speed, paused, error);
  catalog_unlock (cat);
  return ok;
}

/* --- reading --- */

static char *
column_text (sqlite3_stmt *stmt, int column)
{
  return g_strdup ((const char *) sqlite3_column_text (stmt, column));
}

/* NULL: no object. */
static json_t *
column_object (sqlite3_stmt *stmt, int column)
{
  json_t *object =
    json_loads ((const char *) sqlite3_column_text (stmt, column), 0, NULL);

  if (object != NULL && !json_is_object (object)) {
    json_decref (object);
    return NULL;
  }
  return object;
}

static JobRow *
read_row (sqlite3_stmt *stmt)
{
  JobRow *row = job_row_new ();

  row->id = column_text (stmt, 0);
  row->disk = sqlite3_column_int64 (stmt, 1);
  row->disk_name = column_text (stmt, 2);
  row->snapshot = column_text (stmt, 3);
  row->backup = column_text (stmt, 4);
  row->group = column_text (stmt, 5);
  row->arguments = column_object (stmt, 6);
  row->target = column_object (stmt, 7);
  row->paused = sqlite3_column_int (stmt, 8) != 0;
  row->speed = (uint64_t) sqlite3_column_int64 (stmt, 9);
  row->copied = (uint64_t) sqlite3_column_int64 (stmt, 10);
  if (sqlite3_column_type (stmt, 11) == SQLITE_BLOB)
    row->map = g_bytes_new (sqlite3_column_blob (stmt, 11),
                            (gsize) sqlite3_column_bytes (stmt, 11));
  return row;
}

static GPtrArray *
list_rows (Catalog *cat, GError **error)
{
  g_autoptr (GPtrArray) rows =
    g_ptr_array_new_with_free_func ((GDestroyNotify) job_row_free);
  sqlite3_stmt *stmt =
    catalog_stmt (cat,
                  "SELECT job.id, disk, disk.name, snapshot, backup,"
                  " job_group, arguments, target, paused, speed, copied, map"
                  " FROM job JOIN disk ON disk.id = job.disk ORDER BY job.id",
                  error);
  int r;

  if (stmt == NULL)
    return NULL;
  while ((r = catalog_step_row (cat, stmt, error)) == 1)
    g_ptr_array_add (rows, read_row (stmt));
  return r == 0 ? g_steal_pointer (&rows) : NULL;
}

GPtrArray *
job_store_list (Catalog *cat, GError **error)
{
  GPtrArray *rows;

  catalog_lock (cat);
  rows = list_rows (cat, error);
  catalog_unlock (cat);
  return rows;
}
