/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* crash-sim.c - the real bitmap/ and fleece/ on a simulated disk, ended at any
 * call (durability.md 7-L1).
 *
 *   crash-sim [STEP HISTORIES [CRASH]]
 *
 * STEP: of the script, every STEP-th call.  HISTORIES: random ones.  CRASH: 0 .. 5,
 * only this kind (as in crash_name).  Without arguments: the short form.
 *
 * CRASH_SEED repeats a run of the same kind, but for the timing of threads.
 *
 * A history runs in a child process that ends at call number N, with what it had
 * promised kept in memory shared with us.  Then the crash takes its due:
 *   killed        all that was written is there
 *   power loss    each unsynced sector is kept, dropped or torn
 * each with the folder of the runtime maps kept or deleted.  The recovery may be
 * ended in the same way, again and again, at each of its calls.  At last
 * another child starts on what is left and checks; see verify.
 *
 * Every 8 bytes of a sector say which write they are of, so that what is found
 * can be dated.  Zeroes are of the last zeroing or trim.
 */
#include <config.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <glib/gstdio.h>

#include "bitmap/checkpoint.h"
#include "bitmap/epoch.h"
#include "bitmap/runtime.h"
#include "fleece/snapshot.h"
#include "tests/sim-disk.h"

#define NR_DISKS 2
#define DISK_BYTES ((UINT64_C (5) << 20) + 3 * SIM_SECTOR)
#define REGION (UINT64_C (1) << 20)
#define NR_SECTORS (DISK_BYTES / SIM_SECTOR)
#define START_BYTES ((UINT64_C (3) << 20) + SIM_SECTOR)
#define LEAST_BYTES (UINT64_C (1) << 20)
#define GRANULE 4096
#define MAX_CUTS 12
#define MAX_OPS 200

typedef enum { WRITE, FUA, ZERO, TRIM, FLUSH, RESIZE, CUT, CHECKPOINT, END,
               STORE, RESTART, NR_KINDS } Kind;

typedef struct {
  Kind kind;
  unsigned disk;
  uint64_t offset, length;      /* RESIZE: length is the new size */
} Op;

/* What a history has promised; shared. */
typedef struct {
  atomic_uint version;          /* of the last write */
  struct oracle_disk {
    uint32_t submitted[NR_SECTORS], acked[NR_SECTORS], stable[NR_SECTORS];
    uint32_t zeroed[NR_SECTORS];        /* last zeroing, trim or resize */
    uint32_t edge[DISK_BYTES / GRANULE + 1];    /* last resize from or to it */
    uint64_t size, other_size;  /* it has one or the other */
  } disk[NR_DISKS];
  struct oracle_cut {
    bool done, snapshot, ended;
    unsigned version;           /* writes up to this are before it, surely */
    uint64_t boundary[NR_DISKS], size[NR_DISKS];
    uint8_t replica[NR_DISKS][DISK_BYTES];
  } cut[MAX_CUTS];
  atomic_uint nr_cuts;
  uint64_t over_bytes;
} Oracle;

typedef enum { KILLED, KILLED_NO_TMPFS, POWER, POWER_NO_TMPFS, POWER_OTHER_MAPS,
               POWER_MAPS_ON_DISK, NR_CRASHES } Crash;
static const char *const crash_name[] = {
  "kill -9", "kill -9 and the tmpfs lost", "power loss with the tmpfs kept",
  "power loss", "power loss, then maps of another life",
  "power loss with the maps on a disk",
};

static Oracle *oracle;
static char *dir, *state, *scratch, *runtime_folder;
static char *tmpfs_folder, *disk_folder;        /* runtime_folder is either */
static unsigned pace_ms;        /* of the committer */
static const char *const image[NR_DISKS] = { "/images/d0", "/images/d1" };

/* --- a server's life, in a child --- */

static Catalog *cat;
static Fleece *fleece;
static Disk *disk[NR_DISKS];

static void
start (void)
{
  g_autoptr (GError) error = NULL;
  FleeceOptions options = { .storage = &sim_storage, .scratch_dir = scratch,
                            .runtime_dir = runtime_folder,
                            .epochs = { .region_bytes = REGION,
                                        .sync_interval_ms = pace_ms,
                                        .idle_ms = pace_ms,
                                        .idle_over_cap_ms = pace_ms } };

  fleece = fleece_new (&options, &error);
  g_assert_no_error (error);
  for (unsigned i = 0; i < NR_DISKS; i++) {
    char name[] = { 'd', '0' + i, '\0' };

    disk[i] = fleece_add_disk (fleece, name, image[i], GRANULE, &error);
    g_assert_no_error (error);
  }
  cat = catalog_new (state, &error);
  g_assert_no_error (error);
  catalog_open (cat, &error);
  g_assert_no_error (error);
  fleece_start (fleece, cat, &error);
  g_assert_no_error (error);
}

static void
stop (void)
{
  g_autoptr (GError) error = NULL;

  fleece_stop (fleece, &error);
  g_assert_no_error (error);
  fleece_free (fleece);
  catalog_free (cat);
}

static void
cut_name (unsigned nr, char out[16])
{
  g_snprintf (out, 16, "s%u", nr);
}

static void
do_write (const Op *op)
{
  struct oracle_disk *o = &oracle->disk[op->disk];
  uint32_t version = atomic_load (&oracle->version) + 1;
  uint64_t first = op->offset / SIM_SECTOR, nr = op->length / SIM_SECTOR;
  bool zero = op->kind == ZERO || op->kind == TRIM;
  g_autofree uint64_t *buf = g_malloc (op->length);
  int err;

  for (uint64_t i = 0; i < nr; i++) {
    for (unsigned w = 0; w < SIM_SECTOR / 8; w++)
      buf[i * (SIM_SECTOR / 8) + w] = (uint64_t) version << 32 | (first + i);
    o->submitted[first + i] = version;
    if (zero)
      o->zeroed[first + i] = version;
  }
  atomic_store (&oracle->version, version);
  if (op->kind == TRIM)
    err = disk_trim (disk[op->disk], op->length, op->offset, false);
  else if (op->kind == ZERO)
    err = disk_zero (disk[op->disk], op->length, op->offset, DISK_MAY_PUNCH);
  else
    err = disk_pwrite (disk[op->disk], buf, op->length, op->offset,
                       op->kind == FUA);
  g_assert_cmpint (err, ==, 0);
  for (uint64_t i = 0; op->kind != TRIM && i < nr; i++) {
    o->acked[first + i] = version;
    if (op->kind == FUA)
      o->stable[first + i] = version;
  }
}

/* What it adds or takes away is zeroed as of then. */
static void
do_resize (const Op *op)
{
  struct oracle_disk *o = &oracle->disk[op->disk];
  uint32_t version = atomic_load (&oracle->version) + 1;
  uint64_t first = MIN (o->size, op->length) / SIM_SECTOR;
  uint64_t end = MAX (o->size, op->length) / SIM_SECTOR;
  g_autoptr (GError) error = NULL;

  for (uint64_t s = first; s < end; s++)
    o->submitted[s] = o->zeroed[s] = version;
  o->edge[o->size / GRANULE] = o->edge[op->length / GRANULE] = version;
  o->other_size = op->length;
  atomic_store (&oracle->version, version);
  fleece_resize (fleece, disk[op->disk], op->length, &error);
  g_assert_no_error (error);
  g_assert_cmpuint (disk_size (disk[op->disk]), ==, op->length);
  o->size = op->length;
  for (uint64_t s = first; s < end; s++)
    o->acked[s] = o->stable[s] = version;
}

/* A backup of both disks: what a client would have, and keeps. */
static void
do_cut (bool snapshots)
{
  g_autoptr (GError) error = NULL;
  unsigned nr = atomic_load (&oracle->nr_cuts);
  struct oracle_cut *cut = &oracle->cut[nr];
  FleeceCutDisk part[NR_DISKS];
  unsigned before = atomic_load (&oracle->version);
  char name[16];

  if (nr == MAX_CUTS)
    return;
  cut_name (nr, name);
  for (unsigned i = 0; i < NR_DISKS; i++)
    part[i] = (FleeceCutDisk) { .disk = disk[i],
                                .snapshot = snapshots ? name : NULL };
  fleece_cut (fleece, part, NR_DISKS, NULL, NULL, &error);
  g_assert_no_error (error);
  /* One may be under way. */
  cut->version = before > 0 ? before - 1 : 0;
  cut->snapshot = snapshots;
  cut->ended = false;
  for (unsigned i = 0; i < NR_DISKS; i++) {
    cut->boundary[i] = part[i].boundary;
    cut->size[i] = snapshots ? snapshot_size (part[i].out_snapshot)
      : disk_size (disk[i]);
    if (snapshots) {
      g_assert_cmpint (snapshot_pread (part[i].out_snapshot, cut->replica[i],
                                       cut->size[i], 0), ==, 0);
      snapshot_unref (part[i].out_snapshot);
    }
    else                        /* only when nobody writes */
      g_assert_cmpint (disk_pread (disk[i], cut->replica[i], cut->size[i], 0),
                       ==, 0);
  }
  cut->done = true;
  atomic_store (&oracle->nr_cuts, nr + 1);
}

static void
do_end (unsigned nr)
{
  char name[16];

  if (nr >= atomic_load (&oracle->nr_cuts) || !oracle->cut[nr].snapshot ||
      oracle->cut[nr].ended)
    return;
  cut_name (nr, name);
  oracle->cut[nr].ended = true;
  for (unsigned i = 0; i < NR_DISKS; i++) {
    g_autoptr (GError) error = NULL;
    g_autoptr (Snapshot) snap = disk_find_snapshot (disk[i], name);

    if (snap != NULL)
      snapshot_end (snap, &error);
    g_assert_no_error (error);
  }
}

static void
do_op (const Op *op)
{
  g_autoptr (GError) error = NULL;
  struct oracle_disk *o = &oracle->disk[op->disk];

  switch (op->kind) {
  case WRITE:
  case FUA:
  case ZERO:
  case TRIM:
    do_write (op);
    break;
  case FLUSH:
    g_assert_cmpint (disk_flush (disk[op->disk]), ==, 0);
    memcpy (o->stable, o->acked, sizeof o->stable);
    break;
  case RESIZE:
    do_resize (op);
    break;
  case CUT:
    do_cut (true);
    break;
  case CHECKPOINT:
    do_cut (false);
    break;
  case END:
    do_end ((unsigned) op->offset);
    break;
  case STORE:
    fleece_store_epochs (fleece, &error);
    g_assert_no_error (error);
    break;
  case RESTART:
    stop ();
    start ();
    break;
  case NR_KINDS:
    g_assert_not_reached ();
  }
}

/* --- histories --- */

static const Op script[] = {
  { WRITE, 0, 0, 8192 }, { WRITE, 1, 65536, 4096 }, { FLUSH, 0 },
  { CUT }, { WRITE, 0, 4096, 4096 }, { WRITE, 0, 1 << 20, 12288 },
  { FLUSH, 0 }, { ZERO, 0, 0, 65536 }, { CUT }, { FUA, 1, 65536, 512 },
  { WRITE, 1, 512, 1536 }, { TRIM, 0, 1 << 20, 65536 }, { STORE },
  { END, 0, 0 }, { WRITE, 0, 131072, 65536 }, { CHECKPOINT },
  { WRITE, 0, 2 << 20, 131072 }, { FLUSH, 0 }, { CHECKPOINT },
  { RESIZE, 1, 0, DISK_BYTES }, { RESIZE, 0, 0, LEAST_BYTES + 3584 },
  { WRITE, 0, 0, 512 }, { WRITE, 1, 5 << 20, 1536 }, { FLUSH, 1 },
  { RESIZE, 0, 0, DISK_BYTES - 512 },
  { WRITE, 1, 3 << 20, 4096 }, { FLUSH, 1 }, { WRITE, 0, 4 << 20, 4096 },
  { RESTART }, { RESIZE, 0, 0, 4 << 20 }, { WRITE, 0, 262144, 4096 }, { CUT },
  { WRITE, 0, 262144, 4096 },
  { WRITE, 1, 0, 4096 }, { END, 0, 1 }, { STORE }, { WRITE, 1, 4096, 4096 },
};

static Op
random_op (GRand *rand)
{
  static const Kind kinds[] = {
    WRITE, WRITE, WRITE, WRITE, WRITE, WRITE, FUA, ZERO, TRIM, FLUSH, FLUSH,
    RESIZE, RESIZE, CUT, CUT, CHECKPOINT, END, END, STORE, WRITE, WRITE, WRITE,
    WRITE, WRITE,
  };
  Op op = { .kind = kinds[g_rand_int_range (rand, 0, G_N_ELEMENTS (kinds))],
            .disk = g_rand_int_range (rand, 0, NR_DISKS) };
  uint64_t nr_sectors = oracle->disk[op.disk].size / SIM_SECTOR;
  uint64_t sector = g_rand_int_range (rand, 0, nr_sectors);
  uint64_t nr = g_rand_int_range (rand, 1, 25);

  if (g_rand_int_range (rand, 0, 40) == 0)
    op.kind = RESTART;
  if (op.kind == END)
    op.offset = g_rand_int_range (rand, 0, MAX_CUTS);
  else if (op.kind == RESIZE) {
    op.length = g_rand_int_range (rand, LEAST_BYTES / SIM_SECTOR,
                                  NR_SECTORS + 1) * SIM_SECTOR;
    if (g_rand_boolean (rand))
      op.length = op.length / GRANULE * GRANULE;
  }
  else {
    if (g_rand_boolean (rand))  /* some places are hot */
      sector %= 512;
    op.offset = sector * SIM_SECTOR;
    op.length = MIN (nr, nr_sectors - sector) * SIM_SECTOR;
  }
  return op;
}

typedef struct {
  uint64_t seed;                /* 0: the script */
  bool threads;                 /* cuts and writes at the same time */
} History;

static void *
cutter (void *opaque)
{
  GRand *rand = opaque;

  for (unsigned i = 0; i < 4; i++) {
    do_cut (true);
    if (g_rand_boolean (rand))
      do_end (g_rand_int_range (rand, 0, MAX_CUTS));
  }
  return NULL;
}

static void
run_history (const History *h)
{
  if (h->seed == 0) {
    for (size_t i = 0; i < G_N_ELEMENTS (script); i++)
      do_op (&script[i]);
    return;
  }
  GRand *rand = g_rand_new_with_seed ((guint32) h->seed);
  GRand *cuts = g_rand_new_with_seed ((guint32) h->seed + 1);
  unsigned nr = g_rand_int_range (rand, 10, MAX_OPS);
  pthread_t thread;

  if (h->threads)
    g_assert_cmpint (pthread_create (&thread, NULL, cutter, cuts), ==, 0);
  for (unsigned i = 0; i < nr; i++) {
    Op op = random_op (rand);

    if (h->threads && op.kind >= CUT)
      op = (Op) { .kind = FLUSH };
    do_op (&op);
  }
  if (h->threads)
    pthread_join (thread, NULL);
  g_rand_free (rand);
  g_rand_free (cuts);
}

/* --- what must hold after it --- */

static void
check_sector (unsigned d, uint64_t sector, const uint64_t *words, bool power)
{
  const struct oracle_disk *o = &oracle->disk[d];
  uint32_t oldest = power ? o->stable[sector] : o->acked[sector];

  for (unsigned w = 0; w < SIM_SECTOR / 8; w++) {
    uint32_t version = words[w] >> 32;

    if (words[w] == 0) {
      if (o->zeroed[sector] >= oldest)
        continue;
      g_error ("base: disk %u sector %" G_GUINT64_FORMAT " is zero, but "
               "version %u was promised", d, sector, oldest);
    }
    if ((uint32_t) words[w] != sector || version < oldest ||
        version > o->submitted[sector])
      g_error ("base: disk %u sector %" G_GUINT64_FORMAT " has %"
               G_GINT64_MODIFIER "x, promised was version %u", d, sector,
               words[w], oldest);
  }
}

static void
check_base (bool power)
{
  for (unsigned d = 0; d < NR_DISKS; d++) {
    struct oracle_disk *o = &oracle->disk[d];
    uint64_t size = disk_size (disk[d]);
    g_autofree uint64_t *now = g_malloc (size);

    if (size != o->size && size != o->other_size)
      g_error ("base: disk %u has %" G_GUINT64_FORMAT " bytes, not %"
               G_GUINT64_FORMAT " or %" G_GUINT64_FORMAT, d, size, o->size,
               o->other_size);
    o->size = o->other_size = size;
    g_assert_cmpint (disk_pread (disk[d], now, size, 0), ==, 0);
    for (uint64_t s = 0; s < size / SIM_SECTOR; s++)
      check_sector (d, s, now + s * (SIM_SECTOR / 8), power);
  }
}

/* Was there ever a write to this region, or to up to four before (hints)?  An
 * intent counts for every epoch until it is cleared. */
static bool
written_near (unsigned d, uint64_t at)
{
  const struct oracle_disk *o = &oracle->disk[d];
  uint64_t region = at / REGION, first = region > 4 ? region - 4 : 0;
  uint64_t end = MIN ((region + 1) * REGION, DISK_BYTES);

  for (uint64_t s = first * REGION / SIM_SECTOR; s < end / SIM_SECTOR; s++)
    if (o->submitted[s] > 0)
      return true;
  return false;
}

/* The copy of this cut and what is dirty since make the disk of now. */
static void
check_chain (unsigned nr, unsigned d, Crash crash, bool precise)
{
  const struct oracle_cut *cut = &oracle->cut[nr];
  const struct oracle_disk *o = &oracle->disk[d];
  g_autoptr (GError) error = NULL;
  uint64_t size = disk_size (disk[d]);
  g_autofree uint8_t *now = g_malloc (size);
  g_autoptr (ChangeSet) set = NULL;

  set = epoch_log_changed (disk_epoch_log (disk[d]), cut->boundary[d], 0, NULL,
                           &error);
  g_assert_no_error (error);
  g_assert_cmpuint (change_set_size (set), ==, size);
  g_assert_cmpint (disk_pread (disk[d], now, size, 0), ==, 0);
  for (uint64_t at = 0; at < size; at += GRANULE) {
    uint64_t n = MIN (GRANULE, size - at);
    bool written = o->edge[at / GRANULE] > cut->version;

    if (!change_set_get (set, at)) {
      if (at + n > cut->size[d] ||
          memcmp (now + at, cut->replica[d] + at, n) != 0)
        g_error ("chain: disk %u offset %" G_GUINT64_FORMAT " has changed "
                 "since cut %u and is reported clean", d, at, nr);
      continue;
    }
    for (uint64_t s = at / SIM_SECTOR; s < (at + n) / SIM_SECTOR; s++)
      written |= o->submitted[s] > cut->version;
    if (!written)
      oracle->over_bytes += n;
    /* The tmpfs has all; else it may be what an intent stands for. */
    if (!written && precise &&
        (crash == KILLED || crash == POWER || !written_near (d, at)))
      g_error ("precision: disk %u offset %" G_GUINT64_FORMAT " was not "
               "written since cut %u and is reported dirty", d, at, nr);
  }
}

static void
check_snapshot (unsigned nr, unsigned d, Crash crash, bool must_live)
{
  const struct oracle_cut *cut = &oracle->cut[nr];
  g_autofree uint8_t *got = g_malloc (cut->size[d]);
  g_autoptr (Snapshot) snap = NULL;
  char name[16];
  int err;

  cut_name (nr, name);
  snap = disk_find_snapshot (disk[d], name);
  g_assert_nonnull (snap);
  g_assert_cmpuint (snapshot_size (snap), ==, cut->size[d]);
  err = snapshot_pread (snap, got, cut->size[d], 0);
  if (err == 0) {
    g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_LIVE);
    if (memcmp (got, cut->replica[d], cut->size[d]) != 0)
      g_error ("snapshot: %s of disk %u is not what it was", name, d);
    return;
  }
  g_autofree char *reason = snapshot_reason (snap);
  g_assert_true (snapshot_state (snap) == SNAPSHOT_LOST ||
                 snapshot_state (snap) == SNAPSHOT_BROKEN);
  g_assert_nonnull (reason);
  if (must_live)
    g_error ("snapshot: %s of disk %u is gone: %s", name, d, reason);
}

static void
check_all (Crash crash, bool precise)
{
  for (unsigned nr = 0; nr < atomic_load (&oracle->nr_cuts); nr++)
    for (unsigned d = 0; d < NR_DISKS; d++) {
      check_chain (nr, d, crash, precise);
      if (oracle->cut[nr].snapshot && !oracle->cut[nr].ended)
        check_snapshot (nr, d, crash, precise && crash == KILLED);
    }
}

static void
end_all (void)
{
  for (unsigned nr = 0; nr < MAX_CUTS; nr++)
    oracle->cut[nr].ended = true;
  for (unsigned d = 0; d < NR_DISKS; d++) {
    g_autoptr (GPtrArray) all = disk_snapshots (disk[d]);

    for (unsigned i = 0; i < all->len; i++) {
      g_autoptr (GError) error = NULL;

      snapshot_end (all->pdata[i], &error);
      g_assert_no_error (error);
    }
    g_ptr_array_set_free_func (all, (GDestroyNotify) snapshot_unref);
  }
}

/* Can we say what is dirty at most?  A torn sector of a map is not a reason to
 * complain: its cover is dirty. */
static bool
is_precise (Crash crash, bool recovered)
{
  bool precise = crash == KILLED || crash == POWER || !recovered;

  for (unsigned d = 0; d < NR_DISKS; d++)
    precise &= epoch_log_report (disk_epoch_log (disk[d]))->bad_sectors == 0;
  return precise;
}

static void
verify (Crash crash, uint64_t seed, bool recovered)
{
  GRand *rand = g_rand_new_with_seed ((guint32) seed);
  unsigned nr;

  start ();
  check_base (crash >= POWER);
  check_all (crash, is_precise (crash, recovered));
  /* Life goes on: written, cut, stopped and started, it still holds. */
  for (unsigned i = 0; i < 8; i++) {
    Op op = random_op (rand);

    if (op.kind < FLUSH)
      do_op (&op);
  }
  nr = atomic_load (&oracle->nr_cuts);
  if (nr == MAX_CUTS)
    atomic_store (&oracle->nr_cuts, nr = MAX_CUTS - 1);
  oracle->cut[nr].done = false;
  {
    /* A snapshot of that name may be there, of a cut that was never told. */
    char name[16];
    cut_name (nr, name);
    for (unsigned d = 0; d < NR_DISKS; d++) {
      g_autoptr (Snapshot) snap = disk_find_snapshot (disk[d], name);
      g_autoptr (GError) error = NULL;

      if (snap != NULL)
        snapshot_end (snap, &error);
      g_assert_no_error (error);
    }
  }
  do_cut (true);
  check_all (crash, false);
  stop ();
  start ();
  check_all (crash, false);
  end_all ();
  g_assert_cmpuint (sim_disk_files (scratch), ==, 0);
  check_all (crash, false);
  stop ();
  g_rand_free (rand);
}

/* --- the parent --- */

static void
remove_tree (const char *path)
{
  g_autoptr (GDir) d = g_dir_open (path, 0, NULL);
  const char *name;

  while (d != NULL && (name = g_dir_read_name (d)) != NULL) {
    g_autofree char *child = g_build_filename (path, name, NULL);

    if (g_file_test (child, G_FILE_TEST_IS_DIR))
      remove_tree (child);
    else
      g_unlink (child);
  }
  g_rmdir (path);
}

static void
empty_folder (const char *path)
{
  remove_tree (path);
  g_assert_cmpint (g_mkdir (path, 0700), ==, 0);
}

static void
new_disks (void)
{
  sim_disk_clear ();
  sim_disk_arm (UINT64_MAX);
  remove_tree (state);
  empty_folder (tmpfs_folder);
  empty_folder (disk_folder);
  g_assert_cmpint (madvise (oracle, sizeof *oracle, MADV_REMOVE), ==, 0);
  for (unsigned i = 0; i < NR_DISKS; i++) {
    StorageFile *file;

    g_assert_cmpint (sim_storage.ops->open (&sim_storage, image[i],
                                            STORAGE_CREATE, START_BYTES,
                                            &file), ==, 0);
    oracle->disk[i].size = oracle->disk[i].other_size = START_BYTES;
    file->ops->sync (file);
    file->ops->close (file);
  }
  sim_storage.ops->sync_dir (&sim_storage, "/images");
}

typedef enum { HISTORY, RECOVERY, VERIFY } Part;

typedef struct {
  const History *history;
  Crash crash;
  uint64_t seed;
  bool recovered;               /* once already: what it saw is not known */
} Run;

static void
child (Part part, const Run *run)
{
  sim_disk_use ();
  switch (part) {
  case HISTORY:
    start ();
    run_history (run->history);
    stop ();
    break;
  case RECOVERY:
    start ();
    break;
  case VERIFY:
    verify (run->crash, run->seed, run->recovered);
  }
  /* The recovered server is killed as well. */
  _exit (0);
}

/* True: it ended at the crash.  A failure ends us. */
static bool
run_child (Part part, const Run *run, uint64_t crash_at)
{
  pid_t pid;
  int status;

  sim_disk_arm (crash_at);
  fflush (NULL);
  pid = fork ();
  g_assert_cmpint (pid, >=, 0);
  if (pid == 0)
    child (part, run);
  while (waitpid (pid, &status, 0) < 0)
    g_assert_cmpint (errno, ==, EINTR);
  if (WIFEXITED (status) && WEXITSTATUS (status) == 0)
    return false;
  if (WIFEXITED (status) && WEXITSTATUS (status) == SIM_CRASHED)
    return true;
  fprintf (stderr, "history %" G_GUINT64_FORMAT "%s, then %s: %s failed, "
           "status 0x%x, call %" G_GUINT64_FORMAT " of it\n",
           run->history->seed, run->history->threads ? " (threads)" : "",
           crash_name[run->crash], part == HISTORY ? "the history" :
           part == RECOVERY ? "the recovery" : "the check", status,
           sim_disk_calls ());
  remove_tree (dir);
  remove_tree (disk_folder);
  exit (1);
}

static struct {
  uint64_t crashes, recoveries, over[NR_CRASHES], n[NR_CRASHES];
} total;

/* Maps of the same names and sizes: empty ones of another life, or those that
 * are there with some pages that never reached the disk. */
static void
change_map (Runtime *rt, const char *path, bool other_life, GRand *rand)
{
  g_autoptr (GError) error = NULL;
  g_autofree char *name = g_path_get_basename (path), *bytes = NULL;
  size_t length, page = getpagesize ();

  g_file_get_contents (path, &bytes, &length, &error);
  g_assert_no_error (error);
  if (length <= page)           /* the crash was while it was made */
    return;
  if (other_life) {
    uint8_t nonce[RUNTIME_NONCE_BYTES];
    RuntimeMap *map;

    runtime_draw_nonce (nonce);
    map = runtime_map_create (rt, name, length - page, nonce, false, &error);
    g_assert_no_error (error);
    runtime_map_close (map);
    return;
  }
  for (size_t at = page; at < length; at += page)
    if (g_rand_boolean (rand))
      memset (bytes + at, 0, MIN (page, length - at));
  g_file_set_contents (path, bytes, length, &error);
  g_assert_no_error (error);
}

static void
change_maps (bool other_life, uint64_t seed)
{
  g_autoptr (GDir) top = g_dir_open (runtime_folder, 0, NULL);
  GRand *rand = g_rand_new_with_seed ((guint32) seed);
  const char *uuid, *name;

  while (top != NULL && (uuid = g_dir_read_name (top)) != NULL) {
    g_autofree char *path = g_build_filename (runtime_folder, uuid, NULL);
    g_autoptr (Runtime) rt = runtime_new (runtime_folder, uuid, NULL);
    g_autoptr (GDir) maps = g_dir_open (path, 0, NULL);
    g_autoptr (GPtrArray) all = g_ptr_array_new_with_free_func (g_free);

    while ((name = g_dir_read_name (maps)) != NULL)
      if (!g_str_has_suffix (name, EPOCH_MARK_SUFFIX))
        g_ptr_array_add (all, g_build_filename (path, name, NULL));
    for (unsigned i = 0; i < all->len; i++)
      change_map (rt, all->pdata[i], other_life, rand);
  }
  g_rand_free (rand);
}

static void
strike (Crash crash, uint64_t seed)
{
  if (crash >= POWER)
    sim_disk_lose_power (seed);
  if (crash == KILLED_NO_TMPFS || crash == POWER_NO_TMPFS)
    empty_folder (runtime_folder);
  else if (crash == POWER_OTHER_MAPS)
    change_maps (true, seed);
  else if (crash == POWER_MAPS_ON_DISK)
    change_maps (false, seed);
}

/* False: the history is over before call number crash_at. */
static bool
crash_once (const History *history, uint64_t crash_at, Crash crash,
            unsigned recoveries, uint64_t seed)
{
  Run run = { history, crash, seed, recoveries > 0 };
  static const unsigned paces[] = { 1, 4, 5000 };

  runtime_folder = crash == POWER_MAPS_ON_DISK ? disk_folder : tmpfs_folder;
  pace_ms = paces[seed % G_N_ELEMENTS (paces)];
  new_disks ();
  if (!run_child (HISTORY, &run, crash_at))
    return false;
  total.crashes++;
  strike (crash, seed);
  /* Each recovery goes on from what the one before left. */
  for (uint64_t at = 0; at < recoveries; at++) {
    bool over = !run_child (RECOVERY, &run, at);

    strike (crash, seed + at + 1);
    total.recoveries++;
    if (over)
      break;
  }
  run_child (VERIFY, &run, UINT64_MAX);
  total.over[crash] += oracle->over_bytes;
  total.n[crash]++;
  return true;
}

/* Every call of the script, each kind of crash in turn. */
static void
every_call (unsigned step, unsigned first, int only)
{
  static const History h;

  for (uint64_t at = first; ; at += step)
    if (!crash_once (&h, at, only >= 0 ? only : (int) (at / step % NR_CRASHES),
                     at % 97 == 0 ? 1000 : at % 3, at * 7919 + 1))
      break;
}

static void
random_histories (unsigned nr, uint64_t seed, int only)
{
  GRand *rand = g_rand_new_with_seed ((guint32) seed);

  for (unsigned i = 0; i < nr; ) {
    History h = { 1 + g_rand_int_range (rand, 0, G_MAXINT32),
                  g_rand_boolean (rand) };
    int any = g_rand_int_range (rand, 0, NR_CRASHES);
    Crash crash = only >= 0 ? only : any;
    uint64_t at = g_rand_int_range (rand, 0, 1500);
    unsigned recoveries = g_rand_int_range (rand, 0, 4);

    if (crash_once (&h, at, crash, recoveries * g_rand_int_range (rand, 0, 8),
                    h.seed + at))
      i++;
  }
  g_rand_free (rand);
}

int
main (int argc, char **argv)
{
  unsigned step = argc > 2 ? MAX (atoi (argv[1]), 1) : 23;
  unsigned histories = argc > 2 ? atoi (argv[2]) : 15;
  int only = argc > 3 ? atoi (argv[3]) : -1;
  const char *seed_text = g_getenv ("CRASH_SEED");
  uint64_t seed = seed_text != NULL ? g_ascii_strtoull (seed_text, NULL, 10)
    : g_random_int ();

  sim_disk_new ();
  oracle = mmap (NULL, sizeof *oracle, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  g_assert (oracle != MAP_FAILED);
  dir = g_mkdtemp (g_strdup ("/dev/shm/nbdfleece-sim.XXXXXX"));
  g_assert_nonnull (dir);
  state = g_build_filename (dir, "state", NULL);
  scratch = g_build_filename (dir, "scratch", NULL);
  /* Trusted, being in a tmpfs; and not. */
  tmpfs_folder = g_build_filename (dir, "runtime", NULL);
  disk_folder = g_mkdtemp (g_build_filename (g_get_tmp_dir (),
                                             "nbdfleece-sim.XXXXXX", NULL));
  g_assert_nonnull (disk_folder);
  printf ("# CRASH_SEED=%" G_GUINT64_FORMAT "\n", seed);
  fflush (stdout);

  every_call (step, seed % step, only);
  random_histories (histories, seed, only);
  remove_tree (dir);
  remove_tree (disk_folder);
  printf ("1..1\nok 1 simulated disk\n");
  printf ("# simulated disk: %" G_GUINT64_FORMAT " crashes, 0 lost blocks, %"
          G_GUINT64_FORMAT " recoveries ended\n", total.crashes,
          total.recoveries);
  for (unsigned i = 0; i < NR_CRASHES; i++)
    printf ("#   %s: %" G_GUINT64_FORMAT " times\n", crash_name[i],
            total.n[i]);
  return 0;
}
