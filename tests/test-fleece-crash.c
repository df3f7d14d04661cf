/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Snapshots after kill -9: what they said is what they say, and they go on. */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bitmap/bitmap-error.h"
#include "tests/fleece-fixture.h"

#define MIB (1024 * 1024)
#define SIZE (6 * MIB + 1536)   /* odd end */
#define LARGE (80 * MIB + 1536) /* two pages of presence */
#define BLOCK 4096

static Fixture *fx;

static Snapshot *
find (const char *name)
{
  Snapshot *snap = disk_find_snapshot (fx->disk[0], name);

  g_assert_nonnull (snap);
  return snap;
}

static void
check (const char *name, uint64_t offset, uint64_t length, int value)
{
  g_autoptr (Snapshot) snap = find (name);

  g_assert_cmpstr (snapshot_state_name (snapshot_state (snap)), ==, "live");
  fixture_check_snapshot (snap, offset, length, value);
}

static void
write_at (uint64_t offset, uint64_t length, int value)
{
  fixture_write (fx->disk[0], offset, length, value);
}

static void
cut (const char *name)
{
  snapshot_unref (fixture_cut (fx, 0, name, NULL));
}

static void
end_all (void)
{
  g_autoptr (GPtrArray) snaps = disk_snapshots (fx->disk[0]);

  for (unsigned j = 0; j < snaps->len; j++)
    fixture_end (snapshot_ref (snaps->pdata[j]));
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
}

static void
crash_and_start (void)
{
  fixture_crash (fx);
  fixture_start (fx);
}

/* s1: all 'a' of the first 4 MiB; s2: the first 'b'; s3: the second 'c' as
 * well; now: the third 'd', and something at the end. */
static void
make_history (void)
{
  write_at (0, 4 * MIB, 'a');
  cut ("s1");
  write_at (0, MIB, 'b');
  cut ("s2");
  write_at (MIB, MIB, 'c');
  cut ("s3");
  write_at (2 * MIB, MIB, 'd');
  write_at (disk_size (fx->disk[0]) - 100, 100, 'd');
}

static void
check_history (void)
{
  check ("s1", 0, 4 * MIB, 'a');
  check ("s2", 0, MIB, 'b');
  check ("s2", MIB, 3 * MIB, 'a');
  check ("s3", 0, MIB, 'b');
  check ("s3", MIB, MIB, 'c');
  check ("s3", 2 * MIB, 2 * MIB, 'a');
  check ("s1", 4 * MIB, disk_size (fx->disk[0]) - 4 * MIB, 0);
  check ("s2", 4 * MIB, disk_size (fx->disk[0]) - 4 * MIB, 0);
  check ("s3", 4 * MIB, disk_size (fx->disk[0]) - 4 * MIB, 0);
}

static uint64_t
scratch_bytes (void)
{
  struct disk_stats stats;

  disk_stats (fx->disk[0], &stats);
  return stats.scratch_bytes;
}

static void
test_go_on (void)
{
  struct disk_stats stats;

  fx = fixture_new (1, LARGE);
  fixture_start (fx);
  make_history ();
  for (unsigned round = 0; round < 3; round++) {
    uint64_t before = scratch_bytes ();

    g_assert_cmpuint (before, >, 0);
    crash_and_start ();
    check_history ();
    g_assert_cmpuint (scratch_bytes (), ==, before);    /* counted again */
    disk_stats (fx->disk[0], &stats);
    g_assert_cmpuint (stats.layers, ==, 3);
    g_assert_cmpuint (stats.blocks_copied, ==, 0);
    /* First touches after the crash are preserved, and for all of them. */
    write_at (3 * MIB + round * 65536, 65536, 'e');
    write_at (70 * MIB + round * 65536, 65536, 'e');
    check_history ();
  }
  fixture_stop (fx);
  fixture_start (fx);
  check_history ();
  write_at (0, 5 * MIB, 'f');
  check_history ();
  crash_and_start ();           /* the maps of the clean stop are old now */
  check_history ();
  fixture_end (find ("s2"));
  crash_and_start ();
  check ("s1", 0, 4 * MIB, 'a');
  check ("s3", MIB, MIB, 'c');
  cut ("s4");
  write_at (0, MIB, 'g');
  crash_and_start ();
  check ("s4", 0, 5 * MIB, 'f');
  check ("s1", 0, 4 * MIB, 'a');
  end_all ();
  fixture_free (fx);
}

/* The clean stop's file must not be believed once writes have gone on. */
static void
test_old_map_file (void)
{
  g_autofree char *keep = NULL;

  fx = fixture_new (1, SIZE);
  fixture_start (fx);
  make_history ();
  fixture_stop (fx);
  keep = g_strdup_printf ("cp -a %s %s/keep", fx->scratch, fx->dir);
  g_assert_cmpint (system (keep), ==, 0);
  fixture_start (fx);
  write_at (0, 4 * MIB, 'z');
  fixture_crash (fx);
  g_free (keep);
  keep = g_strdup_printf ("cp -a %s/keep/*.map %s/", fx->dir, fx->scratch);
  g_assert_cmpint (system (keep), ==, 0);
  fixture_lose_runtime (fx);
  fixture_start (fx);
  {
    g_autoptr (Snapshot) snap = find ("s3");

    g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_LOST);
  }
  end_all ();
  fixture_free (fx);
}

static void
expect_lost (const char *name, const char *why)
{
  g_autoptr (Snapshot) snap = find (name);
  g_autofree char *reason = snapshot_reason (snap);
  char byte;

  g_assert_cmpstr (snapshot_state_name (snapshot_state (snap)), ==, "lost");
  if (strstr (reason, why) == NULL)
    g_error ("reason '%s' does not say '%s'", reason, why);
  g_assert_cmpint (snapshot_pread (snap, &byte, 1, 0), ==, -EIO);
}

static char *
runtime_file (const char *suffix)
{
  g_autofree char *folder = g_build_filename (fx->runtime,
                                              catalog_uuid (fx->cat), NULL);

  return g_strconcat (folder, "/", suffix, NULL);
}

/* One map is gone: its snapshot and the older ones are lost, the newer not. */
static void
test_one_map_gone (void)
{
  g_autofree char *map = NULL;

  fx = fixture_new (1, SIZE);
  fixture_start (fx);
  make_history ();
  map = runtime_file ("d0.2.p");
  fixture_crash (fx);
  g_assert_cmpint (unlink (map), ==, 0);
  fixture_start (fx);
  expect_lost ("s1", "power loss");
  expect_lost ("s2", "power loss");
  check ("s3", 0, MIB, 'b');
  check ("s3", 2 * MIB, MIB, 'a');
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 1);
  crash_and_start ();
  expect_lost ("s2", "power loss");
  check ("s3", 2 * MIB, MIB, 'a');
  end_all ();
  cut ("s1");
  end_all ();
  fixture_free (fx);
}

/* A map from before, under the same name: its nonce is another one (H1). */
static void
test_old_runtime (void)
{
  g_autofree char *command = NULL;

  fx = fixture_new (1, SIZE);
  fixture_start (fx);
  make_history ();
  command = g_strdup_printf ("cp -a %s %s/keep", fx->runtime, fx->dir);
  g_assert_cmpint (system (command), ==, 0);
  fixture_stop (fx);
  fixture_start (fx);
  write_at (3 * MIB, MIB, 'z');
  fixture_crash (fx);
  g_free (command);
  command = g_strdup_printf ("cp -a %s/keep/. %s/", fx->dir, fx->runtime);
  g_assert_cmpint (system (command), ==, 0);
  fixture_start (fx);
  expect_lost ("s3", "power loss");
  end_all ();
  fixture_free (fx);
}

/* C2: the tmpfs is there, but scratch pages went without a sync. */
static void
test_scratch_pages_lost (void)
{
  g_autoptr (GDir) dir = NULL;
  const char *name;
  char zeroes[BLOCK] = "";
  char byte;
  Snapshot *snap;

  fx = fixture_new (1, SIZE);
  fixture_start (fx);
  write_at (0, 4 * MIB, 'a');
  cut ("s1");
  write_at (0, MIB, 'b');
  fixture_crash (fx);
  dir = g_dir_open (fx->scratch, 0, NULL);
  while ((name = g_dir_read_name (dir)) != NULL) {
    g_autofree char *path = g_build_filename (fx->scratch, name, NULL);
    int fd = open (path, O_RDWR | O_CLOEXEC);

    g_assert_cmpint (pwrite (fd, zeroes, BLOCK, 8 * BLOCK), ==, BLOCK);
    close (fd);
  }
  fixture_start (fx);
  snap = find ("s1");
  fixture_check_snapshot (snap, 0, BLOCK, 'a');
  g_assert_cmpint (snapshot_pread (snap, &byte, 1, 8 * BLOCK), ==, -EIO);
  g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_BROKEN);
  crash_and_start ();
  snapshot_unref (snap);
  snap = find ("s1");
  g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_BROKEN);
  fixture_end (snap);
  end_all ();
  fixture_free (fx);
}

/* Another image of another size under the name: nothing goes on. */
static void
test_other_image (void)
{
  fx = fixture_new (1, SIZE);
  fixture_start (fx);
  make_history ();
  fixture_crash (fx);
  g_assert_cmpint (truncate (fx->image[0], SIZE + 512), ==, 0);
  fixture_start (fx);
  expect_lost ("s3", "size");
  end_all ();
  fixture_free (fx);
}

/* --- the process dies at a storage call --- */

static void
start_old (void)
{
  fx = fixture_new_mortal (1, SIZE);
  fixture_start (fx);
  make_history ();
  fixture_crash (fx);
}

static void
check_after_death (void)
{
  g_autoptr (Snapshot) made = NULL;

  fixture_start (fx);
  check_history ();
  made = disk_find_snapshot (fx->disk[0], "new");
  if (made != NULL)             /* committed: then it is all right */
    fixture_check_snapshot (made, MIB, MIB, 'c');
  write_at (0, 6 * MIB, 'y');
  check_history ();
  crash_and_start ();
  check_history ();
  if (made == NULL) {
    cut ("new");                /* nothing blocks the name */
    check ("new", 0, 6 * MIB, 'y');
  }
  g_clear_pointer (&made, snapshot_unref);
  end_all ();
  crash_and_start ();
  end_all ();
  fixture_free (fx);
}

static void
do_cut (void)
{
  cut ("new");
  write_at (MIB / 2, MIB, 'x');
}

static void
test_die_in_cut (void)
{
  unsigned at = 0;
  bool died;

  do {
    start_old ();
    died = fixture_run_dying (fx, do_cut, NULL, ++at);
    check_after_death ();
  } while (died);
  g_assert_cmpuint (at, >, 4);
}

static void
do_write (void)
{
  write_at (3 * MIB, 65536 + BLOCK, 'x');       /* two stripes */
}

static void
test_die_in_write (void)
{
  unsigned at = 0;
  bool died;

  do {
    start_old ();
    died = fixture_run_dying (fx, do_write, NULL, ++at);
    check_after_death ();
  } while (died);
  g_assert_cmpuint (at, >, 5);
}

static void
do_stop (void)
{
  g_autoptr (GError) error = NULL;

  fleece_stop (fx->f, &error);
}

static void
test_die_in_stop (void)
{
  unsigned at = 0;
  bool died;

  do {
    start_old ();
    died = fixture_run_dying (fx, do_stop, NULL, ++at);
    check_after_death ();
  } while (died);
  g_assert_cmpuint (at, >, 8);
}

static void
do_end (void)
{
  fixture_end (find ("s3"));
}

static void
test_die_in_end (void)
{
  unsigned at = 0;
  bool died;

  do {
    start_old ();
    died = fixture_run_dying (fx, do_end, NULL, ++at);
    fixture_start (fx);
    check ("s1", 0, 4 * MIB, 'a');
    check ("s2", MIB, 3 * MIB, 'a');
    g_assert_null (disk_find_snapshot (fx->disk[0], "s3"));
    end_all ();
    fixture_free (fx);
  } while (died);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/fleece/crash/go-on", test_go_on);
  g_test_add_func ("/fleece/crash/old-map-file", test_old_map_file);
  g_test_add_func ("/fleece/crash/one-map-gone", test_one_map_gone);
  g_test_add_func ("/fleece/crash/old-runtime", test_old_runtime);
  g_test_add_func ("/fleece/crash/scratch-pages-lost",
                   test_scratch_pages_lost);
  g_test_add_func ("/fleece/crash/other-image", test_other_image);
  g_test_add_func ("/fleece/crash/die-in-cut", test_die_in_cut);
  g_test_add_func ("/fleece/crash/die-in-write", test_die_in_write);
  g_test_add_func ("/fleece/crash/die-in-stop", test_die_in_stop);
  g_test_add_func ("/fleece/crash/die-in-end", test_die_in_end);
  return g_test_run ();
}
