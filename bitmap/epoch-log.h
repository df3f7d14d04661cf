/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* epoch-log.h - inside of an EpochLog, for the epoch-*.c files.
 *
 * Invariants:
 * 1. Every epoch is in the catalog's rows, in memory (unstored, current), or in
 *    both; where both, memory is right.
 * 2. Each epoch names the one before it (prev).  A gap in that chain, whatever
 *    its cause, makes an answer over it "all dirty".
 * 3. A row without blob and not all_dirty has its bits in its maps only; if it
 *    is found so at open, they are recovered from there.
 * 4. Once its row is 'sealed' without a blob, D alone has all of them; while it
 *    is 'open' or 'prepared', D and the intents.
 */
#ifndef EPOCH_LOG_H
#define EPOCH_LOG_H

#include <pthread.h>
#include <stdatomic.h>

#include "bitmap/epoch.h"

struct EpochLog {
  /* Set in open, never changed. */
  Catalog *cat;
  int64_t disk;                 /* catalog's row */
  char *name;
  EpochOpenReport report;
  EpochOptions options;         /* defaults filled in */
  char *maps_dir;               /* NULL: no files */
  struct Intents *intents;      /* NULL: none */
  atomic_bool told_damage;      /* options.notify was called for it */

  _Atomic (Epoch *) current;    /* changed under mutex */

  /* While bits are copied to a durable map or go.  Taken inside the
   * catalog's. */
  pthread_mutex_t maps_lock;
  pthread_mutex_t mutex;        /* taken inside the catalog's and maps_lock */
  Epoch *prepared;              /* NULL: none */
  GPtrArray *unstored;          /* of Epoch, sealed, oldest first; borrowed */
  GPtrArray *all;               /* of Epoch: owns every one ever made */
  uint64_t forgotten_before;    /* ids below need not be stored any more */
  uint64_t closed;              /* id of the time after a clean stop; 0: open */
  unsigned compactions;         /* that have taken rows from under readers */
};

typedef enum { EPOCH_PREPARED, EPOCH_OPEN, EPOCH_SEALED } EpochState;

/* A new recording epoch with its maps, owned by the caller.  free keeps what is
 * in files (NULL is fine); drop_bits removes them, and keeps the struct. */
Epoch *epoch_new (EpochLog *log, uint64_t id, uint64_t prev, uint64_t size,
                  uint32_t granularity, GError **error);
void epoch_free (Epoch *epoch);
void epoch_drop_bits (Epoch *epoch);
char *epoch_map_name (const char *disk, uint64_t id);   /* in the runtime dir */

/* The bits of every epoch that is not sealed made durable.  0 or -errno. */
int epoch_log_sync_maps (EpochLog *log);

/* Stores what an unclean stop left in maps; in a transaction.  The names of the
 * files that this makes useless are added to stale once it is committed.
 * disk_size: the image's. */
bool epoch_recover (EpochLog *log, uint64_t disk_size, GPtrArray *stale,
                    GError **error);

/* Has the state directory been put back from a copy that was made while a
 * server ran?  Then epochs and marks are those of the image, and the maps too
 * old. */
bool epoch_maps_are_copies (EpochLog *log, bool *out_copies, GError **error);

/* What the image's size is to be at the next start, if this stops cleanly. */
bool epoch_put_disk_size (Catalog *cat, int64_t disk, uint64_t size,
                          GError **error);

/* Writes the row of an epoch, new or changed.  blob: NULL if not stored yet or
 * all_dirty. */
bool epoch_put_row (Catalog *cat, int64_t disk, const Epoch *epoch,
                    EpochState state, bool all_dirty, uint64_t count,
                    GBytes *blob, GError **error);
/* The bits of an epoch that nobody writes any more; cached.  Borrowed. */
ChangeSet *epoch_sealed_locked (Epoch *epoch, GError **error);
/* Takes nr ids; *out_first is the first of them. */
bool epoch_take_ids (Catalog *cat, int64_t disk, unsigned nr,
                     uint64_t *out_first, GError **error);

/* Stores epoch's bits in its row, as sealed; part of a transaction. */
bool epoch_store_row (EpochLog *log, const Epoch *epoch,
                      const ChangeSet *bits, GError **error);

#endif
