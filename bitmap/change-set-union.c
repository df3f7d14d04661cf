/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* change-set-union.c - the OR of change sets of one disk, whose size and
 * granularity may have changed between them.
 *
 * CRoaring's "lazy" OR keeps no cardinalities, so that adding an array to a
 * bitset costs one bit operation a value; they are counted once at the end.
 */
#include "config.h"

#include <string.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/change-set-private.h"
#include "bitmap/granule.h"

struct ChangeSetUnion {
  uint64_t disk_size;           /* of the result, bytes */
  uint32_t granularity;         /* of the result, bytes */
  roaring_bitmap_t *acc;        /* lazy; NULL before the first add */
  bool lazy;                    /* acc needs roaring_bitmap_repair_after_lazy */
};

static bool
no_memory (GError **error)
{
  g_set_error_literal (error, BITMAP_ERROR, BITMAP_ERROR_NO_MEMORY,
                       "no memory to merge change sets");
  return false;
}

ChangeSetUnion *
change_set_union_new (uint64_t disk_size, uint32_t granularity, GError **error)
{
  uint32_t fit = granule_fit (disk_size, granularity);
  ChangeSetUnion *u;

  /* A disk that has grown may be too large for the granularity of its old
   * epochs.  Coarser is legal: it says more, never less. */
  if (!granule_check (disk_size, fit != 0 ? fit : granularity, error))
    return NULL;
  u = g_new0 (ChangeSetUnion, 1);
  u->disk_size = disk_size;
  u->granularity = fit;
  return u;
}

void
change_set_union_free (ChangeSetUnion *u)
{
  if (u == NULL)
    return;
  if (u->acc != NULL)
    roaring_bitmap_free (u->acc);
  g_free (u);
}

/* Sets bits [first, end) of a chunk. */
static void
chunk_set_range (uint64_t words[CHUNK_WORDS], uint32_t first, uint32_t end)
{
  uint32_t w = first / 64, w_last = (end - 1) / 64;
  uint64_t mask = ~UINT64_C (0) << (first % 64);
  uint64_t mask_last = ~UINT64_C (0) >> (63 - (end - 1) % 64);

  if (w == w_last) {
    words[w] |= mask & mask_last;
    return;
  }
  words[w] |= mask;
  for (w++; w < w_last; w++)
    words[w] = ~UINT64_C (0);
  words[w] |= mask_last;
}

/* ORs what set says of bytes [start, end) into the chunk that covers them. */
static void
chunk_fill (const ChangeSet *set, uint64_t start, uint64_t end, unsigned shift,
            uint64_t words[CHUNK_WORDS])
{
  uint64_t size = MIN (change_set_size (set), end), offset = start;

  while (offset < size) {
    bool dirty;
    uint64_t length = change_set_run (set, offset, size - offset, &dirty);

    if (dirty)
      chunk_set_range (words, (uint32_t) ((offset - start) >> shift),
                       (uint32_t) ((offset + length - 1 - start) >> shift) + 1);
    offset += length;
  }
  /* The resize rule: what came into being by growing is dirty. */
  offset = MAX (offset, start);
  if (offset < end)
    chunk_set_range (words, (uint32_t) ((offset - start) >> shift),
                     (uint32_t) ((end - 1 - start) >> shift) + 1);
}

/* set, in the geometry of u. */
static roaring_bitmap_t *
rescale (const ChangeSetUnion *u, const ChangeSet *set, GError **error)
{
  unsigned shift = granule_shift (u->granularity);
  uint64_t span = (uint64_t) CHUNK_BITS << shift, start = 0;
  g_autoptr (ChunkWriter) writer = chunk_writer_new ();

  while (start < u->disk_size) {
    uint64_t words[CHUNK_WORDS];
    uint64_t end = start + MIN (span, u->disk_size - start);
    bool dirty = true;

    /* Skip what is clean in one step, in whole chunks. */
    if (start < change_set_size (set)) {
      uint64_t clean = change_set_run (set, start, UINT64_MAX, &dirty);

      if (!dirty && clean >= span) {
        start += clean / span * span;
        continue;
      }
      if (!dirty && start + clean == u->disk_size)
        break;
    }
    memset (words, 0, sizeof words);
    chunk_fill (set, start, end, shift, words);
    if (!chunk_writer_add (writer, (uint16_t) (start / span), words, error))
      return NULL;
    start = end;
  }
  return chunk_writer_finish (writer, error);
}

static bool
add_roaring (ChangeSetUnion *u, const roaring_bitmap_t *r, GError **error)
{
  if (u->acc == NULL) {
    u->acc = roaring_bitmap_copy (r);
    return u->acc != NULL || no_memory (error);
  }
  /* true: chunks that both have become bitsets, for the many adds to come. */
  roaring_bitmap_lazy_or_inplace (u->acc, r, true);
  u->lazy = true;
  return true;
}

bool
change_set_union_add (ChangeSetUnion *u, const ChangeSet *set, GError **error)
{
  roaring_bitmap_t *r;
  bool ok;

  if (change_set_size (set) == u->disk_size &&
      change_set_granularity (set) == u->granularity)
    return add_roaring (u, change_set_roaring (set), error);

  r = rescale (u, set, error);
  if (r == NULL)
    return false;
  ok = add_roaring (u, r, error);
  roaring_bitmap_free (r);
  return ok;
}

ChangeSet *
change_set_union_finish (ChangeSetUnion *u, GError **error)
{
  roaring_bitmap_t *r = u->acc;

  if (r == NULL)
    return change_set_new_empty (u->disk_size, u->granularity, error);
  u->acc = NULL;
  if (u->lazy)
    roaring_bitmap_repair_after_lazy (r);
  roaring_bitmap_run_optimize (r);
  return change_set_take (u->disk_size, u->granularity, r);
}

ChangeSet *
change_set_or (ChangeSet *const *sets, size_t nr, uint64_t disk_size,
               uint32_t granularity, GError **error)
{
  g_autoptr (ChangeSetUnion) u = NULL;
  uint32_t finest = granularity;

  for (size_t i = 0; i < nr; i++)
    if (i == 0 || change_set_granularity (sets[i]) < finest)
      finest = change_set_granularity (sets[i]);
  u = change_set_union_new (disk_size, finest, error);
  if (u == NULL)
    return NULL;
  for (size_t i = 0; i < nr; i++)
    if (!change_set_union_add (u, sets[i], error))
      return NULL;
  return change_set_union_finish (u, error);
}
