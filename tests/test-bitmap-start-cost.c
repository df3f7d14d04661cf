/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Opening a disk with a long past reads none of its records of changes, neither
 * after a clean stop nor after anything else: pages of the catalog are counted,
 * not time. */
#include "config.h"

#include "intent-test.h"

#define EPOCHS 1000

/* What a start may read: a few pages of each table and index. */
#define MAX_PAGES 100

static void
run_sql (Catalog *cat, const char *sql)
{
  g_autoptr (GError) error = NULL;
  sqlite3_stmt *stmt;

  catalog_lock (cat);
  stmt = catalog_stmt (cat, sql, &error);
  g_assert_no_error (error);
  catalog_step_done (cat, stmt, &error);
  g_assert_no_error (error);
  catalog_unlock (cat);
}

/* Pages that SQLite read from its files since the catalog was opened. */
static int
pages_read (Catalog *cat)
{
  g_autoptr (GError) error = NULL;
  int now = -1, high;
  sqlite3 *db;

  catalog_lock (cat);
  db = sqlite3_db_handle (catalog_stmt (cat, "SELECT 1", &error));
  g_assert_no_error (error);
  g_assert_cmpint (sqlite3_db_status (db, SQLITE_DBSTATUS_CACHE_MISS, &now,
                                      &high, 0), ==, SQLITE_OK);
  catalog_unlock (cat);
  return now;
}

/* One epoch with a blob of about 8 KiB, a thousand times, each with a
 * checkpoint. */
static void
make_past (Rig *rig)
{
  static const DiskIdentity identity = { SIZE, 0, 1, 0 };
  g_autoptr (GError) error = NULL;

  rig_open (rig);
  g_assert_cmpint (rig_write (rig, 0, 1), ==, 0);
  rig_cut (rig);
  epoch_log_store (rig->log, &error);
  g_assert_no_error (error);
  epoch_log_close (rig->log, &identity, &error);
  g_assert_no_error (error);
  run_sql (rig->cat, "UPDATE epoch SET blob = zeroblob (8192)"
           " WHERE id = (SELECT min (id) FROM epoch)");
  run_sql (rig->cat, "CREATE TABLE n AS WITH RECURSIVE c (i) AS (SELECT 1 UNION"
           " ALL SELECT i + 1 FROM c WHERE i < " G_STRINGIFY (EPOCHS) ") SELECT i FROM c");
  run_sql (rig->cat, "INSERT INTO epoch (disk, id, prev, size, granularity,"
           " state, all_dirty, count, blob) SELECT disk, 1000 + i, 999 + i,"
           " size, granularity, 'sealed', 0, count, blob FROM n,"
           " (SELECT * FROM epoch ORDER BY id LIMIT 1)");
  run_sql (rig->cat, "INSERT INTO checkpoint (id, name, creation_time)"
           " SELECT i, 'c' || i, i FROM n");
  run_sql (rig->cat, "INSERT INTO checkpoint_disk SELECT i, disk.id, 'c' || i,"
           " 1000 + i FROM n, disk");
  run_sql (rig->cat, "UPDATE disk SET next_epoch = 3000");
  run_sql (rig->cat, "DROP TABLE n");
  rig_crash (rig);
}

static void
open_and_count (Rig *rig, const char *after)
{
  gint64 start = g_get_monotonic_time ();
  int pages;

  rig_open (rig);
  pages = pages_read (rig->cat);
  g_test_message ("after %s: %d pages read, %.1f ms", after, pages,
                  (double) (g_get_monotonic_time () - start) / 1000);
  g_assert_cmpint (pages, <=, MAX_PAGES);
  {
    g_autoptr (GPtrArray) names = g_ptr_array_new_with_free_func (g_free);
    g_autoptr (GError) error = NULL;
    unsigned nr = 0;

    epoch_list_runtime_maps (rig->cat, names, &error);
    g_assert_no_error (error);
    for (guint i = 0; i < names->len; i++)
      nr += g_str_has_suffix (names->pdata[i], ".r");
    g_assert_cmpuint (nr, ==, 1);
  }
  g_assert_cmpint (pages_read (rig->cat), <=, MAX_PAGES);
}

static void
test_start (void)
{
  Rig *rig = rig_new ();

  make_past (rig);
  open_and_count (rig, "a clean stop");
  g_assert_true (epoch_log_report (rig->log)->clean);
  g_assert_cmpint (rig_write (rig, 0, 1), ==, 0);
  rig_crash (rig);
  open_and_count (rig, "kill -9");
  g_assert_cmpint (epoch_log_report (rig->log)->recovery, ==, EPOCHS_EXACT);
  g_assert_cmpint (rig_write (rig, 0, 1), ==, 0);
  rig_crash (rig);
  rig_lose_runtime (rig);
  open_and_count (rig, "a power loss");
  g_assert_cmpint (epoch_log_report (rig->log)->recovery, ==, EPOCHS_BOUNDED);

  /* Reading it would have been seen. */
  run_sql (rig->cat, "CREATE TEMP TABLE t AS SELECT substr (blob, 8000) FROM"
           " epoch");
  g_assert_cmpint (pages_read (rig->cat), >, EPOCHS / 4);
  rig_free (rig);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/bitmap/start-cost", test_start);
  return g_test_run ();
}
