/* SPDX-License-Identifier: BSD-3-Clause */
/* added-disks.h - disks that come and go while the server runs: blockdev-add
 * with "disk", and blockdev-del.
 *
 * One that was added is served like one of disk=, also by the next start: the
 * file disks.ini in the state directory has it, in the form of config=, until
 * it is deleted.  A disk counts as added from the moment that the file has it,
 * durably.  What it has recorded outlives it, as that of a disk= that is left
 * out: added again it goes on from there.
 *
 * Locking: one addition or deletion at a time, and none beside a transaction
 * (transaction.h), which these hold.  The file has a mutex, a leaf.
 */
#ifndef ADDED_DISKS_H
#define ADDED_DISKS_H

#include <stdbool.h>
#include <glib.h>
#include <jansson.h>

#include "plugin/params.h"

/* In the state directory. */
#define ADDED_DISKS_FILE "disks.ini"

/* Is there anything that an earlier run has added?  state: its directory. */
bool added_disks_exist (const char *state);

/* Adds them to params->disks; after the state directory has been locked.
 * INVALID names the file: it cannot be read, or has a disk that params has by
 * the same name with another image.  One that params has just so stays in the
 * file, unused. */
bool added_disks_load (Params *params, GError **error);

/* Opens them; the catalog is open, fleece_start comes next.  One whose image a
 * stream has moved is opened where it is now, whatever the file says. */
bool added_disks_open (GError **error);

void added_disks_free (void);

/* The image of a disk is at path now: if the file has the disk, it gets the
 * path.  Any thread.  On failure the file has what it had. */
bool added_disk_follow (const char *name, const char *path, GError **error);

/* args: of blockdev-add, checked by its table, with "disk". */
bool added_disk_add (json_t *args, GError **error);
/* *out_found: is there a disk of this name?  If not, nothing has happened.
 * Errors: it was not added, or somebody uses it, and who. */
bool added_disk_delete (const char *name, bool *out_found, GError **error);

#endif
