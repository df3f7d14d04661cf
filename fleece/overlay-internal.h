/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* overlay-internal.h - what the overlay*.c files, cut.c and disk-open.c share.
 *
 * A disk's chain is an immutable array, swapped whole.  Who reads a disk with
 * overlays reads OverlayStack::front, a StorageFile that enters `users`, takes
 * the chain of the moment and leaves: once the chain was replaced and those
 * that were inside have left, nobody uses the old one.  A disk without overlays
 * is read by its image directly and pays for nothing of this; so an image is
 * never closed while the disk is open.
 *
 * Who writes does so to Overlay::port, or the image, as his Segment says:
 * writes admitted before a cut go to what was the top then.
 *
 * Locks, after those of fleece-internal.h up to stripe: Overlay::stripe,
 * several in ascending order; of a target of a move inside those of its source.
 */
#ifndef OVERLAY_INTERNAL_H
#define OVERLAY_INTERNAL_H

#include "fleece/fleece-internal.h"
#include "fleece/overlay-map.h"
#include "fleece/overlay.h"

/* ThreadSanitizer's deadlock detector gives up at 64 mutexes, and a commit of
 * one overlay onto another one may hold all of both. */
#define OVERLAY_STRIPES 16u
#define OVERLAY_STRIPE_BYTES 65536u

typedef enum {
  OVERLAY_PREPARED,             /* of a cut that is not through, or failed after
                                 * guests had used it: then it has no name */
  OVERLAY_LIVE,                 /* on its disk */
  OVERLAY_DETACHED,
  OVERLAY_PLANNED,              /* of a row only: its files may be there */
  OVERLAY_GONE,
} OverlayState;

struct Overlay {
  StorageFile port;             /* first.  For writes of guests, and of moves */

  /* Set when it is made. */
  Disk *disk;
  Storage *storage;
  int64_t id;                   /* catalog row */
  char *path, *map_path;
  bool keep, zero;
  bool write_through;           /* the runtime directory is not believed after a
                                 * kill: presence is made durable at once */
  uint8_t nonce[RUNTIME_NONCE_BYTES];   /* of the RuntimeMap */
  StorageFile *file;
  OverlayMap *map;

  char *name;                   /* NULL: none.  Under OverlayStack::lock */
  _Atomic OverlayState state;
  atomic_uint refs;
  bool keep_map;                /* the RuntimeMap stays when this is freed */
  bool file_given_away;         /* it is the disk's image now */

  /* Writes below this counter were not yet sent here, and may be on their way
   * to what is below, which must not be read into this before they are done.
   * Changed before the overlay is published only. */
  uint64_t first_counter;
  /* What writes went to before.  Until what is in flight there is stable, a
   * sync here is one there too. */
  StorageFile *below;
  atomic_bool settled;

  /* Held from a look at the map to the bit that is set. */
  pthread_mutex_t stripe[OVERLAY_STRIPES];
  /* A commit of this, which guests write to: they write to its target as
   * well. */
  _Atomic (OverlayMove *) mirror;
  atomic_uint users;            /* in an overlay_* call of a detached one */
};

/* Immutable; ov[0] is right above the image.  A reference to each. */
typedef struct {
  StorageFile *base;            /* the image; the disk's */
  unsigned nr;
  Overlay *ov[];
} Chain;

struct OverlayStack {
  StorageFile front;            /* first; for reads, and all that is of the disk
                                 * as a whole */
  Disk *disk;
  _Atomic (Chain *) chain;
  _Atomic uint64_t generation;
  Inflight *users;
  /* Under lock: names; the chain is changed with cut_lock held as well. */
  pthread_mutex_t lock;
  GPtrArray *detached;          /* of Overlay, a reference each */
  OverlayMove *move;            /* borrowed; the one at a time */
  /* cut_lock.  Chains that somebody may still be reading by, and images that
   * the disk had before. */
  GPtrArray *old_chains, *old_files, *old_paths, *old_moves;
};

/* --- overlay-stack.c */
OverlayStack *overlay_stack_new (Disk *disk);
void overlay_stack_free (OverlayStack *stack);          /* not the image */
/* Of the image, once it is open. */
void overlay_stack_set_base (OverlayStack *stack, StorageFile *base);
/* New, with one more on top (NULL: none), without those at first .. end - 1. */
Chain *chain_new (const Chain *old, Overlay *top, unsigned first,
                  unsigned end);
void chain_free (Chain *chain);
/* Readers go by chain from now on.  cut_lock held. */
void overlay_stack_publish (OverlayStack *stack, Chain *chain);
/* Frees old chains, once nobody reads by them; false: somebody did for too
 * long, they stay.  cut_lock held. */
bool overlay_stack_reap (OverlayStack *stack, unsigned timeout_ms);
/* For readers: until leave, what chain is made of stays. */
const Chain *overlay_stack_enter (OverlayStack *stack,
                                  struct inflight_slot **out_slot);
void overlay_stack_leave (OverlayStack *stack, struct inflight_slot *slot);
/* Read, and the run at offset, of the image and the lowest nr layers; past the
 * end of a file there are zeroes.  */
int chain_pread (const Chain *chain, unsigned nr, void *buf, size_t length,
                 uint64_t offset);
int chain_run (const Chain *chain, unsigned nr, uint64_t offset,
               uint64_t limit, uint64_t *out_length, bool *out_hole);
/* The first block in [block, end) that any of layers first .. nr - 1 has. */
uint64_t chain_next (const Chain *chain, unsigned first, unsigned nr,
                     uint64_t block, uint64_t end);
StorageFile *chain_port (const Chain *chain);   /* what guests write to */
int chain_index (const Chain *chain, const Overlay *ov);        /* or -1 */

/* --- overlay.c */
/* An object without files: see overlay-open.c. */
Overlay *overlay_alloc (Disk *disk, const char *name, const char *path,
                        uint64_t size);
/* Bytes [from, to) of what is below it. */
int overlay_read_below (Overlay *ov, char *buf, uint64_t from, uint64_t to);
int overlay_port_write (Overlay *ov, const void *buf, size_t length,
                        uint64_t offset, bool dsync);
/* Zero it, without a hole if that is not wanted; never -EOPNOTSUPP. */
int overlay_port_zero (Overlay *ov, uint64_t offset, uint64_t length,
                       bool punch);
int overlay_sync (Overlay *ov);
/* Make it have bytes [offset, offset + length), as zeroes; locks held or nobody
 * writes there. */
int overlay_cover (Overlay *ov, uint64_t offset, uint64_t length);
int overlay_set_size (Overlay *ov, uint64_t size);
void overlay_lock_range (Overlay *ov, uint64_t offset, uint64_t length);
void overlay_unlock_range (Overlay *ov, uint64_t offset, uint64_t length);
/* Zero bytes of a file in whatever way it can. */
int storage_file_clear (StorageFile *file, uint64_t offset, uint64_t length,
                        bool punch);

/* --- overlay-copy.c: what a write to the source of a commit has to do, stripes
 * held.  -errno: the write has failed. */
int overlay_mirror_write (OverlayMove *move, const void *buf, size_t length,
                           uint64_t offset, bool dsync);
int overlay_mirror_zero (OverlayMove *move, uint64_t offset, uint64_t length,
                         bool punch);
int overlay_mirror_sync (OverlayMove *move);
/* That to the source itself has failed with err: which is returned. */
int overlay_mirror_missed (OverlayMove *move, uint64_t offset, int err);

/* --- overlay-open.c */
/* The chain of a disk that starts: before its identity is looked at. */
bool overlay_start (Disk *disk, GError **error);
/* Clean stop: all is durable, and a next start needs no RuntimeMap.  After a
 * failure they stay. */
bool overlay_stop (Disk *disk, GError **error);
/* Row (state 'planned') and, in a later transaction, files and object.  path:
 * NULL: own.  plan sets *out_path, the caller's. */
bool overlay_plan (Disk *disk, const char *name, const char *path, bool keep,
                   bool zero, int64_t *out_id, char **out_path,
                   GError **error);
Overlay *overlay_prepare (Disk *disk, const char *name, const char *path,
                          int64_t id, bool keep, bool zero, uint64_t size,
                          GError **error);
/* Files and row go.  The row says 'retired' already, or is made to. */
void overlay_remove (Overlay *ov);
void overlay_unprepare (Disk *disk, Overlay *ov, int64_t id, const char *path,
                        bool keep);
/* The modification times of all layers in one number, to be added to the
 * image's. */
int overlay_mtimes (Disk *disk, int64_t *out_sum);

/* Of a disk that starts. */
void overlay_first_segment (Disk *disk, Segment *seg);

/* --- overlay-cut.c: the part of a cut, which cut.c calls step by step. */
typedef struct CutPart CutPart;
bool overlay_cut_check (const FleeceCutDisk *disks, size_t i, GError **error);
bool overlay_cut_plan (CutPart *p, GError **error);
bool overlay_cut_prepare (CutPart *p, Segment *seg, GError **error);
void overlay_cut_undo (CutPart *p);
void overlay_cut_flip (CutPart *p, uint64_t counter);
void overlay_cut_finish (CutPart *p);
void overlay_cut_abort (CutPart *p);
/* BUSY if a move is under way.  cut_lock held. */
bool overlay_check_idle (Disk *disk, GError **error);
/* Or if there is a detached overlay. */
bool overlay_check_size_free (Disk *disk, GError **error);

/* --- overlay-store.c */
typedef struct {
  int64_t id;
  char *name, *file;
  uint64_t capacity;            /* blocks */
  bool keep, zero, has_nonce;
  OverlayState state;
  uint64_t tag;
  uint8_t nonce[RUNTIME_NONCE_BYTES];
} OverlayRow;
GPtrArray *store_list_overlays (Catalog *cat, const char *disk,
                                GError **error);        /* bottom first */
bool store_add_overlay (Catalog *cat, int64_t disk_id, const char *name,
                        const char *file, uint64_t capacity, bool keep,
                        bool zero, uint64_t tag, int64_t *out_id,
                        GError **error);
/* EXISTS if one has this file. */
bool store_check_overlay_file (Catalog *cat, const char *file, GError **error);
bool store_set_overlay_file (Catalog *cat, int64_t id, const char *file,
                             GError **error);
/* nonce: NULL: none. */
bool store_set_overlay_nonce (Catalog *cat, int64_t id, const uint8_t *nonce,
                              GError **error);
/* One that gets onto its disk gets onto the top of it. */
bool store_set_overlay_state (Catalog *cat, int64_t id, OverlayState state,
                              GError **error);
bool store_set_overlay_anonymous (Catalog *cat, int64_t id, GError **error);
bool store_set_overlay_name (Catalog *cat, int64_t id, const char *name,
                             GError **error);
/* Its file is not to be removed. */
bool store_set_overlay_keep (Catalog *cat, int64_t id, GError **error);
bool store_delete_overlay (Catalog *cat, int64_t id, GError **error);
/* May the disk have this size (bytes), as far as was recorded? */
bool store_knows_size (Catalog *cat, const char *disk, uint64_t size,
                       bool *out_known, GError **error);
/* Another disk, with an image of this identity and with layers on it; or
 * NULL. */
bool store_find_layered (Catalog *cat, const char *disk, uint64_t inode,
                         int64_t birth_ns, char **out_other, GError **error);
/* The image that a disk has got by a stream, and the one it had before. */
bool store_set_image (Catalog *cat, int64_t disk_id, const char *image,
                      const char *before, uint64_t inode, int64_t birth_ns,
                      GError **error);
bool store_get_image (Catalog *cat, const char *disk, char **out_image,
                      char **out_before, GError **error);

/* disk.c: A1 - A4 for a write that takes place elsewhere.  0 or -errno. */
int disk_admit (Disk *disk, uint64_t offset, uint64_t length);
/* cut.c, flip_lock held, before the counter is raised to this. */
void disk_next_segment (Disk *disk, Layer *layer, StorageFile *file,
                        Overlay *overlay, uint64_t size, uint64_t counter);
/* cut.c, cut_lock held: as disk_flip, with what guests write to: overlay (NULL:
 * the image, file). */
void disk_flip_to (Disk *disk, Layer *layer, StorageFile *file,
                   Overlay *overlay, uint64_t size);

#endif
