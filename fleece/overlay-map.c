/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <isa-l.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/crc32c.h"
#include "bitmap/sector.h"
#include "fleece/overlay-map.h"

#define PAGE 4096u
#define PAGE_BLOCKS (PAGE * 8u)         /* of a page of words */
#define SUM_BLOCKS (PAGE / 8u)          /* of a page of checksums, two a
                                           block */
#define BLOCK 4096u                     /* OVERLAY_BLOCK */

/* The file is filled with zeroes, and synced, this much at a time, before a
 * sector there is written for the first time: see layer-log.c, fill_ahead. */
#define CHUNK_SECTORS 128u
#define CHUNK_BYTES (CHUNK_SECTORS * SECTOR_BYTES)

struct OverlayMap {
  /* Set in create or open. */
  char *path;
  StorageFile *file, *data;
  uint64_t capacity, tag, nr_sectors;
  RuntimeMap *runtime;
  /* Parts of it: a bit for each page of words that has memory; the words. */
  _Atomic uint64_t *there;
  _Atomic uint64_t *sums_there;         /* the same of sums */
  _Atomic uint64_t *words;
  _Atomic uint32_t *sums;       /* of block b: [2b] it has, [2b + 1] may have */

  /* Held to set bits and while what changed is taken: whoever sees a bit, and
   * then syncs, must not miss it there.  Raised before bits are set; what of
   * that is durable. */
  _Atomic uint64_t *durable;    /* words: what the file says; plain memory */
  pthread_mutex_t set_lock;
  uint64_t *changed;            /* a bit a sector, under set_lock */
  _Atomic uint64_t set_count, durable_count;
  _Atomic uint64_t nr_present;

  pthread_mutex_t lock;
  /* Under lock. */
  uint8_t *slot;                /* a bit a sector: the one to write next */
  uint8_t *filled;              /* a bit a chunk */
  int err;                      /* final */
};

static size_t
head_bytes (uint64_t capacity)
{
  uint64_t pages = capacity / PAGE_BLOCKS + 1;

  return (pages / 8 + 8 + PAGE - 1) / PAGE * PAGE;
}

static size_t
sums_head_bytes (uint64_t capacity)
{
  uint64_t pages = capacity / SUM_BLOCKS + 1;

  return (pages / 8 + 8 + PAGE - 1) / PAGE * PAGE;
}

static size_t
words_at (uint64_t capacity)
{
  return head_bytes (capacity) + sums_head_bytes (capacity);
}

static size_t
sums_at (uint64_t capacity)
{
  return words_at (capacity) + (capacity / PAGE_BLOCKS + 1) * PAGE;
}

static size_t
all_bytes (uint64_t capacity)
{
  return sums_at (capacity) + (capacity / SUM_BLOCKS + 1) * PAGE;
}

static bool
get_page (const _Atomic uint64_t *there, uint64_t page)
{
  return atomic_load (&there[page / 64]) >> page % 64 & 1;
}

static bool
is_there (const OverlayMap *map, uint64_t page)
{
  return get_page (map->there, page);
}

static uint64_t
word_at (const OverlayMap *map, uint64_t word)
{
  return is_there (map, word / (PAGE / 8)) ? atomic_load (&map->words[word])
    : 0;
}

bool
overlay_map_has (const OverlayMap *map, uint64_t block)
{
  return block < map->capacity &&
    (word_at (map, block / 64) >> block % 64 & 1) != 0;
}

uint64_t
overlay_map_next (const OverlayMap *map, uint64_t first, uint64_t end,
                  bool present)
{
  while (first < end) {
    uint64_t page = first / PAGE_BLOCKS, bits;

    if (first >= map->capacity)
      return present ? end : first;
    if (!is_there (map, page)) {
      if (!present)
        return first;
      first = (page + 1) * PAGE_BLOCKS;
      continue;
    }
    bits = atomic_load (&map->words[first / 64]);
    if (!present)
      bits = ~bits;
    bits &= ~UINT64_C (0) << first % 64;
    if (bits != 0)
      return MIN (first / 64 * 64 + (unsigned) __builtin_ctzll (bits), end);
    first = (first / 64 + 1) * 64;
  }
  return end;
}

uint64_t
overlay_map_next_durable (const OverlayMap *map, uint64_t first, uint64_t end,
                          bool durable)
{
  while (first < end) {
    uint64_t bits;

    if (first >= map->capacity)
      return durable ? end : first;
    bits = atomic_load (&map->durable[first / 64]);
    if (!durable)
      bits = ~bits;
    bits &= ~UINT64_C (0) << first % 64;
    if (bits != 0)
      return MIN (first / 64 * 64 + (unsigned) __builtin_ctzll (bits), end);
    first = (first / 64 + 1) * 64;
  }
  return end;
}

static int
reserve_pages (OverlayMap *map, _Atomic uint64_t *there, size_t at,
               uint64_t first, uint64_t last)
{
  for (uint64_t page = first; page <= last; page++) {
    int err;

    if (get_page (there, page))
      continue;
    err = runtime_map_reserve (map->runtime, at + page * PAGE, PAGE);
    if (err < 0)
      return err;
    atomic_fetch_or (&there[page / 64], UINT64_C (1) << page % 64);
  }
  return 0;
}

int
overlay_map_reserve (OverlayMap *map, uint64_t block, uint64_t nr)
{
  if (nr > map->capacity || block > map->capacity - nr)
    return -ENOSPC;
  return reserve_pages (map, map->there, words_at (map->capacity),
                        block / PAGE_BLOCKS, (block + nr - 1) / PAGE_BLOCKS);
}

int
overlay_map_reserve_data (OverlayMap *map, uint64_t block, uint64_t nr)
{
  int err = overlay_map_reserve (map, block, nr);

  return err < 0 ? err
    : reserve_pages (map, map->sums_there, sums_at (map->capacity),
                     block / SUM_BLOCKS, (block + nr - 1) / SUM_BLOCKS);
}

void
overlay_map_note (OverlayMap *map, uint64_t block, const void *data,
                  uint64_t length, bool after)
{
  const char *p = data;

  for (uint64_t n; length > 0; length -= n, p += n, block++) {
    uint32_t sum;

    n = MIN (length, BLOCK);
    sum = crc32c (0, p, n);
    atomic_store (&map->sums[block * 2 + 1], sum);
    if (after)
      atomic_store (&map->sums[block * 2], sum);
  }
}

void
overlay_map_note_zero (OverlayMap *map, uint64_t block, uint64_t nr,
                       bool after)
{
  for (uint64_t b = block; b < block + nr; b++)
    if (get_page (map->sums_there, b / SUM_BLOCKS)) {
      atomic_store (&map->sums[b * 2 + 1], 0);
      if (after)                /* as of one that was always a hole */
        atomic_store (&map->sums[b * 2], 0);
    }
}

static void
set_changed_locked (OverlayMap *map, uint64_t sector)
{
  map->changed[sector / 64] |= UINT64_C (1) << sector % 64;
}

void
overlay_map_set (OverlayMap *map, uint64_t block, uint64_t nr)
{
  uint64_t end = block + nr, added = 0;

  pthread_mutex_lock (&map->set_lock);
  atomic_fetch_add (&map->set_count, 1);
  for (uint64_t b = block; b < end; ) {
    unsigned in_word = MIN (64 - b % 64, end - b);
    uint64_t mask = (in_word == 64 ? ~UINT64_C (0)
                     : (UINT64_C (1) << in_word) - 1) << b % 64;
    uint64_t had = atomic_fetch_or (&map->words[b / 64], mask);

    added += (unsigned) __builtin_popcountll (mask & ~had);
    b += in_word;
  }
  for (uint64_t s = block / SECTOR_BITS;
       added > 0 && s <= (end - 1) / SECTOR_BITS; s++)
    set_changed_locked (map, s);
  pthread_mutex_unlock (&map->set_lock);
  atomic_fetch_add (&map->nr_present, added);
}

uint64_t
overlay_map_count (const OverlayMap *map)
{
  return atomic_load (&map->nr_present);
}

bool
overlay_map_is_durable (const OverlayMap *map)
{
  uint64_t count = atomic_load (&map->set_count);

  return atomic_load (&map->durable_count) >= count;
}

/* --- sync */

/* What is to be written, copied before the data are synced. */
static GArray *
take_changed (OverlayMap *map)
{
  GArray *list = g_array_new (FALSE, FALSE, sizeof (struct sector));

  pthread_mutex_lock (&map->set_lock);
  for (uint64_t w = 0; w * 64 < map->nr_sectors; w++) {
    uint64_t bits = map->changed[w];

    map->changed[w] = 0;
    for (; bits != 0; bits &= bits - 1) {
      uint64_t index = w * 64 + (unsigned) __builtin_ctzll (bits);
      uint64_t words[SECTOR_WORDS];
      struct sector sector;

      for (unsigned i = 0; i < SECTOR_WORDS; i++) {
        uint64_t word = index * SECTOR_WORDS + i;

        words[i] = word * 64 < map->capacity ? word_at (map, word) : 0;
      }
      sector_fill (&sector, SECTOR_OVERLAY, index, map->tag, words);
      g_array_append_val (list, sector);
    }
  }
  pthread_mutex_unlock (&map->set_lock);
  return list;
}

static uint64_t
index_of (const struct sector *sector)
{
  return GUINT32_FROM_LE (sector->kind_index) & 0xffffff;
}

static bool
get_bit (const uint8_t *bits, uint64_t i)
{
  return bits[i / 8] >> i % 8 & 1;
}

static void
set_durable (OverlayMap *map, uint64_t word, uint64_t bits)
{
  if (bits != 0)
    atomic_fetch_or (&map->durable[word], bits);
}

static int
fill_chunks (OverlayMap *map, const GArray *list)
{
  static const char zeroes[CHUNK_BYTES];
  bool any = false;
  int err = 0;

  for (unsigned i = 0; err == 0 && i < list->len; i++) {
    uint64_t chunk = index_of (&g_array_index (list, struct sector, i)) * 2
      / CHUNK_SECTORS;

    if (get_bit (map->filled, chunk))
      continue;
    err = map->file->ops->pwrite (map->file, zeroes, CHUNK_BYTES,
                                  chunk * CHUNK_BYTES, false);
    if (err == 0)
      map->filled[chunk / 8] |= 1 << chunk % 8;
    any = true;
  }
  return err == 0 && any ? map->file->ops->sync (map->file) : err;
}

static int
write_sectors (OverlayMap *map, const GArray *list)
{
  int err = fill_chunks (map, list);

  for (unsigned i = 0; err == 0 && i < list->len; i++) {
    const struct sector *sector = &g_array_index (list, struct sector, i);
    uint64_t index = index_of (sector);
    uint64_t at = index * 2 + get_bit (map->slot, index);

    err = map->file->ops->pwrite (map->file, sector, SECTOR_BYTES,
                                  at * SECTOR_BYTES, false);
#ifndef BROKEN_OVERLAY_PAIR     /* see test-crash-controls.sh */
    map->slot[index / 8] ^= 1 << index % 8;
#endif
  }
  return err == 0 ? map->file->ops->sync (map->file) : err;
}

static int
sync_locked (OverlayMap *map)
{
  uint64_t count = atomic_load (&map->set_count);
  g_autoptr (GArray) list = NULL;
  int err;

  if (map->err < 0)
    return map->err;
  if (atomic_load (&map->durable_count) >= count)
    return map->data->ops->sync (map->data);
  list = take_changed (map);
#ifdef BROKEN_OVERLAY_SYNC      /* see test-crash-controls.sh */
  err = 0;
#else
  err = map->data->ops->sync (map->data);
#endif
  if (err == 0)
    err = write_sectors (map, list);
  for (unsigned i = 0; err == 0 && i < list->len; i++) {
    const struct sector *sector = &g_array_index (list, struct sector, i);

    for (unsigned w = 0; w < SECTOR_WORDS; w++)
      set_durable (map, index_of (sector) * SECTOR_WORDS + w,
                   GUINT64_FROM_LE (sector->words[w]));
  }
  if (err == 0)
    atomic_store (&map->durable_count, count);
  else
    map->err = err;
  return err;
}

int
overlay_map_sync (OverlayMap *map)
{
  int err;

  if (overlay_map_is_durable (map)) {
    err = map->data->ops->sync (map->data);
    if (err < 0) {
      pthread_mutex_lock (&map->lock);
      map->err = err;
      pthread_mutex_unlock (&map->lock);
    }
    return err;
  }
  pthread_mutex_lock (&map->lock);
  err = sync_locked (map);
  if (err < 0)
    map->err = err;
  pthread_mutex_unlock (&map->lock);
  return err;
}

/* --- create and open */

static OverlayMap *
map_new (const OverlayMapHome *home)
{
  OverlayMap *map = g_new0 (OverlayMap, 1);

  map->path = g_strdup (home->path);
  map->data = home->data;
  map->capacity = home->capacity;
  map->tag = home->tag;
  map->nr_sectors = sector_count (home->capacity);
  map->durable = g_new0 (_Atomic uint64_t, map->nr_sectors * SECTOR_WORDS);
  map->changed = g_new0 (uint64_t, map->nr_sectors / 64 + 1);
  map->slot = g_malloc0 (map->nr_sectors / 8 + 1);
  map->filled = g_malloc0 (map->nr_sectors * 2 / CHUNK_SECTORS / 8 + 1);
  pthread_mutex_init (&map->lock, NULL);
  pthread_mutex_init (&map->set_lock, NULL);
  return map;
}

void
overlay_map_free (OverlayMap *map, bool keep)
{
  if (map == NULL)
    return;
  if (keep)
    runtime_map_close (map->runtime);
  else
    runtime_map_remove (map->runtime);
  if (map->file != NULL)
    map->file->ops->close (map->file);
  pthread_mutex_destroy (&map->lock);
  pthread_mutex_destroy (&map->set_lock);
  g_free (map->filled);
  g_free (map->slot);
  g_free (map->changed);
  g_free (map->durable);
  g_free (map->path);
  g_free (map);
}

static void
set_parts (OverlayMap *map)
{
  char *p = runtime_map_data (map->runtime);

  map->there = (void *) p;
  map->sums_there = (void *) (p + head_bytes (map->capacity));
  map->words = (void *) (p + words_at (map->capacity));
  map->sums = (void *) (p + sums_at (map->capacity));
}

static bool
make_runtime (OverlayMap *map, const OverlayMapHome *home, GError **error)
{
  map->runtime = runtime_map_create (home->rt, home->name,
                                     all_bytes (map->capacity), home->nonce,
                                     false, error);
  if (map->runtime == NULL)
    return false;
  if (runtime_map_reserve (map->runtime, 0, words_at (map->capacity)) < 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NO_MEMORY,
                 "no memory for the block map '%s'", home->path);
    return false;
  }
  set_parts (map);
  return true;
}

static bool
io_error (const OverlayMap *map, const char *what, int err, GError **error)
{
  g_set_error (error, BITMAP_ERROR,
               err == -EEXIST ? BITMAP_ERROR_EXISTS
               : err == -ENOENT ? BITMAP_ERROR_NOT_FOUND : BITMAP_ERROR_IO,
               "cannot %s block map '%s': %s", what, map->path,
               g_strerror (-err));
  return false;
}

/* Room for all pairs, whole chunks. */
static uint64_t
file_bytes (const OverlayMap *map)
{
  return (map->nr_sectors * 2 + CHUNK_SECTORS - 1) / CHUNK_SECTORS
    * CHUNK_BYTES;
}

OverlayMap *
overlay_map_create (const OverlayMapHome *home, GError **error)
{
  OverlayMap *map = map_new (home);
  int err = home->storage->ops->open (home->storage, home->path,
                                      STORAGE_CREATE, file_bytes (map),
                                      &map->file);

  if (err == 0)
    err = map->file->ops->sync (map->file);
  if (err == 0 && make_runtime (map, home, error))
    return map;
  if (err < 0)
    io_error (map, "create", err, error);
  if (map->file != NULL)
    home->storage->ops->remove (home->storage, home->path);
  overlay_map_free (map, false);
  return NULL;
}

enum slot_state { EMPTY, GOOD, BAD };

static enum slot_state
look_at (const OverlayMap *map, const struct sector *s, uint64_t index)
{
  static const struct sector zero;

  if (GUINT32_FROM_LE (s->crc) == crc32c (0, &s->kind_index,
                                          SECTOR_BYTES - sizeof s->crc) &&
      GUINT32_FROM_LE (s->kind_index) ==
      ((uint32_t) SECTOR_OVERLAY << 24 | (uint32_t) index) &&
      GUINT64_FROM_LE (s->tag) == map->tag)
    return GOOD;
  return memcmp (s, &zero, sizeof zero) == 0 ? EMPTY : BAD;
}

/* One pair: its words, and which of them is to be written next.  -EBADMSG: none
 * of them can be told. */
static int
read_pair (OverlayMap *map, const struct sector *pair, uint64_t index,
           uint64_t words[SECTOR_WORDS])
{
  enum slot_state a = look_at (map, &pair[0], index);
  enum slot_state b = look_at (map, &pair[1], index);
  bool b_has_more = false;

  if (a == BAD && b == BAD)
    return -EBADMSG;
  for (unsigned i = 0; i < SECTOR_WORDS; i++) {
    uint64_t wa = a == GOOD ? GUINT64_FROM_LE (pair[0].words[i]) : 0;
    uint64_t wb = b == GOOD ? GUINT64_FROM_LE (pair[1].words[i]) : 0;

    words[i] = wa | wb;
    b_has_more |= (wb & ~wa) != 0;
  }
  /* Not the one that has what was durable. */
  if (a == GOOD && (b != GOOD || !b_has_more))
    map->slot[index / 8] |= 1 << index % 8;
  return 0;
}

/* Into the words, what the file says; known: compare with them instead, and
 * note what differs as changed. */
static int
read_chunk (OverlayMap *map, uint64_t chunk, bool known)
{
  g_autofree struct sector *buf = g_malloc (CHUNK_BYTES);
  uint64_t first = chunk * CHUNK_SECTORS / 2;
  int err = map->file->ops->pread (map->file, buf, CHUNK_BYTES,
                                   chunk * CHUNK_BYTES);

  for (uint64_t i = 0; err == 0 && i < CHUNK_SECTORS / 2 &&
       first + i < map->nr_sectors; i++) {
    uint64_t words[SECTOR_WORDS];
    bool differs = false;

    err = read_pair (map, buf + i * 2, first + i, words);
    for (unsigned w = 0; err == 0 && w < SECTOR_WORDS; w++) {
      uint64_t word = (first + i) * SECTOR_WORDS + w;

      if (word * 64 >= map->capacity)
        break;
      set_durable (map, word, words[w]);
      if (known)
        differs |= word_at (map, word) != words[w];
      else if (words[w] != 0) {
        err = overlay_map_reserve (map, word * 64, 1);
        if (err == 0)
          atomic_store (&map->words[word], words[w]);
      }
    }
    if (differs)
      set_changed_locked (map, first + i);
  }
  map->filled[chunk / 8] |= 1 << chunk % 8;
  return err;
}

static int
read_file (OverlayMap *map, bool known)
{
  uint64_t bytes = file_bytes (map);
  int err = map->file->size < bytes ? -EBADMSG : 0;

  for (uint64_t at = 0; err == 0 && at < bytes; ) {
    uint64_t run;
    bool hole;

    err = map->file->ops->run (map->file, at, bytes - at, &run, &hole);
    /* A chunk that is partly a hole is read. */
    if (err == 0 && hole && at % CHUNK_BYTES == 0 && run >= CHUNK_BYTES) {
      uint64_t chunks = run / CHUNK_BYTES;

      if (known)
        for (uint64_t s = at / SECTOR_BYTES / 2;
             s < MIN ((at / CHUNK_BYTES + chunks) * CHUNK_SECTORS / 2,
                      map->nr_sectors); s++)
          if (overlay_map_next (map, s * SECTOR_BITS, (s + 1) * SECTOR_BITS,
                                true) < (s + 1) * SECTOR_BITS)
            set_changed_locked (map, s);
      at += chunks * CHUNK_BYTES;
      continue;
    }
    if (err == 0)
      err = read_chunk (map, at / CHUNK_BYTES, known);
    at += CHUNK_BYTES;
  }
  return err;
}

/* Is the block what was noted of it? */
static int
verify_block (OverlayMap *map, uint64_t block, uint64_t size, bool *out_good)
{
  uint32_t has = atomic_load (&map->sums[block * 2]);
  uint32_t may = atomic_load (&map->sums[block * 2 + 1]);
  uint64_t at = block * BLOCK, n;
  char buf[BLOCK];
  uint32_t sum;
  int err;

  *out_good = true;
#ifdef BROKEN_OVERLAY_SUM       /* see test-crash-controls.sh */
  return 0;
#endif
  if (has == 0 || at >= size)
    return 0;
  n = MIN (BLOCK, size - at);
  err = map->data->ops->pread (map->data, buf, n, at);
  if (err < 0)
    return err;
  sum = crc32c (0, buf, n);
  /* may: 0: it was being zeroed. */
  *out_good = sum == has || sum == may ||
    (may == 0 && isal_zero_detect (buf, n) == 0);
  return 0;
}

int
overlay_map_verify (OverlayMap *map, uint64_t size, uint64_t *out_dropped)
{
  uint64_t nr = (size + BLOCK - 1) / BLOCK, block = 0;
  int err = 0;

  *out_dropped = 0;
  while (err == 0 && (block = overlay_map_next (map, block, nr, true)) < nr) {
    uint64_t stop = overlay_map_next_durable (map, block, block + 1, false);
    bool good = true;

    if (stop > block) {         /* durable: as many as are */
      block = overlay_map_next_durable (map, block, nr, false);
      continue;
    }
    if (get_page (map->sums_there, block / SUM_BLOCKS))
      err = verify_block (map, block, size, &good);
    if (!good) {
      atomic_fetch_and (&map->words[block / 64],
                        ~(UINT64_C (1) << block % 64));
      atomic_fetch_sub (&map->nr_present, 1);
      ++*out_dropped;
    }
    block++;
  }
  return err;
}

static void
count_present (OverlayMap *map)
{
  uint64_t nr = 0;

  for (uint64_t page = 0; page * PAGE_BLOCKS < map->capacity; page++)
    for (unsigned i = 0; is_there (map, page) && i < PAGE / 8; i++)
      nr += (unsigned) __builtin_popcountll
        (atomic_load (&map->words[page * (PAGE / 8) + i]));
  atomic_store (&map->nr_present, nr);
}

OverlayMap *
overlay_map_open (const OverlayMapHome *home, const uint8_t *old_nonce,
                  bool *out_new, GError **error)
{
  OverlayMap *map = map_new (home);
  int err = home->storage->ops->open (home->storage, home->path, 0, 0,
                                      &map->file);

  *out_new = false;
  if (err == 0 && old_nonce != NULL)
    map->runtime = runtime_map_open (home->rt, home->name,
                                     all_bytes (map->capacity), old_nonce,
                                     NULL);
  if (map->runtime != NULL)
    set_parts (map);
  else if (err == 0) {
    *out_new = true;
    if (!make_runtime (map, home, error)) {
      overlay_map_free (map, false);
      return NULL;
    }
  }
  if (err == 0)
    err = read_file (map, !*out_new);
  if (err == 0) {
    count_present (map);
    /* What was set and not known to be durable is written at the next sync. */
    if (!*out_new)
      atomic_store (&map->set_count, 1);
    return map;
  }
  if (err == -EBADMSG)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_CORRUPT,
                 "block map '%s' is damaged", map->path);
  else
    io_error (map, "read", err, error);
  overlay_map_free (map, !*out_new);
  return NULL;
}
