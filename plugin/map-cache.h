/* SPDX-License-Identifier: BSD-3-Clause */
/* map-cache.h - maps of snapshot exports, each built once and shared by all
 * handles that use it, dropped with the last.
 *
 * A map has a key: the boundary that the changes begin at; or MAP_KEY_BITMAP
 * and the row of a bitmap that the snapshot has kept.
 *
 * Locking: one mutex for the list, and one a map, held while it is built: a
 * client that needs another map does not wait.
 */
#ifndef MAP_CACHE_H
#define MAP_CACHE_H

#include "bitmap/change-set.h"
#include "plugin/backup.h"

typedef struct CachedMap CachedMap;

#define MAP_KEY_BITMAP (UINT64_C (1) << 63)

/* The map of this key, as of the snapshot of bd; bd has a disk and a snapshot,
 * and outlives the map. */
CachedMap *cached_map_get (const BackupDisk *bd, uint64_t key);
void cached_map_put (CachedMap *map);
uint64_t cached_map_key (const CachedMap *map);

/* Builds it if that has not been done; borrowed, lives as long as the map.  An
 * epoch that cannot be read counts as all dirty, which is told
 * (FLEECE_NOTE_TRACKING).  NOT_FOUND if the epochs since the boundary, or the
 * bitmap, are not kept any more. */
ChangeSet *cached_map_load (CachedMap *map, GError **error);

#endif
