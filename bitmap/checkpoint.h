/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* checkpoint.h - named instants over a set of disks, in a tree.
 *
 * A checkpoint is a row that names, for each of its disks, an epoch boundary.
 * Deleting it deletes rows: no other checkpoint's answer changes.  One
 * checkpoint is current; a new one becomes its child and the new current.
 * On one disk checkpoints and named bitmaps share one namespace.
 *
 * Locking: the catalog's.  All functions may be called inside a transaction.
 */
#ifndef CHECKPOINT_H
#define CHECKPOINT_H

#include "bitmap/catalog.h"

typedef struct {
  char *disk;                   /* disk name */
  char *bitmap;                 /* name offered as context; = checkpoint name */
  uint64_t boundary;            /* epoch that starts at the checkpoint */
} CheckpointDisk;

typedef struct {
  char *name;                   /* 1-1023 bytes of UTF-8 */
  char *description;            /* NULL: none */
  char *parent;                 /* NULL: a root */
  int64_t creation_time;        /* seconds since 1970 */
  bool current;
  GPtrArray *disks;             /* of CheckpointDisk, by disk name */
} Checkpoint;

Checkpoint *checkpoint_new (const char *name, const char *description,
                            int64_t creation_time);
void checkpoint_add_disk (Checkpoint *ckpt, const char *disk,
                          const char *bitmap, uint64_t boundary);
void checkpoint_free (Checkpoint *ckpt);        /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Checkpoint, checkpoint_free)
/* NULL if the checkpoint does not have the disk. */
const CheckpointDisk *checkpoint_find_disk (const Checkpoint *ckpt,
                                            const char *disk);

/* Names of disks and backup ids: 1-64 of [A-Za-z0-9._-], and not "." or "..".
 * INVALID, naming what (a word such as "disk name") and why, with the name
 * escaped and capped. */
bool name_check_id (const char *what, const char *name, GError **error);
/* Names of bitmaps and checkpoints: 1-1023 bytes of UTF-8, no control
 * characters.  (QEMU bars none; a name with a newline only ever hurt.) */
bool name_check_bitmap (const char *what, const char *name, GError **error);

/* Checks only: is the name free, on all disks and as a checkpoint?  Checkpoints
 * that are going (names; NULL: none) do not count. */
bool checkpoint_name_free (Catalog *cat, const char *name, GHashTable *going,
                           GError **error);

/* Becomes a child of the current one, and current.  EXISTS if taken. */
bool checkpoint_insert (Catalog *cat, const Checkpoint *ckpt, GError **error);

/* Restores one after a loss: parent and creation_time are ckpt's own.  One of
 * that name is replaced and keeps its children.  Current if its parent is, or
 * nobody.  NOT_FOUND: no such parent; INVALID: it would be its own ancestor;
 * EXISTS as insert. */
bool checkpoint_redefine (Catalog *cat, const Checkpoint *ckpt,
                          GError **error);

/* Parents first, then by creation; never NULL but on error. */
GPtrArray *checkpoint_list (Catalog *cat, GError **error);
/* NOT_FOUND: "checkpoint 'X' not found". */
Checkpoint *checkpoint_lookup (Catalog *cat, const char *name, GError **error);
/* The boundary of the bitmap or checkpoint called name on this disk.
 * NOT_FOUND if the disk has none of that name. */
bool checkpoint_boundary (Catalog *cat, const char *disk, const char *name,
                          uint64_t *out_boundary, GError **error);

typedef enum {
  CHECKPOINT_DELETE_ONE,        /* its children get its parent */
  CHECKPOINT_DELETE_TREE,       /* descendants too */
  CHECKPOINT_DELETE_CHILDREN,   /* only descendants; the named one is current */
} CheckpointDelete;

/* *out_deleted, if not NULL: names deleted (GPtrArray of char *). */
bool checkpoint_delete (Catalog *cat, const char *name, CheckpointDelete how,
                        GPtrArray **out_deleted, GError **error);

/* The oldest boundary of this disk that any checkpoint, named bitmap, snapshot
 * or backup still needs; 0 if none does. */
bool checkpoint_oldest_boundary (Catalog *cat, const char *disk,
                                 uint64_t *out_boundary, GError **error);

#endif
