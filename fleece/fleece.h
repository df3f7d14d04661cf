/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fleece.h - all disks of a process, and the one primitive that makes
 * checkpoints and snapshots: the cut.
 *
 * Set up in this order: fleece_new and fleece_add_disk before a fork (they open
 * and lock what a user can get wrong), fleece_start after it, then I/O, then
 * fleece_stop once no I/O can come any more, fleece_free.  Disks may come and
 * go in between (fleece_open_disk and below).
 *
 * This library never logs: it tells through the notify callback.
 */
#ifndef FLEECE_H
#define FLEECE_H

#include <stdbool.h>
#include <stdint.h>
#include <glib.h>
#include "bitmap/catalog.h"
#include "bitmap/epoch.h"
#include "bitmap/storage.h"

typedef struct Fleece Fleece;
typedef struct Disk Disk;
typedef struct Snapshot Snapshot;

typedef enum {
  FLEECE_NOTE_INFO,             /* worth a log line */
  FLEECE_NOTE_WARNING,
  FLEECE_NOTE_SNAPSHOT_BROKEN,  /* the first failure only; see snapshot_state */
  FLEECE_NOTE_SNAPSHOT_LOST,    /* found so by a start */
  FLEECE_NOTE_TRACKING,         /* a warning; see disk_tracking_error */
} FleeceNoteKind;

/* disk, snapshot: names, either may be NULL.  text: one phrase.  Called from
 * any thread, also from a guest's write: must not block and must not call
 * back. */
typedef void (*FleeceNotify) (void *opaque, FleeceNoteKind kind,
                              const char *disk, const char *snapshot,
                              const char *text, int error_number);

typedef struct {
  Storage *storage;             /* NULL: storage_posix */
  const char *scratch_dir;      /* where layers live; made by fleece_start */
  const char *runtime_dir;      /* NULL: the default of runtime_new */
  unsigned drain_timeout_ms;    /* 0: 60000 (durability.md 5) */
  /* Of the fields that users choose: region_bytes and below, to cap_bytes. */
  EpochOptions epochs;
  /* A snapshot breaks when less than this is free where its scratch file is.
   * Default, if not set: the greater of 5 % and 2 GiB. */
  bool scratch_reserve_set;
  uint64_t scratch_reserve;     /* bytes */
  FleeceNotify notify;          /* NULL: none */
  void *notify_opaque;
} FleeceOptions;

Fleece *fleece_new (const FleeceOptions *options, GError **error);
void fleece_free (Fleece *f);                   /* NULL is fine; see
                                                   fleece_stop */

/* Opens and locks the image or block device at path (retried for 2 s; BUSY
 * names the path).  name: see name_check_id; EXISTS if taken, and the same file
 * under two names is refused.  granularity: of tracking, bytes, 4 KiB .. 1 MiB.
 * The disk belongs to f.  Before fleece_start. */
Disk *fleece_add_disk (Fleece *f, const char *name, const char *path,
                       uint32_t granularity, GError **error);

/* A disk stays while somebody has a reference; requests take none. */
Disk *disk_ref (Disk *disk);
void disk_unref (Disk *disk);                   /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Disk, disk_unref)

/* The disks of one moment, by name: it never changes, and has a reference to
 * each of them. */
typedef struct {
  unsigned refs;                /* fleece's */
  Fleece *fleece;
  unsigned len;
  Disk *disk[];
} DiskTable;

DiskTable *fleece_disks (Fleece *f);            /* a new reference */
void disk_table_unref (DiskTable *table);       /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (DiskTable, disk_table_unref)
Disk *fleece_find_disk (Fleece *f, const char *name);   /* likewise, or NULL */

/* One more disk, one less, while others are used.  The caller sees to it that
 * one thread at a time is at these.
 *
 * open: as fleece_add_disk, and starts it if f has been started; nobody finds
 *   it before show.  Returns a reference.
 * hide: from now on nobody finds it; show undoes that.
 * wait_unused: until nobody but the caller has a reference; false: after
 *   timeout_ms somebody still has.
 * drop: of one that is hidden and unused: stops it, as cleanly as fleece_stop,
 *   and takes the caller's reference.  It is gone also on an error. */
Disk *fleece_open_disk (Fleece *f, const char *name, const char *path,
                        uint32_t granularity, GError **error);
void fleece_show_disk (Fleece *f, Disk *disk);
void fleece_hide_disk (Fleece *f, Disk *disk);
bool fleece_wait_unused (Fleece *f, Disk *disk, unsigned timeout_ms);
bool fleece_drop_disk (Fleece *f, Disk *disk, GError **error);

/* Opens each disk's epoch log in the open catalog (borrowed until fleece_stop)
 * and its snapshots: intact after a clean stop, else LOST.  On failure those
 * that had started are stopped, cleanly. */
bool fleece_start (Fleece *f, Catalog *cat, GError **error);

/* Clean stop: stores layers' maps, epochs and identities, so that the next
 * start finds all as it was.  No I/O may run or follow.  On error the rest is
 * still stopped, and the disk in question will read all dirty. */
bool fleece_stop (Fleece *f, GError **error);

#define FLEECE_CBW_TIMEOUT 30   /* seconds; durability.md 5 */

typedef enum {
  FLEECE_BREAK_SNAPSHOT,        /* default: the guest goes on */
  FLEECE_BREAK_GUEST_WRITE,     /* the guest's write fails, snapshot stays
                                   good */
} FleeceOnError;

/* One disk's part in a cut.  There may be several of one disk, for as many
 * snapshots of it. */
typedef struct {
  Disk *disk;
  const char *snapshot;         /* name for a new snapshot; NULL: none */
  const char *scratch_file;     /* path for its layer, must not exist; NULL:
                                   own */
  bool scratch_keep;            /* it must exist, and stays: see LayerHome */
  uint64_t scratch_limit;       /* bytes of preserved data; 0: no limit */
  bool durable;                 /* survives power loss; each first write to a
                                 * part of the disk then waits for two syncs */
  FleeceOnError on_error;
  /* Seconds that a guest's write may wait for its old data to be preserved,
   * before that counts as failed; 0: for ever.  Of all snapshots of a disk the
   * least counts. */
  uint32_t cbw_timeout;
  /* Name of a new layer of new data on top of the disk, from the cut on; NULL:
   * none.  Once a disk.  See overlay.h. */
  const char *overlay;
  const char *overlay_file;     /* its file; NULL: own, where layers live */
  bool overlay_keep;            /* overlay_file is there, and empty (INVALID),
                                 * and stays when the layer goes; else it must
                                 * not exist */
  uint32_t granularity;         /* of tracking from here on, bytes, if finer
                                 * than the disk's and its bitmaps'; 0: as they
                                 * want */
  /* Out: set before commit is called. */
  uint64_t boundary;            /* epoch that starts at the cut */
  Snapshot *out_snapshot;       /* a reference for the caller; NULL if none */
} FleeceCutDisk;

/* Ends the open epoch of every disk listed, at one instant, while guests write,
 * and starts the snapshots asked for.  commit (may be NULL) runs inside the
 * catalog transaction that makes the cut durable, to add rows of the caller; if
 * it fails, the cut fails.
 * On failure nothing named remains: no snapshot, no rows.  Errors: TIMEOUT (a
 * write did not finish within the drain timeout; names the disk), EXISTS (a
 * snapshot or scratch file of that name), IO, NO_MEMORY, or commit's.
 * Waits for writes admitted before the cut; guests never wait for it. */
bool fleece_cut (Fleece *f, FleeceCutDisk *disks, size_t nr,
                 bool (*commit) (void *opaque, GError **error), void *opaque,
                 GError **error);

/* Gives a disk another size (bytes), at one instant as a cut does, while guests
 * write.  What is added reads as zeroes and is dirty; what is cut off is
 * preserved for the snapshots, which keep their size, and refused to whoever
 * still writes there.  Done and durable when it returns true; the same size
 * again is done at once.  A block device cannot be given a size: the one it has
 * is taken up.  On failure the size is as before, unless the message says that
 * it is new and not recorded yet: doing it again then ends it.  Errors: INVALID
 * (the size), TIMEOUT as fleece_cut, IO (also: what is cut off cannot be
 * preserved for a snapshot that must not break), NO_MEMORY. */
bool fleece_resize (Fleece *f, Disk *disk, uint64_t size, GError **error);

/* Frees the scratch space that only broken snapshots use; they stay, with their
 * reason.  Call it from a background thread after FLEECE_NOTE_SNAPSHOT_BROKEN.
 * False: a disk was busy with a cut; call it again. */
bool fleece_drop_broken (Fleece *f);

/* K7: store sealed epochs still in memory.  Call it now and then from a
 * background thread, and after a cut. */
bool fleece_store_epochs (Fleece *f, GError **error);
/* Then this: merge those that no row of the catalog separates any more. */
bool fleece_compact_epochs (Fleece *f, GError **error);

#endif
