/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* sim-history.h - a server's life on the simulated disk, and what must hold in
 * it and after it; for crash-sim.c and fault-calls.c.
 *
 * A history runs in a child process, with what it has promised (the oracle) in
 * memory shared with its parent.  Another child then starts on what is left of
 * the disk and checks.  A failed check is a g_error that says which rule.
 *
 * Every 8 bytes of a sector say which write they are of, so that what is found
 * can be dated.  Zeroes are of the last zeroing or trim.
 */
#ifndef SIM_HISTORY_H
#define SIM_HISTORY_H

#include <stdatomic.h>

#include "fleece/snapshot.h"
#include "tests/sim-disk.h"

#define NR_DISKS 2
/* Of a disk, unless the options say less. */
#define DISK_BYTES ((UINT64_C (5) << 20) + 3 * SIM_SECTOR)
#define REGION (UINT64_C (1) << 20)
#define NR_SECTORS (DISK_BYTES / SIM_SECTOR)
#define START_BYTES ((UINT64_C (3) << 20) + SIM_SECTOR)
#define LEAST_BYTES (UINT64_C (1) << 20)
#define GRANULE 4096
#define NR_GRANULES (DISK_BYTES / GRANULE + 1)
#define MAX_CUTS 12
#define NR_BITMAPS 3            /* of a disk, at most */
#define MAX_EDITS 5             /* of bitmaps in a transaction */
#define NR_WRITERS 2            /* threads */

typedef enum {
  WRITE, FUA, ZERO, TRIM, FLUSH,
  RESIZE,                       /* length: the new size */
  CUT,                          /* volatile snapshots of all disks */
  DURABLE,                      /* durable ones */
  MIXED,                        /* durable of disk 0, volatile of the others */
  ONE,                          /* of one disk; durable if offset is odd */
  CHECKPOINT,
  END,                          /* offset: number of the cut */
  STORE,
  FORGET,                       /* the checkpoints before cut number offset */
  RESTART,
  /* Of the bitmap number offset. */
  ADD,                          /* disabled if length is odd */
  CLEAR, ENABLE, DISABLE,
  MERGE,                        /* number length of both disks' is merged into
                                   it */
  REMOVE,
  /* Some of those at random (seed: offset), of all disks; if length is odd, in
   * one cut with snapshots. */
  TRANSACTION,
  COMPACT,                      /* epochs */
  /* Layers of new data; offset: a seed of what else goes on. */
  LAYER_ON,
  LAYER_COMMIT,                 /* of all if length is even, else of the
                                   lowest */
  LAYER_STREAM,
  LAYER_RESTORE,
  NR_KINDS
} Kind;

typedef struct {
  Kind kind;
  unsigned disk;
  uint64_t offset, length;
} Op;

struct oracle_bitmap {
  bool exists, recording;
  unsigned since;               /* number of the change that it records since */
  uint8_t must[NR_GRANULES], may[NR_GRANULES];  /* be reported */
};

/* One that is on its way. */
struct oracle_write {
  bool active, resize;
  unsigned disk;
  uint64_t offset, length;
  uint32_t version;
  unsigned after;               /* changes of bitmaps that had ended before
                                   it */
};

/* What a history has promised; shared. */
typedef struct {
  uint32_t version;             /* of the last write */
  struct oracle_disk {
    uint32_t submitted[NR_SECTORS];
    _Atomic (uint32_t) acked[NR_SECTORS], stable[NR_SECTORS];
    uint32_t zeroed[NR_SECTORS];        /* last zeroing, trim or resize */
    uint32_t told[NR_SECTORS];  /* acked, and a flush after it failed */
    uint32_t edge[DISK_BYTES / GRANULE + 1];    /* last resize from or to it */
    uint64_t size, other_size;  /* it has one or the other */
    bool layered;               /* it has, or had, a layer */
  } disk[NR_DISKS];
  struct oracle_cut {
    bool snapshot, ended, forgotten;
    bool under_way;             /* nobody was told that it is there */
    bool with_change;           /* of bitmaps */
    unsigned version;           /* writes up to this are before it, surely */
    struct oracle_part {
      bool in, durable;
      bool gone;                /* was seen broken or lost */
      uint64_t boundary, size;
      uint64_t replica[NR_SECTORS];     /* sums of what a backup would have */
      struct oracle_bitmap frozen[NR_BITMAPS];
    } part[NR_DISKS];
  } cut[MAX_CUTS];
  struct oracle_write in_flight[NR_WRITERS];
  /* See sim-bitmap.c. */
  struct { struct oracle_bitmap bitmap[NR_DISKS][NR_BITMAPS]; } state[2];
  atomic_uint phase;
  unsigned changes;             /* of bitmaps, that have ended */
  atomic_uint nr_cuts;
  uint64_t over_bytes;
  unsigned hit;                 /* SIM_HIT_*: of faults, so far */
  unsigned failures;            /* of operations */
  bool unsure;                  /* a cut that failed may be there */
  bool unsynced;                /* an image has failed, and then there was a
                                 * restart, after which nobody knows that what
                                 * memory has of it may not be on the medium */
} Oracle;

extern Oracle *oracle;
extern Fleece *fleece;
extern Disk *disk[NR_DISKS];
extern Catalog *sim_catalog;

/* Set before a child is made. */
extern struct sim_options {
  char *dir;                    /* of all that is not simulated, in a tmpfs */
  char *state, *scratch;
  const char *runtime_folder;
  uint64_t most_bytes, start_bytes, least_bytes;        /* of a disk */
  unsigned pace_ms;             /* of the committer */
  bool faults;                  /* operations may fail, where that is legal */
  bool guest_fails;             /* snapshots are FLEECE_BREAK_GUEST_WRITE */
} sim;

typedef enum { KILLED, KILLED_NO_TMPFS, POWER, POWER_NO_TMPFS, POWER_OTHER_MAPS,
               POWER_MAPS_ON_DISK, NR_CRASHES } Crash;

/* In the parent: the shared memory and folders; then before each history, new
 * disks and an empty oracle; at last the folders go. */
void sim_set_up (void);
void sim_new_disks (void);
void sim_tear_down (void);
void sim_empty_folder (const char *path);

/* In the parent, between children: all that is there, and there again. */
typedef struct SimMoment SimMoment;
SimMoment *sim_moment_keep (void);
void sim_moment_put_back (const SimMoment *moment);
void sim_moment_free (SimMoment *moment);

/* In a child.  try_start: on failure nothing is left open. */
bool sim_try_start (GError **error);
void sim_start (void);
/* False: with faults, it failed; everything is closed all the same. */
bool sim_stop (void);
void sim_op (const Op *op);
/* As sim_op; thread: 0 .. NR_WRITERS - 1.  Of threads, others than the first
 * write and flush only, each of them to stripes of its own. */
void sim_op_of_thread (const Op *op, unsigned thread);
Op sim_random_op (GRand *rand);
Op sim_random_write (GRand *rand, unsigned thread);
/* A cut of any kind, with bitmaps that change or without; an end; a merge of
 * epochs: while others write. */
void sim_random_cut (GRand *rand);
/* What is left of a cut that nobody was told of. */
void sim_drop_untold (unsigned nr);
void sim_cut_name (unsigned nr, char out[16]);
void sim_checkpoint_name (unsigned nr, char out[16]);
/* Of a sector. */
uint64_t sim_sum (const void *sector);

/* Checks.  crash: the one before this life. */
void sim_check_base (Crash crash);
/* precise: what was not written must not be dirty, as far as the crash allows
 * (not beyond what has to be done for safety's sake). */
void sim_check_all (Crash crash, bool precise);
/* Was there a crash since whose answer can be told exactly? */
bool sim_is_precise (Crash crash, bool recovered);
/* Life goes on, and all can be ended and stopped; nothing is left. */
void sim_check_life (Crash crash, uint64_t seed);

#endif
