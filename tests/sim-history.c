/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <glib/gstdio.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/epoch.h"
#include "tests/fleece-fixture.h"
#include "tests/sim-history.h"

Oracle *oracle;
Fleece *fleece;
Disk *disk[NR_DISKS];
struct sim_options sim;

static Catalog *cat;
/* Of the checks, which are of one thread: the sectors of the disks. */
static uint64_t now[NR_DISKS][NR_SECTORS];
static const char *const image[NR_DISKS] = { "/images/d0", "/images/d1" };

/* --- folders, in the parent --- */

void
sim_empty_folder (const char *path)
{
  fixture_remove_tree (path);
  g_assert_cmpint (g_mkdir (path, 0700), ==, 0);
}

void
sim_set_up (void)
{
  sim_disk_new ();
  sim.most_bytes = DISK_BYTES;
  sim.start_bytes = START_BYTES;
  sim.least_bytes = LEAST_BYTES;
  oracle = mmap (NULL, sizeof *oracle, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  g_assert (oracle != MAP_FAILED);
  sim.dir = g_mkdtemp (g_strdup ("/dev/shm/nbdfleece-sim.XXXXXX"));
  g_assert_nonnull (sim.dir);
  sim.state = g_build_filename (sim.dir, "state", NULL);
  sim.scratch = g_build_filename (sim.dir, "scratch", NULL);
}

void
sim_tear_down (void)
{
  fixture_remove_tree (sim.dir);
}

void
sim_new_disks (void)
{
  sim_disk_clear ();
  sim_disk_arm (UINT64_MAX);
  sim_disk_fault (NULL);
  fixture_remove_tree (sim.state);
  memset (oracle, 0, sizeof *oracle);
  for (unsigned i = 0; i < NR_DISKS; i++) {
    StorageFile *file;

    g_assert_cmpint (sim_storage.ops->open (&sim_storage, image[i],
                                            STORAGE_CREATE, sim.start_bytes,
                                            &file), ==, 0);
    oracle->disk[i].size = oracle->disk[i].other_size = sim.start_bytes;
    file->ops->sync (file);
    file->ops->close (file);
  }
  sim_storage.ops->sync_dir (&sim_storage, "/images");
}

/* --- a server's life, in a child --- */

static void
close_all (void)
{
  fleece_free (fleece);
  catalog_free (cat);
  fleece = NULL;
  cat = NULL;
}

bool
sim_try_start (GError **error)
{
  FleeceOptions options = { .storage = &sim_storage,
                            .scratch_dir = sim.scratch,
                            .runtime_dir = sim.runtime_folder,
                            .epochs = { .region_bytes = REGION,
                                        .sync_interval_ms = sim.pace_ms,
                                        .idle_ms = sim.pace_ms,
                                        .idle_over_cap_ms = sim.pace_ms } };
  bool ok = true;

  fleece = fleece_new (&options, error);
  for (unsigned i = 0; ok && i < NR_DISKS; i++) {
    char name[] = { 'd', '0' + i, '\0' };

    disk[i] = fleece_add_disk (fleece, name, image[i], GRANULE, error);
    ok = disk[i] != NULL;
  }
  if (ok)
    cat = catalog_new (sim.state, error);
  ok = ok && cat != NULL && catalog_open (cat, error) &&
    fleece_start (fleece, cat, error);
  if (!ok)
    close_all ();
  return ok;
}

void
sim_start (void)
{
  g_autoptr (GError) error = NULL;

  sim_try_start (&error);
  g_assert_no_error (error);
}

/* May what failed have failed?  Only where the fault is. */
static void
check_failure (const char *what, unsigned legal, const GError *error)
{
  unsigned hit = oracle->hit | sim_disk_fault_hit ();

  g_assert_nonnull (error);
  oracle->failures++;
  if (!sim.faults || (hit & legal) == 0)
    g_error ("%s failed, and only %x did: %s", what, hit, error->message);
}

#define ALL_STATE (SIM_HIT_STATE | SIM_HIT_MAP | SIM_HIT_INTENTS)
#define ANYTHING (ALL_STATE | SIM_HIT_SCRATCH | SIM_HIT_IMAGE)

/* A guest was told that what it wrote may not be there. */
static void
tell (struct oracle_disk *o)
{
  for (unsigned s = 0; s < NR_SECTORS; s++)
    if (o->acked[s] != o->stable[s])
      o->told[s] = o->acked[s];
}

bool
sim_stop (void)
{
  g_autoptr (GError) error = NULL;
  bool ok = fleece_stop (fleece, &error);

  if (!ok)
    check_failure ("the stop", ANYTHING, error);
  /* The guest's connection ended before a flush could tell it. */
  if ((oracle->hit | sim_disk_fault_hit ()) & SIM_HIT_IMAGE)
    for (unsigned d = 0; d < NR_DISKS; d++)
      tell (&oracle->disk[d]);
  close_all ();
  return ok;
}

static void
cut_name (unsigned nr, char out[16])
{
  g_snprintf (out, 16, "s%u", nr);
}

/* A failed start is tried once more, without the fault. */
static void
restart (void)
{
  g_autoptr (GError) error = NULL;

  sim_stop ();
  if (sim_try_start (&error))
    return;
  check_failure ("the start", ALL_STATE | SIM_HIT_IMAGE, error);
  oracle->hit |= sim_disk_fault_hit ();
  sim_disk_fault_lift ();
  sim_start ();
}

static void
do_restart (void)
{
  char name[16];

  restart ();
  oracle->unsynced |= (oracle->hit | sim_disk_fault_hit ()) & SIM_HIT_IMAGE;
  /* Of a cut that failed as the catalog could not tell whether it was through. */
  cut_name (atomic_load (&oracle->nr_cuts), name);
  for (unsigned d = 0; sim.faults && d < NR_DISKS; d++) {
    g_autoptr (Snapshot) snap = disk_find_snapshot (disk[d], name);

    if (snap != NULL && !snapshot_end (snap, NULL))
      oracle->unsure = true;
  }
}

/* --- operations --- */

static int
call_write (const Op *op, const void *buf)
{
  Disk *d = disk[op->disk];

  if (op->kind == TRIM)
    return disk_trim (d, op->length, op->offset, false);
  if (op->kind == ZERO)
    return disk_zero (d, op->length, op->offset, DISK_MAY_PUNCH);
  return disk_pwrite (d, buf, op->length, op->offset, op->kind == FUA);
}

/* The guest fails only where its data is not safe. */
static void
check_write_failure (int err)
{
  unsigned hit = oracle->hit | sim_disk_fault_hit ();

  oracle->failures++;
  if (sim.faults && (hit & SIM_HIT_IMAGE))
    return;
  if (sim.faults && (hit & SIM_HIT_INTENTS) && err == -EIO)
    return;
  if (sim.faults && (hit & SIM_HIT_SCRATCH) && sim.guest_fails)
    return;
  /* Nothing takes the news that a durable snapshot is broken. */
  if (sim.faults && (hit & SIM_HIT_SCRATCH) && (hit & SIM_HIT_STATE) &&
      err == -EIO)
    return;
  g_error ("a guest's write failed: %s, and only %x did", g_strerror (-err),
           hit);
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

  if (op->offset + op->length > o->size)
    return;
  for (uint64_t i = 0; i < nr; i++) {
    for (unsigned w = 0; w < SIM_SECTOR / 8; w++)
      buf[i * (SIM_SECTOR / 8) + w] = (uint64_t) version << 32 | (first + i);
    o->submitted[first + i] = version;
    if (zero)
      o->zeroed[first + i] = version;
  }
  atomic_store (&oracle->version, version);
  err = call_write (op, buf);
  if (err < 0) {
    check_write_failure (err);
    return;
  }
  for (uint64_t i = 0; op->kind != TRIM && i < nr; i++) {
    o->acked[first + i] = version;
    if (op->kind == FUA)
      o->stable[first + i] = version;
  }
}

static void
do_flush (struct oracle_disk *o, Disk *d)
{
  int err = disk_flush (d);

  if (err == 0) {
    /* What a guest was told of, another flush does not make good. */
    for (unsigned s = 0; s < NR_SECTORS; s++)
      if (o->acked[s] != o->told[s])
        o->stable[s] = o->acked[s];
    return;
  }
  oracle->failures++;
  if (!sim.faults ||
      !((oracle->hit | sim_disk_fault_hit ()) & SIM_HIT_IMAGE))
    g_error ("a flush failed: %s", g_strerror (-err));
  tell (o);
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
  if (!fleece_resize (fleece, disk[op->disk], op->length, &error)) {
    check_failure ("a resize", ANYTHING, error);
    o->other_size = o->size + op->length - disk_size (disk[op->disk]);
    o->size = disk_size (disk[op->disk]);
    g_assert_true (o->size == op->length || o->other_size == op->length);
    return;
  }
  g_assert_cmpuint (disk_size (disk[op->disk]), ==, op->length);
  o->size = op->length;
  for (uint64_t s = first; s < end; s++)
    o->acked[s] = o->stable[s] = version;
}

/* --- what is on a disk or in a snapshot, by sector */

typedef struct {                /* the first that there is */
  const uint8_t *bytes;
  Snapshot *snap;
  Disk *disk;
} Source;

typedef void (*SectorFn) (void *opaque, uint64_t sector, const uint64_t *words);

static int
read_source (const Source *from, void *buf, uint64_t length, uint64_t offset)
{
  if (from->bytes != NULL) {
    memcpy (buf, from->bytes + offset, length);
    return 0;
  }
  return from->snap != NULL
    ? snapshot_pread (from->snap, buf, length, offset)
    : disk_pread (from->disk, buf, length, offset);
}

static uint64_t
hash_sector (const uint64_t *words)
{
  uint64_t lane[4] = { 1, 2, 3, 4 };

  for (unsigned w = 0; w < SIM_SECTOR / 8; w++)
    lane[w % 4] = (lane[w % 4] ^ words[w]) * UINT64_C (0x9e3779b97f4a7c15)
      ^ lane[w % 4] >> 29;
  return lane[0] ^ lane[1] * 3 ^ lane[2] * 5 ^ lane[3] * 7;
}

/* Of [offset, offset + length), whole sectors: fn may be NULL, out_hash has an
 * entry for each.  0 or -errno. */
static int
read_sectors (const Source *from, uint64_t offset, uint64_t length, SectorFn fn,
              void *opaque, uint64_t *out_hash)
{
  uint64_t words[65536 / 8];
  int err = 0;

  for (uint64_t at = 0, n; err == 0 && at < length; at += n) {
    n = MIN (length - at, sizeof words);
    err = read_source (from, words, n, offset + at);
    for (uint64_t s = 0; err == 0 && s < n / SIM_SECTOR; s++) {
      const uint64_t *sector = words + s * (SIM_SECTOR / 8);

      if (fn != NULL)
        fn (opaque, (offset + at) / SIM_SECTOR + s, sector);
      out_hash[at / SIM_SECTOR + s] = hash_sector (sector);
    }
  }
  return err;
}

/* Are the sectors of [offset, offset + length) as they were? */
static bool
is_same (const uint64_t *hash, const struct oracle_part *p, uint64_t offset,
         uint64_t length)
{
  return memcmp (hash, p->replica + offset / SIM_SECTOR,
                 length / SIM_SECTOR * sizeof *hash) == 0;
}

/* --- cuts */

static unsigned
fill_parts (struct oracle_cut *cut, const Op *op, const char *name,
            FleeceCutDisk part[NR_DISKS])
{
  unsigned nr = 0;

  for (unsigned d = 0; d < NR_DISKS; d++) {
    struct oracle_part *p = &cut->part[d];

    p->in = op->kind != ONE || op->disk == d;
    p->durable = op->kind == DURABLE || (op->kind == MIXED && d == 0) ||
      (op->kind == ONE && op->offset % 2 == 1);
    p->gone = false;
    if (p->in)
      part[nr++] = (FleeceCutDisk) {
        .disk = disk[d], .durable = p->durable,
        .snapshot = cut->snapshot ? name : NULL,
        .on_error = sim.guest_fails ? FLEECE_BREAK_GUEST_WRITE
          : FLEECE_BREAK_SNAPSHOT,
      };
  }
  return nr;
}

/* What a backup has of a disk. */
static void
take_replica (struct oracle_part *p, unsigned d, const FleeceCutDisk *part)
{
  Source from = { .snap = part->out_snapshot, .disk = disk[d] };
  uint64_t size;

  p->size = from.snap != NULL ? snapshot_size (from.snap)
    : disk_size (disk[d]);
  if (sim.faults)               /* only when nobody writes, as below */
    from = (Source) { .bytes = sim_disk_peek (image[d], &size) };
  g_assert_cmpint (read_sectors (&from, 0, p->size, NULL, NULL, p->replica),
                   ==, 0);
}

/* Nothing named remains of a cut that failed. */
static void
check_no_cut (const char *name)
{
  for (unsigned d = 0; d < NR_DISKS; d++) {
    g_autoptr (Snapshot) snap = disk_find_snapshot (disk[d], name);

    g_assert_null (snap);
  }
}

/* A backup: what a client would have, and keeps. */
static void
do_cut (const Op *op)
{
  g_autoptr (GError) error = NULL;
  unsigned nr = atomic_load (&oracle->nr_cuts), nr_parts, i = 0;
  struct oracle_cut *cut = &oracle->cut[nr];
  FleeceCutDisk part[NR_DISKS];
  unsigned before = atomic_load (&oracle->version);
  char name[16];

  if (nr == MAX_CUTS)
    return;
  cut_name (nr, name);
  cut->snapshot = op->kind != CHECKPOINT;
  nr_parts = fill_parts (cut, op, name, part);
  if (!fleece_cut (fleece, part, nr_parts, NULL, NULL, &error)) {
    check_failure ("a cut", ANYTHING, error);
    if (!oracle->unsure)
      check_no_cut (name);
    return;
  }
  /* One may be under way. */
  cut->version = before > 0 ? before - 1 : 0;
  cut->ended = cut->forgotten = false;
  for (unsigned d = 0; d < NR_DISKS; d++) {
    if (!cut->part[d].in)
      continue;
    cut->part[d].boundary = part[i].boundary;
    take_replica (&cut->part[d], d, &part[i]);
    snapshot_unref (part[i++].out_snapshot);
  }
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

    if (snap != NULL && !snapshot_end (snap, &error)) {
      check_failure ("an end", SIM_HIT_STATE, error);
      /* As it was. */
      g_assert_cmpint (snapshot_state (snap), !=, SNAPSHOT_ENDED);
    }
  }
}

/* As the plugin does once no boundary is needed any more. */
static void
do_forget (unsigned nr)
{
  if (nr >= atomic_load (&oracle->nr_cuts))
    return;
  for (unsigned d = 0; d < NR_DISKS; d++) {
    g_autoptr (GError) error = NULL;
    const struct oracle_part *p = &oracle->cut[nr].part[d];

    for (unsigned i = 0; p->in && i < nr; i++)
      oracle->cut[i].forgotten = true;
    if (p->in && !epoch_log_forget_before (disk_epoch_log (disk[d]),
                                           p->boundary, &error))
      check_failure ("forgetting", SIM_HIT_STATE, error);
  }
}

void
sim_op (const Op *op)
{
  g_autoptr (GError) error = NULL;

  switch (op->kind) {
  case WRITE:
  case FUA:
  case ZERO:
  case TRIM:
    do_write (op);
    break;
  case FLUSH:
    do_flush (&oracle->disk[op->disk], disk[op->disk]);
    break;
  case RESIZE:
    do_resize (op);
    break;
  case CUT:
  case DURABLE:
  case MIXED:
  case ONE:
  case CHECKPOINT:
    do_cut (op);
    break;
  case END:
    do_end ((unsigned) op->offset);
    break;
  case STORE:
    if (!fleece_store_epochs (fleece, &error))
      check_failure ("storing epochs", SIM_HIT_STATE, error);
    break;
  case FORGET:
    do_forget ((unsigned) op->offset);
    break;
  case RESTART:
    do_restart ();
    break;
  case NR_KINDS:
    g_assert_not_reached ();
  }
}

Op
sim_random_op (GRand *rand)
{
  static const Kind kinds[] = {
    WRITE, WRITE, WRITE, WRITE, WRITE, WRITE, WRITE, WRITE, WRITE, WRITE,
    WRITE, WRITE, WRITE, FUA, ZERO, TRIM, FLUSH, FLUSH, RESIZE, RESIZE, CUT,
    DURABLE, MIXED, ONE, ONE, CHECKPOINT, END, END, END, STORE, FORGET,
  };
  Op op = { .kind = kinds[g_rand_int_range (rand, 0, G_N_ELEMENTS (kinds))],
            .disk = g_rand_int_range (rand, 0, NR_DISKS) };
  uint64_t nr_sectors = oracle->disk[op.disk].size / SIM_SECTOR;
  uint64_t sector = g_rand_int_range (rand, 0, nr_sectors);
  uint64_t nr = g_rand_int_range (rand, 1, 25);

  if (g_rand_int_range (rand, 0, 40) == 0)
    op.kind = RESTART;
  if (op.kind >= CUT)
    op.offset = g_rand_int_range (rand, 0, MAX_CUTS);
  else if (op.kind == RESIZE) {
    op.length = g_rand_int_range (rand, sim.least_bytes / SIM_SECTOR,
                                  sim.most_bytes / SIM_SECTOR + 1)
      * SIM_SECTOR;
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

void
sim_random_cut (GRand *rand)
{
  static const Kind kinds[] = { CUT, DURABLE, MIXED, ONE };
  Op op = { .kind = kinds[g_rand_int_range (rand, 0, G_N_ELEMENTS (kinds))],
            .disk = g_rand_int_range (rand, 0, NR_DISKS),
            .offset = g_rand_int_range (rand, 0, 2) };

  do_cut (&op);
  if (g_rand_boolean (rand))
    do_end (g_rand_int_range (rand, 0, MAX_CUTS));
}

/* --- what must hold --- */

typedef struct {
  unsigned disk;
  bool power;
} BaseCheck;

static void
check_sector (void *opaque, uint64_t sector, const uint64_t *words)
{
  const BaseCheck *check = opaque;
  const struct oracle_disk *o = &oracle->disk[check->disk];
  uint32_t oldest = check->power ? o->stable[sector] : o->acked[sector];

  for (unsigned w = 0; w < SIM_SECTOR / 8; w++) {
    uint32_t version = words[w] >> 32;

    if (words[w] == 0) {
      if (o->zeroed[sector] >= oldest)
        continue;
      g_error ("base: disk %u sector %" G_GUINT64_FORMAT " is zero, but "
               "version %u was promised", check->disk, sector, oldest);
    }
    if ((uint32_t) words[w] != sector || version < oldest ||
        version > o->submitted[sector])
      g_error ("base: disk %u sector %" G_GUINT64_FORMAT " has %"
               G_GINT64_MODIFIER "x, promised was version %u", check->disk,
               sector, words[w], oldest);
  }
}

static void
read_now (unsigned d, SectorFn fn, void *opaque)
{
  Source from = { .disk = disk[d] };

  g_assert_cmpint (read_sectors (&from, 0, disk_size (disk[d]), fn, opaque,
                                 now[d]), ==, 0);
}

void
sim_check_base (Crash crash)
{
  for (unsigned d = 0; d < NR_DISKS; d++) {
    struct oracle_disk *o = &oracle->disk[d];
    BaseCheck check = { d, crash >= POWER };
    uint64_t size = disk_size (disk[d]);

    if (size != o->size && size != o->other_size)
      g_error ("base: disk %u has %" G_GUINT64_FORMAT " bytes, not %"
               G_GUINT64_FORMAT " or %" G_GUINT64_FORMAT, d, size, o->size,
               o->other_size);
    /* A resize that failed may still be taken back. */
    o->other_size = sim.faults ? o->size + o->other_size - size : size;
    o->size = size;
    read_now (d, check_sector, &check);
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
      if (at + n > p->size || !is_same (now[d] + at / SIM_SECTOR, p, at, n))
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

/* Block by block: right, or an error. */
static void
check_blocks (Snapshot *snap, const struct oracle_part *p, const char *name,
              unsigned d)
{
  const Source from = { .snap = snap };
  bool any = false;

  for (uint64_t at = 0; at < p->size; at += 4096) {
    uint64_t n = MIN (4096, p->size - at), got[4096 / SIM_SECTOR];

    if (read_sectors (&from, at, n, NULL, NULL, got) < 0)
      any = true;
    else if (!is_same (got, p, at, n))
      g_error ("snapshot: %s of disk %u is not what it was", name, d);
  }
  /* Blocks whose old data could not be read. */
  if (any && (oracle->hit & SIM_HIT_IMAGE) == 0)
    g_error ("snapshot: %s of disk %u says live and cannot be read", name, d);
}

static void
check_snapshot (unsigned nr, unsigned d, Crash crash, bool must_live)
{
  struct oracle_part *p = &oracle->cut[nr].part[d];
  uint64_t got[NR_SECTORS];
  g_autofree char *reason = NULL;
  g_autoptr (Snapshot) snap = NULL;
  Source from = { 0 };
  char name[16];
  int err;

  cut_name (nr, name);
  snap = disk_find_snapshot (disk[d], name);
  if (snap == NULL)
    g_error ("snapshot: %s of disk %u is missing", name, d);
  g_assert_cmpuint (snapshot_size (snap), ==, p->size);
  from.snap = snap;
  err = read_sectors (&from, 0, p->size, NULL, NULL, got);
  if (err == 0 || snapshot_state (snap) == SNAPSHOT_LIVE) {
    g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_LIVE);
    /* Where the news could not be written, nothing was overwritten either. */
    if (p->gone && !(oracle->hit & SIM_HIT_STATE))
      g_error ("snapshot: %s of disk %u was gone and is live", name, d);
    if (err < 0)
      check_blocks (snap, p, name, d);
    else if (!is_same (got, p, 0, p->size))
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

/* A durable snapshot is never lost.  A volatile one has to be there after kill -9
 * with the maps (precise).  With faults, the scratch file's own break it. */
static bool
must_live (const struct oracle_part *p, Crash crash, bool precise)
{
  if (oracle->hit & SIM_HIT_SCRATCH)
    return sim.guest_fails && crash == KILLED && precise;
  return p->durable || (precise && crash == KILLED);
}

void
sim_check_all (Crash crash, bool precise)
{
  for (unsigned d = 0; d < NR_DISKS; d++)
    read_now (d, NULL, NULL);
  for (unsigned nr = 0; nr < atomic_load (&oracle->nr_cuts); nr++)
    for (unsigned d = 0; d < NR_DISKS; d++) {
      const struct oracle_cut *cut = &oracle->cut[nr];

      if (!cut->part[d].in || (oracle->unsynced && crash >= POWER))
        continue;
      if (!cut->forgotten)
        check_chain (nr, d, crash, precise && !sim.faults);
      if (cut->snapshot && !cut->ended)
        check_snapshot (nr, d, crash,
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
end_snapshots (Disk *d, const char *name)
{
  g_autoptr (GPtrArray) all = disk_snapshots (d);

  for (unsigned i = 0; i < all->len; i++) {
    g_autoptr (GError) error = NULL;

    if (name != NULL && strcmp (snapshot_name (all->pdata[i]), name) != 0)
      continue;
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
    end_snapshots (disk[d], NULL);
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
  unsigned nr;
  char name[16];

  for (unsigned i = 0; i < 8; i++) {
    Op op = sim_random_op (rand);

    if (op.kind < FLUSH)
      sim_op (&op);
  }
  nr = atomic_load (&oracle->nr_cuts);
  if (nr == MAX_CUTS)
    atomic_store (&oracle->nr_cuts, nr = MAX_CUTS - 1);
  /* A snapshot of that name may be there, of a cut that was never told. */
  cut_name (nr, name);
  for (unsigned d = 0; d < NR_DISKS; d++)
    end_snapshots (disk[d], name);
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
