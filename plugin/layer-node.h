/* SPDX-License-Identifier: BSD-3-Clause */
/* layer-node.h - layers of new data above a disk's image (fleece/overlay.h), as
 * nodes.
 *
 * One is made by blockdev-add with the driver layer, belongs to no disk then,
 * and does not outlive the server.  blockdev-snapshot puts it on a disk, to
 * which it belongs from then on, over restarts too, until a commit or a stream
 * takes it out again.  The image below keeps the disk's name as its node's.
 *
 * Locking: a mutex of its own, under which the nodes' may be taken.
 */
#ifndef LAYER_NODE_H
#define LAYER_NODE_H

#include <stdbool.h>
#include <glib.h>
#include <jansson.h>

#include "fleece/overlay.h"

/* args: of blockdev-add, checked by its table. */
bool layer_node_add (json_t *args, GError **error);
/* *out_found: is there such a node?  If not, nothing has happened. */
bool layer_node_delete (const char *name, bool *out_found, GError **error);

/* Before a cut that puts it on: it is there and belongs to no disk, else QEMU's
 * error.  *out_path: its file, NULL: the default; the caller's. */
bool layer_node_check_new (const char *name, char **out_path, GError **error);
/* After anything that has changed the layers of a disk, and once for each disk
 * that is served: nodes are what it has. */
void layer_node_sync (Disk *disk);
/* A disk goes: so do the names of its layers. */
void layer_node_forget (Disk *disk);

/* A layer of a disk or its image by its node's name; a new reference to the
 * disk, or NULL.  *out_layer: its name there, the caller's; NULL: the image. */
Disk *layer_node_find (const char *node, char **out_layer);
/* Its place in disk_chain, 0: the active one; -1: not there. */
int layer_index (const GPtrArray *chain, const char *layer);
/* The node's name of an entry of disk_chain; the caller's. */
char *layer_node_name (Disk *disk, const OverlayInfo *info);

/* Entries of query-named-block-nodes: of layers that belong to no disk, and of
 * those of this one. */
void layer_node_list_new (json_t *list);
void layer_node_list (Disk *disk, json_t *list);
/* Puts "layers" and "backing_file_depth" in an entry of a disk that has
 * some. */
void layer_node_describe (Disk *disk, json_t *entry);

void layer_node_free_all (void);

#endif
