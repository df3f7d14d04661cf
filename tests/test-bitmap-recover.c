/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What an unclean stop leaves: exact with the runtime directory, bounded
 * without, all dirty when the maps are gone too; damage counts as dirty, never
 * as clean. */
#include "config.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bitmap/sector.h"
#include "intent-test.h"

#define PER_REGION (REGION / GRAN)
#define NR (SIZE / GRAN)

/* Sealed epoch b[0] with granules 1 and 481 (regions 0, 30); open b[1] with 33
 * (region 2) and 160 (region 10).  No stream. */
static void
make_history (Rig *rig, uint64_t b[2])
{
  rig_open (rig);
  b[0] = epoch_log_current (rig->log)->id;
  g_assert_cmpint (rig_write (rig, 1 * GRAN, 1), ==, 0);
  g_assert_cmpint (rig_write (rig, 481 * GRAN, 1), ==, 0);
  b[1] = rig_cut (rig);
  g_assert_cmpint (rig_write (rig, 33 * GRAN, 1), ==, 0);
  g_assert_cmpint (rig_write (rig, 160 * GRAN, 1), ==, 0);
  rig_crash (rig);
}

static EpochRecovery
recovery (Rig *rig)
{
  const EpochOpenReport *report = epoch_log_report (rig->log);

  g_assert_false (report->clean);
  g_assert_nonnull (report->reason);
  return report->recovery;
}

static void
check_exact (Rig *rig, const uint64_t b[2])
{
  g_assert_cmpuint (rig_count (rig, b[0], b[1]), ==, 2);
  g_assert_true (rig_is_dirty (rig, b[0], b[1], 1 * GRAN));
  g_assert_true (rig_is_dirty (rig, b[0], b[1], 481 * GRAN));
  g_assert_cmpuint (rig_count (rig, b[1], 0), ==, 2);
  g_assert_true (rig_is_dirty (rig, b[1], 0, 33 * GRAN));
  g_assert_true (rig_is_dirty (rig, b[1], 0, 160 * GRAN));
}

/* Regions 0 and 30 have intents from before the cut. */
static void
check_bounded (Rig *rig, const uint64_t b[2])
{
  g_assert_cmpuint (rig_count (rig, b[0], b[1]), ==, 2);
  g_assert_cmpuint (rig_count (rig, b[1], 0), ==, 4 * PER_REGION);
  for (unsigned i = 0; i < PER_REGION; i++) {
    g_assert_true (rig_is_dirty (rig, b[1], 0, 2 * REGION + i * GRAN));
    g_assert_true (rig_is_dirty (rig, b[1], 0, 10 * REGION + i * GRAN));
  }
}

static void
test_exact (void)
{
  Rig *rig = rig_new ();
  uint64_t b[2];

  make_history (rig, b);
  for (unsigned i = 0; i < 3; i++) {
    rig_open (rig);
    g_assert_cmpint (recovery (rig), ==, EPOCHS_EXACT);
    check_exact (rig, b);
    rig_crash (rig);
  }
  rig_free (rig);
}

static void
test_bounded (void)
{
  Rig *rig = rig_new ();
  uint64_t b[2];

  make_history (rig, b);
  rig_lose_runtime (rig);
  rig_open (rig);
  g_assert_cmpint (recovery (rig), ==, EPOCHS_BOUNDED);
  g_assert_cmpuint (epoch_log_report (rig->log)->over_reported, ==,
                    4 * REGION);
  check_bounded (rig, b);
  rig_free (rig);
}

/* Each sector of I, and of D, stands for its own part of the disk. */
static void
test_many_sectors (void)
{
  const uint64_t place[] = { 8000, 5000, 20 };  /* regions: sectors 2, 1, 0 */
  Rig *rig = rig_new ();
  uint64_t b[2];

  rig->size = 8192 * REGION;
  rig_open (rig);
  b[0] = epoch_log_current (rig->log)->id;
  for (unsigned i = 0; i < G_N_ELEMENTS (place); i++)
    g_assert_cmpint (rig_write (rig, place[i] * REGION, 1), ==, 0);
  b[1] = rig_cut (rig);
  g_assert_cmpint (rig_write (rig, 6000 * REGION, 1), ==, 0);
  rig_crash (rig);
  rig_lose_runtime (rig);
  rig_open (rig);
  g_assert_cmpint (recovery (rig), ==, EPOCHS_BOUNDED);
  g_assert_cmpuint (rig_count (rig, b[0], b[1]), ==, 3);
  g_assert_cmpuint (rig_count (rig, b[1], 0), ==, 4 * PER_REGION);
  for (unsigned i = 0; i < G_N_ELEMENTS (place); i++) {
    g_assert_true (rig_is_dirty (rig, b[0], b[1], place[i] * REGION));
    g_assert_true (rig_is_dirty (rig, b[1], 0, (place[i] + 1) * REGION - 1));
  }
  g_assert_true (rig_is_dirty (rig, b[1], 0, 6000 * REGION));
  rig_free (rig);
}

/* Granule 10 of a disk with three sectors of I and 34 of D, sealed; region 20,
 * open. */
static void
make_large (Rig *rig, uint64_t b[2])
{
  rig->size = 8192 * REGION;
  rig_open (rig);
  b[0] = epoch_log_current (rig->log)->id;
  g_assert_cmpint (rig_write (rig, 10 * GRAN, 1), ==, 0);
  b[1] = rig_cut (rig);
  g_assert_cmpint (rig_write (rig, 20 * REGION, 1), ==, 0);
  rig_crash (rig);
  rig_lose_runtime (rig);
}

/* What a file that is too short does not say any more is dirty. */
static void
test_short (void)
{
  static const off_t lengths[] = { SECTOR_BYTES, 2 * SECTOR_BYTES - 1 };
  const uint64_t nr = 8192 * PER_REGION;

  for (unsigned i = 0; i < G_N_ELEMENTS (lengths); i++) {
    Rig *rig = rig_new ();
    g_autofree char *d = NULL, *path_i = rig_map_path (rig, "vda.i");
    g_autofree char *path_d = NULL;
    uint64_t b[2];

    make_large (rig, b);
    d = g_strdup_printf ("vda.%" G_GUINT64_FORMAT ".d", b[0]);
    path_d = rig_map_path (rig, d);
    g_assert_cmpint (truncate (path_i, lengths[i]), ==, 0);
    g_assert_cmpint (truncate (path_d, lengths[i]), ==, 0);
    rig_open (rig);
    g_assert_cmpint (recovery (rig), ==, EPOCHS_BOUNDED);
    g_assert_cmpuint (rig_count (rig, b[0], b[1]), ==, nr - SECTOR_BITS + 1);
    g_assert_cmpuint (rig_count (rig, b[1], 0), ==,
                      nr - SECTOR_BITS * PER_REGION + 2 * PER_REGION);
    rig_free (rig);
  }
}

/* A good sector of something else, in place of sector at. */
static void
plant (Rig *rig, const char *name, SectorKind kind, uint64_t index,
       uint64_t tag, uint64_t at)
{
  static const uint64_t none[SECTOR_WORDS];
  g_autofree char *path = rig_map_path (rig, name);
  int fd = open (path, O_RDWR | O_CLOEXEC);
  struct sector sector;

  g_assert_cmpint (fd, >=, 0);
  sector_fill (&sector, kind, index, tag, none);
  g_assert_cmpint (pwrite (fd, &sector, sizeof sector,
                           (off_t) (at * SECTOR_BYTES)), ==, sizeof sector);
  close (fd);
}

static void
test_foreign (void)
{
  Rig *rig = rig_new ();
  g_autofree char *d = NULL;
  uint64_t b[2];

  make_large (rig, b);
  d = g_strdup_printf ("vda.%" G_GUINT64_FORMAT ".d", b[0]);
  plant (rig, d, SECTOR_EPOCH_MAP, 1, b[1], 1); /* of another epoch */
  plant (rig, "vda.i", SECTOR_INTENTS, 1, 2 * REGION, 1);
  rig_open (rig);
  g_assert_cmpuint (epoch_log_report (rig->log)->bad_sectors, ==, 2);
  g_assert_cmpuint (rig_count (rig, b[0], b[1]), ==, SECTOR_BITS + 1);
  g_assert_cmpuint (rig_count (rig, b[1], 0), ==,
                    SECTOR_BITS * PER_REGION + 2 * PER_REGION);
  rig_free (rig);

  /* Of another place of the same file. */
  rig = rig_new ();
  make_large (rig, b);
  g_free (d);
  d = g_strdup_printf ("vda.%" G_GUINT64_FORMAT ".d", b[0]);
  plant (rig, d, SECTOR_EPOCH_MAP, 2, b[0], 1);
  plant (rig, "vda.i", SECTOR_INTENTS, 2, REGION, 1);
  rig_open (rig);
  g_assert_cmpuint (epoch_log_report (rig->log)->bad_sectors, ==, 2);
  g_assert_cmpuint (rig_count (rig, b[0], b[1]), ==, SECTOR_BITS + 1);
  g_assert_cmpuint (rig_count (rig, b[1], 0), ==,
                    SECTOR_BITS * PER_REGION + 2 * PER_REGION);
  rig_free (rig);

  /* D where I should be, and the other way round. */
  rig = rig_new ();
  make_large (rig, b);
  g_free (d);
  d = g_strdup_printf ("vda.%" G_GUINT64_FORMAT ".d", b[0]);
  plant (rig, d, SECTOR_INTENTS, 0, b[0], 0);
  plant (rig, "vda.i", SECTOR_EPOCH_MAP, 0, REGION, 0);
  rig_open (rig);
  g_assert_cmpuint (epoch_log_report (rig->log)->bad_sectors, ==, 2);
  g_assert_cmpuint (rig_count (rig, b[0], b[1]), ==, SECTOR_BITS);
  g_assert_cmpuint (rig_count (rig, b[1], 0), ==, SECTOR_BITS * PER_REGION);
  rig_free (rig);
}

/* With the fine map synced, only what came after is over-reported: nothing. */
static void
test_synced (void)
{
  Rig *rig = rig_new ();
  uint64_t b[2];

  rig->options.sync_interval_ms = 10;
  rig->options.idle_ms = 10;
  rig_open (rig);
  b[0] = epoch_log_current (rig->log)->id;
  g_assert_cmpint (rig_write (rig, 33 * GRAN, 1), ==, 0);
  while (epoch_log_intent_bytes (rig->log) > 0)
    g_usleep (1000);
  rig_crash (rig);
  rig_lose_runtime (rig);
  rig_open (rig);
  g_assert_cmpuint (rig_count (rig, b[0], 0), ==, 1);
  rig_free (rig);
}

static void
remove_map (Rig *rig, const char *name)
{
  g_autofree char *path = rig_map_path (rig, name);

  g_assert_cmpint (unlink (path), ==, 0);
}

static void
test_gone (void)
{
  Rig *rig = rig_new ();
  uint64_t b[2];

  make_history (rig, b);
  rig_lose_runtime (rig);
  remove_map (rig, "vda.i");
  rig_open (rig);
  g_assert_cmpint (recovery (rig), ==, EPOCHS_ALL_DIRTY);
  g_assert_cmpuint (rig_count (rig, b[0], b[1]), ==, 2);        /* sealed */
  g_assert_cmpuint (rig_count (rig, b[1], 0), ==, NR);
  rig_free (rig);

  rig = rig_new ();
  make_history (rig, b);
  rig_lose_runtime (rig);
  {
    g_autofree char *maps = rig_map_path (rig, "");

    remove_all (maps);
  }
  rig_open (rig);
  g_assert_cmpint (recovery (rig), ==, EPOCHS_ALL_DIRTY);
  g_assert_cmpuint (rig_count (rig, b[0], b[1]), ==, NR);
  g_assert_cmpuint (rig_count (rig, b[1], 0), ==, NR);
  rig_free (rig);
}

static void
flip_bit (Rig *rig, const char *name, off_t at)
{
  g_autofree char *path = rig_map_path (rig, name);
  int fd = open (path, O_RDWR | O_CLOEXEC);
  char byte;

  g_assert_cmpint (fd, >=, 0);
  g_assert_cmpint (pread (fd, &byte, 1, at), ==, 1);
  byte ^= 4;
  g_assert_cmpint (pwrite (fd, &byte, 1, at), ==, 1);
  close (fd);
}

/* One sector covers the whole of this disk. */
static void
test_bad_sector (void)
{
  static const off_t places[] = { 0, 5, 9, 20, 511 };

  for (unsigned i = 0; i < G_N_ELEMENTS (places); i++) {
    Rig *rig = rig_new ();
    g_autofree char *d = NULL;
    uint64_t b[2];

    make_history (rig, b);
    rig_lose_runtime (rig);
    d = g_strdup_printf ("vda.%" G_GUINT64_FORMAT ".d", b[0]);
    flip_bit (rig, d, places[i]);
    rig_open (rig);
    g_assert_cmpuint (epoch_log_report (rig->log)->bad_sectors, ==, 1);
    g_assert_cmpuint (rig_count (rig, b[0], b[1]), ==, NR);
    g_assert_cmpuint (rig_count (rig, b[1], 0), ==, 4 * PER_REGION);
    rig_free (rig);

    rig = rig_new ();
    make_history (rig, b);
    rig_lose_runtime (rig);
    flip_bit (rig, "vda.i", places[i]);
    rig_open (rig);
    g_assert_cmpuint (rig_count (rig, b[0], b[1]), ==, 2);
    g_assert_cmpuint (rig_count (rig, b[1], 0), ==, NR);
    rig_free (rig);
  }
}

/* A map of another session, and one in a directory that is no tmpfs. */
static void
test_not_trusted (void)
{
  Rig *rig = rig_new ();
  uint64_t b[2];

  make_history (rig, b);
  {
    Catalog *cat = test_catalog (rig->dir);

    test_sql (cat, "UPDATE epoch SET nonce = randomblob (16)"
              " WHERE nonce IS NOT NULL");
    catalog_free (cat);
  }
  rig_open (rig);
  g_assert_cmpint (recovery (rig), ==, EPOCHS_BOUNDED);
  check_bounded (rig, b);
  rig_free (rig);

  rig = rig_new ();
  remove_all (rig->runtime_dir);
  g_free (rig->runtime_dir);
  rig->runtime_dir = g_dir_make_tmp ("nbdfleece-test-XXXXXX", NULL);
  make_history (rig, b);
  rig_open (rig);
  if (!runtime_is_trusted (rig->rt)) {
    g_assert_cmpint (recovery (rig), ==, EPOCHS_BOUNDED);
    check_bounded (rig, b);
  }
  rig_free (rig);
}

/* Killed at each storage call of a start, and started again: the same
 * answer. */
static void
repeat (bool lose)
{
  bool opened = false;
  long calls;

  for (calls = 0; !opened; calls++) {
    Rig *rig = rig_new ();
    uint64_t b[2];
    int status;
    pid_t pid;

    make_history (rig, b);
    if (lose)
      rig_lose_runtime (rig);
    pid = fork ();
    if (pid == 0) {
      rig->die_after = calls;
      rig_open (rig);
      _exit (1);
    }
    g_assert_cmpint (waitpid (pid, &status, 0), ==, pid);
    g_assert_true (WIFEXITED (status));
    opened = WEXITSTATUS (status) == 1;
    rig_open (rig);
    if (lose)
      check_bounded (rig, b);
    else
      check_exact (rig, b);
    rig_free (rig);
  }
  g_assert_cmpint (calls, >, 10);
}

static void
test_repeated (void)
{
  repeat (false);
  repeat (true);
}

#define TORN_SIZE (UINT64_C (1) << 30)
#define TORN_GRAN 4096u         /* 67 sectors */

static void
read_torn (void *opaque, uint64_t index, uint64_t tag, const uint64_t *words)
{
  g_assert_nonnull (words);
  g_assert_cmpuint (tag, ==, 7);
  dirty_bitmap_or_words (opaque, index * SECTOR_WORDS, words, SECTOR_WORDS);
}

static DirtyBitmap *
new_bits (void)
{
  GError *error = NULL;
  DirtyBitmap *bm = dirty_bitmap_new (TORN_SIZE, TORN_GRAN, &error);

  g_assert_no_error (error);
  return bm;
}

/* Any mix of a map's old and new sectors has the old bits and no strange
 * ones. */
static void
test_torn (void)
{
  char *dir = test_dir_new ();
  g_autofree char *path = durable_map_path (dir, "vda", 7);
  g_autoptr (DirtyBitmap) bm = new_bits ();
  g_autofree char *before = NULL, *after = NULL;
  GError *error = NULL;
  uint64_t old[2000];
  StorageFile *file;
  DurableMap *dm;
  gsize size;

  dm = durable_map_create (&storage_posix, dir, "vda", 7, TORN_SIZE,
                           TORN_GRAN, &error);
  g_assert_no_error (error);
  for (unsigned i = 0; i < G_N_ELEMENTS (old); i++) {
    old[i] = (uint64_t) g_test_rand_int_range (0, 1 << 30);
    dirty_bitmap_set (bm, old[i], 1);
    g_assert_false (i == 0 && durable_map_covers (dm, old[i], 1));
  }
  g_assert_cmpint (durable_map_sync (dm, bm), ==, 0);
  for (unsigned i = 0; i < G_N_ELEMENTS (old); i++)
    g_assert_true (durable_map_covers (dm, old[i], 1));
  g_assert_true (g_file_get_contents (path, &before, &size, NULL));
  g_assert_cmpuint (size, ==, 67 * SECTOR_BYTES);
  for (unsigned i = 0; i < 2000; i++)
    dirty_bitmap_set (bm, (uint64_t) g_test_rand_int_range (0, 1 << 30), 1);
  g_assert_cmpint (durable_map_sync (dm, bm), ==, 0);
  g_assert_true (g_file_get_contents (path, &after, &size, NULL));
  durable_map_close (dm);

  for (unsigned round = 0; round < 100; round++) {
    g_autofree char *mix = g_memdup2 (before, size);
    g_autoptr (DirtyBitmap) got = new_bits ();

    for (gsize at = 0; at < size; at += SECTOR_BYTES)
      if (g_test_rand_bit ())
        memcpy (mix + at, after + at, SECTOR_BYTES);
    g_assert_true (g_file_set_contents (path, mix, (gssize) size, NULL));
    g_assert_cmpint (storage_posix.ops->open (&storage_posix, path,
                                              STORAGE_READ_ONLY, 0, &file),
                     ==, 0);
    sector_file_read (file, SECTOR_EPOCH_MAP, 67, read_torn, got);
    file->ops->close (file);
    for (unsigned i = 0; i < G_N_ELEMENTS (old); i++)
      g_assert_true (dirty_bitmap_get (got, old[i]));
    for (uint64_t at = 0; at < TORN_SIZE; at += TORN_GRAN)
      if (dirty_bitmap_get (got, at))
        g_assert_true (dirty_bitmap_get (bm, at));
  }
  test_dir_free (dir);
}

/* A cut that was not committed: its epoch counts too. */
static void
test_prepared (void)
{
  for (int lose = 0; lose < 2; lose++) {
    Rig *rig = rig_new ();
    GError *error = NULL;
    uint64_t b, at;
    Epoch *next;

    rig_open (rig);
    b = epoch_log_current (rig->log)->id;
    g_assert_cmpint (rig_write (rig, 1 * GRAN, 1), ==, 0);
    next = epoch_log_prepare (rig->log, SIZE, GRAN, &error);
    g_assert_no_error (error);
    at = next->id;
    dirty_bitmap_set (next->bitmap, 33 * GRAN, 1);
    g_assert_cmpint (epoch_intend (rig->log, next, 33 * GRAN, 1), ==, 0);
    rig_crash (rig);
    if (lose)
      rig_lose_runtime (rig);
    rig_open (rig);
    g_assert_true (rig_is_dirty (rig, b, 0, 1 * GRAN));
    g_assert_true (rig_is_dirty (rig, b, 0, 33 * GRAN));
    g_assert_true (rig_is_dirty (rig, at, 0, 33 * GRAN));
    g_assert_cmpuint (rig_count (rig, b, 0), ==, lose ? 2 * PER_REGION : 2);
    rig_free (rig);
  }
}

/* The clear round looks at the epoch of a cut under way too: its bits are
 * durable before the intents go that covered them. */
static void
test_prepared_cleared (void)
{
  Rig *rig = rig_new ();
  GError *error = NULL;
  uint64_t b;
  Epoch *next;

  rig->options.sync_interval_ms = 10;
  rig->options.idle_ms = 10;
  rig_open (rig);
  b = epoch_log_current (rig->log)->id;
  next = epoch_log_prepare (rig->log, SIZE, GRAN, &error);
  g_assert_no_error (error);
  dirty_bitmap_set (next->bitmap, 33 * GRAN, 1);
  g_assert_cmpint (epoch_intend (rig->log, next, 33 * GRAN, 1), ==, 0);
  while (epoch_log_intent_bytes (rig->log) > 0)
    g_usleep (1000);
  rig_crash (rig);
  rig_lose_runtime (rig);
  rig_open (rig);
  g_assert_true (rig_is_dirty (rig, b, 0, 33 * GRAN));
  g_assert_cmpuint (rig_count (rig, b, 0), ==, 1);
  rig_free (rig);
}

static int
refuse_commit (void *opaque)
{
  return 1;
}

static void
set_commit_hook (Rig *rig, int (*fn) (void *))
{
  GError *error = NULL;
  sqlite3_stmt *stmt;

  catalog_lock (rig->cat);
  stmt = catalog_stmt (rig->cat, "SELECT 1", &error);
  g_assert_no_error (error);
  sqlite3_commit_hook (sqlite3_db_handle (stmt), fn, NULL);
  catalog_unlock (rig->cat);
}

/* What is in maps stays there until the rows are committed that have it. */
static void
test_not_committed (void)
{
  static const DiskIdentity identity = { .size = SIZE, .inode = 1 };

  for (int lose = 0; lose < 2; lose++)
    for (int close = 0; close < 2; close++) {
      Rig *rig = rig_new ();
      g_autoptr (GError) error = NULL;
      uint64_t b[2];

      rig_open (rig);
      b[0] = epoch_log_current (rig->log)->id;
      g_assert_cmpint (rig_write (rig, 1 * GRAN, 1), ==, 0);
      b[1] = rig_cut (rig);
      g_assert_cmpint (rig_write (rig, 33 * GRAN, 1), ==, 0);
      set_commit_hook (rig, refuse_commit);
      if (close)
        g_assert_false (epoch_log_close (rig->log, &identity, &error));
      else
        g_assert_false (epoch_log_store (rig->log, &error));
      g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID);
      set_commit_hook (rig, NULL);
      rig_crash (rig);
      if (lose)
        rig_lose_runtime (rig);
      rig_open (rig);
      g_assert_cmpint (recovery (rig), ==,
                       lose ? EPOCHS_BOUNDED : EPOCHS_EXACT);
      g_assert_cmpuint (rig_count (rig, b[0], b[1]), ==, 1);
      g_assert_true (rig_is_dirty (rig, b[1], 0, 33 * GRAN));
      rig_free (rig);
    }
}

/* Nothing stays behind after a clean stop. */
static void
test_clean (void)
{
  static const DiskIdentity identity = { SIZE, 0, 1, 0 };
  Rig *rig = rig_new ();
  GError *error = NULL;
  uint64_t b;
  GDir *dir;

  rig_open (rig);
  b = epoch_log_current (rig->log)->id;
  g_assert_cmpint (rig_write (rig, 1 * GRAN, 1), ==, 0);
  rig_cut (rig);
  epoch_log_close (rig->log, &identity, &error);
  g_assert_no_error (error);
  rig_crash (rig);
  dir = g_dir_open (rig->runtime_dir, 0, NULL);
  g_assert_null (g_dir_read_name (dir));
  g_dir_close (dir);
  {
    g_autofree char *maps = rig_map_path (rig, "");

    dir = g_dir_open (maps, 0, NULL);
    g_assert_cmpstr (g_dir_read_name (dir), ==, "vda.i");
    g_assert_null (g_dir_read_name (dir));
    g_dir_close (dir);
  }
  {
    /* Of a start or a cut that was killed; and of another disk. */
    g_autofree char *left = rig_map_path (rig, "vda.999.d");
    g_autofree char *other = rig_map_path (rig, "vda.x.999.d");

    g_assert_true (g_file_set_contents (left, "", 0, NULL));
    g_assert_true (g_file_set_contents (other, "", 0, NULL));
    rig_open (rig);
    g_assert_false (g_file_test (left, G_FILE_TEST_EXISTS));
    g_assert_true (g_file_test (other, G_FILE_TEST_EXISTS));
  }
  g_assert_true (epoch_log_report (rig->log)->clean);
  g_assert_cmpuint (rig_count (rig, b, 0), ==, 1);
  rig_free (rig);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/bitmap/recover/exact", test_exact);
  g_test_add_func ("/bitmap/recover/bounded", test_bounded);
  g_test_add_func ("/bitmap/recover/many-sectors", test_many_sectors);
  g_test_add_func ("/bitmap/recover/short", test_short);
  g_test_add_func ("/bitmap/recover/foreign", test_foreign);
  g_test_add_func ("/bitmap/recover/synced", test_synced);
  g_test_add_func ("/bitmap/recover/gone", test_gone);
  g_test_add_func ("/bitmap/recover/bad-sector", test_bad_sector);
  g_test_add_func ("/bitmap/recover/not-trusted", test_not_trusted);
  g_test_add_func ("/bitmap/recover/repeated", test_repeated);
  g_test_add_func ("/bitmap/recover/prepared", test_prepared);
  g_test_add_func ("/bitmap/recover/torn", test_torn);
  g_test_add_func ("/bitmap/recover/prepared-cleared", test_prepared_cleared);
  g_test_add_func ("/bitmap/recover/not-committed", test_not_committed);
  g_test_add_func ("/bitmap/recover/clean", test_clean);
  return g_test_run ();
}
