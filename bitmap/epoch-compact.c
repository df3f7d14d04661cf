/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* epoch-compact.c - epochs that no boundary separates any more become one.
 *
 * Every checkpoint, bitmap and snapshot ends an epoch; when they go, what they
 * separated would stay in pieces for as long as something older is kept.  The
 * merged epoch has the id of the first, so that the boundary there stays what
 * it was, and the one behind the last gets it as its predecessor.
 */
#include "config.h"

#include "bitmap/bitmap-error.h"
#include "bitmap/epoch-log.h"
#include "bitmap/fail-point.h"

/* Epochs a transaction: others wait for the catalog meanwhile. */
#define COMPACT_MAX 64

typedef struct {
  uint64_t id, size;
  uint32_t granularity;
  bool all_dirty;
} Row;

/* Ids of epochs that something begins or ends at, in order. */
static bool
list_boundaries (EpochLog *log, GArray *boundaries, GError **error)
{
  sqlite3_stmt *stmt = catalog_stmt (log->cat,
    "SELECT boundary FROM checkpoint_disk WHERE disk = ?1"
#ifndef BROKEN_COMPACT_BITMAP   /* see test-crash-controls.sh */
    " UNION SELECT from_epoch FROM bitmap_interval WHERE disk = ?1"
    " UNION SELECT to_epoch FROM bitmap_interval WHERE disk = ?1"
    "   AND to_epoch IS NOT NULL"
#endif
    " UNION SELECT boundary FROM snapshot WHERE disk = ?1"
    " UNION SELECT since_boundary FROM backup_disk WHERE disk = ?1"
    "   AND since_boundary IS NOT NULL"
    " ORDER BY 1", error);
  int rc = -1;

  if (stmt == NULL)
    return false;
  sqlite3_bind_int64 (stmt, 1, log->disk);
  while ((rc = catalog_step_row (log->cat, stmt, error)) == 1) {
    uint64_t id = (uint64_t) sqlite3_column_int64 (stmt, 0);

    g_array_append_val (boundaries, id);
  }
  return rc == 0;
}

/* The first run of neighbours that are stored and not separated; at most
 * COMPACT_MAX of them, and none if there are not two. */
static bool
find_run (EpochLog *log, GArray *run, GError **error)
{
  g_autoptr (GArray) boundaries = g_array_new (FALSE, FALSE, sizeof (uint64_t));
  sqlite3_stmt *stmt;
  uint64_t before = 0;
  guint b = 0;
  int rc = -1;

  if (!list_boundaries (log, boundaries, error))
    return false;
  stmt = catalog_stmt (log->cat,
    "SELECT id, prev, size, granularity, all_dirty, blob IS NOT NULL"
    " FROM epoch WHERE disk = ?1 AND state = 'sealed' ORDER BY id", error);
  if (stmt == NULL)
    return false;
  sqlite3_bind_int64 (stmt, 1, log->disk);
  while ((rc = catalog_step_row (log->cat, stmt, error)) == 1) {
    Row row = {
      .id = (uint64_t) sqlite3_column_int64 (stmt, 0),
      .size = (uint64_t) sqlite3_column_int64 (stmt, 2),
      .granularity = (uint32_t) sqlite3_column_int64 (stmt, 3),
      .all_dirty = sqlite3_column_int (stmt, 4),
    };
    bool stored = row.all_dirty || sqlite3_column_int (stmt, 5);
    bool separate = (uint64_t) sqlite3_column_int64 (stmt, 1) != before;

    before = row.id;
    while (b < boundaries->len &&
           g_array_index (boundaries, uint64_t, b) < row.id)
      b++;
    separate |= b < boundaries->len &&
      g_array_index (boundaries, uint64_t, b) == row.id;
    if ((separate || !stored) && run->len > 1)
      break;
    if (separate || !stored)
      g_array_set_size (run, 0);
    if (stored)
      g_array_append_val (run, row);
    if (run->len == COMPACT_MAX)
      break;
  }
  sqlite3_reset (stmt);
  if (run->len < 2)
    g_array_set_size (run, 0);
  return rc >= 0;
}

/* NULL with an error: CORRUPT if a blob is damaged. */
static ChangeSet *
load_row (EpochLog *log, const Row *row, GError **error)
{
  sqlite3_stmt *stmt = catalog_stmt (log->cat,
    "SELECT blob FROM epoch WHERE disk = ?1 AND id = ?2", error);
  g_autoptr (ChangeSet) set = NULL;

  if (stmt == NULL)
    return NULL;
  sqlite3_bind_int64 (stmt, 1, log->disk);
  sqlite3_bind_int64 (stmt, 2, (int64_t) row->id);
  if (catalog_step_row (log->cat, stmt, error) != 1)
    return NULL;
  {
    g_autoptr (GBytes) blob =
      g_bytes_new_static (sqlite3_column_blob (stmt, 0),
                          (size_t) sqlite3_column_bytes (stmt, 0));

    set = change_set_deserialize (blob, error);
  }
  sqlite3_reset (stmt);
  if (set != NULL && (change_set_size (set) != row->size ||
                      change_set_granularity (set) != row->granularity)) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_CORRUPT,
                 "epoch %" G_GUINT64_FORMAT " has another geometry than its "
                 "row", row->id);
    return NULL;
  }
  return g_steal_pointer (&set);
}

/* The OR of a run; NULL without an error: everything is dirty. */
static bool
merge_run (EpochLog *log, GArray *run, ChangeSet **out_set, GError **error)
{
  const Row *last = &g_array_index (run, Row, run->len - 1);
  uint32_t finest = last->granularity;
  g_autoptr (ChangeSetUnion) u = NULL;

  *out_set = NULL;
  for (guint i = 0; i < run->len; i++) {
    const Row *row = &g_array_index (run, Row, i);

    if (row->all_dirty)
      return true;
    finest = MIN (finest, row->granularity);
  }
  u = change_set_union_new (last->size, finest, error);
  if (u == NULL)
    return false;
  for (guint i = 0; i < run->len; i++) {
    g_autoptr (GError) local = NULL;
    g_autoptr (ChangeSet) set =
      load_row (log, &g_array_index (run, Row, i), &local);

    if (set == NULL &&
        g_error_matches (local, BITMAP_ERROR, BITMAP_ERROR_CORRUPT))
      return true;
    if (set == NULL) {
      g_propagate_error (error, g_steal_pointer (&local));
      return false;
    }
#ifdef BROKEN_COMPACT_EPOCH     /* see test-crash-controls.sh */
    if (i == run->len - 1)
      break;
#endif
    if (!change_set_union_add (u, set, error))
      return false;
  }
  *out_set = change_set_union_finish (u, error);
  return *out_set != NULL;
}

static bool
replace_rows (EpochLog *log, GArray *run, const ChangeSet *set,
              GError **error)
{
  uint64_t first = g_array_index (run, Row, 0).id;
  const Row *last = &g_array_index (run, Row, run->len - 1);
  g_autoptr (GBytes) blob = NULL;

  if (set != NULL) {
    blob = change_set_serialize (set, error);
    if (blob == NULL)
      return false;
  }
  return catalog_run (log->cat,
    "UPDATE epoch SET size = ?, granularity = ?, all_dirty = ?, count = ?,"
    " blob = ? WHERE disk = ? AND id = ?", error, "iiiibii",
    (int64_t) last->size, (int64_t) (set != NULL ? change_set_granularity (set)
                                     : last->granularity),
    (int64_t) (set == NULL), (int64_t) (set != NULL ? change_set_count (set)
                                        : 0), blob, log->disk, (int64_t) first)
    &&
    catalog_run (log->cat, "DELETE FROM epoch WHERE disk = ? AND id > ?"
                 " AND id <= ?", error, "iii", log->disk, (int64_t) first,
                 (int64_t) last->id) &&
    catalog_run (log->cat, "UPDATE epoch SET prev = ? WHERE disk = ?"
                 " AND prev = ?", error, "iii", (int64_t) first, log->disk,
                 (int64_t) last->id);
}

/* The epoch behind, if it is in memory. */
static void
relink (EpochLog *log, uint64_t from, uint64_t to)
{
  pthread_mutex_lock (&log->mutex);
  for (guint i = 0; i < log->unstored->len; i++) {
    Epoch *epoch = g_ptr_array_index (log->unstored, i);

    if (epoch->prev == from)
      epoch->prev = to;
  }
  if (epoch_log_current (log)->prev == from)
    epoch_log_current (log)->prev = to;
  log->compactions++;
  pthread_mutex_unlock (&log->mutex);
}

/* false, and no error: there was nothing to do. */
static bool
compact_one (EpochLog *log, GError **error)
{
  g_autoptr (GArray) run = g_array_new (FALSE, FALSE, sizeof (Row));
  g_autoptr (ChangeSet) set = NULL;
  uint64_t first, last;

  FAIL_POINT ("M-begin");
  if (!catalog_begin (log->cat, error))
    return false;
  if (!find_run (log, run, error) || run->len == 0 ||
      !merge_run (log, run, &set, error) ||
      !replace_rows (log, run, set, error)) {
    catalog_rollback (log->cat);
    return false;
  }
  /* Before the commit, while nobody else can read rows: a reader sees old rows
   * with old links or new ones with new. */
  FAIL_POINT ("M-rows");
  first = g_array_index (run, Row, 0).id;
  last = g_array_index (run, Row, run->len - 1).id;
  relink (log, last, first);
  FAIL_POINT ("M-commit");
  if (catalog_commit (log->cat, error)) {
    FAIL_POINT ("M-done");
    return true;
  }
  relink (log, first, last);    /* no other epoch in memory follows first */
  return false;
}

bool
epoch_log_compact (EpochLog *log, GError **error)
{
  GError *local = NULL;

  while (compact_one (log, &local))
    ;
  if (local == NULL)
    return true;
  g_propagate_prefixed_error (error, local,
                              "cannot merge old records of changes of disk "
                              "'%s': ", log->name);
  return false;
}
