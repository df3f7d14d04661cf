/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Overlays that are not on their disk: written to beside it, then put into
 * effect on several disks at once, or not at all. */
#include <config.h>

#include <errno.h>
#include <string.h>

#include "bitmap/bitmap-error.h"
#include "tests/overlay-fixture.h"

#define K UINT64_C (1024)
#define M (K * K)
#define SIZE (M + 1000)

static Fixture *fx;
static Overlay *ov[2];

static void
make (unsigned i, bool zero)
{
  g_autoptr (GError) error = NULL;
  OverlayOptions options = { .name = "r", .zero = zero };

  ov[i] = overlay_new (fx->disk[i], &options, NULL, NULL, &error);
  g_assert_no_error (error);
}

static void
put (unsigned i, uint64_t offset, uint64_t length, int value)
{
  g_autofree char *buf = g_malloc (length);

  memset (buf, value, length);
  g_assert_cmpint (overlay_pwrite (ov[i], buf, length, offset, false), ==, 0);
}

static void
check (unsigned i, uint64_t offset, uint64_t length, int value)
{
  g_autofree char *buf = g_malloc (length);

  g_assert_cmpint (overlay_pread (ov[i], buf, length, offset), ==, 0);
  for (uint64_t j = 0; j < length; j++)
    g_assert_cmpint (buf[j], ==, value);
}

static void
setup (unsigned nr)
{
  fx = fixture_new (nr, SIZE);
  fixture_start_full (fx, 1);
}

static void
drop_refs (void)
{
  g_clear_pointer (&ov[0], overlay_unref);
  g_clear_pointer (&ov[1], overlay_unref);
}

static void
teardown (void)
{
  drop_refs ();
  fixture_free (fx);
}

static void
find (void)
{
  for (unsigned i = 0; i < fx->nr_disks; i++)
    ov[i] = overlay_find (fx->disk[i], "r");
}

static void
restart (bool killed)
{
  drop_refs ();
  if (killed)
    fixture_crash (fx);
  else
    fixture_stop (fx);
  fixture_start (fx);
  find ();
}

static bool
apply (GError **error)
{
  return fleece_apply_overlays (fx->f, ov, fx->nr_disks, NULL, NULL, error);
}

static int
add_run (void *opaque, uint64_t length, bool zero)
{
  g_string_append_printf (opaque, "%" G_GUINT64_FORMAT "%s ", length,
                          zero ? "z" : "");
  return 0;
}

static void
test_beside_the_disk (void)
{
  g_autoptr (GString) text = g_string_new (NULL);
  g_autoptr (GError) error = NULL;
  char byte = 0;

  setup (1);
  make (0, false);
  put (0, 5000, 100, 2);
  g_assert_cmpint (overlay_zero (ov[0], 8 * K, 64 * K, DISK_FUA), ==, 0);
  fixture_write (fx->disk[0], 300 * K, 10, 3);
  check (0, 0, 5000, 1);
  check (0, 5000, 100, 2);
  check (0, 64 * K, 8 * K, 0);
  check (0, 300 * K, 10, 3);
  fixture_check_disk (fx->disk[0], 0, 300 * K, 1);
  g_assert_cmpint (overlay_pread (ov[0], &byte, 1, SIZE), ==, -EINVAL);
  g_assert_cmpint (overlay_pwrite (ov[0], &byte, 1, SIZE, false), ==, -ENOSPC);
  g_assert_false (fleece_resize (fx->f, fx->disk[0], M, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_BUSY);
  g_clear_error (&error);
  overlay_discard (ov[0], NULL, NULL, &error);
  g_assert_no_error (error);
  g_assert_cmpint (overlay_pread (ov[0], &byte, 1, 0), ==, -ESHUTDOWN);
  g_assert_null (overlay_find (fx->disk[0], "r"));
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
  fixture_check_disk (fx->disk[0], 0, 300 * K, 1);
  drop_refs ();
  /* Over nothing. */
  make (0, true);
  put (0, 5000, 100, 2);
  check (0, 0, 5000, 0);
  check (0, 5000, 100, 2);
  g_assert_cmpint (overlay_extents (ov[0], 16 * K, 0, add_run, text), ==, 0);
  g_assert_true (g_str_has_prefix (text->str, "4096z 4096 "));
  teardown ();
}

static void
test_restart (void)
{
  setup (1);
  make (0, false);
  put (0, 5000, 100, 2);
  restart (true);
  check (0, 5000, 100, 2);
  put (0, 50000, 100, 3);
  restart (false);
  check (0, 50000, 100, 3);
  check (0, 51000, 100, 1);
  put (0, 60000, 100, 4);
  g_assert_cmpint (overlay_flush (ov[0]), ==, 0);
  drop_refs ();
  fixture_crash (fx);
  fixture_lose_runtime (fx);
  fixture_start (fx);
  find ();
  check (0, 60000, 100, 4);
  fixture_check_disk (fx->disk[0], 0, SIZE, 1);
  teardown ();
}

static void
test_apply (void)
{
  g_autoptr (GError) error = NULL;
  uint64_t boundary;
  Snapshot *snap;

  setup (2);
  make (0, false);
  make (1, true);
  put (0, 200 * K, 100, 2);
  put (1, 300 * K, 100, 3);
  snap = fixture_cut (fx, 0, "s", &boundary);
  g_assert_true (apply (&error));
  g_assert_no_error (error);
  fixture_check_disk (fx->disk[0], 0, 200 * K, 1);
  fixture_check_disk (fx->disk[0], 200 * K, 100, 2);
  fixture_check_disk (fx->disk[0], 200 * K + 100, 300 * K, 1);
  fixture_check_disk (fx->disk[1], 0, 300 * K, 0);
  fixture_check_disk (fx->disk[1], 300 * K, 100, 3);
  fixture_check_disk (fx->disk[1], 300 * K + 100, 300 * K, 0);
  fixture_check_snapshot (snap, 0, SIZE, 1);
  g_assert_true (fixture_is_dirty (fx, 0, boundary, 0, 200 * K));
  g_assert_false (fixture_is_dirty (fx, 0, boundary, 0, 0));
  g_assert_cmpint (overlay_pread (ov[0], &(char) { 0 }, 1, 0), ==,
                   -ESHUTDOWN);
  g_assert_false (apply (&error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID);
  fixture_write (fx->disk[0], 200 * K + 50, 100, 4);
  overlay_fixture_commit (fx, 0, "r", NULL);
  overlay_fixture_commit (fx, 1, "r", NULL);
  overlay_fixture_check_file (fx->image[0], 200 * K, 50, 2);
  overlay_fixture_check_file (fx->image[0], 200 * K + 50, 100, 4);
  overlay_fixture_check_file (fx->image[1], 0, 300 * K, 0);
  fixture_check_snapshot (snap, 0, SIZE, 1);
  fixture_end (snap);
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
  restart (true);
  g_assert_null (ov[0]);
  g_assert_true (fixture_is_dirty (fx, 0, boundary, 0, 200 * K));
  teardown ();
}

static bool
refuse (void *opaque, GError **error)
{
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO, "no");
  return false;
}

/* Nothing happened, and it can be done again. */
static void
test_apply_fails (void)
{
  g_autoptr (GError) error = NULL;

  setup (2);
  overlay_fixture_put_on (fx, 0, "l1");
  make (0, false);
  make (1, false);
  put (0, 200 * K, 100, 2);
  put (1, 200 * K, 100, 2);
  g_assert_false (fleece_apply_overlays (fx->f, ov, 2, refuse, NULL, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_IO);
  g_clear_error (&error);
  fixture_check_disk (fx->disk[0], 0, SIZE, 1);
  fixture_check_disk (fx->disk[1], 0, SIZE, 1);
  put (0, 100 * K, 100, 3);
  restart (true);
  fixture_check_disk (fx->disk[0], 0, SIZE, 1);
  /* A layer that came later is below it. */
  overlay_fixture_put_on (fx, 0, "l2");
  fixture_write (fx->disk[0], 200 * K + 10, 10, 9);
  g_assert_true (apply (&error));
  fixture_check_disk (fx->disk[0], 100 * K, 100, 3);
  fixture_check_disk (fx->disk[0], 200 * K, 100, 2);
  restart (true);
  overlay_fixture_check_chain (fx, 0, "r 8192, l2 4096, l1 0, image");
  fixture_check_disk (fx->disk[0], 200 * K, 100, 2);
  overlay_fixture_commit (fx, 0, NULL, NULL);
  fixture_check_disk (fx->disk[0], 200 * K, 100, 2);
  teardown ();
}

static void
do_apply (void)
{
  find ();
  apply (NULL);
  overlay_fixture_commit (fx, 0, "r", NULL);
  overlay_fixture_commit (fx, 1, "r", NULL);
}

/* All or nothing, on both disks, and dirty if so. */
static void
test_die_in_apply (void)
{
  bool died = true;

  for (unsigned at = 1; died; at += 1 + at / 6) {
    uint64_t boundary;
    char first;
    int now;

    fx = fixture_new_mortal (2, SIZE);
    fixture_start_full (fx, 1);
    fixture_cut (fx, 0, NULL, &boundary);
    make (0, false);
    make (1, at % 2);
    put (0, 200 * K, 100 * K, 2);
    put (1, 0, SIZE, 2);
    drop_refs ();
    fixture_stop (fx);
    died = fixture_run_dying (fx, do_apply, NULL, at);
    if (at % 3 == 0)
      fixture_lose_runtime (fx);
    fixture_start (fx);
    g_assert_cmpint (disk_pread (fx->disk[0], &first, 1, 200 * K), ==, 0);
    now = first;
    g_assert_true (now == 1 || now == 2);
    fixture_check_disk (fx->disk[0], 0, 200 * K, 1);
    fixture_check_disk (fx->disk[0], 200 * K, 100 * K, now);
    fixture_check_disk (fx->disk[0], 300 * K, SIZE - 300 * K, 1);
    fixture_check_disk (fx->disk[1], 0, SIZE, now);
    find ();
    g_assert_true ((ov[0] != NULL) == (now == 1));
    g_assert_true ((ov[1] != NULL) == (now == 1));
    if (now == 2)
      g_assert_true (fixture_is_dirty (fx, 0, boundary, 0, 250 * K));
    if (ov[0] != NULL)
      g_assert_true (apply (NULL));
    fixture_check_disk (fx->disk[1], 0, SIZE, 2);
    teardown ();
  }
}

int
main (int argc, char **argv)
{
  /* Thousands of syncs, of processes that are killed only. */
  g_setenv ("TMPDIR", "/dev/shm", TRUE);
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/overlay/beside-the-disk", test_beside_the_disk);
  g_test_add_func ("/overlay/restart", test_restart);
  g_test_add_func ("/overlay/apply", test_apply);
  g_test_add_func ("/overlay/apply-fails", test_apply_fails);
  g_test_add_func ("/overlay/die-in-apply", test_die_in_apply);
  return g_test_run ();
}
