/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* epoch-log.h - inside of an EpochLog, for the epoch-*.c files.
 *
 * Invariants:
 * 1. Every epoch is in the catalog's rows, in memory (unstored, current), or in
 *    both; where both, memory is right.
 * 2. Each epoch names the one before it (prev).  A gap in that chain, whatever
 *    its cause, makes an answer over it "all dirty".
 * 3. A row without blob and not all_dirty has its bits in memory only.  If it
 *    is found so at open, its bits are lost: it becomes all dirty.
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

  _Atomic (Epoch *) current;    /* changed under mutex */

  pthread_mutex_t mutex;        /* taken inside the catalog's */
  Epoch *prepared;              /* NULL: none */
  GPtrArray *unstored;          /* of Epoch, sealed, oldest first; borrowed */
  GPtrArray *all;               /* of Epoch: owns every one ever made */
  uint64_t forgotten_before;    /* ids below need not be stored any more */
};

typedef enum { EPOCH_OPEN, EPOCH_SEALED } EpochState;

/* A new recording epoch, owned by the caller.  */
Epoch *epoch_new (uint64_t id, uint64_t prev, uint64_t size,
                  uint32_t granularity, GError **error);
void epoch_free (Epoch *epoch);                 /* NULL is fine */

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
