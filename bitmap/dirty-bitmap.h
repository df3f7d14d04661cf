/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* dirty-bitmap.h - which granules of one disk were written during one epoch.
 *
 * Bit N covers bytes [N * granularity, (N + 1) * granularity) of the disk; the
 * last granule may be short.  A set bit means "may have changed": a bitmap may
 * say too much, never too little.  Flat and mapped lazily: an untouched 1 TiB
 * disk costs address space only.
 *
 * Locking: none.  dirty_bitmap_set may run in any number of threads at once;
 * readers see at least the bits whose set happened before (C11) the read.
 */
#ifndef DIRTY_BITMAP_H
#define DIRTY_BITMAP_H

#include <stdbool.h>
#include <stdint.h>
#include <glib.h>
#include "bitmap/change-set.h"

typedef struct DirtyBitmap DirtyBitmap;

/* Recording never goes finer than this: finer values are rounded up. */
#define GRANULARITY_MIN   4096u
#define GRANULARITY_DEFAULT 65536u
#define GRANULARITY_MAX   (1u << 20)

/* All clear.  disk_size: bytes, any value up to 2^63 - 1 (0 is legal).
 * granularity: bytes, a power of 2 in GRANULARITY_MIN .. GRANULARITY_MAX, and
 * disk_size / granularity at most 2^32 granules (H16: Roaring's keys).
 * NULL on a bad argument (INVALID) or no memory (NO_MEMORY). */
DirtyBitmap *dirty_bitmap_new (uint64_t disk_size, uint32_t granularity,
                               GError **error);
void dirty_bitmap_free (DirtyBitmap *bm);       /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (DirtyBitmap, dirty_bitmap_free)

/* The same in memory of the caller's that outlives it: zeroes, page-aligned,
 * dirty_bitmap_bytes of it. */
DirtyBitmap *dirty_bitmap_new_at (uint64_t disk_size, uint32_t granularity,
                                  void *memory, GError **error);
size_t dirty_bitmap_bytes (uint64_t disk_size, uint32_t granularity);

/* 64 granules a word, the first in the lowest bit.  get: a copy; words past the
 * end are 0.  or: what lies past the end is ignored. */
void dirty_bitmap_get_words (const DirtyBitmap *bm, uint64_t first,
                             uint64_t *words, size_t nr);
void dirty_bitmap_or_words (DirtyBitmap *bm, uint64_t first,
                            const uint64_t *words, size_t nr);

/* Mark all granules that bytes [offset, offset + length) touch; the part past
 * the end of the disk is ignored; length 0 marks nothing.  Wait-free: one load
 * where the bits are already set, else one atomic OR a word. */
void dirty_bitmap_set (DirtyBitmap *bm, uint64_t offset, uint64_t length);

bool dirty_bitmap_get (const DirtyBitmap *bm, uint64_t offset);
uint64_t dirty_bitmap_size (const DirtyBitmap *bm);           /* disk bytes */
uint32_t dirty_bitmap_granularity (const DirtyBitmap *bm);    /* bytes */
uint64_t dirty_bitmap_count (const DirtyBitmap *bm);          /* set granules */

/* An immutable copy as of now.  NULL: no memory. */
ChangeSet *dirty_bitmap_to_change_set (const DirtyBitmap *bm, GError **error);

#endif
