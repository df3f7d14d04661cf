/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* chunk.h - the parts of Roaring that its library does not offer: making a
 * bitmap from flat words at memory speed, walking its runs, and checking a
 * stored one before it is trusted.  Private to bitmap/.
 *
 * Roaring cuts 32-bit values into chunks of 2^16; a chunk's key is the upper
 * half of its values.  Bitmaps are made by writing the portable format (public
 * and stable: https://github.com/RoaringBitmap/RoaringFormatSpec) and loading
 * it.  Runs are walked by reading containers through CRoaring's installed
 * headers; only chunk-run.c depends on their layout.
 */
#ifndef CHUNK_H
#define CHUNK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <glib.h>
#include <roaring/roaring.h>

#define CHUNK_BITS  65536u
#define CHUNK_WORDS (CHUNK_BITS / 64)
#define CHUNK_BYTES (CHUNK_BITS / 8)

typedef struct ChunkWriter ChunkWriter;

ChunkWriter *chunk_writer_new (void);
void chunk_writer_free (ChunkWriter *writer);   /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (ChunkWriter, chunk_writer_free)

/* Adds the chunk of this key, keys ascending; words are little-bit-first and
 * may be all zero.  Picks the smallest form.  NO_MEMORY. */
bool chunk_writer_add (ChunkWriter *writer, uint16_t key,
                       const uint64_t words[CHUNK_WORDS], GError **error);
/* The bitmap of all chunks added; call once.  NO_MEMORY. */
roaring_bitmap_t *chunk_writer_finish (ChunkWriter *writer, GError **error);

/* The end (exclusive) of the run of equal bits that contains value v, at most
 * max (v < max <= 2^32); *out_set: what the bits are. */
uint64_t chunk_run_end (const roaring_bitmap_t *r, uint32_t v, uint64_t max,
                        bool *out_set);

/* Are these bytes one whole bitmap in the portable format, in every detail
 * that CRoaring takes for granted: order, disjoint runs, cardinalities, no
 * value >= nr_values and nothing behind it?  *out_count: its values.
 * CORRUPT, naming what is wrong. */
bool chunk_check (const uint8_t *data, size_t length, uint64_t nr_values,
                  uint64_t *out_count, GError **error);

/* The portable format's constants. */
enum {
  PORTABLE_COOKIE_NO_RUN = 12346,
  PORTABLE_COOKIE_RUN = 12347,
  PORTABLE_NO_OFFSETS_BELOW = 4,        /* with runs, fewer: no offsets */
  PORTABLE_ARRAY_MAX = 4096,            /* values; above it is a bitset */
};

#endif
