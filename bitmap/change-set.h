/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* change-set.h - an immutable set of granules of one disk: a sealed epoch, or
 * the OR of many ("changed since").  Roaring-compressed: 1 TiB with 1 % random
 * 64 KiB granules is 336 KiB (durability.md 6).
 *
 * Reference-counted with atomics; everything else is read-only, so a ChangeSet
 * may be used by any number of threads.
 */
#ifndef CHANGE_SET_H
#define CHANGE_SET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <glib.h>

typedef struct ChangeSet ChangeSet;

/* disk_size, granularity: as for dirty_bitmap_new. */
ChangeSet *change_set_new_empty (uint64_t disk_size, uint32_t granularity,
                                 GError **error);
ChangeSet *change_set_new_full (uint64_t disk_size, uint32_t granularity,
                                GError **error);
ChangeSet *change_set_ref (ChangeSet *set);
void change_set_unref (ChangeSet *set);         /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (ChangeSet, change_set_unref)

/* OR of nr sets, for a disk of disk_size bytes, at the finest granularity found
 * among them (granularity if nr is 0).  A set of a smaller disk covers its own
 * part; bytes from its size to disk_size come out dirty, since a range that
 * came into being by growing is dirty (resize rule); a set of a larger disk is
 * cut.  NULL: no memory. */
ChangeSet *change_set_or (ChangeSet *const *sets, size_t nr,
                          uint64_t disk_size, uint32_t granularity,
                          GError **error);

/* The same for sets that come one after the other: adds are merged at once, so
 * that no more than one needs to be in memory.  Not thread-safe. */
typedef struct ChangeSetUnion ChangeSetUnion;

/* granularity: of the result, coarsened if the disk has too many granules. */
ChangeSetUnion *change_set_union_new (uint64_t disk_size, uint32_t granularity,
                                      GError **error);
bool change_set_union_add (ChangeSetUnion *u, const ChangeSet *set,
                           GError **error);
/* The result; u may only be freed afterwards. */
ChangeSet *change_set_union_finish (ChangeSetUnion *u, GError **error);
void change_set_union_free (ChangeSetUnion *u); /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (ChangeSetUnion, change_set_union_free)

/* set with whole blocks of granularity bytes (a power of 2, up to 2^31) in it
 * or out: a block of which any part is dirty is dirty.  What is finer than set
 * stays as it is. */
ChangeSet *change_set_round_out (ChangeSet *set, uint32_t granularity,
                                 GError **error);

/* The part of set from byte offset on, in whole granules. */
ChangeSet *change_set_from (const ChangeSet *set, uint64_t offset,
                            GError **error);

uint64_t change_set_size (const ChangeSet *set);              /* disk bytes */
uint32_t change_set_granularity (const ChangeSet *set);       /* bytes */
uint64_t change_set_count (const ChangeSet *set);             /* granules */
bool change_set_get (const ChangeSet *set, uint64_t offset);

/* The run that contains byte offset (< size): *out_dirty says what it is, the
 * return value is the number of bytes from offset to the end of the run, at
 * least 1, clipped to the disk and to limit (> 0).  O(log n) + O(run). */
uint64_t change_set_run (const ChangeSet *set, uint64_t offset, uint64_t limit,
                         bool *out_dirty);

/* Stored form: header {magic, version, size, granularity, count, length,
 * crc32c} + Roaring's portable format (the frozen one differs by endianness and
 * may change, H16).  See bitmap/FORMAT.  Deserialize validates every field:
 * returns a good set or NULL with CORRUPT. */
GBytes *change_set_serialize (const ChangeSet *set, GError **error);
ChangeSet *change_set_deserialize (GBytes *blob, GError **error);

#endif
