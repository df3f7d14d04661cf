/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* layer-map.c - a layer's maps on disk, from a clean stop to the next start.
 *
 * PATH.map, all integers little-endian:
 *   header, 48 bytes: magic "NFLYMAP1", u64 disk size, u64 number of pages,
 *     u64 data blocks, u64 zero blocks, u32 crc32c of all pages, u32 crc32c of
 *     the 44 bytes before it
 *   pages, in order: u64 index, 128 u64 of presence (2 bits a block),
 *     4096 u32 of block checksums
 * A page covers 16 MiB of disk; pages without a present block are left out.
 */
#include <config.h>

#include <errno.h>
#include <string.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/crc32c.h"
#include "fleece/layer-internal.h"

#define MAGIC "NFLYMAP1"
#define PAGE_WORDS 128
#define PAGE_BLOCKS (PAGE_WORDS * 32)

struct map_header {
  char magic[8];
  uint64_t size, nr_pages, data_blocks, zero_blocks;
  uint32_t pages_crc, header_crc;
};
G_STATIC_ASSERT (sizeof (struct map_header) == 48);

struct map_page {
  uint64_t index;
  uint64_t presence[PAGE_WORDS];
  uint32_t crc[PAGE_BLOCKS];
};
G_STATIC_ASSERT (sizeof (struct map_page) == 8 + 1024 + 16384);

static char *
map_path (const char *path)
{
  return g_strconcat (path, ".map", NULL);
}

static bool
io_error (GError **error, const char *what, const char *path, int err)
{
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO, "cannot %s '%s': %s",
               what, path, g_strerror (-err));
  return false;
}

/* The page that starts at block; false: nothing is present in it. */
static bool
page_from_layer (const Layer *layer, uint64_t index, struct map_page *page)
{
  uint64_t first = index * PAGE_BLOCKS;
  uint64_t end = MIN (first + PAGE_BLOCKS, layer->nr_blocks);

  if (layer_next_present (layer, first, end) == end)
    return false;
  memset (page, 0, sizeof *page);
  page->index = GUINT64_TO_LE (index);
  for (uint64_t b = first; b < end; b++) {
    Presence p = layer_presence (layer, b);

    page->presence[(b - first) / 32] |= (uint64_t) p << (b % 32 * 2);
    if (p == PRESENCE_DATA)
      page->crc[b - first] = GUINT32_TO_LE (atomic_load (&layer->crc[b]));
  }
  for (unsigned i = 0; i < PAGE_WORDS; i++)
    page->presence[i] = GUINT64_TO_LE (page->presence[i]);
  return true;
}

/* False: the page cannot belong to a map of this disk. */
static bool
page_to_layer (Layer *layer, const struct map_page *page)
{
  uint64_t index = GUINT64_FROM_LE (page->index);
  uint64_t first, end;

  if (index > layer->nr_blocks / PAGE_BLOCKS)
    return false;
  first = index * PAGE_BLOCKS;
  end = MIN (first + PAGE_BLOCKS, layer->nr_blocks);
  for (uint64_t b = first; b < end; b++) {
    uint64_t word = GUINT64_FROM_LE (page->presence[(b - first) / 32]);
    Presence p = word >> (b % 32 * 2) & 3;

    if (layer_presence (layer, b) != PRESENCE_ABSENT)
      return false;             /* the same page twice */
    if (p == PRESENCE_ABSENT)
      continue;
    atomic_store (&layer->crc[b], GUINT32_FROM_LE (page->crc[b - first]));
    layer_mark (layer, b, 1, p);
    if (p == PRESENCE_DATA)
      atomic_fetch_add (&layer->data_blocks, 1);
  }
  return true;
}

static int
write_map (Layer *layer, StorageFile *file)
{
  g_autofree struct map_page *page = g_new (struct map_page, 1);
  struct map_header header = { .magic = MAGIC };
  uint64_t nr_pages = 0, offset = sizeof header;
  uint32_t pages_crc = 0;
  int err;

  for (uint64_t i = 0; i * PAGE_BLOCKS < layer->nr_blocks; i++) {
    if (!page_from_layer (layer, i, page))
      continue;
    err = file->ops->pwrite (file, page, sizeof *page, offset, false);
    if (err < 0)
      return err;
    pages_crc = crc32c (pages_crc, page, sizeof *page);
    offset += sizeof *page;
    nr_pages++;
  }
  header.size = GUINT64_TO_LE (layer->size);
  header.nr_pages = GUINT64_TO_LE (nr_pages);
  header.data_blocks = GUINT64_TO_LE (atomic_load (&layer->data_blocks));
  header.zero_blocks = GUINT64_TO_LE (atomic_load (&layer->zero_blocks));
  header.pages_crc = GUINT32_TO_LE (pages_crc);
  header.header_crc = GUINT32_TO_LE (crc32c (0, &header, 44));
  err = file->ops->pwrite (file, &header, sizeof header, 0, false);
  return err < 0 ? err : file->ops->sync (file);
}

bool
layer_save (Layer *layer, GError **error)
{
  g_autofree char *path = map_path (layer->path);
  Storage *storage = layer->storage;
  StorageFile *file;
  int err;

  err = layer->file->ops->sync (layer->file);
  if (err < 0)
    return io_error (error, "sync scratch file", layer->path, err);
  storage->ops->remove (storage, path);
  err = storage->ops->open (storage, path, STORAGE_CREATE, 0, &file);
  if (err < 0)
    return io_error (error, "create block map", path, err);
  err = write_map (layer, file);
  file->ops->close (file);
  if (err < 0) {
    storage->ops->remove (storage, path);
    return io_error (error, "write block map", path, err);
  }
  return true;
}

static bool
corrupt (GError **error, const char *path)
{
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_CORRUPT,
               "block map '%s' is damaged", path);
  return false;
}

static bool
read_map (Layer *layer, StorageFile *file, const char *path, GError **error)
{
  g_autofree struct map_page *page = g_new (struct map_page, 1);
  struct map_header header;
  uint64_t nr_pages, offset = sizeof header;
  uint32_t pages_crc = 0;
  int err;

  if (file->size < sizeof header)
    return corrupt (error, path);
  err = file->ops->pread (file, &header, sizeof header, 0);
  if (err < 0)
    return io_error (error, "read block map", path, err);
  nr_pages = GUINT64_FROM_LE (header.nr_pages);
  if (memcmp (header.magic, MAGIC, sizeof header.magic) != 0 ||
      GUINT32_FROM_LE (header.header_crc) != crc32c (0, &header, 44) ||
      GUINT64_FROM_LE (header.size) != layer->size ||
      (file->size - sizeof header) / sizeof *page != nr_pages)
    return corrupt (error, path);
  for (uint64_t i = 0; i < nr_pages; i++) {
    err = file->ops->pread (file, page, sizeof *page, offset);
    if (err < 0)
      return io_error (error, "read block map", path, err);
    pages_crc = crc32c (pages_crc, page, sizeof *page);
    if (!page_to_layer (layer, page))
      return corrupt (error, path);
    offset += sizeof *page;
  }
  if (pages_crc != GUINT32_FROM_LE (header.pages_crc) ||
      atomic_load (&layer->data_blocks) !=
      GUINT64_FROM_LE (header.data_blocks))
    return corrupt (error, path);
  return true;
}

Layer *
layer_load (Storage *storage, const char *path, uint64_t size, int64_t id,
            GError **error)
{
  g_autoptr (Layer) layer = layer_alloc (storage, path, size, id, error);
  g_autofree char *map = map_path (path);
  StorageFile *file;
  bool ok;
  int err;

  if (layer == NULL)
    return NULL;
  err = storage->ops->open (storage, path, 0, 0, &layer->file);
  if (err < 0) {
    io_error (error, "open scratch file", path, err);
    return NULL;
  }
  if (layer->file->size < layer->nr_blocks * LAYER_BLOCK) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_CORRUPT,
                 "scratch file '%s' is too short: %" G_GUINT64_FORMAT
                 " bytes of %" G_GUINT64_FORMAT, path, layer->file->size,
                 layer->nr_blocks * LAYER_BLOCK);
    return NULL;
  }
  err = storage->ops->open (storage, map, STORAGE_READ_ONLY, 0, &file);
  if (err < 0) {
    io_error (error, "open block map", map, err);
    return NULL;
  }
  ok = read_map (layer, file, map, error);
  file->ops->close (file);
  if (!ok)
    return NULL;
  storage->ops->remove (storage, map);
  return g_steal_pointer (&layer);
}

int
layer_remove_files (Storage *storage, const char *path)
{
  g_autofree char *map = map_path (path);
  int err = storage->ops->remove (storage, map);
  int err2 = storage->ops->remove (storage, path);

  if (err2 < 0 && err2 != -ENOENT)
    return err2;
  return err < 0 && err != -ENOENT ? err : 0;
}
