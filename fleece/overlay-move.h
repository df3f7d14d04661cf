/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* overlay-move.h - a move of data between layers, for overlay-move.c and
 * overlay-copy.c. */
#ifndef OVERLAY_MOVE_H
#define OVERLAY_MOVE_H

#include "fleece/overlay-internal.h"

struct OverlayMove {
  Disk *disk;                   /* a reference is the caller's */
  const Chain *chain;           /* the disk's; nobody else changes it
                                   meanwhile */
  bool stream;
  /* A commit: what is in layers [first, end) goes to target.  A stream: what is
   * in them, and if whole in the image, goes into layer number end.  Those
   * layers are dropped then. */
  unsigned first, end;
  bool whole;
  Overlay *into;                /* of a stream; borrowed of chain */
  StorageFile *target;          /* of a commit: the image or a port */
  Overlay *target_overlay;      /* or NULL: the image */
  bool active;                  /* of a commit: the top is among them */
  uint64_t offset, length;      /* bytes; all before offset is copied */

  /* Of an active commit.  A write that could not be done to the target as well:
   * where the first one was (UINT64_MAX: none), and why. */
  _Atomic uint64_t failed_at;
  _Atomic int failed_err;
  /* The move is about to be over: such a write fails, and a flush is one of the
   * target too. */
  atomic_bool settling;
  /* The catalog may say already that it is over. */
  bool in_doubt;
};

#endif
