/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* layer-map.c - a layer's maps on disk, from a clean stop to the next start.
 *
 * PATH.map, all integers little-endian:
 *   header, 64 bytes: magic "NFLYMAP2", 16 bytes nonce, u64 disk size, u64
 *     number of pages, u64 data blocks, u64 zero blocks, u32 crc32c of all
 *     pages, u32 crc32c of the 60 bytes before it
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

#define MAGIC "NFLYMAP2"
#define PAGE_WORDS 128
#define PAGE_BLOCKS (PAGE_WORDS * 32)

struct map_header {
  char magic[8];
  uint8_t nonce[RUNTIME_NONCE_BYTES];
  uint64_t size, nr_pages, data_blocks, zero_blocks;
  uint32_t pages_crc, header_crc;
};
G_STATIC_ASSERT (sizeof (struct map_header) == 64);

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

/* -EBADMSG: the page cannot belong to a map of this disk; -ENOMEM. */
static int
page_to_layer (Layer *layer, const struct map_page *page)
{
  uint64_t index = GUINT64_FROM_LE (page->index);
  uint64_t first, end;

  if (index > layer->nr_blocks / PAGE_BLOCKS)
    return -EBADMSG;
  first = index * PAGE_BLOCKS;
  end = MIN (first + PAGE_BLOCKS, layer->nr_blocks);
  for (uint64_t b = first; b < end; b++) {
    uint64_t word = GUINT64_FROM_LE (page->presence[(b - first) / 32]);
    Presence p = word >> (b % 32 * 2) & 3;
    uint32_t crc;

    if (layer_presence (layer, b) != PRESENCE_ABSENT)
      return -EBADMSG;          /* the same page twice */
    if (p == PRESENCE_ABSENT)
      continue;
    crc = GUINT32_FROM_LE (page->crc[b - first]);
    if ((p == PRESENCE_DATA && layer_set_crc (layer, b, 1, &crc) < 0) ||
        layer_mark (layer, b, 1, p) < 0)
      return -ENOMEM;
    if (p == PRESENCE_DATA)
      atomic_fetch_add (&layer->data_blocks, 1);
  }
  return 0;
}

static int
write_map (Layer *layer, StorageFile *file, const uint8_t *nonce)
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
  memcpy (header.nonce, nonce, sizeof header.nonce);
  header.size = GUINT64_TO_LE (layer->size);
  header.nr_pages = GUINT64_TO_LE (nr_pages);
  header.data_blocks = GUINT64_TO_LE (atomic_load (&layer->data_blocks));
  header.zero_blocks = GUINT64_TO_LE (atomic_load (&layer->zero_blocks));
  header.pages_crc = GUINT32_TO_LE (pages_crc);
  header.header_crc = GUINT32_TO_LE (crc32c (0, &header, 60));
  err = file->ops->pwrite (file, &header, sizeof header, 0, false);
  return err < 0 ? err : file->ops->sync (file);
}

bool
layer_save (Layer *layer, const uint8_t nonce[RUNTIME_NONCE_BYTES],
            GError **error)
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
  err = write_map (layer, file, nonce);
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
read_map (Layer *layer, StorageFile *file, const uint8_t *nonce,
          const char *path, GError **error)
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
      GUINT32_FROM_LE (header.header_crc) != crc32c (0, &header, 60) ||
      GUINT64_FROM_LE (header.size) != layer->size ||
      (file->size - sizeof header) / sizeof *page != nr_pages)
    return corrupt (error, path);
  if (memcmp (header.nonce, nonce, sizeof header.nonce) != 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND,
                 "block map '%s' is not of the last clean stop", path);
    return false;
  }
  for (uint64_t i = 0; i < nr_pages; i++) {
    err = file->ops->pread (file, page, sizeof *page, offset);
    if (err < 0)
      return io_error (error, "read block map", path, err);
    pages_crc = crc32c (pages_crc, page, sizeof *page);
    err = page_to_layer (layer, page);
    if (err == -EBADMSG)
      return corrupt (error, path);
    if (err < 0)
      return io_error (error, "hold block map", path, err);
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
            const uint8_t nonce[RUNTIME_NONCE_BYTES], const LayerHome *home,
            GError **error)
{
  g_autoptr (Layer) layer = layer_alloc (storage, path, size, id, home, error);
  g_autofree char *map = map_path (path);
  StorageFile *file;
  bool ok;
  int err;

  if (layer == NULL)
    return NULL;
  atomic_store (&layer->removed, true); /* the new map, on failure */
  if (!layer_open_file (layer, error))
    return NULL;
  err = storage->ops->open (storage, map, STORAGE_READ_ONLY, 0, &file);
  if (err < 0) {
    io_error (error, "open block map", map, err);
    return NULL;
  }
  ok = read_map (layer, file, nonce, map, error);
  file->ops->close (file);
  if (!ok)
    return NULL;
  atomic_store (&layer->removed, false);
  return g_steal_pointer (&layer);
}

void
layer_remove_map (Storage *storage, const char *path)
{
  g_autofree char *map = map_path (path);

  storage->ops->remove (storage, map);
}

/* Before the row goes that names them: else a power loss brings back a file
 * that nobody knows. */
static int
sync_folder (Storage *storage, const char *path)
{
  g_autofree char *dir = g_path_get_dirname (path);

  return storage->ops->sync_dir (storage, dir);
}

/* Nobody else may have begun to use it. */
static int
empty_file (Storage *storage, const char *path)
{
  StorageFile *file;
  int err = storage->ops->open (storage, path, STORAGE_LOCK, 0, &file);

  if (err < 0)
    return err;
  err = file->is_block ? -ENOTBLK : file->ops->set_size (file, 0);
  file->ops->close (file);
  return err;
}

/* file: open at path, to be given back with this size; NULL: remove or empty
 * what is there. */
static int
remove_files (Storage *storage, const char *path, bool keep,
              StorageFile *file, uint64_t size)
{
  static const char *const suffixes[] = { ".map", ".log" };
  int result = 0, err;

  for (unsigned i = 0; i < G_N_ELEMENTS (suffixes); i++) {
    g_autofree char *name = g_strconcat (path, suffixes[i], NULL);

    err = storage->ops->remove (storage, name);
    if (err < 0 && err != -ENOENT)
      result = err;
  }
  err = file != NULL ? file->ops->set_size (file, size)
    : keep ? empty_file (storage, path) : storage->ops->remove (storage, path);
  if (err < 0 && err != -ENOENT)
    result = err;
  if (result < 0)
    return result;
  /* Even if there was nothing: then they may have been removed before, and that
   * have failed to be synced. */
  err = sync_folder (storage, path);
  return err == -ENOENT ? 0 : err;
}

int
layer_remove_files (Storage *storage, const char *path, bool keep)
{
  return remove_files (storage, path, keep, NULL, 0);
}

int
layer_give_back (Layer *layer)
{
  return remove_files (layer->storage, layer->path, true, layer->file,
                       layer->kept_size);
}

/* 0: nothing that anybody wrote to; -EEXIST: something else; or -errno.  size:
 * of a scratch file, 0: it is a log. */
static int
check_unused (StorageFile *file, uint64_t size)
{
  uint64_t length;
  bool hole;
  int err;

  if (file->is_block)
    return -EEXIST;
  if (size == 0)
    return layer_log_check_unused (file);
  if (file->size == 0)          /* a power loss may have left it so */
    return 0;
  if (file->size != size)
    return -EEXIST;
  err = file->ops->run (file, 0, size, &length, &hole);
  return err == 0 && (!hole || length < size) ? -EEXIST : err;
}

static int
remove_unused (Storage *storage, const char *name, uint64_t size)
{
  StorageFile *file;
  int err = storage->ops->open (storage, name, STORAGE_READ_ONLY, 0, &file);

  if (err == -ENOENT)
    return 0;
  if (err < 0)
    return -EEXIST;             /* a folder, or not readable */
  err = check_unused (file, size);
  file->ops->close (file);
  return err < 0 ? err : storage->ops->remove (storage, name);
}

int
layer_remove_unused (Storage *storage, const char *path, uint64_t size,
                     bool keep)
{
  uint64_t blocks = size / LAYER_BLOCK + (size % LAYER_BLOCK != 0);
  g_autofree char *log = g_strconcat (path, ".log", NULL);
  int err = remove_unused (storage, log, 0);
  int err2 = keep ? 0 : remove_unused (storage, path, blocks * LAYER_BLOCK);

  if (err == 0)
    err = err2;
  if (err == 0)
    err = sync_folder (storage, path);
  return err == -ENOENT ? 0 : err;      /* the folder is gone as well */
}
