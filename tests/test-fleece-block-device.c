/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A block device as disk: everything that differs from an image file.  Needs
 * root and a free loop device. */
#include <config.h>

#include <errno.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bitmap/bitmap-error.h"
#include "tests/fleece-fixture.h"

#define SIZE (4 * 1024 * 1024)
#define BLOCK 4096
#define AT (1024 * 1024)

static Fixture *fx;
static char *file, *device;

static char *
run (const char *command)
{
  g_auto (GStrv) argv = NULL;
  char *out = NULL;
  int status;

  g_assert_true (g_shell_parse_argv (command, NULL, &argv, NULL));
  if (!g_spawn_sync (NULL, argv, NULL, G_SPAWN_SEARCH_PATH |
                     G_SPAWN_STDERR_TO_DEV_NULL, NULL, NULL, &out, NULL,
                     &status, NULL) || status != 0)
    g_clear_pointer (&out, g_free);
  return out != NULL ? g_strchomp (out) : NULL;
}

/* False: not here. */
static bool
setup (void)
{
  g_autofree char *command = NULL;

  fx = fixture_new (1, SIZE);
  file = fx->image[0];
  command = g_strdup_printf ("losetup -f --show '%s'", file);
  device = run (command);
  if (device == NULL) {
    g_test_skip ("no loop device here");
    fixture_free (fx);
    return false;
  }
  fx->image[0] = device;
  fixture_start (fx);
  fixture_write (fx->disk[0], 0, SIZE, 'a');
  return true;
}

static void
teardown (void)
{
  g_autofree char *command = g_strdup_printf ("losetup -d '%s'", device);

  if (fx->f != NULL)
    fixture_stop (fx);
  g_free (run (command));
  fixture_free (fx);            /* frees device */
  g_free (file);
}

static int
sum_run (void *opaque, uint64_t length, bool zero)
{
  uint64_t *sums = opaque;

  sums[zero] += length;
  return 0;
}

static void
test_io (void)
{
  Snapshot *snap;
  uint64_t b, sums[2] = { 0 };
  Disk *disk;

  if (!setup ())
    return;
  disk = fx->disk[0];
  g_assert_true (disk_is_block (disk));
  g_assert_cmpuint (disk_size (disk), ==, SIZE);
  snap = fixture_cut (fx, 0, "s", &b);
  fixture_write (disk, AT, BLOCK, 'b');
  fixture_write (disk, AT + 100, 50, 'c');
  g_assert_cmpint (disk_pwrite (disk, "x", 1, SIZE - 1, true), ==, 0);
  /* Aligned and not, with leave to punch and without. */
  g_assert_cmpint (disk_zero (disk, 65536, 2 * AT, DISK_MAY_PUNCH), ==, 0);
  g_assert_cmpint (disk_zero (disk, 65536, 2 * AT + 65536, DISK_FUA), ==, 0);
  g_assert_cmpint (disk_zero (disk, 1000, 2 * AT + 131072 + 7,
                              DISK_MAY_PUNCH | DISK_FUA), ==, 0);
  g_assert_cmpint (disk_trim (disk, 65536, 3 * AT, true), ==, 0);
  g_assert_cmpint (disk_trim (disk, 100, 3 * AT + 131072 + 1, false), ==, 0);
  g_assert_cmpint (disk_flush (disk), ==, 0);
  g_assert_cmpint (disk_cache (disk, SIZE, 0), ==, 0);
  fixture_check_disk (disk, AT, 100, 'b');
  fixture_check_disk (disk, AT + 100, 50, 'c');
  fixture_check_disk (disk, 2 * AT, 131072, 0);
  fixture_check_disk (disk, 2 * AT + 131072, 7, 'a');
  fixture_check_disk (disk, 2 * AT + 131072 + 7, 1000, 0);
  fixture_check_snapshot (snap, 0, SIZE, 'a');
  g_assert_true (fixture_is_dirty (fx, 0, b, 0, 3 * AT));
  g_assert_false (fixture_is_dirty (fx, 0, b, 0, 0));
  g_assert_cmpint (snapshot_extents (snap, SIZE, 0, sum_run, sums), ==, 0);
  g_assert_cmpuint (sums[0], ==, SIZE);
  sums[0] = 0;
  g_assert_cmpint (disk_extents (disk, SIZE, 0, sum_run, sums), ==, 0);
  g_assert_cmpuint (sums[0] + sums[1], ==, SIZE);
  snapshot_unref (snap);

  fixture_stop (fx);
  fixture_start (fx);
  snap = disk_find_snapshot (fx->disk[0], "s");
  g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_LIVE);
  fixture_check_snapshot (snap, 0, SIZE, 'a');
  g_assert_false (fixture_is_dirty (fx, 0, b, 0, 0));
  fixture_end (snap);
  teardown ();
}

/* Against another process of ours, against the kernel, and under another name
 * of the device. */
static void
test_exclusive (void)
{
  g_autofree char *command = NULL, *node = NULL, *mknod = NULL;
  g_autoptr (GError) error = NULL;
  FleeceOptions options = { 0 };
  pid_t pid;
  int status;

  if (!setup ())
    return;
  options.scratch_dir = fx->scratch;
  pid = fork ();
  if (pid == 0) {
    Fleece *f = fleece_new (&options, &error);

    fleece_add_disk (f, "x", device, 65536, &error);
    _exit (g_error_matches (error, BITMAP_ERROR, BITMAP_ERROR_BUSY) ? 0 : 1);
  }
  g_assert_cmpint (waitpid (pid, &status, 0), ==, pid);
  g_assert_cmpint (status, ==, 0);

  node = g_strdup_printf ("%s/node", fx->dir);
  command = g_strdup_printf ("cp -a '%s' '%s'", device, node);
  mknod = run (command);
  if (mknod != NULL) {
    g_assert_null (fleece_add_disk (fx->f, "y", node, 65536, &error));
    g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS);
  }
  g_free (command);
  command = g_strdup_printf ("mkfs.ext4 -q '%s'", device);
  g_assert_null (run (command));        /* it is "apparently in use" */
  fixture_check_disk (fx->disk[0], 0, SIZE, 'a');
  teardown ();
}

static void
resize_device (uint64_t size)
{
  g_autofree char *command = g_strdup_printf ("losetup -c '%s'", device);
  g_autofree char *out = NULL;

  g_assert_cmpint (truncate (file, (off_t) size), ==, 0);
  out = run (command);
  g_assert_nonnull (out);
}

/* Only the device itself can get another size, and then it is taken up.  What
 * it has lost by that, snapshots have lost. */
static void
test_resized (void)
{
  g_autoptr (GError) error = NULL;
  Snapshot *snap;
  char buf[BLOCK];
  uint64_t b;

  if (!setup ())
    return;
  snap = fixture_cut (fx, 0, "s", &b);
  g_assert_false (fleece_resize (fx->f, fx->disk[0], 2 * SIZE, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID);
  g_clear_error (&error);
  resize_device (2 * SIZE);
  g_assert_cmpuint (disk_size (fx->disk[0]), ==, SIZE);
  fleece_resize (fx->f, fx->disk[0], 2 * SIZE, &error);
  g_assert_no_error (error);
  g_assert_cmpuint (disk_size (fx->disk[0]), ==, 2 * SIZE);
  g_assert_true (fixture_is_dirty (fx, 0, b, 0, SIZE));
  g_assert_false (fixture_is_dirty (fx, 0, b, 0, 0));
  fixture_write (fx->disk[0], SIZE - BLOCK, 2 * BLOCK, 'b');
  fixture_check_snapshot (snap, 0, SIZE, 'a');
  fixture_end (snap);

  snap = fixture_cut (fx, 0, "t", NULL);
  resize_device (SIZE);
  fleece_resize (fx->f, fx->disk[0], SIZE, &error);
  g_assert_no_error (error);
  g_assert_cmpint (disk_pwrite (fx->disk[0], buf, 1, SIZE, false), ==,
                   -ENOSPC);
  fixture_check_snapshot (snap, 0, SIZE - BLOCK, 'a');
  g_assert_cmpint (snapshot_pread (snap, buf, BLOCK, SIZE), ==, -EIO);
  snapshot_unref (snap);
  fixture_stop (fx);
  fixture_start (fx);
  snap = disk_find_snapshot (fx->disk[0], "t");
  fixture_check_snapshot (snap, 0, SIZE - BLOCK, 'a');
  g_assert_true (epoch_log_report (disk_epoch_log (fx->disk[0]))->clean);
  fixture_end (snap);
  teardown ();
}

/* A file of the same size in its place, and then the device again: neither has
 * anything in common with the other that could differ but what it is. */
static void
test_replaced (void)
{
  const EpochOpenReport *report;

  if (!setup ())
    return;
  for (int i = 0; i < 2; i++) {
    fixture_stop (fx);
    fx->image[0] = i == 0 ? file : device;
    fixture_start (fx);
    report = epoch_log_report (disk_epoch_log (fx->disk[0]));
    g_assert_false (report->same_image);
    g_assert_nonnull (strstr (report->reason, "another file or device"));
  }
  teardown ();
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/fleece/block-device/io", test_io);
  g_test_add_func ("/fleece/block-device/exclusive", test_exclusive);
  g_test_add_func ("/fleece/block-device/replaced", test_replaced);
  g_test_add_func ("/fleece/block-device/resized", test_resized);
  return g_test_run ();
}
