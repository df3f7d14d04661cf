/* SPDX-License-Identifier: BSD-3-Clause */
/* restore.h - restore-begin and restore-end: disks are written to beside
 * guests, and then all at one instant become what was written, or nothing has
 * happened.
 *
 * Each disk of a restore has a detached overlay (fleece/overlay.h) and a
 * writable export of it.  What is begun is durable, and outlives the server
 * with its exports.  Applied, the overlays are layers of their disks, which
 * jobs of type commit move down into what is below; a start goes on with that.
 *
 * In the catalog a restore is a row of the table backup with the state
 * "restore": its id is no backup's.
 *
 * Locking: a mutex of its own, a leaf but for the backups' and the exports'.
 */
#ifndef RESTORE_H
#define RESTORE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <glib.h>
#include <jansson.h>

#include "fleece/overlay.h"

/* Of the names of their layers in fleece/, before the restore's id.  Users'
 * layers begin with a letter; see layer_node_name. */
#define RESTORE_LAYER_PREFIX "_restore_"

typedef struct Restore Restore;

typedef struct {
  Restore *restore;
  Disk *disk;                   /* a reference; NULL: not served now */
  Overlay *overlay;             /* a reference; NULL: likewise */
  bool discarded;               /* that is gone, and others are not yet */
  char *disk_name;
  char *export;
} RestoreDisk;

struct Restore {
  atomic_uint refs;
  atomic_bool ended;            /* its exports answer ESHUTDOWN */
  /* Set before it is in the table, never changed. */
  char *id;
  int64_t created;              /* seconds since 1970 */
  bool zero;                    /* what is not written reads as zeroes */
  bool force;                   /* guests may be connected */
  GPtrArray *disks;             /* of RestoreDisk */
};

/* After the disks have started: those that were begun before, and the jobs of
 * those that were applied. */
bool restore_load (GError **error);
void restore_free_all (void);

/* args: restore-begin's and restore-end's, checked by their tables. */
json_t *restore_begin (json_t *args, GError **error);
bool restore_end (json_t *args, GError **error);
json_t *restore_query (void);

/* The id of one that has this disk; NULL: none.  Caller frees. */
char *restore_uses_disk (const Disk *disk);

bool restore_has_id (const char *id);

/* --- exports */

bool restore_has_export (const char *name);
/* One that can be opened; it belongs to *out_restore, a new reference.  NULL:
 * none. */
RestoreDisk *restore_find_export (const char *name, Restore **out_restore);
void restore_unref (Restore *restore);          /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Restore, restore_unref)
/* What a client reads about it; caller frees. */
char *restore_describe (const RestoreDisk *rd);
/* Calls fn for each that can be opened, until it returns false. */
bool restore_foreach_export (bool (*fn) (void *opaque, const char *name,
                                         const char *description),
                             void *opaque);

#endif
