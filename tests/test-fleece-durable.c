/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Durable snapshots on a disk that keeps, drops and tears what was not synced:
 * the power fails at a call of a history, the tmpfs goes with it, and what was
 * acknowledged reads as at its cut. */
#include <config.h>

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <glib/gstdio.h>

#include "tests/fleece-fixture.h"
#include "tests/sim-disk.h"

#define SIZE (1024 * 1024 + 1536)
#define IMAGE "/images/d0"

static char *dir, *state, *scratch, *runtime_folder;
static Catalog *cat;
static Fleece *fleece;
static Disk *disk;

/* Told by the child that dies. */
static struct shared {
  bool cut[2];                  /* acknowledged */
  char at_cut[2][SIZE];
} *told;

static void
start (void)
{
  g_autoptr (GError) error = NULL;
  FleeceOptions options = { .storage = &sim_storage, .scratch_dir = scratch,
                            .runtime_dir = runtime_folder };

  fleece = fleece_new (&options, &error);
  g_assert_no_error (error);
  disk = fleece_add_disk (fleece, "d0", IMAGE, 65536, &error);
  g_assert_no_error (error);
  cat = catalog_new (state, &error);
  g_assert_no_error (error);
  catalog_open (cat, &error);
  g_assert_no_error (error);
  fleece_start (fleece, cat, &error);
  g_assert_no_error (error);
}

static void
cut (unsigned i, const char *name, bool durable)
{
  g_autoptr (GError) error = NULL;
  FleeceCutDisk cd = { .disk = disk, .snapshot = name, .durable = durable };

  g_assert_cmpint (disk_pread (disk, told->at_cut[i], SIZE, 0), ==, 0);
  fleece_cut (fleece, &cd, 1, NULL, NULL, &error);
  g_assert_no_error (error);
  snapshot_unref (cd.out_snapshot);
  told->cut[i] = true;
}

static void
some_writes (GRand *rand, unsigned nr)
{
  for (unsigned i = 0; i < nr; i++) {
    uint64_t offset = g_rand_int_range (rand, 0, SIZE / 512) * 512;
    uint64_t length = (uint64_t) 512 << g_rand_int_range (rand, 0, 9);

    length = MIN (length, SIZE - offset);
    switch (g_rand_int_range (rand, 0, 8)) {
    case 0:
      g_assert_cmpint (disk_zero (disk, length, offset, DISK_MAY_PUNCH), ==,
                       0);
      break;
    case 1:
      g_assert_cmpint (disk_trim (disk, length, offset, false), ==, 0);
      break;
    case 2:
      g_assert_cmpint (disk_flush (disk), ==, 0);
      break;
    default:
      fixture_write (disk, offset, length, g_rand_int_range (rand, 1, 127));
    }
  }
}

static void
history (uint64_t seed)
{
  GRand *rand = g_rand_new_with_seed (seed);

  start ();
  some_writes (rand, 12);
  cut (0, "kept", true);
  some_writes (rand, 8);
  cut (1, "later", false);      /* reads of "kept" go through its layer */
  some_writes (rand, 8);
  _exit (0);
}

static void
check_kept (void)
{
  g_autoptr (Snapshot) kept = disk_find_snapshot (disk, "kept");
  g_autoptr (Snapshot) later = disk_find_snapshot (disk, "later");

  g_assert_true (kept != NULL || !told->cut[0]);
  g_assert_true (later != NULL || !told->cut[1]);
  if (kept != NULL) {
    g_autofree char *reason = snapshot_reason (kept);
    g_autofree char *got = g_malloc (SIZE);

    g_assert_cmpstr (reason, ==, NULL);
    g_assert_true (snapshot_is_durable (kept));
    g_assert_cmpint (snapshot_pread (kept, got, SIZE, 0), ==, 0);
    if (memcmp (got, told->at_cut[0], SIZE) != 0)
      g_error ("the durable snapshot is not what it was");
  }
  if (later != NULL && snapshot_state (later) == SNAPSHOT_LIVE) {
    g_autofree char *got = g_malloc (SIZE);

    g_assert_cmpint (snapshot_pread (later, got, SIZE, 0), ==, 0);
    g_assert_cmpint (memcmp (got, told->at_cut[1], SIZE), ==, 0);
  }
}

static void
recover (uint64_t seed)
{
  GRand *rand = g_rand_new_with_seed (seed + 1);
  g_autoptr (GPtrArray) snaps = NULL;

  start ();
  check_kept ();
  some_writes (rand, 6);
  check_kept ();
  snaps = disk_snapshots (disk);
  /* Half of the time it crashes again, else all ends. */
  for (unsigned i = 0; seed % 2 == 0 && i < snaps->len; i++)
    fixture_end (snapshot_ref (snaps->pdata[i]));
  if (seed % 2 == 0) {
    g_autoptr (GError) error = NULL;
    FleeceCutDisk cd = { .disk = disk, .snapshot = "last", .durable = true };

    /* What a crash left before its row was stable has this one's name. */
    fleece_cut (fleece, &cd, 1, NULL, NULL, &error);
    g_assert_no_error (error);
    fixture_end (cd.out_snapshot);
    g_assert_cmpuint (sim_disk_files (scratch), ==, 0);
  }
  _exit (0);
}

/* True: it ran to its end. */
static bool
run_child (void (*fn) (uint64_t), uint64_t seed, uint64_t crash_at)
{
  int status;
  pid_t pid;

  sim_disk_arm (crash_at);
  pid = fork ();
  g_assert_cmpint (pid, >=, 0);
  if (pid == 0)
    fn (seed);
  g_assert_cmpint (waitpid (pid, &status, 0), ==, pid);
  if (!WIFEXITED (status) || (WEXITSTATUS (status) != 0 &&
                              WEXITSTATUS (status) != SIM_CRASHED))
    g_error ("seed %" G_GUINT64_FORMAT ", call %" G_GUINT64_FORMAT
             ": status 0x%x", seed, crash_at, status);
  return WEXITSTATUS (status) == 0;
}

static void
remove_files (const char *path)
{
  g_autoptr (GDir) d = g_dir_open (path, 0, NULL);
  const char *name;

  while (d != NULL && (name = g_dir_read_name (d)) != NULL) {
    g_autofree char *child = g_build_filename (path, name, NULL);

    if (g_file_test (child, G_FILE_TEST_IS_DIR))
      remove_files (child);
    else
      g_unlink (child);
  }
  g_rmdir (path);
}

static void
lose_power (uint64_t seed)
{
  sim_disk_lose_power (seed);
  remove_files (runtime_folder);
  g_assert_cmpint (g_mkdir (runtime_folder, 0700), ==, 0);
}

/* True: the history was over before the call. */
static bool
crash_once (uint64_t seed, uint64_t crash_at)
{
  StorageFile *file;
  bool over;

  sim_disk_clear ();
  sim_disk_arm (UINT64_MAX);
  remove_files (state);
  memset (told, 0, sizeof *told);
  g_assert_cmpint (sim_storage.ops->open (&sim_storage, IMAGE, STORAGE_CREATE,
                                          SIZE, &file), ==, 0);
  file->ops->sync (file);
  file->ops->close (file);
  sim_storage.ops->sync_dir (&sim_storage, "/images");
  over = run_child (history, seed, crash_at);
  lose_power (seed);
  run_child (recover, seed | 1, UINT64_MAX);
  lose_power (seed + 1);
  run_child (recover, seed & ~UINT64_C (1), UINT64_MAX);
  return over;
}

static void
test_power_loss (void)
{
  unsigned n = 0;
  uint64_t at = 0;

  /* A prime step, so that another seed hits other calls of the cut. */
  while (!crash_once (++n, at))
    at += 7;
  g_assert_cmpuint (n, >, 20);
  g_test_message ("%u power losses", n);
}

int
main (int argc, char **argv)
{
  int r;

  g_test_init (&argc, &argv, NULL);
  told = mmap (NULL, sizeof *told, PROT_READ | PROT_WRITE,
               MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  dir = g_dir_make_tmp ("durable-XXXXXX", NULL);
  g_assert_nonnull (dir);
  state = g_build_filename (dir, "state", NULL);
  scratch = g_build_filename (dir, "scratch", NULL);
  runtime_folder = g_strdup ("/dev/shm/durable-XXXXXX");
  g_assert_nonnull (g_mkdtemp (runtime_folder));
  sim_disk_new ();
  sim_disk_use ();
  g_test_add_func ("/fleece/durable/power-loss", test_power_loss);
  r = g_test_run ();
  remove_files (dir);
  remove_files (runtime_folder);
  return r;
}
