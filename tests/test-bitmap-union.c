/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The union of change sets of several granularities and disk sizes agrees with
 * a model of one bool a 4 KiB block. */
#include "config.h"

#include <string.h>

#include "bitmap-test.h"
#include "bitmap/dirty-bitmap.h"

#define BLOCK    UINT64_C (4096)
#define NR_MAX   150000u        /* blocks; above two Roaring chunks */

/* Marks what the set says, and what lies between its end and the disk's, at its
 * own granularity; set_size and granularity in bytes. */
static ChangeSet *
random_set (uint64_t set_size, uint32_t granularity, uint64_t disk_size,
            bool *model)
{
  GError *error = NULL;
  g_autoptr (DirtyBitmap) bm = dirty_bitmap_new (set_size, granularity, &error);
  uint64_t nr = (set_size + granularity - 1) / granularity;
  unsigned style = (unsigned) g_test_rand_int_range (0, 5);
  uint64_t run = style == 0 ? 1 : style == 1 ? 20 : style == 2 ? nr / 4 + 1 :
    style == 3 ? nr : 2;
  uint64_t step = style == 4 ? 3 : 0;
  ChangeSet *cs;

  g_assert_no_error (error);
  for (uint64_t n = 0, g = 0; nr > 0 && n < (step ? nr / step : 30);
       n++, g += step) {
    uint64_t first = step ? g : (uint64_t) (g_test_rand_double () *
                                            (double) nr);
    uint64_t end = MIN (nr, first + run);

    dirty_bitmap_set (bm, first * granularity, (end - first) * granularity);
    for (uint64_t b = first * granularity / BLOCK;
         b < end * granularity / BLOCK && b < NR_MAX; b++)
      model[b] = true;
  }
  if (set_size < disk_size)
    for (uint64_t b = set_size / BLOCK; b * BLOCK < disk_size; b++)
      model[b] = true;
  cs = dirty_bitmap_to_change_set (bm, &error);
  g_assert_no_error (error);
  return cs;
}

static void
check (const ChangeSet *cs, uint64_t disk_size, uint32_t granularity,
       const bool *model)
{
  uint64_t count = 0;

  g_assert_cmpuint (change_set_size (cs), ==, disk_size);
  g_assert_cmpuint (change_set_granularity (cs), ==, granularity);
  for (uint64_t offset = 0; offset < disk_size; offset += granularity) {
    bool want = false;

    for (uint64_t b = offset; b < offset + granularity && b < disk_size;
         b += BLOCK)
      want |= model[b / BLOCK];
    count += want;
    if (change_set_get (cs, offset) != want)
      g_error ("offset %" G_GUINT64_FORMAT ": want %d", offset, want);
  }
  g_assert_cmpuint (change_set_count (cs), ==, count);
}

static uint64_t
random_size (void)
{
  static const uint64_t blocks[] = {
    1, 15, 16, 17, 256, 1000, 65535, 65536, 65537, 131072, 149000,
  };
  uint64_t nr = blocks[g_test_rand_int_range (0, G_N_ELEMENTS (blocks))];

  return nr * BLOCK - (uint64_t) g_test_rand_int_range (0, 2) * 1000;
}

static void
test_random (bool mixed_granularity, bool mixed_size)
{
  static bool model[NR_MAX];

  for (int round = 0; round < 150; round++) {
    uint64_t disk_size = random_size ();
    size_t nr = (size_t) g_test_rand_int_range (1, 8);
    ChangeSet *sets[8];
    uint32_t finest = G_MAXUINT32, granularity = 4096;
    g_autoptr (ChangeSet) cs = NULL;
    GError *error = NULL;

    memset (model, 0, sizeof model);
    for (size_t i = 0; i < nr; i++) {
      if (mixed_granularity)
        granularity = 4096u << g_test_rand_int_range (0, 9);
      finest = MIN (finest, granularity);
      sets[i] = random_set (mixed_size ? random_size () : disk_size,
                            granularity, disk_size, model);
    }
    cs = change_set_or (sets, nr, disk_size, 1 << 20, &error);
    g_assert_no_error (error);
    check (cs, disk_size, finest, model);
    for (size_t i = 0; i < nr; i++)
      change_set_unref (sets[i]);
  }
}

static void
test_same_geometry (void)
{
  test_random (false, false);
}

static void
test_granularities (void)
{
  test_random (true, false);
}

static void
test_sizes (void)
{
  test_random (false, true);
}

static void
test_both (void)
{
  test_random (true, true);
}

static void
test_none (void)
{
  GError *error = NULL;
  g_autoptr (ChangeSet) cs = change_set_or (NULL, 0, 1 << 20, 65536, &error);

  g_assert_no_error (error);
  g_assert_cmpuint (change_set_granularity (cs), ==, 65536);
  g_assert_cmpuint (change_set_count (cs), ==, 0);
}

/* The inputs of a union are not changed by it. */
static void
test_inputs_kept (void)
{
  GError *error = NULL;
  static bool model[NR_MAX];
  g_autoptr (ChangeSet) a = random_set (100000 * BLOCK, BLOCK, 0, model);
  g_autoptr (ChangeSet) full = change_set_new_full (100000 * BLOCK, BLOCK,
                                                    &error);
  ChangeSet *sets[] = { a, full, full };
  uint64_t count = change_set_count (a);
  g_autoptr (ChangeSet) cs = change_set_or (sets, 3, 100000 * BLOCK, BLOCK,
                                            &error);

  g_assert_no_error (error);
  g_assert_cmpuint (change_set_count (cs), ==, 100000);
  g_assert_cmpuint (change_set_count (a), ==, count);
  for (uint64_t b = 0; b < 100000; b++)
    g_assert_cmpint (change_set_get (a, b * BLOCK), ==, model[b]);
}

/* A disk that grew past what its old granularity can number. */
static void
test_too_fine (void)
{
  GError *error = NULL;
  uint64_t old_size = UINT64_C (1) << 44, new_size = UINT64_C (3) << 44;
  g_autoptr (ChangeSet) old = change_set_new_empty (old_size, 4096, &error);
  g_autoptr (ChangeSet) cs = change_set_or (&old, 1, new_size, 4096, &error);
  uint64_t length;
  bool dirty;

  g_assert_no_error (error);
  g_assert_cmpuint (change_set_granularity (cs), ==, 16384);
  length = change_set_run (cs, 0, G_MAXUINT64, &dirty);
  g_assert_false (dirty);
  g_assert_cmpuint (length, ==, old_size);
  length = change_set_run (cs, old_size, G_MAXUINT64, &dirty);
  g_assert_true (dirty);
  g_assert_cmpuint (length, ==, new_size - old_size);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/bitmap/union/same-geometry", test_same_geometry);
  g_test_add_func ("/bitmap/union/granularities", test_granularities);
  g_test_add_func ("/bitmap/union/sizes", test_sizes);
  g_test_add_func ("/bitmap/union/both", test_both);
  g_test_add_func ("/bitmap/union/none", test_none);
  g_test_add_func ("/bitmap/union/inputs-kept", test_inputs_kept);
  g_test_add_func ("/bitmap/union/too-fine", test_too_fine);
  return g_test_run ();
}
