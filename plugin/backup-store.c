/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <string.h>
#include <sqlite3.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/checkpoint.h"
#include "plugin/backup-store.h"
#include "plugin/lease.h"
#include "plugin/qmp.h"
#include "plugin/restore-store.h"

/* Of the column state. */
#define STATE_PULL "running"
#define STATE_PUSH "push"

/* NULL becomes NULL.  The text outlives the step. */
static void
bind_text (sqlite3_stmt *stmt, int column, const char *text)
{
  sqlite3_bind_text (stmt, column, text, -1, SQLITE_STATIC);
}

static bool
insert_disk (Catalog *cat, const Backup *backup, const BackupDisk *bd,
             GError **error)
{
  sqlite3_stmt *stmt =
    catalog_stmt (cat,
                  "INSERT INTO backup_disk (backup, disk, snapshot,"
                  " exportname, exportbitmap, incremental, since_boundary)"
                  " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)", error);

  if (stmt == NULL)
    return false;
  bind_text (stmt, 1, backup->id);
  sqlite3_bind_int64 (stmt, 2,
                      epoch_log_disk_id (disk_epoch_log (bd->disk)));
  bind_text (stmt, 3, backup->id);
  bind_text (stmt, 4, bd->export);
  bind_text (stmt, 5, bd->bitmap);
  bind_text (stmt, 6, bd->since);
  if (bd->since != NULL)
    sqlite3_bind_int64 (stmt, 7, bd->since_boundary);
  return catalog_step_done (cat, stmt, error);
}

/* What a backup was begun with and nothing else tells, as JSON; NULL:
 * nothing. */
static char *
arguments_of (const Backup *backup)
{
  unsigned lease = atomic_load (&backup->lease);

  return lease > 0 ? g_strdup_printf ("{\"lease\": %u}", lease) : NULL;
}

/* What cannot be read is as if it were not there: the backup stays. */
static void
read_arguments (Backup *backup, const char *text)
{
  json_t *arguments = text != NULL ? json_loads (text, 0, NULL) : NULL;
  json_int_t lease =
    json_integer_value (json_object_get (arguments, "lease"));

  if (lease > 0 && lease <= LEASE_MAX)
    atomic_store (&backup->lease, (unsigned) lease);
  json_decref (arguments);
}

bool
backup_store_arguments (Catalog *cat, const Backup *backup, GError **error)
{
  g_autofree char *arguments = arguments_of (backup);
  sqlite3_stmt *stmt;
  bool ok = false;

  catalog_lock (cat);
  stmt = catalog_stmt (cat, "UPDATE backup SET arguments = ?2 WHERE id = ?1",
                       error);
  if (stmt != NULL) {
    bind_text (stmt, 1, backup->id);
    bind_text (stmt, 2, arguments);
    ok = catalog_step_done (cat, stmt, error);
  }
  catalog_unlock (cat);
  return ok;
}

bool
backup_store_insert (Catalog *cat, const Backup *backup, GError **error)
{
  sqlite3_stmt *stmt =
    catalog_stmt (cat,
                  "INSERT INTO backup (id, checkpoint, state, created,"
                  " arguments) VALUES (?1, ?2, ?4, ?3, ?5)", error);
  g_autofree char *arguments = arguments_of (backup);

  if (stmt == NULL)
    return false;
  bind_text (stmt, 1, backup->id);
  bind_text (stmt, 2, backup->checkpoint);
  sqlite3_bind_int64 (stmt, 3, backup->created);
  bind_text (stmt, 4, backup->push ? STATE_PUSH : STATE_PULL);
  bind_text (stmt, 5, arguments);
  if (!catalog_step_done (cat, stmt, error))
    return false;
  for (size_t i = 0; i < backup->disks->len; i++)
    if (!insert_disk (cat, backup, backup->disks->pdata[i], error))
      return false;
  return true;
}

bool
backup_store_delete (Catalog *cat, const char *id, GError **error)
{
  sqlite3_stmt *stmt;

  stmt = catalog_stmt (cat, "DELETE FROM backup_disk WHERE backup = ?1",
                       error);
  if (stmt == NULL)
    return false;
  bind_text (stmt, 1, id);
  if (!catalog_step_done (cat, stmt, error))
    return false;

  stmt = catalog_stmt (cat, "DELETE FROM backup WHERE id = ?1", error);
  if (stmt == NULL)
    return false;
  bind_text (stmt, 1, id);
  return catalog_step_done (cat, stmt, error);
}

/* The checkpoint that was made with the backup; NULL: none, or somebody has
 * deleted it, and perhaps made another of that name. */
static Checkpoint *
find_own_checkpoint (Catalog *cat, const Backup *backup)
{
  g_autoptr (Checkpoint) ckpt = NULL;

  if (backup->checkpoint != NULL)
    ckpt = checkpoint_lookup (cat, backup->checkpoint, NULL);
  if (ckpt == NULL || ckpt->creation_time != backup->created)
    return NULL;
  for (size_t i = 0; i < backup->disks->len; i++) {
    const BackupDisk *bd = backup->disks->pdata[i];
    const CheckpointDisk *cd = checkpoint_find_disk (ckpt, bd->disk_name);

    if (cd != NULL && bd->snapshot != NULL &&
        cd->boundary != snapshot_boundary (bd->snapshot))
      return NULL;
  }
  return g_steal_pointer (&ckpt);
}

bool
backup_store_end (Catalog *cat, const Backup *backup, bool failed,
                  bool *out_checkpoint_gone, GError **error)
{
  g_autoptr (Checkpoint) ckpt = NULL;

  if (!catalog_begin (cat, error))
    return false;
  if (failed)
    ckpt = find_own_checkpoint (cat, backup);
  *out_checkpoint_gone = ckpt != NULL;
  if ((ckpt != NULL &&
       !checkpoint_delete (cat, ckpt->name, CHECKPOINT_DELETE_ONE, NULL,
                           error)) ||
      !backup_store_delete (cat, backup->id, error)) {
    catalog_rollback (cat);
    return false;
  }
  return catalog_commit (cat, error);
}

static const char *
column_text (sqlite3_stmt *stmt, int column)
{
  return (const char *) sqlite3_column_text (stmt, column);
}

static bool
list_disks (Catalog *cat, Backup *backup, GError **error)
{
  sqlite3_stmt *stmt =
    catalog_stmt (cat,
                  "SELECT disk.name, exportname, exportbitmap, incremental,"
                  " since_boundary FROM backup_disk"
                  " JOIN disk ON disk.id = backup_disk.disk"
                  " WHERE backup = ?1 ORDER BY disk.name", error);
  int r;

  if (stmt == NULL)
    return false;
  bind_text (stmt, 1, backup->id);
  while ((r = catalog_step_row (cat, stmt, error)) == 1) {
    BackupDisk *bd;

    if (column_text (stmt, 1) == NULL) {
      g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_CORRUPT,
                   "backup '%s' has a disk without an export name",
                   backup->id);
      return false;
    }
    bd = backup_add_disk (backup, NULL, column_text (stmt, 0),
                          column_text (stmt, 1));
    bd->bitmap = g_strdup (column_text (stmt, 2));
    bd->since = g_strdup (column_text (stmt, 3));
    bd->since_boundary = sqlite3_column_int64 (stmt, 4);
    if (bd->since_boundary == 0)        /* a map needs its boundary */
      g_clear_pointer (&bd->bitmap, g_free);
  }
  return r == 0;
}

static bool
list_backups (Catalog *cat, GPtrArray *list, GError **error)
{
  sqlite3_stmt *stmt =
    catalog_stmt (cat,
                  "SELECT id, checkpoint, created, state, arguments FROM backup"
                  " WHERE state <> '" STATE_RESTORE "' ORDER BY created, id",
                  error);
  int r;

  if (stmt == NULL)
    return false;
  while ((r = catalog_step_row (cat, stmt, error)) == 1) {
    Backup *backup = backup_new (column_text (stmt, 0), column_text (stmt, 1),
                                 sqlite3_column_int64 (stmt, 2));

    backup->push = strcmp (column_text (stmt, 3), STATE_PUSH) == 0;
    read_arguments (backup, column_text (stmt, 4));
    g_ptr_array_add (list, backup);
  }
  if (r < 0)
    return false;
  for (size_t i = 0; i < list->len; i++)
    if (!list_disks (cat, list->pdata[i], error))
      return false;
  return true;
}

GPtrArray *
backup_store_list (Catalog *cat, GError **error)
{
  g_autoptr (GPtrArray) list =
    g_ptr_array_new_with_free_func ((GDestroyNotify) backup_unref);
  bool ok;

  catalog_lock (cat);
  ok = list_backups (cat, list, error);
  catalog_unlock (cat);
  return ok ? g_steal_pointer (&list) : NULL;
}
