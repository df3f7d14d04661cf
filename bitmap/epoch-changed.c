/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* epoch-changed.c - "changed between two boundaries", from rows and memory. */
#include "config.h"

#include "bitmap/bitmap-error.h"
#include "bitmap/epoch-log.h"
#include "bitmap/granule.h"

/* One epoch of the interval, or the one that starts at its end. */
typedef struct {
  uint64_t id, prev, size;
  uint32_t granularity;
  bool all_dirty;
  bool has_blob;
  ChangeSet *bits;              /* a reference, if it was in memory */
} Part;

static void
part_free (gpointer data)
{
  Part *part = data;

  change_set_unref (part->bits);
  g_free (part);
}

/* Rows of from <= id <= to, by id.  A prepared one that counts is in memory. */
static bool
list_rows (EpochLog *log, uint64_t from, uint64_t to, GPtrArray *parts,
           GError **error)
{
  sqlite3_stmt *stmt = catalog_stmt (log->cat,
    "SELECT id, prev, size, granularity, all_dirty, blob IS NOT NULL"
    " FROM epoch WHERE disk = ?1 AND id BETWEEN ?2 AND ?3"
    "   AND state <> 'prepared' ORDER BY id", error);
  int rc;

  if (stmt == NULL)
    return false;
  sqlite3_bind_int64 (stmt, 1, log->disk);
  sqlite3_bind_int64 (stmt, 2, (int64_t) MIN (from, (uint64_t) INT64_MAX));
  sqlite3_bind_int64 (stmt, 3, (int64_t) MIN (to, (uint64_t) INT64_MAX));
  while ((rc = catalog_step_row (log->cat, stmt, error)) == 1) {
    Part *part = g_new0 (Part, 1);

    part->id = (uint64_t) sqlite3_column_int64 (stmt, 0);
    part->prev = (uint64_t) sqlite3_column_int64 (stmt, 1);
    part->size = (uint64_t) sqlite3_column_int64 (stmt, 2);
    part->granularity = (uint32_t) sqlite3_column_int64 (stmt, 3);
    part->all_dirty = sqlite3_column_int (stmt, 4);
    part->has_blob = sqlite3_column_int (stmt, 5);
    g_ptr_array_add (parts, part);
  }
  return rc == 0;
}

/* Takes over the entry of epoch, or puts one in where its id belongs. */
static Part *
place (GPtrArray *parts, const Epoch *epoch)
{
  guint i = parts->len;
  Part *part;

  while (i > 0 && ((Part *) g_ptr_array_index (parts, i - 1))->id >= epoch->id)
    i--;
  if (i < parts->len) {
    part = g_ptr_array_index (parts, i);
    if (part->id == epoch->id)
      return part;
  }
  part = g_new0 (Part, 1);
  part->id = epoch->id;
  part->prev = epoch->prev;
  part->size = epoch->size;
  part->granularity = epoch->granularity;
  g_ptr_array_insert (parts, (gint) i, part);
  return part;
}

/* The bits of an epoch that writers may still be in, as of now. */
static bool
place_copy (GPtrArray *parts, const Epoch *epoch, uint64_t prev,
            GError **error)
{
  Part *part = place (parts, epoch);

  part->prev = prev;
  part->bits = dirty_bitmap_to_change_set (epoch->bitmap, error);
  return part->bits != NULL;
}

/* Epochs in memory override their rows.  The open one is copied as of now, if
 * the interval reaches it; and so is the prepared one, since writers are in it
 * from the cut's flip on: until it is sealed, or for long if the cut failed. */
static bool
list_memory_locked (EpochLog *log, uint64_t from, uint64_t to, bool now,
                    GPtrArray *parts, GError **error)
{
  Epoch *current = log->current;
  ChangeSet *bits;

  for (guint i = 0; i < log->unstored->len; i++) {
    Epoch *epoch = g_ptr_array_index (log->unstored, i);

    if (epoch->id < from || epoch->id > to)
      continue;
    bits = epoch_sealed_locked (epoch, error);
    if (bits == NULL)
      return false;
    place (parts, epoch)->bits = change_set_ref (bits);
  }
  if (current->id < from || current->id > to)
    return true;
  if (current->bitmap == NULL)          /* closed: its row has it */
    return true;
  if (!now) {
    place (parts, current);
    return true;
  }
  return place_copy (parts, current, current->prev, error) &&
    (log->prepared == NULL ||
     place_copy (parts, log->prepared, current->id, error));
}

static bool
list_parts (EpochLog *log, uint64_t from, uint64_t to, GPtrArray *parts,
            GError **error)
{
  uint64_t end = to != 0 ? to : UINT64_MAX;
  bool ok;

  /* Both locks at once: an epoch on its way from memory to its row is seen in
   * one of them. */
  catalog_lock (log->cat);
  ok = list_rows (log, from, end, parts, error);
  if (ok) {
    pthread_mutex_lock (&log->mutex);
    ok = list_memory_locked (log, from, end, to == 0, parts, error);
    pthread_mutex_unlock (&log->mutex);
  }
  catalog_unlock (log->cat);
  return ok;
}

static bool
is_damage (const GError *error)
{
  return !g_error_matches (error, BITMAP_ERROR, BITMAP_ERROR_NO_MEMORY);
}

/* NULL with an error; see is_damage. */
static ChangeSet *
load_blob (EpochLog *log, const Part *part, GError **error)
{
  ChangeSet *set = NULL;
  sqlite3_stmt *stmt;

  /* The mutex is let go between blobs, so that a cut does not wait for all. */
  catalog_lock (log->cat);
  stmt = catalog_stmt (log->cat,
                       "SELECT blob FROM epoch WHERE disk = ?1 AND id = ?2",
                       error);
  if (stmt != NULL) {
    int rc;

    sqlite3_bind_int64 (stmt, 1, log->disk);
    sqlite3_bind_int64 (stmt, 2, (int64_t) part->id);
    rc = catalog_step_row (log->cat, stmt, error);
    if (rc == 0)
      g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_CORRUPT,
                   "epoch %" G_GUINT64_FORMAT " has gone", part->id);
    else if (rc == 1) {
      const void *data = sqlite3_column_blob (stmt, 0);
      size_t length = (size_t) sqlite3_column_bytes (stmt, 0);

      if (data != NULL || length == 0) {
        g_autoptr (GBytes) blob = g_bytes_new_static (data, length);

        set = change_set_deserialize (blob, error);
      }
      else
        g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                     "epoch %" G_GUINT64_FORMAT " cannot be read", part->id);
      sqlite3_reset (stmt);
    }
  }
  catalog_unlock (log->cat);

  if (set != NULL && (change_set_size (set) != part->size ||
                      change_set_granularity (set) != part->granularity)) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_CORRUPT,
                 "epoch %" G_GUINT64_FORMAT " has another geometry than its "
                 "row", part->id);
    g_clear_pointer (&set, change_set_unref);
  }
  return set;
}

/* What is known before any blob is read. */
typedef struct {
  guint nr;                     /* parts inside the interval */
  uint64_t disk_size;           /* at its end, bytes */
  uint32_t granularity;         /* the finest, bytes */
  bool all_dirty, damaged;
} Interval;

static bool
unknown_boundary (EpochLog *log, uint64_t id, GError **error)
{
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND,
               "no record of disk '%s' goes back to epoch %" G_GUINT64_FORMAT,
               log->name, id);
  return false;
}

static bool
survey (EpochLog *log, uint64_t from, uint64_t to, GPtrArray *parts,
        Interval *iv, GError **error)
{
  const Part *first, *last;

  if (parts->len == 0)
    return unknown_boundary (log, from, error);
  first = g_ptr_array_index (parts, 0);
  last = g_ptr_array_index (parts, parts->len - 1);
  if (from == 0 || first->id != from)
    return unknown_boundary (log, from, error);
  if (to != 0 && last->id != to)
    return unknown_boundary (log, to, error);

  /* An empty interval has the size and granularity of what starts there. */
  iv->nr = to != 0 ? parts->len - 1 : parts->len;
  iv->disk_size = first->size;
  iv->granularity = first->granularity;
  for (guint i = 0; i < iv->nr; i++) {
    const Part *part = g_ptr_array_index (parts, i);

    iv->disk_size = part->size;
    iv->granularity = MIN (iv->granularity, part->granularity);
    iv->all_dirty |= part->all_dirty;
    iv->damaged |= !part->all_dirty && part->bits == NULL && !part->has_blob;
  }
  for (guint i = 1; i < parts->len; i++) {
    const Part *before = g_ptr_array_index (parts, i - 1);
    const Part *part = g_ptr_array_index (parts, i);

    iv->damaged |= part->prev != before->id;
  }
  return true;
}

/* The OR; NULL with an error (see is_damage). */
static ChangeSet *
merge (EpochLog *log, GPtrArray *parts, const Interval *iv, GError **error)
{
  g_autoptr (ChangeSetUnion) u =
    change_set_union_new (iv->disk_size, iv->granularity, error);

  if (u == NULL)
    return NULL;
  for (guint i = 0; i < iv->nr; i++) {
    const Part *part = g_ptr_array_index (parts, i);
    g_autoptr (ChangeSet) set = NULL;

    set = part->bits != NULL ? change_set_ref (part->bits)
      : load_blob (log, part, error);
    if (set == NULL || !change_set_union_add (u, set, error))
      return NULL;
  }
  return change_set_union_finish (u, error);
}

/* why: NULL: a row is missing, or has neither bits nor maps. */
static void
tell_damage (EpochLog *log, const GError *why)
{
  g_autofree char *text = NULL;

  if (log->options.notify == NULL || atomic_exchange (&log->told_damage, true))
    return;
  text = g_strdup_printf ("a stored record of changes is damaged (%s): "
                          "everything since counts as changed",
                          why != NULL ? why->message
                          : "a part of it is missing");
  log->options.notify (log->options.opaque, log->name, text, 0);
}

static unsigned
compactions (EpochLog *log)
{
  unsigned nr;

  pthread_mutex_lock (&log->mutex);
  nr = log->compactions;
  pthread_mutex_unlock (&log->mutex);
  return nr;
}

/* *out_why: what is damaged, if that is known. */
static ChangeSet *
changed (EpochLog *log, uint64_t from, uint64_t to, bool *out_damaged,
         GError **out_why, GError **error)
{
  g_autoptr (GPtrArray) parts = g_ptr_array_new_with_free_func (part_free);
  g_autoptr (ChangeSet) set = NULL;
  g_autoptr (GError) local = NULL;
  Interval iv = { 0 };

  if (!list_parts (log, from, to, parts, error) ||
      !survey (log, from, to, parts, &iv, error))
    return NULL;

  if (!iv.all_dirty && !iv.damaged) {
    set = merge (log, parts, &iv, &local);
    if (set == NULL && !is_damage (local)) {
      g_propagate_error (error, g_steal_pointer (&local));
      return NULL;
    }
    iv.damaged = set == NULL;
  }
  if (iv.damaged)
    *out_why = g_steal_pointer (&local);
  if (set == NULL)
    set = change_set_new_full (iv.disk_size,
                               granule_fit (iv.disk_size, iv.granularity),
                               error);
  *out_damaged = iv.damaged;
  return g_steal_pointer (&set);
}

ChangeSet *
epoch_log_changed (EpochLog *log, uint64_t from, uint64_t to, bool *out_damaged,
                   GError **error)
{
  if (to != 0 && to < from) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "epoch %" G_GUINT64_FORMAT " of disk '%s' does not come "
                 "before %" G_GUINT64_FORMAT, from, log->name, to);
    return NULL;
  }
  for (;;) {
    unsigned before = compactions (log);
    bool damaged = false;
    g_autoptr (GError) why = NULL;
    g_autoptr (ChangeSet) set = changed (log, from, to, &damaged, &why, error);

    /* Rows that were merged while we read them are no damage. */
    if (damaged && compactions (log) != before)
      continue;
    if (damaged)
      tell_damage (log, why);
    if (set != NULL && out_damaged != NULL)
      *out_damaged = damaged;
    return g_steal_pointer (&set);
  }
}
