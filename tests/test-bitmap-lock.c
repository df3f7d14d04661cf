/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A state directory has one owner, from catalog_new on, also over a fork. */
#include "config.h"

#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bitmap-test.h"

static void
expect_busy (const char *dir)
{
  g_autoptr (GError) error = NULL;
  Catalog *cat = catalog_new (dir, &error);

  g_assert_null (cat);
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_BUSY);
  g_assert_nonnull (strstr (error->message, dir));
}

/* What servers do: the parent locks, the child serves. */
static void
test_fork (void)
{
  char *dir = test_dir_new ();
  GError *error = NULL;
  Catalog *cat = catalog_new (dir, &error);
  int ready[2], go[2], status;
  char c = 'x';
  pid_t pid;

  g_assert_no_error (error);
  g_assert_cmpint (pipe (ready), ==, 0);
  g_assert_cmpint (pipe (go), ==, 0);
  pid = fork ();
  if (pid == 0) {
    close (go[1]);
    if (!catalog_open (cat, NULL) || write (ready[1], &c, 1) != 1 ||
        read (go[0], &c, 1) != 0)
      _exit (1);
    catalog_free (cat);
    _exit (0);
  }
  g_assert_cmpint (read (ready[0], &c, 1), ==, 1);
  catalog_free (cat);           /* only this process's descriptors */
  expect_busy (dir);

  close (go[1]);
  g_assert_cmpint (waitpid (pid, &status, 0), ==, pid);
  g_assert_cmpint (status, ==, 0);
  cat = test_catalog (dir);
  catalog_free (cat);
  test_dir_free (dir);
}

/* The same process may not open it twice either. */
static void
test_twice (void)
{
  char *dir = test_dir_new ();
  Catalog *cat = test_catalog (dir);

  expect_busy (dir);
  catalog_free (cat);
  cat = test_catalog (dir);
  catalog_free (cat);
  test_dir_free (dir);
}

/* Dead owners do not count. */
static void
test_killed (void)
{
  char *dir = test_dir_new ();
  g_autofree char *uuid = NULL;
  int status;
  pid_t pid;
  Catalog *cat = test_catalog (dir);

  uuid = g_strdup (catalog_uuid (cat));
  catalog_free (cat);
  pid = fork ();
  if (pid == 0) {
    cat = catalog_new (dir, NULL);
    if (cat == NULL || !catalog_open (cat, NULL))
      _exit (1);
    raise (SIGKILL);
  }
  g_assert_cmpint (waitpid (pid, &status, 0), ==, pid);
  g_assert_true (WIFSIGNALED (status));
  cat = test_catalog (dir);
  g_assert_cmpstr (catalog_uuid (cat), ==, uuid);
  catalog_free (cat);
  test_dir_free (dir);
}

static void
expect_error (const char *dir, const char *text)
{
  g_autoptr (GError) error = NULL;

  g_assert_null (catalog_new (dir, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_IO);
  g_assert_nonnull (strstr (error->message, dir));
  g_assert_nonnull (strstr (error->message, text));
}

static void
test_directory (void)
{
  char *dir = test_dir_new ();
  g_autofree char *sub = g_build_filename (dir, "state", NULL);
  g_autofree char *deep = g_build_filename (dir, "no", "state", NULL);
  g_autofree char *file = g_build_filename (dir, "file", NULL);
  struct stat st;
  Catalog *cat = test_catalog (sub);

  g_assert_cmpstr (catalog_dir (cat), ==, sub);
  g_assert_cmpint (stat (sub, &st), ==, 0);
  g_assert_cmpint (st.st_mode & 0777, ==, 0700);
  g_assert_cmpint (fstatat (catalog_dir_fd (cat), "catalog.sqlite", &st, 0),
                   ==, 0);
  g_assert_cmpint (st.st_mode & 0777, ==, 0600);
  catalog_free (cat);
  test_dir_free (g_steal_pointer (&sub));

  expect_error (deep, "No such file");
  g_assert_true (g_file_set_contents (file, "x", 1, NULL));
  expect_error (file, "Not a directory");
  test_dir_free (dir);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/bitmap/lock/fork", test_fork);
  g_test_add_func ("/bitmap/lock/twice", test_twice);
  g_test_add_func ("/bitmap/lock/killed", test_killed);
  g_test_add_func ("/bitmap/lock/directory", test_directory);
  return g_test_run ();
}
