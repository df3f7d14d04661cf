/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Snapshots, layers and tracking over restarts: all of it after a clean stop;
 * after a crash, or when a file of a snapshot is damaged, the snapshot is LOST
 * and says why, and nothing is reported clean that changed. */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bitmap/bitmap-error.h"
#include "tests/fleece-fixture.h"

#define SIZE (17 * 1024 * 1024 + 1536)  /* two pages of a map, odd end */
#define DATA (3 * MIB)          /* the rest is a hole at first */
#define BLOCK 4096
#define MIB (1024 * 1024)
#define GRANULE 65536

static Fixture *fx;

static Snapshot *
find (unsigned i, const char *name)
{
  Snapshot *snap = disk_find_snapshot (fx->disk[i], name);

  g_assert_nonnull (snap);
  return snap;
}

/* Content of a disk at three cuts: [0, 3M) 'a'; then [0, 1M) 'b'; then
 * [0, 2M) 'c'. */
static void
make_history (unsigned i, uint64_t boundary[3])
{
  Disk *disk = fx->disk[i];

  fixture_write (disk, 0, DATA, 'a');
  snapshot_unref (fixture_cut (fx, i, "s1", &boundary[0]));
  fixture_write (disk, 0, MIB, 'b');
  snapshot_unref (fixture_cut (fx, i, "s2", &boundary[1]));
  fixture_write (disk, 0, 2 * MIB, 'c');
  snapshot_unref (fixture_cut (fx, i, "s3", &boundary[2]));
  fixture_write (disk, SIZE - 100, 100, 'd');
}

static void
check_s1 (unsigned i)
{
  g_autoptr (Snapshot) snap = find (i, "s1");

  fixture_check_snapshot (snap, 0, DATA, 'a');
  fixture_check_snapshot (snap, DATA, SIZE - DATA, 0);
}

static void
check_s2 (unsigned i)
{
  g_autoptr (Snapshot) snap = find (i, "s2");

  fixture_check_snapshot (snap, 0, MIB, 'b');
  fixture_check_snapshot (snap, MIB, DATA - MIB, 'a');
  fixture_check_snapshot (snap, DATA, SIZE - DATA, 0);
}

static void
check_s3 (unsigned i)
{
  g_autoptr (Snapshot) snap = find (i, "s3");

  fixture_check_snapshot (snap, 0, 2 * MIB, 'c');
  fixture_check_snapshot (snap, 2 * MIB, DATA - 2 * MIB, 'a');
  fixture_check_snapshot (snap, DATA, SIZE - DATA, 0);
}

static void
check_tracking (unsigned i, const uint64_t boundary[3])
{
  for (uint64_t at = 0; at < SIZE; at += GRANULE) {
    bool last = at + GRANULE > SIZE - 100;

    g_assert_cmpint (fixture_is_dirty (fx, i, boundary[0], 0, at), ==,
                     at < 2 * MIB || last);
    g_assert_cmpint (fixture_is_dirty (fx, i, boundary[0], boundary[1], at),
                     ==, at < MIB);
    g_assert_cmpint (fixture_is_dirty (fx, i, boundary[2], 0, at), ==, last);
  }
}

static void
end_all (unsigned i)
{
  g_autoptr (GPtrArray) snaps = disk_snapshots (fx->disk[i]);

  for (unsigned j = 0; j < snaps->len; j++)
    fixture_end (snapshot_ref (snaps->pdata[j]));
}

static void
test_clean (void)
{
  uint64_t b[2][3];
  struct disk_stats stats;

  fx = fixture_new (2, SIZE);
  fixture_start (fx);
  for (unsigned i = 0; i < 2; i++)
    make_history (i, b[i]);
  for (unsigned round = 0; round < 3; round++) {
    fixture_stop (fx);
    fixture_start (fx);
    for (unsigned i = 0; i < 2; i++) {
      g_autoptr (Snapshot) snap = find (i, "s2");

      check_s1 (i);
      check_s2 (i);
      check_s3 (i);
      check_tracking (i, b[i]);
      g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_LIVE);
      g_assert_cmpuint (snapshot_boundary (snap), ==, b[i][1]);
      g_assert_cmpuint (snapshot_size (snap), ==, SIZE);
      disk_stats (fx->disk[i], &stats);
      g_assert_cmpuint (stats.layers, ==, 3);
      g_assert_cmpuint (stats.snapshots, ==, 3);
      /* Of this process: none. */
      g_assert_cmpuint (stats.blocks_copied, ==, 0);
      g_assert_cmpuint (stats.scratch_bytes, ==,
                        (256 + 512) * (uint64_t) BLOCK);
    }
  }
  /* Writes go on preserving, and for all of them. */
  for (unsigned i = 0; i < 2; i++) {
    fixture_write (fx->disk[i], 0, DATA + MIB, 'e');
    check_s1 (i);
    check_s2 (i);
    check_s3 (i);
    disk_stats (fx->disk[i], &stats);
    g_assert_cmpuint (stats.blocks_copied, ==, DATA / BLOCK);
  }
  fixture_stop (fx);
  fixture_start (fx);
  check_s1 (0);
  end_all (0);
  check_s2 (1);
  end_all (1);
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
  g_assert_cmpstr (fx->notes->str, ==, "");
  fixture_free (fx);
}

static void
check_lost (unsigned i, const char *name, const char *why)
{
  Snapshot *snap = find (i, name);
  g_autofree char *reason = snapshot_reason (snap);
  char byte;

  g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_LOST);
  g_assert_nonnull (reason);
  if (strstr (reason, why) == NULL)
    g_error ("reason '%s' does not say '%s'", reason, why);
  g_assert_cmpint (snapshot_pread (snap, &byte, 1, 0), ==, -EIO);
  snapshot_unref (snap);
}

static void
test_crash (void)
{
  uint64_t b[3];
  g_autoptr (GError) error = NULL;
  FleeceCutDisk cd;

  fx = fixture_new (1, SIZE);
  fixture_start (fx);
  make_history (0, b);
  fleece_store_epochs (fx->f, &error);
  g_assert_no_error (error);
  fixture_crash (fx);
  fixture_lose_maps (fx);
  for (unsigned round = 0; round < 2; round++) {
    fixture_start (fx);
    g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
    check_lost (0, "s1", "cleanly");
    check_lost (0, "s2", "cleanly");
    check_lost (0, "s3", "cleanly");
    for (unsigned k = 0; k < 3; k++)
      for (uint64_t at = 0; at < SIZE; at += GRANULE)
        g_assert_true (fixture_is_dirty (fx, 0, b[k], 0, at));
    /* Before the crash all is as it was stored. */
    g_assert_true (fixture_is_dirty (fx, 0, b[0], b[1], 0));
    g_assert_false (fixture_is_dirty (fx, 0, b[0], b[1], MIB));
    fixture_stop (fx);
  }
  fixture_start (fx);
  /* The name is taken until somebody ends it. */
  cd = (FleeceCutDisk) { .disk = fx->disk[0], .snapshot = "s1" };
  g_assert_false (fleece_cut (fx->f, &cd, 1, NULL, NULL, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS);
  fixture_end (find (0, "s1"));
  snapshot_unref (fixture_cut (fx, 0, "s1", NULL));
  fixture_write (fx->disk[0], 0, 4096, 'z');
  end_all (0);
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
  fixture_free (fx);
}

/* Scratch files of layers by age; caller frees. */
static gint
by_layer_id (gconstpointer a, gconstpointer b)
{
  const char *x = strrchr (*(char *const *) a, '-');
  const char *y = strrchr (*(char *const *) b, '-');

  return (int) (g_ascii_strtoll (x + 1, NULL, 10)
                - g_ascii_strtoll (y + 1, NULL, 10));
}

static GPtrArray *
layer_files (void)
{
  GPtrArray *files = g_ptr_array_new_with_free_func (g_free);
  g_autoptr (GDir) dir = g_dir_open (fx->scratch, 0, NULL);
  const char *name;

  while ((name = g_dir_read_name (dir)) != NULL)
    if (g_str_has_suffix (name, ".layer"))
      g_ptr_array_add (files, g_build_filename (fx->scratch, name, NULL));
  g_ptr_array_sort (files, by_layer_id);
  return files;
}

static void
flip_byte (const char *path, uint64_t at)
{
  int fd = open (path, O_RDWR | O_CLOEXEC);
  char byte;

  g_assert_cmpint (fd, >=, 0);
  g_assert_cmpint (pread (fd, &byte, 1, at), ==, 1);
  byte ^= 1;
  g_assert_cmpint (pwrite (fd, &byte, 1, at), ==, 1);
  close (fd);
}

enum damage { NO_MAP, FLIP_MAP, CUT_MAP, LONG_MAP, NO_SCRATCH, CUT_SCRATCH };

static void
do_damage (enum damage what, const char *layer, uint64_t at)
{
  g_autofree char *map = g_strconcat (layer, ".map", NULL);
  struct stat st;

  g_assert_cmpint (stat (map, &st), ==, 0);
  switch (what) {
  case NO_MAP: g_assert_cmpint (unlink (map), ==, 0); break;
  case FLIP_MAP: flip_byte (map, at % st.st_size); break;
  case CUT_MAP: g_assert_cmpint (truncate (map, at % st.st_size), ==, 0); break;
  case LONG_MAP:
    g_assert_cmpint (truncate (map, st.st_size + 17416), ==, 0);
    break;
  case NO_SCRATCH: g_assert_cmpint (unlink (layer), ==, 0); break;
  case CUT_SCRATCH: g_assert_cmpint (truncate (layer, SIZE - 1), ==, 0); break;
  }
}

/* Damage layer number which of three: its snapshot and the older ones are lost,
 * newer ones are not, and tracking is exact. */
static void
damage (enum damage what, unsigned which, uint64_t at, const char *why)
{
  uint64_t b[3];
  g_autoptr (GPtrArray) files = NULL;

  fx = fixture_new (1, SIZE);
  fixture_start (fx);
  make_history (0, b);
  fixture_stop (fx);
  files = layer_files ();
  g_assert_cmpuint (files->len, ==, 3);
  do_damage (what, files->pdata[which], at);
  /* And it stays so. */
  for (unsigned round = what == FLIP_MAP; round < 2; round++) {
    fixture_start (fx);
    check_lost (0, "s1", why);
    if (which >= 1)
      check_lost (0, "s2", why);
    else
      check_s2 (0);
    if (which >= 2)
      check_lost (0, "s3", why);
    else
      check_s3 (0);
    check_tracking (0, b);
    g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 2 - which);
    fixture_stop (fx);
  }
  fixture_start (fx);
  fixture_write (fx->disk[0], 0, DATA, 'z');
  if (which < 2)
    check_s3 (0);
  end_all (0);
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
  fixture_free (fx);
}

static void
test_missing (void)
{
  for (unsigned which = 0; which < 3; which++) {
    damage (NO_MAP, which, 0, "block map");
    damage (NO_SCRATCH, which, 0, "scratch file");
  }
}

static void
test_short (void)
{
  damage (CUT_SCRATCH, 1, 0, "too short");
  damage (CUT_MAP, 1, 0, "damaged");
  damage (CUT_MAP, 1, 63, "damaged");
  damage (CUT_MAP, 1, 64, "damaged");
  damage (CUT_MAP, 1, 5000, "damaged");
  damage (LONG_MAP, 1, 0, "damaged");
}

static void
test_flipped (void)
{
  /* Each field of the header, and of the page: index, presence, checksums. */
  static const unsigned at[] = {
    0, 8, 24, 32, 40, 48, 56, 60, 64, 72, 72 + 1023, 72 + 1024, 17479,
  };

  for (unsigned i = 0; i < G_N_ELEMENTS (at); i++)
    damage (FLIP_MAP, i % 3, at[i], "damaged");
}

/* Folders of catalogs in the runtime directory. */
static unsigned
nr_runtime_entries (void)
{
  g_autoptr (GDir) dir = g_dir_open (fx->runtime, 0, NULL);
  unsigned nr = 0;

  g_assert_nonnull (dir);
  while (g_dir_read_name (dir) != NULL)
    nr++;
  return nr;
}

/* A clean stop leaves nothing in memory: all is in the state directory. */
static void
test_runtime (void)
{
  uint64_t b[3];

  fx = fixture_new (1, SIZE);
  fixture_start (fx);
  make_history (0, b);
  g_assert_cmpuint (nr_runtime_entries (), ==, 1);
  fixture_stop (fx);
  g_assert_cmpuint (nr_runtime_entries (), ==, 0);
  fixture_start (fx);
  check_s1 (0);
  check_tracking (0, b);
  fixture_crash (fx);
  g_assert_cmpuint (nr_runtime_entries (), ==, 1);
  fixture_start (fx);
  check_s1 (0);
  fixture_free (fx);
}

/* Somebody else wrote to the image in between. */
static void
test_foreign_write (void)
{
  uint64_t b[3];
  int fd;
  const struct timespec times[2] = { { 1, 0 }, { 1, 0 } };

  fx = fixture_new (1, SIZE);
  fixture_start (fx);
  make_history (0, b);
  fixture_stop (fx);
  fd = open (fx->image[0], O_RDWR | O_CLOEXEC);
  g_assert_cmpint (pwrite (fd, "x", 1, 0), ==, 1);
  g_assert_cmpint (futimens (fd, times), ==, 0);
  close (fd);
  fixture_start (fx);
  check_lost (0, "s1", "modification time");
  for (uint64_t at = 0; at < SIZE; at += GRANULE)
    g_assert_true (fixture_is_dirty (fx, 0, b[2], 0, at));
  end_all (0);
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
  fixture_free (fx);
}

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

/* A start that fails for one disk does no harm to the others. */
static void
test_failed_start (void)
{
  uint64_t b[2][3];
  g_autoptr (GError) error = NULL;

  fx = fixture_new (2, SIZE);
  fixture_start (fx);
  for (unsigned i = 0; i < 2; i++)
    make_history (i, b[i]);
  run_sql (fx->cat, "CREATE TRIGGER no_d1 BEFORE INSERT ON epoch WHEN"
           " NEW.disk = (SELECT id FROM disk WHERE name = 'd1')"
           " AND NEW.state = 'open' BEGIN SELECT RAISE (ABORT, 'no'); END");
  fixture_stop (fx);
  {
    FleeceOptions options = { .scratch_dir = fx->scratch,
                              .runtime_dir = fx->runtime };
    g_autoptr (Catalog) cat = catalog_new (fx->state, &error);
    Fleece *f;

    g_assert_true (catalog_open (cat, &error));
    f = fleece_new (&options, &error);
    for (unsigned i = 0; i < 2; i++)
      g_assert_nonnull (fleece_add_disk (f, i == 0 ? "d0" : "d1",
                                         fx->image[i], GRANULE, &error));
    g_assert_false (fleece_start (f, cat, &error));
    g_assert_nonnull (strstr (error->message, "d1"));
    g_clear_error (&error);
    g_assert_true (fleece_stop (f, &error));
    fleece_free (f);
    g_assert_cmpuint (nr_runtime_entries (), ==, 0);
    run_sql (cat, "DROP TRIGGER no_d1");
  }
  fixture_start (fx);
  for (unsigned i = 0; i < 2; i++) {
    check_s1 (i);
    check_s2 (i);
    check_s3 (i);
    check_tracking (i, b[i]);
    end_all (i);
  }
  fixture_free (fx);
}

/* Disks of no bytes and of one, and one byte more than blocks and granules. */
static void
test_odd_sizes (void)
{
  static const uint64_t sizes[] = {
    0, 1, 511, 4095, 4097, 65535, 65537, 131073,
  };

  for (unsigned i = 0; i < G_N_ELEMENTS (sizes); i++) {
    uint64_t size = sizes[i];
    Snapshot *snap;

    fx = fixture_new (1, size);
    fixture_start (fx);
    if (size > 0)
      fixture_write (fx->disk[0], 0, size, 'a');
    snap = fixture_cut (fx, 0, "s", NULL);
    if (size > 0)
      fixture_write (fx->disk[0], size - 1, 1, 'b');
    fixture_check_snapshot (snap, 0, size, 'a');
    snapshot_unref (snap);
    fixture_stop (fx);
    fixture_start (fx);
    snap = find (0, "s");
    fixture_check_snapshot (snap, 0, size, 'a');
    fixture_end (snap);
    g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
    fixture_free (fx);
  }
}

/* Offsets past 4 GiB, and a disk of 2 TiB, all holes. */
static void
test_large (void)
{
  uint64_t size = UINT64_C (2) << 40, b;
  const uint64_t at[] = {
    0, (UINT64_C (1) << 32) - 1, (UINT64_C (1) << 40) + 12345, size - 1,
  };
  Snapshot *snap;

  fx = fixture_new (1, size);
  fixture_start (fx);
  for (unsigned i = 0; i < G_N_ELEMENTS (at); i++)
    fixture_write (fx->disk[0], at[i], 1, 'a');
  snap = fixture_cut (fx, 0, "s", &b);
  for (unsigned i = 0; i < G_N_ELEMENTS (at); i++)
    fixture_write (fx->disk[0], at[i], 1, 'b');
  for (unsigned round = 0; round < 2; round++) {
    for (unsigned i = 0; i < G_N_ELEMENTS (at); i++) {
      fixture_check_snapshot (snap, at[i], 1, 'a');
      g_assert_true (fixture_is_dirty (fx, 0, b, 0, at[i]));
      if (at[i] > 0)
        fixture_check_snapshot (snap, at[i] - 1, 1, 0);
    }
    g_assert_false (fixture_is_dirty (fx, 0, b, 0, UINT64_C (3) << 32));
    snapshot_unref (snap);
    fixture_stop (fx);
    fixture_start (fx);
    snap = find (0, "s");
  }
  fixture_end (snap);
  fixture_free (fx);
}

/* The one file of the scratch folder with this end; caller frees. */
static char *
scratch_file (const char *suffix)
{
  g_autoptr (GDir) dir = g_dir_open (fx->scratch, 0, NULL);
  const char *name;

  while ((name = g_dir_read_name (dir)) != NULL)
    if (g_str_has_suffix (name, suffix))
      return g_build_filename (fx->scratch, name, NULL);
  g_assert_not_reached ();
}

/* Damage to the log of a durable snapshot, cut off at size or flipped at byte
 * flip: the snapshot is lost.  Where the log had been cut off between two
 * records, blocks of the later ones read as what had overwritten them. */
static void
damage_log (int64_t size, int64_t flip)
{
  FleeceCutDisk cd = { .snapshot = "s", .durable = true };
  g_autoptr (Snapshot) snap = NULL;
  g_autoptr (GError) error = NULL;
  g_autofree char *path = NULL, *reason = NULL;
  char byte, buf[BLOCK];
  int fd;

  fx = fixture_new (1, SIZE);
  fixture_start (fx);
  fixture_write (fx->disk[0], 0, DATA, 'a');
  cd.disk = fx->disk[0];
  g_assert_true (fleece_cut (fx->f, &cd, 1, NULL, NULL, &error));
  snapshot_unref (cd.out_snapshot);
  for (unsigned i = 0; i < 20; i++)
    fixture_write (fx->disk[0], i * 65536, BLOCK, 'b');
  fixture_crash (fx);

  path = scratch_file (".log");
  fd = open (path, O_RDWR | O_CLOEXEC);
  g_assert_cmpint (fd, >=, 0);
  if (size >= 0)
    g_assert_cmpint (ftruncate (fd, size), ==, 0);
  if (flip >= 0) {
    g_assert_cmpint (pread (fd, &byte, 1, flip), ==, 1);
    byte ^= 4;
    g_assert_cmpint (pwrite (fd, &byte, 1, flip), ==, 1);
  }
  close (fd);

  fixture_start (fx);
  snap = disk_find_snapshot (fx->disk[0], "s");
  reason = snapshot_reason (snap);
  g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_LOST);
  g_assert_nonnull (strstr (reason, "damaged"));
  g_assert_cmpint (snapshot_pread (snap, buf, BLOCK, 19 * 65536), ==, -EIO);
  fixture_end (g_steal_pointer (&snap));
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
  fixture_free (fx);
}

/* The reason is the one that the user can do something about: the map is there,
 * it is the scratch file that is not. */
static void
test_crash_no_file (void)
{
  g_autoptr (Snapshot) snap = NULL;
  g_autofree char *path = NULL, *reason = NULL;

  fx = fixture_new (1, SIZE);
  fixture_start (fx);
  fixture_write (fx->disk[0], 0, DATA, 'a');
  snapshot_unref (fixture_cut (fx, 0, "s", NULL));
  fixture_write (fx->disk[0], 0, BLOCK, 'b');
  fixture_crash (fx);
  path = scratch_file (".layer");
  g_assert_cmpint (unlink (path), ==, 0);
  fixture_start (fx);
  snap = disk_find_snapshot (fx->disk[0], "s");
  reason = snapshot_reason (snap);
  g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_LOST);
  g_assert_true (g_str_has_prefix (reason, "cannot open scratch file"));
  fixture_end (g_steal_pointer (&snap));
  fixture_free (fx);
}

static void
test_durable_log (void)
{
  static const int64_t sizes[] = { 0, 511, 512, 1024, 5120, 10240, 12000 };
  static const int64_t flips[] = { 0, 100, 512 + 4, 5 * 512 + 33 };

  for (unsigned i = 0; i < G_N_ELEMENTS (sizes); i++)
    damage_log (sizes[i], -1);
  for (unsigned i = 0; i < G_N_ELEMENTS (flips); i++)
    damage_log (-1, flips[i]);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/fleece/restart/clean", test_clean);
  g_test_add_func ("/fleece/restart/crash", test_crash);
  g_test_add_func ("/fleece/restart/missing", test_missing);
  g_test_add_func ("/fleece/restart/short", test_short);
  g_test_add_func ("/fleece/restart/flipped", test_flipped);
  g_test_add_func ("/fleece/restart/crash-no-file", test_crash_no_file);
  g_test_add_func ("/fleece/restart/durable-log", test_durable_log);
  g_test_add_func ("/fleece/restart/runtime", test_runtime);
  g_test_add_func ("/fleece/restart/foreign-write", test_foreign_write);
  g_test_add_func ("/fleece/restart/failed-start", test_failed_start);
  g_test_add_func ("/fleece/restart/odd-sizes", test_odd_sizes);
  g_test_add_func ("/fleece/restart/large", test_large);
  return g_test_run ();
}
