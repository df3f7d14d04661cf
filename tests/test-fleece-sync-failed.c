/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Once a sync of the image has failed, later ones succeed although what was
 * written may never reach the disk.  So a checkpoint that is made after it must
 * not vouch for those blocks: they were clean since it, and a power cut that
 * took them back was missed by the next increment. */
#include <config.h>

#include <errno.h>
#include <stdatomic.h>

#include "tests/fleece-fixture.h"
#include "tests/storage-hook.h"

#define SIZE (1024 * 1024)
#define GRANULE 65536

static atomic_bool failing;

static int
hook (void *opaque, const struct hook_info *info)
{
  if (info->call == HOOK_SYNC && g_str_has_suffix (info->path, ".img") &&
      atomic_exchange (&failing, false))
    return -EIO;
  return 0;
}

static Fixture *
setup (void)
{
  Fixture *fx = fixture_new_hooked (1, SIZE, hook, NULL);

  fixture_start (fx);
  fixture_write (fx->disk[0], 0, GRANULE, 'a');
  return fx;
}

/* Increments go on having the first granule, and no other. */
static void
check (Fixture *fx)
{
  uint64_t boundary[2];

  for (unsigned i = 0; i < 2; i++) {
    fixture_cut (fx, 0, NULL, &boundary[i]);
    g_assert_true (fixture_is_dirty (fx, 0, boundary[i], 0, 0));
    g_assert_false (fixture_is_dirty (fx, 0, boundary[i], 0, GRANULE));
  }
  fixture_crash (fx);
  fixture_lose_runtime (fx);
  fixture_start (fx);
  for (unsigned i = 0; i < 2; i++)
    g_assert_true (fixture_is_dirty (fx, 0, boundary[i], 0, 0));
  fixture_free (fx);
}

static void
test_flush (void)
{
  Fixture *fx = setup ();

  atomic_store (&failing, true);
  g_assert_cmpint (disk_flush (fx->disk[0]), ==, -EIO);
  g_assert_cmpint (disk_flush (fx->disk[0]), ==, 0);
  check (fx);
}

static void
test_cut (void)
{
  Fixture *fx = setup ();
  FleeceCutDisk cd = { .disk = fx->disk[0] };

  atomic_store (&failing, true);
  g_assert_false (fleece_cut (fx->f, &cd, 1, NULL, NULL, NULL));
  check (fx);
}

/* As before. */
static void
test_good (void)
{
  Fixture *fx = setup ();
  uint64_t boundary;

  g_assert_cmpint (disk_flush (fx->disk[0]), ==, 0);
  fixture_cut (fx, 0, NULL, &boundary);
  g_assert_false (fixture_is_dirty (fx, 0, boundary, 0, 0));
  fixture_free (fx);
}

int
main (int argc, char *argv[])
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/sync-failed/flush", test_flush);
  g_test_add_func ("/sync-failed/cut", test_cut);
  g_test_add_func ("/sync-failed/good", test_good);
  return g_test_run ();
}
