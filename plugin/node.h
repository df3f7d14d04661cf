/* SPDX-License-Identifier: BSD-3-Clause */
/* node.h - what blockdev-add opens: where backup jobs write to.  A file, a
 * block device, or an export of another NBD server (so qcow2 through qemu-nbd).
 * In the same table, since names must differ: what stands for a job's filter.
 *
 * Disks (added-disks.h) are no nodes of this kind, and never a target.
 *
 * Locking: the table has a mutex, a leaf.  A node's I/O may run in any number
 * of threads.
 */
#ifndef NODE_H
#define NODE_H

#include <stdbool.h>
#include <stdint.h>
#include <glib.h>
#include <jansson.h>

#include "fleece/disk.h"

typedef struct Node Node;

/* args: of blockdev-add, checked by its table.  The node is in the table
 * then. */
bool node_add (json_t *args, GError **error);
/* Errors as QEMU's: no such node, in use. */
bool node_delete (const char *name, GError **error);
/* A new reference, or NULL with QEMU's error. */
Node *node_find (const char *name, GError **error);
void node_unref (Node *node);                   /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Node, node_unref)
bool node_exists (const char *name);

/* One user writes at a time.  user: "backup", for the error of another one. */
bool node_claim (Node *node, const char *user, GError **error);
void node_release (Node *node);

/* A name that something else goes by, as QEMU's filter nodes: a backup job of
 * disk while it lives, or a snapshot of it (snapshot-node.h).  It is listed
 * (but layers), in use, and good for nothing else here.  driver: static; disk:
 * NULL: of none.  Errors as node_add's. */
bool node_add_filter (const char *name, const char *driver, const Disk *disk,
                      GError **error);
void node_remove_filter (const char *name);

/* Its file becomes a scratch file, until it is taken back with what is then in
 * it, as long as it was: the node closes it meanwhile.  Only one that is a
 * regular file and not claimed. */
bool node_lend (Node *node, GError **error);
const char *node_lent_path (const Node *node);
void node_take_back (Node *node);

const char *node_name (const Node *node);
uint64_t node_size (const Node *node);          /* bytes */
/* What node_add may be given in another process; borrowed. */
json_t *node_options (const Node *node);
/* Are these what node_options returned, as far as one can see? */
bool node_check_options (const json_t *options, GError **error);
/* Of an NBD node: a connection that is dead is made anew by the next request.
 * As often as that has been done, and each time what was written and not
 * flushed may be gone. */
unsigned node_reconnects (const Node *node);
/* Requests that are worth having in flight at once. */
unsigned node_parallel (const Node *node);

/* How long a request may take, microseconds; INT64_MAX: as long as it wants.
 * Asked again and again by those that wait, any thread. */
typedef int64_t (*NodePatience) (void *opaque);
/* By who has claimed it, before its first request and, with NULL, after its
 * last.  Without: INT64_MAX. */
void node_set_patience (Node *node, NodePatience patience, void *opaque);
/* A request took longer.  All fail with ECANCELED then, until there is no limit
 * any more; a file's also have to wait then for the one that was given up. */
bool node_given_up (const Node *node);

/* 0 or -errno; any thread. */
int node_pread (Node *node, void *buf, size_t length, uint64_t offset);
int node_pwrite (Node *node, const void *buf, size_t length, uint64_t offset);
/* May leave a hole. */
int node_zero (Node *node, uint64_t length, uint64_t offset);
int node_flush (Node *node);

/* Entries of query-named-block-nodes. */
void node_list (json_t *list);
/* The server stops: from now on nobody waits for more than 3 seconds for a node
 * that does not answer. */
void node_stop (void);
void node_free_all (void);

#endif
