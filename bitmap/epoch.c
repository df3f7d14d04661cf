/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* epoch.c - epochs of a running disk: the cut, storing, forgetting. */
#include "config.h"

#include <assert.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/epoch-log.h"
#include "bitmap/fail-point.h"
#include "bitmap/granule.h"
#include "bitmap/intent.h"
#include "bitmap/named-bitmap.h"

char *
epoch_map_name (const char *disk, uint64_t id)
{
  return g_strdup_printf ("%s.%" G_GUINT64_FORMAT ".r", disk, id);
}

/* In a map of the runtime directory, if there is one that will be trusted. */
static bool
make_bitmap (EpochLog *log, Epoch *epoch, GError **error)
{
  Runtime *rt = log->options.runtime;
  size_t bytes = dirty_bitmap_bytes (epoch->size, epoch->granularity);
  g_autofree char *name = epoch_map_name (log->name, epoch->id);

  if (rt == NULL || !runtime_is_trusted (rt) || bytes == 0)
    epoch->bitmap = dirty_bitmap_new (epoch->size, epoch->granularity, error);
  else {
    runtime_draw_nonce (epoch->nonce);
    epoch->map = runtime_map_create (rt, name, bytes, epoch->nonce, true,
                                     error);
    if (epoch->map != NULL)
      epoch->bitmap = dirty_bitmap_new_at (epoch->size, epoch->granularity,
                                           runtime_map_data (epoch->map),
                                           error);
  }
  return epoch->bitmap != NULL;
}

Epoch *
epoch_new (EpochLog *log, uint64_t id, uint64_t prev, uint64_t size,
           uint32_t granularity, GError **error)
{
  Epoch *epoch;

  if (!granule_check (size, granularity, error))
    return NULL;
  epoch = g_new0 (Epoch, 1);
  epoch->id = id;
  epoch->prev = prev;
  epoch->size = size;
  epoch->granularity = granularity;
  if (make_bitmap (log, epoch, error) &&
      (log->maps_dir == NULL ||
       (epoch->durable = durable_map_create (log->options.storage,
                                             log->maps_dir, log->name, id,
                                             size, granularity,
                                             error)) != NULL))
    return epoch;
  epoch_drop_bits (epoch);
  epoch_free (epoch);
  return NULL;
}

void
epoch_drop_bits (Epoch *epoch)
{
  dirty_bitmap_free (epoch->bitmap);
  epoch->bitmap = NULL;
  change_set_unref (epoch->sealed);
  epoch->sealed = NULL;
  runtime_map_remove (epoch->map);
  epoch->map = NULL;
  durable_map_remove (epoch->durable);
  epoch->durable = NULL;
}

void
epoch_free (Epoch *epoch)
{
  if (epoch == NULL)
    return;
  dirty_bitmap_free (epoch->bitmap);
  change_set_unref (epoch->sealed);
  runtime_map_close (epoch->map);
  durable_map_close (epoch->durable);
  g_free (epoch);
}

ChangeSet *
epoch_sealed_locked (Epoch *epoch, GError **error)
{
  if (epoch->sealed == NULL)
    epoch->sealed = dirty_bitmap_to_change_set (epoch->bitmap, error);
  return epoch->sealed;
}

bool
epoch_put_row (Catalog *cat, int64_t disk, const Epoch *epoch,
               EpochState state, bool all_dirty, uint64_t count, GBytes *blob,
               GError **error)
{
  static const char *const states[] = { "prepared", "open", "sealed" };
  const StorageFile *map = blob == NULL && epoch->durable != NULL ?
    durable_map_file (epoch->durable) : NULL;
  sqlite3_stmt *stmt;
  bool ok = false;

  catalog_lock (cat);
  stmt = catalog_stmt (cat,
    "INSERT INTO epoch (disk, id, prev, size, granularity, state, all_dirty,"
    "                   count, blob, nonce, map_inode, map_birth_ns)"
    " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)"
    " ON CONFLICT (disk, id) DO UPDATE SET size = excluded.size,"
    "   state = excluded.state,"
    "   all_dirty = excluded.all_dirty, count = excluded.count,"
    "   blob = excluded.blob, nonce = excluded.nonce,"
    "   map_inode = excluded.map_inode,"
    "   map_birth_ns = excluded.map_birth_ns", error);
  if (stmt != NULL) {
    sqlite3_bind_int64 (stmt, 1, disk);
    sqlite3_bind_int64 (stmt, 2, (int64_t) epoch->id);
    sqlite3_bind_int64 (stmt, 3, (int64_t) epoch->prev);
    sqlite3_bind_int64 (stmt, 4, (int64_t) epoch->size);
    sqlite3_bind_int64 (stmt, 5, epoch->granularity);
    sqlite3_bind_text (stmt, 6, states[state], -1, SQLITE_STATIC);
    sqlite3_bind_int (stmt, 7, all_dirty);
    sqlite3_bind_int64 (stmt, 8, (int64_t) count);
    if (blob != NULL)
      sqlite3_bind_blob64 (stmt, 9, g_bytes_get_data (blob, NULL),
                           g_bytes_get_size (blob), SQLITE_STATIC);
    if (blob == NULL && !all_dirty && epoch->map != NULL)
      sqlite3_bind_blob (stmt, 10, epoch->nonce, sizeof epoch->nonce,
                         SQLITE_STATIC);
    sqlite3_bind_int64 (stmt, 11, map != NULL ? (int64_t) map->inode : 0);
    sqlite3_bind_int64 (stmt, 12, map != NULL ? map->birth_ns : 0);
    ok = catalog_step_done (cat, stmt, error);
    sqlite3_clear_bindings (stmt);      /* they point to blob */
  }
  catalog_unlock (cat);
  return ok;
}

bool
epoch_put_disk_size (Catalog *cat, int64_t disk, uint64_t size,
                     GError **error)
{
  return catalog_run (cat, "UPDATE disk SET size = ? WHERE id = ?", error, "ii",
                      (int64_t) size, disk);
}

/* A counter in the disk's row, not max (id) + 1: ids must not come again when
 * the epochs that had them are deleted. */
bool
epoch_take_ids (Catalog *cat, int64_t disk, unsigned nr, uint64_t *out_first,
                GError **error)
{
  sqlite3_stmt *stmt;
  int rc = -1;

  catalog_lock (cat);
  stmt = catalog_stmt (cat,
    "UPDATE disk SET next_epoch = next_epoch + ?2 WHERE id = ?1"
    " RETURNING next_epoch - ?2", error);
  if (stmt != NULL) {
    sqlite3_bind_int64 (stmt, 1, disk);
    sqlite3_bind_int64 (stmt, 2, nr);
    rc = catalog_step_row (cat, stmt, error);
    if (rc == 1) {
      *out_first = (uint64_t) sqlite3_column_int64 (stmt, 0);
      sqlite3_reset (stmt);
    }
    else if (rc == 0)
      g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_CORRUPT,
                   "the catalog has lost its row of disk %" G_GINT64_FORMAT,
                   disk);
  }
  catalog_unlock (cat);
  return rc == 1;
}

Epoch *
epoch_log_current (EpochLog *log)
{
  return atomic_load_explicit (&log->current, memory_order_acquire);
}

/* --- the cut */

/* I reaches to the end of the disk before the first write there. */
static bool
grow_intents (EpochLog *log, uint64_t size, GError **error)
{
  int err = log->intents != NULL ? intents_grow (log->intents, size) : 0;

  if (err < 0)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                 "cannot extend the write intents of disk '%s' to %"
                 G_GUINT64_FORMAT " bytes: %s", log->name, size,
                 g_strerror (-err));
  return err == 0;
}

/* What comes into being by growing is dirty, whoever asks since when; durably,
 * so that writes there need no intents.  Nobody else has the epoch yet. */
static bool
mark_growth (EpochLog *log, Epoch *epoch, GError **error)
{
  uint64_t old_size = epoch_log_current (log)->size;
  int err = 0;

  if (epoch->size <= old_size)
    return true;
  dirty_bitmap_set (epoch->bitmap, old_size, epoch->size - old_size);
  if (epoch->durable != NULL)
    err = durable_map_sync (epoch->durable, epoch->bitmap);
  if (err < 0)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                 "cannot store the map of changed blocks of disk '%s': %s",
                 log->name, g_strerror (-err));
  return err == 0;
}

/* Its row has to be there before a writer is in it. */
static Epoch *
make_prepared (EpochLog *log, uint64_t size, uint32_t granularity,
               GError **error)
{
  uint64_t id, prev = epoch_log_current (log)->id;
  Epoch *epoch;

  if (!granule_check (size, granularity, error) ||
      !grow_intents (log, size, error) ||
      !epoch_take_ids (log->cat, log->disk, 1, &id, error))
    return NULL;
  epoch = epoch_new (log, id, prev, size, granularity, error);
  if (epoch != NULL &&
      (!mark_growth (log, epoch, error) ||
       !epoch_put_row (log->cat, log->disk, epoch, EPOCH_PREPARED, false, 0,
                       NULL, error))) {
    epoch_drop_bits (epoch);
    epoch_free (epoch);
    epoch = NULL;
  }
  return epoch;
}

static void
delete_row (EpochLog *log, uint64_t id)
{
  /* If it stays, it stands for "everything changed". */
  catalog_run (log->cat, "DELETE FROM epoch WHERE disk = ? AND id = ?"
               " AND state = 'prepared'", NULL, "ii", log->disk, (int64_t) id);
}

Epoch *
epoch_log_prepare (EpochLog *log, uint64_t size, uint32_t granularity,
                   GError **error)
{
  Epoch *epoch;
  bool busy;

  pthread_mutex_lock (&log->mutex);
  busy = log->prepared != NULL;
  pthread_mutex_unlock (&log->mutex);
  if (busy) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_BUSY,
                 "disk '%s' has another cut under way", log->name);
    return NULL;
  }
  epoch = make_prepared (log, size, granularity, error);
  if (epoch == NULL)
    return NULL;
  pthread_mutex_lock (&log->mutex);
  assert (log->prepared == NULL);
  log->prepared = epoch;
  pthread_mutex_unlock (&log->mutex);
  return epoch;
}

void
epoch_log_abandon (EpochLog *log, Epoch *next)
{
  pthread_mutex_lock (&log->maps_lock);
  pthread_mutex_lock (&log->mutex);
  assert (next == log->prepared);
  log->prepared = NULL;
  pthread_mutex_unlock (&log->mutex);
  epoch_drop_bits (next);
  pthread_mutex_unlock (&log->maps_lock);
  delete_row (log, next->id);
  epoch_free (next);
}

/* --- durable maps */

int
epoch_intend (EpochLog *log, const Epoch *epoch, uint64_t offset,
              uint64_t length)
{
  if (log->intents == NULL)
    return 0;
  return intents_wait (log->intents, epoch->durable, offset, length);
}

uint64_t
epoch_log_intent_bytes (EpochLog *log)
{
  return log->intents != NULL ? intents_bytes (log->intents) : 0;
}

uint64_t
epoch_log_intent_waits (EpochLog *log)
{
  return log->intents != NULL ? intents_waits (log->intents) : 0;
}

/* maps_lock held, so that its bits stay. */
static int
sync_map_locked (Epoch *epoch)
{
  return epoch == NULL || epoch->durable == NULL || epoch->final ? 0
    : durable_map_sync (epoch->durable, epoch->bitmap);
}

int
epoch_log_mark_lost (EpochLog *log, uint64_t offset, uint64_t length)
{
  Epoch *current = epoch_log_current (log);
  int err;

  dirty_bitmap_set (current->bitmap, offset, length);
  atomic_thread_fence (memory_order_seq_cst);
  err = epoch_log_sync_maps (log);
  /* A map that has failed once is never believed again: then it is intents that
   * tell of the range, as of any write from here to the next cut. */
  return err < 0 ? epoch_intend (log, current, offset, length) : 0;
}

int
epoch_log_sync_maps (EpochLog *log)
{
  g_autoptr (GPtrArray) epochs = g_ptr_array_new ();
  int err = 0;

  pthread_mutex_lock (&log->maps_lock);
  /* After the caller's fence, and under the mutex: whoever relied on a flag
   * before it was withdrawn wrote to an epoch that is seen here.  A sealed one
   * is among them if the transaction that should have sealed it failed. */
  pthread_mutex_lock (&log->mutex);
  for (guint i = 0; i < log->unstored->len; i++)
    g_ptr_array_add (epochs, log->unstored->pdata[i]);
  g_ptr_array_add (epochs, log->current);
  g_ptr_array_add (epochs, log->prepared);
  pthread_mutex_unlock (&log->mutex);
  for (guint i = 0; i < epochs->len; i++) {
    int e = sync_map_locked (epochs->pdata[i]);

    err = err < 0 ? err : e;
  }
  pthread_mutex_unlock (&log->maps_lock);
  return err;
}

void
epoch_log_sync_map (EpochLog *log)
{
  Epoch *current = epoch_log_current (log);

  pthread_mutex_lock (&log->maps_lock);
  if (current->durable != NULL && sync_map_locked (current) == 0)
    current->final = true;
  pthread_mutex_unlock (&log->maps_lock);
}

void
epoch_log_carry (EpochLog *log, Epoch *next)
{
  const Epoch *old = epoch_log_current (log);
  uint64_t nr = dirty_bitmap_bytes (old->size, old->granularity) / 8, word;

  for (uint64_t w = 0; w < nr; w++) {
    dirty_bitmap_get_words (old->bitmap, w, &word, 1);
    for (; word != 0; word &= word - 1) {
      uint64_t g = w * 64 + (unsigned) __builtin_ctzll (word);

      dirty_bitmap_set (next->bitmap, g * old->granularity, old->granularity);
    }
  }
  /* No intent stands for these.  If it fails, so will what is written next. */
  pthread_mutex_lock (&log->maps_lock);
  sync_map_locked (next);
  pthread_mutex_unlock (&log->maps_lock);
}

/* The row of an epoch that is sealed now.  Without a final D the row has to
 * have the bits itself: intents do not count for what is sealed. */
static bool
put_sealed (EpochLog *log, Epoch *old, GError **error)
{
  ChangeSet *bits;

  if (old->durable == NULL || old->final)
    return epoch_put_row (log->cat, log->disk, old, EPOCH_SEALED, false, 0,
                          NULL, error);
  pthread_mutex_lock (&log->mutex);
  bits = epoch_sealed_locked (old, error);
  pthread_mutex_unlock (&log->mutex);
  return bits != NULL && epoch_store_row (log, old, bits, error);
}

bool
epoch_log_seal (EpochLog *log, Epoch *next, GError **error)
{
  Epoch *old;
  bool ok;

  catalog_lock (log->cat);
  pthread_mutex_lock (&log->mutex);
  assert (next == log->prepared);
  old = log->current;
  next->prev = old->id;
  g_ptr_array_add (log->all, next);
  g_ptr_array_add (log->unstored, old);
  log->prepared = NULL;
  atomic_store_explicit (&log->current, next, memory_order_release);
  pthread_mutex_unlock (&log->mutex);

  ok = put_sealed (log, old, error) &&
    (next->size >= old->size ||
     named_bitmap_shrink (log->cat, log->disk, next->size, error)) &&
    epoch_put_row (log->cat, log->disk, next, EPOCH_OPEN, false, 0, NULL,
                   error) &&
    epoch_put_disk_size (log->cat, log->disk, next->size, error);
  catalog_unlock (log->cat);
  return ok;
}

/* --- storing */

/* Was the row deleted because nobody needs the epoch? */
static bool
is_forgotten (EpochLog *log, const Epoch *epoch, bool *out_forgotten,
              GError **error)
{
  sqlite3_stmt *stmt;
  int rc;

  *out_forgotten = false;
  if (epoch->id >= log->forgotten_before)
    return true;
  stmt = catalog_stmt (log->cat,
                       "SELECT 1 FROM epoch WHERE disk = ?1 AND id = ?2",
                       error);
  if (stmt == NULL)
    return false;
  sqlite3_bind_int64 (stmt, 1, log->disk);
  sqlite3_bind_int64 (stmt, 2, (int64_t) epoch->id);
  rc = catalog_step_row (log->cat, stmt, error);
  if (rc == 1)
    sqlite3_reset (stmt);
  *out_forgotten = rc == 0;
  return rc >= 0;
}

bool
epoch_store_row (EpochLog *log, const Epoch *epoch, const ChangeSet *bits,
                 GError **error)
{
  g_autoptr (GBytes) blob = NULL;
  bool forgotten;

  if (!is_forgotten (log, epoch, &forgotten, error))
    return false;
  if (forgotten)
    return true;
  blob = change_set_serialize (bits, error);
  return blob != NULL &&
    epoch_put_row (log->cat, log->disk, epoch, EPOCH_SEALED, false,
                   change_set_count (bits), blob, error);
}

/* The oldest epoch that waits for storing, and its bits (a reference); NULL
 * without an error if there is none. */
static Epoch *
next_unstored (EpochLog *log, ChangeSet **out_bits, GError **error)
{
  Epoch *epoch = NULL;

  pthread_mutex_lock (&log->mutex);
  if (log->unstored->len > 0) {
    ChangeSet *bits;

    epoch = g_ptr_array_index (log->unstored, 0);
    bits = epoch_sealed_locked (epoch, error);
    if (bits != NULL)
      *out_bits = change_set_ref (bits);
    else
      epoch = NULL;
  }
  pthread_mutex_unlock (&log->mutex);
  return epoch;
}

/* Lets go of the bits of an epoch that has just been stored; somebody else may
 * have done so already. */
static void
mark_stored (EpochLog *log, Epoch *epoch)
{
  pthread_mutex_lock (&log->maps_lock);
  pthread_mutex_lock (&log->mutex);
  if (g_ptr_array_remove (log->unstored, epoch))
    epoch_drop_bits (epoch);
  pthread_mutex_unlock (&log->mutex);
  pthread_mutex_unlock (&log->maps_lock);
}

bool
epoch_log_store (EpochLog *log, GError **error)
{
  GError *local = NULL;
  Epoch *epoch;

  if (catalog_in_transaction (log->cat)) {
    g_set_error_literal (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                         "epochs cannot be stored inside a transaction");
    return false;
  }
  for (;;) {
    g_autoptr (ChangeSet) bits = NULL;

    epoch = next_unstored (log, &bits, &local);
    if (epoch == NULL)
      break;
    FAIL_POINT ("K7-store");
    if (!catalog_begin (log->cat, &local))
      break;
    if (!epoch_store_row (log, epoch, bits, &local)) {
      catalog_rollback (log->cat);
      break;
    }
    FAIL_POINT ("K7-commit");
    if (!catalog_commit (log->cat, &local))
      break;
    FAIL_POINT ("K7-drop");
    mark_stored (log, epoch);
  }
  if (local == NULL)
    return true;
  g_propagate_prefixed_error (error, local,
                              "cannot store the changes of disk '%s': ",
                              log->name);
  return false;
}

bool
epoch_log_forget_before (EpochLog *log, uint64_t keep_from, GError **error)
{
  bool ok;

  catalog_lock (log->cat);
  FAIL_POINT ("C-forget");
  ok = catalog_run (log->cat, "DELETE FROM epoch WHERE disk = ? AND id < ?"
                    " AND state = 'sealed'", error, "ii", log->disk,
                    (int64_t) MIN (keep_from, (uint64_t) INT64_MAX));
  if (ok) {
    pthread_mutex_lock (&log->mutex);
    log->forgotten_before = MAX (log->forgotten_before, keep_from);
    pthread_mutex_unlock (&log->mutex);
  }
  catalog_unlock (log->cat);
  return ok;
}
