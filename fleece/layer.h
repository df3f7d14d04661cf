/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* layer.h - preserved blocks of one disk: a sparse scratch file in which block N
 * stands at N * LAYER_BLOCK, a presence map and a checksum for each block.
 *
 * A block's presence goes from absent to one of the others once and never
 * changes again.  Order of a store: scratch data, checksum, then presence; a
 * reader that sees the presence sees the rest.
 *
 * Locking: presence and checksums are atomics.  Two threads must not store the
 * same block at once (callers hold the block's stripe).  Reference counts are
 * atomic.  The maps are sparse memory: an untouched part costs address space
 * only, a touched MiB of disk 64 bytes of presence and 1 KiB of checksums.
 */
#ifndef LAYER_H
#define LAYER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <glib.h>

#include "bitmap/storage.h"

#define LAYER_BLOCK 4096u       /* bytes; durability.md 5: 6 us against 32 us a
                                 * copy with 64 KiB */

typedef enum {
  PRESENCE_ABSENT = 0,
  PRESENCE_DATA = 1,
  PRESENCE_ZERO = 2,
  PRESENCE_UNREADABLE = 3,      /* the old data could not be read */
} Presence;

typedef struct Layer Layer;
struct Layer {
  /* Set in layer_create or layer_load, never changed. */
  Storage *storage;
  StorageFile *file;
  char *path;
  uint64_t size;                /* of the disk, bytes */
  uint64_t nr_blocks;
  int64_t id;                   /* catalog row; grows with time */

  _Atomic uint64_t *presence;   /* 2 bits a block, 32 blocks a word */
  _Atomic uint32_t *crc;        /* crc32c of the block, zero-padded at the end */
  size_t presence_bytes, crc_bytes;     /* of the mappings */

  /* The next layer in time, set before the cut that makes it the newest one;
   * holds a reference. */
  _Atomic (Layer *) newer;
  atomic_uint refs;

  /* Writers stop preserving into a dead layer: it broke, or nobody needs it. */
  atomic_bool dead;
  _Atomic uint64_t data_blocks; /* with data, in the scratch file */
  _Atomic uint64_t zero_blocks;
  /* data_blocks may not grow past this: UINT64_MAX without a limit. */
  _Atomic uint64_t budget_blocks;
};

/* A new layer for a disk of size bytes, in a new file at path.  One reference.
 * The file is not synced; EXISTS, IO or NO_MEMORY. */
Layer *layer_create (Storage *storage, const char *path, uint64_t size,
                     int64_t id, GError **error);
/* Remove the file's name; the open file lives until the last reference goes. */
void layer_remove_file (Layer *layer);
Layer *layer_ref (Layer *layer);
void layer_unref (Layer *layer);        /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Layer, layer_unref)

/* A clean stop writes the maps to PATH.map and syncs that and the scratch file;
 * layer_load reads both back, checks everything, and removes PATH.map so that it
 * is never trusted twice.  See layer-map.c for the format. */
bool layer_save (Layer *layer, GError **error);
Layer *layer_load (Storage *storage, const char *path, uint64_t size,
                   int64_t id, GError **error);
/* Remove PATH and PATH.map, whatever is there.  0 or -errno (not -ENOENT). */
int layer_remove_files (Storage *storage, const char *path);

static inline Presence
layer_presence (const Layer *layer, uint64_t block)
{
  return atomic_load (&layer->presence[block / 32]) >> (block % 32 * 2) & 3;
}

/* The first absent block in [first, end), or end. */
uint64_t layer_next_absent (const Layer *layer, uint64_t first, uint64_t end);
/* The first block in [first, end) that is not absent, or end. */
uint64_t layer_next_present (const Layer *layer, uint64_t first, uint64_t end);

/* Store nr blocks from block on: those that are all zero as zero, the others in
 * the scratch file.  buf: nr * LAYER_BLOCK bytes, zero-padded past the disk's
 * end.  0 or -errno: then blocks up to the failing run are stored and the rest
 * absent.  -EDQUOT: the budget is used up. */
int layer_store (Layer *layer, uint64_t block, uint64_t nr, const void *buf);
/* Record blocks without data. */
void layer_mark (Layer *layer, uint64_t block, uint64_t nr, Presence what);

/* Read nr blocks that are all present with data, and check their checksums:
 * -EBADMSG on a mismatch.  buf: nr * LAYER_BLOCK bytes. */
int layer_read (Layer *layer, uint64_t block, uint64_t nr, void *buf);

#endif
