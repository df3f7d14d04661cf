/* SPDX-License-Identifier: BSD-3-Clause */
/* added-exports.h - exports that block-export-add makes: a disk or a snapshot
 * under one more name, with bitmaps of the operator's choice.
 *
 * What every disk and every snapshot has by itself is not among them.
 *
 * An export that is deleted can be opened no more; its id is free, and its
 * bitmaps are, once the last handle on it is closed.  They stay over a
 * replacement of the server by itself, not over a restart, as in QEMU.
 *
 * Locking: the table has a mutex, under which the backups' table may be asked.
 * What an AddedExport says never changes; its maps have locks of their own.
 */
#ifndef ADDED_EXPORTS_H
#define ADDED_EXPORTS_H

#include <stdbool.h>
#include <stdint.h>
#include <glib.h>
#include <jansson.h>

#include "bitmap/change-set.h"
#include "plugin/backup.h"

typedef struct AddedExport AddedExport;

/* args: of block-export-add, checked by its table.  Errors are QEMU's. */
bool added_export_add (json_t *args, GError **error);
/* hard: drop its clients; else they are an error. */
bool added_export_delete (const char *id, bool hard, GError **error);
/* A snapshot ends: its exports go, whoever is connected. */
void added_export_delete_backup (const Backup *backup);
void added_export_delete_all (void);
/* Until those that have been deleted are gone, or for 5 s: a client may be in a
 * request that takes long. */
void added_export_wait_gone (void);
/* Of query-block-exports. */
json_t *added_export_list (void);
/* Is there one that clients can open by this name? */
bool added_export_has_name (const char *name);
/* Is there one that was made with this name as its node? */
bool added_export_uses_node (const char *name);
/* The id of one that needs this disk; NULL: none.  Caller frees. */
char *added_export_uses_disk (const Disk *disk);
/* Calls fn with name and description of each, until it returns false. */
bool added_export_foreach (bool (*fn) (void *opaque, const char *name,
                                       const char *description), void *opaque);

/* What added_export_restore needs to make all of them again; NULL: none. */
json_t *added_export_save (void);
void added_export_restore (json_t *saved);

/* --- for handles: from open to close it stays */

AddedExport *added_export_open (const char *name);      /* NULL: none */
void added_export_close (AddedExport *e);

bool added_export_is_gone (const AddedExport *e);
bool added_export_is_writable (const AddedExport *e);
bool added_export_is_writethrough (const AddedExport *e);
Disk *added_export_disk (const AddedExport *e);
/* NULL: of the live disk.  *out_backup: borrowed. */
const BackupDisk *added_export_snapshot (const AddedExport *e,
                                         Backup **out_backup);
const char *added_export_description (const AddedExport *e);

/* Its bitmaps, by number, in the operator's order. */
unsigned added_export_nr_bitmaps (const AddedExport *e);
const char *added_export_bitmap (const AddedExport *e, unsigned nr);
/* Does it offer qemu:allocation-depth? */
bool added_export_has_depth (const AddedExport *e);
/* A new reference.  The same all the time, but of a bitmap that records: that
 * says what it is now. */
ChangeSet *added_export_load (AddedExport *e, unsigned nr, GError **error);

#endif
