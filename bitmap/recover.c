/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* recover.c - the bits of epochs that an unclean stop left without a blob.
 *
 *   R   its map in the runtime directory, if it is there with the right nonce:
 *       exact, whatever else is on the disk
 *   D   else the durable map; for an epoch that was not sealed also every
 *       region that has a write intent; where a sector is bad, all that it
 *       covers
 *       else everything
 *
 * Nothing is written but the rows, in the caller's transaction, and no file
 * goes before that is committed: cut off anywhere and repeated, it gives the
 * same.
 */
#include "config.h"

#include <string.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/epoch-log.h"
#include "bitmap/fail-point.h"
#include "bitmap/granule.h"
#include "bitmap/intent.h"
#include "bitmap/sector.h"

typedef struct {
  Epoch epoch;                  /* id, prev, size, granularity, nonce */
  bool has_nonce, sealed, prepared;
} Lost;

/* Rows without bits. */
static GArray *
list_lost (EpochLog *log, GError **error)
{
  g_autoptr (GArray) list = g_array_new (FALSE, TRUE, sizeof (Lost));
  sqlite3_stmt *stmt;
  int rc = -1;

  catalog_lock (log->cat);
  stmt = catalog_stmt (log->cat,
    "SELECT id, prev, size, granularity, state = 'sealed', nonce,"
    "   state = 'prepared' FROM epoch INDEXED BY epoch_without_blob"
    " WHERE disk = ?1 AND blob IS NULL AND NOT all_dirty ORDER BY id", error);
  if (stmt != NULL) {
    sqlite3_bind_int64 (stmt, 1, log->disk);
    while ((rc = catalog_step_row (log->cat, stmt, error)) == 1) {
      Lost lost = { 0 };

      lost.epoch.id = (uint64_t) sqlite3_column_int64 (stmt, 0);
      lost.epoch.prev = (uint64_t) sqlite3_column_int64 (stmt, 1);
      lost.epoch.size = (uint64_t) sqlite3_column_int64 (stmt, 2);
      lost.epoch.granularity = (uint32_t) sqlite3_column_int64 (stmt, 3);
      lost.sealed = sqlite3_column_int (stmt, 4);
      lost.has_nonce = sqlite3_column_bytes (stmt, 5) == RUNTIME_NONCE_BYTES;
      if (lost.has_nonce)
        memcpy (lost.epoch.nonce, sqlite3_column_blob (stmt, 5),
                RUNTIME_NONCE_BYTES);
      lost.prepared = sqlite3_column_int (stmt, 6);
      g_array_append_val (list, lost);
    }
  }
  catalog_unlock (log->cat);
  return rc == 0 ? g_steal_pointer (&list) : NULL;
}

/* False: not to be had. */
static bool
from_runtime (EpochLog *log, const Lost *lost, DirtyBitmap *bm)
{
  g_autofree char *name = epoch_map_name (log->name, lost->epoch.id);
  size_t bytes = dirty_bitmap_bytes (lost->epoch.size,
                                     lost->epoch.granularity);
  RuntimeMap *map;

  if (log->options.runtime == NULL || !lost->has_nonce)
    return false;
  map = runtime_map_open (log->options.runtime, name, bytes,
                          lost->epoch.nonce, NULL);
  if (map == NULL)
    return false;
  dirty_bitmap_or_words (bm, 0, runtime_map_data (map), bytes / 8);
  runtime_map_close (map);
  return true;
}

/* --- D and I */

typedef struct {
  DirtyBitmap *bm;
  uint64_t id;
  uint32_t granularity;
  unsigned bad;
} MapReader;

static void
read_map_sector (void *opaque, uint64_t index, uint64_t tag,
                 const uint64_t *words)
{
  MapReader *reader = opaque;

  if (words == NULL || tag != reader->id)
    reader->bad++;
  else
    dirty_bitmap_or_words (reader->bm, index * SECTOR_WORDS, words,
                           SECTOR_WORDS);
}

/* What bad sectors cover; apart, since it is not what D says. */
static void
cover_bad_map_sector (void *opaque, uint64_t index, uint64_t tag,
                      const uint64_t *words)
{
  MapReader *reader = opaque;
  uint64_t cover = (uint64_t) SECTOR_BITS * reader->granularity;

  if (words == NULL || tag != reader->id)
    dirty_bitmap_set (reader->bm, index * cover, cover);
}

typedef struct {
  DirtyBitmap *bm;
  uint64_t region_bytes;        /* 0: not known yet */
  unsigned bad;
} IntentReader;

static bool
is_region (uint64_t bytes)
{
  return bytes >= INTENT_REGION_MIN && bytes <= INTENT_REGION_MAX &&
    (bytes & (bytes - 1)) == 0;
}

static void
read_region_bytes (void *opaque, uint64_t index, uint64_t tag,
                   const uint64_t *words)
{
  IntentReader *reader = opaque;

  if (words != NULL && is_region (tag) && reader->region_bytes == 0)
    reader->region_bytes = tag;
}

static void
read_intent_sector (void *opaque, uint64_t index, uint64_t tag,
                    const uint64_t *words)
{
  IntentReader *reader = opaque;
  uint64_t region = reader->region_bytes;
  uint64_t start = index * SECTOR_BITS * region;

  if (words == NULL || tag != region) {
    reader->bad++;
    dirty_bitmap_set (reader->bm, start, SECTOR_BITS * region);
    return;
  }
  for (unsigned i = 0; i < SECTOR_BITS; i++)
    if (words[i / 64] >> (i % 64) & 1)
      dirty_bitmap_set (reader->bm, start + i * region, region);
}

/* False: I does not say anything for this disk. */
static bool
add_intents (EpochLog *log, const Lost *lost, DirtyBitmap *bm,
             unsigned *out_bad)
{
  g_autofree char *path = intents_path (log->maps_dir, log->name);
  Storage *storage = log->options.storage;
  IntentReader reader = { .bm = bm };
  uint64_t nr, reach;
  StorageFile *file;

  if (storage->ops->open (storage, path, STORAGE_READ_ONLY, 0, &file) < 0)
    return false;
  nr = MIN (file->size / SECTOR_BYTES, SECTORS_MAX);
  sector_file_read (file, SECTOR_INTENTS, nr, read_region_bytes, &reader);
  if (reader.region_bytes != 0) {
    /* What was being added for a larger disk may be half there. */
    nr = MIN (nr, sector_count (granule_count (lost->epoch.size,
                                               reader.region_bytes)));
    sector_file_read (file, SECTOR_INTENTS, nr, read_intent_sector, &reader);
  }
  file->ops->close (file);
  *out_bad += reader.bad;
  /* A file that is too short says nothing of the rest. */
  reach = nr * SECTOR_BITS * reader.region_bytes;
  if (reach < lost->epoch.size)
    dirty_bitmap_set (bm, reach, lost->epoch.size - reach);
  return reader.region_bytes != 0;
}

static bool
from_disk (EpochLog *log, const Lost *lost, DirtyBitmap *bm)
{
  MapReader reader = { bm, lost->epoch.id, lost->epoch.granularity, 0 };
  uint64_t nr, before;
  g_autofree char *path = NULL;
  Storage *storage = log->options.storage;
  StorageFile *file;
  bool ok = true;

  if (log->maps_dir == NULL)
    return false;
  path = durable_map_path (log->maps_dir, log->name, lost->epoch.id);
  if (storage->ops->open (storage, path, STORAGE_READ_ONLY, 0, &file) < 0)
    return false;
  nr = sector_count (granule_count (lost->epoch.size,
                                    lost->epoch.granularity));
  sector_file_read (file, SECTOR_EPOCH_MAP, nr, read_map_sector, &reader);
  before = dirty_bitmap_count (bm);
  if (reader.bad > 0)
    sector_file_read (file, SECTOR_EPOCH_MAP, nr, cover_bad_map_sector,
                      &reader);
  file->ops->close (file);
  log->report.bad_sectors += reader.bad;
  if (!lost->sealed)
    ok = add_intents (log, lost, bm, &log->report.bad_sectors);
  if (ok)
    log->report.over_reported += (dirty_bitmap_count (bm) - before)
      * lost->epoch.granularity;
  return ok;
}

/* The bits of bm for a disk of another size: what is cut off is gone, and what
 * is added clean. */
static DirtyBitmap *
resized_copy (const DirtyBitmap *bm, uint64_t size, GError **error)
{
  uint32_t granularity = dirty_bitmap_granularity (bm);
  DirtyBitmap *copy = dirty_bitmap_new (size, granularity, error);
  uint64_t nr = granule_count (MIN (size, dirty_bitmap_size (bm)),
                               granularity);

  for (uint64_t w = 0; copy != NULL && w * 64 < nr; w += SECTOR_WORDS) {
    uint64_t words[SECTOR_WORDS];

    dirty_bitmap_get_words (bm, w, words, SECTOR_WORDS);
    dirty_bitmap_or_words (copy, w, words, SECTOR_WORDS);
  }
  return copy;
}

static bool
recover_one (EpochLog *log, const Lost *lost, uint64_t disk_size,
             GError **error)
{
  Epoch changed = lost->epoch, *epoch = &changed;
  g_autoptr (GError) geometry = NULL;
  g_autoptr (DirtyBitmap) bm = dirty_bitmap_new (epoch->size,
                                                 epoch->granularity,
                                                 &geometry);
  g_autoptr (ChangeSet) bits = NULL;
  g_autoptr (GBytes) blob = NULL;
  EpochRecovery how = EPOCHS_ALL_DIRTY;

  if (bm != NULL) {
    if (from_runtime (log, lost, bm))
      how = EPOCHS_EXACT;
    else if (from_disk (log, lost, bm))
      how = EPOCHS_BOUNDED;
  }
  else if (g_error_matches (geometry, BITMAP_ERROR, BITMAP_ERROR_NO_MEMORY)) {
    g_propagate_error (error, g_steal_pointer (&geometry));
    return false;
  }
  log->report.recovery = MAX (log->report.recovery, how);
  /* A cut that was to resize the disk, and the image has not that size: as far
   * as anybody can see the disk never had it. */
  if (lost->prepared && epoch->size != disk_size &&
      granule_check (disk_size, epoch->granularity, NULL)) {
    epoch->size = disk_size;
    if (how != EPOCHS_ALL_DIRTY) {
      DirtyBitmap *copy = resized_copy (bm, disk_size, error);

      if (copy == NULL)
        return false;
      dirty_bitmap_free (bm);
      bm = copy;
    }
  }
  if (how == EPOCHS_ALL_DIRTY)
    return epoch_put_row (log->cat, log->disk, epoch, EPOCH_SEALED, true,
                          granule_count (epoch->size,
                                         MAX (1, epoch->granularity)), NULL,
                          error);
  bits = dirty_bitmap_to_change_set (bm, error);
  if (bits != NULL)
    blob = change_set_serialize (bits, error);
  return blob != NULL &&
    epoch_put_row (log->cat, log->disk, epoch, EPOCH_SEALED, false,
                   change_set_count (bits), blob, error);
}

static bool
is_copy (EpochLog *log, uint64_t epoch, uint64_t inode, int64_t birth_ns)
{
  g_autofree char *path = durable_map_path (log->maps_dir, log->name, epoch);
  Storage *storage = log->options.storage;
  StorageFile *file;
  bool differs;

  /* Without it everything counts as changed anyway. */
  if (storage->ops->open (storage, path, STORAGE_READ_ONLY, 0, &file) < 0)
    return false;
  differs = file->inode != inode ||
    (birth_ns != 0 && file->birth_ns != 0 && file->birth_ns != birth_ns);
  file->ops->close (file);
  return differs;
}

bool
epoch_maps_are_copies (EpochLog *log, bool *out_copies, GError **error)
{
  sqlite3_stmt *stmt;
  int rc = -1;

  *out_copies = false;
  if (log->maps_dir == NULL)
    return true;
  catalog_lock (log->cat);
  stmt = catalog_stmt (log->cat,
    "SELECT id, map_inode, map_birth_ns"
    " FROM epoch INDEXED BY epoch_without_blob"
    " WHERE disk = ?1 AND blob IS NULL AND NOT all_dirty AND map_inode != 0",
    error);
  if (stmt != NULL) {
    sqlite3_bind_int64 (stmt, 1, log->disk);
    while ((rc = catalog_step_row (log->cat, stmt, error)) == 1)
      *out_copies |= is_copy (log, (uint64_t) sqlite3_column_int64 (stmt, 0),
                              (uint64_t) sqlite3_column_int64 (stmt, 1),
                              sqlite3_column_int64 (stmt, 2));
  }
  catalog_unlock (log->cat);
  return rc == 0;
}

bool
epoch_recover (EpochLog *log, uint64_t disk_size, GPtrArray *stale,
               GError **error)
{
  g_autoptr (GArray) list = list_lost (log, error);

  if (list == NULL)
    return false;
  for (guint i = 0; i < list->len; i++) {
    const Lost *lost = &g_array_index (list, Lost, i);

    FAIL_POINT ("R3-epoch");
    if (!recover_one (log, lost, disk_size, error))
      return false;
    if (log->maps_dir != NULL)
      g_ptr_array_add (stale, durable_map_path (log->maps_dir, log->name,
                                                lost->epoch.id));
  }
  return true;
}
