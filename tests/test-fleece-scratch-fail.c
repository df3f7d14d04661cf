/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A scratch file that fails or is full breaks snapshots, not guests, unless a
 * snapshot was asked for that prefers it the other way round. */
#include <config.h>

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/fleece-fixture.h"
#include "tests/storage-hook.h"

#define SIZE (8 * 1024 * 1024)
#define BLOCK 4096
#define AT (1024 * 1024)

/* Fails calls of one kind on files whose name ends in suffix. */
static struct {
  pthread_mutex_t lock;
  const char *suffix;           /* NULL: none */
  HookCall call;
  uint64_t start, end;
  int err;
  const char *too_suffix;       /* and these */
  HookCall too_call;
  int too_err;
} fail = { .lock = PTHREAD_MUTEX_INITIALIZER };

static Fixture *fx;

static int
hook (void *opaque, const struct hook_info *info)
{
  int err = 0;

  pthread_mutex_lock (&fail.lock);
  if (fail.suffix != NULL && fail.call == info->call &&
      g_str_has_suffix (info->path, fail.suffix) &&
      (info->length == 0 ||
       (info->offset < fail.end && info->offset + info->length > fail.start)))
    err = fail.err;
  if (fail.too_suffix != NULL && fail.too_call == info->call &&
      g_str_has_suffix (info->path, fail.too_suffix))
    err = fail.too_err;
  pthread_mutex_unlock (&fail.lock);
  return err;
}

static void
set_fail (HookCall call, const char *suffix, uint64_t offset, uint64_t length,
          int err)
{
  pthread_mutex_lock (&fail.lock);
  fail.call = call;
  fail.suffix = suffix;
  fail.start = offset;
  fail.end = offset + length;
  fail.err = err;
  pthread_mutex_unlock (&fail.lock);
}

static void
set_fail_too (HookCall call, const char *suffix, int err)
{
  pthread_mutex_lock (&fail.lock);
  fail.too_call = call;
  fail.too_suffix = suffix;
  fail.too_err = err;
  pthread_mutex_unlock (&fail.lock);
}

static void
setup (void)
{
  set_fail (HOOK_PREAD, NULL, 0, 0, 0);
  fx = fixture_new_hooked (1, SIZE, hook, NULL);
  fixture_start_full (fx, 'a');
}

static Snapshot *
cut (const char *name, FleeceOnError on_error, uint64_t limit)
{
  g_autoptr (GError) error = NULL;
  FleeceCutDisk cd = {
    .disk = fx->disk[0], .snapshot = name, .on_error = on_error,
    .scratch_limit = limit,
  };

  fleece_cut (fx->f, &cd, 1, NULL, NULL, &error);
  g_assert_no_error (error);
  return cd.out_snapshot;
}

static int
try_write (uint64_t offset, uint64_t length, int value)
{
  g_autofree char *buf = g_malloc (length);

  memset (buf, value, length);
  return disk_pwrite (fx->disk[0], buf, length, offset, false);
}

static int
ignore_run (void *opaque, uint64_t length, bool zero)
{
  return 0;
}

static unsigned
nr_notes (const char *start)
{
  g_auto (GStrv) lines = g_strsplit (fx->notes->str, "\n", -1);
  unsigned nr = 0;

  for (unsigned i = 0; lines[i] != NULL; i++)
    nr += g_str_has_prefix (lines[i], start);
  return nr;
}

static void
check_broken (Snapshot *snap, const char *why)
{
  g_autofree char *reason = snapshot_reason (snap);
  char buf[BLOCK];

  g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_BROKEN);
  g_assert_nonnull (reason);
  g_assert_nonnull (strstr (reason, why));
  g_assert_cmpint (snapshot_pread (snap, buf, sizeof buf, 0), ==, -EIO);
  g_assert_cmpint (snapshot_extents (snap, SIZE, 0, ignore_run, NULL), ==,
                   -EIO);
}

static void
break_by_default (int err)
{
  Snapshot *s1, *s2, *s3;

  setup ();
  s1 = cut ("s1", FLEECE_BREAK_SNAPSHOT, 0);
  s2 = cut ("s2", FLEECE_BREAK_SNAPSHOT, 0);
  set_fail (HOOK_PWRITE, ".layer", 0, SIZE, -err);
  g_assert_cmpint (try_write (AT, 2 * BLOCK, 'b'), ==, 0);
  g_assert_cmpint (try_write (AT + 65536, BLOCK, 'b'), ==, 0);
  fixture_check_disk (fx->disk[0], AT, 2 * BLOCK, 'b');
  check_broken (s1, g_strerror (err));
  check_broken (s2, g_strerror (err));
  g_assert_cmpuint (nr_notes ("broken d0 s1: "), ==, 1);
  g_assert_cmpuint (nr_notes ("broken d0 s2: "), ==, 1);
  g_assert_cmpuint (nr_notes (""), ==, 3);      /* and the last, empty line */

  /* A later snapshot is as good as any. */
  set_fail (HOOK_PWRITE, NULL, 0, 0, 0);
  s3 = cut ("s3", FLEECE_BREAK_SNAPSHOT, 0);
  g_assert_cmpint (try_write (0, SIZE, 'c'), ==, 0);
  fixture_check_snapshot (s3, AT, 2 * BLOCK, 'b');
  fixture_check_snapshot (s3, 0, AT, 'a');
  snapshot_unref (s1);
  fixture_end (s2);

  /* It is still known as broken after a restart. */
  snapshot_unref (s3);
  fixture_stop (fx);
  fixture_start (fx);
  s1 = disk_find_snapshot (fx->disk[0], "s1");
  s3 = disk_find_snapshot (fx->disk[0], "s3");
  check_broken (s1, g_strerror (err));
  fixture_check_snapshot (s3, AT, 2 * BLOCK, 'b');
  fixture_end (s1);
  fixture_end (s3);
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
  fixture_free (fx);
}

static void
test_full (void)
{
  break_by_default (ENOSPC);
}

static void
test_failing (void)
{
  break_by_default (EIO);
}

/* Bytes of scratch files that have no name any more but are open. */
static uint64_t
nameless_bytes (void)
{
  g_autoptr (GDir) dir = g_dir_open ("/proc/self/fd", 0, NULL);
  uint64_t bytes = 0;
  const char *name;

  g_assert_nonnull (dir);
  while ((name = g_dir_read_name (dir)) != NULL) {
    g_autofree char *link = g_build_filename ("/proc/self/fd", name, NULL);
    g_autofree char *path = g_file_read_link (link, NULL);
    struct stat st;

    if (path != NULL && g_str_has_suffix (path, ".layer (deleted)") &&
        stat (link, &st) == 0)
      bytes += (uint64_t) st.st_blocks * 512;
  }
  return bytes;
}

/* What only a broken snapshot used is free before it ends, though a reader
 * still has it; what an older one reads through stays. */
static void
test_space (void)
{
  Snapshot *old, *tiny;

  setup ();
  old = cut ("old", FLEECE_BREAK_SNAPSHOT, 0);
  tiny = cut ("tiny", FLEECE_BREAK_SNAPSHOT, 16 * BLOCK);
  g_assert_cmpint (try_write (0, 16 * BLOCK, 'b'), ==, 0);
  g_assert_cmpint (try_write (AT, BLOCK, 'b'), ==, 0);
  check_broken (tiny, "limit");
  g_assert_true (fleece_drop_broken (fx->f));
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 2);
  fixture_check_snapshot (old, 0, SIZE, 'a');

  set_fail (HOOK_PWRITE, ".layer", 0, SIZE, -ENOSPC);
  g_assert_cmpint (try_write (2 * AT, BLOCK, 'b'), ==, 0);
  set_fail (HOOK_PWRITE, NULL, 0, 0, 0);
  g_assert_true (fleece_drop_broken (fx->f));
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
  g_assert_cmpuint (nameless_bytes (), ==, 0);
  g_assert_cmpint (try_write (3 * AT, BLOCK, 'b'), ==, 0);
  check_broken (old, g_strerror (ENOSPC));
  check_broken (tiny, "limit");
  snapshot_unref (old);
  snapshot_unref (tiny);

  fixture_crash (fx);
  fixture_start (fx);
  old = disk_find_snapshot (fx->disk[0], "old");
  tiny = disk_find_snapshot (fx->disk[0], "tiny");
  check_broken (old, g_strerror (ENOSPC));
  check_broken (tiny, "limit");
  fixture_end (old);
  fixture_end (tiny);
  fixture_free (fx);
}

static void
test_break_guest_write (void)
{
  Snapshot *s1, *s2;

  setup ();
  s1 = cut ("s1", FLEECE_BREAK_GUEST_WRITE, 0);
  s2 = cut ("s2", FLEECE_BREAK_SNAPSHOT, 0);
  set_fail (HOOK_PWRITE, ".layer", 0, SIZE, -ENOSPC);
  g_assert_cmpint (try_write (AT, BLOCK, 'b'), ==, -ENOSPC);
  g_assert_cmpint (disk_zero (fx->disk[0], BLOCK, AT, DISK_MAY_PUNCH), ==,
                   -ENOSPC);
  fixture_check_disk (fx->disk[0], AT, BLOCK, 'a');
  g_assert_cmpint (snapshot_state (s1), ==, SNAPSHOT_LIVE);
  fixture_check_snapshot (s1, 0, SIZE, 'a');
  fixture_check_snapshot (s2, 0, SIZE, 'a');
  g_assert_cmpstr (fx->notes->str, ==, "");
  set_fail (HOOK_PWRITE, NULL, 0, 0, 0);
  g_assert_cmpint (try_write (AT, BLOCK, 'b'), ==, 0);
  fixture_check_snapshot (s1, 0, SIZE, 'a');
  fixture_check_snapshot (s2, 0, SIZE, 'a');
  fixture_end (s1);

  /* Nobody asks for it any more. */
  set_fail (HOOK_PWRITE, ".layer", 0, SIZE, -ENOSPC);
  g_assert_cmpint (try_write (AT + BLOCK, BLOCK, 'b'), ==, 0);
  check_broken (s2, g_strerror (ENOSPC));
  fixture_end (s2);
  fixture_free (fx);
}

static void
test_limit (void)
{
  Snapshot *limited, *other;

  setup ();
  other = cut ("other", FLEECE_BREAK_GUEST_WRITE, 0);
  limited = cut ("limited", FLEECE_BREAK_SNAPSHOT, 16 * BLOCK);
  g_assert_cmpint (try_write (AT, 16 * BLOCK, 'b'), ==, 0);
  fixture_check_snapshot (limited, 0, SIZE, 'a');
  g_assert_cmpstr (fx->notes->str, ==, "");
  g_assert_cmpint (try_write (AT + 65536, 1, 'b'), ==, 0);
  check_broken (limited, "limit");
  g_assert_cmpuint (nr_notes ("broken d0 limited: "), ==, 1);
  fixture_check_snapshot (other, 0, SIZE, 'a');
  g_assert_cmpint (try_write (0, SIZE, 'c'), ==, 0);
  fixture_check_snapshot (other, 0, SIZE, 'a');
  fixture_end (limited);
  fixture_check_snapshot (other, 0, SIZE, 'a');
  fixture_end (other);
  fixture_free (fx);
}

/* A limit counts what newer snapshots' layers hold, since older ones need that
 * too; and with no other snapshot left, nothing is copied any more. */
static void
test_limit_over_layers (void)
{
  Snapshot *limited, *newer;
  struct disk_stats stats;

  setup ();
  limited = cut ("limited", FLEECE_BREAK_SNAPSHOT, 32 * BLOCK);
  g_assert_cmpint (try_write (0, 16 * BLOCK, 'b'), ==, 0);
  newer = cut ("newer", FLEECE_BREAK_SNAPSHOT, 0);
  g_assert_cmpint (try_write (AT, 16 * BLOCK, 'b'), ==, 0);
  fixture_check_snapshot (limited, 0, SIZE, 'a');
  g_assert_cmpint (try_write (2 * AT, BLOCK, 'b'), ==, 0);
  check_broken (limited, "limit");
  fixture_check_snapshot (newer, 16 * BLOCK, SIZE - 16 * BLOCK, 'a');
  fixture_end (newer);
  disk_stats (fx->disk[0], &stats);
  g_assert_cmpuint (stats.layers, ==, 0);
  fixture_end (limited);
  limited = cut ("again", FLEECE_BREAK_GUEST_WRITE, BLOCK);
  g_assert_cmpint (try_write (3 * AT, BLOCK, 'd'), ==, 0);
  g_assert_cmpint (try_write (4 * AT, BLOCK, 'd'), ==, -ENOSPC);
  g_assert_cmpint (try_write (3 * AT, BLOCK, 'e'), ==, 0);
  fixture_check_snapshot (limited, 3 * AT, BLOCK, 'a');
  fixture_end (limited);
  fixture_free (fx);
}

/* One snapshot's limit is no business of another that would rather have writes
 * fail; its own policy is. */
static void
test_limit_policies (void)
{
  Snapshot *strict, *lax;

  setup ();
  strict = cut ("strict", FLEECE_BREAK_GUEST_WRITE, 1024 * BLOCK);
  lax = cut ("lax", FLEECE_BREAK_SNAPSHOT, BLOCK);
  g_assert_cmpint (try_write (AT, 2 * BLOCK, 'b'), ==, 0);
  check_broken (lax, "limit");
  fixture_check_snapshot (strict, 0, SIZE, 'a');
  fixture_end (lax);
  fixture_end (strict);
  fixture_free (fx);
}

/* The old data cannot be read: a guest may be mending the sector. */
static void
test_unreadable_base (void)
{
  Snapshot *snap;
  char buf[BLOCK];

  setup ();
  snap = cut ("s", FLEECE_BREAK_GUEST_WRITE, 0);
  set_fail (HOOK_PREAD, "d0.img", AT + BLOCK, BLOCK, -EIO);
  g_assert_cmpint (try_write (AT, 3 * BLOCK, 'b'), ==, 0);
  set_fail (HOOK_PREAD, NULL, 0, 0, 0);
  fixture_check_disk (fx->disk[0], AT, 3 * BLOCK, 'b');
  g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_LIVE);
  fixture_check_snapshot (snap, 0, AT + BLOCK, 'a');
  g_assert_cmpint (snapshot_pread (snap, buf, BLOCK, AT + BLOCK), ==, -EIO);
  g_assert_cmpint (snapshot_pread (snap, buf, 1, AT + 2 * BLOCK - 1), ==,
                   -EIO);
  fixture_check_snapshot (snap, AT + 2 * BLOCK, SIZE - AT - 2 * BLOCK, 'a');
  g_assert_cmpint (snapshot_extents (snap, SIZE, 0, ignore_run, NULL), ==, 0);
  fixture_end (snap);
  fixture_free (fx);
}

/* Rows of snapshots cannot be changed, as when the state directory is full. */
static void
freeze_rows (bool on)
{
  sqlite3_stmt *stmt;

  catalog_lock (fx->cat);
  stmt = catalog_stmt (fx->cat, on ?
                       "CREATE TEMP TRIGGER frozen BEFORE UPDATE ON"
                       " main.snapshot BEGIN SELECT RAISE (ABORT, 'full'); END"
                       : "DROP TRIGGER frozen", NULL);
  g_assert_nonnull (stmt);
  g_assert_true (catalog_step_done (fx->cat, stmt, NULL));
  catalog_unlock (fx->cat);
}

static Snapshot *
cut_durable (const char *name)
{
  g_autoptr (GError) error = NULL;
  FleeceCutDisk cd = {
    .disk = fx->disk[0], .snapshot = name, .durable = true,
  };

  fleece_cut (fx->f, &cd, 1, NULL, NULL, &error);
  g_assert_no_error (error);
  return cd.out_snapshot;
}

/* A durable snapshot that broke, and whose row could not say so, came back live
 * after kill -9, with data that were overwritten since. */
static void
test_durable_unrecorded (void)
{
  Snapshot *snap;
  char buf[BLOCK];

  setup ();
  snap = cut_durable ("s");
  freeze_rows (true);
  set_fail (HOOK_PWRITE, ".layer", 0, SIZE, -ENOSPC);
  g_assert_cmpint (try_write (AT, BLOCK, 'b'), ==, 0);
  g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_BROKEN);
  g_assert_cmpint (try_write (2 * AT, BLOCK, 'b'), ==, 0);
  snapshot_unref (snap);
  fixture_crash (fx);
  set_fail (HOOK_PWRITE, NULL, 0, 0, 0);
  fixture_start (fx);
  snap = disk_find_snapshot (fx->disk[0], "s");
  g_assert_nonnull (snap);
  g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_LOST);
  g_assert_cmpint (snapshot_pread (snap, buf, BLOCK, AT), ==, -EIO);
  fixture_end (snap);
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
  fixture_free (fx);
}

/* Nor can its log be removed: there is nothing left that a next start would
 * see, so the old data stay, as long as that lasts. */
static void
test_durable_no_way (void)
{
  Snapshot *snap;

  setup ();
  snap = cut_durable ("s");
  freeze_rows (true);
  /* What is new in the scratch file cannot be synced, names cannot go. */
  set_fail (HOOK_SYNC, ".layer", 0, SIZE, -EIO);
  set_fail_too (HOOK_REMOVE, ".log", -EROFS);
  g_assert_cmpint (try_write (AT, BLOCK, 'b'), ==, -EIO);
  g_assert_cmpint (try_write (AT, BLOCK, 'b'), ==, -EIO);
  g_assert_cmpint (try_write (2 * AT, BLOCK, 'b'), ==, -EIO);
  /* Nor is the layer given up to get its space back. */
  g_assert_true (fleece_drop_broken (fx->f));
  g_assert_cmpint (try_write (AT, BLOCK, 'b'), ==, -EIO);
  fixture_check_disk (fx->disk[0], AT, BLOCK, 'a');
  g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_BROKEN);
  g_assert_cmpuint (nr_notes ("broken d0 s: "), ==, 1);
  freeze_rows (false);
  g_assert_cmpint (try_write (AT, BLOCK, 'b'), ==, 0);
  fixture_check_disk (fx->disk[0], AT, BLOCK, 'b');
  snapshot_unref (snap);
  fixture_crash (fx);
  set_fail (HOOK_PREAD, NULL, 0, 0, 0);
  set_fail_too (HOOK_PREAD, NULL, 0);
  fixture_start (fx);
  snap = disk_find_snapshot (fx->disk[0], "s");
  g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_BROKEN);
  fixture_end (snap);
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
  fixture_free (fx);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/fleece/scratch-fail/full", test_full);
  g_test_add_func ("/fleece/scratch-fail/failing", test_failing);
  g_test_add_func ("/fleece/scratch-fail/space", test_space);
  g_test_add_func ("/fleece/scratch-fail/break-guest-write",
                   test_break_guest_write);
  g_test_add_func ("/fleece/scratch-fail/limit", test_limit);
  g_test_add_func ("/fleece/scratch-fail/limit-over-layers",
                   test_limit_over_layers);
  g_test_add_func ("/fleece/scratch-fail/limit-policies",
                   test_limit_policies);
  g_test_add_func ("/fleece/scratch-fail/unreadable-base",
                   test_unreadable_base);
  g_test_add_func ("/fleece/scratch-fail/durable-unrecorded",
                   test_durable_unrecorded);
  g_test_add_func ("/fleece/scratch-fail/durable-no-way",
                   test_durable_no_way);
  return g_test_run ();
}
