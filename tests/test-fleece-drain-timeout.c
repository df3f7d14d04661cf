/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A write that hangs longer than the drain timeout makes the cut fail, and the
 * cut can no longer be taken back at that point: guests are in the new epoch,
 * older snapshots read through the new layer (durability.md K6').  Nothing
 * named may remain, and nothing may be forgotten. */
#include <config.h>

#include <string.h>

#include "bitmap/bitmap-error.h"
#include "tests/fleece-fixture.h"
#include "tests/storage-hook.h"

#define SIZE (8 * 1024 * 1024)
#define BLOCK 4096
#define HELD (1024 * 1024)
#define OTHER (4 * 1024 * 1024)

static Fixture *fx;

static void
setup (unsigned nr_disks)
{
  fx = fixture_new_gated (nr_disks, SIZE);
  fx->drain_timeout_ms = 100;
  fixture_start_full (fx, 'a');
}

/* Hold a write of 'b' and let a cut of snapshot "late" fail on it. */
static FixtureCall *
fail_cut (void)
{
  FleeceCutDisk cd[FIXTURE_MAX_DISKS];
  FixtureCall *held;
  g_autoptr (GError) error = NULL;
  bool ok;

  hook_gate_arm (fx->gate, HOOK_PWRITE, "d0.img", HELD, BLOCK);
  held = fixture_call_write (fx->disk[0], HELD, BLOCK, 'b');
  hook_gate_wait_held (fx->gate);
  for (unsigned i = 0; i < fx->nr_disks; i++)
    cd[i] = (FleeceCutDisk) { .disk = fx->disk[i], .snapshot = "late" };
  ok = fleece_cut (fx->f, cd, fx->nr_disks, NULL, NULL, &error);
  g_assert_false (ok);
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_TIMEOUT);
  g_assert_nonnull (strstr (error->message, "'d0'"));
  for (unsigned i = 0; i < fx->nr_disks; i++) {
    g_assert_null (cd[i].out_snapshot);
    g_assert_null (disk_find_snapshot (fx->disk[i], "late"));
  }
  return held;
}

static unsigned
nr_rows (const char *sql)
{
  g_autoptr (GError) error = NULL;
  sqlite3_stmt *stmt;
  unsigned nr;

  catalog_lock (fx->cat);
  stmt = catalog_stmt (fx->cat, sql, &error);
  g_assert_no_error (error);
  g_assert_cmpint (catalog_step_row (fx->cat, stmt, &error), ==, 1);
  nr = sqlite3_column_int (stmt, 0);
  sqlite3_reset (stmt);
  catalog_unlock (fx->cat);
  return nr;
}

/* Without an older snapshot not even the layer remains. */
static void
test_nothing_remains (void)
{
  FixtureCall *held;
  struct disk_stats stats;

  setup (2);
  held = fail_cut ();
  g_assert_cmpint (nr_rows ("SELECT count (*) FROM snapshot"), ==, 0);
  g_assert_cmpint (nr_rows ("SELECT count (*) FROM layer"), ==, 0);
  g_assert_cmpint (fixture_nr_scratch_files (fx), ==, 0);
  disk_stats (fx->disk[0], &stats);
  g_assert_cmpint (stats.layers, ==, 0);
  g_assert_cmpint (stats.snapshots, ==, 0);
  g_assert_cmpint (stats.cuts, ==, 0);
  hook_gate_release (fx->gate, 0);
  g_assert_cmpint (fixture_call_join (held), ==, 0);
  fixture_free (fx);
}

/* While the epoch of the failed cut is in use and cannot be sealed yet, what is
 * written in it counts. */
static void
test_tracking_goes_on (void)
{
  FixtureCall *held;
  uint64_t b0, b1;
  Snapshot *snap;

  setup (1);
  fixture_cut (fx, 0, NULL, &b0);
  held = fail_cut ();
  fixture_write (fx->disk[0], OTHER, BLOCK, 'c');
  g_assert_true (fixture_is_dirty (fx, 0, b0, 0, OTHER));
  g_assert_true (fixture_is_dirty (fx, 0, b0, 0, HELD));
  g_assert_false (fixture_is_dirty (fx, 0, b0, 0, 0));
  hook_gate_release (fx->gate, 0);
  g_assert_cmpint (fixture_call_join (held), ==, 0);

  snap = fixture_cut (fx, 0, "late", &b1);
  g_assert_true (fixture_is_dirty (fx, 0, b0, b1, OTHER));
  g_assert_true (fixture_is_dirty (fx, 0, b0, b1, HELD));
  g_assert_false (fixture_is_dirty (fx, 0, b0, b1, 0));
  g_assert_false (fixture_is_dirty (fx, 0, b1, 0, OTHER));
  fixture_check_snapshot (snap, OTHER, BLOCK, 'c');
  fixture_check_snapshot (snap, HELD, BLOCK, 'b');
  fixture_end (snap);
  fixture_free (fx);
}

/* While the write still hangs the next cut fails in the same way. */
static void
test_next_cut (void)
{
  FixtureCall *held;
  g_autoptr (GError) error = NULL;
  FleeceCutDisk cd;

  setup (1);
  held = fail_cut ();
  cd = (FleeceCutDisk) { .disk = fx->disk[0], .snapshot = "s" };
  g_assert_false (fleece_cut (fx->f, &cd, 1, NULL, NULL, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_TIMEOUT);
  g_assert_null (cd.out_snapshot);
  g_assert_cmpint (fixture_nr_scratch_files (fx), ==, 0);
  hook_gate_release (fx->gate, 0);
  g_assert_cmpint (fixture_call_join (held), ==, 0);
  fixture_end (fixture_cut (fx, 0, "s", NULL));
  fixture_free (fx);
}

/* What was preserved into the failed cut's layer belongs to the older snapshot:
 * at once, after the next cut, and after a restart. */
static void
test_older_snapshot (void)
{
  Snapshot *s1, *s2;
  FixtureCall *held;
  uint64_t b1;

  setup (2);
  s1 = fixture_cut (fx, 0, "s1", &b1);
  held = fail_cut ();
  fixture_write (fx->disk[0], OTHER, BLOCK, 'c');
  fixture_write (fx->disk[1], OTHER, BLOCK, 'c');
  fixture_check_snapshot (s1, 0, SIZE, 'a');
  hook_gate_release (fx->gate, 0);
  g_assert_cmpint (fixture_call_join (held), ==, 0);
  fixture_check_snapshot (s1, 0, SIZE, 'a');

  s2 = fixture_cut (fx, 0, "late", NULL);
  fixture_write (fx->disk[0], OTHER + BLOCK, BLOCK, 'd');
  fixture_check_snapshot (s1, 0, SIZE, 'a');
  fixture_check_snapshot (s2, OTHER, BLOCK, 'c');
  snapshot_unref (s1);
  snapshot_unref (s2);

  fixture_stop (fx);
  fixture_start (fx);
  s1 = disk_find_snapshot (fx->disk[0], "s1");
  s2 = disk_find_snapshot (fx->disk[0], "late");
  g_assert_nonnull (s1);
  g_assert_nonnull (s2);
  g_assert_cmpint (snapshot_state (s1), ==, SNAPSHOT_LIVE);
  fixture_check_snapshot (s1, 0, SIZE, 'a');
  fixture_check_snapshot (s2, OTHER, BLOCK, 'c');
  fixture_check_snapshot (s2, HELD, BLOCK, 'b');
  g_assert_true (fixture_is_dirty (fx, 0, b1, 0, OTHER));
  g_assert_true (fixture_is_dirty (fx, 0, b1, 0, HELD));
  g_assert_false (fixture_is_dirty (fx, 0, b1, 0, 0));
  fixture_write (fx->disk[0], 0, SIZE, 'e');
  fixture_check_snapshot (s1, 0, SIZE, 'a');
  fixture_end (s2);
  fixture_check_snapshot (s1, 0, SIZE, 'a');
  fixture_end (s1);
  g_assert_cmpint (fixture_nr_scratch_files (fx), ==, 0);
  fixture_free (fx);
}

/* The older snapshot ends while the write hangs: all layers go, and the write
 * comes home all the same. */
static void
test_end_while_hanging (void)
{
  Snapshot *s1;
  FixtureCall *held;
  uint64_t b1;

  setup (1);
  s1 = fixture_cut (fx, 0, "s1", &b1);
  held = fail_cut ();
  fixture_write (fx->disk[0], OTHER, BLOCK, 'c');
  fixture_end (s1);
  g_assert_cmpint (fixture_nr_scratch_files (fx), ==, 0);
  fixture_write (fx->disk[0], OTHER + 65536, BLOCK, 'd');
  hook_gate_release (fx->gate, 0);
  g_assert_cmpint (fixture_call_join (held), ==, 0);
  g_assert_true (fixture_is_dirty (fx, 0, b1, 0, OTHER));
  g_assert_true (fixture_is_dirty (fx, 0, b1, 0, OTHER + 65536));
  fixture_stop (fx);
  fixture_start (fx);
  g_assert_true (fixture_is_dirty (fx, 0, b1, 0, OTHER));
  g_assert_true (fixture_is_dirty (fx, 0, b1, 0, OTHER + 65536));
  g_assert_true (fixture_is_dirty (fx, 0, b1, 0, HELD));
  g_assert_false (fixture_is_dirty (fx, 0, b1, 0, 0));
  fixture_free (fx);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/fleece/drain-timeout/nothing-remains",
                   test_nothing_remains);
  g_test_add_func ("/fleece/drain-timeout/tracking-goes-on",
                   test_tracking_goes_on);
  g_test_add_func ("/fleece/drain-timeout/next-cut", test_next_cut);
  g_test_add_func ("/fleece/drain-timeout/older-snapshot",
                   test_older_snapshot);
  g_test_add_func ("/fleece/drain-timeout/end-while-hanging",
                   test_end_while_hanging);
  return g_test_run ();
}
