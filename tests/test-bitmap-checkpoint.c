/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The tree of checkpoints: deleting the first, a middle one or the last changes
 * no other one's boundary; who is parent and who is current afterwards. */
#include "config.h"

#include <string.h>

#include "bitmap-test.h"
#include "bitmap/checkpoint.h"
#include "bitmap/epoch.h"

static char *dir;
static Catalog *cat;

static void
setup (void)
{
  static const char *const disks[] = { "vda", "vdb" };
  DiskIdentity identity = { .size = 1 << 20 };
  GError *error = NULL;

  dir = test_dir_new ();
  cat = test_catalog (dir);
  for (size_t i = 0; i < G_N_ELEMENTS (disks); i++) {
    EpochLog *log = epoch_log_open (cat, disks[i], 65536, &identity, NULL, &error);

    g_assert_no_error (error);
    epoch_log_free (log);
  }
}

static void
teardown (void)
{
  catalog_free (cat);
  test_dir_free (dir);
}

static void
add (const char *name, uint64_t boundary)
{
  g_autoptr (Checkpoint) ckpt = checkpoint_new (name, NULL, 1000);
  GError *error = NULL;

  checkpoint_add_disk (ckpt, "vdb", name, boundary + 100);
  checkpoint_add_disk (ckpt, "vda", name, boundary);
  checkpoint_insert (cat, ckpt, &error);
  g_assert_no_error (error);
}

/* The tree as text: "name<parent" each, current with a star. */
static void
expect (const char *text)
{
  GError *error = NULL;
  g_autoptr (GPtrArray) list = checkpoint_list (cat, &error);
  g_autoptr (GString) got = g_string_new (NULL);

  g_assert_no_error (error);
  for (guint i = 0; i < list->len; i++) {
    const Checkpoint *ckpt = g_ptr_array_index (list, i);

    g_string_append_printf (got, "%s%s<%s%s", i > 0 ? " " : "", ckpt->name,
                            ckpt->parent != NULL ? ckpt->parent : "",
                            ckpt->current ? "*" : "");
  }
  g_assert_cmpstr (got->str, ==, text);
}

static void
expect_boundary (const char *name, uint64_t want)
{
  GError *error = NULL;
  uint64_t boundary;

  g_assert_true (checkpoint_boundary (cat, "vda", name, &boundary, &error));
  g_assert_cmpuint (boundary, ==, want);
  g_assert_true (checkpoint_boundary (cat, "vdb", name, &boundary, &error));
  g_assert_cmpuint (boundary, ==, want + 100);
}

static uint64_t
oldest (void)
{
  GError *error = NULL;
  uint64_t boundary;

  checkpoint_oldest_boundary (cat, "vda", &boundary, &error);
  g_assert_no_error (error);
  return boundary;
}

static void
delete (const char *name, CheckpointDelete how, const char *deleted)
{
  g_autoptr (GPtrArray) names = NULL;
  g_autofree char *joined = NULL;
  GError *error = NULL;

  checkpoint_delete (cat, name, how, &names, &error);
  g_assert_no_error (error);
  g_ptr_array_add (names, NULL);
  joined = g_strjoinv (" ", (char **) names->pdata);
  g_assert_cmpstr (joined, ==, deleted);
}

static void
test_delete_one (void)
{
  setup ();
  g_assert_cmpuint (oldest (), ==, 0);
  add ("a", 1);
  add ("b", 2);
  add ("c", 3);
  add ("d", 4);
  expect ("a< b<a c<b d<c*");
  delete ("b", CHECKPOINT_DELETE_ONE, "b");     /* middle */
  expect ("a< c<a d<c*");
  expect_boundary ("a", 1);
  expect_boundary ("c", 3);
  delete ("d", CHECKPOINT_DELETE_ONE, "d");     /* last */
  expect ("a< c<a*");
  g_assert_cmpuint (oldest (), ==, 1);
  delete ("a", CHECKPOINT_DELETE_ONE, "a");     /* first */
  expect ("c<*");
  expect_boundary ("c", 3);
  g_assert_cmpuint (oldest (), ==, 3);
  add ("b", 5);                                 /* a name may come again */
  expect ("c< b<c*");
  delete ("c", CHECKPOINT_DELETE_ONE, "c");
  delete ("b", CHECKPOINT_DELETE_ONE, "b");
  expect ("");
  g_assert_cmpuint (oldest (), ==, 0);
  add ("e", 6);
  expect ("e<*");
  teardown ();
}

static void
test_delete_tree (void)
{
  setup ();
  add ("a", 1);
  add ("b", 2);
  add ("c", 3);
  add ("d", 4);
  delete ("b", CHECKPOINT_DELETE_CHILDREN, "d c");
  expect ("a< b<a*");
  add ("c", 5);
  add ("d", 6);
  expect ("a< b<a c<b d<c*");
  delete ("c", CHECKPOINT_DELETE_TREE, "d c");
  expect ("a< b<a*");
  delete ("a", CHECKPOINT_DELETE_TREE, "b a");
  expect ("");
  teardown ();
}

/* A tree with branches, as redefining makes them. */
static void
test_branches (void)
{
  setup ();
  add ("a", 1);
  add ("b", 2);
  add ("c", 3);
  test_sql (cat, "UPDATE meta SET current_checkpoint ="
                 " (SELECT id FROM checkpoint WHERE name = 'a')");
  add ("x", 4);
  expect ("a< b<a x<a* c<b");
  delete ("b", CHECKPOINT_DELETE_TREE, "c b");
  expect ("a< x<a*");
  add ("y", 5);
  delete ("a", CHECKPOINT_DELETE_ONE, "a");
  expect ("x< y<x*");
  teardown ();
}

static void
test_not_found (void)
{
  g_autoptr (GError) error = NULL;
  uint64_t boundary = 7;

  setup ();
  g_assert_false (checkpoint_delete (cat, "no", CHECKPOINT_DELETE_ONE, NULL,
                                     &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND);
  g_assert_cmpstr (error->message, ==, "checkpoint 'no' not found");
  g_clear_error (&error);
  g_assert_null (checkpoint_lookup (cat, "no", &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND);
  g_assert_cmpstr (error->message, ==, "checkpoint 'no' not found");
  g_clear_error (&error);
  g_assert_false (checkpoint_boundary (cat, "vda", "no", &boundary, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND);
  g_assert_cmpuint (boundary, ==, 7);
  teardown ();
}

static void
expect_exists (const Checkpoint *ckpt)
{
  g_autoptr (GError) error = NULL;

  g_assert_false (checkpoint_insert (cat, ckpt, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS);
}

/* Bitmaps and checkpoints of one disk share one namespace. */
static void
test_namespace (void)
{
  g_autoptr (Checkpoint) bitmap_taken = checkpoint_new ("new", NULL, 1);
  g_autoptr (Checkpoint) name_taken = checkpoint_new ("mon", NULL, 1);
  g_autoptr (Checkpoint) name_is_bitmap = checkpoint_new ("mon-bits", NULL, 1);
  g_autoptr (Checkpoint) bitmap_is_name = checkpoint_new ("new", NULL, 1);
  g_autoptr (Checkpoint) named = checkpoint_new ("named", NULL, 1);
  g_autoptr (Checkpoint) other_disk = checkpoint_new ("new", "text", 12);
  g_autoptr (Checkpoint) no_disk = checkpoint_new ("lost", NULL, 1);
  g_autoptr (Checkpoint) mon = checkpoint_new ("mon", NULL, 1);
  g_autoptr (Checkpoint) got = NULL;
  g_autoptr (GError) error = NULL;
  sqlite3_stmt *stmt;

  setup ();
  checkpoint_add_disk (mon, "vda", "mon-bits", 1);
  g_assert_true (checkpoint_insert (cat, mon, &error));

  checkpoint_add_disk (bitmap_taken, "vda", "mon-bits", 2);
  expect_exists (bitmap_taken);
  checkpoint_add_disk (name_taken, "vdb", "mon", 2);
  expect_exists (name_taken);
  checkpoint_add_disk (name_is_bitmap, "vda", "free", 2);
  expect_exists (name_is_bitmap);
  checkpoint_add_disk (bitmap_is_name, "vda", "mon", 2);
  expect_exists (bitmap_is_name);

  test_sql (cat, "INSERT INTO bitmap (disk, name, granularity, persistent,"
                 " recording, inconsistent, size)"
                 " SELECT id, 'named', 65536, 1, 1, 0, 0"
                 " FROM disk WHERE name = 'vda'");
  checkpoint_add_disk (named, "vda", "named", 2);
  expect_exists (named);
  g_assert_false (checkpoint_name_free (cat, "named", NULL, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS);
  g_clear_error (&error);

  /* The other way round it is the schema that refuses. */
  catalog_lock (cat);
  stmt = catalog_stmt (cat,
    "INSERT INTO bitmap (disk, name, granularity, persistent, recording,"
    " inconsistent, size) SELECT id, 'mon-bits', 65536, 1, 1, 0, 0 FROM disk"
    " WHERE name = 'vda'", &error);
  g_assert_no_error (error);
  g_assert_false (catalog_step_done (cat, stmt, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS);
  g_clear_error (&error);
  catalog_unlock (cat);

  checkpoint_add_disk (no_disk, "vdz", "lost", 2);
  g_assert_false (checkpoint_insert (cat, no_disk, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND);
  g_clear_error (&error);
  expect ("mon<*");                     /* failures left nothing behind */

  g_assert_false (checkpoint_name_free (cat, "mon", NULL, NULL));
  g_assert_false (checkpoint_name_free (cat, "mon-bits", NULL, NULL));
  g_assert_true (checkpoint_name_free (cat, "new", NULL, NULL));
  checkpoint_add_disk (other_disk, "vdb", "mon-bits", 2);
  g_assert_true (checkpoint_insert (cat, other_disk, &error));
  got = checkpoint_lookup (cat, "new", &error);
  g_assert_cmpstr (got->description, ==, "text");
  g_assert_cmpstr (got->parent, ==, "mon");
  g_assert_cmpint (got->creation_time, ==, 12);
  g_assert_true (got->current);
  g_assert_cmpuint (got->disks->len, ==, 1);
  g_assert_null (checkpoint_find_disk (got, "vda"));
  g_assert_cmpstr (checkpoint_find_disk (got, "vdb")->bitmap, ==, "mon-bits");
  g_assert_cmpuint (checkpoint_find_disk (got, "vdb")->boundary, ==, 2);
  teardown ();
}

/* Everything that may still ask for old epochs counts. */
static void
test_oldest (void)
{
  setup ();
  add ("a", 50);
  g_assert_cmpuint (oldest (), ==, 50);
  test_sql (cat, "INSERT INTO snapshot (disk, name, boundary, size, state,"
                 " created, on_error, scratch_limit)"
                 " VALUES (1, 's', 40, 1, 'live', 1, 'break', 0)");
  g_assert_cmpuint (oldest (), ==, 40);
  test_sql (cat, "INSERT INTO backup (id, state, created)"
                 " VALUES ('b', 'running', 1)");
  test_sql (cat, "INSERT INTO backup_disk (backup, disk, since_boundary)"
                 " VALUES ('b', 1, 30), ('b', 2, 3)");
  g_assert_cmpuint (oldest (), ==, 30);
  test_sql (cat, "INSERT INTO bitmap (id, disk, name, granularity, persistent,"
                 " recording, inconsistent, size)"
                 " VALUES (9, 1, 'n', 4096, 1, 1, 0, 0)");
  test_sql (cat, "INSERT INTO bitmap_interval (bitmap, disk, from_epoch,"
                 " granularity) VALUES (9, 1, 20, 4096)");
  g_assert_cmpuint (oldest (), ==, 20);
  test_sql (cat, "DELETE FROM bitmap");
  test_sql (cat, "DELETE FROM backup");
  test_sql (cat, "DELETE FROM snapshot");
  g_assert_cmpuint (oldest (), ==, 50);
  teardown ();
}

/* Part of a larger transaction: all or nothing. */
static void
test_transaction (void)
{
  g_autoptr (GError) error = NULL;

  setup ();
  add ("a", 1);
  g_assert_true (catalog_begin (cat, &error));
  add ("b", 2);
  delete ("a", CHECKPOINT_DELETE_ONE, "a");
  expect ("b<*");
  catalog_rollback (cat);
  expect ("a<*");
  teardown ();
}

/* Opening a disk with a long history reads no change set.  Counted in pages
 * read, of which each stored epoch here has six. */
static void
test_thousand (void)
{
  DiskIdentity identity = { .size = UINT64_C (1) << 32 };
  GError *error = NULL;
  g_autoptr (GPtrArray) list = NULL;
  EpochLog *log;
  sqlite3_stmt *stmt;
  int pages, unused;

  setup ();
  log = epoch_log_open (cat, "vdc", 4096, &identity, NULL, &error);
  g_assert_no_error (error);
  g_assert_true (catalog_begin (cat, &error));
  for (int i = 0; i < 1000; i++) {
    g_autofree char *name = g_strdup_printf ("c%d", i);
    g_autoptr (Checkpoint) ckpt = checkpoint_new (name, NULL, i);

    checkpoint_add_disk (ckpt, "vdc", name, (uint64_t) i + 1);
    checkpoint_insert (cat, ckpt, &error);
    g_assert_no_error (error);
  }
  g_assert_true (catalog_commit (cat, &error));
  test_sql (cat, "WITH RECURSIVE n (i) AS"
                 " (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)"
                 " INSERT INTO epoch (disk, id, prev, size, granularity,"
                 "   state, all_dirty, count, blob) SELECT disk.id, 10000 + i, 9999 + i,"
                 "   4294967296, 4096, 'sealed', 0, 1, randomblob (100000)"
                 "   FROM n, disk WHERE disk.name = 'vdc'");
  test_sql (cat, "UPDATE disk SET next_epoch = 20000 WHERE name = 'vdc'");
  g_assert_true (epoch_log_close (log, &identity, &error));
  epoch_log_free (log);
  catalog_free (cat);

  cat = test_catalog (dir);
  log = epoch_log_open (cat, "vdc", 4096, &identity, NULL, &error);
  g_assert_no_error (error);
  g_assert_true (epoch_log_report (log)->clean);
  list = checkpoint_list (cat, &error);
  g_assert_cmpuint (list->len, ==, 1000);
  catalog_lock (cat);
  stmt = catalog_stmt (cat, "SELECT 1", &error);
  g_assert_cmpint (sqlite3_db_status (sqlite3_db_handle (stmt),
                                      SQLITE_DBSTATUS_CACHE_MISS, &pages,
                                      &unused, 0), ==, SQLITE_OK);
  catalog_unlock (cat);
  g_assert_cmpint (pages, <, 450);
  epoch_log_free (log);
  teardown ();
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/bitmap/checkpoint/delete-one", test_delete_one);
  g_test_add_func ("/bitmap/checkpoint/delete-tree", test_delete_tree);
  g_test_add_func ("/bitmap/checkpoint/branches", test_branches);
  g_test_add_func ("/bitmap/checkpoint/not-found", test_not_found);
  g_test_add_func ("/bitmap/checkpoint/namespace", test_namespace);
  g_test_add_func ("/bitmap/checkpoint/oldest", test_oldest);
  g_test_add_func ("/bitmap/checkpoint/transaction", test_transaction);
  g_test_add_func ("/bitmap/checkpoint/thousand", test_thousand);
  return g_test_run ();
}
