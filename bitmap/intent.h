/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* intent.h - I, and the committer: before the first write to a cold region of a
 * disk, a bit on the disk says that it may change (durability.md 3, A3).
 *
 * One thread a disk is the only writer of I and of the durable maps.
 *   set round    queued bits into I, one fdatasync for all who wait, then their
 *                flags are published: a flag means "fdatasync returned OK"
 *   clear round  flags of idle regions withdrawn; fence; the bits of EVERY
 *                unsealed epoch to its durable map, synced; only then the
 *                regions' bits leave I (unsynced: a stale one says too much)
 * A write that sees a flag has marked its bits before (A2 and a fence), so
 * either the clear round's copy has them or the write finds the flag withdrawn
 * and waits for a new intent.
 *
 * A disk that grows: I gets more sectors of zeroes, synced, before a write can
 * come to what is new, and so do the flags.  For one that shrinks nothing is
 * done.
 *
 * A failed write or sync of I is final: writes to cold regions fail with -EIO.
 * After a failed sync of a durable map no intent is cleared any more.
 *
 * Lock order: EpochLog::maps_lock, EpochLog::mutex; Intents' own lock is inside
 * all others and never held over I/O.
 */
#ifndef INTENT_H
#define INTENT_H

#include "bitmap/epoch-log.h"

typedef struct Intents Intents;

char *intents_path (const char *dir, const char *disk);

/* A new I without bits for a disk of disk_size bytes, durable; no thread
 * yet. */
Intents *intents_create (EpochLog *log, const char *dir, uint64_t disk_size,
                         GError **error);
bool intents_start (Intents *in, GError **error);
/* Nobody may be waiting.  Writes nothing more. */
void intents_stop (Intents *in);
void intents_free (Intents *in);                /* NULL is fine; stops first */

/* Have regions for a disk of disk_size bytes.  Waits for the committer.  0 or
 * -errno: all is as before.  One caller at a time; between start and stop. */
int intents_grow (Intents *in, uint64_t disk_size);

/* A3.  0, or -EIO. */
int intents_wait (Intents *in, const DurableMap *dm, uint64_t offset,
                  uint64_t length);

/* For status. */
uint64_t intents_bytes (const Intents *in);     /* in set regions */
uint64_t intents_waits (const Intents *in);     /* writes that had to wait */

#endif
