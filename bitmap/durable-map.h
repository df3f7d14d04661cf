/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* durable-map.h - D: the copy of an epoch's dirty bits that survives a power
 * cut.
 *
 * It follows the bits with some delay; meanwhile write intents cover the rest.
 * Bits are only added, so any mix of old and new sectors is right.  The mirror
 * in memory has what is known to be durable: a write that touches nothing else
 * needs no intent (H13).
 *
 * Locking: durable_map_covers in any thread; sync by one at a time.
 */
#ifndef DURABLE_MAP_H
#define DURABLE_MAP_H

#include "bitmap/dirty-bitmap.h"
#include "bitmap/storage.h"

typedef struct DurableMap DurableMap;

/* The file's path; caller frees. */
char *durable_map_path (const char *dir, const char *disk, uint64_t epoch);

/* A new one with no bits, durable. */
DurableMap *durable_map_create (Storage *storage, const char *dir,
                                const char *disk, uint64_t epoch,
                                uint64_t disk_size, uint32_t granularity,
                                GError **error);
/* Both take NULL; the first keeps the file. */
void durable_map_close (DurableMap *dm);
void durable_map_remove (DurableMap *dm);

/* Its inode and birth tell the file from a copy of it. */
const StorageFile *durable_map_file (const DurableMap *dm);

/* Are all granules of the range known to be durable? */
bool durable_map_covers (const DurableMap *dm, uint64_t offset,
                         uint64_t length);

/* Make durable all bits of bm that were set before the call.  0 or -errno; a
 * failure is final: what a failed sync leaves on the disk is unknown, and every
 * later call fails as well. */
int durable_map_sync (DurableMap *dm, const DirtyBitmap *bm);

#endif
