/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* epoch-open.c - start and stop of a disk's tracking. */
#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/checkpoint.h"
#include "bitmap/epoch-log.h"
#include "bitmap/fail-point.h"
#include "bitmap/granule.h"
#include "bitmap/intent.h"
#include "bitmap/named-bitmap.h"

/* What the catalog knew of the disk. */
typedef struct {
  int64_t id;
  bool clean;
  uint64_t next_epoch;
  DiskIdentity identity;
} DiskRow;

/* 1: found, 0: unknown disk, -1: error. */
static int
find_disk (Catalog *cat, const char *name, DiskRow *row, GError **error)
{
  sqlite3_stmt *stmt = catalog_stmt (cat,
    "SELECT id, clean, size, device, inode, mtime_ns, next_epoch, birth_ns"
    " FROM disk WHERE name = ?1", error);
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
    row->next_epoch = (uint64_t) sqlite3_column_int64 (stmt, 6);
    row->identity.birth_ns = sqlite3_column_int64 (stmt, 7);
    sqlite3_reset (stmt);
  }
  return rc;
}

static bool
add_disk (Catalog *cat, const char *name, uint32_t granularity, int64_t *out_id,
          GError **error)
{
  if (!catalog_run (cat,
        "INSERT INTO disk (name, granularity, size, device, inode, mtime_ns,"
        "                  clean, next_epoch)"
        " VALUES (?, ?, 0, 0, 0, 0, 0, 1)", error, "ti", name,
        (int64_t) granularity))
    return false;
  *out_id = catalog_last_id (cat);
  return true;
}

static bool
update_disk (Catalog *cat, int64_t disk, uint32_t granularity,
             const DiskIdentity *identity, bool clean, GError **error)
{
  return catalog_run (cat,
    "UPDATE disk SET granularity = ?, size = ?, device = ?, inode = ?,"
    "   mtime_ns = ?, clean = ?, birth_ns = ? WHERE id = ?", error, "iiiiiiii",
    (int64_t) granularity, (int64_t) identity->size,
    (int64_t) identity->device, (int64_t) identity->inode, identity->mtime_ns,
    (int64_t) clean, identity->birth_ns, disk);
}

static bool
differ (uint64_t a, uint64_t b)
{
  return a != 0 && b != 0 && a != b;
}

/* May the image have this size?  After a clean stop the disk's row tells; else
 * the open epoch's, and that of one that was to follow it with another size,
 * since image and catalog do not change in the same instant.  Without either
 * the last recovery was cut off. */
static bool
is_known_size (Catalog *cat, const DiskRow *row, uint64_t size, bool *out_known,
               GError **error)
{
  sqlite3_stmt *stmt;
  int rc;

  *out_known = row->identity.size == size;
  if (row->clean)
    return true;
  stmt = catalog_stmt (cat,
    "SELECT ifnull (max (size = ?2), ?3) FROM epoch"
    " INDEXED BY epoch_without_blob WHERE disk = ?1 AND blob IS NULL"
    " AND state IN ('open', 'prepared')", error);
  if (stmt == NULL)
    return false;
  sqlite3_bind_int64 (stmt, 1, row->id);
  sqlite3_bind_int64 (stmt, 2, (int64_t) size);
  sqlite3_bind_int (stmt, 3, *out_known);
  rc = catalog_step_row (cat, stmt, error);
  if (rc == 1) {
    *out_known = sqlite3_column_int (stmt, 0);
    sqlite3_reset (stmt);
  }
  return rc == 1;
}

/* MARK_VERSION UUID EPOCH DISK */
#define MARK_VERSION "1"

char *
epoch_log_mark (EpochLog *log)
{
  uint64_t id;

  pthread_mutex_lock (&log->mutex);
  id = log->closed != 0 ? log->closed
    : log->prepared != NULL ? log->prepared->id
    : epoch_log_current (log)->id;
  pthread_mutex_unlock (&log->mutex);
  return g_strdup_printf (MARK_VERSION " %s %" G_GUINT64_FORMAT " %s",
                          catalog_uuid (log->cat), id, log->name);
}

/* Why the mark on the image says that our rows are not the whole story. */
static char *
distrust_mark (const EpochLog *log, const DiskRow *row, const char *mark)
{
  g_auto (GStrv) part = g_strsplit (mark, " ", 4);
  uint64_t epoch;
  char *end;

  if (mark[0] == '\0')
    return NULL;
  if (g_strv_length (part) != 4 || strcmp (part[0], MARK_VERSION) != 0)
    return g_strdup ("image has since been tracked by another program");
  if (strcmp (part[1], catalog_uuid (log->cat)) != 0)
    return g_strdup ("image has since been tracked with another state "
                     "directory");
  if (strcmp (part[3], log->name) != 0)
    return g_strdup_printf ("image has since been tracked as disk '%s'",
                            part[3]);
  epoch = g_ascii_strtoull (part[2], &end, 10);
  if (*end != '\0' || end == part[2] || epoch >= row->next_epoch)
    return g_strdup ("state directory is older than the image: it was put back "
                     "from a copy");
  return NULL;
}

/* Why the image is not the one that was tracked; NULL if it is. */
static char *
distrust (const EpochLog *log, const DiskRow *row, bool known_size,
          const DiskIdentity *now)
{
  const DiskIdentity *then = &row->identity;
  char *reason;

  if (!known_size)
    return g_strdup_printf ("image size changed from %" G_GUINT64_FORMAT
                            " to %" G_GUINT64_FORMAT
                            " bytes since the last clean stop",
                            then->size, now->size);
  if (differ (then->device, now->device) || differ (then->inode, now->inode) ||
      differ ((uint64_t) then->birth_ns, (uint64_t) now->birth_ns))
    return g_strdup ("image is another file or device than at the last clean "
                     "stop");
  reason = distrust_mark (log, row, now->mark);
  if (reason != NULL)
    return reason;
  /* Until a clean stop the guest's own writes change it. */
  if (row->clean && differ ((uint64_t) then->mtime_ns,
                            (uint64_t) now->mtime_ns))
    return g_strdup ("image was written by something else since the last clean "
                     "stop (modification time differs)");
  return NULL;
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

/* Every id taken so far is below next_epoch: if not, the rows are of several
 * copies of the catalog, put together.  On with ids that are new, and all
 * dirty. */
static bool
mend_ids (Catalog *cat, const DiskRow *row, bool *out_mixed, GError **error)
{
  uint64_t last;

  if (!last_epoch (cat, row->id, &last, error))
    return false;
  *out_mixed = last >= row->next_epoch;
  if (!*out_mixed)
    return true;
  return catalog_run (cat, "UPDATE disk SET next_epoch = ? WHERE id = ?", error,
                      "ii", (int64_t) last + 1, row->id);
}

/* Why not even the rows and maps are of one piece. */
static bool
distrust_state (EpochLog *log, const DiskRow *row, char **out_reason,
                GError **error)
{
  bool mixed, copies;

  if (!mend_ids (log->cat, row, &mixed, error) ||
      !epoch_maps_are_copies (log, &copies, error))
    return false;
  if (mixed)
    *out_reason = g_strdup ("catalog is damaged: it has parts of different "
                            "ages");
  else if (copies)
    *out_reason = g_strdup ("state directory was put back from a copy that was "
                            "made while it was in use");
  return true;
}

/* First transaction: the disk's row; what an unclean stop left is recovered, so
 * that nothing depends on the old maps any more. */
static bool
recover_rows (EpochLog *log, uint32_t granularity,
              const DiskIdentity *identity, GPtrArray *stale, GError **error)
{
  EpochOpenReport *report = &log->report;
  Catalog *cat = log->cat;
  DiskRow row = { 0 };
  int found = find_disk (cat, log->name, &row, error);
  Epoch like = { .size = identity->size, .granularity = granularity };
  g_autofree char *not_of_one_piece = NULL;
  bool foreign, known_size;
  uint64_t id;

  if (found < 0)
    return false;
  if (found == 0) {
    report->created = report->clean = report->same_image = true;
    if (identity->mark[0] != '\0')
      report->reason = g_strdup ("image was tracked before, under another name "
                                 "or with another state directory");
    /* Clean, as long as nothing has been written. */
    return add_disk (cat, log->name, granularity, &log->disk, error) &&
      update_disk (cat, log->disk, granularity, identity, true, error);
  }
  log->disk = row.id;
  if (!is_known_size (cat, &row, identity->size, &known_size, error))
    return false;
  if (!distrust_state (log, &row, &not_of_one_piece, error))
    return false;
  report->reason = distrust (log, &row, known_size, identity);
  if (report->reason == NULL)
    report->reason = g_steal_pointer (&not_of_one_piece);
  foreign = report->reason != NULL;
  report->same_image = !foreign;
  if (!foreign && !row.clean)
    report->reason = g_strdup ("tracking was not stopped cleanly");
  report->clean = report->reason == NULL;
  if (!epoch_recover (log, identity->size, stale, error))
    return false;
  if (!foreign)
    return epoch_put_disk_size (cat, log->disk, identity->size, error);
  report->recovery = EPOCHS_ALL_DIRTY;
  return last_epoch (cat, log->disk, &id, error) &&
    add_all_dirty (cat, log->disk, id, &like, &id, error);
}

/* Takes an id for the open epoch as well, durably: its maps are made before its
 * row. */
static bool
recover (EpochLog *log, uint32_t granularity, const DiskIdentity *identity,
         GPtrArray *stale, uint64_t *out_id, uint64_t *out_prev,
         GError **error)
{
  FAIL_POINT ("R3-begin");
  if (!catalog_begin (log->cat, error))
    return false;
  if (!recover_rows (log, granularity, identity, stale, error) ||
      !last_epoch (log->cat, log->disk, out_prev, error) ||
      !epoch_take_ids (log->cat, log->disk, 1, out_id, error)) {
    catalog_rollback (log->cat);
    return false;
  }
  FAIL_POINT ("R3-commit");
  return catalog_commit (log->cat, error);
}

/* Second transaction: from now on guests may write. */
static bool
start_row (EpochLog *log, const Epoch *epoch, const DiskIdentity *identity,
           GError **error)
{
  Catalog *cat = log->cat;

  if (!catalog_begin (cat, error))
    return false;
  if (!epoch_put_row (cat, log->disk, epoch, EPOCH_OPEN, false, 0, NULL,
                      error) ||
      !update_disk (cat, log->disk, epoch->granularity, identity, false,
                    error)) {
    catalog_rollback (cat);
    return false;
  }
  FAIL_POINT ("R5-commit");
  return catalog_commit (cat, error);
}

/* --- files */

static bool
make_maps_dir (EpochLog *log, GError **error)
{
  Storage *storage = log->options.storage;
  int err = 0;

  log->maps_dir = g_build_filename (catalog_dir (log->cat), "maps", NULL);
  if (mkdir (log->maps_dir, 0700) < 0 && errno != EEXIST)
    err = -errno;
  if (err == 0)
    err = storage->ops->sync_dir (storage, catalog_dir (log->cat));
  if (err < 0)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                 "cannot create '%s': %s", log->maps_dir, g_strerror (-err));
  return err == 0;
}

/* Is it the durable map of an epoch of this disk?  Disk names may have dots and
 * digits, epochs only digits. */
static bool
is_map_of (const EpochLog *log, const char *name, uint64_t *out_epoch)
{
  size_t length = strlen (log->name);
  char *end;

  if (strncmp (name, log->name, length) != 0 || name[length] != '.' ||
      !isdigit ((unsigned char) name[length + 1]))
    return false;
  *out_epoch = g_ascii_strtoull (name + length + 1, &end, 10);
  return strcmp (end, ".d") == 0;
}

typedef struct {
  const EpochLog *log;
  uint64_t current;
  GPtrArray *old;               /* paths */
} MapSweep;

static void
find_old_map (void *opaque, const char *name)
{
  MapSweep *sweep = opaque;
  uint64_t epoch;

  if (is_map_of (sweep->log, name, &epoch) && epoch != sweep->current)
    g_ptr_array_add (sweep->old, g_build_filename (sweep->log->maps_dir, name,
                                                   NULL));
}

/* What a crash left between a commit and the removal of a file. */
static void
sweep_maps (EpochLog *log, uint64_t current)
{
  Storage *storage = log->options.storage;
  g_autoptr (GPtrArray) old = g_ptr_array_new_with_free_func (g_free);
  MapSweep sweep = { log, current, old };

  /* What cannot be listed or removed now is at the next start. */
  storage->ops->list (storage, log->maps_dir, find_old_map, &sweep);
  for (guint i = 0; i < old->len; i++)
    storage->ops->remove (storage, old->pdata[i]);
}

static bool
check_options (EpochLog *log, const EpochOptions *options, uint64_t disk_size,
               GError **error)
{
  EpochOptions *o = &log->options;
  uint64_t two_percent = disk_size / 50;

  *o = *options;
  if (o->storage == NULL)
    o->storage = &storage_posix;
  if (o->region_bytes == 0)
    o->region_bytes = 4u << 20;
  if (o->sync_interval_ms == 0)
    o->sync_interval_ms = 5000;
  if (o->idle_ms == 0)
    o->idle_ms = 30000;
  if (o->idle_over_cap_ms == 0)
    o->idle_over_cap_ms = MIN (5000, o->idle_ms);
  if (o->cap_bytes == 0)
    o->cap_bytes = MAX (UINT64_C (16) << 30, two_percent);
  if (o->region_bytes < INTENT_REGION_MIN ||
      o->region_bytes > INTENT_REGION_MAX ||
      (o->region_bytes & (o->region_bytes - 1)) != 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "intent region of %u bytes is not a power of 2 from %u to %u",
                 o->region_bytes, INTENT_REGION_MIN, INTENT_REGION_MAX);
    return false;
  }
  return true;
}

/* What is open, its maps, the intents; all durable before its row is.  On
 * failure none of it is left: no row knows of it. */
static bool
start_epoch (EpochLog *log, uint64_t id, uint64_t prev, uint32_t granularity,
             const DiskIdentity *identity, GError **error)
{
  Epoch *epoch;

  FAIL_POINT ("R5-maps");
  epoch = epoch_new (log, id, prev, identity->size, granularity, error);
  if (epoch == NULL)
    return false;
  g_ptr_array_add (log->all, epoch);
  atomic_store (&log->current, epoch);
  FAIL_POINT ("R5-intents");
  if (log->maps_dir != NULL)
    log->intents = intents_create (log, log->maps_dir, identity->size, error);
  if ((log->maps_dir == NULL || log->intents != NULL) &&
      start_row (log, epoch, identity, error))
    return true;
  epoch_drop_bits (epoch);
  return false;
}

static bool
start (EpochLog *log, uint32_t granularity, const DiskIdentity *identity,
       GError **error)
{
  g_autoptr (GPtrArray) stale = g_ptr_array_new_with_free_func (g_free);
  uint64_t id, prev;

  if (!recover (log, granularity, identity, stale, &id, &prev, error))
    return false;
  /* Before new ones are made: a file system that is full has no room for
   * both. */
  FAIL_POINT ("R5-remove");
  for (guint i = 0; i < stale->len; i++)
    log->options.storage->ops->remove (log->options.storage, stale->pdata[i]);
  if (log->maps_dir != NULL)
    sweep_maps (log, id);
  if (!named_bitmap_shrink (log->cat, log->disk, identity->size, error) ||
      !named_bitmap_finest (log->cat, log->disk, granularity, &granularity,
                            error) ||
      !start_epoch (log, id, prev, granule_fit (identity->size, granularity),
                    identity, error))
    return false;
  return log->intents == NULL || intents_start (log->intents, error);
}

EpochLog *
epoch_log_open (Catalog *cat, const char *name, uint32_t granularity,
                const DiskIdentity *identity, const EpochOptions *options,
                GError **error)
{
  g_autoptr (EpochLog) log = NULL;

  if (!name_check_id ("disk name", name, error))
    return NULL;
  if (!granule_check (identity->size, granularity, error)) {
    g_prefix_error (error, "disk '%s': ", name);
    return NULL;
  }
  log = g_new0 (EpochLog, 1);
  log->cat = cat;
  log->name = g_strdup (name);
  pthread_mutex_init (&log->maps_lock, NULL);
  pthread_mutex_init (&log->mutex, NULL);
  log->unstored = g_ptr_array_new ();
  log->all = g_ptr_array_new ();
  if (options != NULL &&
      (!check_options (log, options, identity->size, error) ||
       !make_maps_dir (log, error)))
    return NULL;
  return start (log, granularity, identity, error) ? g_steal_pointer (&log)
    : NULL;
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

/* The rows have all.  Others may still store, or read: from then on rows
 * only. */
static void
remove_maps (EpochLog *log)
{
  if (log->intents != NULL)
    intents_stop (log->intents);
  pthread_mutex_lock (&log->maps_lock);
  pthread_mutex_lock (&log->mutex);
  for (guint i = 0; i < log->unstored->len; i++)
    epoch_drop_bits (log->unstored->pdata[i]);
  g_ptr_array_set_size (log->unstored, 0);
  epoch_drop_bits (log->current);
  pthread_mutex_unlock (&log->mutex);
  pthread_mutex_unlock (&log->maps_lock);
}

bool
epoch_log_close (EpochLog *log, const DiskIdentity *identity, GError **error)
{
  Epoch *current = epoch_log_current (log);
  uint64_t closed;
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
  /* A copy of the rows from before must not pass for these. */
  ok = ok && epoch_take_ids (log->cat, log->disk, 1, &closed, error) &&
    update_disk (log->cat, log->disk, current->granularity, identity, true,
                 error);
  FAIL_POINT ("S-commit");
  if (ok)
    ok = catalog_commit (log->cat, error);
  else
    catalog_rollback (log->cat);
  FAIL_POINT ("S-remove");
  if (ok) {
    log->closed = closed;
    remove_maps (log);
  }
  else
    g_prefix_error (error, "cannot store the changes of disk '%s': ",
                    log->name);
  return ok;
}

void
epoch_log_free (EpochLog *log)
{
  if (log == NULL)
    return;
  intents_free (log->intents);
  epoch_free (log->prepared);
  for (guint i = 0; i < log->all->len; i++)
    epoch_free (g_ptr_array_index (log->all, i));
  g_ptr_array_free (log->all, TRUE);
  g_ptr_array_free (log->unstored, TRUE);
  pthread_mutex_destroy (&log->mutex);
  pthread_mutex_destroy (&log->maps_lock);
  g_free (log->maps_dir);
  g_free (log->report.reason);
  g_free (log->name);
  g_free (log);
}

bool
epoch_list_runtime_maps (Catalog *cat, GPtrArray *names, GError **error)
{
  sqlite3_stmt *stmt;
  int rc = -1;

  catalog_lock (cat);
  stmt = catalog_stmt (cat,
    "SELECT name || '.' || epoch.id || '.r' FROM epoch"
    " INDEXED BY epoch_without_blob"
    " JOIN disk ON disk.id = epoch.disk"
    " WHERE blob IS NULL AND nonce IS NOT NULL"
    " UNION ALL SELECT name || '.' || layer.id || '.p' FROM layer"
    " JOIN disk ON disk.id = layer.disk WHERE nonce IS NOT NULL"
    " UNION ALL SELECT disk.name || '.' || overlay.id || '.o' FROM overlay"
    " JOIN disk ON disk.id = overlay.disk WHERE nonce IS NOT NULL"
    " UNION ALL SELECT name || '" EPOCH_MARK_SUFFIX "' FROM disk", error);
  if (stmt != NULL)
    while ((rc = catalog_step_row (cat, stmt, error)) == 1)
      g_ptr_array_add (names,
                       g_strdup ((const char *) sqlite3_column_text (stmt,
                                                                     0)));
  catalog_unlock (cat);
  return rc == 0;
}
