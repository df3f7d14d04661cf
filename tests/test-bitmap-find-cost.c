/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Looking a bitmap up, changing, adding and removing it cost the same however
 * many bitmaps the disk has, live or kept by a snapshot: steps of SQLite's
 * machine are counted, not time. */
#include "config.h"

#include "bitmap-test.h"
#include "bitmap/epoch.h"
#include "bitmap/named-bitmap.h"

#define DISK_SIZE (UINT64_C (1) << 20)
#define FEW 10
#define MANY 1000
#define SNAPSHOT 5

static Catalog *cat;
static int64_t disk;
static const char internal[] = { BITMAP_INTERNAL, 'x', '\0' };
static unsigned steps;

static int
count_step (void *opaque)
{
  steps++;
  return 0;
}

static void
add_bitmaps (unsigned from, unsigned to)
{
  GError *error = NULL;

  catalog_begin (cat, &error);
  g_assert_no_error (error);
  for (unsigned i = from; i < to; i++) {
    g_autofree char *name = g_strdup_printf ("b%u", i);
    g_autoptr (NamedBitmap) bm = named_bitmap_new (disk, name, 65536,
                                                   DISK_SIZE, true);

    named_bitmap_resolve (bm, disk, 1);
    named_bitmap_put (cat, bm, &error);
    g_assert_no_error (error);
    named_bitmap_keep (cat, SNAPSHOT, name, bm, &error);
    g_assert_no_error (error);
  }
  catalog_commit (cat, &error);
  g_assert_no_error (error);
}

static NamedBitmap *
find (int64_t snapshot, const char *name)
{
  GError *error = NULL;
  NamedBitmap *bm = named_bitmap_find (cat, disk, snapshot, name, &error);

  g_assert_no_error (error);
  return bm;
}

/* One of each kind of action. */
static unsigned
cost_of_actions (void)
{
  GError *error = NULL;
  unsigned before = steps;
  g_autoptr (NamedBitmap) live = find (0, "b3");
  g_autoptr (NamedBitmap) kept = find (SNAPSHOT, "b3");
  g_autoptr (NamedBitmap) none = find (0, "none");
  g_autoptr (NamedBitmap) added =
    named_bitmap_new (disk, internal, 65536, DISK_SIZE, true);
  g_autoptr (NamedBitmap) found = NULL;

  g_assert_nonnull (live);
  g_assert_nonnull (kept);
  g_assert_null (none);
  g_assert_cmpint (live->id, !=, kept->id);
  g_assert_cmpuint (live->intervals->len, ==, 1);
  g_assert_cmpuint (kept->intervals->len, ==, 1);
  named_bitmap_disable (live);
  named_bitmap_resolve (live, disk, 2);
  named_bitmap_put (cat, live, &error);
  g_assert_no_error (error);
  named_bitmap_resolve (added, disk, 1);
  named_bitmap_put (cat, added, &error);
  g_assert_no_error (error);
  found = find (0, internal);
  g_assert_nonnull (found);
  g_assert_cmpint (found->id, ==, added->id);
  named_bitmap_delete (cat, found->id, &error);
  g_assert_no_error (error);
  return steps - before;
}

static void
test_cost (void)
{
  char *dir = test_dir_new ();
  DiskIdentity identity = { .size = DISK_SIZE };
  GError *error = NULL;
  sqlite3_stmt *stmt;
  unsigned few, many;
  EpochLog *log;

  cat = test_catalog (dir);
  log = epoch_log_open (cat, "vda", 65536, &identity, NULL, &error);
  g_assert_no_error (error);
  disk = epoch_log_disk_id (log);
  test_sql (cat, "INSERT INTO snapshot (id, disk, name, boundary, size, state,"
            " created, on_error, scratch_limit) SELECT " G_STRINGIFY (SNAPSHOT)
            ", id, 's', 2, size, 'live', 0, '', 0 FROM disk");
  catalog_lock (cat);
  stmt = catalog_stmt (cat, "SELECT 1", &error);
  g_assert_no_error (error);
  sqlite3_progress_handler (sqlite3_db_handle (stmt), 1, count_step, NULL);
  catalog_unlock (cat);

  add_bitmaps (0, FEW);
  cost_of_actions ();           /* SQLite prepares the statements */
  few = cost_of_actions ();
  add_bitmaps (FEW, MANY);
  many = cost_of_actions ();
  g_test_message ("steps: %u with %d bitmaps, %u with %d", few, FEW, many,
                  MANY);
  g_assert_cmpuint (few, >, 0);
  g_assert_cmpuint (many, <=, few + few / 2);
  epoch_log_close (log, &identity, &error);
  g_assert_no_error (error);
  epoch_log_free (log);
  catalog_free (cat);
  test_dir_free (dir);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/bitmap/find-cost", test_cost);
  return g_test_run ();
}
