/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A write that the storage holds back delays the cut, and nothing else but
 * writes to the same blocks. */
#include <config.h>

#include <errno.h>
#include <stdatomic.h>

#include "tests/fleece-fixture.h"
#include "tests/storage-hook.h"

#define SIZE (8 * 1024 * 1024)
#define BLOCK 4096
#define HELD (1024 * 1024)      /* offset of the write that is held */
#define OTHER (4 * 1024 * 1024) /* far from it: another granule and stripe */

static Fixture *fx;

static void
setup (void)
{
  fx = fixture_new_gated (1, SIZE);
  fixture_start_full (fx, 'a');
}

static void
test_delays_cut_only (void)
{
  Disk *disk;
  Snapshot *s1, *s2;
  FixtureCall *held, *cut, *overlap, *cover;
  uint64_t b0, b1, b2;
  g_autoptr (GError) error = NULL;

  setup ();
  disk = fx->disk[0];
  fixture_cut (fx, 0, NULL, &b0);
  s1 = fixture_cut (fx, 0, "s1", &b1);

  hook_gate_arm (fx->gate, HOOK_PWRITE, "d0.img", HELD, BLOCK);
  held = fixture_call_write (disk, HELD, BLOCK, 'b');
  hook_gate_wait_held (fx->gate);
  cut = fixture_call_cut (fx, 0, "s2");
  g_assert_true (fixture_wait_waiters (disk, 1, cut));

  /* In the new epoch already, and each of these completes: a first touch that
   * must be preserved for both snapshots, a second one, the block before and
   * the block behind the held one, zeroes, a trim, reads, a flush. */
  fixture_write (disk, OTHER, BLOCK, 'c');
  fixture_write (disk, OTHER, BLOCK, 'd');
  fixture_write (disk, OTHER + 100, 50, 'e');
  fixture_write (disk, HELD - BLOCK, BLOCK, 'f');
  fixture_write (disk, HELD + BLOCK, BLOCK, 'f');
  g_assert_cmpint (disk_zero (disk, BLOCK, OTHER + 65536, DISK_MAY_PUNCH), ==,
                   0);
  g_assert_cmpint (disk_trim (disk, BLOCK, OTHER + 2 * 65536, false), ==, 0);
  g_assert_cmpint (disk_flush (disk), ==, 0);
  fixture_check_disk (disk, OTHER, 100, 'd');
  fixture_check_disk (disk, HELD, BLOCK, 'a');
  fixture_check_snapshot (s1, 0, SIZE, 'a');
  g_assert_false (fixture_call_done (cut));
  g_assert_false (fixture_call_done (held));

  /* One byte of the held block, and a range around it: both wait. */
  overlap = fixture_call_write (disk, HELD + BLOCK - 1, 1, 'g');
  g_assert_true (fixture_wait_waiters (disk, 2, overlap));
  cover = fixture_call_write (disk, HELD - 65536, 2 * 65536, 'h');
  g_assert_true (fixture_wait_waiters (disk, 3, cover));
  g_assert_false (fixture_call_done (overlap));

  hook_gate_release (fx->gate, 0);
  g_assert_cmpint (fixture_call_join (held), ==, 0);
  s2 = fixture_call_join_cut (cut, &b2, &error);
  g_assert_no_error (error);
  g_assert_nonnull (s2);
  g_assert_cmpint (fixture_call_join (overlap), ==, 0);
  g_assert_cmpint (fixture_call_join (cover), ==, 0);

  fixture_check_snapshot (s1, 0, SIZE, 'a');
  fixture_check_snapshot (s2, 0, HELD, 'a');
  fixture_check_snapshot (s2, HELD, BLOCK, 'b');
  fixture_check_snapshot (s2, HELD + BLOCK, SIZE - HELD - BLOCK, 'a');
  fixture_check_disk (disk, OTHER + 100, 50, 'e');

  /* What the held write alone has touched: in the old epoch. */
  g_assert_true (fixture_is_dirty (fx, 0, b0, b2, HELD));
  g_assert_true (fixture_is_dirty (fx, 0, b1, b2, HELD));
  g_assert_false (fixture_is_dirty (fx, 0, b0, b1, HELD));
  g_assert_false (fixture_is_dirty (fx, 0, b1, b2, OTHER));
  g_assert_true (fixture_is_dirty (fx, 0, b2, 0, OTHER));
  fixture_end (s1);
  fixture_end (s2);
  g_assert_cmpint (fixture_nr_scratch_files (fx), ==, 0);
  fixture_free (fx);
}

/* Nobody else writes there: dirty in the old epoch only. */
static void
test_dirty_in_old_epoch_only (void)
{
  Snapshot *snap;
  FixtureCall *held, *cut;
  uint64_t b0, b1;

  setup ();
  fixture_cut (fx, 0, NULL, &b0);
  hook_gate_arm (fx->gate, HOOK_PWRITE, "d0.img", HELD, BLOCK);
  held = fixture_call_write (fx->disk[0], HELD, BLOCK, 'b');
  hook_gate_wait_held (fx->gate);
  cut = fixture_call_cut (fx, 0, "s");
  g_assert_true (fixture_wait_waiters (fx->disk[0], 1, cut));
  /* As of now it is dirty all the time, whichever epoch that is in. */
  g_assert_true (fixture_is_dirty (fx, 0, b0, 0, HELD));
  fixture_write (fx->disk[0], OTHER, BLOCK, 'c');
  g_assert_true (fixture_is_dirty (fx, 0, b0, 0, OTHER));
  hook_gate_release (fx->gate, 0);
  g_assert_cmpint (fixture_call_join (held), ==, 0);
  snap = fixture_call_join_cut (cut, &b1, NULL);
  g_assert_true (fixture_is_dirty (fx, 0, b0, b1, HELD));
  g_assert_false (fixture_is_dirty (fx, 0, b1, 0, HELD));
  g_assert_true (fixture_is_dirty (fx, 0, b1, 0, OTHER));
  fixture_check_snapshot (snap, HELD, BLOCK, 'b');
  fixture_end (snap);
  fixture_free (fx);
}

/* The cut becomes durable, and its snapshot readable, only after the drain. */
static atomic_bool committed;

static bool
commit (void *opaque, GError **error)
{
  atomic_store (&committed, true);
  return true;
}

static int
run_cut (void *opaque)
{
  FleeceCutDisk *cd = opaque;

  return fleece_cut (fx->f, cd, 1, commit, NULL, NULL) ? 0 : -1;
}

static void
test_commit_after_drain (void)
{
  FixtureCall *held, *cut;
  FleeceCutDisk cd;
  Snapshot *early;
  uint64_t epoch;
  char byte;

  setup ();
  epoch = epoch_log_current (disk_epoch_log (fx->disk[0]))->id;
  hook_gate_arm (fx->gate, HOOK_PWRITE, "d0.img", HELD, BLOCK);
  held = fixture_call_write (fx->disk[0], HELD, BLOCK, 'b');
  hook_gate_wait_held (fx->gate);
  cd = (FleeceCutDisk) { .disk = fx->disk[0], .snapshot = "s" };
  cut = fixture_call (run_cut, &cd);
  g_assert_true (fixture_wait_waiters (fx->disk[0], 1, cut));
  g_assert_false (atomic_load (&committed));
  g_assert_cmpuint (epoch_log_current (disk_epoch_log (fx->disk[0]))->id, ==,
                    epoch);
  early = disk_find_snapshot (fx->disk[0], "s");
  g_assert_nonnull (early);
  g_assert_cmpint (snapshot_state (early), ==, SNAPSHOT_PREPARED);
  g_assert_cmpint (snapshot_pread (early, &byte, 1, HELD), ==, -EIO);
  hook_gate_release (fx->gate, 0);
  g_assert_cmpint (fixture_call_join (held), ==, 0);
  g_assert_cmpint (fixture_call_join (cut), ==, 0);
  g_assert_true (atomic_load (&committed));
  fixture_check_snapshot (early, HELD, BLOCK, 'b');
  fixture_end (early);
  snapshot_unref (cd.out_snapshot);
  fixture_free (fx);
}

/* A held write that fails in the end is dirty too: nobody knows what it
 * left. */
static void
test_failed_write_is_dirty (void)
{
  uint64_t b0;
  FixtureCall *held;

  setup ();
  fixture_cut (fx, 0, NULL, &b0);
  hook_gate_arm (fx->gate, HOOK_PWRITE, "d0.img", HELD, BLOCK);
  held = fixture_call_write (fx->disk[0], HELD, BLOCK, 'b');
  hook_gate_wait_held (fx->gate);
  hook_gate_release (fx->gate, -5);
  g_assert_cmpint (fixture_call_join (held), ==, -5);
  g_assert_true (fixture_is_dirty (fx, 0, b0, 0, HELD));
  fixture_free (fx);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/fleece/held-write/delays-cut-only", test_delays_cut_only);
  g_test_add_func ("/fleece/held-write/dirty-in-old-epoch-only",
                   test_dirty_in_old_epoch_only);
  g_test_add_func ("/fleece/held-write/commit-after-drain",
                   test_commit_after_drain);
  g_test_add_func ("/fleece/held-write/failed-write-is-dirty",
                   test_failed_write_is_dirty);
  return g_test_run ();
}
