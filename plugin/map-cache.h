/* SPDX-License-Identifier: BSD-3-Clause */
/* map-cache.h - "changed since" maps of snapshot exports, each built once and
 * shared by all handles that use it, dropped with the last.
 *
 * Locking: one mutex for the list, and one a map, held while it is built: a
 * client that needs another map does not wait.
 */
#ifndef MAP_CACHE_H
#define MAP_CACHE_H

#include "bitmap/change-set.h"
#include "plugin/backup.h"

typedef struct CachedMap CachedMap;

/* The map "from boundary to the snapshot of bd"; bd has a disk and a snapshot,
 * and outlives the map. */
CachedMap *cached_map_get (const BackupDisk *bd, uint64_t boundary);
void cached_map_put (CachedMap *map);
uint64_t cached_map_boundary (const CachedMap *map);

/* Builds it if that has not been done; borrowed, lives as long as the map.  An
 * epoch that cannot be read counts as all dirty, which is told (FLEECE_NOTE_TRACKING).  NOT_FOUND if
 * the epochs since boundary are not kept any more. */
ChangeSet *cached_map_load (CachedMap *map, GError **error);

#endif
