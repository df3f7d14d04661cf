/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "bitmap/crc32c.h"
#include "bitmap/sector.h"

/* Sectors a call. */
#define BATCH 1024u

static_assert (sizeof (struct sector) == SECTOR_BYTES, "a sector");

uint64_t
sector_count (uint64_t nr_bits)
{
  return nr_bits / SECTOR_BITS + (nr_bits % SECTOR_BITS != 0);
}

static uint32_t
sector_crc (const struct sector *sector)
{
  return crc32c (0, &sector->kind_index, SECTOR_BYTES - sizeof sector->crc);
}

void
sector_fill (struct sector *sector, SectorKind kind, uint64_t index,
             uint64_t tag, const uint64_t words[SECTOR_WORDS])
{
  assert (index < SECTORS_MAX);
  sector->kind_index = GUINT32_TO_LE ((uint32_t) kind << 24 |
                                      (uint32_t) index);
  sector->tag = GUINT64_TO_LE (tag);
  for (unsigned i = 0; i < SECTOR_WORDS; i++)
    sector->words[i] = GUINT64_TO_LE (words[i]);
  sector->crc = GUINT32_TO_LE (sector_crc (sector));
}

static uint64_t
index_of (const struct sector *sector)
{
  return GUINT32_FROM_LE (sector->kind_index) & 0xffffff;
}

static bool
is_good (const struct sector *sector, SectorKind kind, uint64_t index)
{
  return GUINT32_FROM_LE (sector->crc) == sector_crc (sector) &&
    GUINT32_FROM_LE (sector->kind_index) ==
    ((uint32_t) kind << 24 | (uint32_t) index);
}

int
sector_file_extend (StorageFile *file, SectorKind kind, uint64_t tag,
                    uint64_t first, uint64_t nr)
{
  static const uint64_t zeroes[SECTOR_WORDS];
  g_autofree struct sector *buf = g_new (struct sector, BATCH);
  int err = nr > SECTORS_MAX ? -EFBIG : 0;

  while (err == 0 && first < nr) {
    size_t n = MIN (nr - first, BATCH);

    for (size_t i = 0; i < n; i++)
      sector_fill (&buf[i], kind, first + i, tag, zeroes);
    err = file->ops->pwrite (file, buf, n * SECTOR_BYTES,
                             first * SECTOR_BYTES, false);
    first += n;
  }
  return err < 0 ? err : file->ops->sync (file);
}

int
sector_file_create (Storage *storage, const char *dir, const char *path,
                    SectorKind kind, uint64_t tag, uint64_t nr,
                    StorageFile **out_file)
{
  StorageFile *file;
  int err;

  if (nr > SECTORS_MAX)
    return -EFBIG;
  err = storage->ops->remove (storage, path);
  if (err < 0 && err != -ENOENT)
    return err;
  err = storage->ops->open (storage, path, STORAGE_CREATE, nr * SECTOR_BYTES,
                            &file);
  if (err < 0)
    return err;
  err = sector_file_extend (file, kind, tag, 0, nr);
  if (err == 0)
    err = storage->ops->sync_dir (storage, dir);
  if (err < 0) {
    file->ops->close (file);
    storage->ops->remove (storage, path);
    return err;
  }
  *out_file = file;
  return 0;
}

int
sector_file_write (StorageFile *file, const struct sector *sectors, size_t nr)
{
  size_t done = 0;
  int err = 0;

  while (err == 0 && done < nr) {
    uint64_t first = index_of (&sectors[done]);
    size_t n = 1;

    while (done + n < nr && index_of (&sectors[done + n]) == first + n)
      n++;
    err = file->ops->pwrite (file, &sectors[done], n * SECTOR_BYTES,
                             first * SECTOR_BYTES, false);
    done += n;
  }
  return err;
}

static void
tell (struct sector *sector, SectorKind kind, uint64_t index, SectorFn fn,
      void *opaque)
{
  if (!is_good (sector, kind, index)) {
    fn (opaque, index, 0, NULL);
    return;
  }
  for (unsigned i = 0; i < SECTOR_WORDS; i++)
    sector->words[i] = GUINT64_FROM_LE (sector->words[i]);
  fn (opaque, index, GUINT64_FROM_LE (sector->tag), sector->words);
}

void
sector_file_read (StorageFile *file, SectorKind kind, uint64_t nr,
                  SectorFn fn, void *opaque)
{
  g_autofree struct sector *buf = g_new (struct sector, BATCH);
  uint64_t have = MIN (nr, file->size / SECTOR_BYTES), index = 0;

  while (index < have) {
    size_t n = MIN (have - index, BATCH);
    bool whole = file->ops->pread (file, buf, n * SECTOR_BYTES,
                                   index * SECTOR_BYTES) == 0;

    for (size_t i = 0; i < n; i++, index++)
      if (whole || file->ops->pread (file, &buf[i], SECTOR_BYTES,
                                     index * SECTOR_BYTES) == 0)
        tell (&buf[i], kind, index, fn, opaque);
      else
        fn (opaque, index, 0, NULL);
  }
  for (; index < nr; index++)
    fn (opaque, index, 0, NULL);
}
