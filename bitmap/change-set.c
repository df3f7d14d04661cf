/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "config.h"

#include <assert.h>
#include <stdatomic.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/change-set-private.h"
#include "bitmap/granule.h"

struct ChangeSet {
  atomic_int refs;

  /* Set in new, never changed. */
  uint64_t disk_size;           /* bytes */
  uint64_t nr_granules;         /* of the disk */
  uint64_t count;               /* in the set */
  uint32_t granularity;         /* bytes */
  unsigned shift;               /* log2 (granularity) */
  roaring_bitmap_t *r;          /* of granule indexes, all < nr_granules */
};

static void
set_no_memory (GError **error)
{
  g_set_error_literal (error, BITMAP_ERROR, BITMAP_ERROR_NO_MEMORY,
                       "no memory for a change set");
}

ChangeSet *
change_set_take (uint64_t disk_size, uint32_t granularity, roaring_bitmap_t *r)
{
  ChangeSet *set = g_new0 (ChangeSet, 1);

  atomic_init (&set->refs, 1);
  set->disk_size = disk_size;
  set->granularity = granularity;
  set->shift = granule_shift (granularity);
  set->nr_granules = granule_count (disk_size, granularity);
  set->count = roaring_bitmap_get_cardinality (r);
  set->r = r;
  return set;
}

ChangeSet *
change_set_from_chunks (uint64_t disk_size, uint32_t granularity,
                        ChunkWriter *writer, GError **error)
{
  roaring_bitmap_t *r = chunk_writer_finish (writer, error);

  return r != NULL ? change_set_take (disk_size, granularity, r) : NULL;
}

const roaring_bitmap_t *
change_set_roaring (const ChangeSet *set)
{
  return set->r;
}

ChangeSet *
change_set_new_empty (uint64_t disk_size, uint32_t granularity, GError **error)
{
  roaring_bitmap_t *r;

  if (!granule_check (disk_size, granularity, error))
    return NULL;
  r = roaring_bitmap_create ();
  if (r == NULL) {
    set_no_memory (error);
    return NULL;
  }
  return change_set_take (disk_size, granularity, r);
}

ChangeSet *
change_set_new_full (uint64_t disk_size, uint32_t granularity, GError **error)
{
  uint64_t nr;
  roaring_bitmap_t *r;

  if (!granule_check (disk_size, granularity, error))
    return NULL;
  nr = granule_count (disk_size, granularity);
  r = nr > 0 ? roaring_bitmap_from_range (0, nr, 1) : roaring_bitmap_create ();
  if (r == NULL) {
    set_no_memory (error);
    return NULL;
  }
  roaring_bitmap_run_optimize (r);
  return change_set_take (disk_size, granularity, r);
}

ChangeSet *
change_set_ref (ChangeSet *set)
{
  atomic_fetch_add_explicit (&set->refs, 1, memory_order_relaxed);
  return set;
}

void
change_set_unref (ChangeSet *set)
{
  /* acq_rel: what other threads read of the set happens before the free. */
  if (set == NULL ||
      atomic_fetch_sub_explicit (&set->refs, 1, memory_order_acq_rel) > 1)
    return;
  roaring_bitmap_free (set->r);
  g_free (set);
}

ChangeSet *
change_set_from (const ChangeSet *set, uint64_t offset, GError **error)
{
  roaring_bitmap_t *r = roaring_bitmap_copy (set->r);

  if (r == NULL) {
    set_no_memory (error);
    return NULL;
  }
  roaring_bitmap_remove_range (r, 0, offset >> set->shift);
  return change_set_take (set->disk_size, set->granularity, r);
}

uint64_t
change_set_size (const ChangeSet *set)
{
  return set->disk_size;
}

uint32_t
change_set_granularity (const ChangeSet *set)
{
  return set->granularity;
}

uint64_t
change_set_count (const ChangeSet *set)
{
  return set->count;
}

bool
change_set_get (const ChangeSet *set, uint64_t offset)
{
  assert (offset < set->disk_size);
  return roaring_bitmap_contains (set->r, (uint32_t) (offset >> set->shift));
}

uint64_t
change_set_run (const ChangeSet *set, uint64_t offset, uint64_t limit,
                bool *out_dirty)
{
  uint64_t end, end_granule;

  assert (offset < set->disk_size && limit > 0);
  end = offset + MIN (limit, set->disk_size - offset);
  end_granule = ((end - 1) >> set->shift) + 1;
  end_granule = chunk_run_end (set->r, (uint32_t) (offset >> set->shift),
                               end_granule, out_dirty);
  /* The last granule may reach past the disk, and past 2^64 with it. */
  if (end_granule <= (end - 1) >> set->shift)
    end = end_granule << set->shift;
  return end - offset;
}
