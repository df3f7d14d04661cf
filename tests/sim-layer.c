/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* sim-layer.c - layers of new data in a history: they change nothing that the
 * oracle knows of, but for a restore, which is a write. */
#include <config.h>

#include <unistd.h>

#include "fleece/overlay.h"
#include "tests/sim-bitmap.h"
#include "tests/sim-layer.h"

#define MAX_LAYERS 3
#define STEP_BYTES (64 * 1024)

static unsigned
nr_layers (Disk *d)
{
  g_autoptr (GPtrArray) chain = disk_chain (d);

  return chain->len - 1;
}

static void
put_on (Disk *d)
{
  static unsigned number;
  g_autofree char *name = NULL;
  g_autoptr (GError) error = NULL;
  FleeceCutDisk part = { .disk = d };

  if (nr_layers (d) >= MAX_LAYERS)
    return;
  /* Another process may have made some before. */
  name = g_strdup_printf ("v%d-%u", (int) getpid (), number++);
  part.overlay = name;
  oracle->disk[d == disk[1]].layered = true;
  fleece_cut (fleece, &part, 1, NULL, NULL, &error);
  g_assert_no_error (error);
}

/* Guests write between the steps. */
static void
run_move (OverlayMove *move, GRand *writes)
{
  g_autoptr (GError) error = NULL;
  int r;

  do {
    uint64_t copied;
    bool write;

    r = overlay_move_step (move, STEP_BYTES, &copied, &write);
    for (unsigned i = 0; writes != NULL && i < 2; i++) {
      Op op = sim_random_write (writes, 1);

      sim_op_of_thread (&op, 1);
    }
  } while (r == 1);
  g_assert_cmpint (r, ==, 0);
  overlay_move_finish (move, &error);
  g_assert_no_error (error);
  overlay_move_free (move);
}

/* down: all of it, or the lowest layer alone; else up into the top. */
static void
move (Disk *d, bool down, bool all, GRand *writes)
{
  g_autoptr (GPtrArray) chain = disk_chain (d);
  g_autoptr (GError) error = NULL;
  unsigned nr = chain->len - 1;
  OverlayMove *m;

  if (nr == 0)
    return;
  if (down && (all || nr == 1))
    m = overlay_commit (d, NULL, NULL, &error);
  else if (down) {
    const OverlayInfo *lowest = chain->pdata[nr - 1];

    m = overlay_commit (d, lowest->name, NULL, &error);
  }
  else
    m = overlay_stream (d, NULL, false, NULL, &error);
  g_assert_no_error (error);
  run_move (m, writes);
}

static void
settle (void)
{
  g_autoptr (GError) error = NULL;

  fleece_settle_overlays (fleece, &error);
  g_assert_no_error (error);
}

void
sim_layers_drop_pending (Disk *d)
{
  g_autoptr (Overlay) ov = overlay_find (d, "restore");
  g_autoptr (GError) error = NULL;

  if (ov != NULL)
    overlay_discard (ov, NULL, NULL, &error);
  g_assert_no_error (error);
}

static bool
has_layer (Disk *d, const char *name)
{
  g_autoptr (GPtrArray) chain = disk_chain (d);

  for (guint i = 0; i < chain->len; i++)
    if (g_strcmp0 (((const OverlayInfo *) chain->pdata[i])->name, name) == 0)
      return true;
  return false;
}

static void
restore (unsigned nr, GRand *rand)
{
  struct oracle_disk *o = &oracle->disk[nr];
  uint64_t first = g_rand_int_range (rand, 0, 1024);
  uint64_t sectors = g_rand_int_range (rand, 1, 60);
  g_autofree uint64_t *buf = g_malloc (sectors * SIM_SECTOR);
  OverlayOptions options = { .name = "restore" };
  g_autoptr (GError) error = NULL;
  Overlay *ov;
  uint32_t version;

  o->layered = true;
  sim_layers_drop_pending (disk[nr]);
  /* One that was applied, and not moved down yet when it crashed. */
  if (has_layer (disk[nr], options.name))
    move (disk[nr], true, true, NULL);
  if (nr_layers (disk[nr]) >= MAX_LAYERS)
    return;
  ov = overlay_new (disk[nr], &options, NULL, NULL, &error);
  g_assert_no_error (error);
  version = sim_submit (0, nr, first * SIM_SECTOR, sectors * SIM_SECTOR,
                        false);
  for (uint64_t i = 0; i < sectors; i++) {
    for (unsigned w = 0; w < SIM_SECTOR / 8; w++)
      buf[i * (SIM_SECTOR / 8) + w] = (uint64_t) version << 32 | (first + i);
    o->submitted[first + i] = version;
  }
  g_assert_cmpint (overlay_pwrite (ov, buf, sectors * SIM_SECTOR,
                                   first * SIM_SECTOR, false), ==, 0);
  fleece_apply_overlays (fleece, &ov, 1, NULL, NULL, &error);
  g_assert_no_error (error);
  sim_ack (0, true);
  for (uint64_t i = 0; i < sectors; i++) {
    atomic_store (&o->acked[first + i], version);
    atomic_store (&o->stable[first + i], version);
  }
  overlay_unref (ov);
  /* Its name is wanted again. */
  move (disk[nr], true, true, NULL);
}

void
sim_layer_op (const Op *op, bool alone)
{
  GRand *rand = g_rand_new_with_seed ((guint32) op->offset);
  Disk *d = disk[op->disk];

  settle ();
  switch (op->kind) {
  case LAYER_ON:
    put_on (d);
    break;
  case LAYER_COMMIT:
    move (d, true, op->length % 2 == 0, alone ? rand : NULL);
    break;
  case LAYER_STREAM:
    move (d, false, false, alone ? rand : NULL);
    break;
  default:
    if (alone)
      restore (op->disk, rand);
  }
  g_rand_free (rand);
}

void
sim_layers_end (void)
{
  settle ();
  for (unsigned i = 0; i < NR_DISKS; i++) {
    sim_layers_drop_pending (disk[i]);
    move (disk[i], true, true, NULL);
  }
}
