/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The mirror of a durable map says what is on the disk: not what is on its way
 * there, not what came while it was, and nothing more once a sync has
 * failed. */
#include "config.h"

#include <errno.h>

#include "bitmap-test.h"
#include "bitmap/durable-map.h"
#include "tests/storage-hook.h"

#define GRAN UINT64_C (65536)
#define SIZE (10000 * GRAN)     /* three sectors */

typedef struct {
  DurableMap *dm;               /* NULL: being created */
  DirtyBitmap *bm;
  unsigned syncs;
  int result;
} Watch;

/* In the middle of a sync. */
static int
watch (void *opaque, const struct hook_info *info)
{
  Watch *w = opaque;

  if (info->call != HOOK_SYNC || w->dm == NULL)
    return 0;
  w->syncs++;
  g_assert_false (durable_map_covers (w->dm, 5 * GRAN, 1));
  dirty_bitmap_set (w->bm, 6 * GRAN, 1);        /* too late for this one */
  return w->result;
}

static void
set_up (Watch *w, Storage **storage, char **dir)
{
  GError *error = NULL;

  *w = (Watch) { 0 };
  *dir = test_dir_new ();
  *storage = storage_hook_new (watch, w);
  w->bm = dirty_bitmap_new (SIZE, GRAN, &error);
  g_assert_no_error (error);
  w->dm = durable_map_create (*storage, *dir, "vda", 3, SIZE, GRAN, &error);
  g_assert_no_error (error);
}

static void
tear_down (Watch *w, Storage *storage, char *dir)
{
  durable_map_close (w->dm);
  dirty_bitmap_free (w->bm);
  test_dir_free (dir);
  free (storage);
}

static void
test_mirror (void)
{
  Storage *storage;
  char *dir;
  Watch w;

  set_up (&w, &storage, &dir);
  dirty_bitmap_set (w.bm, 5 * GRAN, 1);
  dirty_bitmap_set (w.bm, 9000 * GRAN, 3 * GRAN);
  g_assert_cmpint (durable_map_sync (w.dm, w.bm), ==, 0);
  g_assert_cmpuint (w.syncs, ==, 1);
  g_assert_true (durable_map_covers (w.dm, 5 * GRAN, GRAN));
  g_assert_true (durable_map_covers (w.dm, 6 * GRAN - 1, 1));
  g_assert_false (durable_map_covers (w.dm, 6 * GRAN, 1));
  /* All of a range counts, at both ends. */
  g_assert_false (durable_map_covers (w.dm, 5 * GRAN, GRAN + 1));
  g_assert_false (durable_map_covers (w.dm, 5 * GRAN - 1, 2));
  g_assert_true (durable_map_covers (w.dm, 9000 * GRAN, 3 * GRAN));
  g_assert_false (durable_map_covers (w.dm, 9000 * GRAN, 3 * GRAN + 1));
  g_assert_false (durable_map_covers (w.dm, 5 * GRAN, 8999 * GRAN));
  tear_down (&w, storage, dir);
}

/* What a failed sync leaves on the disk is unknown, also if a later one
 * works. */
static void
test_failed (void)
{
  Storage *storage;
  char *dir;
  Watch w;

  set_up (&w, &storage, &dir);
  w.result = -EIO;
  dirty_bitmap_set (w.bm, 5 * GRAN, 1);
  g_assert_cmpint (durable_map_sync (w.dm, w.bm), ==, -EIO);
  g_assert_false (durable_map_covers (w.dm, 5 * GRAN, 1));
  w.result = 0;
  g_assert_cmpint (durable_map_sync (w.dm, w.bm), ==, -EIO);
  g_assert_false (durable_map_covers (w.dm, 5 * GRAN, 1));
  g_assert_cmpuint (w.syncs, ==, 1);
  tear_down (&w, storage, dir);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/bitmap/durable-map/mirror", test_mirror);
  g_test_add_func ("/bitmap/durable-map/failed", test_failed);
  return g_test_run ();
}
