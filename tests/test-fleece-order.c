/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Order over disks: a write that was acknowledged before another was sent is in
 * every snapshot that has the other, whichever disks they are on. */
#include <config.h>

#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#include "fleece/fleece-internal.h"
#include "tests/fleece-fixture.h"
#include "tests/storage-hook.h"

#define SIZE (1024 * 1024)
#define BLOCK 4096
#define NR_WRITERS 3
#define NR_CUTS 40
#define MIN_WRITES 200          /* a writer */

typedef struct {
  unsigned index;
  bool reverse;                 /* disk 1 first */
} Writer;

static Fixture *fx;
static atomic_bool cuts_done;

static int
write_stamps (void *opaque)
{
  const Writer *w = opaque;
  Disk *first = fx->disk[w->reverse], *second = fx->disk[!w->reverse];
  char buf[BLOCK] = { 0 };

  for (uint64_t stamp = 1; stamp <= MIN_WRITES || !atomic_load (&cuts_done);
       stamp++) {
    memcpy (buf, &stamp, sizeof stamp);
    g_assert_cmpint (disk_pwrite (first, buf, BLOCK, w->index * BLOCK, false),
                     ==, 0);
    g_assert_cmpint (disk_pwrite (second, buf, BLOCK, w->index * BLOCK, false),
                     ==, 0);
  }
  return 0;
}

static uint64_t
stamp_in (Snapshot *snap, unsigned index)
{
  uint64_t stamp;

  g_assert_cmpint (snapshot_pread (snap, &stamp, sizeof stamp, index * BLOCK),
                   ==, 0);
  return stamp;
}

static void
check (const FleeceCutDisk cd[2], const Writer *writers)
{
  for (unsigned i = 0; i < NR_WRITERS; i++) {
    const Writer *w = &writers[i];
    uint64_t first = stamp_in (cd[w->reverse].out_snapshot, i);
    uint64_t second = stamp_in (cd[!w->reverse].out_snapshot, i);

    /* Nor can it be more than one ahead. */
    g_assert_cmpuint (first, >=, second);
    g_assert_cmpuint (first, <=, second + 1);
  }
}

static int
cut_both (void *opaque)
{
  return fleece_cut (fx->f, opaque, 2, NULL, NULL, NULL) ? 0 : -1;
}

static void
test_order (void)
{
  Writer writers[NR_WRITERS];
  FixtureCall *call[NR_WRITERS];
  FleeceCutDisk last[2] = { { 0 } };

  fx = fixture_new (2, SIZE);
  fixture_start (fx);
  for (unsigned i = 0; i < NR_WRITERS; i++) {
    writers[i] = (Writer) { .index = i, .reverse = i % 2 };
    call[i] = fixture_call (write_stamps, &writers[i]);
  }
  for (unsigned n = 0; n < NR_CUTS; n++) {
    g_autofree char *name = g_strdup_printf ("s%u", n);
    g_autoptr (GError) error = NULL;
    /* In either order of mention. */
    FleeceCutDisk cd[2] = {
      { .disk = fx->disk[n % 2], .snapshot = name },
      { .disk = fx->disk[1 - n % 2], .snapshot = name },
    };

    fleece_cut (fx->f, cd, 2, NULL, NULL, &error);
    g_assert_no_error (error);
    if (n % 2 == 1) {
      FleeceCutDisk tmp = cd[0];

      cd[0] = cd[1];
      cd[1] = tmp;
    }
    check (cd, writers);
    if (n > 0) {                /* again, with layers and writes on top */
      check (last, writers);
      fixture_end (last[0].out_snapshot);
      fixture_end (last[1].out_snapshot);
    }
    last[0] = cd[0];
    last[1] = cd[1];
  }
  atomic_store (&cuts_done, true);
  for (unsigned i = 0; i < NR_WRITERS; i++)
    g_assert_cmpint (fixture_call_join (call[i]), ==, 0);
  check (last, writers);
  fixture_end (last[0].out_snapshot);
  fixture_end (last[1].out_snapshot);
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
  fixture_free (fx);
}

/* The cut stands still between the two disks' flips: writes to both are on the
 * same side of it. */
static void
test_between_flips (void)
{
  FixtureCall *call;
  FleeceCutDisk cd[2];
  Segment *before;
  char buf[BLOCK] = { 0 };

  fx = fixture_new_gated (2, SIZE);
  fixture_start (fx);
  before = atomic_load (&fx->disk[0]->newest);
  for (unsigned i = 0; i < 2; i++)
    cd[i] = (FleeceCutDisk) { .disk = fx->disk[i], .snapshot = "s" };
  /* The last time that it looks for d1's snapshots before the flip. */
  hook_gate_arm (fx->gate, HOOK_OPEN, "-2.layer", 0, 0);
  call = fixture_call (cut_both, cd);
  hook_gate_wait_held (fx->gate);
  pthread_mutex_lock (&fx->disk[1]->snap_lock);
  hook_gate_release (fx->gate, 0);
  while (atomic_load (&fx->disk[0]->newest) == before)
    sched_yield ();
  for (uint64_t stamp = 1; stamp <= 2000; stamp++) {
    memcpy (buf, &stamp, sizeof stamp);
    for (unsigned i = 0; i < 2; i++)
      g_assert_cmpint (disk_pwrite (fx->disk[i], buf, BLOCK, 0, false), ==, 0);
  }
  pthread_mutex_unlock (&fx->disk[1]->snap_lock);
  g_assert_cmpint (fixture_call_join (call), ==, 0);
  for (unsigned i = 0; i < 2; i++) {
    g_assert_cmpuint (stamp_in (cd[i].out_snapshot, 0), ==, 2000);
    g_assert_false (fixture_is_dirty (fx, i, cd[i].boundary, 0, 0));
  }
  for (unsigned i = 0; i < 2; i++)
    fixture_end (cd[i].out_snapshot);
  fixture_free (fx);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/fleece/order/two-disks", test_order);
  g_test_add_func ("/fleece/order/between-flips", test_between_flips);
  return g_test_run ();
}
