/* SPDX-License-Identifier: BSD-3-Clause */
/* snapshot-node.h - the drivers copy-before-write and snapshot-access of
 * blockdev-add: a snapshot of a disk by QEMU's names.
 *
 * A node copy-before-write is a snapshot of its disk from the moment that it is
 * added; the file of its target is the scratch file.  The guest's requests need
 * not go through it: they are seen anyway, and to export it is to export the
 * disk.  A node snapshot-access is how the snapshot is read.  Nodes do not
 * outlive the server, and a snapshot of theirs that a killed server has left is
 * ended by the next start.
 *
 * Locking: a mutex of its own, under which the nodes' may be taken; additions
 * and deletions hold the transaction.
 */
#ifndef SNAPSHOT_NODE_H
#define SNAPSHOT_NODE_H

#include <stdbool.h>
#include <jansson.h>

#include "plugin/backup.h"

/* Is this a driver of these nodes? */
bool snapshot_node_is_driver (const char *driver);
/* args: of blockdev-add, checked by its table. */
bool snapshot_node_add (json_t *args, GError **error);
/* *out_found: is there such a node?  If not, nothing has happened. */
bool snapshot_node_delete (const char *name, bool *out_found, GError **error);
/* Ends the snapshots of all: the server stops. */
void snapshot_node_stop (void);

/* A new reference to the disk below a node copy-before-write; NULL: no such
 * node. */
Disk *snapshot_node_find_disk (const char *name);
/* The snapshot behind a node snapshot-access; it belongs to *out_backup, a new
 * reference, by which the node is in use.  NULL: no such node. */
BackupDisk *snapshot_node_find (const char *name, Backup **out_backup);
/* The name of a node that needs this disk; NULL: none.  Caller frees. */
char *snapshot_node_uses_disk (const Disk *disk);

#endif
