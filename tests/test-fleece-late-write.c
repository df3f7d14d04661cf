/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A write of the old epoch that preserves after the next cut's flip does so in
 * its own epoch's layer, and an overlapping write of the new epoch waits for it
 * (durability.md H6b). */
#include <config.h>

#include <errno.h>

#include "tests/fleece-fixture.h"
#include "tests/storage-hook.h"

#define SIZE (8 * 1024 * 1024)
#define BLOCK 4096
#define AT (1024 * 1024)

static Fixture *fx;

static void
setup (void)
{
  fx = fixture_new_gated (1, SIZE);
  fixture_start_full (fx, '0');
}

static void
test_two_layers (void)
{
  Snapshot *s1, *s2;
  FixtureCall *w1, *cut, *w2;
  g_autoptr (GError) error = NULL;

  setup ();
  s1 = fixture_cut (fx, 0, "s1", NULL);
  /* W1 is about to read the old block for s1. */
  hook_gate_arm (fx->gate, HOOK_PREAD, "d0.img", AT, BLOCK);
  w1 = fixture_call_write (fx->disk[0], AT, BLOCK, '1');
  hook_gate_wait_held (fx->gate);
  cut = fixture_call_cut (fx, 0, "s2");
  g_assert_true (fixture_wait_waiters (fx->disk[0], 1, cut));
  w2 = fixture_call_write (fx->disk[0], AT, BLOCK, '2');
  g_assert_true (fixture_wait_waiters (fx->disk[0], 2, w2));
  fixture_check_snapshot (s1, AT, BLOCK, '0');
  fixture_check_disk (fx->disk[0], AT, BLOCK, '0');

  hook_gate_release (fx->gate, 0);
  g_assert_cmpint (fixture_call_join (w1), ==, 0);
  fixture_check_snapshot (s1, AT, BLOCK, '0');
  g_assert_cmpint (fixture_call_join (w2), ==, 0);
  s2 = fixture_call_join_cut (cut, NULL, &error);
  g_assert_no_error (error);
  fixture_check_snapshot (s1, AT, BLOCK, '0');
  fixture_check_snapshot (s2, AT, BLOCK, '1');
  fixture_check_disk (fx->disk[0], AT, BLOCK, '2');
  /* Each layer has its own copy, so the older one may go first. */
  fixture_end (s1);
  fixture_check_snapshot (s2, AT, BLOCK, '1');
  fixture_end (s2);
  fixture_free (fx);
}

static int
cut_durable (void *opaque)
{
  FleeceCutDisk *cd = opaque;

  return fleece_cut (fx->f, cd, 1, NULL, NULL, NULL) ? 0 : -EIO;
}

/* A durable layer copies whole stripes, and the new write waited only for older
 * ones to its own blocks: the snapshot was without a write that was beside
 * it. */
static void
test_same_stripe (void)
{
  FixtureCall *w1, *cut, *w2;
  FleeceCutDisk cd;

  setup ();
  hook_gate_arm (fx->gate, HOOK_PWRITE, "d0.img", AT + BLOCK, BLOCK);
  w1 = fixture_call_write (fx->disk[0], AT + BLOCK, BLOCK, '1');
  hook_gate_wait_held (fx->gate);
  cd = (FleeceCutDisk) { .disk = fx->disk[0], .snapshot = "s",
                         .durable = true };
  cut = fixture_call (cut_durable, &cd);
  g_assert_true (fixture_wait_waiters (fx->disk[0], 1, cut));
  w2 = fixture_call_write (fx->disk[0], AT, BLOCK, '2');
  g_assert_true (fixture_wait_waiters (fx->disk[0], 2, w2));
  hook_gate_release (fx->gate, 0);
  g_assert_cmpint (fixture_call_join (w1), ==, 0);
  g_assert_cmpint (fixture_call_join (w2), ==, 0);
  g_assert_cmpint (fixture_call_join (cut), ==, 0);
  fixture_check_snapshot (cd.out_snapshot, AT, BLOCK, '0');
  fixture_check_snapshot (cd.out_snapshot, AT + BLOCK, BLOCK, '1');
  fixture_end (cd.out_snapshot);
  fixture_free (fx);
}

struct reader {
  Snapshot *snap;
  char buf[3 * BLOCK];
};

static int
read_snapshot (void *opaque)
{
  struct reader *r = opaque;

  return snapshot_pread (r->snap, r->buf, sizeof r->buf, AT - BLOCK);
}

/* A reader found the block nowhere and is about to read the base; the guest
 * overwrites it.  Its second look must find that. */
static void
test_reader_looks_again (void)
{
  struct reader r;
  FixtureCall *call;

  setup ();
  r.snap = fixture_cut (fx, 0, "s", NULL);
  hook_gate_arm (fx->gate, HOOK_PREAD, "d0.img", AT, BLOCK);
  call = fixture_call (read_snapshot, &r);
  hook_gate_wait_held (fx->gate);
  fixture_write (fx->disk[0], AT, BLOCK, '1');
  hook_gate_release (fx->gate, 0);
  g_assert_cmpint (fixture_call_join (call), ==, 0);
  for (unsigned i = 0; i < sizeof r.buf; i++)
    g_assert_cmpint (r.buf[i], ==, '0');
  fixture_end (r.snap);
  fixture_free (fx);
}

/* The same over an end of another snapshot and a cut. */
static void
test_reader_looks_again_in_newer_layers (void)
{
  struct reader r;
  FixtureCall *call;
  Snapshot *other, *newer;

  setup ();
  other = fixture_cut (fx, 0, "other", NULL);
  r.snap = fixture_cut (fx, 0, "s", NULL);
  hook_gate_arm (fx->gate, HOOK_PREAD, "d0.img", AT, BLOCK);
  call = fixture_call (read_snapshot, &r);
  hook_gate_wait_held (fx->gate);
  fixture_end (other);
  newer = fixture_cut (fx, 0, "newer", NULL);
  fixture_write (fx->disk[0], AT, BLOCK, '1');
  fixture_end (newer);
  hook_gate_release (fx->gate, 0);
  g_assert_cmpint (fixture_call_join (call), ==, 0);
  for (unsigned i = 0; i < sizeof r.buf; i++)
    g_assert_cmpint (r.buf[i], ==, '0');
  fixture_end (r.snap);
  fixture_free (fx);
}

/* A reader that is in the base while its snapshot ends. */
static void
test_reader_of_ended (void)
{
  struct reader r;
  FixtureCall *call;
  g_autoptr (GError) error = NULL;

  setup ();
  r.snap = fixture_cut (fx, 0, "s", NULL);
  hook_gate_arm (fx->gate, HOOK_PREAD, "d0.img", AT, BLOCK);
  call = fixture_call (read_snapshot, &r);
  hook_gate_wait_held (fx->gate);
  g_assert_true (snapshot_end (r.snap, &error));
  fixture_write (fx->disk[0], AT, BLOCK, '1');
  hook_gate_release (fx->gate, 0);
  g_assert_cmpint (fixture_call_join (call), ==, -ESHUTDOWN);
  snapshot_unref (r.snap);
  fixture_free (fx);
}

/* The old data is on its way to the scratch file: it counts as preserved only
 * once it is there, and the disk is overwritten only after that. */
static void
test_reader_while_preserving (void)
{
  FixtureCall *write;
  Snapshot *snap;

  setup ();
  snap = fixture_cut (fx, 0, "s", NULL);
  hook_gate_arm (fx->gate, HOOK_PWRITE, ".layer", AT, BLOCK);
  write = fixture_call_write (fx->disk[0], AT, BLOCK, '1');
  hook_gate_wait_held (fx->gate);
  fixture_check_disk (fx->disk[0], AT, BLOCK, '0');
  fixture_check_snapshot (snap, 0, SIZE, '0');
  hook_gate_release (fx->gate, 0);
  g_assert_cmpint (fixture_call_join (write), ==, 0);
  fixture_check_disk (fx->disk[0], AT, BLOCK, '1');
  fixture_check_snapshot (snap, 0, SIZE, '0');
  fixture_end (snap);
  fixture_free (fx);
}

/* A late write's layer has a limit that is used up, and its snapshot is broken
 * already when the write preserves; once it was asked to try again for ever. */
static void
test_late_over_limit (void)
{
  FleeceCutDisk cd;
  Snapshot *s0, *s1, *s2;
  FixtureCall *w1, *cut;
  g_autoptr (GError) error = NULL;

  setup ();
  s0 = fixture_cut (fx, 0, "s0", NULL);
  cd = (FleeceCutDisk) {
    .disk = fx->disk[0], .snapshot = "s1", .scratch_limit = BLOCK,
  };
  fleece_cut (fx->f, &cd, 1, NULL, NULL, &error);
  g_assert_no_error (error);
  s1 = cd.out_snapshot;
  hook_gate_arm (fx->gate, HOOK_PREAD, "d0.img", AT, 2 * BLOCK);
  w1 = fixture_call_write (fx->disk[0], AT, 2 * BLOCK, '1');
  hook_gate_wait_held (fx->gate);
  cut = fixture_call_cut (fx, 0, "s2");
  g_assert_true (fixture_wait_waiters (fx->disk[0], 1, cut));
  hook_gate_release (fx->gate, 0);
  g_assert_cmpint (fixture_call_join (w1), ==, 0);
  s2 = fixture_call_join_cut (cut, NULL, &error);
  g_assert_no_error (error);
  fixture_check_snapshot (s0, 0, SIZE, '0');
  fixture_check_snapshot (s2, AT, 2 * BLOCK, '1');
  fixture_end (s0);
  fixture_end (s1);
  fixture_end (s2);
  fixture_free (fx);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/fleece/late-write/same-stripe", test_same_stripe);
  g_test_add_func ("/fleece/late-write/two-layers", test_two_layers);
  g_test_add_func ("/fleece/late-write/reader-looks-again",
                   test_reader_looks_again);
  g_test_add_func ("/fleece/late-write/reader-looks-again-in-newer-layers",
                   test_reader_looks_again_in_newer_layers);
  g_test_add_func ("/fleece/late-write/reader-of-ended", test_reader_of_ended);
  g_test_add_func ("/fleece/late-write/reader-while-preserving",
                   test_reader_while_preserving);
  g_test_add_func ("/fleece/late-write/late-over-limit", test_late_over_limit);
  return g_test_run ();
}
