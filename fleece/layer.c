/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <isa-l.h>
#include <string.h>
#include <sys/mman.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/crc32c.h"
#include "bitmap/fail-point.h"
#include "fleece/layer.h"
#include "fleece/layer-internal.h"

/* 01 in each pair of bits. */
#define LOW_BITS UINT64_C (0x5555555555555555)

#define MAP_PAGE 4096u
G_STATIC_ASSERT (PRESENCE_DATA == 1 && PRESENCE_ZERO == 2);  /* count_blocks */

static size_t
page_round (size_t bytes)
{
  return (bytes + MAP_PAGE - 1) / MAP_PAGE * MAP_PAGE;
}

/* Offsets in the memory of the maps: page-aligned parts, each with a spare page
 * worth, so that a disk of size 0 has something. */
struct parts {
  size_t presence_there, crc_there, head_bytes, presence, crc, all;
};

static struct parts
find_parts (uint64_t nr_blocks)
{
  struct parts p;

  p.presence_there = sizeof (uint64_t);
  p.crc_there = p.presence_there
    + (nr_blocks / PRESENCE_PAGE_BLOCKS / 64 + 1) * sizeof (uint64_t);
  p.head_bytes = page_round (p.crc_there + (nr_blocks / CRC_PAGE_BLOCKS / 64
                                            + 1) * sizeof (uint64_t));
  p.presence = p.head_bytes;
  p.crc = p.presence + page_round (nr_blocks / 4 + 1);
  p.all = p.crc + page_round ((nr_blocks + 1) * sizeof (uint32_t));
  return p;
}

static void
set_parts (Layer *layer, void *base)
{
  struct parts p = find_parts (layer->nr_blocks);
  char *bytes = base;

  layer->head = (void *) bytes;
  layer->presence_there = (void *) (bytes + p.presence_there);
  layer->crc_there = (void *) (bytes + p.crc_there);
  layer->presence = (void *) (bytes + p.presence);
  layer->crc = (void *) (bytes + p.crc);
}

static Layer *
layer_new (Storage *storage, const char *path, uint64_t size, int64_t id)
{
  Layer *layer = g_new0 (Layer, 1);

  layer->storage = storage;
  layer->path = g_strdup (path);
  layer->size = size;
  layer->nr_blocks = size / LAYER_BLOCK + (size % LAYER_BLOCK != 0);
  layer->id = id;
  layer->map_bytes = find_parts (layer->nr_blocks).all;
  atomic_init (&layer->refs, 1);
  atomic_init (&layer->budget_blocks, UINT64_MAX);
  return layer;
}

static bool
no_memory (const Layer *layer, GError **error)
{
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NO_MEMORY,
               "no memory to track the blocks of scratch file '%s'",
               layer->path);
  return false;
}

/* New, empty maps. */
static bool
make_maps (Layer *layer, const LayerHome *home, GError **error)
{
  if (home->map_name != NULL) {
    layer->map = runtime_map_create (home->rt, home->map_name,
                                     layer->map_bytes, home->nonce, false,
                                     error);
    if (layer->map == NULL)
      return false;
    if (runtime_map_reserve (layer->map, 0,
                             find_parts (layer->nr_blocks).head_bytes) < 0)
      return no_memory (layer, error);
    set_parts (layer, runtime_map_data (layer->map));
    return true;
  }
  layer->memory = mmap (NULL, layer->map_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (layer->memory == MAP_FAILED) {
    layer->memory = NULL;
    return no_memory (layer, error);
  }
  set_parts (layer, layer->memory);
  return true;
}

Layer *
layer_alloc (Storage *storage, const char *path, uint64_t size, int64_t id,
             const LayerHome *home, GError **error)
{
  g_autoptr (Layer) layer = layer_new (storage, path, size, id);

  layer->keep = home->keep;
  return make_maps (layer, home, error) ? g_steal_pointer (&layer) : NULL;
}

bool
layer_open_file (Layer *layer, GError **error)
{
  int err = layer->storage->ops->open (layer->storage, layer->path,
                                       layer->keep ? STORAGE_LOCK : 0, 0,
                                       &layer->file);

  if (err < 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                 "cannot open scratch file '%s': %s", layer->path,
                 g_strerror (-err));
    return false;
  }
  if (layer->file->size < layer->nr_blocks * LAYER_BLOCK) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_CORRUPT,
                 "scratch file '%s' is too short: %" G_GUINT64_FORMAT
                 " bytes of %" G_GUINT64_FORMAT, layer->path,
                 layer->file->size, layer->nr_blocks * LAYER_BLOCK);
    return false;
  }
  return true;
}

/* All that a power cut must not take back before the first block is kept. */
static bool
make_durable (Layer *layer, GError **error)
{
  g_autofree char *dir = g_path_get_dirname (layer->path);
  int err;

  layer->log = layer_log_create (layer, error);
  if (layer->log == NULL)
    return false;
  err = layer->file->ops->sync (layer->file);
  if (err == 0)
    err = layer->storage->ops->sync_dir (layer->storage, dir);
  if (err < 0)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                 "cannot sync scratch file '%s': %s", layer->path,
                 g_strerror (-err));
  return err == 0;
}

/* What belongs to the scratch file must not be somebody else's. */
static bool
check_neighbours (Storage *storage, const char *path, GError **error)
{
  static const char *const suffixes[] = { ".map", ".log" };

  for (unsigned i = 0; i < G_N_ELEMENTS (suffixes); i++) {
    g_autofree char *name = g_strconcat (path, suffixes[i], NULL);
    StorageFile *file;
    int err = storage->ops->open (storage, name, STORAGE_READ_ONLY, 0, &file);

    if (err == -ENOENT)
      continue;
    if (err == 0) {
      file->ops->close (file);
      err = -EEXIST;
    }
    g_set_error (error, BITMAP_ERROR,
                 err == -EEXIST ? BITMAP_ERROR_EXISTS : BITMAP_ERROR_IO,
                 "cannot create scratch file '%s': '%s' is in the way: %s",
                 path, name, g_strerror (-err));
    return false;
  }
  return true;
}

static bool
create_file (Layer *layer, GError **error)
{
  Storage *storage = layer->storage;
  int err = storage->ops->open (storage, layer->path, STORAGE_CREATE,
                                layer->nr_blocks * LAYER_BLOCK, &layer->file);

  if (err < 0)
    g_set_error (error, BITMAP_ERROR,
                 err == -EEXIST ? BITMAP_ERROR_EXISTS : BITMAP_ERROR_IO,
                 "cannot create scratch file '%s': %s", layer->path,
                 g_strerror (-err));
  return err == 0;
}

/* A user's file.  What is in it means nothing: no block of it is present, and
 * one that will be has its own checksum. */
static bool
reuse_file (Layer *layer, GError **error)
{
  uint64_t bytes = layer->nr_blocks * LAYER_BLOCK;
  int err = layer->storage->ops->open (layer->storage, layer->path,
                                       STORAGE_LOCK, 0, &layer->file);

  if (err == 0 && layer->file->is_block)
    err = -ENOTBLK;
  if (err == 0) {
    layer->kept_size = layer->file->size;
    if (layer->kept_size < bytes)
      err = layer->file->ops->set_size (layer->file, bytes);
  }
  if (err < 0)
    g_set_error (error, BITMAP_ERROR,
                 err == -EBUSY ? BITMAP_ERROR_BUSY : BITMAP_ERROR_IO,
                 err == -ENOTBLK ? "scratch file '%s' is not a regular file"
                 : err == -EBUSY ? "scratch file '%s' is in use already"
                 : "cannot use scratch file '%s': %s", layer->path,
                 g_strerror (-err));
  return err == 0;
}

Layer *
layer_create (Storage *storage, const char *path, uint64_t size, int64_t id,
              const LayerHome *home, GError **error)
{
  g_autoptr (Layer) layer = layer_alloc (storage, path, size, id, home, error);

  if (layer == NULL)
    return NULL;
  atomic_store (&layer->removed, true); /* the map, if what follows fails */
  if (!check_neighbours (storage, path, error) ||
      !(home->keep ? reuse_file : create_file) (layer, error))
    return NULL;
  if (home->durable && !make_durable (layer, error)) {
    layer_remove_file (layer);
    return NULL;
  }
  atomic_store (&layer->removed, false);
  return g_steal_pointer (&layer);
}

static bool
is_there (const _Atomic uint64_t *there, uint64_t page)
{
  return atomic_load (&there[page / 64]) >> page % 64 & 1;
}

/* The counters, from the maps; by words, since block by block a full TiB takes
 * seconds. */
static void
count_blocks (Layer *layer)
{
  const uint64_t words = PRESENCE_PAGE_BLOCKS / 32;
  uint64_t data = 0, zero = 0;

  for (uint64_t page = 0; page * PRESENCE_PAGE_BLOCKS < layer->nr_blocks;
       page++) {
    if (!is_there (layer->presence_there, page))
      continue;
    /* The last page is whole, with nothing in it past the last block. */
    for (uint64_t i = page * words; i < (page + 1) * words; i++) {
      uint64_t word = atomic_load_explicit (&layer->presence[i],
                                            memory_order_relaxed);
      uint64_t low = word & LOW_BITS, high = word >> 1 & LOW_BITS;

      data += (unsigned) __builtin_popcountll (low & ~high);
      zero += (unsigned) __builtin_popcountll (high & ~low);
    }
  }
  atomic_store (&layer->data_blocks, data);
  atomic_store (&layer->zero_blocks, zero);
}

Layer *
layer_resume (Storage *storage, const char *path, uint64_t size, int64_t id,
              const LayerHome *home, GError **error)
{
  g_autoptr (Layer) layer = layer_new (storage, path, size, id);

  layer->keep = home->keep;
  layer->map = runtime_map_open (home->rt, home->map_name, layer->map_bytes,
                                 home->nonce, error);
  if (layer->map == NULL)
    return NULL;
  set_parts (layer, runtime_map_data (layer->map));
  if (atomic_load (&layer->head[0]) & LAYER_HEAD_DEAD) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND,
                 "old data could not be preserved any more");
    return NULL;
  }
  if (!layer_open_file (layer, error))
    return NULL;
  count_blocks (layer);
  return g_steal_pointer (&layer);
}

void
layer_kill (Layer *layer)
{
  atomic_fetch_or (&layer->head[0], LAYER_HEAD_DEAD);
  atomic_store (&layer->dead, true);
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

    if (layer->memory != NULL)
      munmap (layer->memory, layer->map_bytes);
    if (layer->map != NULL && atomic_load (&layer->removed))
      runtime_map_remove (layer->map);
    else if (layer->map != NULL)
      runtime_map_close (layer->map);
    layer_log_free (layer->log);
    if (layer->file != NULL && atomic_load (&layer->given_back))
      layer->file->ops->set_size (layer->file, layer->kept_size);
    if (layer->file != NULL)
      layer->file->ops->close (layer->file);
    g_free (layer->path);
    g_free (layer);
    layer = newer;
  }
}

int
layer_remove_file (Layer *layer)
{
  atomic_store (&layer->removed, true);
  if (!layer->keep)
    return layer_remove_files (layer->storage, layer->path, false);
  atomic_store (&layer->given_back, true);
  return layer_give_back (layer);
}

void
layer_release_space (Layer *layer)
{
  /* Closing the file does the same; where this is not supported, that will. */
  if (atomic_load (&layer->refs) > 1 && layer->nr_blocks > 0)
    layer->file->ops->punch (layer->file, 0, layer->nr_blocks * LAYER_BLOCK);
}

/* Reserve one page of a map. */
static int
reserve_page (Layer *layer, _Atomic uint64_t *there, const void *map,
              uint64_t page)
{
  int err = 0;

  if (is_there (there, page))
    return 0;
  FAIL_POINT ("T-reserve");
  if (layer->map != NULL)
    err = runtime_map_reserve (layer->map,
                               (const char *) map - (char *) layer->head
                               + page * MAP_PAGE, MAP_PAGE);
  if (err == 0)
    atomic_fetch_or (&there[page / 64], UINT64_C (1) << page % 64);
  return err;
}

static int
reserve_presence (Layer *layer, uint64_t block, uint64_t nr)
{
  int err = 0;

  for (uint64_t page = block / PRESENCE_PAGE_BLOCKS;
       err == 0 && page <= (block + nr - 1) / PRESENCE_PAGE_BLOCKS; page++)
    err = reserve_page (layer, layer->presence_there,
                        (const void *) layer->presence, page);
  return err;
}

static int
reserve_crc (Layer *layer, uint64_t block, uint64_t nr)
{
  int err = 0;

  for (uint64_t page = block / CRC_PAGE_BLOCKS;
       err == 0 && page <= (block + nr - 1) / CRC_PAGE_BLOCKS; page++)
    err = reserve_page (layer, layer->crc_there, (const void *) layer->crc,
                        page);
  return err;
}

/* The first block in [first, end) whose "present" bit is want, or end. */
static uint64_t
next_block (const Layer *layer, uint64_t first, uint64_t end, bool want)
{
  uint64_t stop = MIN (end, layer->nr_blocks);
  /* Past the layer's end everything is absent. */
  uint64_t other = want ? end : MIN (MAX (first, stop), end);

  while (first < stop) {
    uint64_t page = first / PRESENCE_PAGE_BLOCKS;
    uint64_t word, hit;

    if (!is_there (layer->presence_there, page)) {
      if (!want)
        return first;
      first = (page + 1) * PRESENCE_PAGE_BLOCKS;
      continue;
    }
    word = atomic_load (&layer->presence[first / 32]);
    hit = (word | word >> 1) & LOW_BITS;
    if (!want)
      hit ^= LOW_BITS;
    hit &= ~UINT64_C (0) << (first % 32 * 2);
    if (hit != 0) {
      uint64_t block = first / 32 * 32 + __builtin_ctzll (hit) / 2;

      return block < stop ? block : other;
    }
    first = (first / 32 + 1) * 32;
  }
  return other;
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

int
layer_mark (Layer *layer, uint64_t block, uint64_t nr, Presence what)
{
  uint64_t end = block + nr;
  int err = reserve_presence (layer, block, nr);

  if (err < 0)
    return err;
  while (block < end) {
    uint64_t in_word = MIN (32 - block % 32, end - block);
    uint64_t mask = in_word == 32 ? ~UINT64_C (0)
      : ((UINT64_C (1) << in_word * 2) - 1) << (block % 32 * 2);

    atomic_fetch_or (&layer->presence[block / 32], LOW_BITS * what & mask);
    block += in_word;
  }
  if (what == PRESENCE_ZERO)
    atomic_fetch_add_explicit (&layer->zero_blocks, nr, memory_order_relaxed);
  return 0;
}

int
layer_set_crc (Layer *layer, uint64_t block, uint64_t nr, const uint32_t *crc)
{
  int err = reserve_crc (layer, block, nr);

  for (uint64_t i = 0; err == 0 && i < nr; i++)
    atomic_store_explicit (&layer->crc[block + i], crc[i],
                           memory_order_relaxed);
  return err;
}

int
layer_record (Layer *layer, uint64_t block, uint64_t nr, Presence what)
{
  LayerRun run = { .block = block, .nr = nr, .what = what };

  return layer->log != NULL ? layer_log_add (layer->log, &run, 1) : 0;
}

/* Write nr blocks, none of them zero, and take them from the budget. */
static int
write_data (Layer *layer, uint64_t block, uint64_t nr, const char *buf)
{
  uint64_t had = atomic_fetch_add (&layer->data_blocks, nr);
  int err;

  if (had + nr > atomic_load (&layer->budget_blocks))
    err = -EDQUOT;
  else {
    FAIL_POINT ("A4-data");
    err = layer->file->ops->pwrite (layer->file, buf, nr * LAYER_BLOCK,
                                    block * LAYER_BLOCK, false);
  }
  if (err < 0)
    atomic_fetch_sub (&layer->data_blocks, nr);
  return err;
}

/* Data and checksum of a run; presence is what the caller sets next. */
static int
store_run (Layer *layer, LayerRun *run, const char *buf)
{
  int err = reserve_presence (layer, run->block, run->nr);

  if (err < 0 || run->what != PRESENCE_DATA)
    return err;
  for (uint64_t i = 0; i < run->nr; i++)
    run->crc[i] = crc32c (0, buf + i * LAYER_BLOCK, LAYER_BLOCK);
  err = layer_set_crc (layer, run->block, run->nr, run->crc);
  return err < 0 ? err : write_data (layer, run->block, run->nr, buf);
}

/* The run of blocks at buf that are all zero or all not. */
static LayerRun
find_run (uint64_t block, uint64_t nr, const char *buf)
{
  bool zero = isal_zero_detect ((void *) buf, LAYER_BLOCK) == 0;
  LayerRun run = { .block = block, .nr = 1,
                   .what = zero ? PRESENCE_ZERO : PRESENCE_DATA };

  while (run.nr < nr && run.nr < LAYER_RUN_BLOCKS &&
         zero == (isal_zero_detect ((void *) (buf + run.nr * LAYER_BLOCK),
                                    LAYER_BLOCK) == 0))
    run.nr++;
  return run;
}

int
layer_store (Layer *layer, uint64_t block, uint64_t nr, const void *buf)
{
  LayerRun run[LAYER_RUN_BLOCKS];       /* more runs than blocks cannot be */
  const char *p = buf;
  unsigned done = 0;
  int err = 0;

  while (err == 0 && nr > 0) {
    uint64_t batch = MIN (nr, LAYER_RUN_BLOCKS), in_batch = 0;

    for (done = 0; err == 0 && in_batch < batch; done++) {
      const char *at = p + in_batch * LAYER_BLOCK;

      run[done] = find_run (block + in_batch, batch - in_batch, at);
      in_batch += run[done].nr;
      err = store_run (layer, &run[done], at);
      if (err < 0)
        break;
    }
    /* What was stored before a failing run is kept; a record that cannot be
     * made stable leaves all of it absent. */
    if (done > 0 && layer->log != NULL) {
      int err2 = layer_log_add (layer->log, run, done);

      if (err2 < 0) {
        for (unsigned i = 0; i < done; i++)
          if (run[i].what == PRESENCE_DATA)
            atomic_fetch_sub (&layer->data_blocks, run[i].nr);
        return err2;
      }
    }
    FAIL_POINT ("A4-presence");
    for (unsigned i = 0; i < done; i++)
      layer_mark (layer, run[i].block, run[i].nr, run[i].what);
    block += batch;
    nr -= batch;
    p += batch * LAYER_BLOCK;
  }
  return err;
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

#ifdef BROKEN_SCRATCH_CRC       /* see test-crash-controls.sh */
    continue;
#endif
    if (crc32c (0, (char *) buf + i * LAYER_BLOCK, LAYER_BLOCK) != crc)
      return -EBADMSG;
  }
  return 0;
}
