/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A disk gets another size: large ones, writes that are under way, every
 * failure, and a process that dies in the middle. */
#include <config.h>

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bitmap/bitmap-error.h"
#include "tests/fleece-fixture.h"
#include "tests/storage-hook.h"

#define K UINT64_C (1024)
#define M (K * K)
#define G (K * M)
#define SIZE (2 * M)

static Fixture *fx;
static HookGate *gate;

/* The first call of this kind on a file whose name ends in suffix fails. */
static struct {
  pthread_mutex_t lock;
  HookCall call;
  const char *suffix;           /* NULL: none */
  int err;                      /* 1: the process ends instead */
  bool done;
} fail = { .lock = PTHREAD_MUTEX_INITIALIZER };

static int
hook (void *opaque, const struct hook_info *info)
{
  int err = 0;

  pthread_mutex_lock (&fail.lock);
  if (fail.suffix != NULL && !fail.done && fail.call == info->call &&
      g_str_has_suffix (info->path, fail.suffix)) {
    fail.done = true;
    err = fail.err;
  }
  pthread_mutex_unlock (&fail.lock);
  if (err > 0)
    _exit (0);
  return err < 0 ? err : hook_gate_fn (gate, info);
}

static void
set_fail (HookCall call, const char *suffix, int err)
{
  pthread_mutex_lock (&fail.lock);
  fail.call = call;
  fail.suffix = suffix;
  fail.err = err;
  fail.done = false;
  pthread_mutex_unlock (&fail.lock);
}

static void
setup (uint64_t size)
{
  gate = hook_gate_new ();
  set_fail (HOOK_PREAD, NULL, 0);
  fx = fixture_new_hooked (1, size, hook, NULL);
  fixture_start (fx);
}

static void
teardown (void)
{
  set_fail (HOOK_PREAD, NULL, 0);
  fixture_free (fx);
  hook_gate_free (gate);
}

static bool
try_resize (uint64_t size, GError **error)
{
  return fleece_resize (fx->f, fx->disk[0], size, error);
}

static void
check_size (uint64_t size)
{
  struct stat st;

  g_assert_cmpint (stat (fx->image[0], &st), ==, 0);
  g_assert_cmpuint ((uint64_t) st.st_size, ==, size);
  g_assert_cmpuint (disk_size (fx->disk[0]), ==, size);
}

static void
resize (uint64_t size)
{
  g_autoptr (GError) error = NULL;

  try_resize (size, &error);
  g_assert_no_error (error);
  check_size (size);
}

static void
restart (bool killed)
{
  if (killed)
    fixture_crash (fx);
  else
    fixture_stop (fx);
  fixture_start (fx);
}

static void
check_tail (uint64_t boundary, uint64_t from, uint64_t to)
{
  g_assert_true (fixture_is_dirty (fx, 0, boundary, 0, from));
  g_assert_true (fixture_is_dirty (fx, 0, boundary, 0, to - 1));
}

/* --- sizes */

/* Sizes on both sides of powers of two, of what a sector of the maps covers
 * (248 MiB, 15.5 GiB) and of 128 GiB, all sparse. */
static void
test_large (void)
{
  static const uint64_t sizes[] = {
    16 * M, 248 * M - 512, 248 * M + 512, 256 * M + 1, G - 1, G + 1,
    15 * G + 512 * M - 512, 15 * G + 512 * M + 4096, 16 * G, 128 * G - 512,
    128 * G, 128 * G + 512, 200 * G + 12345,
  };
  Snapshot *snap;
  uint64_t boundary;

  setup (M);
  fixture_write (fx->disk[0], M - 4096, 4096, 'a');
  snap = fixture_cut (fx, 0, "s", &boundary);
  for (unsigned i = 0; i < G_N_ELEMENTS (sizes); i++) {
    uint64_t before = disk_size (fx->disk[0]), between;

    resize (sizes[i]);
    fixture_check_disk (fx->disk[0], sizes[i] - 1, 1, 0);
    fixture_end (fixture_cut (fx, 0, "t", &between));
    /* By intents alone: its epoch is not the one that began by growing. */
    fixture_write (fx->disk[0], sizes[i] - 512, 512, 'b');
    check_tail (boundary, before, sizes[i]);
    if (i % 4 == 3) {
      snapshot_unref (snap);
      fixture_crash (fx);
      fixture_lose_runtime (fx);
      fixture_start (fx);
      snap = disk_find_snapshot (fx->disk[0], "s");
      g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_LOST);
      check_tail (boundary, before, sizes[i]);
      g_assert_true (fixture_is_dirty (fx, 0, between, 0, sizes[i] - 1));
      g_assert_false (fixture_is_dirty (fx, 0, between, 0, 8 * M));
      fixture_end (snap);
      snap = fixture_cut (fx, 0, "s", NULL);
    }
  }
  fixture_end (snap);
  snap = fixture_cut (fx, 0, "s", NULL);
  for (unsigned i = G_N_ELEMENTS (sizes); i-- > 1; ) {
    resize (sizes[i - 1]);
    fixture_check_disk (fx->disk[0], sizes[i - 1] - 512, 512, 'b');
  }
  for (unsigned i = 0; i < G_N_ELEMENTS (sizes); i++)
    fixture_check_snapshot (snap, sizes[i] - 512, 512, 'b');
  fixture_check_snapshot (snap, 100 * G, 4096, 0);
  /* The hole was not copied. */
  {
    struct disk_stats stats;

    disk_stats (fx->disk[0], &stats);
    g_assert_cmpuint (stats.scratch_bytes, <, 2 * M);
  }
  fixture_end (snap);
  teardown ();
}

/* The granularity does not reach that far. */
static void
test_too_large (void)
{
  g_autoptr (GError) error = NULL;

  setup (SIZE);
  g_assert_false (try_resize (UINT64_MAX / 2, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID);
  check_size (SIZE);
  fixture_write (fx->disk[0], 0, SIZE, 'a');
  resize (SIZE + 1);
  teardown ();
}

static void
test_snapshots (gconstpointer nr_)
{
  unsigned nr = GPOINTER_TO_UINT (nr_);
  Snapshot *snap[5];
  uint64_t boundary[5];

  setup (SIZE);
  for (unsigned i = 0; i < nr; i++) {
    char name[] = { 's', '0' + i, '\0' };

    fixture_write (fx->disk[0], 0, SIZE, 'a' + i);
    snap[i] = fixture_cut (fx, 0, name, &boundary[i]);
  }
  fixture_write (fx->disk[0], 0, SIZE, 'z');
  resize (M + 700);             /* inside a block */
  resize (M + 900);             /* inside a granule */
  fixture_check_disk (fx->disk[0], M, 700, 'z');
  fixture_check_disk (fx->disk[0], M + 700, 200, 0);
  resize (4 * M);
  fixture_write (fx->disk[0], M, 3 * M, 'y');
  for (unsigned round = 0; round < 3; round++) {
    for (unsigned i = 0; i < nr; i++) {
      g_assert_cmpuint (snapshot_size (snap[i]), ==, SIZE);
      fixture_check_snapshot (snap[i], 0, SIZE, 'a' + i);
      check_tail (boundary[i], 0, 4 * M);
      snapshot_unref (snap[i]);
    }
    restart (round == 0);
    for (unsigned i = 0; i < nr; i++) {
      char name[] = { 's', '0' + i, '\0' };

      snap[i] = disk_find_snapshot (fx->disk[0], name);
    }
  }
  for (unsigned i = 0; i < nr; i++)
    fixture_end (snap[i]);
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
  teardown ();
}

/* --- at the same time */

static int
run_shrink (void *opaque)
{
  g_autoptr (GError) error = NULL;

  return try_resize (M, &error) ? 0 : -1;
}

/* A write to the tail that hangs is waited for; one that comes later is
 * refused, and one to the rest goes on. */
static void
test_in_flight (void)
{
  FixtureCall *write, *shrink;
  Snapshot *snap;
  char buf[512] = "late";

  setup (SIZE);
  fixture_write (fx->disk[0], 0, SIZE, 'a');
  snap = fixture_cut (fx, 0, "s", NULL);
  hook_gate_arm (gate, HOOK_PWRITE, "d0.img", SIZE - 4096, 4096);
  write = fixture_call_write (fx->disk[0], SIZE - 4096, 4096, 'b');
  hook_gate_wait_held (gate);
  shrink = fixture_call (run_shrink, NULL);
  g_assert_true (fixture_wait_waiters (fx->disk[0], 1, shrink));
  g_assert_cmpint (disk_pwrite (fx->disk[0], buf, sizeof buf, M, false), ==,
                   -ENOSPC);
  fixture_write (fx->disk[0], 0, 4096, 'c');
  g_assert_false (fixture_call_done (shrink));
  hook_gate_release (gate, 0);
  g_assert_cmpint (fixture_call_join (write), ==, 0);
  g_assert_cmpint (fixture_call_join (shrink), ==, 0);
  check_size (M);
  fixture_check_snapshot (snap, 0, SIZE, 'a');
  fixture_end (snap);
  teardown ();
}

/* It hangs for too long: nothing has happened. */
static void
test_timeout (void)
{
  g_autoptr (GError) error = NULL;
  FixtureCall *write;

  setup (SIZE);
  fixture_stop (fx);
  fx->drain_timeout_ms = 20;
  fixture_start (fx);
  hook_gate_arm (gate, HOOK_PWRITE, "d0.img", SIZE - 4096, 4096);
  write = fixture_call_write (fx->disk[0], SIZE - 4096, 4096, 'b');
  hook_gate_wait_held (gate);
  g_assert_false (try_resize (M, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_TIMEOUT);
  check_size (SIZE);
  hook_gate_release (gate, 0);
  g_assert_cmpint (fixture_call_join (write), ==, 0);
  fixture_check_disk (fx->disk[0], SIZE - 4096, 4096, 'b');
  fixture_write (fx->disk[0], SIZE - 4096, 4096, 'c');
  teardown ();
}

typedef struct {
  unsigned index;
  Snapshot *snap;
} Guest;

static atomic_bool stop;

/* Each has its own blocks; a disk that is too short refuses, and no more. */
static int
run_guest (void *opaque)
{
  Guest *guest = opaque;
  char buf[4096];
  unsigned random = guest->index + 1;

  memset (buf, 'w', sizeof buf);
  while (!atomic_load (&stop)) {
    uint64_t at;
    int err;

    random = random * 1103515245 + 12345;
    at = (random >> 8) % (SIZE / 4096) * 4096;
    err = disk_pwrite (fx->disk[0], buf, sizeof buf, at, false);
    g_assert_true (err == 0 || err == -ENOSPC);
    err = disk_pread (fx->disk[0], buf, sizeof buf, at);
    g_assert_true (err == 0 || err == -EINVAL);
    memset (buf, 'w', sizeof buf);
  }
  return 0;
}

static int
check_run (void *opaque, uint64_t length, bool zero)
{
  g_assert_false (zero);
  return 0;
}

static int
run_reader (void *opaque)
{
  Guest *guest = opaque;

  while (!atomic_load (&stop)) {
    fixture_check_snapshot (guest->snap, 0, SIZE, 'a');
    g_assert_cmpint (snapshot_extents (guest->snap, SIZE, 0, check_run, NULL),
                     ==, 0);
  }
  return 0;
}

static void
test_concurrent (void)
{
  Guest guest[3] = { { 0 }, { 1 }, { 2 } };
  FixtureCall *call[3];
  GRand *rand = g_rand_new_with_seed ((guint32) g_test_rand_int ());

  setup (SIZE);
  fixture_write (fx->disk[0], 0, SIZE, 'a');
  guest[2].snap = fixture_cut (fx, 0, "s", NULL);
  atomic_store (&stop, false);
  for (unsigned i = 0; i < 3; i++)
    call[i] = fixture_call (i == 2 ? run_reader : run_guest, &guest[i]);
  for (unsigned i = 0; i < 20; i++) {
    resize (g_rand_int_range (rand, 1, SIZE + 1));
    if (i % 5 == 4)
      fixture_end (fixture_cut (fx, 0, "t", NULL));
  }
  atomic_store (&stop, true);
  for (unsigned i = 0; i < 3; i++)
    g_assert_cmpint (fixture_call_join (call[i]), ==, 0);
  resize (disk_size (fx->disk[0]));
  fixture_check_snapshot (guest[2].snap, 0, SIZE, 'a');
  fixture_end (guest[2].snap);
  g_rand_free (rand);
  teardown ();
}

/* --- failures */

/* Nothing has happened, nobody notices, and a next try works; also after a
 * restart in between. */
static void
check_fails (uint64_t size, HookCall call, const char *suffix, int err)
{
  for (unsigned killed = 0; killed < 3; killed++) {
    g_autoptr (GError) error = NULL;
    uint64_t boundary;
    Snapshot *snap;

    setup (SIZE);
    fixture_write (fx->disk[0], 0, SIZE, 'a');
    snap = fixture_cut (fx, 0, "s", &boundary);
    set_fail (call, suffix, err);
    g_assert_false (try_resize (size, &error));
    g_assert_true (fail.done);
    g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_IO);
    g_assert_nonnull (strstr (error->message, "d0"));
    check_size (SIZE);
    set_fail (HOOK_PREAD, NULL, 0);
    fixture_check_disk (fx->disk[0], 0, SIZE, 'a');
    fixture_write (fx->disk[0], SIZE - 4096, 4096, 'b');
    if (killed > 0) {
      snapshot_unref (snap);
      restart (killed == 2);
      check_size (SIZE);
      snap = disk_find_snapshot (fx->disk[0], "s");
    }
    fixture_check_snapshot (snap, 0, SIZE, 'a');
    g_assert_true (fixture_is_dirty (fx, 0, boundary, 0, SIZE - 1));
    g_assert_false (fixture_is_dirty (fx, 0, boundary, 0, 0));
    resize (size);
    resize (3 * M);
    fixture_check_snapshot (snap, 0, SIZE, 'a');
    check_tail (boundary, MIN (size, SIZE), 3 * M);
    fixture_end (snap);
    teardown ();
  }
}

static void
test_truncate_fails (void)
{
  check_fails (M, HOOK_SET_SIZE, "d0.img", -EIO);
  check_fails (3 * M, HOOK_SET_SIZE, "d0.img", -ENOSPC);
}

/* Of the new epoch's durable map. */
static void
test_map_fails (void)
{
  check_fails (M, HOOK_PWRITE, ".d", -ENOSPC);
}

static Snapshot *
cut_with (FleeceOnError on_error)
{
  g_autoptr (GError) error = NULL;
  FleeceCutDisk cd = { .disk = fx->disk[0], .snapshot = "s",
                       .on_error = on_error };

  fleece_cut (fx->f, &cd, 1, NULL, NULL, &error);
  g_assert_no_error (error);
  return cd.out_snapshot;
}

/* No room for the tail: the snapshot goes, or the command fails. */
static void
test_preserve_fails (void)
{
  for (unsigned guest_fails = 0; guest_fails < 2; guest_fails++) {
    g_autoptr (GError) error = NULL;
    Snapshot *snap;
    bool ok;

    setup (SIZE);
    fixture_write (fx->disk[0], 0, SIZE, 'a');
    snap = cut_with (guest_fails ? FLEECE_BREAK_GUEST_WRITE
                     : FLEECE_BREAK_SNAPSHOT);
    set_fail (HOOK_PWRITE, ".layer", -ENOSPC);
    ok = try_resize (M, &error);
    g_assert_true (fail.done);
    g_assert_true (ok == !guest_fails);
    check_size (guest_fails ? SIZE : M);
    g_assert_cmpint (snapshot_state (snap), ==,
                     guest_fails ? SNAPSHOT_LIVE : SNAPSHOT_BROKEN);
    if (guest_fails) {
      g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_IO);
      g_assert_nonnull (strstr (error->message, "cannot be preserved"));
      fixture_write (fx->disk[0], SIZE - 4096, 4096, 'b');
      resize (M);
      fixture_check_snapshot (snap, 0, SIZE, 'a');
    }
    fixture_end (snap);
    teardown ();
  }
}

/* After the flip nothing can be taken back: the size is new, and doing it again
 * records it; or the next start finds it. */
static void
test_sync_fails (gconstpointer killed)
{
  for (unsigned i = 0; i < 2; i++) {
    g_autoptr (GError) error = NULL;
    uint64_t size = i == 0 ? M : 3 * M, boundary;
    Snapshot *snap;

    setup (SIZE);
    fixture_write (fx->disk[0], 0, SIZE, 'a');
    snap = fixture_cut (fx, 0, "s", &boundary);
    set_fail (HOOK_SYNC, "d0.img", -EIO);
    g_assert_false (try_resize (size, &error));
    g_assert_nonnull (strstr (error->message, "not recorded yet"));
    check_size (size);
    fixture_write (fx->disk[0], 0, 4096, 'b');
    if (killed) {
      snapshot_unref (snap);
      restart (true);
      snap = disk_find_snapshot (fx->disk[0], "s");
      check_size (size);
    }
    resize (size);
    resize (4 * M);
    fixture_check_snapshot (snap, 0, SIZE, 'a');
    check_tail (boundary, 0, 4096);
    check_tail (boundary, size, 4 * M);
    g_assert_false (fixture_is_dirty (fx, 0, boundary, 0, 128 * K));
    fixture_end (snap);
    teardown ();
  }
}

/* --- the process dies in the middle */

/* The open epoch's durable map gets an error, and no intent stands for
 * anything. */
static void
fail_map (void)
{
  EpochLog *log = disk_epoch_log (fx->disk[0]);

  set_fail (HOOK_PWRITE, ".d", -ENOSPC);
  dirty_bitmap_set (epoch_log_current (log)->bitmap, SIZE - 1, 1);
  epoch_log_sync_map (log);
  if (!fail.done)
    _exit (1);
}

/* Of a disk of 'a's with snapshot s, whose boundary it returns.  write: and a
 * write since. */
static uint64_t
die_in_resize (uint64_t size, HookCall call, const char *suffix, bool write,
               bool map_failed)
{
  uint64_t boundary;
  pid_t pid;
  int status;

  setup (SIZE);
  fixture_write (fx->disk[0], 0, SIZE, 'a');
  snapshot_unref (fixture_cut (fx, 0, "s", &boundary));
  fixture_stop (fx);
  pid = fork ();
  g_assert_cmpint (pid, >=, 0);
  if (pid == 0) {
    fixture_start (fx);
    if (write)
      fixture_write (fx->disk[0], 0, 4096, 'b');
    if (map_failed)
      fail_map ();
    set_fail (call, suffix, 1);
    try_resize (size, NULL);
    _exit (1);                  /* it should have ended in the call */
  }
  g_assert_cmpint (waitpid (pid, &status, 0), ==, pid);
  g_assert_true (WIFEXITED (status) && WEXITSTATUS (status) == 0);
  return boundary;
}

static void
kill_at (uint64_t size, HookCall call, const char *suffix)
{
  uint64_t boundary = die_in_resize (size, call, suffix, true, false), now;
  Snapshot *snap;

  fixture_start (fx);
  now = disk_size (fx->disk[0]);
  g_assert_true (now == SIZE || now == size);
  check_size (now);
  snap = disk_find_snapshot (fx->disk[0], "s");
  fixture_check_snapshot (snap, 0, SIZE, 'a');
  check_tail (boundary, 0, 4096);
  g_assert_false (fixture_is_dirty (fx, 0, boundary, 0, 128 * K));
  if (now > SIZE)
    check_tail (boundary, SIZE, now);
  resize (3 * M + 1);
  check_tail (boundary, SIZE, 3 * M + 1);
  fixture_check_snapshot (snap, 0, SIZE, 'a');
  fixture_end (snap);
  teardown ();
}

static void
test_killed (void)
{
  static const uint64_t sizes[] = { M + 512, 3 * M };

  for (unsigned i = 0; i < G_N_ELEMENTS (sizes); i++) {
    kill_at (sizes[i], HOOK_OPEN, ".d");        /* while it prepares */
    kill_at (sizes[i], HOOK_SET_SIZE, "d0.img");
    kill_at (sizes[i], HOOK_SYNC, "d0.img");    /* the image has changed */
  }
  kill_at (M, HOOK_PWRITE, ".layer");
}

/* Power is lost before the shorter image is on the disk: the old size is back,
 * but not all of what was there, and whoever has a copy must be told.
 * map_failed: by intents, and the resize is not refused for what failed
 * before. */
static void
test_power_cut (gconstpointer map_failed)
{
  for (unsigned lost = 0; lost < 2; lost++) {
    uint64_t boundary = die_in_resize (M + 512, HOOK_SYNC, "d0.img", false,
                                       map_failed != NULL);

    g_assert_cmpint (truncate (fx->image[0], SIZE), ==, 0);
    if (lost)
      fixture_lose_runtime (fx);
    fixture_start (fx);
    check_size (SIZE);
    check_tail (boundary, M + 512, SIZE);
    /* A region is larger than the disk. */
    if (map_failed == NULL || !lost)
      g_assert_false (fixture_is_dirty (fx, 0, boundary, 0, M - 1));
    teardown ();
  }
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/fleece/resize/large", test_large);
  g_test_add_func ("/fleece/resize/too-large", test_too_large);
  g_test_add_data_func ("/fleece/resize/snapshots/0", GUINT_TO_POINTER (0),
                        test_snapshots);
  g_test_add_data_func ("/fleece/resize/snapshots/1", GUINT_TO_POINTER (1),
                        test_snapshots);
  g_test_add_data_func ("/fleece/resize/snapshots/5", GUINT_TO_POINTER (5),
                        test_snapshots);
  g_test_add_func ("/fleece/resize/in-flight", test_in_flight);
  g_test_add_func ("/fleece/resize/timeout", test_timeout);
  g_test_add_func ("/fleece/resize/concurrent", test_concurrent);
  g_test_add_func ("/fleece/resize/truncate-fails", test_truncate_fails);
  g_test_add_func ("/fleece/resize/map-fails", test_map_fails);
  g_test_add_func ("/fleece/resize/preserve-fails", test_preserve_fails);
  g_test_add_data_func ("/fleece/resize/sync-fails", NULL, test_sync_fails);
  g_test_add_data_func ("/fleece/resize/sync-fails-killed", "",
                        test_sync_fails);
  g_test_add_func ("/fleece/resize/killed", test_killed);
  g_test_add_data_func ("/fleece/resize/power-cut", NULL, test_power_cut);
  g_test_add_data_func ("/fleece/resize/power-cut-map-failed", "",
                        test_power_cut);
  return g_test_run ();
}
