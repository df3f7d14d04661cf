/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Whatever may have changed unseen reads all dirty: after an unclean stop, when
 * the image is not what it was, when stored epochs are damaged or lost. */
#include "config.h"

#include <string.h>

#include "bitmap-test.h"
#include "bitmap/epoch.h"

#define GRAN UINT64_C (4096)
#define NR   1000u
#define SIZE (NR * GRAN)

static const DiskIdentity same = { SIZE, 11, 22, .mtime_ns = 33 };

static EpochLog *
open_log (Catalog *cat, const DiskIdentity *identity)
{
  GError *error = NULL;
  EpochLog *log = epoch_log_open (cat, "vda", GRAN, identity, NULL, &error);

  g_assert_no_error (error);
  return log;
}

static uint64_t
cut (EpochLog *log)
{
  GError *error = NULL;
  Epoch *next = epoch_log_prepare (log, SIZE, GRAN, &error);

  g_assert_no_error (error);
  g_assert_true (epoch_log_seal (log, next, &error));
  return next->id;
}

static void
expect_count (EpochLog *log, uint64_t from, uint64_t to, uint64_t count,
              bool want_damaged)
{
  GError *error = NULL;
  bool damaged = !want_damaged;
  g_autoptr (ChangeSet) cs = epoch_log_changed (log, from, to, &damaged,
                                                &error);

  g_assert_no_error (error);
  g_assert_cmpuint (change_set_count (cs), ==, count);
  g_assert_cmpint (damaged, ==, want_damaged);
}

static void
mark (EpochLog *log, unsigned g)
{
  dirty_bitmap_set (epoch_log_current (log)->bitmap, g * GRAN, 1);
}

static void
expect_unclean (EpochLog *log, const char *reason)
{
  const EpochOpenReport *report = epoch_log_report (log);

  g_assert_false (report->created);
  g_assert_false (report->clean);
  g_assert_nonnull (strstr (report->reason, reason));
}

/* Every boundary from before the crash is all dirty; those after are exact. */
static void
test_crash (void)
{
  char *dir = test_dir_new ();
  Catalog *cat = test_catalog (dir);
  EpochLog *log = open_log (cat, &same);
  /* The guest wrote, so that says nothing. */
  DiskIdentity written = { SIZE, 11, 22, .mtime_ns = 34 };
  GError *error = NULL;
  uint64_t before = epoch_log_current (log)->id, at, after;

  mark (log, 1);
  at = cut (log);
  epoch_log_store (log, &error);
  g_assert_no_error (error);
  mark (log, 2);
  epoch_log_free (log);
  catalog_free (cat);

  cat = test_catalog (dir);
  log = open_log (cat, &written);
  expect_unclean (log, "not stopped cleanly");
  g_assert_true (epoch_log_report (log)->same_image);
  after = epoch_log_current (log)->id;
  mark (log, 3);
  expect_count (log, before, at, 1, false);     /* was stored */
  expect_count (log, before, 0, NR, false);
  expect_count (log, at, 0, NR, false);
  expect_count (log, at, after, NR, false);
  expect_count (log, after, 0, 1, false);

  epoch_log_close (log, &same, &error);
  g_assert_no_error (error);
  epoch_log_free (log);
  log = open_log (cat, &same);
  g_assert_true (epoch_log_report (log)->clean);
  expect_count (log, at, 0, NR, false);
  expect_count (log, after, 0, 1, false);
  epoch_log_free (log);
  catalog_free (cat);
  test_dir_free (dir);
}

/* Sealed, but not yet stored when the process died. */
static void
test_crash_before_store (void)
{
  char *dir = test_dir_new ();
  Catalog *cat = test_catalog (dir);
  EpochLog *log = open_log (cat, &same);
  uint64_t first = epoch_log_current (log)->id, second;

  mark (log, 1);
  second = cut (log);
  expect_count (log, first, second, 1, false);
  epoch_log_free (log);
  log = open_log (cat, &same);
  expect_count (log, first, second, NR, false);
  epoch_log_free (log);
  catalog_free (cat);
  test_dir_free (dir);
}

static void
check_identity (const DiskIdentity *then, const DiskIdentity *now,
                const char *reason)
{
  char *dir = test_dir_new ();
  Catalog *cat = test_catalog (dir);
  EpochLog *log = open_log (cat, then);
  GError *error = NULL;
  uint64_t first = epoch_log_current (log)->id;
  uint64_t nr_now = (now->size + GRAN - 1) / GRAN;

  mark (log, 5);
  epoch_log_close (log, then, &error);
  g_assert_no_error (error);
  epoch_log_free (log);
  catalog_free (cat);

  cat = test_catalog (dir);
  log = open_log (cat, now);
  if (reason != NULL)
    expect_unclean (log, reason);
  else
    g_assert_true (epoch_log_report (log)->clean);
  expect_count (log, first, 0, reason != NULL ? nr_now : 1, false);
  epoch_log_free (log);
  catalog_free (cat);
  test_dir_free (dir);
}

static void
test_identity (void)
{
  DiskIdentity larger = { SIZE + 1, 11, 22, .mtime_ns = 33 };
  DiskIdentity smaller = { SIZE - GRAN, 11, 22, .mtime_ns = 33 };
  DiskIdentity device = { SIZE, 12, 22, .mtime_ns = 33 };
  DiskIdentity inode = { SIZE, 11, 23, .mtime_ns = 33 };
  DiskIdentity born = { SIZE, 11, 22, 44, 33 };
  DiskIdentity reborn = { SIZE, 11, 22, 45, 33 };
  DiskIdentity mtime = { SIZE, 11, 22, .mtime_ns = 34 };
  DiskIdentity block = { SIZE, 11, 0, .mtime_ns = 0 };

  check_identity (&same, &same, NULL);
  check_identity (&same, &larger,
                  "image size changed from 4096000 to 4096001 bytes");
  check_identity (&same, &smaller, "from 4096000 to 4091904 bytes");
  check_identity (&same, &device, "another file or device");
  check_identity (&same, &inode, "another file or device");
  check_identity (&same, &born, NULL);
  check_identity (&born, &reborn, "another file or device");
  check_identity (&same, &mtime, "modification time differs");
  check_identity (&block, &block, NULL);
  check_identity (&same, &block, NULL);
}

/* Opens with a mark, and closes. */
static void
check_mark (Catalog *cat, const char *mark, const char *reason)
{
  DiskIdentity identity = same;
  GError *error = NULL;
  EpochLog *log;

  g_strlcpy (identity.mark, mark, sizeof identity.mark);
  log = open_log (cat, &identity);
  if (reason != NULL)
    expect_unclean (log, reason);
  else
    g_assert_true (epoch_log_report (log)->clean);
  g_assert_cmpint (epoch_log_report (log)->same_image, ==, reason == NULL);
  epoch_log_close (log, &same, &error);
  g_assert_no_error (error);
  epoch_log_free (log);
}

/* The image is ahead of the catalog, or in another's book. */
static void
test_mark (void)
{
  char *dir = test_dir_new ();
  Catalog *cat = test_catalog (dir);
  EpochLog *log = open_log (cat, &same);
  g_autofree char *open = epoch_log_mark (log), *closed = NULL;
  g_autofree char *ahead = NULL, *other = NULL, *name = NULL;
  GError *error = NULL;
  Epoch *next;

  next = epoch_log_prepare (log, SIZE, GRAN, &error);
  g_assert_no_error (error);
  {
    g_autofree char *prepared = epoch_log_mark (log);

    /* Guests write there before it is sealed. */
    g_assert_cmpstr (prepared, !=, open);
    epoch_log_seal (log, next, &error);
    g_assert_no_error (error);
    closed = epoch_log_mark (log);
    g_assert_cmpstr (prepared, ==, closed);
    g_free (closed);
  }
  epoch_log_close (log, &same, &error);
  g_assert_no_error (error);
  closed = epoch_log_mark (log);
  epoch_log_free (log);

  ahead = g_strdup_printf ("1 %s %" G_GINT64_FORMAT " vda", catalog_uuid (cat),
                           test_sql_int (cat, "SELECT next_epoch FROM disk"));
  other = g_strdup_printf ("1 %s 1 vdb", catalog_uuid (cat));
  name = g_strdup_printf ("1 %s 1 vda x", catalog_uuid (cat));
  check_mark (cat, ahead, "older than the image");
  check_mark (cat, "", NULL);
  check_mark (cat, open, NULL);
  check_mark (cat, closed, NULL);
  check_mark (cat, other, "as disk 'vdb'");
  check_mark (cat, name, "as disk 'vda x'");
  check_mark (cat, "1 8f4b5e5e-0f5e-4f0e-9b3b-000000000000 1 vda",
              "with another state directory");
  check_mark (cat, "2 what comes later", "by another program");
  check_mark (cat, "1", "by another program");
  check_mark (cat, "", NULL);
  catalog_free (cat);
  test_dir_free (dir);
}

/* Close with a size that is not tracked is refused, and so not clean. */
static void
test_close_other_size (void)
{
  char *dir = test_dir_new ();
  Catalog *cat = test_catalog (dir);
  EpochLog *log = open_log (cat, &same);
  DiskIdentity larger = { SIZE * 2, 11, 22, .mtime_ns = 33 };
  g_autoptr (GError) error = NULL;

  g_assert_false (epoch_log_close (log, &larger, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID);
  epoch_log_free (log);
  log = open_log (cat, &larger);
  expect_unclean (log, "image size changed");
  epoch_log_free (log);
  catalog_free (cat);
  test_dir_free (dir);
}

/* sql damages epoch 2, or removes it: then it is no boundary any more. */
static void
damage (const char *sql, bool removed)
{
  char *dir = test_dir_new ();
  Catalog *cat = test_catalog (dir);
  EpochLog *log = open_log (cat, &same);
  GError *error = NULL;
  uint64_t ids[4];

  ids[0] = epoch_log_current (log)->id;
  for (unsigned i = 1; i < 4; i++) {
    mark (log, i);
    ids[i] = cut (log);
  }
  epoch_log_store (log, &error);
  g_assert_no_error (error);
  g_assert_cmpuint (ids[1], ==, 2);             /* the one that sql means */
  expect_count (log, ids[0], 0, 3, false);
  test_sql (cat, sql);
  if (removed) {
    g_assert_null (epoch_log_changed (log, ids[0], ids[1], NULL, &error));
    g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND);
    g_clear_error (&error);
  }
  else
    expect_count (log, ids[0], ids[1], 1, false);
  expect_count (log, ids[0], ids[3], NR, true);
  expect_count (log, ids[0], 0, NR, true);
  expect_count (log, ids[2], ids[3], 1, false);
  epoch_log_free (log);
  catalog_free (cat);
  test_dir_free (dir);
}

static void
test_damaged (void)
{
  damage ("UPDATE epoch SET blob = substr (blob, 1, 60) WHERE id = 2", false);
  damage ("UPDATE epoch SET blob = zeroblob (100) WHERE id = 2", false);
  damage ("UPDATE epoch SET blob = x'' WHERE id = 2", false);
  damage ("UPDATE epoch SET blob = NULL WHERE id = 2", false);
  damage ("UPDATE epoch SET size = size - 4096 WHERE id = 2", false);
  damage ("UPDATE epoch SET granularity = 8192 WHERE id = 2", false);
  damage ("DELETE FROM epoch WHERE id = 2", true);
}

/* A copy of the database with the log of another one next to it. */
static void
test_mixed (void)
{
  char *dir = test_dir_new ();
  Catalog *cat = test_catalog (dir);
  EpochLog *log = open_log (cat, &same);
  uint64_t at = epoch_log_current (log)->id;
  GError *error = NULL;

  cut (log);
  cut (log);
  g_assert_true (epoch_log_close (log, &same, &error));
  epoch_log_free (log);
  test_sql (cat, "UPDATE disk SET next_epoch = 2");
  log = open_log (cat, &same);
  expect_unclean (log, "parts of different ages");
  g_assert_cmpint (epoch_log_report (log)->recovery, ==, EPOCHS_ALL_DIRTY);
  expect_count (log, at, 0, NR, false);
  g_assert_true (epoch_log_close (log, &same, &error));
  epoch_log_free (log);
  log = open_log (cat, &same);
  g_assert_true (epoch_log_report (log)->clean);
  epoch_log_free (log);
  catalog_free (cat);
  test_dir_free (dir);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/bitmap/unclean/crash", test_crash);
  g_test_add_func ("/bitmap/unclean/crash-before-store",
                   test_crash_before_store);
  g_test_add_func ("/bitmap/unclean/identity", test_identity);
  g_test_add_func ("/bitmap/unclean/mark", test_mark);
  g_test_add_func ("/bitmap/unclean/close-other-size", test_close_other_size);
  g_test_add_func ("/bitmap/unclean/damaged", test_damaged);
  g_test_add_func ("/bitmap/unclean/mixed", test_mixed);
  return g_test_run ();
}
