/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A scratch file that does not give back what was stored: the snapshot breaks
 * and says so; a reader never gets garbage (durability.md H9). */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "tests/fleece-fixture.h"

#define SIZE (4 * 1024 * 1024 + 700)
#define BLOCK 4096

static Fixture *fx;

/* Flip a bit of the only scratch file. */
static void
flip (uint64_t offset)
{
  g_autoptr (GDir) dir = g_dir_open (fx->scratch, 0, NULL);
  g_autofree char *path
    = g_build_filename (fx->scratch, g_dir_read_name (dir), NULL);
  int fd = open (path, O_RDWR | O_CLOEXEC);
  char byte;

  g_assert_cmpint (fd, >=, 0);
  g_assert_null (g_dir_read_name (dir));
  g_assert_cmpint (pread (fd, &byte, 1, offset), ==, 1);
  byte ^= 0x10;
  g_assert_cmpint (pwrite (fd, &byte, 1, offset), ==, 1);
  close (fd);
}

/* at: where the bit flips, inside a preserved block. */
static void
check (uint64_t at)
{
  Snapshot *snap;
  g_autofree char *buf = g_malloc (SIZE), *reason = NULL;

  fx = fixture_new (1, SIZE);
  fixture_start (fx);
  fixture_write (fx->disk[0], 0, SIZE, 'a');
  snap = fixture_cut (fx, 0, "s", NULL);
  fixture_write (fx->disk[0], 0, SIZE, 'b');
  flip (at);
  /* Another block is still good. */
  fixture_check_snapshot (snap, at < SIZE / 2 ? SIZE - BLOCK : 0, BLOCK, 'a');
  g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_LIVE);

  memset (buf, 'x', SIZE);
  g_assert_cmpint (snapshot_pread (snap, buf, SIZE, 0), ==, -EIO);
  g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_BROKEN);
  reason = snapshot_reason (snap);
  g_assert_nonnull (strstr (reason, "checksum"));
  g_assert_cmpint (snapshot_pread (snap, buf, BLOCK, 0), ==, -EIO);
  g_assert_true (g_str_has_prefix (fx->notes->str, "broken d0 s: "));
  fixture_write (fx->disk[0], 0, SIZE, 'c');
  fixture_end (snap);
  fixture_free (fx);
}

static void
test_first (void)
{
  check (0);
}

static void
test_middle (void)
{
  check (100 * BLOCK + 77);
}

static void
test_last (void)
{
  check (SIZE - 1);
}

/* Also after a restart: the checksums are kept with the map. */
static void
test_restart (void)
{
  Snapshot *snap;
  char buf[BLOCK];

  fx = fixture_new (1, SIZE);
  fixture_start (fx);
  fixture_write (fx->disk[0], 0, SIZE, 'a');
  snapshot_unref (fixture_cut (fx, 0, "s", NULL));
  fixture_write (fx->disk[0], 10 * BLOCK, BLOCK, 'b');
  flip (10 * BLOCK + 5);
  fixture_stop (fx);
  fixture_start (fx);
  snap = disk_find_snapshot (fx->disk[0], "s");
  g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_LIVE);
  g_assert_cmpint (snapshot_pread (snap, buf, BLOCK, 10 * BLOCK), ==, -EIO);
  g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_BROKEN);
  fixture_end (snap);
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
  fixture_free (fx);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/fleece/checksum/first", test_first);
  g_test_add_func ("/fleece/checksum/middle", test_middle);
  g_test_add_func ("/fleece/checksum/last", test_last);
  g_test_add_func ("/fleece/checksum/restart", test_restart);
  return g_test_run ();
}
