/* SPDX-License-Identifier: BSD-3-Clause */
/* transaction.h - what one command or several change together, at one instant.
 *
 * Actions edit copies of the rows, in their order, and see what earlier ones
 * did.  Nothing is in effect before transaction_commit: it makes one cut of all
 * the disks that need one, and writes all rows in the cut's transaction.  A
 * transaction that is freed without it leaves no trace.
 *
 * Locking: one transaction at a time: transaction_new waits for the one before.
 * While there is one, no disk goes (added-disks.h): it may borrow them.
 */
#ifndef TRANSACTION_H
#define TRANSACTION_H

#include <stdbool.h>
#include <jansson.h>

#include "bitmap/checkpoint.h"
#include "bitmap/named-bitmap.h"
#include "fleece/fleece.h"
#include "plugin/bitmap-pins.h"

typedef struct Transaction Transaction;

Transaction *transaction_new (void);
void transaction_free (Transaction *t);         /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Transaction, transaction_free)

/* Puts all of it into effect, or nothing.  Then t may only be freed. */
bool transaction_commit (Transaction *t, GError **error);

/* The first checkpoint that it made; NULL: none. */
const Checkpoint *transaction_created (const Transaction *t);

/* The actions: args as the command of that name has them, checked.  false and
 * an error: the transaction must be freed. */
bool action_bitmap_add (Transaction *t, json_t *args, GError **error);
bool action_bitmap_remove (Transaction *t, json_t *args, GError **error);
bool action_bitmap_clear (Transaction *t, json_t *args, GError **error);
bool action_bitmap_enable (Transaction *t, json_t *args, GError **error);
bool action_bitmap_disable (Transaction *t, json_t *args, GError **error);
bool action_bitmap_merge (Transaction *t, json_t *args, GError **error);
bool action_checkpoint_create (Transaction *t, json_t *args, GError **error);
bool action_checkpoint_delete (Transaction *t, json_t *args, GError **error);
bool action_backup (Transaction *t, json_t *args, GError **error);
bool action_populate (Transaction *t, json_t *args, GError **error);
bool action_snapshot (Transaction *t, json_t *args, GError **error);
bool action_backup_begin (Transaction *t, json_t *args, GError **error);
bool action_abort (Transaction *t, json_t *args, GError **error);

/* --- for actions */

/* A bitmap as this transaction sees it; borrowed, changes are stored at the
 * commit.  Errors are QEMU's: no such bitmap, busy, inconsistent (unless
 * damaged_too). */
NamedBitmap *transaction_edit (Transaction *t, Disk *disk, const char *name,
                               bool damaged_too, GError **error);
/* As it is, for a job that will add to it: others may hold it likewise.
 * Borrowed; not stored at the commit. */
const NamedBitmap *transaction_share (Transaction *t, Disk *disk,
                                      const char *name, GError **error);
/* bm: stolen; must be new. */
void transaction_add (Transaction *t, Disk *disk, NamedBitmap *bm);
/* From now on nobody may use it, and its name is not free until the commit. */
void transaction_remove (Transaction *t, Disk *disk, const char *name);
/* For reading: as this transaction sees it, busy or not, or as a snapshot has
 * it, or the changes since a checkpoint.  A copy, the caller's. */
NamedBitmap *transaction_source (Transaction *t, const char *node,
                                 const char *name, Disk **out_disk,
                                 uint64_t *out_size, GError **error);
bool transaction_has_bitmap (Transaction *t, Disk *disk, const char *name);
bool transaction_has_name (Transaction *t, Disk *disk, const char *name,
                           bool *out_has, GError **error);
/* Make the disk part of the cut, at least as fine as granularity (0: any).  Its
 * part, until the next call. */
FleeceCutDisk *transaction_cut (Transaction *t, Disk *disk,
                                uint32_t granularity);

#endif
