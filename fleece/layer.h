/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* layer.h - preserved blocks of one disk: a sparse scratch file in which block
 * N stands at N * LAYER_BLOCK, a presence map and a checksum for each block.
 *
 * A block's presence goes from absent to one of the others once and never
 * changes again.  Order of a store: scratch data, checksum, then presence; a
 * reader that sees the presence sees the rest.
 *
 * What outlives the process:
 * - a volatile layer's maps are a RuntimeMap: after kill -9 they are as they
 *   were, after a power cut they are gone, and the layer with them.  A clean
 *   stop writes them to PATH.map (layer-map.c).
 * - a durable layer has a log of what is present, PATH.log (layer-log.c), each
 *   record of it stable before the block counts as present, after the data it
 *   tells of: the layer survives anything that leaves its files.  Its maps are
 *   in plain memory, read from the log at a start.
 *
 * Locking: presence and checksums are atomics.  Two threads must not store the
 * same block at once (callers hold the block's stripe).  Reference counts are
 * atomic.  The maps are sparse memory: an untouched part costs address space
 * only, a touched MiB of disk 64 bytes of presence and 1 KiB of checksums, in
 * pages.  A store to a page that a full tmpfs cannot give is SIGBUS, and so is
 * a read: pages are reserved first, and what is not reserved is not looked at.
 */
#ifndef LAYER_H
#define LAYER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <glib.h>

#include "bitmap/runtime.h"
#include "bitmap/storage.h"

#define LAYER_BLOCK 4096u       /* bytes; durability.md 5: 6 us against 32 us a
                                 * copy with 64 KiB */

typedef enum {
  PRESENCE_ABSENT = 0,
  PRESENCE_DATA = 1,
  PRESENCE_ZERO = 2,
  PRESENCE_UNREADABLE = 3,      /* the old data could not be read */
} Presence;

/* Blocks whose presence (2 bits) fills a page of 4 KiB, and checksums. */
#define PRESENCE_PAGE_BLOCKS 16384u
#define CRC_PAGE_BLOCKS 1024u

typedef struct LayerLog LayerLog;
typedef struct Layer Layer;
struct Layer {
  /* Set in layer_create or layer_load, never changed. */
  Storage *storage;
  StorageFile *file;
  char *path;
  uint64_t size;                /* of the disk, bytes */
  uint64_t nr_blocks;
  int64_t id;                   /* catalog row; grows with time */

  LayerLog *log;                /* NULL: volatile */
  RuntimeMap *map;              /* what holds the maps; NULL: plain memory */
  void *memory;                 /* then that */
  size_t map_bytes;
  /* Parts of it. */
  _Atomic uint64_t *head;       /* word 0: LAYER_HEAD_DEAD */
  _Atomic uint64_t *presence_there;     /* a bit a page of presence: reserved */
  _Atomic uint64_t *crc_there;  /* the same of crc */
  _Atomic uint64_t *presence;   /* 2 bits a block, 32 blocks a word */
  _Atomic uint32_t *crc;        /* crc32c of the block, zero-padded at the
                                   end */

  /* The next layer in time, set before the cut that makes it the newest one;
   * holds a reference. */
  _Atomic (Layer *) newer;
  atomic_uint refs;

  /* Writers stop preserving into a dead layer: it broke, or nobody needs it.
   * See layer_kill. */
  atomic_bool dead;
  atomic_bool removed;          /* the map goes with the last reference */

  /* The scratch file is a user's and stays (LayerHome); locked while it is
   * open.  Given back, it has kept_size bytes: as it had, until the layer is
   * used, then 0.  Changed before the layer is published only. */
  bool keep;
  uint64_t kept_size;
  atomic_bool given_back;

  atomic_uint late_copies;      /* see copier.h */
  _Atomic uint64_t data_blocks; /* with data, in the scratch file */
  _Atomic uint64_t zero_blocks;
  /* data_blocks may not grow past this: UINT64_MAX without a limit. */
  _Atomic uint64_t budget_blocks;
};

#define LAYER_HEAD_DEAD 1

/* A new layer for a disk of size bytes, in a new file at path.  One reference.
 * EXISTS (also if there is a PATH.map or PATH.log), IO or NO_MEMORY: then no
 * file is left or touched.
 * map_name: of a new RuntimeMap of rt with this nonce for the maps, NULL: plain
 * memory.  durable: with a log; then all files are synced, also their directory
 * (and map_name must be NULL).  keep: the file at path is there, a regular one
 * that nobody else has locked (BUSY), and is never removed.  It is made longer
 * where it has to be; nothing of what is in it is looked at. */
typedef struct {
  Runtime *rt;
  const char *map_name;
  const uint8_t *nonce;         /* RUNTIME_NONCE_BYTES */
  bool durable;
  bool keep;
} LayerHome;
Layer *layer_create (Storage *storage, const char *path, uint64_t size,
                     int64_t id, const LayerHome *home, GError **error);
/* Remove the files' names; the open files and the map live until the last
 * reference goes.  A file to be kept is given back instead, and once more with
 * the last reference, as a write that hung may come late.  0 or -errno. */
int layer_remove_file (Layer *layer);
/* Nobody will read it any more: give back the space of its scratch file, whose
 * name is gone, though there are references. */
void layer_release_space (Layer *layer);
/* No writer preserves into it from now on, and it is not to be believed after a
 * kill -9 either. */
void layer_kill (Layer *layer);
/* A durable layer is not to be found by a next start, which layer_kill does not
 * see to: its log's name goes, stably.  0 or -errno. */
int layer_remove_log (Layer *layer);
Layer *layer_ref (Layer *layer);
void layer_unref (Layer *layer);        /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Layer, layer_unref)

/* A clean stop writes the maps of a volatile layer to PATH.map, with a nonce
 * that the catalog records after that (a file of another nonce is old), and
 * syncs that and the scratch file.  The directory is the caller's to sync. */
bool layer_save (Layer *layer, const uint8_t nonce[RUNTIME_NONCE_BYTES],
                 GError **error);
/* The start after it: reads PATH.map, if it has this nonce, checks everything,
 * and puts the maps where home says.  Leaves PATH.map where it is: the caller
 * first records home's nonce, then removes it. */
Layer *layer_load (Storage *storage, const char *path, uint64_t size,
                   int64_t id, const uint8_t nonce[RUNTIME_NONCE_BYTES],
                   const LayerHome *home, GError **error);
void layer_remove_map (Storage *storage, const char *path);
/* After kill -9: home's map as it was.  NOT_FOUND: it is not there, or the
 * layer was dead. */
Layer *layer_resume (Storage *storage, const char *path, uint64_t size,
                     int64_t id, const LayerHome *home, GError **error);
/* A durable layer, after whatever: reads PATH.log. */
Layer *layer_replay (Storage *storage, const char *path, uint64_t size,
                     int64_t id, bool keep, GError **error);
/* Remove PATH, PATH.map and PATH.log, whatever is there.  keep: PATH stays,
 * empty.  0 or -errno (not -ENOENT). */
int layer_remove_files (Storage *storage, const char *path, bool keep);
/* The same for what layer_create may have left at a path that a user chose, cut
 * off before the first block was kept: nothing in which anything has been
 * written.  keep: PATH stays, as it is.  -EEXIST: something else is there, and
 * stays. */
int layer_remove_unused (Storage *storage, const char *path, uint64_t size,
                         bool keep);

static inline Presence
layer_presence (const Layer *layer, uint64_t block)
{
  uint64_t page = block / PRESENCE_PAGE_BLOCKS;

  if (block >= layer->nr_blocks)
    return PRESENCE_ABSENT;
  if ((atomic_load (&layer->presence_there[page / 64]) >> page % 64 & 1) == 0)
    return PRESENCE_ABSENT;
  return atomic_load (&layer->presence[block / 32]) >> (block % 32 * 2) & 3;
}

/* Both and layer_presence take blocks past the layer's end, which a disk that
 * has grown has, as absent.
 * The first absent block in [first, end), or end. */
uint64_t layer_next_absent (const Layer *layer, uint64_t first, uint64_t end);
/* The first block in [first, end) that is not absent, or end. */
uint64_t layer_next_present (const Layer *layer, uint64_t first, uint64_t end);

/* Store nr blocks from block on: those that are all zero as zero, the others in
 * the scratch file.  buf: nr * LAYER_BLOCK bytes, zero-padded past the disk's
 * end.  0 or -errno: then some of the blocks may be stored and the rest are
 * absent.  -EDQUOT: the budget is used up.  -ENOSPC also: no memory left in the
 * tmpfs.  Durable: stable when it returns; waits for others, to share the
 * syncs. */
int layer_store (Layer *layer, uint64_t block, uint64_t nr, const void *buf);
/* Blocks without data: of a durable layer, make it stable that those of the
 * range that are not present yet are what; else nothing.  0 or -errno. */
int layer_record (Layer *layer, uint64_t block, uint64_t nr, Presence what);
/* Then mark them: all absent until now.  0 or -ENOSPC: nothing done. */
int layer_mark (Layer *layer, uint64_t block, uint64_t nr, Presence what);

/* Read nr blocks that are all present with data, and check their checksums:
 * -EBADMSG on a mismatch.  buf: nr * LAYER_BLOCK bytes. */
int layer_read (Layer *layer, uint64_t block, uint64_t nr, void *buf);

#endif
