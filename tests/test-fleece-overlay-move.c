/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Data between layers, down and up: nothing changes for the guest, nothing is
 * dirtied, and what was moved is where it was moved to, whenever the process
 * dies. */
#include <config.h>

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <glib/gstdio.h>

#include "bitmap/bitmap-error.h"
#include "tests/overlay-fixture.h"

#define K UINT64_C (1024)
#define M (K * K)
#define SIZE (M + 1000)

static Fixture *fx;
static char *model;             /* what the guest should see */

static void
guest_write (uint64_t offset, uint64_t length, int value)
{
  fixture_write (fx->disk[0], offset, length, value);
  memset (model + offset, value, length);
}

static void
check_guest (void)
{
  g_autofree char *buf = g_malloc (SIZE);

  g_assert_cmpint (disk_pread (fx->disk[0], buf, SIZE, 0), ==, 0);
  for (uint64_t i = 0; i < SIZE; i++)
    if (buf[i] != model[i])
      g_error ("byte %" G_GUINT64_FORMAT " is %d, not %d", i, buf[i], model[i]);
}

static void
check_image (const char *path)
{
  g_autofree char *data = NULL;
  gsize length;

  g_assert_true (g_file_get_contents (path, &data, &length, NULL));
  g_assert_cmpuint (length, ==, SIZE);
  g_assert_cmpint (memcmp (data, model, SIZE), ==, 0);
}

static void
start (void)
{
  fixture_start (fx);
  if (model == NULL) {
    model = g_malloc (SIZE);
    guest_write (0, SIZE, 1);
  }
}

static void
setup (void)
{
  fx = fixture_new (1, SIZE);
  start ();
}

static void
teardown (void)
{
  fixture_free (fx);
  g_clear_pointer (&model, g_free);
}

/* Three layers, with something in each, over and beside each other. */
static void
make_three (void)
{
  for (unsigned i = 1; i <= 3; i++) {
    g_autofree char *name = g_strdup_printf ("l%u", i);

    overlay_fixture_put_on (fx, 0, name);
    guest_write (i * 10000, 30000, 10 + i);
    guest_write (i * 200000 + 100, 5, 20 + i);
    g_assert_cmpint (disk_zero (fx->disk[0], 9000, i * 150000,
                                DISK_MAY_PUNCH), ==, 0);
    memset (model + i * 150000, 0, 9000);
    guest_write (SIZE - i * 300, 50, 30 + i);
  }
}

static void
restart (bool killed)
{
  if (killed)
    fixture_crash (fx);
  else
    fixture_stop (fx);
  start ();
}

static void
check_scratch_is_empty (void)
{
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
}

static void
test_commit_all (void)
{
  uint64_t boundary;
  Snapshot *snap;

  setup ();
  make_three ();
  snap = fixture_cut (fx, 0, NULL, &boundary);
  g_assert_null (snap);
  overlay_fixture_commit (fx, 0, NULL, NULL);
  overlay_fixture_check_chain (fx, 0, "image");
  check_guest ();
  check_image (fx->image[0]);
  check_scratch_is_empty ();
  for (uint64_t at = 0; at < SIZE; at += 64 * K)
    g_assert_false (fixture_is_dirty (fx, 0, boundary, 0, at));
  guest_write (12345, 10, 99);
  check_image (fx->image[0]);
  restart (true);
  check_guest ();
  g_assert_false (fixture_is_dirty (fx, 0, boundary, 0, M / 2));
  teardown ();
}

static void
test_commit_middle (void)
{
  g_autoptr (GError) error = NULL;

  setup ();
  make_three ();
  overlay_fixture_commit (fx, 0, "l2", "l1");
  check_guest ();
  restart (true);
  check_guest ();
  overlay_fixture_commit (fx, 0, "l1", NULL);
  check_guest ();
  restart (false);
  check_guest ();
  g_assert_null (overlay_commit (fx->disk[0], "l1", NULL, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND);
  g_clear_error (&error);
  g_assert_null (overlay_commit (fx->disk[0], "l3", "l3", &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID);
  overlay_fixture_commit (fx, 0, "l3", NULL);
  check_guest ();
  check_image (fx->image[0]);
  check_scratch_is_empty ();
  teardown ();
}

/* Onto a layer, which is the top one then. */
static void
test_commit_top_onto_layer (void)
{
  setup ();
  make_three ();
  overlay_fixture_commit (fx, 0, "l3", "l1");
  check_guest ();
  guest_write (5000, 100, 50);
  restart (true);
  check_guest ();
  overlay_fixture_commit (fx, 0, NULL, NULL);
  check_image (fx->image[0]);
  teardown ();
}

/* Guests write while it runs: before, behind and where it is. */
static void
test_commit_under_writes (void)
{
  g_autoptr (GError) error = NULL;
  OverlayMove *move;
  uint64_t copied;
  unsigned n = 0;
  bool write;
  int r;

  setup ();
  make_three ();
  move = overlay_commit (fx->disk[0], NULL, NULL, &error);
  g_assert_no_error (error);
  g_assert_true (overlay_move_is_active (move));
  do {
    guest_write (n * 7919 % (SIZE - 5000), 5000, n);
    if (n % 3 == 0) {
      g_assert_cmpint (disk_trim (fx->disk[0], 4096, n * 4096, false), ==, 0);
      memset (model + n * 4096, 0, 4096);
    }
    n++;
    r = overlay_move_step (move, 4096, &copied, &write);
  } while (r == 1);
  g_assert_cmpint (r, ==, 0);
  for (unsigned i = 0; i < 20; i++)
    guest_write (i * 50021, 1000 + i, 60 + i);
  /* It goes on for as long as it has to. */
  g_assert_cmpint (overlay_move_step (move, M, &copied, &write), ==, 0);
  overlay_move_finish (move, &error);
  g_assert_no_error (error);
  overlay_move_free (move);
  check_guest ();
  check_image (fx->image[0]);
  restart (true);
  check_guest ();
  teardown ();
}

static void
test_commit_cancelled (void)
{
  g_autoptr (GError) error = NULL;
  OverlayMove *move;
  uint64_t copied;
  bool write;

  setup ();
  make_three ();
  move = overlay_commit (fx->disk[0], NULL, NULL, &error);
  g_assert_no_error (error);
  g_assert_null (overlay_commit (fx->disk[0], NULL, NULL, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_BUSY);
  g_clear_error (&error);
  g_assert_cmpint (overlay_move_step (move, 4096, &copied, &write), ==, 1);
  g_assert_false (overlay_move_finish (move, &error));
  overlay_move_free (move);
  guest_write (0, 100000, 77);
  check_guest ();
  restart (true);
  check_guest ();
  overlay_fixture_commit (fx, 0, NULL, NULL);
  check_image (fx->image[0]);
  teardown ();
}

static void
test_stream_between (void)
{
  OverlayMove *move;

  setup ();
  make_three ();
  move = overlay_stream (fx->disk[0], NULL, false, "l1", NULL);
  guest_write (22000, 100, 88);
  overlay_fixture_finish (move);
  check_guest ();
  restart (true);
  check_guest ();
  overlay_fixture_finish (overlay_stream (fx->disk[0], "l3", false, NULL,
                                          NULL));
  check_guest ();
  overlay_fixture_commit (fx, 0, NULL, NULL);
  check_image (fx->image[0]);
  check_scratch_is_empty ();
  teardown ();
}

static void
test_stream_whole (void)
{
  g_autofree char *path = NULL, *before = NULL;
  g_autoptr (GError) error = NULL;
  uint64_t boundary;
  char *old;

  setup ();
  make_three ();
  fixture_cut (fx, 0, NULL, &boundary);
  path = overlay_fixture_path (fx, 0, "l3");
  before = g_strdup (fx->image[0]);
  overlay_fixture_finish (overlay_stream (fx->disk[0], NULL, true, NULL,
                                          NULL));
  overlay_fixture_check_chain (fx, 0, "image");
  g_assert_cmpstr (disk_path (fx->disk[0]), ==, path);
  check_guest ();
  check_image (path);
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 1);
  guest_write (100, 100, 90);
  check_image (path);
  overlay_fixture_check_file (before, 0, 10000, 1);
  fixture_crash (fx);
  /* By its new name only. */
  {
    FleeceOptions options = { .scratch_dir = fx->scratch,
                              .runtime_dir = fx->runtime };
    Fleece *f = fleece_new (&options, &error);
    g_autoptr (Catalog) cat = catalog_new (fx->state, &error);

    g_assert_no_error (error);
    g_assert_nonnull (fleece_add_disk (f, "d0", before, fx->granularity,
                                       &error));
    g_assert_true (catalog_open (cat, &error));
    g_assert_false (fleece_start (f, cat, &error));
    g_assert_nonnull (strstr (error->message, path));
    g_clear_error (&error);
    fleece_free (f);
  }
  old = fx->image[0];
  fx->image[0] = g_strdup (path);
  start ();
  check_guest ();
  g_assert_true (fixture_is_dirty (fx, 0, boundary, 0, 100));
  g_assert_false (fixture_is_dirty (fx, 0, boundary, 0, M / 2));
  restart (false);
  check_guest ();
  g_assert_false (fixture_is_dirty (fx, 0, boundary, 0, M / 2));
  g_free (old);
  teardown ();
}

/* A disk that was made longer, and shorter, since it has a layer. */
static void
test_commit_resized (void)
{
  g_autoptr (GError) error = NULL;
  struct stat st;

  setup ();
  overlay_fixture_put_on (fx, 0, "l1");
  g_assert_true (fleece_resize (fx->f, fx->disk[0], 2 * M, &error));
  fixture_write (fx->disk[0], 2 * M - 10, 10, 5);
  overlay_fixture_commit (fx, 0, NULL, NULL);
  fixture_check_disk (fx->disk[0], 0, SIZE, 1);
  fixture_check_disk (fx->disk[0], SIZE, 2 * M - 10 - SIZE, 0);
  fixture_check_disk (fx->disk[0], 2 * M - 10, 10, 5);
  g_assert_cmpint (stat (fx->image[0], &st), ==, 0);
  g_assert_cmpint (st.st_size, ==, 2 * M);
  overlay_fixture_put_on (fx, 0, "l1");
  g_assert_true (fleece_resize (fx->f, fx->disk[0], M, &error));
  overlay_fixture_commit (fx, 0, NULL, NULL);
  g_assert_cmpint (stat (fx->image[0], &st), ==, 0);
  g_assert_cmpint (st.st_size, ==, M);
  fixture_crash (fx);
  fixture_start (fx);
  fixture_check_disk (fx->disk[0], 0, M, 1);
  teardown ();
}

/* --- threads */

static atomic_bool stop_writing;

/* Each owns every fourth of the 4000-byte pieces, so that blocks are shared. */
static int
write_a_lot (void *opaque)
{
  unsigned me = GPOINTER_TO_UINT (opaque);
  char buf[4000];

  for (unsigned n = 0; !atomic_load (&stop_writing); n++) {
    uint64_t offset = (n % 60 * 4 + me) * 4000;

    memset (buf, 1 + n % 100, sizeof buf);
    g_assert_cmpint (disk_pwrite (fx->disk[0], buf, sizeof buf, offset,
                                  n % 50 == 0), ==, 0);
    memcpy (model + offset, buf, sizeof buf);
    g_assert_cmpint (disk_pread (fx->disk[0], buf, sizeof buf, offset), ==, 0);
    g_assert_cmpint (memcmp (buf, model + offset, sizeof buf), ==, 0);
    if (n % 70 == 0)
      g_assert_cmpint (disk_flush (fx->disk[0]), ==, 0);
  }
  return 0;
}

static void
test_threads (void)
{
  FixtureCall *call[4];

  setup ();
  atomic_store (&stop_writing, false);
  for (unsigned i = 0; i < 4; i++)
    call[i] = fixture_call (write_a_lot, GUINT_TO_POINTER (i));
  for (unsigned round = 0; round < 6; round++) {
    overlay_fixture_put_on (fx, 0, "a");
    overlay_fixture_put_on (fx, 0, "b");
    if (round % 3 == 0)
      overlay_fixture_commit (fx, 0, "a", NULL);
    else if (round % 3 == 1)
      overlay_fixture_finish (overlay_stream (fx->disk[0], NULL, false, NULL,
                                              NULL));
    else
      overlay_fixture_commit (fx, 0, "b", "a");
    overlay_fixture_commit (fx, 0, NULL, NULL);
  }
  atomic_store (&stop_writing, true);
  for (unsigned i = 0; i < 4; i++)
    g_assert_cmpint (fixture_call_join (call[i]), ==, 0);
  check_guest ();
  check_image (fx->image[0]);
  teardown ();
}

/* --- dying at every call */

static enum { COMMIT, COMMIT_MIDDLE, STREAM, STREAM_WHOLE, PUT_ON } doing;

static void
do_it (void)
{
  switch (doing) {
  case COMMIT:
    overlay_fixture_commit (fx, 0, NULL, NULL);
    break;
  case COMMIT_MIDDLE:
    overlay_fixture_commit (fx, 0, "l2", NULL);
    break;
  case STREAM:
    overlay_fixture_finish (overlay_stream (fx->disk[0], NULL, false, "l1",
                                            NULL));
    break;
  case STREAM_WHOLE:
    overlay_fixture_finish (overlay_stream (fx->disk[0], NULL, true, NULL,
                                            NULL));
    break;
  case PUT_ON:
    overlay_fixture_put_on (fx, 0, "l4");
    fixture_write (fx->disk[0], 0, SIZE, 1);
    break;
  }
}

/* One that can be done again is; else what it was to make is there. */
static void
start_again (const char *old, const char *new)
{
  g_autoptr (Catalog) cat = catalog_new (fx->state, NULL);
  sqlite3_stmt *stmt;

  g_assert_true (catalog_open (cat, NULL));
  catalog_lock (cat);
  stmt = catalog_stmt (cat, "SELECT 1 FROM disk WHERE image IS NOT NULL",
                       NULL);
  g_free (fx->image[0]);
  fx->image[0] = g_strdup (catalog_step_row (cat, stmt, NULL) == 1 ? new : old);
  catalog_unlock (cat);
  g_clear_pointer (&cat, catalog_free);
  start ();
}

static void
check_old_or_ones (void)
{
  g_autofree char *buf = g_malloc (SIZE);

  g_assert_cmpint (disk_pread (fx->disk[0], buf, SIZE, 0), ==, 0);
  for (uint64_t i = 0; i < SIZE; i++)
    g_assert_true (buf[i] == model[i] || buf[i] == 1);
}

static void
die_everywhere (int what, bool power_loss)
{
  bool died = true;

  doing = what;
  for (unsigned at = 1; died; at += 1 + at / 6) {
    g_autofree char *old = NULL, *new = NULL;

    fx = fixture_new_mortal (1, SIZE);
    start ();
    make_three ();
    old = g_strdup (fx->image[0]);
    new = overlay_fixture_path (fx, 0, "l3");
    fixture_stop (fx);
    died = fixture_run_dying (fx, do_it, NULL, at);
    if (power_loss)
      fixture_lose_runtime (fx);
    start_again (old, new);
    if (what == PUT_ON)
      check_old_or_ones ();
    else
      check_guest ();
    {
      g_autoptr (GError) error = NULL;
      g_autoptr (GPtrArray) chain = disk_chain (fx->disk[0]);

      fleece_settle_overlays (fx->f, &error);
      g_assert_no_error (error);
      if (chain->len > 1)
        overlay_fixture_commit (fx, 0, NULL, NULL);
    }
    if (what != PUT_ON)
      check_image (fx->image[0]);
    fixture_stop (fx);
    start ();
    if (what != PUT_ON)
      check_guest ();
    g_assert_cmpuint (fixture_nr_scratch_files (fx), ==,
                      g_strcmp0 (fx->image[0], new) == 0);
    teardown ();
  }
}

static void
test_die_in_commit (void)
{
  die_everywhere (COMMIT, false);
}

static void
test_die_in_commit_middle (void)
{
  die_everywhere (COMMIT_MIDDLE, true);
}

static void
test_die_in_stream (void)
{
  die_everywhere (STREAM, false);
}

static void
test_die_in_stream_whole (void)
{
  die_everywhere (STREAM_WHOLE, true);
}

static void
test_die_in_put_on (void)
{
  die_everywhere (PUT_ON, false);
}

int
main (int argc, char **argv)
{
  /* Thousands of syncs, of processes that are killed only. */
  g_setenv ("TMPDIR", "/dev/shm", TRUE);
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/overlay/commit-all", test_commit_all);
  g_test_add_func ("/overlay/commit-middle", test_commit_middle);
  g_test_add_func ("/overlay/commit-top-onto-layer",
                   test_commit_top_onto_layer);
  g_test_add_func ("/overlay/commit-under-writes", test_commit_under_writes);
  g_test_add_func ("/overlay/commit-cancelled", test_commit_cancelled);
  g_test_add_func ("/overlay/stream-between", test_stream_between);
  g_test_add_func ("/overlay/stream-whole", test_stream_whole);
  g_test_add_func ("/overlay/commit-resized", test_commit_resized);
  g_test_add_func ("/overlay/threads", test_threads);
  g_test_add_func ("/overlay/die-in-commit", test_die_in_commit);
  g_test_add_func ("/overlay/die-in-commit-middle", test_die_in_commit_middle);
  g_test_add_func ("/overlay/die-in-stream", test_die_in_stream);
  g_test_add_func ("/overlay/die-in-stream-whole", test_die_in_stream_whole);
  g_test_add_func ("/overlay/die-in-put-on", test_die_in_put_on);
  return g_test_run ();
}
