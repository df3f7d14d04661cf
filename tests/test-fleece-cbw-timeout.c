/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A scratch file that hangs does not hold up the guest for longer than the
 * snapshot's timeout, and what it does when it comes back harms nobody. */
#include <config.h>

#include <errno.h>
#include <string.h>

#include "fleece/fleece-internal.h"
#include "tests/fleece-fixture.h"
#include "tests/storage-hook.h"

#define SIZE (8 * 1024 * 1024)
#define BLOCK 4096
#define AT (1024 * 1024)
#define FAR (4 * 1024 * 1024)   /* another stripe */

static Fixture *fx;

static void
setup (void)
{
  fx = fixture_new_gated (1, SIZE);
  fixture_start_full (fx, 'a');
}

static Snapshot *
cut (FleeceCutDisk cd)
{
  g_autoptr (GError) error = NULL;

  cd.disk = fx->disk[0];
  fleece_cut (fx->f, &cd, 1, NULL, NULL, &error);
  g_assert_no_error (error);
  /* What the tests wait for is shorter than what users can choose. */
  if (cd.cbw_timeout == 1)
    atomic_store (&cd.disk->cbw_timeout_ms, 50);
  return cd.out_snapshot;
}

static int
try_write (uint64_t offset, uint64_t length, int value)
{
  g_autofree char *buf = g_malloc (length);

  memset (buf, value, length);
  return disk_pwrite (fx->disk[0], buf, length, offset, false);
}

static void
check_broken (Snapshot *snap)
{
  g_autofree char *reason = snapshot_reason (snap);
  char buf[BLOCK];

  g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_BROKEN);
  g_assert_nonnull (strstr (reason, "in time"));
  g_assert_cmpint (snapshot_pread (snap, buf, sizeof buf, 0), ==, -EIO);
}

static void
wait_not_late (const Layer *layer)
{
  while (atomic_load (&layer->late_copies) > 0)
    g_usleep (1000);
}

/* The default: the write that met it goes on, and so do all others. */
static void
break_snapshot (HookCall call, const char *suffix, bool durable)
{
  Snapshot *snap, *later;
  Layer *layer;
  int err;

  setup ();
  snap = cut ((FleeceCutDisk) { .snapshot = "s", .cbw_timeout = 1,
                                .durable = durable });
  layer = layer_ref (snap->layer);
  hook_gate_arm (fx->gate, call, suffix, AT, BLOCK);
  g_assert_cmpint (try_write (AT, BLOCK, 'b'), ==, 0);
  hook_gate_wait_held (fx->gate);
  check_broken (snap);
  g_assert_cmpuint (atomic_load (&layer->late_copies), ==, 1);
  fixture_write (fx->disk[0], AT, BLOCK, 'c');          /* the same stripe */
  fixture_write (fx->disk[0], FAR, BLOCK, 'c');
  fixture_check_disk (fx->disk[0], AT, BLOCK, 'c');

  /* The scratch file goes, and one of another snapshot comes, while the call is
   * still on its way. */
  fixture_end (snap);
  later = cut ((FleeceCutDisk) { .snapshot = "s" });
  fixture_write (fx->disk[0], 0, SIZE, 'd');
  fixture_check_snapshot (later, AT, BLOCK, 'c');
  err = durable ? -EIO : 0;
  hook_gate_release (fx->gate, err);
  wait_not_late (layer);
  layer_unref (layer);
  fixture_check_snapshot (later, 0, AT, 'a');
  fixture_check_snapshot (later, AT, BLOCK, 'c');
  fixture_check_snapshot (later, AT + BLOCK, FAR - AT - BLOCK, 'a');
  fixture_end (later);
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
  fixture_free (fx);
}

static void
test_data (void)
{
  break_snapshot (HOOK_PWRITE, ".layer", false);
}

static void
test_durable_data (void)
{
  break_snapshot (HOOK_SYNC, ".layer", true);
}

static void
test_durable_log (void)
{
  break_snapshot (HOOK_SYNC, ".log", true);
}

/* Holes are recorded without data: a large range, all of it hole. */
static void
test_durable_hole (void)
{
  Snapshot *snap;
  Layer *layer;

  setup ();
  g_assert_cmpint (disk_trim (fx->disk[0], AT, AT, false), ==, 0);
  snap = cut ((FleeceCutDisk) { .snapshot = "s", .cbw_timeout = 1,
                                .durable = true });
  layer = layer_ref (snap->layer);
  hook_gate_arm (fx->gate, HOOK_SYNC, ".log", 0, SIZE);
  g_assert_cmpint (try_write (AT, AT, 'b'), ==, 0);
  check_broken (snap);
  hook_gate_release (fx->gate, 0);
  wait_not_late (layer);
  layer_unref (layer);
  fixture_end (snap);
  fixture_free (fx);
}

/* The other policy: writes fail while it hangs, then go on; the snapshot is as
 * it was, also what the late copy was of. */
static void
test_break_guest_write (void)
{
  Snapshot *snap;
  Layer *layer;
  int err;

  setup ();
  snap = cut ((FleeceCutDisk) { .snapshot = "s", .cbw_timeout = 1,
                                .on_error = FLEECE_BREAK_GUEST_WRITE });
  layer = layer_ref (snap->layer);
  hook_gate_arm (fx->gate, HOOK_PWRITE, ".layer", AT, BLOCK);
  g_assert_cmpint (try_write (AT, BLOCK, 'b'), ==, -EIO);
  /* At once, and without another thread that hangs. */
  for (unsigned i = 0; i < 100; i++)
    g_assert_cmpint (try_write (AT + i * 65536 % AT, BLOCK, 'b'), ==, -EIO);
  g_assert_cmpuint (atomic_load (&layer->late_copies), ==, 1);
  g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_LIVE);
  fixture_check_snapshot (snap, 0, SIZE, 'a');
  fixture_check_disk (fx->disk[0], AT, BLOCK, 'a');
  hook_gate_release (fx->gate, 0);
  wait_not_late (layer);
  while ((err = try_write (AT, 2 * BLOCK, 'b')) == -EIO)
    ;                           /* on a machine that is very slow */
  g_assert_cmpint (err, ==, 0);
  fixture_check_disk (fx->disk[0], AT, 2 * BLOCK, 'b');
  fixture_check_snapshot (snap, 0, SIZE, 'a');
  layer_unref (layer);
  fixture_end (snap);
  fixture_free (fx);
}

/* The least timeout of all counts, until its snapshot ends; it is known after a
 * restart. */
static void
test_least (void)
{
  Disk *disk;
  Snapshot *forever, *long_one, *short_one;

  setup ();
  disk = fx->disk[0];
  forever = cut ((FleeceCutDisk) { .snapshot = "forever" });
  g_assert_cmpint (atomic_load (&disk->cbw_timeout_ms), ==, 0);
  long_one = cut ((FleeceCutDisk) { .snapshot = "long",
                                    .cbw_timeout = UINT32_MAX });
  short_one = cut ((FleeceCutDisk) { .snapshot = "short",
                                     .cbw_timeout = 30 });
  g_assert_cmpint (atomic_load (&disk->cbw_timeout_ms), ==, 30000);
  fixture_write (disk, 0, SIZE, 'b');
  fixture_check_snapshot (forever, 0, SIZE, 'a');
  snapshot_unref (forever);
  snapshot_unref (long_one);
  snapshot_unref (short_one);

  fixture_stop (fx);
  fixture_start (fx);
  disk = fx->disk[0];
  g_assert_cmpint (atomic_load (&disk->cbw_timeout_ms), ==, 30000);
  short_one = disk_find_snapshot (disk, "short");
  fixture_check_snapshot (short_one, 0, SIZE, 'a');
  fixture_end (short_one);
  g_assert_cmpint (atomic_load (&disk->cbw_timeout_ms), ==,
                   UINT32_MAX * INT64_C (1000));
  fixture_end (disk_find_snapshot (disk, "long"));
  g_assert_cmpint (atomic_load (&disk->cbw_timeout_ms), ==, 0);
  fixture_end (disk_find_snapshot (disk, "forever"));
  fixture_free (fx);
}

/* Everything ends while the call is on its way; it then comes back to nothing.
 * Gate and storage are its own from then on. */
static HookGate *kept_gate;
static Storage *kept_storage;

static void
test_ends_before (void)
{
  Snapshot *snap;

  setup ();
  snap = cut ((FleeceCutDisk) { .snapshot = "s", .cbw_timeout = 1 });
  hook_gate_arm (fx->gate, HOOK_PWRITE, ".layer", AT, BLOCK);
  g_assert_cmpint (try_write (AT, BLOCK, 'b'), ==, 0);
  fixture_end (snap);
  kept_gate = g_steal_pointer (&fx->gate);
  kept_storage = g_steal_pointer (&fx->hooked);
  fixture_free (fx);
  hook_gate_release (kept_gate, 0);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/fleece/cbw-timeout/data", test_data);
  g_test_add_func ("/fleece/cbw-timeout/durable-data", test_durable_data);
  g_test_add_func ("/fleece/cbw-timeout/durable-log", test_durable_log);
  g_test_add_func ("/fleece/cbw-timeout/durable-hole", test_durable_hole);
  g_test_add_func ("/fleece/cbw-timeout/break-guest-write",
                   test_break_guest_write);
  g_test_add_func ("/fleece/cbw-timeout/least", test_least);
  g_test_add_func ("/fleece/cbw-timeout/ends-before", test_ends_before);
  return g_test_run ();
}
