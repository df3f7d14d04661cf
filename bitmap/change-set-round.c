/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "config.h"

#include "bitmap/bitmap-error.h"
#include "bitmap/change-set-private.h"
#include "bitmap/dirty-bitmap.h"
#include "bitmap/granule.h"

/* In blocks that are coarser than a set's granularity can be. */
static ChangeSet *
round_to_blocks (const ChangeSet *set, uint32_t block, GError **error)
{
  uint64_t size = change_set_size (set), offset = 0;
  uint32_t granularity = change_set_granularity (set);
  roaring_bitmap_t *r = roaring_bitmap_create ();

  if (r == NULL) {
    g_set_error_literal (error, BITMAP_ERROR, BITMAP_ERROR_NO_MEMORY,
                         "no memory to round a change set");
    return NULL;
  }
  while (offset < size) {
    bool dirty;
    uint64_t end = offset + change_set_run (set, offset, size - offset, &dirty);

    if (dirty) {
      uint64_t first = offset / block * block;

      end = MIN (size, (end + block - 1) / block * block);
      roaring_bitmap_add_range (r, first / granularity,
                                granule_count (end, granularity));
    }
    offset = end;
  }
  roaring_bitmap_run_optimize (r);
  return change_set_take (size, granularity, r);
}

ChangeSet *
change_set_round_out (ChangeSet *set, uint32_t granularity, GError **error)
{
  uint32_t target = MIN (granularity, GRANULARITY_MAX);
  g_autoptr (ChangeSet) coarse = NULL;

  if (target <= change_set_granularity (set))
    coarse = change_set_ref (set);
  else {
    g_autoptr (ChangeSetUnion) u =
      change_set_union_new (change_set_size (set), target, error);

    if (u == NULL || !change_set_union_add (u, set, error))
      return NULL;
    coarse = change_set_union_finish (u, error);
    if (coarse == NULL)
      return NULL;
  }
  if (granularity <= change_set_granularity (coarse))
    return g_steal_pointer (&coarse);
  return round_to_blocks (coarse, granularity, error);
}
