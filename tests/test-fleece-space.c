/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* No room: in the tmpfs of the maps, or less than the reserve where scratch
 * files are.  The snapshot breaks, the guest goes on. */
#include <config.h>

#include <errno.h>
#include <string.h>

#include "fleece/fleece-internal.h"
#include "tests/fleece-fixture.h"

#define MIB (1024 * 1024)
#define SIZE (16 * MIB)

static Fixture *fx;
static atomic_bool tmpfs_full;

/* Linked in place of runtime_map_reserve. */
int __real_runtime_map_reserve (RuntimeMap *map, size_t offset, size_t length);
int __wrap_runtime_map_reserve (RuntimeMap *map, size_t offset, size_t length);

int
__wrap_runtime_map_reserve (RuntimeMap *map, size_t offset, size_t length)
{
  if (atomic_load (&tmpfs_full))
    return -ENOSPC;
  return __real_runtime_map_reserve (map, offset, length);
}

static void
expect_broken (Snapshot *snap, const char *why)
{
  g_autofree char *reason = snapshot_reason (snap);
  char byte;

  g_assert_cmpstr (snapshot_state_name (snapshot_state (snap)), ==, "broken");
  g_assert_nonnull (strstr (reason, why));
  g_assert_cmpint (snapshot_pread (snap, &byte, 1, 0), ==, -EIO);
}

static void
test_tmpfs_full (void)
{
  Snapshot *snap;

  fx = fixture_new (1, SIZE);
  fixture_start (fx);
  fixture_write (fx->disk[0], 0, SIZE, 'a');
  snap = fixture_cut (fx, 0, "s", NULL);
  fixture_write (fx->disk[0], 0, 65536, 'b');
  atomic_store (&tmpfs_full, true);
  fixture_write (fx->disk[0], 65536, 65536, 'b');      /* a page it has */
  fixture_check_snapshot (snap, 0, SIZE, 'a');
  fixture_write (fx->disk[0], 8 * MIB, 65536, 'b');
  fixture_check_disk (fx->disk[0], 8 * MIB, 65536, 'b');
  expect_broken (snap, "No space");
  atomic_store (&tmpfs_full, false);
  fixture_end (snap);
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
  fixture_free (fx);
}

static void
test_reserve (void)
{
  g_autoptr (GError) error = NULL;
  FleeceCutDisk cd;
  Snapshot *snap;

  fx = fixture_new (1, SIZE);
  fixture_start (fx);
  fx->f->scratch_reserve_set = true;
  fx->f->scratch_reserve = 0;
  fixture_write (fx->disk[0], 0, SIZE, 'a');
  snap = fixture_cut (fx, 0, "s", NULL);
  fixture_write (fx->disk[0], 0, 6 * MIB, 'b');
  fixture_check_snapshot (snap, 0, SIZE, 'a');
  fx->f->scratch_reserve = UINT64_MAX;
  fixture_write (fx->disk[0], 6 * MIB, 6 * MIB, 'b');
  fixture_check_disk (fx->disk[0], 0, 12 * MIB, 'b');
  expect_broken (snap, "reserve");
  fixture_end (snap);
  cd = (FleeceCutDisk) { .disk = fx->disk[0], .snapshot = "t" };
  g_assert_false (fleece_cut (fx->f, &cd, 1, NULL, NULL, &error));
  g_assert_nonnull (strstr (error->message, "reserve"));
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
  fx->f->scratch_reserve = 0;
  fixture_end (fixture_cut (fx, 0, "t", NULL));
  fixture_free (fx);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/fleece/space/tmpfs-full", test_tmpfs_full);
  g_test_add_func ("/fleece/space/reserve", test_reserve);
  return g_test_run ();
}
