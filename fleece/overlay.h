/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* overlay.h - layers of NEW data above a disk's image.
 *
 * A disk is its image (the file or device it was opened with) and, above that,
 * any number of overlays.  Guests write to the top one only; what it does not
 * have is read from the one below, and at last from the image.  An overlay is a
 * sparse file in which block N stands at N * OVERLAY_BLOCK, and a map of the
 * blocks that it has (overlay-map.c): a file that has all of them is a raw
 * image.
 *
 * Change tracking, snapshots, cuts and resizing belong to the disk and know
 * nothing of this: moving data between layers dirties nothing.
 *
 * What outlives the process: a write that was reported done, kill -9; one that
 * was flushed, or done with FUA, a power loss as well.  A block counts as
 * present after a power loss only if its data were stable before.
 *
 * Names: 1-64 of [A-Za-z0-9._-], one namespace a disk, whether on it or
 * detached.  NULL names the image.  All functions are thread-safe.  Errors:
 * NOT_FOUND (no layer of that name), EXISTS, BUSY (a move is under way there),
 * INVALID, IO, NO_MEMORY, TIMEOUT (a write did not finish within the drain
 * timeout).
 */
#ifndef OVERLAY_H
#define OVERLAY_H

#include "fleece/disk.h"

#define OVERLAY_BLOCK 4096u     /* bytes */

typedef struct Overlay Overlay;
typedef struct OverlayMove OverlayMove;

/* --- putting one on: FleeceCutDisk::overlay (fleece.h), part of any cut */

/* --- what there is */

typedef struct {
  char *name;                   /* NULL: the image */
  char *path;
  uint64_t size;                /* bytes */
  uint64_t present_bytes;       /* blocks present, of an overlay; 0 of the
                                   image */
  bool keep;                    /* the file is a user's: it stays when the layer
                                 * is dropped */
} OverlayInfo;

/* Of OverlayInfo, top first; the last one is the image.  Caller unrefs. */
GPtrArray *disk_chain (Disk *disk);

/* Runs of blocks that the layer itself has, or has not; of the image, by its
 * holes.  Returns 0, -errno, -ENOENT (no such layer on the disk), or what fn
 * returned. */
typedef int (*OverlayRunFn) (void *opaque, uint64_t length, bool present);
int disk_layer_runs (Disk *disk, const char *layer, uint64_t length,
                     uint64_t offset, OverlayRunFn fn, void *opaque);

/* qemu:allocation-depth: 1 what the top layer has, 2 the next, and so on; 0
 * what none has (a hole of the image).  A disk without overlays has 1 and 0. */
typedef int (*OverlayDepthFn) (void *opaque, uint64_t length, unsigned depth);
int disk_depth (Disk *disk, uint64_t length, uint64_t offset,
                OverlayDepthFn fn, void *opaque);

/* --- moves: block-commit and block-stream, a step at a time
 *
 * Nothing has moved as far as anybody can see until overlay_move_finish; a
 * server that dies before that starts with the chain as it was.  The disk must
 * outlive the move.  One move a disk at a time (BUSY), and no resize and no new
 * layer meanwhile.  One thread at a time may use a move. */

/* Down into base (NULL: the image) what lies in (base, top].  top: NULL: the
 * active layer.  With the active layer, what guests write from now on goes to
 * both. */
OverlayMove *overlay_commit (Disk *disk, const char *top, const char *base,
                             GError **error);
/* Up into layer (NULL: the active one) what lies below it, down to but not of
 * base; base: NULL: the image.  whole: the image too (base must be NULL): then
 * finish makes the layer's file the disk's image, whose path disk_path then is;
 * the image before stays as it is, and a next start with its path is
 * refused. */
OverlayMove *overlay_stream (Disk *disk, const char *layer, bool whole,
                             const char *base, GError **error);

/* Where a stream moved the image of disk, a name, if that is another file than
 * path; else *out_image is NULL.  Needs no more than an open catalog. */
bool overlay_moved_image (Catalog *cat, const char *disk, const char *path,
                          char **out_image, GError **error);

/* Copy about max_bytes more.  *out_copied: bytes copied (holes cost nothing).
 * 1: there is more; 0: all is there, finish may be called (and is not reached
 * again); -errno of a read or a write: calling it again tries again there.
 * *out_write: the error was one of the target. */
int overlay_move_step (OverlayMove *move, uint64_t max_bytes,
                       uint64_t *out_copied, bool *out_write);
/* Progress, bytes of disk. */
void overlay_move_progress (const OverlayMove *move, uint64_t *out_offset,
                            uint64_t *out_length);
bool overlay_move_is_active (const OverlayMove *move);  /* commits the top */
/* After a step returned 0: makes the target stable, takes the layers between
 * out of the chain, at once and durably, and removes their files (those that
 * are a user's stay).  Guests go on meanwhile.  On failure all is as before and
 * it may be called again: if a write to the image has failed since, steps come
 * first. */
bool overlay_move_finish (OverlayMove *move, GError **error);
/* Ends it, as it stands; NULL is fine. */
void overlay_move_free (OverlayMove *move);

/* A cut that failed after guests had begun to write to its new layer leaves
 * that there, without a name: this moves what is in it down, and drops it.
 * Call it now and then from a background thread, and after a cut that
 * failed. */
bool fleece_settle_overlays (Fleece *f, GError **error);

/* --- detached overlays: over a disk, but not in the guest's path
 * (restore-begin)
 *
 * What one does not have reads as the disk now, or as zeroes.  A disk that has
 * one cannot be resized (BUSY). */

typedef struct {
  const char *name;
  const char *path;             /* NULL: in the scratch directory */
  bool zero;                    /* below it is nothing, not the disk */
} OverlayOptions;

/* Durable when it returns.  commit: as in fleece_cut.  A reference for the
 * caller; it stays, also over a restart, until applied or discarded. */
Overlay *overlay_new (Disk *disk, const OverlayOptions *options,
                      bool (*commit) (void *opaque, GError **error),
                      void *opaque, GError **error);
Overlay *overlay_find (Disk *disk, const char *name);   /* detached; or NULL */
Overlay *overlay_ref (Overlay *ov);
void overlay_unref (Overlay *ov);               /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Overlay, overlay_unref)
const char *overlay_name (const Overlay *ov);
Disk *overlay_disk (const Overlay *ov);

/* As disk_pread and so on; -ESHUTDOWN once it is not detached any more. */
int overlay_pread (Overlay *ov, void *buf, size_t length, uint64_t offset);
int overlay_pwrite (Overlay *ov, const void *buf, size_t length,
                    uint64_t offset, bool fua);
int overlay_zero (Overlay *ov, uint64_t length, uint64_t offset,
                  unsigned flags);
int overlay_trim (Overlay *ov, uint64_t length, uint64_t offset, bool fua);
int overlay_flush (Overlay *ov);
int overlay_extents (Overlay *ov, uint64_t length, uint64_t offset,
                     FleeceRunFn fn, void *opaque);

/* All of them become the top layers of their disks (one a disk) at one instant,
 * for whoever reads and writes the disks, and durably; every range that was
 * written is dirty, and has been preserved for the snapshots that are open.
 * commit: as in fleece_cut.  On failure nothing happened.  The caller then
 * commits each one down (overlay_commit by its name) at leisure. */
bool fleece_apply_overlays (Fleece *f, Overlay **ov, size_t nr,
                            bool (*commit) (void *opaque, GError **error),
                            void *opaque, GError **error);
/* Nothing of it is left; references stay good, for -ESHUTDOWN. */
bool overlay_discard (Overlay *ov,
                      bool (*commit) (void *opaque, GError **error),
                      void *opaque, GError **error);

#endif
