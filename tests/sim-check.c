/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* sim-check.c - what must hold after a crash and in the life that follows. */
#include <config.h>

#include <errno.h>
#include <string.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/checkpoint.h"
#include "bitmap/epoch.h"
#include "tests/sim-bitmap.h"
#include "tests/sim-layer.h"

/* Of the checks, which are of one thread: new memory for each, or for all of a
 * disk, would cost more than they do. */
#define PIECE (64 * 1024)
#define WORDS (SIM_SECTOR / 8)
static uint64_t piece[PIECE / 8];
static uint64_t now_sum[NR_DISKS][NR_SECTORS], now_first[NR_DISKS][NR_SECTORS];

/* --- what must hold --- */

static void
check_sector (unsigned d, uint64_t sector, const uint64_t *words, bool power)
{
  const struct oracle_disk *o = &oracle->disk[d];
  uint32_t oldest = power ? o->stable[sector] : o->acked[sector];

  for (unsigned w = 0; w < WORDS; w++) {
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

void
sim_check_base (Crash crash)
{
  for (unsigned d = 0; d < NR_DISKS; d++) {
    struct oracle_disk *o = &oracle->disk[d];
    uint64_t size = disk_size (disk[d]);
    /* Which blocks a layer has got since the last flush, the tmpfs knows. */
    bool power = crash >= POWER || (crash == KILLED_NO_TMPFS && o->layered);

    if (size != o->size && size != o->other_size)
      g_error ("base: disk %u has %" G_GUINT64_FORMAT " bytes, not %"
               G_GUINT64_FORMAT " or %" G_GUINT64_FORMAT, d, size, o->size,
               o->other_size);
    /* A resize that failed may still be taken back. */
    o->other_size = sim.faults ? o->size + o->other_size - size : size;
    o->size = size;
    for (uint64_t at = 0; at < size; at += PIECE) {
      uint64_t n = MIN (PIECE, size - at);

      g_assert_cmpint (disk_pread (disk[d], piece, n, at), ==, 0);
      for (uint64_t s = 0; s < n / SIM_SECTOR; s++)
        check_sector (d, at / SIM_SECTOR + s, piece + s * WORDS,
                      power);
    }
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
  const struct oracle_part *p = &cut->part[d];
  const struct oracle_disk *o = &oracle->disk[d];
  g_autoptr (GError) error = NULL;
  uint64_t size = disk_size (disk[d]);
  g_autoptr (ChangeSet) set = NULL;

  set = epoch_log_changed (disk_epoch_log (disk[d]), p->boundary, 0, NULL,
                           &error);
  g_assert_no_error (error);
  g_assert_cmpuint (change_set_size (set), ==, size);
  for (uint64_t at = 0; at < size; at += GRANULE) {
    uint64_t n = MIN (GRANULE, size - at);
    bool written = o->edge[at / GRANULE] > cut->version;

    if (!change_set_get (set, at)) {
      if (at + n > p->size ||
          memcmp (&now_sum[d][at / SIM_SECTOR], &p->replica[at / SIM_SECTOR],
                  n / SIM_SECTOR * sizeof p->replica[0]) != 0)
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

static bool
is_replica (const struct oracle_part *p, const void *got, uint64_t length,
            uint64_t offset)
{
  for (uint64_t at = 0; at < length; at += SIM_SECTOR)
    if (sim_sum ((const char *) got + at) !=
        p->replica[(offset + at) / SIM_SECTOR])
      return false;
  return true;
}

/* Block by block: right, or an error. */
static void
check_blocks (Snapshot *snap, const struct oracle_part *p, const char *name,
              unsigned d)
{
  bool any = false;

  for (uint64_t at = 0; at < p->size; at += 4096) {
    uint64_t n = MIN (4096, p->size - at);
    char got[4096];

    if (snapshot_pread (snap, got, n, at) < 0)
      any = true;
    else if (!is_replica (p, got, n, at))
      g_error ("snapshot: %s of disk %u is not what it was", name, d);
  }
  /* Blocks whose old data could not be read. */
  if (any && (oracle->hit & SIM_HIT_IMAGE) == 0)
    g_error ("snapshot: %s of disk %u says live and cannot be read", name, d);
}

static int
read_snapshot (Snapshot *snap, const struct oracle_part *p, bool *out_same)
{
  *out_same = true;
  for (uint64_t at = 0; at < p->size; at += PIECE) {
    uint64_t n = MIN (PIECE, p->size - at);
    int err = snapshot_pread (snap, piece, n, at);

    if (err < 0)
      return err;
    *out_same = *out_same && is_replica (p, piece, n, at);
  }
  return 0;
}

static void
check_snapshot (unsigned nr, unsigned d, Crash crash, bool precise,
                bool must_live)
{
  struct oracle_part *p = &oracle->cut[nr].part[d];
  g_autofree char *reason = NULL;
  g_autoptr (Snapshot) snap = NULL;
  char name[16];
  bool same;
  int err;

  sim_cut_name (nr, name);
  snap = disk_find_snapshot (disk[d], name);
  if (snap == NULL)
    g_error ("snapshot: %s of disk %u is missing", name, d);
  g_assert_cmpuint (snapshot_size (snap), ==, p->size);
  if (!sim.faults)
    sim_check_frozen (p, d, snap, crash, precise);
  err = read_snapshot (snap, p, &same);
  if (err == 0 || snapshot_state (snap) == SNAPSHOT_LIVE) {
    g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_LIVE);
    /* Where the news could not be written, nothing was overwritten either. */
    if (p->gone && !(oracle->hit & SIM_HIT_STATE))
      g_error ("snapshot: %s of disk %u was gone and is live", name, d);
    if (err < 0)
      check_blocks (snap, p, name, d);
    else if (!same)
      g_error ("snapshot: %s of disk %u is not what it was", name, d);
    return;
  }
  g_assert_cmpint (err, ==, -EIO);
  p->gone = true;
  reason = snapshot_reason (snap);
  g_assert_true (snapshot_state (snap) == SNAPSHOT_LOST ||
                 snapshot_state (snap) == SNAPSHOT_BROKEN);
  g_assert_nonnull (reason);
  if (must_live)
    g_error ("snapshot: %s of disk %u is gone: %s", name, d, reason);
}

/* A durable snapshot is never lost.  A volatile one has to be there after kill
 * -9 with the maps (precise).  With faults, the scratch file's own break it. */
static bool
must_live (const struct oracle_part *p, Crash crash, bool precise)
{
  if (oracle->hit & SIM_HIT_SCRATCH)
    return sim.guest_fails && crash == KILLED && precise;
  return p->durable || (precise && crash == KILLED);
}

/* A cut that nobody was told of: all of it is there or nothing. */
static void
check_untold (bool old_bitmaps, bool new_bitmaps)
{
  unsigned nr = atomic_load (&oracle->nr_cuts);
  const struct oracle_cut *cut = &oracle->cut[nr];
  g_autoptr (Checkpoint) ckpt = NULL;
  char name[16];

  if (nr == MAX_CUTS || !cut->under_way)
    return;
  sim_checkpoint_name (nr, name);
  ckpt = checkpoint_lookup (sim_catalog, name, NULL);
  sim_cut_name (nr, name);
  for (unsigned d = 0; d < NR_DISKS; d++) {
    g_autoptr (Snapshot) snap = disk_find_snapshot (disk[d], name);
    bool has = ckpt != NULL &&
      checkpoint_find_disk (ckpt, disk_name (disk[d])) != NULL;

    if (has != (ckpt != NULL && cut->part[d].in))
      g_error ("transaction: checkpoint of cut %u lacks disk %u", nr, d);
    if (cut->snapshot && (snap != NULL) != has)
      g_error ("transaction: disk %u has a %s of cut %u and no %s", d,
               has ? "checkpoint" : "snapshot", nr,
               has ? "snapshot" : "checkpoint");
  }
  if (cut->with_change && !(ckpt != NULL ? new_bitmaps : old_bitmaps))
    g_error ("transaction: cut %u is %s and its bitmaps are not", nr,
             ckpt != NULL ? "there" : "not there");
}

static void
read_now (void)
{
  for (unsigned d = 0; d < NR_DISKS; d++) {
    uint64_t size = disk_size (disk[d]);

    for (uint64_t at = 0; at < size; at += PIECE) {
      uint64_t n = MIN (PIECE, size - at), first = at / SIM_SECTOR;

      g_assert_cmpint (disk_pread (disk[d], piece, n, at), ==, 0);
      for (uint64_t s = 0; s < n / SIM_SECTOR; s++) {
        now_sum[d][first + s] = sim_sum (piece + s * WORDS);
        now_first[d][first + s] = piece[s * WORDS];
      }
    }
  }
}

void
sim_check_all (Crash crash, bool precise)
{
  uint64_t *const now[NR_DISKS] = { now_first[0], now_first[1] };
  bool old_bitmaps, new_bitmaps;

  read_now ();
  if (!sim.faults) {
    sim_check_bitmaps (crash, precise, now, &old_bitmaps, &new_bitmaps);
    check_untold (old_bitmaps, new_bitmaps);
  }
  for (unsigned nr = 0; nr < atomic_load (&oracle->nr_cuts); nr++)
    for (unsigned d = 0; d < NR_DISKS; d++) {
      const struct oracle_cut *cut = &oracle->cut[nr];

      if (!cut->part[d].in || (oracle->unsynced && crash >= POWER))
        continue;
      if (!cut->forgotten)
        check_chain (nr, d, crash, precise && !sim.faults);
      if (cut->snapshot && !cut->ended)
        check_snapshot (nr, d, crash, precise,
                        must_live (&cut->part[d], crash, precise));
    }
}

/* A torn sector of a map is not a reason to complain: its cover is dirty. */
bool
sim_is_precise (Crash crash, bool recovered)
{
  bool precise = crash == KILLED || crash == POWER || !recovered;

  for (unsigned d = 0; d < NR_DISKS; d++)
    precise &= epoch_log_report (disk_epoch_log (disk[d]))->bad_sectors == 0;
  return precise;
}

/* --- life goes on --- */

static void
end_snapshots (Disk *d)
{
  g_autoptr (GPtrArray) all = disk_snapshots (d);

  for (unsigned i = 0; i < all->len; i++) {
    g_autoptr (GError) error = NULL;

    snapshot_end (all->pdata[i], &error);
    g_assert_no_error (error);
  }
}

static void
end_all (void)
{
  for (unsigned nr = 0; nr < MAX_CUTS; nr++)
    oracle->cut[nr].ended = true;
  for (unsigned d = 0; d < NR_DISKS; d++)
    end_snapshots (disk[d]);
  sim_layers_end ();
}

static void
check_state_file (void *opaque, const char *name)
{
  if (!g_str_has_suffix (name, ".i"))
    g_error ("left over: map '%s'", name);
}

/* The marks that tell one life of the machine from another stay. */
static void
check_runtime_folder (void)
{
  g_autoptr (GDir) top = g_dir_open (sim.runtime_folder, 0, NULL);
  const char *uuid, *name;

  while (top != NULL && (uuid = g_dir_read_name (top)) != NULL) {
    g_autofree char *path = g_build_filename (sim.runtime_folder, uuid, NULL);
    g_autoptr (GDir) maps = g_dir_open (path, 0, NULL);

    while (maps != NULL && (name = g_dir_read_name (maps)) != NULL)
      if (!g_str_has_suffix (name, EPOCH_MARK_SUFFIX))
        g_error ("left over: '%s' in the runtime folder", name);
  }
}

/* After a clean stop, with no snapshot. */
static void
check_nothing_left (void)
{
  g_autofree char *maps = g_build_filename (sim.state, "maps", NULL);

  check_runtime_folder ();
  if (sim_disk_files (sim.scratch) != 0)
    g_error ("left over: scratch files");
  sim_storage.ops->list (&sim_storage, maps, check_state_file, NULL);
}

void
sim_check_life (Crash crash, uint64_t seed)
{
  GRand *rand = g_rand_new_with_seed ((guint32) seed);
  static const Kind kinds[] = { CUT, DURABLE };
  Op cut = { .kind = kinds[seed % G_N_ELEMENTS (kinds)] };
  unsigned nr = atomic_load (&oracle->nr_cuts);

  /* There may be one that was never told of. */
  if (nr < MAX_CUTS)
    sim_drop_untold (nr);
  for (unsigned i = 0; i < 8; i++) {
    Op op = sim_random_op (rand);

    if (op.kind < FLUSH || (op.kind >= ADD && !sim.faults))
      sim_op (&op);
  }
  nr = atomic_load (&oracle->nr_cuts);
  if (nr == MAX_CUTS) {
    sim_drop_untold (--nr);
    atomic_store (&oracle->nr_cuts, nr);
  }
  sim_op (&cut);
  sim_check_all (crash, false);
  g_assert_true (sim_stop ());
  sim_start ();
  sim_check_all (crash, false);
  end_all ();
  if (sim_disk_files (sim.scratch) != 0)
    g_error ("left over: scratch files");
  sim_check_all (crash, false);
  g_assert_true (sim_stop ());
  check_nothing_left ();
  g_rand_free (rand);
}
