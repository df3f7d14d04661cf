/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* An image that somebody cuts short while it is served: what is gone is an
 * error, never a hole that reads as zeroes, and no cut vouches for it. */
#include <config.h>

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "bitmap/bitmap-error.h"
#include "tests/fleece-fixture.h"

#define SIZE (1024 * 1024)
#define LEFT (512 * 1024)

static Fixture *fx;
static Snapshot *snap;

static int
ignore_run (void *opaque, uint64_t length, bool zero)
{
  return 0;
}

static void
setup (void)
{
  fx = fixture_new (2, SIZE);
  fixture_start (fx);
  fixture_write (fx->disk[0], 0, SIZE, 'a');
  snap = fixture_cut (fx, 0, "s", NULL);
  g_assert_cmpint (truncate (fx->image[0], LEFT), ==, 0);
}

static void
teardown (void)
{
  fixture_end (snap);
  fixture_stop (fx);
  fixture_free (fx);
}

static void
test_status (void)
{
  setup ();
  fixture_check_snapshot (snap, 0, LEFT, 'a');
  g_assert_cmpint (snapshot_extents (snap, LEFT, 0, ignore_run, NULL), ==, 0);
  g_assert_cmpint (snapshot_extents (snap, SIZE - LEFT, LEFT, ignore_run,
                                     NULL), ==, -EIO);
  g_assert_cmpint (disk_extents (fx->disk[0], SIZE - LEFT, LEFT, ignore_run,
                                 NULL), ==, -EIO);
  teardown ();
}

/* Copy-before-write must not save the missing data as zeroes. */
static void
test_write (void)
{
  char buf[4096];

  setup ();
  fixture_write (fx->disk[0], LEFT, sizeof buf, 'b');
  g_assert_cmpint (snapshot_pread (snap, buf, sizeof buf, LEFT), <, 0);
  fixture_write (fx->disk[0], 0, sizeof buf, 'b');
  teardown ();
}

static void
test_cut (void)
{
  FleeceCutDisk parts[2] = { { .snapshot = "t" }, { .snapshot = "t" } };
  g_autoptr (GError) error = NULL;

  setup ();
  parts[0].disk = fx->disk[1];
  parts[1].disk = fx->disk[0];
  g_assert_false (fleece_cut (fx->f, parts, 2, NULL, NULL, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_IO);
  g_assert_nonnull (strstr (error->message, "has shrunk"));
  g_assert_nonnull (strstr (error->message, fx->image[0]));

  /* The other disk goes on. */
  fixture_write (fx->disk[1], 0, SIZE, 'b');
  fixture_end (fixture_cut (fx, 1, "t", NULL));
  teardown ();
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/fleece/shrunk/status", test_status);
  g_test_add_func ("/fleece/shrunk/write", test_write);
  g_test_add_func ("/fleece/shrunk/cut", test_cut);
  return g_test_run ();
}
