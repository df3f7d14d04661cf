/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A process that dies while it makes a snapshot leaves no file that is in the
 * way of the next one of that name, or that nobody removes; and what a user has
 * in these places stays. */
#include <config.h>

#include <string.h>
#include <unistd.h>

#include "bitmap/bitmap-error.h"
#include "tests/fleece-fixture.h"

#define SIZE (1024 * 1024 + 1536)

static Fixture *fx;

/* Where a user wants a scratch file. */
static char *
user_path (void)
{
  return g_build_filename (fx->dir, "user", NULL);
}

static void
do_cut (void)
{
  snapshot_unref (fixture_cut (fx, 0, "new", NULL));
}

static Snapshot *
cut_at_user_path (bool durable, GError **error)
{
  g_autofree char *path = user_path ();
  FleeceCutDisk cd = { .disk = fx->disk[0], .snapshot = "new",
                       .scratch_file = path, .durable = durable };

  return fleece_cut (fx->f, &cd, 1, NULL, NULL, error) ? cd.out_snapshot
    : NULL;
}

static void
do_cut_user (void)
{
  snapshot_unref (cut_at_user_path (false, NULL));
}

static void
do_cut_durable (void)
{
  snapshot_unref (cut_at_user_path (true, NULL));
}

static bool
user_file_exists (const char *suffix)
{
  g_autofree char *path = user_path ();
  g_autofree char *name = g_strconcat (path, suffix, NULL);

  return g_file_test (name, G_FILE_TEST_EXISTS);
}

static void
test_nothing_left (void (*fn) (void), bool durable)
{
  unsigned at = 0, in_k1 = 0;
  bool died;

  do {
    g_autoptr (GError) error = NULL;
    g_autoptr (Snapshot) made = NULL;

    fx = fixture_new_mortal (1, SIZE);
    died = fixture_run_dying (fx, fn, NULL, ++at);
    in_k1 += user_file_exists ("");
    fixture_start (fx);
    made = disk_find_snapshot (fx->disk[0], "new");
    if (made == NULL) {
      g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
      for (unsigned i = 0; i < 3; i++)
        g_assert_false (user_file_exists (i == 0 ? "" : i == 1 ? ".log"
                                          : ".map"));
      made = fn == do_cut ? fixture_cut (fx, 0, "new", NULL)
        : cut_at_user_path (durable, &error);
      g_assert_no_error (error);
    }
    fixture_end (g_steal_pointer (&made));
    g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
    g_assert_false (user_file_exists (""));
    fixture_free (fx);
  } while (died);
  g_assert_true (fn == do_cut || in_k1 > 1);
}

static void
test_nothing_left_default (void)
{
  test_nothing_left (do_cut, false);
}

static void
test_nothing_left_user (void)
{
  test_nothing_left (do_cut_user, false);
}

static void
test_nothing_left_durable (void)
{
  test_nothing_left (do_cut_durable, true);
}

/* What the user puts there is his, before a cut and after one that was cut
 * off. */
static void
test_users_files (void)
{
  static const char *const suffixes[] = { "", ".log", ".map" };

  for (unsigned i = 0; i < G_N_ELEMENTS (suffixes) * 2; i++) {
    bool dies = i >= G_N_ELEMENTS (suffixes);
    const char *suffix = suffixes[i % G_N_ELEMENTS (suffixes)];
    g_autofree char *path = NULL;
    g_autofree char *name = NULL;
    g_autofree char *found = NULL;
    g_autoptr (GError) error = NULL;

    fx = fixture_new_mortal (1, SIZE);
    path = user_path ();
    name = g_strconcat (path, suffix, NULL);
    if (dies) {
      /* When the first file is about to be made: its name is recorded. */
      fixture_run_dying (fx, do_cut_durable, "user", 1);
    }
    g_assert_true (g_file_set_contents (name, "precious", -1, &error));
    fixture_start (fx);
    g_assert_null (cut_at_user_path (true, &error));
    g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS);
    for (unsigned j = 0; j < G_N_ELEMENTS (suffixes); j++)
      g_assert_cmpint (user_file_exists (suffixes[j]), ==,
                       strcmp (suffix, suffixes[j]) == 0);
    g_clear_error (&error);
    g_assert_true (g_file_get_contents (name, &found, NULL, &error));
    g_assert_cmpstr (found, ==, "precious");
    unlink (name);
    {
      Snapshot *snap = cut_at_user_path (true, &error);

      g_assert_no_error (error);
      fixture_end (snap);
    }
    fixture_free (fx);
  }
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/fleece/left-over/default", test_nothing_left_default);
  g_test_add_func ("/fleece/left-over/user", test_nothing_left_user);
  g_test_add_func ("/fleece/left-over/durable", test_nothing_left_durable);
  g_test_add_func ("/fleece/left-over/users-files", test_users_files);
  return g_test_run ();
}
