/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The epochs of a disk: what changed between any two boundaries is exact, over
 * cuts, storing and a clean restart; ids never come again. */
#include "config.h"

#include "bitmap-test.h"
#include "bitmap/epoch.h"

#define GRAN UINT64_C (65536)
#define NR   200u               /* granules of the disk */
#define SIZE (NR * GRAN - 100)

static const DiskIdentity identity = { SIZE, 1, 2, 3 };

static EpochLog *
open_log (Catalog *cat)
{
  GError *error = NULL;
  EpochLog *log = epoch_log_open (cat, "vda", GRAN, &identity, NULL, &error);

  g_assert_no_error (error);
  return log;
}

/* Returns the boundary. */
static uint64_t
cut (Catalog *cat, EpochLog *log)
{
  GError *error = NULL;
  Epoch *next = epoch_log_prepare (log, SIZE, GRAN, &error);

  g_assert_no_error (error);
  catalog_begin (cat, &error);
  g_assert_no_error (error);
  epoch_log_seal (log, next, &error);
  g_assert_no_error (error);
  catalog_commit (cat, &error);
  g_assert_no_error (error);
  g_assert_true (epoch_log_current (log) == next);
  return next->id;
}

static void
mark (EpochLog *log, unsigned g)
{
  dirty_bitmap_set (epoch_log_current (log)->bitmap, g * GRAN, 1);
}

static void
expect (EpochLog *log, uint64_t from, uint64_t to, const bool *model)
{
  GError *error = NULL;
  bool damaged = true;
  g_autoptr (ChangeSet) cs = epoch_log_changed (log, from, to, &damaged,
                                                &error);

  g_assert_no_error (error);
  g_assert_false (damaged);
  g_assert_cmpuint (change_set_size (cs), ==, SIZE);
  for (unsigned g = 0; g < NR; g++)
    g_assert_cmpint (change_set_get (cs, g * GRAN), ==, model[g]);
}

/* Random histories against a model that keeps a bool array an epoch. */
static void
test_history (void)
{
  enum { MAX_EPOCHS = 40 };
  char *dir = test_dir_new ();
  Catalog *cat = test_catalog (dir);
  EpochLog *log = open_log (cat);
  static bool model[MAX_EPOCHS][NR];
  uint64_t ids[MAX_EPOCHS];
  unsigned nr = 1;
  GError *error = NULL;

  g_assert_true (epoch_log_report (log)->created);
  g_assert_true (epoch_log_report (log)->clean);
  ids[0] = epoch_log_current (log)->id;
  for (unsigned step = 0; nr < MAX_EPOCHS; step++) {
    switch (g_test_rand_int_range (0, 12)) {
    case 0:
      ids[nr++] = cut (cat, log);
      break;
    case 1:
      epoch_log_store (log, &error);
      g_assert_no_error (error);
      break;
    case 2:
      if (nr + 1 >= MAX_EPOCHS || step % 3 != 0)
        break;
      epoch_log_close (log, &identity, &error);
      g_assert_no_error (error);
      epoch_log_free (log);
      if (step % 2 == 0) {
        catalog_free (cat);
        cat = test_catalog (dir);
      }
      log = open_log (cat);
      g_assert_false (epoch_log_report (log)->created);
      g_assert_true (epoch_log_report (log)->clean);
      g_assert_null (epoch_log_report (log)->reason);
      ids[nr++] = epoch_log_current (log)->id;
      break;
    case 3: {
      unsigned a = (unsigned) g_test_rand_int_range (0, (gint32) nr);
      unsigned b = (unsigned) g_test_rand_int_range ((gint32) a,
                                                     (gint32) nr + 1);
      bool want[NR] = { false };

      for (unsigned e = a; e < b; e++)
        for (unsigned g = 0; g < NR; g++)
          want[g] |= model[e][g];
      expect (log, ids[a], b == nr ? 0 : ids[b], want);
      break;
    }
    default: {
      unsigned g = (unsigned) g_test_rand_int_range (0, NR);

      mark (log, g);
      model[nr - 1][g] = true;
    }
    }
    g_assert_true (nr < 2 || ids[nr - 1] > ids[nr - 2]);
  }
  epoch_log_free (log);
  catalog_free (cat);
  test_dir_free (dir);
}

/* Ids grow over abandoned cuts, deleted epochs and restarts. */
static void
test_ids (void)
{
  char *dir = test_dir_new ();
  Catalog *cat = test_catalog (dir);
  EpochLog *log = open_log (cat);
  uint64_t last = epoch_log_current (log)->id;
  GError *error = NULL;

  g_assert_cmpuint (last, >, 0);
  for (int i = 0; i < 5; i++) {
    Epoch *next = epoch_log_prepare (log, SIZE, GRAN, &error);
    uint64_t id;

    g_assert_no_error (error);
    g_assert_cmpuint (next->id, >, last);
    last = next->id;
    epoch_log_abandon (log, next);
    id = cut (cat, log);
    g_assert_cmpuint (id, >, last);
    last = id;
    epoch_log_store (log, &error);
    g_assert_no_error (error);
    if (i % 2 == 0)
      epoch_log_close (log, &identity, &error);
    g_assert_no_error (error);
    epoch_log_free (log);
    test_sql (cat, "DELETE FROM epoch");
    log = open_log (cat);
    g_assert_cmpuint (epoch_log_current (log)->id, >, last);
    last = epoch_log_current (log)->id;
  }
  epoch_log_free (log);
  catalog_free (cat);
  test_dir_free (dir);
}

static void
test_second_prepare (void)
{
  char *dir = test_dir_new ();
  Catalog *cat = test_catalog (dir);
  EpochLog *log = open_log (cat);
  g_autoptr (GError) error = NULL;
  Epoch *next = epoch_log_prepare (log, SIZE, GRAN, &error);

  g_assert_no_error (error);
  g_assert_null (epoch_log_prepare (log, SIZE, GRAN, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_BUSY);
  epoch_log_abandon (log, next);
  epoch_log_free (log);
  catalog_free (cat);
  test_dir_free (dir);
}

static void
expect_not_found (EpochLog *log, uint64_t from, uint64_t to)
{
  g_autoptr (GError) error = NULL;

  g_assert_null (epoch_log_changed (log, from, to, NULL, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND);
}

/* What is forgotten is an error to ask for; what is kept answers as before,
 * also when some of the forgotten was not stored yet. */
static void
test_forget (void)
{
  char *dir = test_dir_new ();
  Catalog *cat = test_catalog (dir);
  EpochLog *log = open_log (cat);
  GError *error = NULL;
  uint64_t first = epoch_log_current (log)->id, b1, b2, b3;
  bool want[NR] = { false };

  mark (log, 1);
  b1 = cut (cat, log);
  epoch_log_store (log, &error);
  g_assert_no_error (error);
  mark (log, 2);
  b2 = cut (cat, log);
  mark (log, 3);
  b3 = cut (cat, log);
  mark (log, 4);
  expect_not_found (log, b3 + 1, 0);
  expect_not_found (log, 0, 0);

  epoch_log_forget_before (log, b2, &error);
  g_assert_no_error (error);
  epoch_log_store (log, &error);
  g_assert_no_error (error);
  g_assert_cmpint (test_sql_int (cat, "SELECT count (*) FROM epoch"), ==, 2);
  expect_not_found (log, first, 0);
  expect_not_found (log, b1, 0);
  want[3] = true;
  expect (log, b2, b3, want);
  want[4] = true;
  expect (log, b2, 0, want);
  want[3] = want[4] = false;
  expect (log, b3, b3, want);
  g_assert_null (epoch_log_changed (log, b3, b2, NULL, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID);
  g_clear_error (&error);

  epoch_log_close (log, &identity, &error);
  g_assert_no_error (error);
  epoch_log_free (log);
  log = open_log (cat);
  want[3] = want[4] = true;
  expect (log, b2, 0, want);
  expect_not_found (log, b1, 0);
  epoch_log_free (log);
  catalog_free (cat);
  test_dir_free (dir);
}

/* The transaction of a cut fails after writers have moved on: nothing is lost,
 * and the rows follow. */
static void
test_failed_cut (void)
{
  char *dir = test_dir_new ();
  Catalog *cat = test_catalog (dir);
  EpochLog *log = open_log (cat);
  GError *error = NULL;
  uint64_t first = epoch_log_current (log)->id;
  bool want[NR] = { false };

  for (unsigned i = 0; i < 3; i++) {
    Epoch *next;

    mark (log, 10 + i);
    want[10 + i] = true;
    next = epoch_log_prepare (log, SIZE, GRAN, &error);
    g_assert_no_error (error);
    catalog_begin (cat, &error);
    epoch_log_seal (log, next, &error);
    g_assert_no_error (error);
    catalog_rollback (cat);
    expect (log, first, 0, want);
  }
  epoch_log_store (log, &error);
  g_assert_no_error (error);
  expect (log, first, 0, want);
  epoch_log_close (log, &identity, &error);
  g_assert_no_error (error);
  epoch_log_free (log);
  log = open_log (cat);
  expect (log, first, 0, want);
  epoch_log_free (log);
  catalog_free (cat);
  test_dir_free (dir);
}

/* Grow, shrink and grow again: what came into being is dirty. */
static void
test_resize (void)
{
  char *dir = test_dir_new ();
  Catalog *cat = test_catalog (dir);
  EpochLog *log = open_log (cat);
  uint64_t first = epoch_log_current (log)->id;
  static const uint64_t sizes[] = { SIZE + 10 * GRAN, 50 * GRAN, SIZE };
  GError *error = NULL;
  g_autoptr (ChangeSet) cs = NULL;
  uint64_t last = first;

  for (size_t i = 0; i < G_N_ELEMENTS (sizes); i++) {
    Epoch *next = epoch_log_prepare (log, sizes[i], GRAN, &error);

    g_assert_no_error (error);
    g_assert_true (epoch_log_seal (log, next, &error));
    last = next->id;
    cs = epoch_log_changed (log, last, 0, NULL, &error);
    g_assert_no_error (error);
    g_assert_cmpuint (change_set_size (cs), ==, sizes[i]);
    g_assert_cmpuint (change_set_count (cs), ==,
                      i == 0 ? 11 : i == 1 ? 0 : NR - 50);
    g_clear_pointer (&cs, change_set_unref);
  }
  cs = epoch_log_changed (log, first, 0, NULL, &error);
  g_assert_no_error (error);
  g_assert_cmpuint (change_set_count (cs), ==, NR - 50);
  g_assert_false (change_set_get (cs, 49 * GRAN));
  g_assert_true (change_set_get (cs, 50 * GRAN));
  epoch_log_free (log);
  catalog_free (cat);
  test_dir_free (dir);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/bitmap/epoch/history", test_history);
  g_test_add_func ("/bitmap/epoch/ids", test_ids);
  g_test_add_func ("/bitmap/epoch/second-prepare", test_second_prepare);
  g_test_add_func ("/bitmap/epoch/forget", test_forget);
  g_test_add_func ("/bitmap/epoch/failed-cut", test_failed_cut);
  g_test_add_func ("/bitmap/epoch/resize", test_resize);
  return g_test_run ();
}
