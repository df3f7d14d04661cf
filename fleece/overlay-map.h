/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* overlay-map.h - which blocks an overlay has: a bit a block, only ever set.
 *
 * Twice: in a RuntimeMap, exactly as it is now (kill -9 leaves it), and in
 * PATH.map, as of the last sync, which a power loss leaves.  A bit gets into
 * the file only after the data that it tells of were stable: overlay_map_sync
 * takes what is set, syncs the data, then writes.
 *
 * PATH.map: sectors as of sector.h of kind SECTOR_OVERLAY, two for each 3968
 * blocks, written in turn, so that the one that tells what was stable before is
 * never being written.  What a pair says is the union of the good ones; one of
 * zeroes says nothing; one that is neither was being written when the power
 * went.
 *
 * If the page cache is lost and the tmpfs is not (durability.md, C2), the data
 * of what is not in the file may be gone, and with them what was below.  So of
 * each of these blocks the RuntimeMap has the checksums that it may have:
 * before it is changed, that of after is noted; a start drops those that have
 * none of them.  0: not known, it is believed: of zeroes, which are holes.
 *
 * Locking: set, has and next are atomics, any thread; see overlay_map_reserve
 * for SIGBUS.  sync takes a lock of its own.
 */
#ifndef OVERLAY_MAP_H
#define OVERLAY_MAP_H

#include <stdbool.h>
#include <stdint.h>
#include <glib.h>

#include "bitmap/runtime.h"
#include "bitmap/storage.h"

typedef struct OverlayMap OverlayMap;

typedef struct {
  Storage *storage;
  const char *path;             /* PATH.map; copied */
  uint64_t capacity;            /* blocks there is room for */
  uint64_t tag;                 /* of this overlay's sectors, drawn at random */
  StorageFile *data;            /* what sync syncs first; borrowed */
  /* The RuntimeMap's. */
  Runtime *rt;
  const char *name;
  const uint8_t *nonce;         /* RUNTIME_NONCE_BYTES */
} OverlayMapHome;

/* Nothing is present.  The file is durable but for its directory's entry. */
OverlayMap *overlay_map_create (const OverlayMapHome *home, GError **error);
/* With old_nonce (NULL: there is none) as the RuntimeMap says, if it is there;
 * else as the file says.  Then a new RuntimeMap is made, with home's nonce and
 * name.  *out_new: that was done: the row needs the nonce.  CORRUPT, IO. */
OverlayMap *overlay_map_open (const OverlayMapHome *home,
                              const uint8_t *old_nonce, bool *out_new,
                              GError **error);
/* NULL is fine.  keep: the RuntimeMap stays, for overlay_map_open. */
void overlay_map_free (OverlayMap *map, bool keep);

/* Before set: 0 or -ENOSPC, if the tmpfs is full. */
int overlay_map_reserve (OverlayMap *map, uint64_t block, uint64_t nr);
/* Likewise, and there is room for checksums. */
int overlay_map_reserve_data (OverlayMap *map, uint64_t block, uint64_t nr);
void overlay_map_set (OverlayMap *map, uint64_t block, uint64_t nr);
bool overlay_map_has (const OverlayMap *map, uint64_t block);
/* The first block in [first, end) that is (not) present, or end. */
uint64_t overlay_map_next (const OverlayMap *map, uint64_t first, uint64_t end,
                           bool present);
/* The same of what is durable, so that no checksum is wanted. */
uint64_t overlay_map_next_durable (const OverlayMap *map, uint64_t first,
                                   uint64_t end, bool durable);
/* Of blocks [block, ...) with data of length bytes, the last may be short: what
 * they are going to be (after false), and are (true); the first may be left out
 * for one that is absent.  Reserved before; whoever writes the block at the
 * same time must be kept out. */
void overlay_map_note (OverlayMap *map, uint64_t block, const void *data,
                       uint64_t length, bool after);
/* Of present ones that are zeroed. */
void overlay_map_note_zero (OverlayMap *map, uint64_t block, uint64_t nr,
                            bool after);
/* After open: drops blocks whose data are not what was noted; size: of the
 * data, bytes.  *out_dropped: how many. */
int overlay_map_verify (OverlayMap *map, uint64_t size,
                        uint64_t *out_dropped);
uint64_t overlay_map_count (const OverlayMap *map);     /* present */

/* fdatasync of the data, and then all that was set before is durable.  0 or
 * -errno, which is final for a failed sync: what has reached the disk is not
 * known, and what is not known to be there must not count as present after a
 * power loss. */
int overlay_map_sync (OverlayMap *map);
/* Is there nothing that a sync would have to write? */
bool overlay_map_is_durable (const OverlayMap *map);

#endif
