/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* chunk-run.c - runs of a Roaring bitmap.
 *
 * CRoaring's iterator stops at every value, and its rank and range functions
 * search anew for every call; block status of a scattered disk wants tens of
 * millions of runs a second and has huge runs too.  So this reads containers
 * directly, by the structures of CRoaring 0.2 to 0.4's installed headers.
 */
#include "config.h"

#include <glib.h>
#include <roaring/containers/containers.h>

#include "bitmap/chunk.h"

/* The first of values[0..nr) that is >= v; nr if none is. */
static uint32_t
lower_bound (const uint16_t *values, uint32_t nr, uint32_t v)
{
  uint32_t low = 0;

  while (nr > 0) {
    uint32_t half = nr / 2;

    if (values[low + half] < v) {
      low += half + 1;
      nr -= half + 1;
    }
    else
      nr = half;
  }
  return low;
}

/* Each of these: *out_set says what v (< 65536) is; the return value is where
 * that run ends, 65536 at the latest. */
static uint32_t
array_run_end (const array_container_t *c, uint32_t v, bool *out_set)
{
  uint32_t nr = (uint32_t) c->cardinality;
  uint32_t i = lower_bound (c->array, nr, v);
  uint32_t end;

  *out_set = i < nr && c->array[i] == v;
  if (!*out_set)
    return i < nr ? c->array[i] : CHUNK_BITS;
  for (i++, end = v + 1; i < nr && c->array[i] == end; i++)
    end++;
  return end;
}

static uint32_t
runs_run_end (const run_container_t *c, uint32_t v, bool *out_set)
{
  uint32_t low = 0, high = (uint32_t) c->n_runs, end;

  /* low: the first run that starts after v. */
  while (low < high) {
    uint32_t mid = (low + high) / 2;

    if (c->runs[mid].value <= v)
      low = mid + 1;
    else
      high = mid;
  }
  *out_set = low > 0 &&
    v <= (uint32_t) c->runs[low - 1].value + c->runs[low - 1].length;
  if (!*out_set)
    return low < (uint32_t) c->n_runs ? c->runs[low].value : CHUNK_BITS;
  end = (uint32_t) c->runs[low - 1].value + c->runs[low - 1].length + 1;
  for (; low < (uint32_t) c->n_runs && c->runs[low].value == end; low++)
    end += (uint32_t) c->runs[low].length + 1;  /* adjacent runs are legal */
  return end;
}

static uint32_t
bitset_run_end (const bitset_container_t *c, uint32_t v, bool *out_set)
{
  const uint64_t *words = c->array;
  uint32_t w = v / 64;
  bool set = words[w] >> (v % 64) & 1;
  uint64_t flip = set ? ~UINT64_C (0) : 0;
  /* Ones where the run does not go on. */
  uint64_t stop = (words[w] ^ flip) & (~UINT64_C (0) << (v % 64));

  *out_set = set;
  while (stop == 0) {
    if (++w == CHUNK_WORDS)
      return CHUNK_BITS;
    stop = words[w] ^ flip;
  }
  return w * 64 + (uint32_t) __builtin_ctzll (stop);
}

static uint32_t
container_run_end (const roaring_array_t *ra, uint32_t i, uint32_t v,
                   bool *out_set)
{
  uint8_t type = ra->typecodes[i];
  const void *c = container_unwrap_shared (ra->containers[i], &type);

  switch (type) {
  case BITSET_CONTAINER_TYPE_CODE:
    return bitset_run_end (c, v, out_set);
  case ARRAY_CONTAINER_TYPE_CODE:
    return array_run_end (c, v, out_set);
  case RUN_CONTAINER_TYPE_CODE:
    return runs_run_end (c, v, out_set);
  default:
    g_assert_not_reached ();
  }
}

uint64_t
chunk_run_end (const roaring_bitmap_t *r, uint32_t v, uint64_t max,
               bool *out_set)
{
  const roaring_array_t *ra = &r->high_low_container;
  uint32_t nr = (uint32_t) ra->size, key = v >> 16, i;
  uint64_t end = v;
  bool set;

  /* A disk with some dirt everywhere has every key, at its own place. */
  if (key < nr && ra->keys[key] == key)
    i = key;
  else
    i = lower_bound (ra->keys, nr, key);

  if (i == nr || ra->keys[i] != key)
    set = false;
  else {
    end = ((uint64_t) key << 16) +
      container_run_end (ra, i, v & 0xffff, &set);
    i++;
  }
  *out_set = set;

  /* Go on over whole chunks. */
  for (; end < max; i++) {
    bool first_set;
    uint32_t part;

    if (end != v && (end & 0xffff) != 0)
      return MIN (end, max);
    if (i == nr)
      return set ? MIN (end, max) : max;
    if (set) {
      if (ra->keys[i] != end >> 16)
        return MIN (end, max);
    }
    else
      end = (uint64_t) ra->keys[i] << 16;
    if (end >= max)
      return max;
    part = container_run_end (ra, i, 0, &first_set);
    if (first_set != set)
      return end;
    end += part;
  }
  return MIN (end, max);
}
