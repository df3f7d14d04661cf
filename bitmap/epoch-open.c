/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* epoch-open.c - start and stop of a disk's tracking. */
#include "config.h"

#include "bitmap/bitmap-error.h"
#include "bitmap/checkpoint.h"
#include "bitmap/epoch-log.h"
#include "bitmap/granule.h"

/* What the catalog knew of the disk. */
typedef struct {
  int64_t id;
  bool clean;
  DiskIdentity identity;
} DiskRow;

/* 1: found, 0: unknown disk, -1: error. */
static int
find_disk (Catalog *cat, const char *name, DiskRow *row, GError **error)
{
  sqlite3_stmt *stmt = catalog_stmt (cat,
    "SELECT id, clean, size, device, inode, mtime_ns FROM disk"
    " WHERE name = ?1", error);
  int rc;

  if (stmt == NULL)
    return -1;
  sqlite3_bind_text (stmt, 1, name, -1, SQLITE_STATIC);
  rc = catalog_step_row (cat, stmt, error);
  if (rc == 1) {
    row->id = sqlite3_column_int64 (stmt, 0);
    row->clean = sqlite3_column_int (stmt, 1);
    row->identity.size = (uint64_t) sqlite3_column_int64 (stmt, 2);
    row->identity.device = (uint64_t) sqlite3_column_int64 (stmt, 3);
    row->identity.inode = (uint64_t) sqlite3_column_int64 (stmt, 4);
    row->identity.mtime_ns = sqlite3_column_int64 (stmt, 5);
    sqlite3_reset (stmt);
  }
  return rc;
}

static bool
add_disk (Catalog *cat, const char *name, uint32_t granularity, int64_t *out_id,
          GError **error)
{
  sqlite3_stmt *stmt = catalog_stmt (cat,
    "INSERT INTO disk (name, granularity, size, device, inode, mtime_ns,"
    "                  clean, next_epoch)"
    " VALUES (?1, ?2, 0, 0, 0, 0, 0, 1)", error);

  if (stmt == NULL)
    return false;
  sqlite3_bind_text (stmt, 1, name, -1, SQLITE_STATIC);
  sqlite3_bind_int64 (stmt, 2, granularity);
  if (!catalog_step_done (cat, stmt, error))
    return false;
  *out_id = catalog_last_id (cat);
  return true;
}

static bool
update_disk (Catalog *cat, int64_t disk, uint32_t granularity,
             const DiskIdentity *identity, bool clean, GError **error)
{
  sqlite3_stmt *stmt = catalog_stmt (cat,
    "UPDATE disk SET granularity = ?2, size = ?3, device = ?4, inode = ?5,"
    "   mtime_ns = ?6, clean = ?7 WHERE id = ?1", error);

  if (stmt == NULL)
    return false;
  sqlite3_bind_int64 (stmt, 1, disk);
  sqlite3_bind_int64 (stmt, 2, granularity);
  sqlite3_bind_int64 (stmt, 3, (int64_t) identity->size);
  sqlite3_bind_int64 (stmt, 4, (int64_t) identity->device);
  sqlite3_bind_int64 (stmt, 5, (int64_t) identity->inode);
  sqlite3_bind_int64 (stmt, 6, identity->mtime_ns);
  sqlite3_bind_int (stmt, 7, clean);
  return catalog_step_done (cat, stmt, error);
}

static bool
differ (uint64_t a, uint64_t b)
{
  return a != 0 && b != 0 && a != b;
}

/* Why tracking cannot go on exactly; NULL if it can. */
static char *
distrust (const DiskRow *row, const DiskIdentity *now)
{
  const DiskIdentity *then = &row->identity;

  if (!row->clean)
    return g_strdup ("tracking was not stopped cleanly");
  if (then->size != now->size)
    return g_strdup_printf ("image size changed from %" G_GUINT64_FORMAT
                            " to %" G_GUINT64_FORMAT
                            " bytes since the last clean stop",
                            then->size, now->size);
  if (differ (then->device, now->device) || differ (then->inode, now->inode))
    return g_strdup ("image is another file or device than at the last clean "
                     "stop");
  if (differ ((uint64_t) then->mtime_ns, (uint64_t) now->mtime_ns))
    return g_strdup ("image was written by something else since the last clean "
                     "stop (modification time differs)");
  return NULL;
}

/* Epochs whose bits went with the process that had them in memory. */
static bool
seal_orphans (Catalog *cat, int64_t disk, GError **error)
{
  sqlite3_stmt *stmt = catalog_stmt (cat,
    "UPDATE epoch SET state = 'sealed', all_dirty = 1,"
    "   count = (size + granularity - 1) / granularity"
    " WHERE disk = ?1 AND blob IS NULL", error);

  if (stmt == NULL)
    return false;
  sqlite3_bind_int64 (stmt, 1, disk);
  return catalog_step_done (cat, stmt, error);
}

static bool
last_epoch (Catalog *cat, int64_t disk, uint64_t *out_id, GError **error)
{
  sqlite3_stmt *stmt = catalog_stmt (cat,
    "SELECT ifnull (max (id), 0) FROM epoch WHERE disk = ?1", error);

  if (stmt == NULL)
    return false;
  sqlite3_bind_int64 (stmt, 1, disk);
  if (catalog_step_row (cat, stmt, error) != 1)
    return false;
  *out_id = (uint64_t) sqlite3_column_int64 (stmt, 0);
  sqlite3_reset (stmt);
  return true;
}

/* Puts in an epoch that is dirty everywhere, so that every older boundary reads
 * all dirty. */
static bool
add_all_dirty (Catalog *cat, int64_t disk, uint64_t prev, const Epoch *like,
               uint64_t *out_id, GError **error)
{
  Epoch epoch = { .prev = prev, .size = like->size,
                  .granularity = like->granularity };

  if (!epoch_take_ids (cat, disk, 1, &epoch.id, error) ||
      !epoch_put_row (cat, disk, &epoch, EPOCH_SEALED, true,
                      granule_count (epoch.size, epoch.granularity), NULL,
                      error))
    return false;
  *out_id = epoch.id;
  return true;
}

/* The rows of a start; in a transaction.  Fills ids of epoch, and log. */
static bool
start_rows (EpochLog *log, Epoch *epoch, const DiskIdentity *identity,
            GError **error)
{
  Catalog *cat = log->cat;
  DiskRow row = { 0 };
  int found = find_disk (cat, log->name, &row, error);

  if (found < 0)
    return false;
  if (found == 0) {
    log->report.created = true;
    if (!add_disk (cat, log->name, epoch->granularity, &row.id, error))
      return false;
  }
  else
    log->report.reason = distrust (&row, identity);
  log->report.clean = log->report.reason == NULL;
  log->disk = row.id;

  return seal_orphans (cat, log->disk, error) &&
    last_epoch (cat, log->disk, &epoch->prev, error) &&
    (log->report.clean ||
     add_all_dirty (cat, log->disk, epoch->prev, epoch, &epoch->prev,
                    error)) &&
    epoch_take_ids (cat, log->disk, 1, &epoch->id, error) &&
    epoch_put_row (cat, log->disk, epoch, EPOCH_OPEN, false, 0, NULL, error) &&
    update_disk (cat, log->disk, epoch->granularity, identity, false, error);
}

EpochLog *
epoch_log_open (Catalog *cat, const char *name, uint32_t granularity,
                const DiskIdentity *identity, GError **error)
{
  g_autoptr (EpochLog) log = NULL;
  Epoch *epoch;

  if (!name_check_id ("disk name", name, error))
    return NULL;
  epoch = epoch_new (0, 0, identity->size, granularity, error);
  if (epoch == NULL) {
    g_prefix_error (error, "disk '%s': ", name);
    return NULL;
  }

  log = g_new0 (EpochLog, 1);
  log->cat = cat;
  log->name = g_strdup (name);
  pthread_mutex_init (&log->mutex, NULL);
  log->unstored = g_ptr_array_new ();
  log->all = g_ptr_array_new ();
  g_ptr_array_add (log->all, epoch);
  atomic_init (&log->current, epoch);

  if (!catalog_begin (cat, error))
    return NULL;
  if (!start_rows (log, epoch, identity, error)) {
    catalog_rollback (cat);
    return NULL;
  }
  return catalog_commit (cat, error) ? g_steal_pointer (&log) : NULL;
}

const EpochOpenReport *
epoch_log_report (const EpochLog *log)
{
  return &log->report;
}

int64_t
epoch_log_disk_id (const EpochLog *log)
{
  return log->disk;
}

const char *
epoch_log_disk_name (const EpochLog *log)
{
  return log->name;
}

/* Everything that is only in memory, with the log's mutex held: no writer and
 * no cut is left that could wait for it. */
static bool
store_all_locked (EpochLog *log, GError **error)
{
  Epoch *current = log->current;
  ChangeSet *bits;

  for (guint i = 0; i < log->unstored->len; i++) {
    Epoch *epoch = g_ptr_array_index (log->unstored, i);

    bits = epoch_sealed_locked (epoch, error);
    if (bits == NULL || !epoch_store_row (log, epoch, bits, error))
      return false;
  }

  /* Not cached: if this close fails and writes go on, it would be stale. */
  bits = dirty_bitmap_to_change_set (current->bitmap, error);
  if (bits == NULL)
    return false;
  if (!epoch_store_row (log, current, bits, error)) {
    change_set_unref (bits);
    return false;
  }
  change_set_unref (bits);
  return true;
}

bool
epoch_log_close (EpochLog *log, const DiskIdentity *identity, GError **error)
{
  Epoch *current = epoch_log_current (log);
  bool ok;

  /* Every write must fit the epoch: a disk that is larger than it thinks has
   * bytes that no bit stands for. */
  if (identity->size != current->size) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "disk '%s' has %" G_GUINT64_FORMAT " bytes, but %"
                 G_GUINT64_FORMAT " are tracked", log->name, identity->size,
                 current->size);
    return false;
  }
  if (!catalog_begin (log->cat, error))
    return false;
  pthread_mutex_lock (&log->mutex);
  ok = store_all_locked (log, error);
  pthread_mutex_unlock (&log->mutex);
  ok = ok && update_disk (log->cat, log->disk, current->granularity, identity,
                          true, error);
  if (ok)
    ok = catalog_commit (log->cat, error);
  else
    catalog_rollback (log->cat);
  if (!ok)
    g_prefix_error (error, "cannot store the changes of disk '%s': ",
                    log->name);
  return ok;
}

void
epoch_log_free (EpochLog *log)
{
  if (log == NULL)
    return;
  epoch_free (log->prepared);
  for (guint i = 0; i < log->all->len; i++)
    epoch_free (g_ptr_array_index (log->all, i));
  g_ptr_array_free (log->all, TRUE);
  g_ptr_array_free (log->unstored, TRUE);
  pthread_mutex_destroy (&log->mutex);
  g_free (log->report.reason);
  g_free (log->name);
  g_free (log);
}
