/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* sim-disk-internal.h - the files of the simulated disk, for its own sources:
 *
 *   sim-disk.c       files, their sectors and names; the power loss
 *   sim-fault.c      what every call passes: its number, the crash, the fault
 *   sim-storage.c    as a Storage
 *   sim-vfs.c        as an SQLite VFS
 */
#ifndef SIM_DISK_INTERNAL_H
#define SIM_DISK_INTERNAL_H

#include <pthread.h>
#include <glib.h>

#include "tests/sim-disk.h"

#define SIM_MAX_FILES 192
#define SIM_MAX_BYTES (UINT64_C (24) << 20)     /* of a file */
#define SIM_MAX_SECTORS (SIM_MAX_BYTES / SIM_SECTOR)
#define SIM_PAGE 4096
#define SIM_MAX_PAGES (SIM_MAX_BYTES / SIM_PAGE)
#define SIM_MAX_PATH 256

/* A name that was removed keeps its slot until that is durable. */
typedef struct {
  char path[SIM_MAX_PATH];      /* empty: the slot is free */
  bool now, durable;            /* is there such a name? */
  uint64_t size, durable_size;
  uint64_t first, end;          /* sectors that may be unsynced or failed */
  uint8_t unsynced[SIM_MAX_SECTORS / 8];
  /* Their sync failed: the page is clean and has what was written, the medium
   * has not, and no later sync puts it there. */
  uint8_t failed[SIM_MAX_SECTORS / 8];
  uint64_t written[SIM_MAX_PAGES / 64];         /* others are zero */
} SimSlot;

typedef struct {
  pthread_mutex_t mutex;
  uint64_t calls, crash_at;
  SimFault fault;
  uint64_t fault_calls, fault_hits;
  unsigned hit;                 /* SIM_HIT_* */
  unsigned sync_delay_us;
  unsigned nr_slots;            /* none after these was ever in use */
  SimSlot slot[SIM_MAX_FILES];
} SimShared;

extern SimShared *sim_shared;
/* Per slot SIM_MAX_BYTES: as the process sees it, and as the medium has it. */
extern uint8_t *sim_now_bytes, *sim_medium_bytes;

static inline uint8_t *
sim_bytes_of (uint8_t *all, const SimSlot *slot)
{
  return all + (slot - sim_shared->slot) * SIM_MAX_BYTES;
}

/* What a call is. */
enum { READS = 0, CHANGES = 1, ALLOCATES = 2, SYNCS = 4 };

/* Takes the mutex; sim_end must follow.  what: as above.  0, or -errno: nothing
 * of the call is to be done, or only what a failure leaves. */
int sim_begin (const char *path, unsigned what);
void sim_end (void);

/* What a write that failed did. */
static inline uint64_t
sim_done_of (uint64_t length, int err)
{
  return err == 0 ? length : length / 2 / SIM_SECTOR * SIM_SECTOR;
}

/* Between sim_begin and sim_end.  A slot is borrowed. */
SimSlot *sim_find (const char *path);           /* NULL: there is none */
SimSlot *sim_make (const char *path);
void sim_drop_name (SimSlot *slot);
/* Of the directory dir[0 .. length). */
void sim_sync_names (const char *dir, size_t length);
/* err: of the sync. */
void sim_sync_slot (SimSlot *slot, int err);
void sim_set_slot_size (SimSlot *slot, uint64_t size);
/* buf: NULL writes zeroes. */
void sim_write_slot (SimSlot *slot, const void *buf, uint64_t length,
                     uint64_t offset);

#endif
