/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fleece-fixture.h - disks in a temporary directory, for tests of fleece/. */
#ifndef FLEECE_FIXTURE_H
#define FLEECE_FIXTURE_H

#include <pthread.h>

#include "bitmap/checkpoint.h"
#include "fleece/snapshot.h"
#include "tests/storage-hook.h"

#define FIXTURE_MAX_DISKS 3

/* What is not there is fine. */
void fixture_remove_tree (const char *path);

typedef struct {
  char *dir, *state, *scratch;  /* paths */
  char *runtime;                /* in a tmpfs */
  char *image[FIXTURE_MAX_DISKS];
  unsigned nr_disks;
  uint32_t granularity;         /* of tracking */
  Storage *storage;             /* NULL: the kernel's; borrowed */
  Storage *hooked;              /* of fixture_new_hooked: fixture_free frees
                                   it */
  HookGate *gate;               /* of fixture_new_gated: likewise */
  unsigned drain_timeout_ms;
  unsigned sync_interval_ms;    /* of durable maps */
  GString *notes;               /* what notify was told, a line each; the first
                                 * word is that of FleeceNoteKind */
  pthread_mutex_t notes_lock;
  /* Between fixture_start and _stop or _crash. */
  Catalog *cat;
  Fleece *f;
  Disk *disk[FIXTURE_MAX_DISKS];        /* named d0, d1, d2 */
} Fixture;

/* Images of size bytes, all holes; granularity 64 KiB; not started. */
Fixture *fixture_new (unsigned nr_disks, uint64_t size);
/* With a hook before each call of the storage; with a gate as that hook. */
Fixture *fixture_new_hooked (unsigned nr_disks, uint64_t size, HookFn fn,
                             void *opaque);
Fixture *fixture_new_gated (unsigned nr_disks, uint64_t size);
/* Removes the directory; stops first if need be. */
void fixture_free (Fixture *fx);
void fixture_start (Fixture *fx);
/* And write bytes of value all over the disks. */
void fixture_start_full (Fixture *fx, int value);
/* A clean stop; fixture_start may follow. */
void fixture_stop (Fixture *fx);
/* Everything is dropped as kill -9 would; fixture_start may follow. */
void fixture_crash (Fixture *fx);
/* The maps of the runtime directory go, as in a power cut; while stopped. */
void fixture_lose_runtime (Fixture *fx);
/* Durable maps and intents go as well. */
void fixture_lose_maps (Fixture *fx);
/* A cut of disk i alone.  name: of the snapshot, NULL: none.  Returns the
 * snapshot (a reference), and the boundary if not NULL. */
Snapshot *fixture_cut (Fixture *fx, unsigned i, const char *name,
                       uint64_t *out_boundary);
/* Names of files in the scratch directory, for "is empty" checks. */
unsigned fixture_nr_scratch_files (Fixture *fx);
/* Read a whole snapshot; caller frees. */
char *fixture_read_snapshot (Snapshot *snap);
/* Write bytes of value, or check that each of the range has it. */
void fixture_write (Disk *disk, uint64_t offset, uint64_t length, int value);
void fixture_check_disk (Disk *disk, uint64_t offset, uint64_t length,
                         int value);
void fixture_check_snapshot (Snapshot *snap, uint64_t offset, uint64_t length,
                             int value);
/* Is the granule of offset dirty since boundary from, as of boundary to (0:
 * now)? */
bool fixture_is_dirty (Fixture *fx, unsigned i, uint64_t from, uint64_t to,
                       uint64_t offset);
/* End it, and drop the reference. */
void fixture_end (Snapshot *snap);

/* Start it in a child process that runs fn, and dies at call number at (from 1)
 * on a file whose path ends in suffix (NULL: any), or exits after it.  True: it
 * died.  So all that it leaves is what a kill leaves. */
Fixture *fixture_new_mortal (unsigned nr_disks, uint64_t size);
bool fixture_run_dying (Fixture *fx, void (*fn) (void), const char *suffix,
                        unsigned at);

/* A call in a thread of its own. */
typedef struct FixtureCall FixtureCall;
FixtureCall *fixture_call (int (*fn) (void *), void *opaque);
FixtureCall *fixture_call_write (Disk *disk, uint64_t offset, uint64_t length,
                                 int value);
/* A cut of one disk; see fixture_call_cut_result. */
FixtureCall *fixture_call_cut (Fixture *fx, unsigned i, const char *name);
bool fixture_call_done (FixtureCall *call);
/* Waits for its end; returns what fn returned, and frees the call. */
int fixture_call_join (FixtureCall *call);
/* The same for a cut: the snapshot (NULL: none or failed). */
Snapshot *fixture_call_join_cut (FixtureCall *call, uint64_t *out_boundary,
                                 GError **error);
/* Wait until nr threads wait for a write of this disk, as a cut does for all
 * and a write for older ones that overlap.  False: call ended before, so it did
 * not wait. */
bool fixture_wait_waiters (Disk *disk, unsigned nr, FixtureCall *call);

#endif
