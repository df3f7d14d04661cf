/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "config.h"

#include <string.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/checkpoint.h"
#include "bitmap/fail-point.h"

/* --- the struct */

static void
checkpoint_disk_free (gpointer data)
{
  CheckpointDisk *cd = data;

  g_free (cd->disk);
  g_free (cd->bitmap);
  g_free (cd);
}

Checkpoint *
checkpoint_new (const char *name, const char *description,
                int64_t creation_time)
{
  Checkpoint *ckpt = g_new0 (Checkpoint, 1);

  ckpt->name = g_strdup (name);
  ckpt->description = g_strdup (description);
  ckpt->creation_time = creation_time;
  ckpt->disks = g_ptr_array_new_with_free_func (checkpoint_disk_free);
  return ckpt;
}

void
checkpoint_free (Checkpoint *ckpt)
{
  if (ckpt == NULL)
    return;
  g_free (ckpt->name);
  g_free (ckpt->description);
  g_free (ckpt->parent);
  g_ptr_array_unref (ckpt->disks);
  g_free (ckpt);
}

void
checkpoint_add_disk (Checkpoint *ckpt, const char *disk, const char *bitmap,
                     uint64_t boundary)
{
  CheckpointDisk *cd = g_new0 (CheckpointDisk, 1);
  guint i = 0;

  cd->disk = g_strdup (disk);
  cd->bitmap = g_strdup (bitmap);
  cd->boundary = boundary;
  while (i < ckpt->disks->len &&
         strcmp (((CheckpointDisk *) g_ptr_array_index (ckpt->disks, i))->disk,
                 disk) < 0)
    i++;
  g_ptr_array_insert (ckpt->disks, (gint) i, cd);
}

const CheckpointDisk *
checkpoint_find_disk (const Checkpoint *ckpt, const char *disk)
{
  for (guint i = 0; i < ckpt->disks->len; i++) {
    const CheckpointDisk *cd = g_ptr_array_index (ckpt->disks, i);

    if (strcmp (cd->disk, disk) == 0)
      return cd;
  }
  return NULL;
}

/* --- small queries; the catalog is locked */

static const char *
column_text (sqlite3_stmt *stmt, int column)
{
  return (const char *) sqlite3_column_text (stmt, column);
}

/* A query of up to two texts that gives one integer.  1: a row (NULL reads as
 * 0), 0: none, -1: error. */
static int
query_int (Catalog *cat, const char *sql, const char *a, const char *b,
           int64_t *out_value, GError **error)
{
  sqlite3_stmt *stmt = catalog_stmt (cat, sql, error);
  int rc;

  if (stmt == NULL)
    return -1;
  sqlite3_bind_text (stmt, 1, a, -1, SQLITE_STATIC);
  if (b != NULL)
    sqlite3_bind_text (stmt, 2, b, -1, SQLITE_STATIC);
  rc = catalog_step_row (cat, stmt, error);
  if (rc == 1)
    *out_value = sqlite3_column_int64 (stmt, 0);
  sqlite3_reset (stmt);
  sqlite3_clear_bindings (stmt);
  return rc;
}

static bool
find_checkpoint (Catalog *cat, const char *name, int64_t *out_id,
                 GError **error)
{
  int rc = query_int (cat, "SELECT id FROM checkpoint WHERE name = ?1", name,
                      NULL, out_id, error);

  if (rc == 0)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND,
                 "checkpoint '%s' not found", name);
  return rc == 1;
}

/* --- names */

static bool
taken (const char *name, GError **error)
{
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS,
               "a checkpoint or bitmap called '%s' exists already", name);
  return false;
}

/* By other checkpoints than these, or their bitmaps; 1: yes, 0: no, -1: an
 * error. */
static int
is_taken_but (Catalog *cat, const char *name, GHashTable *going,
              GError **error)
{
  g_autoptr (GPtrArray) all = checkpoint_list (cat, error);

  for (guint i = 0; all != NULL && i < all->len; i++) {
    const Checkpoint *ckpt = all->pdata[i];

    if (g_hash_table_contains (going, ckpt->name))
      continue;
    if (strcmp (ckpt->name, name) == 0)
      return 1;
    for (guint d = 0; d < ckpt->disks->len; d++)
      if (strcmp (((CheckpointDisk *) ckpt->disks->pdata[d])->bitmap,
                  name) == 0)
        return 1;
  }
  return all != NULL ? 0 : -1;
}

bool
checkpoint_name_free (Catalog *cat, const char *name, GHashTable *going,
                      GError **error)
{
  int64_t unused;
  int rc;

  if (!name_check_bitmap ("checkpoint name", name, error))
    return false;
  catalog_lock (cat);
  rc = query_int (cat, "SELECT 1 WHERE EXISTS (SELECT 1 FROM bitmap"
                  " WHERE name = ?1 AND snapshot IS NULL)", name, NULL,
                  &unused, error);
  if (rc == 0)
    rc = query_int (cat,
      "SELECT 1 WHERE EXISTS (SELECT 1 FROM checkpoint WHERE name = ?1)"
      " OR EXISTS (SELECT 1 FROM checkpoint_disk WHERE bitmap = ?1)",
      name, NULL, &unused, error);
  else if (rc == 1)
    going = NULL;
  catalog_unlock (cat);
  if (rc == 1 && going != NULL)
    rc = is_taken_but (cat, name, going, error);
  return rc == 0 || (rc == 1 && taken (name, error));
}

/* Is the name free on one disk, as a bitmap and as a checkpoint that has the
 * disk? */
static bool
disk_name_free (Catalog *cat, const char *disk, const char *name,
                GError **error)
{
  int64_t unused;
  int rc = query_int (cat,
    "SELECT 1 FROM disk WHERE name = ?1 AND ("
    "   EXISTS (SELECT 1 FROM bitmap WHERE bitmap.disk = disk.id"
    "           AND snapshot IS NULL AND name = ?2)"
    "   OR EXISTS (SELECT 1 FROM checkpoint_disk AS cd"
    "              JOIN checkpoint AS c ON c.id = cd.checkpoint"
    "              WHERE cd.disk = disk.id"
    "                AND (cd.bitmap = ?2 OR c.name = ?2)))",
    disk, name, &unused, error);

  return rc == 0 || (rc == 1 && taken (name, error));
}

/* --- insert */

static bool
insert_checkpoint_row (Catalog *cat, const Checkpoint *ckpt, int64_t *out_id,
                       GError **error)
{
  bool ok = catalog_run (cat,
    "INSERT INTO checkpoint (name, description, parent, creation_time)"
    " VALUES (?1, ?2, (SELECT current_checkpoint FROM meta), ?3)", error,
    "tti", ckpt->name, ckpt->description, ckpt->creation_time);

  if (ok)
    *out_id = catalog_last_id (cat);
  return ok;
}

static bool
insert_disk_row (Catalog *cat, int64_t checkpoint, const CheckpointDisk *cd,
                 GError **error)
{
  bool ok = catalog_run (cat,
    "INSERT INTO checkpoint_disk (checkpoint, disk, bitmap, boundary)"
    " SELECT ?1, id, ?3, ?4 FROM disk WHERE name = ?2", error, "itti",
    checkpoint, cd->disk, cd->bitmap, (int64_t) cd->boundary);

  if (ok && catalog_changes (cat) == 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND,
                 "disk '%s' not found", cd->disk);
    return false;
  }
  return ok;
}

static bool
insert_rows (Catalog *cat, const Checkpoint *ckpt, GError **error)
{
  int64_t id, unused;
  int rc = query_int (cat, "SELECT id FROM checkpoint WHERE name = ?1",
                      ckpt->name, NULL, &unused, error);

  if (rc != 0)
    return rc == 1 && taken (ckpt->name, error);
  for (guint i = 0; i < ckpt->disks->len; i++) {
    const CheckpointDisk *cd = g_ptr_array_index (ckpt->disks, i);

    if (!name_check_bitmap ("bitmap name", cd->bitmap, error) ||
        !disk_name_free (cat, cd->disk, ckpt->name, error) ||
        !disk_name_free (cat, cd->disk, cd->bitmap, error))
      return false;
  }
  if (!insert_checkpoint_row (cat, ckpt, &id, error))
    return false;
  for (guint i = 0; i < ckpt->disks->len; i++)
    if (!insert_disk_row (cat, id, g_ptr_array_index (ckpt->disks, i), error))
      return false;
  return catalog_run (cat, "UPDATE meta SET current_checkpoint = ?", error, "i",
                      id);
}

bool
checkpoint_insert (Catalog *cat, const Checkpoint *ckpt, GError **error)
{
  if (!name_check_bitmap ("checkpoint name", ckpt->name, error) ||
      !catalog_begin (cat, error))
    return false;
  if (!insert_rows (cat, ckpt, error)) {
    catalog_rollback (cat);
    return false;
  }
  return catalog_commit (cat, error);
}

/* --- redefine */

/* A row of that name, or a new one. */
static bool
put_checkpoint_row (Catalog *cat, const Checkpoint *ckpt, int64_t *out_id,
                    GError **error)
{
  bool ok = catalog_run (cat,
    "INSERT INTO checkpoint (name, description, parent, creation_time)"
    " VALUES (?1, ?2, (SELECT id FROM checkpoint WHERE name = ?3), ?4)"
    " ON CONFLICT (name) DO UPDATE SET description = excluded.description,"
    "   parent = excluded.parent, creation_time = excluded.creation_time",
    error, "ttti", ckpt->name, ckpt->description, ckpt->parent,
    ckpt->creation_time);

  return ok && find_checkpoint (cat, ckpt->name, out_id, error);
}

static bool
check_parent (Catalog *cat, const Checkpoint *ckpt, GError **error)
{
  int64_t unused;
  int rc;

  if (ckpt->parent == NULL)
    return true;
  if (strcmp (ckpt->parent, ckpt->name) == 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "cannot set checkpoint '%s' as its own parent", ckpt->name);
    return false;
  }
  rc = query_int (cat, "SELECT id FROM checkpoint WHERE name = ?1",
                  ckpt->parent, NULL, &unused, error);
  if (rc == 0)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND,
                 "parent '%s' for checkpoint '%s' not found", ckpt->parent,
                 ckpt->name);
  if (rc != 1)
    return false;
  rc = query_int (cat,
    "WITH RECURSIVE up (id, name, parent) AS ("
    "   SELECT id, name, parent FROM checkpoint WHERE name = ?1"
    "   UNION ALL SELECT c.id, c.name, c.parent"
    "     FROM up JOIN checkpoint AS c ON c.id = up.parent)"
    " SELECT 1 FROM up WHERE name = ?2", ckpt->parent, ckpt->name, &unused,
    error);
  if (rc == 1)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "parent '%s' would create cycle to '%s'", ckpt->parent,
                 ckpt->name);
  return rc == 0;
}

static bool
redefine_rows (Catalog *cat, const Checkpoint *ckpt, GError **error)
{
  int64_t id;

  if (!check_parent (cat, ckpt, error) ||
      !put_checkpoint_row (cat, ckpt, &id, error) ||
      !catalog_run (cat, "DELETE FROM checkpoint_disk WHERE checkpoint = ?",
                    error, "i", id))
    return false;
  for (guint i = 0; i < ckpt->disks->len; i++) {
    const CheckpointDisk *cd = g_ptr_array_index (ckpt->disks, i);

    if (!name_check_bitmap ("bitmap name", cd->bitmap, error) ||
        !disk_name_free (cat, cd->disk, cd->bitmap, error) ||
        !insert_disk_row (cat, id, cd, error))
      return false;
  }
  return catalog_run (cat,
    "UPDATE meta SET current_checkpoint = ?1"
    " WHERE current_checkpoint IS NULL OR current_checkpoint ="
    "   (SELECT parent FROM checkpoint WHERE id = ?1)", error, "i", id);
}

bool
checkpoint_redefine (Catalog *cat, const Checkpoint *ckpt, GError **error)
{
  if (!name_check_bitmap ("checkpoint name", ckpt->name, error) ||
      !catalog_begin (cat, error))
    return false;
  if (!redefine_rows (cat, ckpt, error)) {
    catalog_rollback (cat);
    return false;
  }
  return catalog_commit (cat, error);
}

/* --- list and lookup */

static bool
load_disks (Catalog *cat, GHashTable *by_id, GError **error)
{
  sqlite3_stmt *stmt = catalog_stmt (cat,
    "SELECT cd.checkpoint, d.name, cd.bitmap, cd.boundary"
    " FROM checkpoint_disk AS cd JOIN disk AS d ON d.id = cd.disk", error);
  int rc = -1;

  if (stmt == NULL)
    return false;
  while ((rc = catalog_step_row (cat, stmt, error)) == 1) {
    int64_t id = sqlite3_column_int64 (stmt, 0);
    Checkpoint *ckpt = g_hash_table_lookup (by_id, &id);

    if (ckpt != NULL)
      checkpoint_add_disk (ckpt, column_text (stmt, 1), column_text (stmt, 2),
                           (uint64_t) sqlite3_column_int64 (stmt, 3));
  }
  return rc == 0;
}

static bool
load_all (Catalog *cat, GPtrArray *list, GError **error)
{
  g_autoptr (GHashTable) by_id =
    g_hash_table_new_full (g_int64_hash, g_int64_equal, g_free, NULL);
  sqlite3_stmt *stmt = catalog_stmt (cat,
    "WITH RECURSIVE tree (id, depth) AS ("
    "   SELECT id, 0 FROM checkpoint WHERE parent IS NULL"
    "   UNION ALL SELECT c.id, tree.depth + 1"
    "     FROM tree JOIN checkpoint AS c ON c.parent = tree.id)"
    " SELECT c.id, c.name, c.description, p.name, c.creation_time,"
    "        c.id IS (SELECT current_checkpoint FROM meta)"
    " FROM tree JOIN checkpoint AS c ON c.id = tree.id"
    "   LEFT JOIN checkpoint AS p ON p.id = c.parent"
    " ORDER BY tree.depth, c.creation_time, c.id", error);
  int rc = -1;

  if (stmt == NULL)
    return false;
  while ((rc = catalog_step_row (cat, stmt, error)) == 1) {
    Checkpoint *ckpt = checkpoint_new (column_text (stmt, 1),
                                       column_text (stmt, 2),
                                       sqlite3_column_int64 (stmt, 4));
    int64_t *id = g_new (int64_t, 1);

    ckpt->parent = g_strdup (column_text (stmt, 3));
    ckpt->current = sqlite3_column_int (stmt, 5);
    *id = sqlite3_column_int64 (stmt, 0);
    g_ptr_array_add (list, ckpt);
    g_hash_table_insert (by_id, id, ckpt);
  }
  return rc == 0 && load_disks (cat, by_id, error);
}

GPtrArray *
checkpoint_list (Catalog *cat, GError **error)
{
  g_autoptr (GPtrArray) list =
    g_ptr_array_new_with_free_func ((GDestroyNotify) checkpoint_free);
  bool ok;

  catalog_lock (cat);
  ok = load_all (cat, list, error);
  catalog_unlock (cat);
  return ok ? g_steal_pointer (&list) : NULL;
}

Checkpoint *
checkpoint_lookup (Catalog *cat, const char *name, GError **error)
{
  g_autoptr (GPtrArray) list = checkpoint_list (cat, error);

  if (list == NULL)
    return NULL;
  for (guint i = 0; i < list->len; i++) {
    Checkpoint *ckpt = g_ptr_array_index (list, i);

    if (strcmp (ckpt->name, name) == 0) {
      g_ptr_array_set_free_func (list, NULL);
      for (guint j = 0; j < list->len; j++)
        if (j != i)
          checkpoint_free (g_ptr_array_index (list, j));
      return ckpt;
    }
  }
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND,
               "checkpoint '%s' not found", name);
  return NULL;
}

bool
checkpoint_boundary (Catalog *cat, const char *disk, const char *name,
                     uint64_t *out_boundary, GError **error)
{
  int64_t boundary;
  int rc;

  catalog_lock (cat);
  rc = query_int (cat,
    "SELECT cd.boundary FROM checkpoint_disk AS cd"
    "   JOIN disk AS d ON d.id = cd.disk"
    "   JOIN checkpoint AS c ON c.id = cd.checkpoint"
    " WHERE d.name = ?1 AND (cd.bitmap = ?2 OR c.name = ?2)",
    disk, name, &boundary, error);
  catalog_unlock (cat);
  if (rc == 0)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND,
                 "disk '%s' has no bitmap or checkpoint called '%s'", disk,
                 name);
  if (rc != 1)
    return false;
  *out_boundary = (uint64_t) boundary;
  return true;
}

/* --- delete */

/* Ids and names of a checkpoint's descendants, and its own, deepest first. */
static bool
find_descendants (Catalog *cat, int64_t id, GArray *ids, GPtrArray *names,
                  GError **error)
{
  sqlite3_stmt *stmt = catalog_stmt (cat,
    "WITH RECURSIVE tree (id, depth) AS ("
    "   SELECT ?1, 0"
    "   UNION ALL SELECT c.id, tree.depth + 1"
    "     FROM tree JOIN checkpoint AS c ON c.parent = tree.id)"
    " SELECT c.id, c.name FROM tree JOIN checkpoint AS c ON c.id = tree.id"
    " ORDER BY tree.depth DESC, c.id DESC", error);
  int rc = -1;

  if (stmt == NULL)
    return false;
  sqlite3_bind_int64 (stmt, 1, id);
  while ((rc = catalog_step_row (cat, stmt, error)) == 1) {
    int64_t found = sqlite3_column_int64 (stmt, 0);

    g_array_append_val (ids, found);
    g_ptr_array_add (names, g_strdup (column_text (stmt, 1)));
  }
  return rc == 0;
}

static bool
delete_row (Catalog *cat, int64_t id, GError **error)
{
  return catalog_run (cat, "DELETE FROM checkpoint WHERE id = ?", error, "i",
                      id);
}

/* Its children, and the current pointer, go to its parent. */
static bool
delete_one (Catalog *cat, int64_t id, GError **error)
{
  return catalog_run (cat, "UPDATE checkpoint SET parent ="
                      " (SELECT parent FROM checkpoint WHERE id = ?1)"
                      " WHERE parent = ?1", error, "i", id) &&
    catalog_run (cat, "UPDATE meta SET current_checkpoint ="
                 " (SELECT parent FROM checkpoint WHERE id = ?1)"
                 " WHERE current_checkpoint = ?1", error, "i", id) &&
    delete_row (cat, id, error);
}

static bool
delete_rows (Catalog *cat, const char *name, CheckpointDelete how,
             GPtrArray *names, GError **error)
{
  g_autoptr (GArray) ids = g_array_new (FALSE, FALSE, sizeof (int64_t));
  int64_t id;

  if (!find_checkpoint (cat, name, &id, error))
    return false;
  if (how == CHECKPOINT_DELETE_ONE) {
    g_ptr_array_add (names, g_strdup (name));
    return delete_one (cat, id, error);
  }

  if (!find_descendants (cat, id, ids, names, error))
    return false;
  if (how == CHECKPOINT_DELETE_CHILDREN) {
    g_array_set_size (ids, ids->len - 1);       /* itself comes last */
    g_ptr_array_set_size (names, (gint) names->len - 1);
    if (!catalog_run (cat, "UPDATE meta SET current_checkpoint = ?", error, "i",
                      id))
      return false;
  }
  /* Deepest first: so current, if in there, climbs to what is left. */
  for (guint i = 0; i < ids->len; i++)
    if (!delete_one (cat, g_array_index (ids, int64_t, i), error))
      return false;
  return true;
}

bool
checkpoint_delete (Catalog *cat, const char *name, CheckpointDelete how,
                   GPtrArray **out_deleted, GError **error)
{
  g_autoptr (GPtrArray) names = g_ptr_array_new_with_free_func (g_free);

  FAIL_POINT ("C-delete");
  if (!catalog_begin (cat, error))
    return false;
  if (!delete_rows (cat, name, how, names, error)) {
    catalog_rollback (cat);
    return false;
  }
  FAIL_POINT ("C-commit");
  if (!catalog_commit (cat, error))
    return false;
  if (out_deleted != NULL)
    *out_deleted = g_steal_pointer (&names);
  return true;
}

bool
checkpoint_oldest_boundary (Catalog *cat, const char *disk,
                            uint64_t *out_boundary, GError **error)
{
  int64_t boundary = 0;
  int rc;

  catalog_lock (cat);
  rc = query_int (cat,
    "SELECT min (boundary) FROM ("
    "   SELECT boundary FROM checkpoint_disk"
    "     WHERE disk = (SELECT id FROM disk WHERE name = ?1)"
    "   UNION ALL"
    "   SELECT from_epoch FROM bitmap_interval"
    "     WHERE disk = (SELECT id FROM disk WHERE name = ?1)"
    "   UNION ALL"
    "   SELECT boundary FROM snapshot"
    "     WHERE disk = (SELECT id FROM disk WHERE name = ?1)"
    "   UNION ALL"
    "   SELECT since_boundary FROM backup_disk"
    "     WHERE disk = (SELECT id FROM disk WHERE name = ?1))",
    disk, NULL, &boundary, error);
  catalog_unlock (cat);
  if (rc < 0)
    return false;
  *out_boundary = (uint64_t) boundary;
  return true;
}
