/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* cut-internal.h - the steps of a cut, for cut.c and resize.c.  All with the
 * cut_locks of its disks held. */
#ifndef CUT_INTERNAL_H
#define CUT_INTERNAL_H

#include "fleece/fleece-internal.h"

/* One disk's part, as it is being made.  Others of the same disk follow the
 * first and add a snapshot and its layer. */
typedef struct CutPart CutPart;
struct CutPart {
  FleeceCutDisk *req;
  Disk *disk;
  CutPart *first;               /* NULL: this is the first of its disk */
  uint32_t granularity;         /* the finest asked for; of the first */
  uint64_t size;                /* of the disk from the cut on */
  Segment *seg;                 /* of the first */
  bool new_layer;               /* seg->layer is new */
  Epoch *epoch;                 /* the first's */
  int64_t layer_id;             /* 0: no row */
  char *path;                   /* of the scratch file; owned by the caller */
  bool durable;                 /* the layer */
  Layer *layer;                 /* new; NULL without a snapshot */
  Snapshot *snap;
  /* A layer of new data. */
  int64_t overlay_id;           /* 0: no row */
  char *overlay_path;           /* owned by the caller */
  struct Overlay *overlay;      /* a reference */
  bool drained;
  bool sealed;                  /* epoch_log_seal was called: it holds in memory
                                 * whatever becomes of the transaction */
};

typedef struct {
  Fleece *f;
  CutPart *part;
  size_t nr;
  uint64_t counter;             /* the flip's */
} Cut;

/* K1.  On failure nothing remains.  undo_prepare: instead of a flip. */
bool cut_prepare (Cut *cut, GError **error);
void cut_undo_prepare (Cut *cut);
/* K2 to K5.  On failure what the flip did remains (K6'). */
bool cut_run (Cut *cut, bool (*commit) (void *, GError **), void *opaque,
              GError **error);

#endif
