/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A dirty bitmap, and the change set made of it, agree with one bool a
 * granule. */
#include "config.h"

#include <string.h>

#include "bitmap-test.h"
#include "bitmap/dirty-bitmap.h"

typedef struct {
  DirtyBitmap *bm;
  uint64_t size, nr;
  uint32_t granularity;
  bool *model;
} Fixture;

static void
setup (Fixture *f, uint64_t size, uint32_t granularity)
{
  GError *error = NULL;

  f->bm = dirty_bitmap_new (size, granularity, &error);
  g_assert_no_error (error);
  f->size = size;
  f->granularity = granularity;
  f->nr = (size + granularity - 1) / granularity;
  f->model = g_new0 (bool, f->nr + 1);
}

static void
teardown (Fixture *f)
{
  dirty_bitmap_free (f->bm);
  g_free (f->model);
}

static void
set (Fixture *f, uint64_t offset, uint64_t length)
{
  uint64_t end = length > G_MAXUINT64 - offset ? G_MAXUINT64 : offset + length;

  dirty_bitmap_set (f->bm, offset, length);
  if (length > 0 && offset < f->size)
    for (uint64_t g = offset / f->granularity;
         g < f->nr && g * f->granularity < end; g++)
      f->model[g] = true;
}

static void
check_runs (Fixture *f, const ChangeSet *cs, uint64_t limit)
{
  uint64_t offset = 0;

  for (uint64_t end = 0; offset < f->size;) {
    bool dirty;
    uint64_t length = change_set_run (cs, offset, limit, &dirty);
    uint64_t g = offset / f->granularity;

    /* Still in the run found last time? */
    end = MAX (end, g);
    while (end < f->nr && f->model[end] == f->model[g])
      end++;
    g_assert_cmpint (dirty, ==, f->model[g]);
    g_assert_cmpuint (length, ==,
                      MIN (limit, MIN (f->size, end * f->granularity) -
                                  offset));
    offset += length;
  }
}

static void
check (Fixture *f)
{
  GError *error = NULL;
  g_autoptr (ChangeSet) cs = dirty_bitmap_to_change_set (f->bm, &error);
  uint64_t count = 0;

  g_assert_no_error (error);
  for (uint64_t g = 0; g < f->nr; g++) {
    uint64_t first = g * f->granularity;
    uint64_t last = MIN (f->size, first + f->granularity) - 1;

    count += f->model[g];
    if (dirty_bitmap_get (f->bm, first) != f->model[g] ||
        dirty_bitmap_get (f->bm, last) != f->model[g] ||
        change_set_get (cs, first) != f->model[g] ||
        change_set_get (cs, last) != f->model[g])
      g_error ("granule %" G_GUINT64_FORMAT ": want %d", g, f->model[g]);
  }
  g_assert_cmpuint (dirty_bitmap_count (f->bm), ==, count);
  g_assert_cmpuint (change_set_count (cs), ==, count);
  g_assert_cmpuint (change_set_size (cs), ==, f->size);
  g_assert_cmpuint (change_set_granularity (cs), ==, f->granularity);
  check_runs (f, cs, G_MAXUINT64);
  check_runs (f, cs, 3 * f->granularity - 1000);
}

/* Sizes around powers of 2 and around words, pages and Roaring's chunks of
 * 65536 granules; some with a short last granule. */
static void
test_random (void)
{
  static const uint64_t granules[] = {
    1, 2, 63, 64, 65, 127, 128, 4095, 4096, 32768, 65535, 65536, 65537,
    131071, 131072, 131073, 200000,
  };

  for (size_t i = 0; i < G_N_ELEMENTS (granules); i++)
    for (int tail = -1; tail <= 1; tail++) {
      uint64_t size = granules[i] * 4096 + (uint64_t) tail;
      Fixture f;

      setup (&f, size, 4096);
      for (int round = 0; round < 6; round++) {
        for (int n = 0; n < 1 << round; n++) {
          uint64_t offset = (uint64_t) (g_test_rand_double () * (double) size);
          uint64_t max = round < 4 ? 20000 : size - offset;

          set (&f, offset, (uint64_t) (g_test_rand_double () * (double) max));
        }
        check (&f);
      }
      teardown (&f);
    }
}

/* Dense and alternating patterns make other kinds of Roaring containers. */
static void
test_patterns (void)
{
  static const unsigned steps[] = { 1, 2, 3, 16, 100 };

  for (size_t i = 0; i < G_N_ELEMENTS (steps); i++)
    for (unsigned run = 1; run <= steps[i]; run += 13) {
      Fixture f;

      setup (&f, 70000 * UINT64_C (65536) + 1, 65536);
      for (uint64_t g = 0; g < f.nr; g += steps[i])
        for (uint64_t k = g; k < MIN (g + run, f.nr); k++) {
          f.model[k] = true;
          dirty_bitmap_set (f.bm, k * 65536, 1);
        }
      check (&f);
      teardown (&f);
    }
}

static void
test_edges (void)
{
  Fixture f;

  setup (&f, 10 * 65536 + 5, 65536);
  set (&f, 0, 0);
  set (&f, 65535, 0);
  check (&f);
  set (&f, 65535, 1);
  set (&f, 131071, 2);
  check (&f);
  set (&f, f.size, 1);                  /* past the end: nothing */
  set (&f, G_MAXUINT64, G_MAXUINT64);
  check (&f);
  g_assert_false (dirty_bitmap_get (f.bm, f.size - 1));
  set (&f, f.size - 1, G_MAXUINT64);
  check (&f);
  g_assert_true (dirty_bitmap_get (f.bm, f.size - 1));
  set (&f, 1, G_MAXUINT64);
  check (&f);
  g_assert_cmpuint (dirty_bitmap_count (f.bm), ==, 11);
  teardown (&f);

  setup (&f, 0, 65536);
  set (&f, 0, 1);
  check (&f);
  teardown (&f);
}

static void
expect_invalid (uint64_t size, uint32_t granularity, const char *text)
{
  g_autoptr (GError) error = NULL;
  DirtyBitmap *bm = dirty_bitmap_new (size, granularity, &error);

  g_assert_null (bm);
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID);
  g_assert_nonnull (strstr (error->message, text));
}

static void
test_bad_geometry (void)
{
  expect_invalid (1 << 20, 0, "granularity 0 bytes");
  expect_invalid (1 << 20, 3000, "granularity 3000 bytes");
  expect_invalid (1 << 20, 12288, "granularity 12288 bytes");
  expect_invalid (1 << 20, 2048, "4096..1048576");
  expect_invalid (1 << 20, 2 << 20, "4096..1048576");
  expect_invalid (UINT64_C (1) << 63, 1 << 20, "disk size");
  expect_invalid (G_MAXINT64, 1 << 20, "above the limit");
  expect_invalid ((UINT64_C (1) << 52) + 1, 0, "limit of 4503599627370496");
  expect_invalid ((UINT64_C (1) << 44) + 1, 4096, "the least is 8192");
}

/* The largest disk of a granularity: 2^32 granules, the last one 0xffffffff. */
static void
test_largest (void)
{
  GError *error = NULL;
  uint64_t size = UINT64_C (1) << 52, length;
  g_autoptr (ChangeSet) full = change_set_new_full (size, 1 << 20, &error);
  g_autoptr (ChangeSet) none = change_set_new_empty (size, 1 << 20, &error);
  bool dirty;

  g_assert_no_error (error);
  g_assert_cmpuint (change_set_count (full), ==, UINT64_C (1) << 32);
  length = change_set_run (full, 12345, G_MAXUINT64, &dirty);
  g_assert_true (dirty);
  g_assert_cmpuint (length, ==, size - 12345);
  length = change_set_run (none, size - 1, G_MAXUINT64, &dirty);
  g_assert_false (dirty);
  g_assert_cmpuint (length, ==, 1);
  length = change_set_run (none, 0, G_MAXUINT64, &dirty);
  g_assert_false (dirty);
  g_assert_cmpuint (length, ==, size);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/bitmap/dirty/random", test_random);
  g_test_add_func ("/bitmap/dirty/patterns", test_patterns);
  g_test_add_func ("/bitmap/dirty/edges", test_edges);
  g_test_add_func ("/bitmap/dirty/bad-geometry", test_bad_geometry);
  g_test_add_func ("/bitmap/dirty/largest", test_largest);
  return g_test_run ();
}
