/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* chunk-writer.c - flat words to a Roaring bitmap.
 *
 * roaring_bitmap_add_range costs a search and often a conversion a run, which
 * is seconds for a disk of scattered writes; this is one pass.
 */
#include "config.h"

#include <endian.h>
#include <string.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/chunk.h"

struct ChunkWriter {
  /* One entry a chunk written. */
  uint32_t nr;
  uint16_t keys[CHUNK_BITS];
  uint16_t last[CHUNK_BITS];            /* cardinality - 1 */
  uint32_t start[CHUNK_BITS];           /* in body; < 2^16 * 8 KiB = 2^29 */
  uint8_t is_run[CHUNK_BITS / 8];       /* bit field, as in the format */
  bool any_run;

  uint8_t *body;
  size_t body_length, body_size;        /* used, allocated */
};

ChunkWriter *
chunk_writer_new (void)
{
  /* g_new0 of 0.5 MiB: calloc maps it, so what is not used costs nothing. */
  return g_new0 (ChunkWriter, 1);
}

void
chunk_writer_free (ChunkWriter *writer)
{
  if (writer == NULL)
    return;
  g_free (writer->body);
  g_free (writer);
}

static bool
no_memory (size_t bytes, GError **error)
{
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NO_MEMORY,
               "cannot allocate %zu bytes for a change set", bytes);
  return false;
}

/* Room for length more bytes, which the caller fills. */
static uint8_t *
body_extend (ChunkWriter *writer, size_t length, GError **error)
{
  if (writer->body_size - writer->body_length < length) {
    size_t size = MAX (writer->body_size * 2, 16 * CHUNK_BYTES);
    uint8_t *body = g_try_realloc (writer->body, size);

    if (body == NULL) {
      no_memory (size, error);
      return NULL;
    }
    writer->body = body;
    writer->body_size = size;
  }
  writer->body_length += length;
  return writer->body + writer->body_length - length;
}

static void
put_le16 (uint8_t *p, uint32_t value)
{
  p[0] = (uint8_t) value;
  p[1] = (uint8_t) (value >> 8);
}

static void
put_le32 (uint8_t *p, uint32_t value)
{
  put_le16 (p, value & 0xffff);
  put_le16 (p + 2, value >> 16);
}

static void
write_array (uint8_t *p, const uint64_t words[CHUNK_WORDS])
{
  for (uint32_t w = 0; w < CHUNK_WORDS; w++)
    for (uint64_t bits = words[w]; bits != 0; bits &= bits - 1) {
      put_le16 (p, w * 64 + (uint32_t) __builtin_ctzll (bits));
      p += 2;
    }
}

/* Bits where a run starts, and where one has just ended (its last bit).
 * before, after: the bits next to the word. */
static inline uint64_t
run_starts (uint64_t word, uint64_t before)
{
  return word & ~(word << 1 | before >> 63);
}

static inline uint64_t
run_ends (uint64_t word, uint64_t after)
{
  return word & ~(word >> 1 | after << 63);
}

static void
write_runs (uint8_t *p, const uint64_t words[CHUNK_WORDS], uint32_t nr_runs)
{
  uint8_t *start = p + 2, *end = p + 2;

  put_le16 (p, nr_runs);
  for (uint32_t w = 0; w < CHUNK_WORDS; w++) {
    uint64_t before = w > 0 ? words[w - 1] : 0;
    uint64_t after = w + 1 < CHUNK_WORDS ? words[w + 1] : 0;
    uint64_t bits;

    for (bits = run_starts (words[w], before); bits != 0; bits &= bits - 1) {
      put_le16 (start, w * 64 + (uint32_t) __builtin_ctzll (bits));
      start += 4;
    }
    for (bits = run_ends (words[w], after); bits != 0; bits &= bits - 1) {
      uint32_t value = w * 64 + (uint32_t) __builtin_ctzll (bits);
      uint32_t first = (uint32_t) end[0] | (uint32_t) end[1] << 8;

      put_le16 (end + 2, value - first);
      end += 4;
    }
  }
}

static void
write_bitset (uint8_t *p, const uint64_t words[CHUNK_WORDS])
{
  for (uint32_t w = 0; w < CHUNK_WORDS; w++) {
    uint64_t le = htole64 (words[w]);

    memcpy (p + w * 8, &le, 8);
  }
}

bool
chunk_writer_add (ChunkWriter *writer, uint16_t key,
                  const uint64_t words[CHUNK_WORDS], GError **error)
{
  uint32_t count = 0, nr_runs = 0, i = writer->nr;
  size_t run_bytes, plain_bytes;
  uint64_t before = 0;
  uint8_t *p;

  for (uint32_t w = 0; w < CHUNK_WORDS; w++) {
    count += (uint32_t) __builtin_popcountll (words[w]);
    nr_runs += (uint32_t) __builtin_popcountll (run_starts (words[w], before));
    before = words[w];
  }
  if (count == 0)
    return true;

  run_bytes = 2 + 4 * (size_t) nr_runs;
  plain_bytes = count <= PORTABLE_ARRAY_MAX ? 2 * (size_t) count : CHUNK_BYTES;
  p = body_extend (writer, MIN (run_bytes, plain_bytes), error);
  if (p == NULL)
    return false;

  if (run_bytes < plain_bytes) {
    write_runs (p, words, nr_runs);
    writer->is_run[i / 8] |= (uint8_t) (1u << (i % 8));
    writer->any_run = true;
  }
  else if (count <= PORTABLE_ARRAY_MAX)
    write_array (p, words);
  else
    write_bitset (p, words);
  writer->keys[i] = key;
  writer->last[i] = (uint16_t) (count - 1);
  writer->start[i] = (uint32_t) (p - writer->body);
  writer->nr++;
  return true;
}

roaring_bitmap_t *
chunk_writer_finish (ChunkWriter *writer, GError **error)
{
  bool offsets = !writer->any_run || writer->nr >= PORTABLE_NO_OFFSETS_BELOW;
  uint32_t nr = writer->nr;
  size_t head = writer->any_run ? 4 + (nr + 7) / 8 : 8;
  g_autofree uint8_t *buf = NULL;
  roaring_bitmap_t *r;
  size_t length;
  uint8_t *p;

  if (nr == 0) {
    r = roaring_bitmap_create ();
    if (r == NULL)
      no_memory (sizeof *r, error);
    return r;
  }

  head += 4 * (size_t) nr + (offsets ? 4 * (size_t) nr : 0);
  length = head + writer->body_length;
  buf = p = g_try_malloc (length);
  if (buf == NULL) {
    no_memory (length, error);
    return NULL;
  }
  if (writer->any_run) {
    put_le32 (p, PORTABLE_COOKIE_RUN | (nr - 1) << 16);
    memcpy (p + 4, writer->is_run, (nr + 7) / 8);
    p += 4 + (nr + 7) / 8;
  }
  else {
    put_le32 (p, PORTABLE_COOKIE_NO_RUN);
    put_le32 (p + 4, nr);
    p += 8;
  }
  for (uint32_t i = 0; i < nr; i++, p += 4) {
    put_le16 (p, writer->keys[i]);
    put_le16 (p + 2, writer->last[i]);
  }
  if (offsets)
    for (uint32_t i = 0; i < nr; i++, p += 4)
      put_le32 (p, (uint32_t) head + writer->start[i]);
  memcpy (p, writer->body, writer->body_length);

  r = roaring_bitmap_portable_deserialize_safe ((const char *) buf, length);
  if (r == NULL)
    no_memory (length, error);
  return r;
}
