/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/change-set-private.h"
#include "bitmap/chunk.h"
#include "bitmap/dirty-bitmap.h"
#include "bitmap/granule.h"

/* All accesses to words are relaxed: whoever must see a bit is ordered after
 * its writer by other means (a drained request, a fence after the marking, a
 * mutex).  Bits past the last granule are never set. */
struct DirtyBitmap {
  /* Set in new, never changed. */
  uint64_t disk_size;           /* bytes */
  uint64_t nr_granules;
  uint32_t granularity;         /* bytes */
  unsigned shift;               /* log2 (granularity) */
  size_t map_length;            /* bytes at words */
  bool borrowed;                /* words are the caller's */

  /* Atomic; a whole number of chunks, so that they can be scanned by chunk. */
  _Atomic uint64_t *words;
};

size_t
dirty_bitmap_bytes (uint64_t disk_size, uint32_t granularity)
{
  uint64_t nr = granule_count (disk_size, granularity);

  return (size_t) ((nr + CHUNK_BITS - 1) / CHUNK_BITS) * CHUNK_BYTES;
}

DirtyBitmap *
dirty_bitmap_new_at (uint64_t disk_size, uint32_t granularity, void *memory,
                     GError **error)
{
  DirtyBitmap *bm;

  if (!granule_check (disk_size, granularity, error))
    return NULL;

  bm = g_new0 (DirtyBitmap, 1);
  bm->disk_size = disk_size;
  bm->granularity = granularity;
  bm->shift = granule_shift (granularity);
  bm->nr_granules = granule_count (disk_size, granularity);
  bm->map_length = dirty_bitmap_bytes (disk_size, granularity);
  bm->words = memory;
  bm->borrowed = true;
  return bm;
}

DirtyBitmap *
dirty_bitmap_new (uint64_t disk_size, uint32_t granularity, GError **error)
{
  DirtyBitmap *bm = dirty_bitmap_new_at (disk_size, granularity, NULL, error);
  void *map;

  if (bm == NULL)
    return NULL;
  bm->borrowed = false;
  if (bm->map_length == 0)
    return bm;

  map = mmap (NULL, bm->map_length, PROT_READ | PROT_WRITE,
              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NO_MEMORY,
                 "cannot map %zu bytes for a dirty bitmap: %s",
                 bm->map_length, g_strerror (errno));
    g_free (bm);
    return NULL;
  }
  bm->words = map;
  return bm;
}

void
dirty_bitmap_free (DirtyBitmap *bm)
{
  if (bm == NULL)
    return;
  if (bm->map_length > 0 && !bm->borrowed)
    munmap ((void *) bm->words, bm->map_length);
  g_free (bm);
}

/* The load first: most writes hit granules that are dirty already, and a
 * locked OR would take the cache line away from the other writers. */
static inline void
set_bits (_Atomic uint64_t *word, uint64_t mask)
{
  if ((atomic_load_explicit (word, memory_order_relaxed) & mask) != mask)
    atomic_fetch_or_explicit (word, mask, memory_order_relaxed);
}

void
dirty_bitmap_set (DirtyBitmap *bm, uint64_t offset, uint64_t length)
{
  uint64_t first, last, w, w_last, mask, mask_last;

  if (length == 0 || offset >= bm->disk_size)
    return;
  length = MIN (length, bm->disk_size - offset);
  first = offset >> bm->shift;
  last = (offset + length - 1) >> bm->shift;

  w = first / 64;
  w_last = last / 64;
  mask = ~UINT64_C (0) << (first % 64);
  mask_last = ~UINT64_C (0) >> (63 - last % 64);
  if (w == w_last) {
    set_bits (&bm->words[w], mask & mask_last);
    return;
  }
  set_bits (&bm->words[w], mask);
  /* Storing all ones is an OR that needs no lock prefix. */
  for (w++; w < w_last; w++)
    if (atomic_load_explicit (&bm->words[w], memory_order_relaxed)
        != ~UINT64_C (0))
      atomic_store_explicit (&bm->words[w], ~UINT64_C (0),
                             memory_order_relaxed);
  set_bits (&bm->words[w], mask_last);
}

void
dirty_bitmap_get_words (const DirtyBitmap *bm, uint64_t first,
                        uint64_t *words, size_t nr)
{
  size_t have = bm->map_length / sizeof (uint64_t);

  for (size_t i = 0; i < nr; i++)
    words[i] = first + i < have
      ? atomic_load_explicit (&bm->words[first + i], memory_order_relaxed) : 0;
}

void
dirty_bitmap_or_words (DirtyBitmap *bm, uint64_t first,
                       const uint64_t *words, size_t nr)
{
  uint64_t last = bm->nr_granules / 64;         /* may be a part of a word */

  for (size_t i = 0; i < nr && first + i <= last; i++) {
    uint64_t mask = first + i < last ? ~UINT64_C (0)
      : (UINT64_C (1) << (bm->nr_granules % 64)) - 1;

    if ((words[i] & mask) != 0)
      set_bits (&bm->words[first + i], words[i] & mask);
  }
}

bool
dirty_bitmap_get (const DirtyBitmap *bm, uint64_t offset)
{
  uint64_t g = offset >> bm->shift;

  assert (offset < bm->disk_size);
  return (atomic_load_explicit (&bm->words[g / 64], memory_order_relaxed)
          >> (g % 64)) & 1;
}

uint64_t
dirty_bitmap_size (const DirtyBitmap *bm)
{
  return bm->disk_size;
}

uint32_t
dirty_bitmap_granularity (const DirtyBitmap *bm)
{
  return bm->granularity;
}

uint64_t
dirty_bitmap_count (const DirtyBitmap *bm)
{
  size_t nr_words = bm->map_length / sizeof (uint64_t);
  uint64_t count = 0;

  for (size_t w = 0; w < nr_words; w++)
    count += (uint64_t) __builtin_popcountll (
      atomic_load_explicit (&bm->words[w], memory_order_relaxed));
  return count;
}

ChangeSet *
dirty_bitmap_to_change_set (const DirtyBitmap *bm, GError **error)
{
  size_t nr_chunks = bm->map_length / CHUNK_BYTES;
  g_autoptr (ChunkWriter) writer = chunk_writer_new ();

  for (size_t c = 0; c < nr_chunks; c++) {
    const _Atomic uint64_t *words = bm->words + c * CHUNK_WORDS;
    /* A copy, since the writer looks at the words more than once and they may
     * change under it. */
    uint64_t copy[CHUNK_WORDS];
    uint64_t any = 0;

    for (size_t w = 0; w < CHUNK_WORDS; w++) {
      copy[w] = atomic_load_explicit (&words[w], memory_order_relaxed);
      any |= copy[w];
    }
    if (any != 0 && !chunk_writer_add (writer, (uint16_t) c, copy, error))
      return NULL;
  }
  return change_set_from_chunks (bm->disk_size, bm->granularity, writer, error);
}
