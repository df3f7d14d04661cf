/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* granule.h - geometry of a disk in granules.
 *
 * At most 2^32 granules a disk, the reach of Roaring's 32-bit values; so a
 * granule index fits uint32_t, but a count or an end of a range does not.
 */
#ifndef GRANULE_H
#define GRANULE_H

#include <stdbool.h>
#include <stdint.h>
#include <glib.h>

#define GRANULES_MAX  (UINT64_C (1) << 32)

/* Granules that disk_size bytes take; the last may be short. */
static inline uint64_t
granule_count (uint64_t disk_size, uint32_t granularity)
{
  return disk_size / granularity + (disk_size % granularity != 0);
}

static inline unsigned
granule_shift (uint32_t granularity)
{
  return (unsigned) __builtin_ctz (granularity);
}

/* Is this a geometry that we record with?  INVALID if not. */
bool granule_check (uint64_t disk_size, uint32_t granularity, GError **error);

/* granularity, or the finest one above it that keeps a disk of disk_size bytes
 * within GRANULES_MAX; 0 if there is none. */
uint32_t granule_fit (uint64_t disk_size, uint32_t granularity);

#endif
