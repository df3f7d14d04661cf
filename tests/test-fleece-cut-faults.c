/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Each storage call of a cut fails once, and so does what the caller and the
 * catalog do in it: the cut either succeeds or leaves nothing named, and older
 * snapshots, tracking and the next cut are as good as before. */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "bitmap/bitmap-error.h"
#include "tests/fleece-fixture.h"
#include "tests/storage-hook.h"

#define SIZE (2 * 1024 * 1024)
#define BLOCK 4096
#define NR_BLOCKS (SIZE / BLOCK)

/* Fails the call number fail_at, from 1; 0: none. */
static struct {
  pthread_mutex_t lock;
  unsigned calls, fail_at;
} fault = { .lock = PTHREAD_MUTEX_INITIALIZER };

static Fixture *fx;
static Snapshot *old[2];
static uint64_t old_boundary[2];
static unsigned touched;        /* blocks of each disk, from the first */

static int
hook (void *opaque, const struct hook_info *info)
{
  int err = 0;

  /* A file that cannot be removed is not the cut's to mend. */
  if (info->call == HOOK_REMOVE)
    return 0;
  pthread_mutex_lock (&fault.lock);
  if (++fault.calls == fault.fail_at)
    err = -EIO;
  pthread_mutex_unlock (&fault.lock);
  return err;
}

/* Returns the number of calls since the last time. */
static unsigned
arm (unsigned fail_at)
{
  unsigned calls;

  pthread_mutex_lock (&fault.lock);
  calls = fault.calls;
  fault.calls = 0;
  fault.fail_at = fail_at;
  pthread_mutex_unlock (&fault.lock);
  return calls;
}

static void
setup (void)
{
  arm (0);
  fx = fixture_new_hooked (2, SIZE, hook, NULL);
  fixture_start_full (fx, 'a');
  touched = 0;
  for (unsigned i = 0; i < 2; i++)
    old[i] = fixture_cut (fx, i, "old", &old_boundary[i]);
}

static void
teardown (void)
{
  for (unsigned i = 0; i < 2; i++)
    fixture_end (old[i]);
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
  fixture_stop (fx);
  fixture_start (fx);
  for (unsigned i = 0; i < 2; i++)
    for (unsigned b = 0; b < NR_BLOCKS; b += 16)
      g_assert_cmpint (fixture_is_dirty (fx, i, old_boundary[i], 0,
                                         (uint64_t) b * BLOCK), ==,
                       b < touched);
  fixture_free (fx);
}

/* The old snapshots and tracking since them, with a first touch more. */
static void
check_old (void)
{
  for (unsigned i = 0; i < 2; i++) {
    fixture_write (fx->disk[i], (uint64_t) touched * BLOCK, BLOCK, 'b');
    fixture_check_snapshot (old[i], 0, SIZE, 'a');
    g_assert_true (fixture_is_dirty (fx, i, old_boundary[i], 0,
                                     (uint64_t) touched * BLOCK));
  }
  touched++;
  g_assert_cmpint (touched, <, NR_BLOCKS);
}

/* A cut of both disks with snapshots called "new", and one more of the
 * second. */
static bool
try_cut (FleeceCutDisk cd[3], bool (*commit) (void *, GError **),
         GError **error)
{
  for (unsigned i = 0; i < 2; i++)
    cd[i] = (FleeceCutDisk) { .disk = fx->disk[i], .snapshot = "new" };
  cd[2] = (FleeceCutDisk) { .disk = fx->disk[1], .snapshot = "twin" };
  return fleece_cut (fx->f, cd, 3, commit, NULL, error);
}

static void
check_failed (FleeceCutDisk cd[3])
{
  for (unsigned i = 0; i < 2; i++) {
    struct disk_stats stats;

    g_assert_null (cd[i].out_snapshot);
    g_assert_null (disk_find_snapshot (fx->disk[i], "new"));
    disk_stats (fx->disk[i], &stats);
    g_assert_cmpuint (stats.snapshots, ==, 1);
  }
  g_assert_null (cd[2].out_snapshot);
}

static void
check_cut_works (void)
{
  FleeceCutDisk cd[3];
  g_autoptr (GError) error = NULL;
  unsigned at = touched;

  try_cut (cd, NULL, &error);
  g_assert_no_error (error);
  g_assert_cmpuint (cd[1].boundary, ==, cd[2].boundary);
  check_old ();
  fixture_check_snapshot (cd[2].out_snapshot, (uint64_t) at * BLOCK, BLOCK,
                          'a');
  for (unsigned i = 0; i < 2; i++) {
    fixture_check_snapshot (cd[i].out_snapshot, (uint64_t) at * BLOCK, BLOCK,
                            'a');
    g_assert_false (fixture_is_dirty (fx, i, cd[i].boundary, 0, SIZE - 1));
    g_assert_true (fixture_is_dirty (fx, i, cd[i].boundary, 0,
                                     (uint64_t) at * BLOCK));
    fixture_end (cd[i].out_snapshot);
  }
  check_old ();
  fixture_check_snapshot (cd[2].out_snapshot, (uint64_t) at * BLOCK,
                          2 * BLOCK, 'a');
  fixture_end (cd[2].out_snapshot);
}

static void
test_storage (void)
{
  unsigned nr_failed = 0, calls;

  setup ();
  for (unsigned n = 1;; n++) {
    FleeceCutDisk cd[3];
    g_autoptr (GError) error = NULL;
    bool ok;

    arm (n);
    ok = try_cut (cd, NULL, &error);
    calls = arm (0);
    if (ok) {
      for (unsigned i = 0; i < 3; i++)
        fixture_end (cd[i].out_snapshot);
      if (calls < n)            /* none was left to fail */
        break;
    }
    else {
      nr_failed++;
      g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_IO);
      check_failed (cd);
      check_old ();
    }
    check_cut_works ();
  }
  /* At least three scratch files and two syncs. */
  g_assert_cmpuint (nr_failed, >=, 5);
  teardown ();
}

static bool
fail_commit (void *opaque, GError **error)
{
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND, "no such thing");
  return false;
}

static void
test_commit_callback (void)
{
  FleeceCutDisk cd[3];
  g_autoptr (GError) error = NULL;

  setup ();
  g_assert_false (try_cut (cd, fail_commit, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND);
  check_failed (cd);
  check_old ();
  check_cut_works ();
  teardown ();
}

static void
run_sql (const char *sql)
{
  g_autoptr (GError) error = NULL;
  sqlite3_stmt *stmt;

  catalog_lock (fx->cat);
  stmt = catalog_stmt (fx->cat, sql, &error);
  g_assert_no_error (error);
  catalog_step_done (fx->cat, stmt, &error);
  g_assert_no_error (error);
  catalog_unlock (fx->cat);
}

/* From here on the catalog takes no write. */
static bool
break_catalog (void *opaque, GError **error)
{
  run_sql ("PRAGMA query_only = 1");
  return true;
}

/* Not even the rows of the failed cut can be deleted. */
static void
test_catalog_gone (void)
{
  FleeceCutDisk cd[3];
  g_autoptr (GError) error = NULL;

  setup ();
  g_assert_false (try_cut (cd, break_catalog, &error));
  g_assert_nonnull (error);
  check_failed (cd);
  check_old ();
  g_clear_error (&error);
  g_assert_false (try_cut (cd, NULL, &error));
  g_assert_nonnull (error);
  check_failed (cd);
  run_sql ("PRAGMA query_only = 0");
  check_old ();
  check_cut_works ();
  teardown ();
}

/* The same, and the server stops and starts before anybody asks again. */
static void
test_catalog_gone_restart (void)
{
  FleeceCutDisk cd[3];
  g_autoptr (GError) error = NULL;

  setup ();
  g_assert_false (try_cut (cd, break_catalog, &error));
  run_sql ("PRAGMA query_only = 0");
  check_old ();
  for (unsigned i = 0; i < 2; i++)
    snapshot_unref (old[i]);
  fixture_stop (fx);
  fixture_start (fx);
  for (unsigned i = 0; i < 2; i++)
    old[i] = disk_find_snapshot (fx->disk[i], "old");
  check_failed (cd);
  check_old ();
  check_cut_works ();
  teardown ();
}

/* Killed between the making of a scratch file and the commit of its row, once
 * left a file in the way of every later cut. */
static void
test_leftover_file (void)
{
  g_autoptr (GDir) dir = NULL;
  const char *name;
  g_autofree char *path = NULL, *stem = NULL, *best = NULL;
  int64_t id;
  int fd;

  setup ();
  dir = g_dir_open (fx->scratch, 0, NULL);
  while ((name = g_dir_read_name (dir)) != NULL)
    if (g_str_has_prefix (name, "d1-"))
      best = g_strdup (name);   /* the only one */
  g_assert_nonnull (best);
  stem = g_strndup (best, strrchr (best, '-') - best);
  id = g_ascii_strtoll (strrchr (best, '-') + 1, NULL, 10);
  path = g_strdup_printf ("%s/%s-%" G_GINT64_FORMAT ".layer", fx->scratch, stem,
                          id + 2);      /* d0 gets the one between */
  fd = open (path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  g_assert_cmpint (fd, >=, 0);
  close (fd);
  check_cut_works ();
  teardown ();
}

static void
test_scratch_file_exists (void)
{
  g_autofree char *path = NULL;
  FleeceCutDisk cd;
  g_autoptr (GError) error = NULL;
  Snapshot *snap;
  int fd;

  setup ();
  path = g_strdup_printf ("%s/own.scratch", fx->dir);
  cd = (FleeceCutDisk) {
    .disk = fx->disk[0], .snapshot = "x", .scratch_file = path,
  };
  fd = open (path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  close (fd);
  g_assert_false (fleece_cut (fx->f, &cd, 1, NULL, NULL, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS);
  g_assert_cmpint (access (path, F_OK), ==, 0);        /* it is not ours */
  g_clear_error (&error);
  unlink (path);

  fleece_cut (fx->f, &cd, 1, NULL, NULL, &error);
  g_assert_no_error (error);
  g_assert_cmpint (access (path, F_OK), ==, 0);
  snap = cd.out_snapshot;
  cd.snapshot = "y";
  g_assert_false (fleece_cut (fx->f, &cd, 1, NULL, NULL, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS);
  g_assert_nonnull (strstr (error->message, path));
  g_clear_error (&error);
  cd.snapshot = "x";
  cd.scratch_file = NULL;
  g_assert_false (fleece_cut (fx->f, &cd, 1, NULL, NULL, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS);
  fixture_check_snapshot (snap, 0, SIZE, 'a');
  check_old ();
  fixture_check_snapshot (snap, 0, SIZE, 'a');
  snapshot_unref (old[0]);
  fixture_end (snap);
  old[0] = disk_find_snapshot (fx->disk[0], "old");
  check_old ();
  teardown ();
  g_assert_cmpint (access (path, F_OK), !=, 0);
}

static void
test_bad_requests (void)
{
  static const char *const names[] = {
    "", ".", "..", "a/b", "a b", "\001", "ä",
    "12345678901234567890123456789012345678901234567890123456789012345",
  };
  FleeceCutDisk cd[3] = { 0 };
  g_autoptr (GError) error = NULL;

  setup ();
  for (unsigned i = 0; i < G_N_ELEMENTS (names); i++) {
    cd[0] = (FleeceCutDisk) { .disk = fx->disk[0], .snapshot = names[i] };
    g_assert_false (fleece_cut (fx->f, cd, 1, NULL, NULL, &error));
    g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID);
    g_clear_error (&error);
  }
  cd[0] = (FleeceCutDisk) { .disk = fx->disk[0], .snapshot = "one" };
  cd[1] = cd[0];
  g_assert_false (fleece_cut (fx->f, cd, 2, NULL, NULL, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS);
  g_clear_error (&error);
  /* No disk at all: only the caller's transaction. */
  g_assert_true (fleece_cut (fx->f, cd, 0, NULL, NULL, &error));
  g_assert_false (fleece_cut (fx->f, cd, 0, fail_commit, NULL, &error));
  check_failed (cd);
  check_old ();
  check_cut_works ();
  teardown ();
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/fleece/cut-faults/storage", test_storage);
  g_test_add_func ("/fleece/cut-faults/commit-callback", test_commit_callback);
  g_test_add_func ("/fleece/cut-faults/catalog-gone", test_catalog_gone);
  g_test_add_func ("/fleece/cut-faults/catalog-gone-restart",
                   test_catalog_gone_restart);
  g_test_add_func ("/fleece/cut-faults/leftover-file", test_leftover_file);
  g_test_add_func ("/fleece/cut-faults/scratch-file-exists",
                   test_scratch_file_exists);
  g_test_add_func ("/fleece/cut-faults/bad-requests", test_bad_requests);
  return g_test_run ();
}
