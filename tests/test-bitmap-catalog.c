/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The catalog: transactions nest and fail as a whole; what is not a catalog of
 * ours, damaged, newer or on a full disk is refused with a clear error. */
#include "config.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "bitmap-test.h"
#include "bitmap/catalog-schema.h"
#include "bitmap/epoch.h"

static const DiskIdentity identity = { UINT64_C (1) << 30, 1, 2, 3 };

static char *
database (const char *dir)
{
  return g_build_filename (dir, "catalog.sqlite", NULL);
}

static void
refused (const char *dir, BitmapError code, const char *text)
{
  g_autoptr (GError) error = NULL;
  g_autofree char *path = database (dir);
  Catalog *cat = catalog_new (dir, &error);

  g_assert_no_error (error);
  g_assert_false (catalog_open (cat, &error));
  g_assert_error (error, BITMAP_ERROR, (gint) code);
  g_assert_nonnull (strstr (error->message, path));
  if (strstr (error->message, text) == NULL)
    g_error ("'%s' does not have '%s'", error->message, text);
  catalog_free (cat);
}

static void
test_newer (void)
{
  char *dir = test_dir_new ();
  Catalog *cat = test_catalog (dir);

  test_sql (cat, "PRAGMA user_version = 77");
  catalog_free (cat);
  refused (dir, BITMAP_ERROR_INVALID,
           "schema version 77 of a newer program; this one knows up to 10");
  test_dir_free (dir);
}

static void
test_negative (void)
{
  char *dir = test_dir_new ();
  Catalog *cat = test_catalog (dir);

  test_sql (cat, "PRAGMA user_version = -3");
  catalog_free (cat);
  refused (dir, BITMAP_ERROR_CORRUPT, "damaged: its schema version is -3");
  test_dir_free (dir);
}

/* What the first version wrote is kept, and its tables get what is new. */
static void
test_migrate (void)
{
  char *dir = test_dir_new ();
  g_autofree char *path = database (dir);
  sqlite3 *db;
  Catalog *cat;

  g_assert_cmpint (sqlite3_open (path, &db), ==, SQLITE_OK);
  g_assert_cmpint (sqlite3_exec (db, catalog_migrations[0], NULL, NULL, NULL),
                   ==, SQLITE_OK);
  g_assert_cmpint (sqlite3_exec (db,
    "PRAGMA user_version = 1; PRAGMA application_id = 0x6e626466;"
    "INSERT INTO meta (id, uuid) VALUES (1, 'some-uuid');"
    "INSERT INTO disk VALUES (1, 'vda', 65536, 10, 2, 3, 4, 1, 9);"
    "INSERT INTO epoch VALUES (1, 7, 0, 10, 65536, 'sealed', 0, 1, x'abcd');"
    "INSERT INTO epoch VALUES (1, 8, 7, 10, 65536, 'open', 1, 2, NULL);"
    "INSERT INTO layer VALUES (5, 1, 'file', 10, 'live');"
    "INSERT INTO snapshot VALUES (6, 1, 's', 8, 5, 10, 'live', NULL, 1,"
    "                             'break-snapshot', 0);", NULL, NULL, NULL),
                   ==, SQLITE_OK);
  sqlite3_close (db);

  cat = test_catalog (dir);
  g_assert_cmpstr (catalog_uuid (cat), ==, "some-uuid");
  g_assert_cmpint (test_sql_int (cat, "PRAGMA user_version"), ==,
                   catalog_schema_version);
  g_assert_cmpint (test_sql_int (cat,
    "SELECT count (*) FROM epoch WHERE disk = 1 AND id = 7 AND prev = 0 AND"
    " size = 10 AND granularity = 65536 AND state = 'sealed' AND"
    " all_dirty = 0 AND count = 1 AND nonce IS NULL AND blob = x'abcd'"),
    ==, 1);
  g_assert_cmpint (test_sql_int (cat,
    "SELECT count (*) FROM epoch WHERE id = 8 AND prev = 7 AND all_dirty = 1"
    " AND state = 'open' AND count = 2 AND blob IS NULL"), ==, 1);
  g_assert_cmpint (test_sql_int (cat,
    "SELECT count (*) FROM layer WHERE id = 5 AND nonce IS NULL AND"
    " durable = 0"), ==, 1);
  g_assert_cmpint (test_sql_int (cat,
    "SELECT count (*) FROM snapshot WHERE id = 6 AND layer = 5 AND"
    " durable = 0"), ==, 1);
  test_sql (cat, "UPDATE epoch SET state = 'prepared', nonce = x'00'"
            " WHERE id = 8");
  /* The disk's rows still go with it. */
  test_sql (cat, "DELETE FROM snapshot");
  test_sql (cat, "DELETE FROM disk");
  g_assert_cmpint (test_sql_int (cat, "SELECT count (*) FROM epoch"), ==, 0);
  catalog_free (cat);
  test_dir_free (dir);
}

static void
test_garbage (void)
{
  char *dir = test_dir_new ();
  g_autofree char *path = database (dir);
  char text[5000];

  memset (text, 'x', sizeof text);
  g_assert_true (g_file_set_contents (path, text, sizeof text, NULL));
  refused (dir, BITMAP_ERROR_CORRUPT, "not a database");
  test_dir_free (dir);
}

static void
test_foreign (void)
{
  char *dir = test_dir_new ();
  g_autofree char *path = database (dir);
  sqlite3 *db;

  g_assert_cmpint (sqlite3_open (path, &db), ==, SQLITE_OK);
  g_assert_cmpint (sqlite3_exec (db, "CREATE TABLE t (x)", NULL, NULL, NULL),
                   ==, SQLITE_OK);
  sqlite3_close (db);
  refused (dir, BITMAP_ERROR_CORRUPT, "database of something else");
  test_dir_free (dir);
}

/* Every 16 KiB page overwritten in turn: an error or an answer that says all,
 * never a crash. */
static void
test_damaged_pages (void)
{
  char *dir = test_dir_new ();
  g_autofree char *path = database (dir);
  Catalog *cat = test_catalog (dir);
  GError *error = NULL;
  EpochLog *log = epoch_log_open (cat, "vda", 4096, &identity, NULL, &error);
  g_autofree char *good = NULL;
  uint64_t first = epoch_log_current (log)->id;
  gsize length;

  g_assert_no_error (error);
  for (uint64_t g = 0; g < 100000; g += 7)
    dirty_bitmap_set (epoch_log_current (log)->bitmap, g * 4096, 1);
  g_assert_true (epoch_log_close (log, &identity, &error));
  epoch_log_free (log);
  catalog_free (cat);
  g_assert_true (g_file_get_contents (path, &good, &length, NULL));
  g_assert_cmpuint (length, >, 10 * 16384);

  for (gsize page = 0; page < length; page += 16384) {
    g_autofree char *bad = g_memdup2 (good, length);
    g_autoptr (ChangeSet) cs = NULL;

    for (gsize i = 0; i < 16384; i++)
      bad[page + i] = (char) g_test_rand_int ();
    g_assert_true (g_file_set_contents (path, bad, (gssize) length, NULL));
    cat = catalog_new (dir, &error);
    g_assert_no_error (error);
    if (catalog_open (cat, &error) &&
        (log = epoch_log_open (cat, "vda", 4096, &identity, NULL, &error)) != NULL) {
      if (!epoch_log_report (log)->created) {
        bool damaged;

        cs = epoch_log_changed (log, first, 0, &damaged, &error);
        if (cs != NULL && damaged)
          g_assert_cmpuint (change_set_count (cs), ==, identity.size / 4096);
        else if (cs != NULL)
          g_assert_cmpuint (change_set_count (cs), >=, 100000 / 7);
      }
      epoch_log_free (log);
    }
    g_clear_error (&error);
    catalog_free (cat);
  }
  test_dir_free (dir);
}

static int64_t
nr_disks (Catalog *cat)
{
  return test_sql_int (cat, "SELECT count (*) FROM disk");
}

static void
insert (Catalog *cat, const char *name)
{
  GError *error = NULL;
  sqlite3_stmt *stmt;

  catalog_lock (cat);
  stmt = catalog_stmt (cat,
    "INSERT INTO disk (name, granularity, size, device, inode, mtime_ns, clean,"
    " next_epoch) VALUES (?1, 4096, 0, 0, 0, 0, 0, 1)", &error);
  g_assert_no_error (error);
  sqlite3_bind_text (stmt, 1, name, -1, SQLITE_STATIC);
  catalog_step_done (cat, stmt, &error);
  g_assert_no_error (error);
  catalog_unlock (cat);
}

static void
test_nesting (void)
{
  char *dir = test_dir_new ();
  Catalog *cat = test_catalog (dir);
  g_autoptr (GError) error = NULL;

  g_assert_false (catalog_in_transaction (cat));
  g_assert_true (catalog_begin (cat, &error));
  g_assert_true (catalog_in_transaction (cat));
  insert (cat, "a");
  g_assert_true (catalog_begin (cat, &error));
  insert (cat, "b");
  g_assert_true (catalog_commit (cat, &error));
  g_assert_true (catalog_in_transaction (cat));
  catalog_rollback (cat);
  g_assert_cmpint (nr_disks (cat), ==, 0);

  g_assert_true (catalog_begin (cat, &error));
  insert (cat, "a");
  g_assert_true (catalog_begin (cat, &error));
  catalog_rollback (cat);
  catalog_lock (cat);
  g_assert_null (catalog_stmt (cat, "SELECT 1", &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_IO);
  g_clear_error (&error);
  catalog_unlock (cat);
  g_assert_false (catalog_commit (cat, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_IO);
  g_clear_error (&error);
  g_assert_false (catalog_in_transaction (cat));
  g_assert_cmpint (nr_disks (cat), ==, 0);

  g_assert_true (catalog_begin (cat, &error));
  insert (cat, "a");
  g_assert_true (catalog_commit (cat, &error));
  catalog_free (cat);
  cat = test_catalog (dir);
  g_assert_cmpint (nr_disks (cat), ==, 1);
  catalog_free (cat);
  test_dir_free (dir);
}

static void
test_exists (void)
{
  char *dir = test_dir_new ();
  Catalog *cat = test_catalog (dir);
  g_autoptr (GError) error = NULL;
  sqlite3_stmt *stmt;

  catalog_lock (cat);
  insert (cat, "a");
  stmt = catalog_stmt (cat,
    "INSERT INTO disk (name, granularity, size, device, inode, mtime_ns, clean,"
    " next_epoch) VALUES ('a', 4096, 0, 0, 0, 0, 0, 1)", &error);
  g_assert_no_error (error);
  g_assert_false (catalog_step_done (cat, stmt, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS);
  catalog_unlock (cat);
  catalog_free (cat);
  test_dir_free (dir);
}

/* A loop over rows that is left early does not block what comes after. */
static void
test_left_early (void)
{
  char *dir = test_dir_new ();
  Catalog *cat = test_catalog (dir);
  GError *error = NULL;
  sqlite3_stmt *stmt;

  insert (cat, "a");
  insert (cat, "b");
  catalog_lock (cat);
  stmt = catalog_stmt (cat, "SELECT name FROM disk", &error);
  g_assert_cmpint (catalog_step_row (cat, stmt, &error), ==, 1);
  g_assert_true (sqlite3_stmt_busy (stmt));
  catalog_unlock (cat);
  g_assert_false (sqlite3_stmt_busy (stmt));
  catalog_free (cat);
  test_dir_free (dir);
}

static void *
other_thread (void *arg)
{
  Catalog *cat = arg;
  GError *error = NULL;

  for (int i = 0; i < 200; i++) {
    g_assert_true (catalog_begin (cat, &error));
    g_assert_cmpint (nr_disks (cat) % 2, ==, 0);
    catalog_rollback (cat);
  }
  return NULL;
}

/* A transaction is never seen half by another thread. */
static void
test_threads (void)
{
  char *dir = test_dir_new ();
  Catalog *cat = test_catalog (dir);
  GError *error = NULL;
  pthread_t thread;

  pthread_create (&thread, NULL, other_thread, cat);
  for (int i = 0; i < 50; i++) {
    g_autofree char *a = g_strdup_printf ("a%d", i);
    g_autofree char *b = g_strdup_printf ("b%d", i);

    g_assert_true (catalog_begin (cat, &error));
    insert (cat, a);
    insert (cat, b);
    g_assert_true (catalog_commit (cat, &error));
  }
  pthread_join (thread, NULL);
  g_assert_cmpint (nr_disks (cat), ==, 100);
  catalog_free (cat);
  test_dir_free (dir);
}

/* A file size limit stands for a full disk: it fails the same writes. */
static void
set_limit (rlim_t bytes)
{
  struct rlimit limit;

  g_assert_cmpint (getrlimit (RLIMIT_FSIZE, &limit), ==, 0);
  limit.rlim_cur = bytes;
  g_assert_cmpint (setrlimit (RLIMIT_FSIZE, &limit), ==, 0);
}

static void
test_full (void)
{
  char *dir = test_dir_new ();
  Catalog *cat = test_catalog (dir);
  g_autoptr (GError) error = NULL;
  EpochLog *log = epoch_log_open (cat, "vda", 4096, &identity, NULL, &error);
  g_autoptr (ChangeSet) cs = NULL;
  uint64_t first, count;
  Epoch *next;

  g_assert_no_error (error);
  signal (SIGXFSZ, SIG_IGN);
  first = epoch_log_current (log)->id;
  for (uint64_t g = 0; g < identity.size / 4096; g += 3)
    dirty_bitmap_set (epoch_log_current (log)->bitmap, g * 4096, 1);
  count = dirty_bitmap_count (epoch_log_current (log)->bitmap);
  next = epoch_log_prepare (log, identity.size, 4096, &error);
  g_assert_no_error (error);
  g_assert_true (epoch_log_seal (log, next, &error));

  set_limit (100000);
  g_assert_false (epoch_log_store (log, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_IO);
  g_assert_nonnull (strstr (error->message, "catalog.sqlite"));
  g_clear_error (&error);
  g_assert_false (epoch_log_close (log, &identity, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_IO);
  g_clear_error (&error);
  g_assert_false (catalog_in_transaction (cat));

  /* Nothing is lost, and once there is room all goes on. */
  cs = epoch_log_changed (log, first, 0, NULL, &error);
  g_assert_no_error (error);
  g_assert_cmpuint (change_set_count (cs), ==, count);
  g_clear_pointer (&cs, change_set_unref);
  set_limit (RLIM_INFINITY);
  g_assert_true (epoch_log_close (log, &identity, &error));
  epoch_log_free (log);
  log = epoch_log_open (cat, "vda", 4096, &identity, NULL, &error);
  g_assert_true (epoch_log_report (log)->clean);
  cs = epoch_log_changed (log, first, 0, NULL, &error);
  g_assert_cmpuint (change_set_count (cs), ==, count);
  epoch_log_free (log);
  catalog_free (cat);
  test_dir_free (dir);
}

static void
test_full_from_start (void)
{
  char *dir = test_dir_new ();

  signal (SIGXFSZ, SIG_IGN);
  set_limit (20000);
  refused (dir, BITMAP_ERROR_IO, "");
  set_limit (RLIM_INFINITY);
  catalog_free (test_catalog (dir));
  test_dir_free (dir);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/bitmap/catalog/newer", test_newer);
  g_test_add_func ("/bitmap/catalog/negative", test_negative);
  g_test_add_func ("/bitmap/catalog/migrate", test_migrate);
  g_test_add_func ("/bitmap/catalog/garbage", test_garbage);
  g_test_add_func ("/bitmap/catalog/foreign", test_foreign);
  g_test_add_func ("/bitmap/catalog/damaged-pages", test_damaged_pages);
  g_test_add_func ("/bitmap/catalog/nesting", test_nesting);
  g_test_add_func ("/bitmap/catalog/exists", test_exists);
  g_test_add_func ("/bitmap/catalog/left-early", test_left_early);
  g_test_add_func ("/bitmap/catalog/threads", test_threads);
  g_test_add_func ("/bitmap/catalog/full", test_full);
  g_test_add_func ("/bitmap/catalog/full-from-start", test_full_from_start);
  return g_test_run ();
}
