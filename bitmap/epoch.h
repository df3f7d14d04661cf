/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* epoch.h - one disk's epochs: one open and recording, the sealed ones
 * immutable.
 *
 * Epoch ids grow by time within a disk and never repeat (also not over
 * restarts).  A boundary is named by the id of the epoch that STARTS there:
 * "changed between boundary F and boundary T" is the OR of all epochs with
 * F <= id < T, and T = 0 means up to now, the open epoch included.
 *
 * Tracking survives a clean stop exactly.  What survives anything else is in
 * EpochOptions: with a runtime directory that is still there, all; after a
 * power cut the durable map and the write intents, which say more than what
 * changed; else the epoch is dirty everywhere, and so every boundary before it.
 * Also when the image changed behind our back: see DiskIdentity.
 *
 * Locking: an EpochLog has mutexes of its own, taken inside the catalog's.
 * Epoch::bitmap is lock-free; everything else of an Epoch is immutable or under
 * the log's mutex.
 */
#ifndef EPOCH_H
#define EPOCH_H

#include <stdbool.h>
#include <stdint.h>
#include <glib.h>
#include "bitmap/catalog.h"
#include "bitmap/change-set.h"
#include "bitmap/dirty-bitmap.h"
#include "bitmap/durable-map.h"
#include "bitmap/runtime.h"
#include "bitmap/storage.h"

#define EPOCH_MARK_BYTES 160

/* What tells that an image is still the one we tracked (H8).  Recorded at a
 * clean stop, compared at the next open. */
typedef struct {
  uint64_t size;                /* bytes */
  uint64_t device, inode;       /* st_dev (st_rdev of a block device), st_ino */
  int64_t birth_ns;             /* when the file was made */
  int64_t mtime_ns;             /* 0 for block devices */
  /* All but size is not compared where either side is 0: give 0 for what may
   * change by itself, as numbers of block device nodes do. */
  /* What epoch_log_mark said when the image was last used, as far as that has
   * been kept with the image (and not in the state directory); "": unknown.
   * Only epoch_log_open looks at it. */
  char mark[EPOCH_MARK_BYTES];
} DiskIdentity;

/* A recording epoch, or one that was. */
typedef struct {
  uint64_t id;
  uint64_t size;                /* geometry is fixed for the epoch's life */
  uint32_t granularity;
  DirtyBitmap *bitmap;          /* of guest writes; NULL once stored */
  /*< private >*/
  uint64_t prev;                /* id of the epoch before; 0: none */
  ChangeSet *sealed;            /* cache of bitmap, once it cannot change */
  RuntimeMap *map;              /* R, where the bits are; NULL: nowhere */
  uint8_t nonce[RUNTIME_NONCE_BYTES];   /* of map */
  DurableMap *durable;          /* D; NULL: none */
  bool final;                   /* D has all that there will be */
} Epoch;

typedef struct EpochLog EpochLog;

/* Where bits live besides memory (durability.md 3 and 5).  0: the default. */
typedef struct {
  Storage *storage;             /* NULL: storage_posix */
  Runtime *runtime;             /* borrowed; NULL: none */
  uint32_t region_bytes;        /* of write intents: 4 MiB; a power of 2 */
  unsigned sync_interval_ms;    /* of the durable map: 5000 */
  unsigned idle_ms;             /* before an intent is cleared: 30000 */
  unsigned idle_over_cap_ms;    /* the same above the cap: 5000 */
  uint64_t cap_bytes;           /* max (16 GiB, 2 % of the disk) */
  /* Storing failed, or what was stored is damaged (told once a log); text: one
   * phrase.  Any thread, no lock held; must not call back.  NULL: none. */
  void (*notify) (void *opaque, const char *disk, const char *text,
                  int error_number);
  void *opaque;
} EpochOptions;

#define INTENT_REGION_MIN (1u << 20)
#define INTENT_REGION_MAX (1u << 30)

typedef enum {
  EPOCHS_NONE_LOST,             /* nothing was at stake */
  EPOCHS_EXACT,
  EPOCHS_BOUNDED,               /* dirty, and some more */
  EPOCHS_ALL_DIRTY,
} EpochRecovery;

/* What epoch_log_open found; for the log and for query-block. */
typedef struct {
  bool created;                 /* the disk was unknown; counts as clean */
  bool clean;                   /* tracking was stopped in order */
  EpochRecovery recovery;       /* the worst of all epochs, if not clean */
  uint64_t over_reported;       /* bytes dirty only to be safe, if BOUNDED */
  unsigned bad_sectors;         /* of the durable map and the intents */
  bool same_image;              /* nobody else wrote to it, as far as can be
                                 * told; what was kept aside of it still fits */
  char *reason;                 /* why not clean; created: what is odd; the
                                   log's */
} EpochOpenReport;

/* Opens the log of the disk called name, creating its rows if it is new,
 * recovers what an unclean stop left, makes a new open epoch and marks the disk
 * as in use (not clean), all durable on return.  granularity: for the new
 * epoch.  options: NULL: bits are in memory alone.  Its files are in
 * STATE/maps.  Recovery that is cut off and repeated gives the same answer. */
EpochLog *epoch_log_open (Catalog *cat, const char *name, uint32_t granularity,
                          const DiskIdentity *identity,
                          const EpochOptions *options, GError **error);
const EpochOpenReport *epoch_log_report (const EpochLog *log);

/* Clean stop: no write may be in flight or follow.  Stores every epoch, also
 * the open one, then records identity and "clean" in one transaction.  The
 * caller has fdatasync'ed the image before it read the identity. */
bool epoch_log_close (EpochLog *log, const DiskIdentity *identity,
                      GError **error);
void epoch_log_free (EpochLog *log);            /* without close: not clean */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (EpochLog, epoch_log_free)

/* Says which epoch of whose log the image is in, to be kept with the image:
 * that is how a state directory that was put back from an older copy is found,
 * and an image that was used with another one meanwhile.  Keep it there before
 * a guest writes, after prepare and before the flip, and after close.  Never
 * ahead of what the catalog has durably.  Caller frees. */
char *epoch_log_mark (EpochLog *log);

int64_t epoch_log_disk_id (const EpochLog *log);        /* catalog's disk row */
const char *epoch_log_disk_name (const EpochLog *log);
/* Bytes that a power cut would now add to what is dirty, at most. */
uint64_t epoch_log_intent_bytes (EpochLog *log);
/* Writes that have waited for an intent, since the log was opened. */
uint64_t epoch_log_intent_waits (EpochLog *log);
/* The open one; borrowed, lives as long as the log (its bitmap does not). */
Epoch *epoch_log_current (EpochLog *log);

/* A3: once this returns 0, a power cut leaves the range dirty in this epoch.
 * The caller has marked it in epoch->bitmap, a full fence between.  Takes no
 * lock where the range is known to be safe; else waits for a sync.  -EIO:
 * intents cannot be recorded; the write must not go on. */
int epoch_intend (EpochLog *log, const Epoch *epoch, uint64_t offset,
                  uint64_t length);

/* The cut, in three steps (durability.md K1, K5, K6').
 * prepare: makes the next epoch, its row and maps; no writer sees it yet.  It
 *   must be durable before a writer does: commit the transaction, if in one.
 *   At most one prepared epoch a log.  size: of the disk from the cut on.  What
 *   growing adds is dirty in the new epoch.  While an epoch of another size is
 *   prepared, the image may have either size: a start after a crash goes by
 *   what it finds and accepts both.  It must have the new one durably before
 *   seal's transaction is committed.
 * sync_map: K4, once no write is in flight on what is open: its bits durable.
 *   If that fails, seal stores them in the row instead.
 * seal: inside the caller's catalog transaction: next becomes the open one and
 *   what was open is sealed.  No write may be in flight on the old one.  Its
 *   bits stay in memory until epoch_log_store.  In memory this holds even if
 *   the transaction then fails, since writers have moved on: the rows follow
 *   with the next store, seal or close.
 * abandon: drop a prepared epoch that no writer has seen. */
Epoch *epoch_log_prepare (EpochLog *log, uint64_t size, uint32_t granularity,
                          GError **error);
void epoch_log_sync_map (EpochLog *log);
bool epoch_log_seal (EpochLog *log, Epoch *next, GError **error);
void epoch_log_abandon (EpochLog *log, Epoch *next);

/* Before an image loses bytes by being cut off: they are dirty in the open
 * epoch, durably, since a power cut may bring back some of them and not others.
 * 0 or -errno: they are not safe. */
int epoch_log_mark_lost (EpochLog *log, uint64_t offset, uint64_t length);

/* Before seal, of an epoch that nobody writes any more: what changed in it
 * counts as changed in next too.  For data that a disk may yet lose. */
void epoch_log_carry (EpochLog *log, Epoch *next);

/* K7: write the blobs of sealed epochs that are still in memory, then free
 * their bitmaps.  Any thread, also while guests write; not inside a
 * transaction (INVALID), whose failure would come after the freeing. */
bool epoch_log_store (EpochLog *log, GError **error);

/* What changed from boundary from to boundary to (0: now), as of the disk's
 * size at that instant.  Loads blobs on demand, one at a time, and keeps none.
 * A blob that cannot be read or fails its checks, or a gap in the rows, counts
 * as all dirty (*out_damaged is then set, if not NULL), never as clean.
 * NOT_FOUND if from or to is older than the oldest epoch kept, or unknown. */
ChangeSet *epoch_log_changed (EpochLog *log, uint64_t from, uint64_t to,
                              bool *out_damaged, GError **error);

/* Merges neighbouring epochs that no checkpoint, bitmap, snapshot or backup
 * separates any more; the answers of epoch_log_changed at boundaries that are
 * left stay the same.  Any thread, now and then. */
bool epoch_log_compact (EpochLog *log, GError **error);

/* Of the file in the runtime directory that has the mark of a disk whose image
 * cannot keep it itself. */
#define EPOCH_MARK_SUFFIX ".mark"

/* Adds the names of all files in the runtime directory that rows of the catalog
 * need: maps of epochs (DISK.EPOCH.r), layers (DISK.LAYER.p) and overlays
 * (DISK.OVERLAY.o), marks, of every
 * disk. */
bool epoch_list_runtime_maps (Catalog *cat, GPtrArray *names, GError **error);

/* Drop epochs that no boundary needs any more: all sealed ones with id <
 * keep_from.  Part of the caller's transaction if one is open. */
bool epoch_log_forget_before (EpochLog *log, uint64_t keep_from,
                              GError **error);

#endif
