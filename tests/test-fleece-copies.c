/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a first touch costs: one copy of 4 KiB, whatever the number of
 * snapshots; nothing for holes; and nothing is left after the last end. */
#include <config.h>

#include <sys/stat.h>

#include "tests/fleece-fixture.h"

#define SIZE (8 * 1024 * 1024)
#define BLOCK 4096
#define HALF (SIZE / 2)         /* data below, hole above */
#define MAX_SNAPS 16

static struct disk_stats
stats_of (Fixture *fx)
{
  struct disk_stats stats;

  disk_stats (fx->disk[0], &stats);
  return stats;
}

/* Bytes allocated in the scratch directory. */
static uint64_t
allocated (Fixture *fx)
{
  g_autoptr (GDir) dir = g_dir_open (fx->scratch, 0, NULL);
  const char *name;
  uint64_t sum = 0;

  while ((name = g_dir_read_name (dir)) != NULL) {
    g_autofree char *path = g_build_filename (fx->scratch, name, NULL);
    struct stat st;

    g_assert_cmpint (stat (path, &st), ==, 0);
    sum += (uint64_t) st.st_blocks * 512;
  }
  return sum;
}

/* order: by which the snapshots end. */
static void
run (unsigned nr, const unsigned *order)
{
  Fixture *fx = fixture_new (1, SIZE);
  Snapshot *snap[MAX_SNAPS];
  struct disk_stats stats;
  Disk *disk;

  fixture_start (fx);
  disk = fx->disk[0];
  fixture_write (disk, 0, HALF, 'a');
  for (unsigned i = 0; i < nr; i++) {
    g_autofree char *name = g_strdup_printf ("s%u", i);

    snap[i] = fixture_cut (fx, 0, name, NULL);
  }
  stats = stats_of (fx);
  g_assert_cmpuint (stats.snapshots, ==, nr);
  g_assert_cmpuint (stats.layers, ==, nr);
  g_assert_cmpuint (stats.cuts, ==, nr);
  g_assert_cmpuint (stats.blocks_copied + stats.blocks_zero, ==, 0);
  g_assert_cmpuint (allocated (fx), ==, 0);

  /* Ten blocks, one of them touched twice and in two parts; two by one byte
   * each side of their border. */
  for (unsigned i = 0; i < 8; i++)
    fixture_write (disk, 65536 * i, BLOCK, 'b');
  fixture_write (disk, 0, 10, 'c');
  fixture_write (disk, 3000, 500, 'c');
  fixture_write (disk, 1024 * 1024 - 1, 2, 'c');
  stats = stats_of (fx);
  g_assert_cmpuint (stats.blocks_copied, ==, 10);
  g_assert_cmpuint (stats.blocks_zero, ==, 0);
  g_assert_cmpuint (stats.scratch_bytes, ==, 10 * BLOCK);
  g_assert_cmpuint (allocated (fx), ==, 10 * BLOCK);

  /* Holes, small writes and large ones: no copy. */
  fixture_write (disk, HALF, BLOCK, 'd');
  fixture_write (disk, HALF + 65536, 1024 * 1024, 'd');
  g_assert_cmpint (disk_zero (disk, 65536, SIZE - 65536, 0), ==, 0);
  stats = stats_of (fx);
  g_assert_cmpuint (stats.blocks_copied, ==, 10);
  g_assert_cmpuint (stats.blocks_zero, ==, 1 + 256 + 16);
  g_assert_cmpuint (allocated (fx), ==, 10 * BLOCK);

  /* A trim copies nothing, and a snapshot does not see it. */
  g_assert_cmpint (disk_trim (disk, 1024 * 1024, 2 * 1024 * 1024, false), ==,
                   0);
  stats = stats_of (fx);
  g_assert_cmpuint (stats.blocks_copied, ==, 10);

  for (unsigned i = 0; i < nr; i++) {
    uint64_t used, limit;

    for (unsigned j = i; j < nr; j++) {
      fixture_check_snapshot (snap[order[j]], 0, HALF, 'a');
      fixture_check_snapshot (snap[order[j]], HALF, SIZE - HALF, 0);
      snapshot_scratch (snap[order[j]], &used, &limit);
      g_assert_cmpuint (used, ==, 10 * BLOCK);
      g_assert_cmpuint (limit, ==, 0);
    }
    fixture_end (snap[order[i]]);
  }
  stats = stats_of (fx);
  g_assert_cmpuint (stats.layers, ==, 0);
  g_assert_cmpuint (stats.snapshots, ==, 0);
  g_assert_cmpuint (stats.scratch_bytes, ==, 0);
  g_assert_cmpuint (stats.blocks_copied, ==, 10);
  g_assert_cmpuint (stats.blocks_zero, ==, 1 + 256 + 16);
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);

  /* And nobody is preserved for any more. */
  fixture_write (disk, 0, HALF, 'e');
  stats = stats_of (fx);
  g_assert_cmpuint (stats.blocks_copied, ==, 10);
  g_assert_cmpstr (fx->notes->str, ==, "");
  fixture_free (fx);
}

static void
test_one (void)
{
  const unsigned order[] = { 0 };

  run (1, order);
}

static void
test_oldest_first (void)
{
  unsigned order[MAX_SNAPS];

  for (unsigned i = 0; i < MAX_SNAPS; i++)
    order[i] = i;
  run (MAX_SNAPS, order);
}

static void
test_newest_first (void)
{
  unsigned order[MAX_SNAPS];

  for (unsigned i = 0; i < MAX_SNAPS; i++)
    order[i] = MAX_SNAPS - 1 - i;
  run (MAX_SNAPS, order);
}

static void
test_any_order (void)
{
  unsigned order[MAX_SNAPS];

  for (unsigned i = 0; i < MAX_SNAPS; i++)
    order[i] = i * 5 % MAX_SNAPS;
  run (MAX_SNAPS, order);
}

/* A snapshot between writes: each layer holds what was touched in its time, and
 * a block that an older snapshot got from a newer layer is there once. */
static void
test_layers (void)
{
  Fixture *fx = fixture_new (1, SIZE);
  Snapshot *s1, *s2;
  Disk *disk;

  fixture_start (fx);
  disk = fx->disk[0];
  fixture_write (disk, 0, SIZE, 'a');
  s1 = fixture_cut (fx, 0, "s1", NULL);
  fixture_write (disk, 0, BLOCK, 'b');
  s2 = fixture_cut (fx, 0, "s2", NULL);
  fixture_write (disk, 0, 2 * BLOCK, 'c');
  g_assert_cmpuint (stats_of (fx).blocks_copied, ==, 3);
  fixture_check_snapshot (s1, 0, SIZE, 'a');
  fixture_check_snapshot (s2, 0, BLOCK, 'b');
  fixture_check_snapshot (s2, BLOCK, SIZE - BLOCK, 'a');
  fixture_end (s1);
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 1);
  g_assert_cmpuint (stats_of (fx).scratch_bytes, ==, 2 * BLOCK);
  g_assert_cmpuint (stats_of (fx).blocks_copied, ==, 3);
  fixture_end (s2);
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
  fixture_free (fx);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/fleece/copies/one", test_one);
  g_test_add_func ("/fleece/copies/oldest-first", test_oldest_first);
  g_test_add_func ("/fleece/copies/newest-first", test_newest_first);
  g_test_add_func ("/fleece/copies/any-order", test_any_order);
  g_test_add_func ("/fleece/copies/layers", test_layers);
  return g_test_run ();
}
