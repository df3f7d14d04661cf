/* SPDX-License-Identifier: BSD-3-Clause */
/* contexts.h - dirty bitmaps as metadata contexts; what base:allocation says.
 *
 * On a snapshot, "changed since checkpoint X" is offered as
 * qemu:dirty-bitmap:X, and granted also when asked for as qemu-dirty-bitmap:X,
 * for every checkpoint X older than the snapshot and for the map that the
 * backup pinned.  A listing shows one map at most: the one chosen by ,since=X,
 * else the backup's own (some clients refuse two).  On the live disk there is
 * none: a map that moves under its reader is of no use.
 *
 * base:allocation of a snapshot: data; dirty and zero: ZERO, so that a client
 * that skips holes still restores the zeroes; clean and zero: HOLE and ZERO.
 * Dirty means dirty in the backup's own map, in that of ,since=, or in any map
 * selected on the handle.
 *
 * In a host without metacontext.h the extents of a ,since= export are the map
 * itself: dirty is data, clean is HOLE without ZERO.
 *
 * An export that block-export-add has made offers the bitmaps that were given
 * there, all of them in a listing, and nothing else; on the live disk too.  If
 * it was to have it, also qemu:allocation-depth: 0 where nothing is allocated,
 * 1 what the topmost layer has, 2 and up those below; a snapshot is one layer.
 *
 * Locking: what is chosen changes only while the connection is being set up;
 * maps are built under a mutex of their own and shared by all handles of an
 * export, until the last one is closed.
 */
#ifndef CONTEXTS_H
#define CONTEXTS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <glib.h>

#include "bitmap/change-set.h"
#include "plugin/added-exports.h"
#include "plugin/backup.h"
#include "server/metacontext.h"

struct nbdkit_extents;
typedef struct CachedMap CachedMap;

/* Part of a Handle; all zero: no contexts (the live disk). */
typedef struct {
  AddedExport *added;           /* then the rest is not used */
  const BackupDisk *bd;
  char *listed;                 /* name of the map that is listed, or NULL */
  bool since;                   /* it was chosen in the export's name */
  uint64_t listed_key;     /* 0 if listed is NULL */
  GArray *maps;                 /* of CachedMap *: the backup's own, listed,
                                 * selected; none twice */
  guint nr_pinned;              /* the first of them stay over deselect */
  pthread_mutex_t lock;
  ChangeSet *dirty;             /* OR of maps, made on demand; under lock */
} HandleContexts;

/* since: NULL: the backup's own map.  NOT_FOUND if it names no checkpoint older
 * than the snapshot. */
bool handle_contexts_init (HandleContexts *ctx, const BackupDisk *bd,
                           const char *since, GError **error);
/* Of an export that was added; it outlives ctx. */
void handle_contexts_init_added (HandleContexts *ctx, AddedExport *added);
void handle_contexts_clear (HandleContexts *ctx);

/* The key (map-cache.h) of the map called name: the backup's own, of a
 * checkpoint, or a bitmap as it was at the cut; for the snapshot of bd; 0 with
 * NOT_FOUND. */
uint64_t contexts_find_map (const BackupDisk *bd, const char *name,
                            GError **error);

/* The plugin's half of metacontext.h. */
extern const struct metacontext_plugin contexts_table;

/* .extents of a handle (a Handle); 0, or a negative errno. */
int contexts_allocation (void *handle, uint32_t count, uint64_t offset,
                         bool one, struct nbdkit_extents *extents);

#endif
