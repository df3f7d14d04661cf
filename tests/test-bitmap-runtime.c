/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Maps that outlive the process: found again by their nonce alone, and never in
 * a directory that is not a tmpfs. */
#include "config.h"

#include <errno.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "bitmap-test.h"
#include "bitmap/runtime.h"

#define UUID "8f4b5e5e-0f5e-4f0e-9b3b-000000000000"
#define BYTES 20000

static char *
tmpfs_dir_new (void)
{
  char *dir = g_strdup ("/dev/shm/nbdfleece-test-XXXXXX");

  g_assert_nonnull (g_mkdtemp (dir));
  return dir;
}

static Runtime *
open_runtime (const char *dir)
{
  GError *error = NULL;
  Runtime *rt = runtime_new (dir, UUID, &error);

  g_assert_no_error (error);
  return rt;
}

static void
refused (Runtime *rt, const char *name, size_t bytes, const uint8_t *nonce,
         const char *why)
{
  g_autoptr (GError) error = NULL;

  g_assert_null (runtime_map_open (rt, name, bytes, nonce, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_NOT_FOUND);
  g_assert_nonnull (strstr (error->message, why));
}

static void
test_again (void)
{
  char *dir = tmpfs_dir_new ();
  Runtime *rt = open_runtime (dir);
  uint8_t nonce[RUNTIME_NONCE_BYTES], other[RUNTIME_NONCE_BYTES];
  g_autofree char *path = NULL;
  GError *error = NULL;
  RuntimeMap *map;
  uint8_t *data;

  g_assert_true (runtime_is_trusted (rt));
  runtime_draw_nonce (nonce);
  runtime_draw_nonce (other);
  g_assert_cmpint (memcmp (nonce, other, sizeof nonce), !=, 0);
  map = runtime_map_create (rt, "m", BYTES, nonce, true, &error);
  g_assert_no_error (error);
  data = runtime_map_data (map);
  for (size_t i = 0; i < BYTES; i++)
    g_assert_cmpint (data[i], ==, 0);
  memset (data, 0x5a, BYTES);
  runtime_map_close (map);
  runtime_free (rt);            /* not empty: stays */

  rt = open_runtime (dir);
  refused (rt, "m", BYTES, other, "another session");
  refused (rt, "m", BYTES + 1, nonce, "another size");
  refused (rt, "n", BYTES, nonce, "missing");
  map = runtime_map_open (rt, "m", BYTES, nonce, &error);
  g_assert_no_error (error);
  data = runtime_map_data (map);
  for (size_t i = 0; i < BYTES; i++)
    g_assert_cmpint (data[i], ==, 0x5a);
  runtime_map_close (map);

  /* Made anew: nothing of the old one. */
  map = runtime_map_create (rt, "m", BYTES, other, false, &error);
  g_assert_no_error (error);
  refused (rt, "m", BYTES, nonce, "another session");
  g_assert_cmpint (runtime_map_reserve (map, 8192, 4096), ==, 0);
  data = runtime_map_data (map);
  g_assert_cmpint (data[8192], ==, 0);
  data[8192] = 1;
  runtime_map_remove (map);
  refused (rt, "m", BYTES, other, "missing");
  path = g_strdup (runtime_dir (rt));
  runtime_free (rt);
  g_assert_false (g_file_test (path, G_FILE_TEST_EXISTS));
  test_dir_free (dir);
}

static void
test_sweep (void)
{
  char *dir = tmpfs_dir_new ();
  Runtime *rt = open_runtime (dir);
  uint8_t nonce[RUNTIME_NONCE_BYTES] = { 1 };
  g_autoptr (GPtrArray) keep = g_ptr_array_new ();
  GError *error = NULL;
  RuntimeMap *map;

  for (unsigned i = 0; i < 2; i++) {
    map = runtime_map_create (rt, i == 0 ? "a" : "b", BYTES, nonce, true,
                              &error);
    g_assert_no_error (error);
    runtime_map_close (map);
  }
  g_ptr_array_add (keep, (char *) "b");
  runtime_sweep (rt, keep);
  refused (rt, "a", BYTES, nonce, "missing");
  map = runtime_map_open (rt, "b", BYTES, nonce, &error);
  g_assert_no_error (error);
  runtime_map_remove (map);
  runtime_free (rt);
  test_dir_free (dir);
}

/* Pages of a file system on a disk may be lost one by one. */
static void
test_not_tmpfs (void)
{
  /* It outlives a restart of the machine; /tmp may be a tmpfs. */
  char *dir = g_mkdtemp (g_strdup ("/var/tmp/nbdfleece-test-XXXXXX"));
  uint8_t nonce[RUNTIME_NONCE_BYTES] = { 1 };
  struct statfs st;
  GError *error = NULL;
  RuntimeMap *map;
  Runtime *rt;

  g_assert_nonnull (dir);
  g_assert_cmpint (statfs (dir, &st), ==, 0);
  if (st.f_type == TMPFS_MAGIC)
    g_test_skip ("/var/tmp is a tmpfs");
  else {
    rt = open_runtime (dir);
    g_assert_false (runtime_is_trusted (rt));
    map = runtime_map_create (rt, "m", BYTES, nonce, true, &error);
    g_assert_no_error (error);
    memset (runtime_map_data (map), 1, BYTES);
    runtime_map_close (map);
    refused (rt, "m", BYTES, nonce, "not a tmpfs");
    runtime_sweep (rt, (GPtrArray[]) { { 0 } });
    runtime_free (rt);
  }
  test_dir_free (dir);
}

static void
belongs_to_another (const char *dir)
{
  g_autoptr (GError) error = NULL;

  g_assert_null (runtime_new (dir, UUID, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID);
  g_assert_nonnull (strstr (error->message, "not a directory of this user"));
}

/* In a directory that others may write to, the folder may be there before us: a
 * link to somewhere, or somebody else's, who could change our maps. */
static void
test_not_ours (void)
{
  char *dir = tmpfs_dir_new (), *elsewhere = tmpfs_dir_new ();
  g_autofree char *folder = g_build_filename (dir, UUID, NULL);
  struct stat st;
  Runtime *rt;

  g_assert_cmpint (symlink (elsewhere, folder), ==, 0);
  belongs_to_another (dir);
  g_assert_cmpint (unlink (folder), ==, 0);
  g_assert_true (g_file_set_contents (folder, "", 0, NULL));
  belongs_to_another (dir);
  g_assert_cmpint (unlink (folder), ==, 0);

  /* Ours, but open to all. */
  g_assert_cmpint (mkdir (folder, 0700), ==, 0);
  g_assert_cmpint (chmod (folder, 0777), ==, 0);
  rt = open_runtime (dir);
  g_assert_cmpint (stat (folder, &st), ==, 0);
  g_assert_cmpint (st.st_mode & 0777, ==, 0700);
  runtime_free (rt);

  if (geteuid () == 0) {
    g_assert_cmpint (mkdir (folder, 0777), ==, 0);
    g_assert_cmpint (chown (folder, 12345, 12345), ==, 0);
    belongs_to_another (dir);
    g_assert_cmpint (rmdir (folder), ==, 0);
  }
  test_dir_free (dir);
  test_dir_free (elsewhere);
}

static void
test_no_directory (void)
{
  g_autoptr (GError) error = NULL;

  g_assert_null (runtime_new ("/proc/none", UUID, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_IO);
  g_assert_nonnull (strstr (error->message, "/proc/none"));
}

static void *
open_when_free (void *dir)
{
  return open_runtime (dir);
}

/* Of a server that is being torn down, its folder is to be had soon. */
static void
test_given_back (void)
{
  char *dir = tmpfs_dir_new ();
  Runtime *rt = open_runtime (dir);
  GThread *thread = g_thread_new ("waits", open_when_free, dir);

  g_usleep (50000);             /* most likely it waits by now; it must not
                                   fail */
  runtime_free (rt);
  runtime_free (g_thread_join (thread));
  test_dir_free (dir);
}

static void
test_in_use (void)
{
  g_autoptr (GError) error = NULL;
  char *dir = tmpfs_dir_new ();
  Runtime *rt = open_runtime (dir);

  g_assert_null (runtime_new (dir, UUID, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_BUSY);
  runtime_free (rt);
  runtime_free (open_runtime (dir));
  test_dir_free (dir);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/bitmap/runtime/again", test_again);
  g_test_add_func ("/bitmap/runtime/sweep", test_sweep);
  g_test_add_func ("/bitmap/runtime/not-tmpfs", test_not_tmpfs);
  g_test_add_func ("/bitmap/runtime/not-ours", test_not_ours);
  g_test_add_func ("/bitmap/runtime/no-directory", test_no_directory);
  g_test_add_func ("/bitmap/runtime/in-use", test_in_use);
  g_test_add_func ("/bitmap/runtime/given-back", test_given_back);
  return g_test_run ();
}
