/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <glib/gstdio.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/checkpoint.h"
#include "bitmap/epoch.h"
#include "tests/fleece-fixture.h"
#include "tests/sim-bitmap.h"
#include "tests/sim-layer.h"

Oracle *oracle;
Fleece *fleece;
Disk *disk[NR_DISKS];
struct sim_options sim;

Catalog *sim_catalog;
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
  catalog_free (sim_catalog);
  fleece = NULL;
  sim_catalog = NULL;
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
    sim_catalog = catalog_new (sim.state, error);
  ok = ok && sim_catalog != NULL && catalog_open (sim_catalog, error) &&
    fleece_start (fleece, sim_catalog, error);
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

void
sim_cut_name (unsigned nr, char out[16])
{
  g_snprintf (out, 16, "s%u", nr);
}

void
sim_checkpoint_name (unsigned nr, char out[16])
{
  g_snprintf (out, 16, "c%u", nr);
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
  /* Of a cut that failed as the catalog could not tell whether it was
   * through. */
  sim_cut_name (atomic_load (&oracle->nr_cuts), name);
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
do_write (const Op *op, unsigned thread)
{
  struct oracle_disk *o = &oracle->disk[op->disk];
  uint64_t first = op->offset / SIM_SECTOR, nr = op->length / SIM_SECTOR;
  bool zero = op->kind == ZERO || op->kind == TRIM;
  g_autofree uint64_t *buf = g_malloc (op->length);
  uint32_t version;
  int err;

  /* Only the first thread changes sizes, and others stay below them. */
  if (thread == 0 && op->offset + op->length > o->size)
    return;
  version = sim_submit (thread, op->disk, op->offset, op->length, false);
  for (uint64_t i = 0; i < nr; i++) {
    for (unsigned w = 0; w < SIM_SECTOR / 8; w++)
      buf[i * (SIM_SECTOR / 8) + w] = (uint64_t) version << 32 | (first + i);
    o->submitted[first + i] = version;
    if (zero)
      o->zeroed[first + i] = version;
  }
  err = call_write (op, buf);
  sim_ack (thread, err == 0);
  if (err < 0) {
    check_write_failure (err);
    return;
  }
  for (uint64_t i = 0; op->kind != TRIM && i < nr; i++) {
    atomic_store (&o->acked[first + i], version);
    if (op->kind == FUA)
      atomic_store (&o->stable[first + i], version);
  }
}

/* What is acknowledged while it runs need not be stable when it ends. */
static void
do_flush (struct oracle_disk *o, Disk *d)
{
  g_autofree uint32_t *acked = g_new (uint32_t, NR_SECTORS);
  int err;

  for (unsigned s = 0; s < NR_SECTORS; s++)
    acked[s] = atomic_load (&o->acked[s]);
  err = disk_flush (d);
  if (err == 0) {
    /* What a guest was told of, another flush does not make good. */
    for (unsigned s = 0; s < NR_SECTORS; s++)
      if (acked[s] != o->told[s] && acked[s] > atomic_load (&o->stable[s]))
        atomic_store (&o->stable[s], acked[s]);
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
  uint64_t first = MIN (o->size, op->length) / SIM_SECTOR;
  uint64_t end = MAX (o->size, op->length) / SIM_SECTOR;
  uint32_t version = sim_submit (0, op->disk, first * SIM_SECTOR,
                                 (end - first) * SIM_SECTOR, true);
  g_autoptr (GError) error = NULL;
  bool ok;

  sim_layers_drop_pending (disk[op->disk]);
  for (uint64_t s = first; s < end; s++)
    o->submitted[s] = o->zeroed[s] = version;
  o->edge[o->size / GRANULE] = o->edge[op->length / GRANULE] = version;
  o->other_size = op->length;
  ok = fleece_resize (fleece, disk[op->disk], op->length, &error);
  sim_ack (0, ok);
  if (!ok) {
    check_failure ("a resize", ANYTHING, error);
    o->other_size = o->size + op->length - disk_size (disk[op->disk]);
    o->size = disk_size (disk[op->disk]);
    g_assert_true (o->size == op->length || o->other_size == op->length);
    return;
  }
  g_assert_cmpuint (disk_size (disk[op->disk]), ==, op->length);
  o->size = op->length;
  for (uint64_t s = first; s < end; s++) {
    atomic_store (&o->acked[s], version);
    atomic_store (&o->stable[s], version);
  }
}

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

uint64_t
sim_sum (const void *sector)
{
  const uint64_t *words = sector, factor = UINT64_C (0x9e3779b97f4a7c15);
  uint64_t sum[4] = { 1, 2, 3, 4 };     /* in parallel */

  for (unsigned w = 0; w < SIM_SECTOR / 8; w += 4)
    for (unsigned i = 0; i < 4; i++)
      sum[i] = (sum[i] ^ words[w + i]) * factor;
  return ((sum[0] * factor ^ sum[1]) * factor ^ sum[2]) * factor ^ sum[3];
}

/* What a backup has of a disk. */
static void
take_replica (struct oracle_part *p, unsigned d, const FleeceCutDisk *part)
{
  static uint8_t bytes[64 * 1024];      /* one thread makes cuts */
  uint64_t size, n;

  p->size = part->out_snapshot != NULL ? snapshot_size (part->out_snapshot)
    : disk_size (disk[d]);
  for (uint64_t at = 0; at < p->size; at += n) {
    const uint8_t *from = bytes;

    n = MIN (sizeof bytes, p->size - at);
    if (sim.faults)             /* only when nobody writes, as below */
      from = sim_disk_peek (image[d], &size) + at;
    else if (part->out_snapshot != NULL)
      g_assert_cmpint (snapshot_pread (part->out_snapshot, bytes, n, at), ==,
                       0);
    else
      g_assert_cmpint (disk_pread (disk[d], bytes, n, at), ==, 0);
    for (uint64_t s = 0; s < n / SIM_SECTOR; s++)
      p->replica[at / SIM_SECTOR + s] = sim_sum (from + s * SIM_SECTOR);
  }
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

/* --- cuts */

/* What goes with one into its transaction. */
typedef struct {
  const char *checkpoint;       /* NULL: none */
  SimChange *change;            /* of bitmaps; NULL: none */
  FleeceCutDisk *part;
  unsigned nr;
} Rows;

static bool
write_rows (void *opaque, GError **error)
{
  Rows *rows = opaque;
  g_autoptr (Checkpoint) ckpt = NULL;

  if (rows->change != NULL &&
      !sim_change_write (rows->change, rows->part, rows->nr, error))
    return false;
  if (rows->checkpoint == NULL)
    return true;
  ckpt = checkpoint_new (rows->checkpoint, NULL, 0);
  for (unsigned i = 0; i < rows->nr; i++)
    checkpoint_add_disk (ckpt, disk_name (rows->part[i].disk),
                         rows->checkpoint, rows->part[i].boundary);
  return checkpoint_insert (sim_catalog, ckpt, error);
}

/* A backup: what a client would have, and keeps.  change: of the same cut;
 * NULL: none. */
static void
do_cut (const Op *op, SimChange *change)
{
  g_autoptr (GError) error = NULL;
  unsigned nr = atomic_load (&oracle->nr_cuts), i = 0;
  unsigned promised = sim_bitmaps_promised ();
  struct oracle_cut *cut = &oracle->cut[nr];
  FleeceCutDisk part[NR_DISKS];
  unsigned before = sim_oldest_in_flight ();
  char name[16], checkpoint[16];
  Rows rows = { .change = change, .part = part };

  sim_cut_name (nr, name);
  sim_checkpoint_name (nr, checkpoint);
  /* Faults are of histories that merge no epochs. */
  rows.checkpoint = sim.faults ? NULL : checkpoint;
  cut->snapshot = op->kind != CHECKPOINT;
  rows.nr = fill_parts (cut, op, name, part);
  for (unsigned d = 0; d < NR_DISKS; d++)
    sim_bitmaps_freeze (&cut->part[d], d);
  cut->with_change = change != NULL;
  cut->under_way = true;
  if (!fleece_cut (fleece, part, rows.nr, write_rows, &rows, &error)) {
    cut->under_way = false;
    check_failure ("a cut", ANYTHING, error);
    if (!oracle->unsure)
      check_no_cut (name);
    return;
  }
  /* From here on the bitmaps are promised, the snapshots not yet; another
   * thread may crash at any time. */
  cut->with_change = false;
  if (change != NULL)
    sim_change_end (change);
  cut->version = before - 1;
  cut->ended = cut->forgotten = false;
  for (unsigned d = 0; d < NR_DISKS; d++) {
    if (!cut->part[d].in)
      continue;
    sim_bitmaps_frozen (&cut->part[d], d, promised);
    cut->part[d].boundary = part[i].boundary;
    take_replica (&cut->part[d], d, &part[i]);
    snapshot_unref (part[i++].out_snapshot);
  }
  cut->under_way = false;
  atomic_store (&oracle->nr_cuts, nr + 1);
}

/* Its own cut, or none if it needs none. */
static void
do_change (SimChange *change)
{
  g_autoptr (GError) error = NULL;
  FleeceCutDisk part[NR_DISKS];
  Rows rows = { .change = change, .part = part };
  bool ok;

  for (unsigned d = 0; d < NR_DISKS; d++)
    if (sim_change_needs_cut (change, d))
      part[rows.nr++] = (FleeceCutDisk) { .disk = disk[d] };
  if (rows.nr > 0)
    ok = fleece_cut (fleece, part, rows.nr, write_rows, &rows, &error);
  else
    ok = catalog_begin (sim_catalog, &error) && write_rows (&rows, &error) &&
      catalog_commit (sim_catalog, &error);
  if (!ok)
    g_error ("a change of bitmaps failed: %s", error->message);
  sim_change_end (change);
}

/* all: also of two disks at once, whose sizes stay as they are. */
static void
do_transaction (const Op *op, bool all)
{
  GRand *rand = g_rand_new_with_seed ((guint32) op->offset);
  unsigned nr = g_rand_int_range (rand, 2, MAX_EDITS + 1);
  Op cut = { .kind = g_rand_boolean (rand) ? CUT : DURABLE };
  BitmapEdit edit[MAX_EDITS];
  SimChange *change;

  for (unsigned i = 0; i < nr; i++) {
    edit[i] = (BitmapEdit) {
      .kind = g_rand_int_range (rand, ADD, REMOVE + 1),
      .disk = g_rand_int_range (rand, 0, NR_DISKS),
      .bitmap = g_rand_int_range (rand, 0, NR_BITMAPS),
      .from_disk = g_rand_int_range (rand, 0, NR_DISKS),
      .from = g_rand_int_range (rand, 0, NR_BITMAPS),
      .disabled = g_rand_int_range (rand, 0, 4) == 0,
    };
    if (!all)
      edit[i].from_disk = edit[i].disk;
  }
  g_rand_free (rand);
  change = sim_change_begin (edit, nr);
  if (op->length % 2 == 1 && atomic_load (&oracle->nr_cuts) < MAX_CUTS)
    do_cut (&cut, change);
  else if (change != NULL)
    do_change (change);
}

static void
do_edit (const Op *op)
{
  BitmapEdit edit = {
    .kind = op->kind, .disk = op->disk, .bitmap = op->offset % NR_BITMAPS,
    .from_disk = op->length / NR_BITMAPS % NR_DISKS,
    .from = op->length % NR_BITMAPS, .disabled = op->length % 2 == 1,
  };
  SimChange *change = sim_change_begin (&edit, 1);

  if (change != NULL)
    do_change (change);
}

void
sim_drop_untold (unsigned nr)
{
  char name[16];

  sim_cut_name (nr, name);
  for (unsigned d = 0; d < NR_DISKS; d++) {
    g_autoptr (Snapshot) snap = disk_find_snapshot (disk[d], name);
    g_autoptr (GError) error = NULL;

    if (snap != NULL)
      snapshot_end (snap, &error);
    g_assert_no_error (error);
  }
  sim_checkpoint_name (nr, name);
  checkpoint_delete (sim_catalog, name, CHECKPOINT_DELETE_ONE, NULL, NULL);
  oracle->cut[nr].under_way = false;
}

static void
do_end (unsigned nr)
{
  char name[16];

  if (nr >= atomic_load (&oracle->nr_cuts) || !oracle->cut[nr].snapshot ||
      oracle->cut[nr].ended)
    return;
  sim_cut_name (nr, name);
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

static void
forget_checkpoint (unsigned nr)
{
  g_autoptr (GError) error = NULL;
  char name[16];

  if (sim.faults || oracle->cut[nr].forgotten)
    return;
  sim_checkpoint_name (nr, name);
  oracle->cut[nr].forgotten = true;
  checkpoint_delete (sim_catalog, name, CHECKPOINT_DELETE_ONE, NULL, &error);
  g_assert_no_error (error);
}

/* As the plugin does; with faults, there are no checkpoints. */
static uint64_t
oldest_boundary (Disk *d, uint64_t boundary)
{
  g_autoptr (GError) error = NULL;
  uint64_t oldest;

  if (sim.faults)
    return boundary;
  checkpoint_oldest_boundary (sim_catalog, disk_name (d), &oldest, &error);
  g_assert_no_error (error);
  return oldest != 0 ? oldest
    : epoch_log_current (disk_epoch_log (d))->id;
}

static void
do_forget (unsigned nr)
{
  if (nr >= atomic_load (&oracle->nr_cuts))
    return;
  for (unsigned i = 0; i < nr; i++) {
    forget_checkpoint (i);
    oracle->cut[i].forgotten = true;
  }
  for (unsigned d = 0; d < NR_DISKS; d++) {
    g_autoptr (GError) error = NULL;
    const struct oracle_part *p = &oracle->cut[nr].part[d];

    if (p->in &&
        !epoch_log_forget_before (disk_epoch_log (disk[d]),
                                  oldest_boundary (disk[d], p->boundary),
                                  &error))
      check_failure ("forgetting", SIM_HIT_STATE, error);
  }
}

void
sim_op (const Op *op)
{
  sim_op_of_thread (op, 0);
}

void
sim_op_of_thread (const Op *op, unsigned thread)
{
  g_autoptr (GError) error = NULL;

  switch (op->kind) {
  case WRITE:
  case FUA:
  case ZERO:
  case TRIM:
    do_write (op, thread);
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
    if (atomic_load (&oracle->nr_cuts) < MAX_CUTS)
      do_cut (op, NULL);
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
  case ADD:
  case CLEAR:
  case ENABLE:
  case DISABLE:
  case MERGE:
  case REMOVE:
    do_edit (op);
    break;
  case TRANSACTION:
    do_transaction (op, true);
    break;
  case COMPACT:
    sim_compact (true);
    break;
  case LAYER_ON:
  case LAYER_COMMIT:
  case LAYER_STREAM:
  case LAYER_RESTORE:
    sim_layer_op (op, true);
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
    ADD, CLEAR, ENABLE, DISABLE, MERGE, REMOVE, TRANSACTION, TRANSACTION,
    TRANSACTION, COMPACT, COMPACT, LAYER_ON, LAYER_ON, LAYER_ON, LAYER_COMMIT,
    LAYER_COMMIT, LAYER_STREAM, LAYER_RESTORE,
  };
  Op op = { .kind = kinds[g_rand_int_range (rand, 0, G_N_ELEMENTS (kinds))],
            .disk = g_rand_int_range (rand, 0, NR_DISKS) };
  uint64_t nr_sectors = oracle->disk[op.disk].size / SIM_SECTOR;
  uint64_t sector = g_rand_int_range (rand, 0, nr_sectors);
  uint64_t nr = g_rand_int_range (rand, 1, 25);

  if (g_rand_int_range (rand, 0, 40) == 0)
    op.kind = RESTART;
  if (op.kind >= ADD) {
    op.offset = g_rand_int (rand);
    op.length = g_rand_int_range (rand, 0, NR_DISKS * NR_BITMAPS);
  }
  else if (op.kind >= CUT)
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

Op
sim_random_write (GRand *rand, unsigned thread)
{
  static const Kind kinds[] = { WRITE, WRITE, WRITE, WRITE, WRITE, FUA, ZERO,
                                TRIM, FLUSH };
  const unsigned stripe = 32;   /* sectors */
  uint64_t nr = LEAST_BYTES / SIM_SECTOR / stripe / NR_WRITERS;
  Op op = { .kind = kinds[g_rand_int_range (rand, 0, G_N_ELEMENTS (kinds))],
            .disk = g_rand_int_range (rand, 0, NR_DISKS) };

  if (thread == 0 && g_rand_int_range (rand, 0, 8) == 0)
    do
      op = sim_random_op (rand);
    while (op.kind > RESIZE);
  if (op.kind >= FLUSH || op.offset >= LEAST_BYTES)
    return op;
  if (g_rand_boolean (rand))    /* some places are hot */
    nr = 4;
  op.offset = ((uint64_t) g_rand_int_range (rand, 0, nr) * NR_WRITERS +
               thread) * stripe + g_rand_int_range (rand, 0, 8);
  op.offset *= SIM_SECTOR;
  op.length = g_rand_int_range (rand, 1, stripe - 8) * SIM_SECTOR;
  return op;
}

void
sim_random_cut (GRand *rand)
{
  static const Kind kinds[] = { CUT, DURABLE, MIXED, ONE, TRANSACTION,
                                TRANSACTION };
  Op op = { .kind = kinds[g_rand_int_range (rand, 0, G_N_ELEMENTS (kinds))],
            .disk = g_rand_int_range (rand, 0, NR_DISKS),
            .offset = g_rand_int (rand),
            .length = g_rand_int_range (rand, 0, 2) };

  if (op.kind == TRANSACTION)
    do_transaction (&op, false);
  else if (atomic_load (&oracle->nr_cuts) < MAX_CUTS)
    do_cut (&op, NULL);
  if (g_rand_boolean (rand))
    do_end (g_rand_int_range (rand, 0, MAX_CUTS));
  if (g_rand_int_range (rand, 0, 4) == 0)
    do_forget (g_rand_int_range (rand, 0, MAX_CUTS));
  if (g_rand_int_range (rand, 0, 3) == 0)
    sim_compact (false);
  op.kind = LAYER_ON + g_rand_int_range (rand, 0, 3);
  sim_layer_op (&op, false);
}
