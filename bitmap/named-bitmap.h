/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* named-bitmap.h - what users call a dirty bitmap: a set of epochs with a name.
 *
 * Nothing here is on a guest's write path: guests mark the open epoch and no
 * more, and a bitmap says which epochs, of which disk, count for it.  So
 * enabling, disabling, clearing and merging change rows, whatever the size of
 * the disk, and bitmaps that record cost what none costs.
 *
 * An interval is a range of epochs of one disk, FROM <= id < TO, whose changes
 * are rounded out to its granularity.  A bitmap's own recording is an interval
 * that is open at the end; merging copies the intervals of the source, and ends
 * them at this instant: the cut of the same transaction.  The number of that
 * cut is not known until it is made: BITMAP_CUT stands for it, and
 * named_bitmap_resolve puts it in.  Changes that come from elsewhere (populate)
 * are change sets, immutable and shared.
 *
 * Locking: a NamedBitmap is its owner's.  The functions with a Catalog take its
 * mutex and may be called in a transaction.
 */
#ifndef NAMED_BITMAP_H
#define NAMED_BITMAP_H

#include "bitmap/catalog.h"
#include "bitmap/change-set.h"
#include "bitmap/epoch.h"

/* As QEMU: powers of 2 in 512 .. 2^31.  Recording is never finer than
 * GRANULARITY_MIN; what is finer is told as if each of its granules were
 * dirty. */
#define BITMAP_GRANULARITY_MIN 512u
#define BITMAP_GRANULARITY_MAX (UINT32_C (1) << 31)

#define BITMAP_OPEN UINT64_MAX                  /* of to: no end yet */
#define BITMAP_CUT (UINT64_MAX - 1)             /* the cut that is to be made */

typedef struct {
  int64_t disk;                 /* catalog row of the disk that was written
                                   to */
  uint64_t from, to;            /* epoch ids of that disk, or the above */
  uint32_t granularity;         /* bytes */
} BitmapInterval;

/* A change set in the catalog. */
typedef struct {
  int64_t id;                   /* row of change_blob */
  uint32_t granularity;         /* to round it out to, bytes */
} BitmapBlob;

typedef struct {
  int64_t id;                   /* catalog row; 0: not stored yet */
  int64_t disk;                 /* the disk that it belongs to */
  char *name;
  uint32_t granularity;         /* bytes, as asked for */
  bool persistent;              /* stays over a restart */
  bool recording;
  bool inconsistent;            /* damaged: only good for removal */
  uint64_t size;                /* from here on everything is dirty: the disk's
                                 * size at the last clear, or what a shrink
                                 * left */
  GArray *intervals;            /* of BitmapInterval; disjoint where alike */
  GArray *blobs;                /* of BitmapBlob */
} NamedBitmap;

/* Clear, and recording from the next cut on if so asked.  disk_size: now. */
NamedBitmap *named_bitmap_new (int64_t disk, const char *name,
                               uint32_t granularity, uint64_t disk_size,
                               bool recording);
NamedBitmap *named_bitmap_copy (const NamedBitmap *bm);
void named_bitmap_free (NamedBitmap *bm);       /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (NamedBitmap, named_bitmap_free)

/* One that a job keeps for itself: no UTF-8 text begins with this byte, so no
 * user can name it.  Lists leave it out; it is a bitmap like others else. */
#define BITMAP_INTERNAL '\xff'

/* --- changes, of the struct alone */

void named_bitmap_clear (NamedBitmap *bm, uint64_t disk_size);
void named_bitmap_enable (NamedBitmap *bm);     /* no change if it is already */
void named_bitmap_disable (NamedBitmap *bm);
/* bm |= source, as of the cut.  The disks' sizes are equal. */
void named_bitmap_merge (NamedBitmap *bm, const NamedBitmap *source);
void named_bitmap_add_blob (NamedBitmap *bm, int64_t blob);

/* A new one that records since a past cut; and the reverse: since when it has
 * been recording its disk, if that and no more is in it, else 0. */
NamedBitmap *named_bitmap_new_since (int64_t disk, const char *name,
                                     uint32_t granularity, uint64_t disk_size,
                                     uint64_t boundary);
uint64_t named_bitmap_since (const NamedBitmap *bm);

/* What it said at a cut (boundary) of its own disk that is past, as a bitmap
 * that records nothing; and what it has recorded from there on. */
void named_bitmap_end_at (NamedBitmap *bm, uint64_t boundary);
void named_bitmap_begin_at (NamedBitmap *bm, uint64_t boundary,
                            uint64_t disk_size);

/* Is there a BITMAP_CUT of this disk in it? */
bool named_bitmap_needs_cut (const NamedBitmap *bm, int64_t disk);
void named_bitmap_resolve (NamedBitmap *bm, int64_t disk, uint64_t boundary);

/* --- what it says */

/* The log of a disk's catalog row; NULL: that disk is not served now. */
typedef EpochLog *(*NamedBitmapFindLog) (void *opaque, int64_t disk);

/* The dirty granules as of now, for a disk of disk_size bytes.  The set's
 * granularity is bm's if that can be (GRANULARITY_MIN .. GRANULARITY_MAX);
 * beyond, whole granules of bm's are in it or out.  *out_damaged: something
 * could not be read, and everything is dirty. */
ChangeSet *named_bitmap_changes (Catalog *cat, const NamedBitmap *bm,
                                 uint64_t disk_size,
                                 NamedBitmapFindLog find_log, void *opaque,
                                 bool *out_damaged, GError **error);

/* Bytes as QEMU counts them: dirty granules times granularity, a last one that
 * is short as a whole one.  set: from named_bitmap_changes. */
uint64_t named_bitmap_count (const NamedBitmap *bm, const ChangeSet *set);

/* For all of bitmaps (of NamedBitmap, live ones of one disk) at once: what
 * named_bitmap_count says now, in an array that the caller frees, and which are
 * damaged.  A thousand that were made one after the other cost one walk over
 * the epochs. */
typedef struct {
  uint64_t bytes;
  bool damaged;
} NamedBitmapCount;
NamedBitmapCount *named_bitmap_count_all (Catalog *cat,
                                          const GPtrArray *bitmaps,
                                          uint64_t disk_size,
                                          NamedBitmapFindLog find_log,
                                          void *opaque, GError **error);

/* --- rows (named-bitmap-store.c) */

/* Of NamedBitmap, by name, without internal ones: the live ones of a disk, or
 * those that a snapshot has kept (snapshot row; 0: live). */
GPtrArray *named_bitmap_list (Catalog *cat, int64_t disk, int64_t snapshot,
                              GError **error);
/* NULL without an error: there is none. */
NamedBitmap *named_bitmap_find (Catalog *cat, int64_t disk, int64_t snapshot,
                                const char *name, GError **error);
/* A bitmap of another disk, also one that a snapshot has kept, that says what
 * changed on this one: its name and its disk's, the caller's to free; NULL:
 * none. */
bool named_bitmap_find_user (Catalog *cat, int64_t disk, char **out_name,
                             char **out_disk, GError **error);
/* Stores all of a live one; an id of 0 is replaced by the new row's.  EXISTS:
 * the disk has a bitmap or checkpoint of that name. */
bool named_bitmap_put (Catalog *cat, NamedBitmap *bm, GError **error);
bool named_bitmap_delete (Catalog *cat, int64_t id, GError **error);
/* Those that were not to outlive the program that ended, or the service of one
 * disk (0: of all).  keep: ids (int64_t) of those that do all the same; NULL:
 * none. */
bool named_bitmap_delete_transient (Catalog *cat, int64_t disk,
                                    const GArray *keep, GError **error);
/* A row of change_blob for named_bitmap_add_blob, kept as long as one refers to
 * it (or until the next delete or put). */
bool named_bitmap_store_blob (Catalog *cat, const ChangeSet *set,
                              int64_t *out_blob, GError **error);

/* Keeps the live bitmaps of a disk, as they are at the cut (boundary), as those
 * of a snapshot; they go with its row. */
bool named_bitmap_freeze (Catalog *cat, int64_t disk, int64_t snapshot,
                          uint64_t boundary, GError **error);
/* After it: what the snapshot keeps under that name is bm instead, which
 * records nothing and gets an id; NULL: nothing. */
bool named_bitmap_keep (Catalog *cat, int64_t snapshot, const char *name,
                        NamedBitmap *bm, GError **error);
/* The disk shrinks to size bytes: what may come back later is dirty. */
bool named_bitmap_shrink (Catalog *cat, int64_t disk, uint64_t size,
                          GError **error);
/* The finest granularity that a recording bitmap of the disk wants, within
 * GRANULARITY_MIN .. most. */
bool named_bitmap_finest (Catalog *cat, int64_t disk, uint32_t most,
                          uint32_t *out_granularity, GError **error);

#endif
