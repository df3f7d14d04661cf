/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Layers of new data: what is read and written where, restarts, and that a disk
 * is not served without them. */
#include <config.h>

#include <errno.h>
#include <string.h>
#include <unistd.h>
#include <glib/gstdio.h>

#include "bitmap/bitmap-error.h"
#include "tests/overlay-fixture.h"

#define K UINT64_C (1024)
#define M (K * K)
#define SIZE (2 * M)

static Fixture *fx;

static void
setup (void)
{
  fx = fixture_new (2, SIZE);
  fixture_start_full (fx, 1);
}

static void
teardown (void)
{
  fixture_free (fx);
}

static void
restart (bool killed)
{
  if (killed)
    fixture_crash (fx);
  else
    fixture_stop (fx);
  fixture_start (fx);
}

/* Writes go to the layer alone, and a part of a block has the rest from
 * below. */
static void
test_write_goes_to_top (void)
{
  setup ();
  overlay_fixture_put_on (fx, 0, "l1");
  fixture_write (fx->disk[0], 5000, 100, 2);
  fixture_write (fx->disk[0], 64 * K - 10, 20, 3);
  fixture_write (fx->disk[0], 100 * K, 8 * K, 4);
  fixture_check_disk (fx->disk[0], 0, 5000, 1);
  fixture_check_disk (fx->disk[0], 5000, 100, 2);
  fixture_check_disk (fx->disk[0], 5100, 64 * K - 10 - 5100, 1);
  fixture_check_disk (fx->disk[0], 64 * K - 10, 20, 3);
  fixture_check_disk (fx->disk[0], 100 * K, 8 * K, 4);
  overlay_fixture_check_file (fx->image[0], 0, SIZE, 1);
  /* A second one, over both. */
  overlay_fixture_put_on (fx, 0, "l2");
  fixture_write (fx->disk[0], 5050, 10, 5);
  fixture_check_disk (fx->disk[0], 5000, 50, 2);
  fixture_check_disk (fx->disk[0], 5050, 10, 5);
  fixture_check_disk (fx->disk[0], 5060, 40, 2);
  overlay_fixture_check_file (fx->image[0], 0, SIZE, 1);
  overlay_fixture_check_chain (fx, 0, "l2 4096, l1 20480, image");
  teardown ();
}

static void
test_zero_and_trim (void)
{
  setup ();
  overlay_fixture_put_on (fx, 0, "l1");
  g_assert_cmpint (disk_zero (fx->disk[0], M, 100, DISK_MAY_PUNCH), ==, 0);
  g_assert_cmpint (disk_zero (fx->disk[0], 50, M + 8 * K, 0), ==, 0);
  g_assert_cmpint (disk_trim (fx->disk[0], 8 * K, SIZE - 8 * K, false), ==, 0);
  fixture_check_disk (fx->disk[0], 0, 100, 1);
  fixture_check_disk (fx->disk[0], 100, M, 0);
  fixture_check_disk (fx->disk[0], M + 100, 8 * K - 100, 1);
  fixture_check_disk (fx->disk[0], M + 8 * K, 50, 0);
  fixture_check_disk (fx->disk[0], SIZE - 8 * K, 8 * K, 0);
  fixture_write (fx->disk[0], 5000, 10, 2);
  fixture_check_disk (fx->disk[0], 100, 4900, 0);
  fixture_check_disk (fx->disk[0], 5000, 10, 2);
  overlay_fixture_check_file (fx->image[0], 0, SIZE, 1);
  teardown ();
}

static void
check_after_restart (bool killed)
{
  setup ();
  overlay_fixture_put_on (fx, 0, "l1");
  fixture_write (fx->disk[0], 5000, 100, 2);
  overlay_fixture_put_on (fx, 0, "l2");
  fixture_write (fx->disk[0], 100 * K, 100, 3);
  restart (killed);
  overlay_fixture_check_chain (fx, 0, "l2 4096, l1 4096, image");
  fixture_check_disk (fx->disk[0], 0, 5000, 1);
  fixture_check_disk (fx->disk[0], 5000, 100, 2);
  fixture_check_disk (fx->disk[0], 100 * K, 100, 3);
  fixture_write (fx->disk[0], 6000, 100, 4);
  restart (!killed);
  fixture_check_disk (fx->disk[0], 5000, 100, 2);
  fixture_check_disk (fx->disk[0], 6000, 100, 4);
  fixture_check_disk (fx->disk[0], 6100, 4 * K, 1);
  teardown ();
}

static void
test_restart (void)
{
  check_after_restart (false);
}

static void
test_kill (void)
{
  check_after_restart (true);
}

/* What was flushed is there, and what was not is as it was before; never a
 * block that is half of this and half of nothing.  (The kernel keeps the data
 * here: see crash-sim.c for those that it loses.) */
static void
test_power_loss (void)
{
  setup ();
  overlay_fixture_put_on (fx, 0, "l1");
  fixture_write (fx->disk[0], 5000, 100, 2);
  g_assert_cmpint (disk_flush (fx->disk[0]), ==, 0);
  fixture_write (fx->disk[0], 100 * K + 10, 100, 3);
  fixture_crash (fx);
  fixture_lose_runtime (fx);
  fixture_start (fx);
  fixture_check_disk (fx->disk[0], 5000, 100, 2);
  fixture_check_disk (fx->disk[0], 100 * K, 4 * K, 1);
  /* And FUA alone. */
  {
    char buf[100];

    memset (buf, 4, sizeof buf);
    g_assert_cmpint (disk_pwrite (fx->disk[0], buf, 100, 200 * K, true), ==, 0);
  }
  fixture_crash (fx);
  fixture_lose_runtime (fx);
  fixture_start (fx);
  fixture_check_disk (fx->disk[0], 200 * K, 100, 4);
  fixture_check_disk (fx->disk[0], 200 * K + 100, 4 * K, 1);
  teardown ();
}

static void
start_refused (const char *why)
{
  g_autoptr (GError) error = NULL;
  FleeceOptions options = { .scratch_dir = fx->scratch,
                            .runtime_dir = fx->runtime };
  Fleece *f = fleece_new (&options, &error);
  g_autoptr (Catalog) cat = NULL;

  g_assert_no_error (error);
  g_assert_nonnull (fleece_add_disk (f, "d0", fx->image[0], fx->granularity,
                                     &error));
  cat = catalog_new (fx->state, &error);
  g_assert_true (catalog_open (cat, &error));
  g_assert_false (fleece_start (f, cat, &error));
  g_assert_nonnull (strstr (error->message, why));
  g_assert_nonnull (strstr (error->message, "'d0'"));
  fleece_free (f);
}

/* The image alone is not what the guest wrote. */
static void
test_missing_layer (void)
{
  g_autofree char *path = NULL, *away = NULL, *map = NULL;

  setup ();
  overlay_fixture_put_on (fx, 0, "l1");
  path = overlay_fixture_path (fx, 0, "l1");
  away = g_strconcat (path, ".away", NULL);
  map = g_strconcat (path, ".map", NULL);
  fixture_write (fx->disk[0], 5000, 100, 2);
  fixture_stop (fx);
  g_assert_cmpint (g_rename (path, away), ==, 0);
  start_refused ("not served without its layer 'l1'");
  g_assert_cmpint (g_rename (away, path), ==, 0);
  g_assert_cmpint (g_rename (map, away), ==, 0);
  start_refused ("not served without its layer 'l1'");
  g_assert_cmpint (g_rename (away, map), ==, 0);
  g_assert_cmpint (truncate (path, M), ==, 0);
  start_refused ("has 1048576 bytes");
  g_assert_cmpint (truncate (path, SIZE), ==, 0);
  g_assert_cmpint (truncate (map, 4096), ==, 0);
  start_refused ("is damaged");
  fixture_remove_tree (fx->state);      /* so that the disk starts again */
  fixture_start (fx);
  teardown ();
}

static void
test_names_and_files (void)
{
  g_autoptr (GError) error = NULL;
  g_autofree char *path = NULL;

  setup ();
  overlay_fixture_put_on (fx, 0, "l1");
  g_assert_false (overlay_fixture_try_put_on (fx, 0, "l1", NULL, false,
                                              &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS);
  g_clear_error (&error);
  path = g_build_filename (fx->dir, "user.raw", NULL);
  g_assert_false (overlay_fixture_try_put_on (fx, 0, "l2", path, true,
                                              &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND);
  g_clear_error (&error);
  g_assert_true (g_file_set_contents (path, "data", 4, NULL));
  g_assert_false (overlay_fixture_try_put_on (fx, 0, "l2", path, true,
                                              &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID);
  g_clear_error (&error);
  g_assert_false (overlay_fixture_try_put_on (fx, 0, "l2", path, false,
                                              &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS);
  g_clear_error (&error);
  /* Nothing of these is left. */
  overlay_fixture_check_chain (fx, 0, "l1 0, image");
  g_assert_true (g_file_set_contents (path, "", 0, NULL));
  g_assert_true (overlay_fixture_try_put_on (fx, 0, "l2", path, true, &error));
  g_assert_no_error (error);
  g_assert_false (overlay_fixture_try_put_on (fx, 1, "l", path, true, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS);
  fixture_write (fx->disk[0], 0, 4 * K, 2);
  overlay_fixture_check_file (path, 0, 4 * K, 2);
  teardown ();
}

/* Snapshots, tracking and size are the disk's. */
static void
test_snapshot_above_layers (void)
{
  uint64_t before, after;
  Snapshot *snap, *snap2;

  setup ();
  snap = fixture_cut (fx, 0, "s", &before);
  overlay_fixture_put_on (fx, 0, "l1");
  fixture_write (fx->disk[0], 10 * K, 100, 2);
  snap2 = fixture_cut (fx, 0, "s2", &after);
  fixture_write (fx->disk[0], 10 * K, 100, 3);
  fixture_check_snapshot (snap, 0, SIZE, 1);
  fixture_check_snapshot (snap2, 10 * K, 100, 2);
  fixture_check_disk (fx->disk[0], 10 * K, 100, 3);
  g_assert_true (fixture_is_dirty (fx, 0, before, after, 10 * K));
  g_assert_false (fixture_is_dirty (fx, 0, before, after, 70 * K));
  fixture_end (snap);
  fixture_end (snap2);
  teardown ();
}

static void
test_resize (void)
{
  g_autoptr (GError) error = NULL;

  setup ();
  overlay_fixture_put_on (fx, 0, "l1");
  g_assert_true (fleece_resize (fx->f, fx->disk[0], M + 100, &error));
  g_assert_true (fleece_resize (fx->f, fx->disk[0], 3 * M + 5, &error));
  fixture_check_disk (fx->disk[0], 0, M + 100, 1);
  fixture_check_disk (fx->disk[0], M + 100, 2 * M - 95, 0);
  fixture_write (fx->disk[0], 3 * M, 5, 2);
  restart (true);
  g_assert_cmpuint (disk_size (fx->disk[0]), ==, 3 * M + 5);
  fixture_check_disk (fx->disk[0], 0, M + 100, 1);
  fixture_check_disk (fx->disk[0], M + 100, 2 * M - 100, 0);
  fixture_check_disk (fx->disk[0], 3 * M, 5, 2);
  overlay_fixture_check_file (fx->image[0], 0, SIZE, 1);
  teardown ();
}

static int
add_depth (void *opaque, uint64_t length, unsigned depth)
{
  g_string_append_printf (opaque, "%" G_GUINT64_FORMAT ":%u ", length, depth);
  return 0;
}

static int
add_run (void *opaque, uint64_t length, bool present)
{
  return add_depth (opaque, length, present);
}

static void
test_depth (void)
{
  g_autoptr (GString) text = g_string_new (NULL);
  Disk *disk;

  fx = fixture_new (1, 64 * K);
  fixture_start (fx);
  disk = fx->disk[0];
  fixture_write (disk, 16 * K, 8 * K, 1);
  overlay_fixture_put_on (fx, 0, "l1");
  fixture_write (disk, 20 * K, 8 * K, 2);
  overlay_fixture_put_on (fx, 0, "l2");
  fixture_write (disk, 28 * K, 4 * K, 2);
  g_assert_cmpint (disk_depth (disk, 64 * K, 0, add_depth, text), ==, 0);
  g_assert_cmpstr (text->str, ==,
                   "16384:0 4096:3 8192:2 4096:1 32768:0 ");
  g_string_truncate (text, 0);
  g_assert_cmpint (disk_layer_runs (disk, "l1", 64 * K, 0, add_run, text), ==,
                   0);
  g_assert_cmpstr (text->str, ==, "20480:0 8192:1 36864:0 ");
  g_string_truncate (text, 0);
  g_assert_cmpint (disk_layer_runs (disk, NULL, 64 * K, 0, add_run, text), ==,
                   0);
  g_assert_cmpstr (text->str, ==, "16384:0 8192:1 40960:0 ");
  g_assert_cmpint (disk_layer_runs (disk, "l3", 64 * K, 0, add_run, text), ==,
                   -ENOENT);
  teardown ();
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/overlay/write-goes-to-top", test_write_goes_to_top);
  g_test_add_func ("/overlay/zero-and-trim", test_zero_and_trim);
  g_test_add_func ("/overlay/restart", test_restart);
  g_test_add_func ("/overlay/kill", test_kill);
  g_test_add_func ("/overlay/power-loss", test_power_loss);
  g_test_add_func ("/overlay/missing-layer", test_missing_layer);
  g_test_add_func ("/overlay/names-and-files", test_names_and_files);
  g_test_add_func ("/overlay/snapshot-above-layers",
                   test_snapshot_above_layers);
  g_test_add_func ("/overlay/resize", test_resize);
  g_test_add_func ("/overlay/depth", test_depth);
  return g_test_run ();
}
