/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "config.h"

#include "bitmap/bitmap-error.h"
#include "bitmap/dirty-bitmap.h"
#include "bitmap/granule.h"

bool
granule_check (uint64_t disk_size, uint32_t granularity, GError **error)
{
  /* First: granule_fit has no granularity to offer then. */
  if (disk_size > GRANULES_MAX * GRANULARITY_MAX) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "disk size %" G_GUINT64_FORMAT " bytes is above the limit of "
                 "%" G_GUINT64_FORMAT " for tracking", disk_size,
                 GRANULES_MAX * GRANULARITY_MAX);
    return false;
  }
  if ((granularity & (granularity - 1)) != 0 ||
      granularity < GRANULARITY_MIN || granularity > GRANULARITY_MAX) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "granularity %u bytes is not a power of 2 in %u..%u",
                 granularity, GRANULARITY_MIN, GRANULARITY_MAX);
    return false;
  }
  if (granule_count (disk_size, granularity) > GRANULES_MAX) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
                 "granularity %u bytes is too fine for a disk of "
                 "%" G_GUINT64_FORMAT " bytes: the least is %u",
                 granularity, disk_size,
                 granule_fit (disk_size, granularity));
    return false;
  }
  return true;
}

uint32_t
granule_fit (uint64_t disk_size, uint32_t granularity)
{
  while (granule_count (disk_size, granularity) > GRANULES_MAX) {
    if (granularity >= GRANULARITY_MAX)
      return 0;
    granularity *= 2;
  }
  return granularity;
}
