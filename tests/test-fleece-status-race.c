/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Block status of a snapshot looks at the presence of blocks, then for holes in
 * the base.  A guest that preserves and punches in between must not make it
 * promise zeroes over the snapshot's data. */
#include <config.h>

#include <errno.h>

#include "tests/fleece-fixture.h"
#include "tests/storage-hook.h"

#define SIZE (4 * 1024 * 1024)
#define BLOCK 4096
#define AT (1024 * 1024)

static Fixture *fx;

struct status {
  Snapshot *snap;
  uint64_t offset, length;      /* asked for */
  uint64_t told, zero;          /* bytes */
  unsigned runs;
};

static int
add_run (void *opaque, uint64_t length, bool zero)
{
  struct status *st = opaque;

  st->told += length;
  if (zero)
    st->zero += length;
  st->runs++;
  return 0;
}

static int
get_status (void *opaque)
{
  struct status *st = opaque;

  return snapshot_extents (st->snap, st->length, st->offset, add_run, st);
}

static void
setup (struct status *st, uint64_t offset, uint64_t length)
{
  fx = fixture_new_gated (1, SIZE);
  fixture_start_full (fx, 'a');
  *st = (struct status) {
    .snap = fixture_cut (fx, 0, "s", NULL),
    .offset = offset, .length = length,
  };
}

static void
teardown (struct status *st)
{
  fixture_end (st->snap);
  fixture_free (fx);
}

/* Zeroes with a punch over [offset, offset + length) while the status is
 * between its two looks. */
static void
race (struct status *st, uint64_t offset, uint64_t length, bool trim)
{
  FixtureCall *call;

  hook_gate_arm (fx->gate, HOOK_RUN, "d0.img", AT, BLOCK);
  call = fixture_call (get_status, st);
  hook_gate_wait_held (fx->gate);
  if (trim) {                   /* punches what is preserved */
    fixture_write (fx->disk[0], offset, length, 'b');
    g_assert_cmpint (disk_trim (fx->disk[0], length, offset, false), ==, 0);
  }
  else
    g_assert_cmpint (disk_zero (fx->disk[0], length, offset, DISK_MAY_PUNCH),
                     ==, 0);
  hook_gate_release (fx->gate, 0);
  g_assert_cmpint (fixture_call_join (call), ==, 0);
  g_assert_cmpuint (st->told, ==, st->length);
  g_assert_cmpuint (st->zero, ==, 0);
  fixture_check_snapshot (st->snap, 0, SIZE, 'a');
}

static void
test_whole (void)
{
  struct status st;

  setup (&st, 0, SIZE);
  race (&st, 0, SIZE, false);
  teardown (&st);
}

static void
test_first_block (void)
{
  struct status st;

  setup (&st, AT, SIZE - AT);
  race (&st, AT, BLOCK, false);
  teardown (&st);
}

static void
test_middle (void)
{
  struct status st;

  setup (&st, AT - 1536, SIZE / 2 + 512);
  race (&st, AT + 5 * BLOCK, 9 * BLOCK, false);
  teardown (&st);
}

static void
test_trim (void)
{
  struct status st;

  setup (&st, 0, SIZE);
  race (&st, AT, 16 * BLOCK, true);
  teardown (&st);
}

/* The snapshot breaks in between, and then its blocks are punched without being
 * preserved: a caller that stops at the first run must get the error. */
static int
stop_at_once (void *opaque, uint64_t length, bool zero)
{
  add_run (opaque, length, zero);
  return 1;
}

static int
get_status_once (void *opaque)
{
  struct status *st = opaque;

  return snapshot_extents (st->snap, st->length, st->offset, stop_at_once, st);
}

static void
test_broken_meanwhile (void)
{
  struct status st;
  FixtureCall *call;

  setup (&st, AT, 64 * BLOCK);
  hook_gate_arm (fx->gate, HOOK_RUN, "d0.img", AT, BLOCK);
  call = fixture_call (get_status_once, &st);
  hook_gate_wait_held (fx->gate);
  snapshot_ref (st.snap);
  fixture_end (st.snap);        /* as good as broken */
  g_assert_cmpint (disk_zero (fx->disk[0], 64 * BLOCK, AT, DISK_MAY_PUNCH), ==,
                   0);
  hook_gate_release (fx->gate, 0);
  g_assert_cmpint (fixture_call_join (call), ==, -ESHUTDOWN);
  g_assert_cmpuint (st.runs, ==, 0);
  teardown (&st);
}

/* Quiet, and exact: data, preserved data, preserved holes and holes. */
static void
test_quiet (void)
{
  struct status st;

  setup (&st, 0, SIZE);
  fixture_end (st.snap);
  g_assert_cmpint (disk_zero (fx->disk[0], SIZE / 2, 0, DISK_MAY_PUNCH), ==,
                   0);
  st.snap = fixture_cut (fx, 0, "t", NULL);
  g_assert_cmpint (get_status (&st), ==, 0);
  g_assert_cmpuint (st.told, ==, SIZE);
  g_assert_cmpuint (st.zero, ==, SIZE / 2);
  g_assert_cmpuint (st.runs, ==, 2);
  for (uint64_t at = 0; at < SIZE; at += 128 * 1024)
    fixture_write (fx->disk[0], at + 1000, 10000, 'c');
  st.told = st.zero = st.runs = 0;
  g_assert_cmpint (get_status (&st), ==, 0);
  g_assert_cmpuint (st.told, ==, SIZE);
  g_assert_cmpuint (st.zero, ==, SIZE / 2);
  g_assert_cmpuint (st.runs, ==, 2);
  teardown (&st);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/fleece/status-race/whole", test_whole);
  g_test_add_func ("/fleece/status-race/first-block", test_first_block);
  g_test_add_func ("/fleece/status-race/middle", test_middle);
  g_test_add_func ("/fleece/status-race/trim", test_trim);
  g_test_add_func ("/fleece/status-race/broken-meanwhile",
                   test_broken_meanwhile);
  g_test_add_func ("/fleece/status-race/quiet", test_quiet);
  return g_test_run ();
}
