/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fleece-internal.h - the structures behind fleece.h, disk.h and snapshot.h.
 *
 * Lock order, outermost first:
 *   Disk::cut_lock (several: by Disk::index)
 *   Disk::break_lock
 *   the catalog's mutex
 *   Fleece::flip_lock
 *   Disk::stripe (one at a time; guest writes)
 *   Disk::snap_lock
 *   Fleece::table_lock (a leaf)
 * A guest's write takes the catalog's mutex only to record a broken snapshot,
 * and then holds no stripe and no snap_lock.  Nobody waits for a guest's write
 * with the catalog's mutex held.
 */
#ifndef FLEECE_INTERNAL_H
#define FLEECE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/runtime.h"
#include "fleece/copier.h"
#include "fleece/inflight.h"
#include "fleece/layer.h"
#include "fleece/snapshot.h"

/* What a write needs to know about the time between two flips of its disk.
 * Immutable once published.  A segment is freed when no write admitted before
 * its successor is left. */
typedef struct Segment Segment;
typedef struct OverlayStack OverlayStack;
struct Segment {
  uint64_t first_counter;       /* belongs to writes with counter >= this */
  Segment *older;               /* NULL once those are drained */
  uint64_t size;                /* of the disk: what lies beyond is refused.
                                 * Not more than the epoch's */
  const Epoch *epoch;           /* the epoch log's */
  DirtyBitmap *bitmap;          /* the epoch's */
  /* What writes go to: the image, or the port of the top overlay, to which
   * there is a reference (struct Overlay of overlay-internal.h; NULL: the
   * image). */
  StorageFile *file;
  struct Overlay *overlay;
  Layer *layer;                 /* where to preserve; NULL: nothing to */
  uint64_t layer_counter;       /* first_counter of the first segment with this
                                 * layer: writes below it have another one */
};

#define DISK_STRIPES 1024
#define STRIPE_BYTES 65536u     /* of disk, per stripe; also the copy unit's
                                   cap */

struct Disk {
  unsigned refs;                /* under Fleece::table_lock */

  /* Set in fleece_open_disk, never changed. */
  Fleece *fleece;
  char *name;
  uint32_t granularity;
  unsigned index;               /* no other disk's, ever */
  EpochLog *log;                /* set in disk_start */

  /* Changed by a block-stream of everything only, with cut_lock held; what was
   * before is freed with the disk. */
  _Atomic (char *) path;
  _Atomic (StorageFile *) base; /* the image */
  /* What the disk reads as, and is synced by: the image, or the overlays above
   * it (overlay-internal.h). */
  _Atomic (StorageFile *) live;
  OverlayStack *stack;

  /* Bytes, of newest; changed with cut_lock held. */
  _Atomic uint64_t size;

  /* The write path. */
  _Atomic (Segment *) newest;
  _Atomic uint64_t drained;     /* no write with a counter below this is left */
  /* A sync of the base has failed.  Linux calls the pages clean then, and later
   * syncs succeed: what was written since the last cut may go at any time.
   * Until the next start every epoch carries it on, so that increments have
   * it. */
  atomic_bool sync_failed;
  /* -errno of one that we did for ourselves: the kernel tells an error once,
   * and the guest's next flush has to have it.  0: none. */
  _Atomic int untold;
  Inflight *inflight;
  pthread_mutex_t stripe[DISK_STRIPES]; /* block N's: N * 4096 / STRIPE_BYTES */

  /* One cut, snapshot end or stop at a time. */
  pthread_mutex_t cut_lock;
  Epoch *current;               /* what newest->bitmap belongs to; cut_lock */
  Epoch *late;                  /* an aborted cut's epoch: in use, not sealed;
                                 * then current == late.  cut_lock */
  bool stopped;                 /* disk_stop was called; cut_lock */
  _Atomic uint64_t cuts;
  /* How long a write may wait for its old data to be preserved: what the
   * strictest snapshot says.  0: for ever. */
  _Atomic int64_t cbw_timeout_ms;
  atomic_uint late_marks;       /* calls of set_mark that still hang */
  /* Copied since the free space was looked at, about. */
  _Atomic uint64_t unchecked_blocks;

  /* Held while snapshots break: until their catalog rows say so, no write may
   * find the layer dead. */
  pthread_mutex_t break_lock;

  /* Under snap_lock; changed only with cut_lock held as well. */
  pthread_mutex_t snap_lock;
  GPtrArray *layers;            /* of Layer (a reference each), oldest first */
  GPtrArray *snapshots;         /* of Snapshot (a reference each), oldest
                                   first */
  /* Of layers that are gone, minus what loaded ones held at the start (so it
   * may wrap below 0): with the layers' own counts, the sum of this process. */
  uint64_t blocks_copied, blocks_zero;
  char *tracking_error;         /* under snap_lock alone; NULL: none */
};

struct Fleece {
  Storage *storage;
  char *scratch_dir;
  char *runtime_dir;            /* NULL: the default */
  Runtime *runtime;             /* from fleece_start to _free */
  Copier *copier;
  unsigned drain_timeout_ms;
  EpochOptions epochs;          /* what the user chose */
  bool scratch_reserve_set;
  uint64_t scratch_reserve;
  FleeceNotify notify;
  void *notify_opaque;
  Catalog *cat;                 /* borrowed, from fleece_start to _stop */

  /* See disk-table.c. */
  pthread_mutex_t table_lock;
  pthread_cond_t table_changed; /* or a reference was dropped */
  DiskTable *table;             /* under table_lock */
  unsigned next_index;          /* of a disk; its opener's */

  pthread_mutex_t flip_lock;
  /* The group's cut counter (K2): one for all disks, so that one store is the
   * same instant on all of them. */
  _Atomic uint64_t cut_counter;
};

struct Snapshot {
  atomic_uint refs;
  Disk *disk;
  char *name;
  int64_t id;                   /* catalog row */
  int64_t created;
  uint64_t size, boundary;
  Layer *layer;                 /* a reference; NULL if lost */
  uint64_t limit_bytes;         /* 0: none */
  uint32_t cbw_timeout;         /* seconds, 0: none */
  FleeceOnError on_error;
  bool durable;
  _Atomic SnapshotState state;
  char *reason;                 /* under disk->snap_lock */
  /* Of one that broke in this process, under disk->break_lock: does its row say
   * that? */
  enum { ROW_SAYS_SO = 0, ROW_SAYS_LIVE, ROW_FAILED } row;
};

/* gcc does not compile fences for ThreadSanitizer; a read-modify-write orders
 * as much. */
static inline void
full_fence (void)
{
#ifdef __SANITIZE_THREAD__
  atomic_int any = 0;

  atomic_fetch_add (&any, 1);
#else
  atomic_thread_fence (memory_order_seq_cst);
#endif
}

/* disk-table.c */
void fleece_init_table (Fleece *f);
void fleece_destroy_table (Fleece *f);

/* fleece.c */
void disk_free (Disk *disk);
void fleece_note (Fleece *f, FleeceNoteKind kind, const char *disk,
                  const char *snapshot, int error_number,
                  const char *format, ...) G_GNUC_PRINTF (6, 7);
/* Open the logs, layers and snapshots of one disk (disk-open.c). */
bool disk_start (Disk *disk, GError **error);
bool disk_stop (Disk *disk, GError **error);
/* Where a layer's blocks go unless the user says: no other catalog's layer has
 * this name, and of ours only the one with this id.  Caller frees. */
char *disk_default_scratch_path (const Disk *disk, int64_t layer_id);
/* The name of a layer's RuntimeMap; caller frees. */
char *disk_layer_map_name (const Disk *disk, int64_t layer_id);
/* Where the maps of a new layer go.  nonce: drawn here, kept by the caller as
 * long as home; *out_name is the caller's to free.  See LayerHome. */
LayerHome disk_layer_home (const Disk *disk, int64_t layer_id, bool durable,
                           uint8_t nonce[RUNTIME_NONCE_BYTES],
                           char **out_name);
/* Bytes free beyond the reserve where the scratch file at path is; UINT64_MAX:
 * unknown.  As below. */
uint64_t space_left (Storage *storage, const char *path, bool reserve_set,
                     uint64_t reserve);
/* Is less than the reserve free where the scratch file at path is?  reserve:
 * bytes; not set: the default (fleece.h). */
bool space_is_low (Storage *storage, const char *path, bool reserve_set,
                   uint64_t reserve);
/* Note with the image how far its log is; see epoch_log_mark. */
void disk_mark (Disk *disk);
bool disk_identity (Disk *disk, DiskIdentity *out, GError **error);

/* cut.c; cut_lock held. */
/* From now on writes go by a new segment of the same epoch, with this layer
 * (NULL: they preserve nothing; else the one that there is) and size. */
void disk_flip (Disk *disk, Layer *layer, uint64_t size);
/* Frees a segment. */
void segment_free (Segment *seg);
/* Wait until no write is left of before the last flip.  TIMEOUT. */
bool disk_drain (Disk *disk, unsigned timeout_ms, GError **error);
/* Seal what an earlier, aborted cut left unsealed.  TIMEOUT if its writes are
 * still in flight. */
bool disk_finish_late (Disk *disk, unsigned timeout_ms, GError **error);
/* Remove layers that no readable snapshot needs; waits a while for writes that
 * still use them. */
void disk_drop_layers (Disk *disk);

/* disk.c: fdatasync of the base; every one must go through here. */
int disk_sync (Disk *disk);

/* preserve.c: A4, for a write admitted to seg.  0 or -errno: the write must not
 * go on. */
int disk_preserve (Disk *disk, const Segment *seg, uint64_t offset,
                   uint64_t length);

/* snapshot.c */
Snapshot *snapshot_new (Disk *disk, const char *name, uint64_t boundary,
                        Layer *layer);
/* All snapshots that read through this layer are unreadable from now on, and
 * the layer is dead.  No lock held.  0, or -EIO: that cannot be made known to a
 * next start, and the layer is not dead: a write must not go on. */
int disk_break_snapshots (Disk *disk, Layer *layer, int error_number,
                          const char *what);
/* The scratch budget of the newest layer has been used up: break the snapshots
 * whose limit that is.  0 or -EIO, as above. */
int disk_break_over_limit (Disk *disk);
/* Is it this snapshot's limit that stopped a copy?  snap_lock held. */
bool snapshot_over_limit_locked (const Snapshot *snap);
/* Must a new layer be durable, for the sake of an older snapshot?  snap_lock
 * held. */
bool disk_has_durable_locked (Disk *disk);
/* After a cut, an end or a break: the newest layer's budget and the timeout of
 * copies.  snap_lock held. */
void disk_update_limits_locked (Disk *disk);

/* End it in memory; cut_lock held. */
void snapshot_forget_locked (Snapshot *snap);

/* snapshot-store.c: rows of the tables snapshot and layer. */
/* EXISTS if a layer has this file. */
bool store_check_layer_file (Catalog *cat, const char *file, GError **error);
/* Its state is 'retired' until store_set_layer_prepared: if the process dies
 * now, the next start removes the files, if they are there. */
bool store_add_layer (Catalog *cat, int64_t disk_id, const char *file,
                      uint64_t size, bool durable, bool keep,
                      int64_t *out_id, GError **error);
/* nonce: of its RuntimeMap, or of its map file; NULL: it has none. */
bool store_set_layer_nonce (Catalog *cat, int64_t id, const uint8_t *nonce,
                            GError **error);
bool store_set_layer_prepared (Catalog *cat, int64_t id, const uint8_t *nonce,
                               GError **error);
bool store_set_layer_file (Catalog *cat, int64_t id, const char *file,
                           GError **error);
bool store_set_layer_live (Catalog *cat, int64_t id, GError **error);
bool store_delete_layer (Catalog *cat, int64_t id, GError **error);
/* Its files could not be removed: the next start tries again. */
bool store_retire_layer (Catalog *cat, int64_t id, GError **error);
/* What a failed cut could not delete. */
bool store_delete_prepared (Catalog *cat, int64_t disk_id, const char *name,
                            GError **error);
bool store_add_snapshot (Catalog *cat, Snapshot *snap, int64_t disk_id,
                         int64_t layer_id, GError **error);
bool store_set_snapshot_live (Catalog *cat, Snapshot *snap, GError **error);
bool store_set_snapshot_state (Catalog *cat, int64_t id, SnapshotState state,
                               const char *reason, GError **error);
bool store_delete_snapshot (Catalog *cat, int64_t id, GError **error);
/* Snapshot (layer not set) and layer rows of a disk, oldest first. */
typedef struct {
  int64_t id;
  char *file;
  uint64_t size;
  bool retired, durable, keep, has_nonce;
  uint8_t nonce[RUNTIME_NONCE_BYTES];
} LayerRow;
typedef struct {
  int64_t id, layer_id, created;
  char *name, *reason;
  uint64_t boundary, size, limit_bytes;
  uint32_t cbw_timeout;
  FleeceOnError on_error;
  bool durable;
  SnapshotState state;
} SnapshotRow;
GPtrArray *store_list_layers (Catalog *cat, int64_t disk_id, GError **error);
GPtrArray *store_list_snapshots (Catalog *cat, int64_t disk_id,
                                 GError **error);

#endif
