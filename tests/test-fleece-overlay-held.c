/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A write that the image holds back while a layer comes onto the disk: it is
 * not lost under what is written to that, and a layer that could not come on
 * goes again. */
#include <config.h>

#include <errno.h>

#include "bitmap/bitmap-error.h"
#include "tests/overlay-fixture.h"

#define SIZE (1024 * 1024)
#define BLOCK 4096
#define HELD (256 * 1024)       /* offset of the write that is held */

static Fixture *fx;

static int
put_on (void *opaque)
{
  return overlay_fixture_try_put_on (fx, 0, "l1", NULL, false, opaque)
    ? 0 : -1;
}

static FixtureCall *
hold_a_write (void)
{
  FixtureCall *held;

  hook_gate_arm (fx->gate, HOOK_PWRITE, "d0.img", HELD, BLOCK);
  held = fixture_call_write (fx->disk[0], HELD, 100, 'b');
  hook_gate_wait_held (fx->gate);
  return held;
}

static void
test_held_write (void)
{
  FixtureCall *held, *on, *same, *zero;
  Disk *disk;

  fx = fixture_new_gated (1, SIZE);
  fixture_start_full (fx, 'a');
  disk = fx->disk[0];
  held = hold_a_write ();
  on = fixture_call (put_on, NULL);
  g_assert_true (fixture_wait_waiters (disk, 1, on));
  /* Elsewhere, nobody waits. */
  fixture_write (disk, HELD + BLOCK + 10, 10, 'c');
  fixture_check_disk (disk, HELD + BLOCK + 10, 10, 'c');
  /* Another part of its block. */
  same = fixture_call_write (disk, HELD + 200, 100, 'd');
  g_assert_true (fixture_wait_waiters (disk, 2, same));
  zero = fixture_call_write (disk, HELD + BLOCK - 1, 1, 'e');
  g_assert_true (fixture_wait_waiters (disk, 3, zero));
  hook_gate_release (fx->gate, 0);
  g_assert_cmpint (fixture_call_join (held), ==, 0);
  g_assert_cmpint (fixture_call_join (on), ==, 0);
  g_assert_cmpint (fixture_call_join (same), ==, 0);
  g_assert_cmpint (fixture_call_join (zero), ==, 0);
  fixture_check_disk (disk, HELD, 100, 'b');
  fixture_check_disk (disk, HELD + 100, 100, 'a');
  fixture_check_disk (disk, HELD + 200, 100, 'd');
  fixture_check_disk (disk, HELD + BLOCK - 1, 1, 'e');
  /* The image is as it was at the cut, with the write from before it. */
  overlay_fixture_check_file (fx->image[0], HELD, 100, 'b');
  overlay_fixture_check_file (fx->image[0], HELD + 100, BLOCK, 'a');
  fixture_free (fx);
}

/* A cut that waited too long: what was written to its layer meanwhile is not
 * lost, and the layer is. */
static void
test_taken_off (void)
{
  g_autoptr (GError) error = NULL;
  FixtureCall *held, *write;
  Disk *disk;

  fx = fixture_new_gated (1, SIZE);
  fx->drain_timeout_ms = 300;
  fixture_start_full (fx, 'a');
  disk = fx->disk[0];
  held = hold_a_write ();
  g_assert_cmpint (put_on (&error), ==, -1);
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_TIMEOUT);
  g_clear_error (&error);
  fixture_write (disk, 10, 10, 'c');
  write = fixture_call_write (disk, HELD + 200, 100, 'd');
  g_assert_false (fleece_settle_overlays (fx->f, &error));
  g_clear_error (&error);
  hook_gate_release (fx->gate, 0);
  g_assert_cmpint (fixture_call_join (held), ==, 0);
  g_assert_cmpint (fixture_call_join (write), ==, 0);
  fleece_settle_overlays (fx->f, &error);
  g_assert_no_error (error);
  overlay_fixture_check_chain (fx, 0, "image");
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
  overlay_fixture_check_file (fx->image[0], 10, 10, 'c');
  overlay_fixture_check_file (fx->image[0], HELD, 100, 'b');
  overlay_fixture_check_file (fx->image[0], HELD + 200, 100, 'd');
  /* Its name is free. */
  g_assert_cmpint (put_on (&error), ==, 0);
  fixture_free (fx);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/overlay/held-write", test_held_write);
  g_test_add_func ("/overlay/taken-off", test_taken_off);
  return g_test_run ();
}
