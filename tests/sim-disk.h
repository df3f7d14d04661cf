/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* sim-disk.h - a disk that loses what it may lose, for crash-sim.c.
 *
 * All files live in memory shared by a family of processes, so that a child
 * that runs the real code can be ended at any call, as by kill -9.  Of each
 * file the 512-byte sectors that were written and not synced are kept apart.
 * At a power loss each of them is kept, dropped or torn on its own; a file made
 * or removed is so for sure only after a sync of its directory.
 *
 * Two ways in: a Storage, and an SQLite VFS (made the default one by
 * sim_disk_use), so that the catalog is on the same disk.
 *
 * Every call that changes something has an index.  One call can be chosen to
 * end the process instead (exit status SIM_CRASHED, nothing of it done).  And
 * one call of all, or all from it on, can fail or be slow: see SimFault.
 *
 * Locking: one mutex inside; a crash happens with it held, so never in the
 * middle of a call.
 */
#ifndef SIM_DISK_H
#define SIM_DISK_H

#include "bitmap/storage.h"

#define SIM_CRASHED 99
#define SIM_SECTOR 512

/* An empty disk; once a process, before any fork. */
void sim_disk_new (void);
/* Back to an empty disk. */
void sim_disk_clear (void);
/* Register the VFS as SQLite's default, in this process. */
void sim_disk_use (void);
extern Storage sim_storage;

/* From now on count calls from 0 and crash at number crash_at; UINT64_MAX:
 * never.  Also makes a lock that a crashed process held free again. */
void sim_disk_arm (uint64_t crash_at);
uint64_t sim_disk_calls (void);

/* A fault.  A write that fails has done the first half; a sync that fails
 * leaves what it should have written clean in memory and not on the medium, as
 * Linux does: no later sync writes it, and a power loss takes it away. */
#define SIM_FAULT_TARGETS 2
typedef struct {
  char target[SIM_FAULT_TARGETS][128];  /* prefixes of paths; empty: none */
  /* EIO: any call.  ENOSPC: those that may allocate, and syncs.  0: slow. */
  int err;
  unsigned delay_us;            /* if slow */
  uint64_t at;                  /* number, of the calls that it is for */
  bool for_good;                /* and all after it */
} SimFault;
/* From now on, counting from 0; NULL: none. */
void sim_disk_fault (const SimFault *fault);
/* No more faults; what was counted stays. */
void sim_disk_fault_lift (void);
uint64_t sim_disk_fault_calls (void);   /* that it was for, so far */
/* What it hit. */
enum {
  SIM_HIT_IMAGE = 1,
  SIM_HIT_SCRATCH = 2,
  SIM_HIT_INTENTS = 4,
  SIM_HIT_MAP = 8,              /* a durable one */
  SIM_HIT_STATE = 16,           /* the catalog, or a directory */
};
unsigned sim_disk_fault_hit (void);
/* Each sync waits for some time up to this, so that others overtake it. */
void sim_disk_slow_syncs (unsigned us);

/* What the crash does to what is not synced; in the parent, after the child. */
void sim_disk_lose_power (uint64_t seed);

/* All of a file, at the parent's; NULL: there is none.  Borrowed. */
const uint8_t *sim_disk_peek (const char *path, uint64_t *out_size);
/* Change a byte of a file, as bit rot does. */
void sim_disk_rot (const char *path, uint64_t offset);
/* Number of files whose path has this prefix. */
unsigned sim_disk_files (const char *prefix);

#endif
