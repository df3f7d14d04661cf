/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "config.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/durable-map.h"
#include "bitmap/fail-point.h"
#include "bitmap/granule.h"
#include "bitmap/sector.h"

struct DurableMap {
  /* Set in create, never changed. */
  Storage *storage;
  StorageFile *file;
  char *path;
  uint64_t epoch, nr_sectors;
  unsigned shift;               /* log2 (granularity) */

  _Atomic uint64_t *mirror;     /* nr_sectors * SECTOR_WORDS */
  int failed;                   /* the syncing thread's */
};

char *
durable_map_path (const char *dir, const char *disk, uint64_t epoch)
{
  return g_strdup_printf ("%s/%s.%" G_GUINT64_FORMAT ".d", dir, disk, epoch);
}

DurableMap *
durable_map_create (Storage *storage, const char *dir, const char *disk,
                    uint64_t epoch, uint64_t disk_size, uint32_t granularity,
                    GError **error)
{
  DurableMap *dm = g_new0 (DurableMap, 1);
  int err;

  dm->storage = storage;
  dm->path = durable_map_path (dir, disk, epoch);
  dm->epoch = epoch;
  dm->shift = granule_shift (granularity);
  dm->nr_sectors = sector_count (granule_count (disk_size, granularity));
  dm->mirror = g_try_malloc0_n (dm->nr_sectors + 1, SECTOR_WORDS * 8);
  err = dm->mirror == NULL ? -ENOMEM
    : sector_file_create (storage, dir, dm->path, SECTOR_EPOCH_MAP, epoch,
                          dm->nr_sectors, &dm->file);
  if (err < 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                 "cannot create '%s': %s", dm->path, g_strerror (-err));
    durable_map_close (dm);
    return NULL;
  }
  return dm;
}

void
durable_map_close (DurableMap *dm)
{
  if (dm == NULL)
    return;
  if (dm->file != NULL)
    dm->file->ops->close (dm->file);
  g_free ((void *) dm->mirror);
  g_free (dm->path);
  g_free (dm);
}

void
durable_map_remove (DurableMap *dm)
{
  if (dm == NULL)
    return;
  dm->storage->ops->remove (dm->storage, dm->path);
  durable_map_close (dm);
}

const StorageFile *
durable_map_file (const DurableMap *dm)
{
  return dm->file;
}

bool
durable_map_covers (const DurableMap *dm, uint64_t offset, uint64_t length)
{
  uint64_t first = offset >> dm->shift;
  uint64_t last = (offset + length - 1) >> dm->shift;
  uint64_t w = first / 64, w_last = last / 64;
  uint64_t mask = ~UINT64_C (0) << (first % 64);

  for (; w <= w_last; w++, mask = ~UINT64_C (0)) {
    if (w == w_last)
      mask &= ~UINT64_C (0) >> (63 - last % 64);
    /* Acquire, of the sync before the store. */
    if ((atomic_load_explicit (&dm->mirror[w], memory_order_acquire) & mask)
        != mask)
      return false;
  }
  return true;
}

/* The sector as it is in bm now, if it has bits that the mirror has not. */
static bool
changed_sector (DurableMap *dm, const DirtyBitmap *bm, uint64_t index,
                uint64_t words[SECTOR_WORDS])
{
  uint64_t base = index * SECTOR_WORDS, fresh = 0;

  dirty_bitmap_get_words (bm, base, words, SECTOR_WORDS);
  for (unsigned i = 0; i < SECTOR_WORDS; i++)
    fresh |= words[i] & ~atomic_load_explicit (&dm->mirror[base + i],
                                               memory_order_relaxed);
  return fresh != 0;
}

int
durable_map_sync (DurableMap *dm, const DirtyBitmap *bm)
{
  g_autoptr (GArray) changed = NULL;    /* of struct sector */

  if (dm->failed < 0)
    return dm->failed;
  changed = g_array_new (FALSE, FALSE, sizeof (struct sector));
  for (uint64_t i = 0; i < dm->nr_sectors; i++) {
    uint64_t words[SECTOR_WORDS];
    struct sector sector;

    if (changed_sector (dm, bm, i, words)) {
      sector_fill (&sector, SECTOR_EPOCH_MAP, i, dm->epoch, words);
      g_array_append_val (changed, sector);
    }
  }
  if (changed->len == 0)
    return 0;
  FAIL_POINT ("D-write");
  dm->failed = sector_file_write (dm->file, (struct sector *) changed->data,
                                  changed->len);
  FAIL_POINT ("D-sync");
#ifndef BROKEN_D_SYNC           /* see test-crash-controls.sh */
  if (dm->failed == 0)
    dm->failed = dm->file->ops->sync (dm->file);
#endif
  if (dm->failed < 0)
    return dm->failed;
  FAIL_POINT ("D-mirror");
  /* What was written, not what bm has by now. */
  for (guint i = 0; i < changed->len; i++) {
    const struct sector *s = &g_array_index (changed, struct sector, i);
    uint64_t base = (GUINT32_FROM_LE (s->kind_index) & 0xffffff) * SECTOR_WORDS;

    for (unsigned w = 0; w < SECTOR_WORDS; w++)
      atomic_fetch_or_explicit (&dm->mirror[base + w],
                                GUINT64_FROM_LE (s->words[w]),
                                memory_order_release);
  }
  return 0;
}
