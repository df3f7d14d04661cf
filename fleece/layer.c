/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <isa-l.h>
#include <string.h>
#include <sys/mman.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/crc32c.h"
#include "fleece/layer.h"
#include "fleece/layer-internal.h"

/* 01 in each pair of bits. */
#define LOW_BITS UINT64_C (0x5555555555555555)

static void *
map_sparse (size_t bytes)
{
  void *p = mmap (NULL, bytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

  return p == MAP_FAILED ? NULL : p;
}

Layer *
layer_alloc (Storage *storage, const char *path, uint64_t size, int64_t id,
             GError **error)
{
  Layer *layer = g_new0 (Layer, 1);

  layer->storage = storage;
  layer->path = g_strdup (path);
  layer->size = size;
  layer->nr_blocks = size / LAYER_BLOCK + (size % LAYER_BLOCK != 0);
  layer->id = id;
  /* One spare word each, so that a disk of size 0 maps something. */
  layer->presence_bytes = (layer->nr_blocks / 32 + 1) * sizeof (uint64_t);
  layer->crc_bytes = (layer->nr_blocks + 1) * sizeof (uint32_t);
  layer->presence = map_sparse (layer->presence_bytes);
  layer->crc = map_sparse (layer->crc_bytes);
  atomic_init (&layer->refs, 1);
  atomic_init (&layer->budget_blocks, UINT64_MAX);
  if (layer->presence == NULL || layer->crc == NULL) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NO_MEMORY,
                 "no memory to track the blocks of scratch file '%s'", path);
    layer_unref (layer);
    return NULL;
  }
  return layer;
}

Layer *
layer_create (Storage *storage, const char *path, uint64_t size, int64_t id,
              GError **error)
{
  g_autoptr (Layer) layer = layer_alloc (storage, path, size, id, error);
  uint64_t bytes;
  int err;

  if (layer == NULL)
    return NULL;
  bytes = layer->nr_blocks * LAYER_BLOCK;
  err = storage->ops->open (storage, path, STORAGE_CREATE, bytes,
                            &layer->file);
  if (err < 0) {
    g_set_error (error, BITMAP_ERROR,
                 err == -EEXIST ? BITMAP_ERROR_EXISTS : BITMAP_ERROR_IO,
                 "cannot create scratch file '%s': %s", path,
                 g_strerror (-err));
    return NULL;
  }
  return g_steal_pointer (&layer);
}

Layer *
layer_ref (Layer *layer)
{
  atomic_fetch_add (&layer->refs, 1);
  return layer;
}

void
layer_unref (Layer *layer)
{
  /* A loop, not recursion: chains can be long. */
  while (layer != NULL && atomic_fetch_sub (&layer->refs, 1) == 1) {
    Layer *newer = atomic_load (&layer->newer);

    if (layer->presence != NULL)
      munmap ((void *) layer->presence, layer->presence_bytes);
    if (layer->crc != NULL)
      munmap ((void *) layer->crc, layer->crc_bytes);
    if (layer->file != NULL)
      layer->file->ops->close (layer->file);
    g_free (layer->path);
    g_free (layer);
    layer = newer;
  }
}

void
layer_remove_file (Layer *layer)
{
  layer_remove_files (layer->storage, layer->path);
}

/* The first block in [first, end) whose "present" bit is want, or end. */
static uint64_t
next_block (const Layer *layer, uint64_t first, uint64_t end, bool want)
{
  while (first < end) {
    uint64_t word = atomic_load (&layer->presence[first / 32]);
    uint64_t hit = (word | word >> 1) & LOW_BITS;

    if (!want)
      hit ^= LOW_BITS;
    hit &= ~UINT64_C (0) << (first % 32 * 2);
    if (hit != 0) {
      uint64_t block = first / 32 * 32 + __builtin_ctzll (hit) / 2;
      return MIN (block, end);
    }
    first = (first / 32 + 1) * 32;
  }
  return end;
}

uint64_t
layer_next_absent (const Layer *layer, uint64_t first, uint64_t end)
{
  return next_block (layer, first, end, false);
}

uint64_t
layer_next_present (const Layer *layer, uint64_t first, uint64_t end)
{
  return next_block (layer, first, end, true);
}

void
layer_mark (Layer *layer, uint64_t block, uint64_t nr, Presence what)
{
  uint64_t end = block + nr;

  while (block < end) {
    uint64_t in_word = MIN (32 - block % 32, end - block);
    uint64_t mask = in_word == 32 ? ~UINT64_C (0)
      : ((UINT64_C (1) << in_word * 2) - 1) << (block % 32 * 2);

    atomic_fetch_or (&layer->presence[block / 32], LOW_BITS * what & mask);
    block += in_word;
  }
  if (what == PRESENCE_ZERO)
    atomic_fetch_add_explicit (&layer->zero_blocks, nr, memory_order_relaxed);
}

/* Write nr blocks, none of them zero. */
static int
store_data (Layer *layer, uint64_t block, uint64_t nr, const char *buf)
{
  uint64_t had = atomic_fetch_add (&layer->data_blocks, nr);
  int err;

  if (had + nr > atomic_load (&layer->budget_blocks))
    err = -EDQUOT;
  else
    err = layer->file->ops->pwrite (layer->file, buf, nr * LAYER_BLOCK,
                                    block * LAYER_BLOCK, false);
  if (err < 0) {
    atomic_fetch_sub (&layer->data_blocks, nr);
    return err;
  }
  for (uint64_t i = 0; i < nr; i++)
    atomic_store_explicit (&layer->crc[block + i],
                           crc32c (0, buf + i * LAYER_BLOCK, LAYER_BLOCK),
                           memory_order_relaxed);
  layer_mark (layer, block, nr, PRESENCE_DATA);
  return 0;
}

int
layer_store (Layer *layer, uint64_t block, uint64_t nr, const void *buf)
{
  const char *p = buf;

  while (nr > 0) {
    bool zero = isal_zero_detect ((void *) p, LAYER_BLOCK) == 0;
    uint64_t run = 1;
    int err;

    while (run < nr && zero == (isal_zero_detect ((void *) (p + run * LAYER_BLOCK),
                                                  LAYER_BLOCK) == 0))
      run++;
    if (zero)
      layer_mark (layer, block, run, PRESENCE_ZERO);
    else if ((err = store_data (layer, block, run, p)) < 0)
      return err;
    block += run;
    nr -= run;
    p += run * LAYER_BLOCK;
  }
  return 0;
}

int
layer_read (Layer *layer, uint64_t block, uint64_t nr, void *buf)
{
  int err = layer->file->ops->pread (layer->file, buf, nr * LAYER_BLOCK,
                                     block * LAYER_BLOCK);

  if (err < 0)
    return err;
  for (uint64_t i = 0; i < nr; i++) {
    uint32_t crc = atomic_load_explicit (&layer->crc[block + i],
                                         memory_order_relaxed);

    if (crc32c (0, (char *) buf + i * LAYER_BLOCK, LAYER_BLOCK) != crc)
      return -EBADMSG;
  }
  return 0;
}
