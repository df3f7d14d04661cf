/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* chunk-check.c - is a stored bitmap what it says?
 *
 * CRoaring 0.2.66 checks only that it does not read past the buffer: a run
 * beyond 65535 or an unsorted array loads and makes later operations write out
 * of bounds or lose values.
 */
#include "config.h"

#include <string.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/chunk.h"

typedef struct {
  const uint8_t *p;
  size_t left;
} Cursor;

/* NULL: fewer than length bytes are left. */
static const uint8_t *
take (Cursor *cur, size_t length)
{
  const uint8_t *p = cur->p;

  if (cur->left < length)
    return NULL;
  cur->p += length;
  cur->left -= length;
  return p;
}

static uint32_t
le16 (const uint8_t *p)
{
  return (uint32_t) p[0] | (uint32_t) p[1] << 8;
}

static uint32_t
le32 (const uint8_t *p)
{
  return le16 (p) | le16 (p + 2) << 16;
}

static bool
corrupt (const char *what, GError **error)
{
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_CORRUPT,
               "stored change set: %s", what);
  return false;
}

/* Each takes one container of count values and gives the last one. */
static bool
check_runs (Cursor *cur, uint32_t count, uint32_t *out_last, GError **error)
{
  const uint8_t *p = take (cur, 2);
  uint32_t nr_runs, total = 0, next = 0;

  if (p == NULL)
    return corrupt ("cut short", error);
  nr_runs = le16 (p);
  p = take (cur, 4 * (size_t) nr_runs);
  if (p == NULL)
    return corrupt ("cut short", error);
  for (uint32_t i = 0; i < nr_runs; i++, p += 4) {
    uint32_t first = le16 (p), last = first + le16 (p + 2);

    /* Adjacent runs are legal in the format, overlapping ones are not. */
    if (last > 65535 || (i > 0 && first < next))
      return corrupt ("runs out of order or range", error);
    total += last - first + 1;
    next = last + 1;
  }
  if (total != count)
    return corrupt ("runs do not add up to their count", error);
  *out_last = next - 1;
  return true;
}

static bool
check_array (Cursor *cur, uint32_t count, uint32_t *out_last, GError **error)
{
  const uint8_t *p = take (cur, 2 * (size_t) count);
  uint32_t bad = 0;

  if (p == NULL)
    return corrupt ("cut short", error);
  for (uint32_t i = 1; i < count; i++)
    bad |= le16 (p + 2 * i) <= le16 (p + 2 * i - 2);
  if (bad)
    return corrupt ("values out of order", error);
  *out_last = le16 (p + 2 * (count - 1));
  return true;
}

static bool
check_bitset (Cursor *cur, uint32_t count, uint32_t *out_last, GError **error)
{
  const uint8_t *p = take (cur, CHUNK_BYTES);
  uint32_t total = 0, last = 0;

  if (p == NULL)
    return corrupt ("cut short", error);
  for (uint32_t w = 0; w < CHUNK_WORDS; w++) {
    uint64_t word = (uint64_t) le32 (p + 8 * w) |
      (uint64_t) le32 (p + 8 * w + 4) << 32;

    total += (uint32_t) __builtin_popcountll (word);
    if (word != 0)
      last = w * 64 + 63 - (uint32_t) __builtin_clzll (word);
  }
  if (total != count)
    return corrupt ("bits do not add up to their count", error);
  *out_last = last;
  return true;
}

bool
chunk_check (const uint8_t *data, size_t length, uint64_t nr_values,
             uint64_t *out_count, GError **error)
{
  Cursor cur = { data, length };
  const uint8_t *p, *is_run = NULL, *heads, *offsets = NULL;
  uint32_t cookie, nr;
  uint64_t total = 0;

  p = take (&cur, 4);
  if (p == NULL)
    return corrupt ("cut short", error);
  cookie = le32 (p);
  if ((cookie & 0xffff) == PORTABLE_COOKIE_RUN) {
    nr = (cookie >> 16) + 1;
    is_run = take (&cur, (nr + 7) / 8);
    if (is_run == NULL)
      return corrupt ("cut short", error);
  }
  else if (cookie == PORTABLE_COOKIE_NO_RUN) {
    p = take (&cur, 4);
    if (p == NULL)
      return corrupt ("cut short", error);
    nr = le32 (p);
    if (nr > CHUNK_BITS)
      return corrupt ("too many chunks", error);
  }
  else
    return corrupt ("not a Roaring bitmap", error);

  heads = take (&cur, 4 * (size_t) nr);
  if (heads != NULL && (is_run == NULL || nr >= PORTABLE_NO_OFFSETS_BELOW)) {
    offsets = take (&cur, 4 * (size_t) nr);
    heads = offsets != NULL ? heads : NULL;
  }
  if (heads == NULL)
    return corrupt ("cut short", error);

  for (uint32_t i = 0; i < nr; i++) {
    uint32_t key = le16 (heads + 4 * i), count = le16 (heads + 4 * i + 2) + 1;
    uint32_t last = 0;
    bool ok;

    if (i > 0 && key <= le16 (heads + 4 * i - 4))
      return corrupt ("chunks out of order", error);
    if (offsets != NULL && le32 (offsets + 4 * i) != length - cur.left)
      return corrupt ("a chunk is not where its offset says", error);
    if (is_run != NULL && (is_run[i / 8] >> (i % 8) & 1))
      ok = check_runs (&cur, count, &last, error);
    else if (count <= PORTABLE_ARRAY_MAX)
      ok = check_array (&cur, count, &last, error);
    else
      ok = check_bitset (&cur, count, &last, error);
    if (!ok)
      return false;
    if (((uint64_t) key << 16 | last) >= nr_values)
      return corrupt ("a granule lies past the end of the disk", error);
    total += count;
  }
  if (cur.left != 0)
    return corrupt ("bytes left over", error);
  *out_count = total;
  return true;
}
