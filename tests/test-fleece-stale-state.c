/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A state directory that was put back from an older copy does not pass for the
 * truth: neither with an image that keeps a mark, nor, as long as the runtime
 * directory lives, with one that cannot (a block device). */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/fleece-fixture.h"
#include "tests/storage-hook.h"

#define MIB (1024 * 1024)
#define SIZE (8 * MIB)

static int
no_marks (void *opaque, const struct hook_info *info)
{
  return info->call == HOOK_MARK ? -EOPNOTSUPP : 0;
}

static void
replace_dir (const char *from, const char *to)
{
  g_autofree char *command
    = g_strdup_printf ("rm -rf '%s' && cp -r '%s' '%s'", to, from, to);

  g_assert_cmpint (system (command), ==, 0);
}

static void
expect_stale (Fixture *fx, uint64_t from)
{
  const EpochOpenReport *report
    = epoch_log_report (disk_epoch_log (fx->disk[0]));

  g_assert_false (report->clean);
  g_assert_false (report->same_image);
  g_assert_nonnull (strstr (report->reason, "state directory is older"));
  g_assert_cmpint (report->recovery, ==, EPOCHS_ALL_DIRTY);
  for (uint64_t at = 0; at < SIZE; at += 65536)
    g_assert_true (fixture_is_dirty (fx, 0, from, 0, at));
}

/* What happens to the state directory's image after it was copied. */
typedef enum { RESTARTED, CUT, STOPPED, NR_CASES } Case;

static void
stale (Case what, bool marks, bool lose_runtime)
{
  Fixture *fx = marks ? fixture_new (1, SIZE)
    : fixture_new_hooked (1, SIZE, no_marks, NULL);
  g_autofree char *copy = g_strdup_printf ("%s/copy", fx->dir);
  uint64_t from, at;

  fixture_start (fx);
  fixture_cut (fx, 0, NULL, &from);
  fixture_write (fx->disk[0], 0, 4096, 'a');
  if (what == RESTARTED)
    fixture_crash (fx);
  replace_dir (fx->state, copy);
  if (what == RESTARTED)
    fixture_start (fx);
  if (what == CUT)
    fixture_cut (fx, 0, NULL, &at);
  fixture_write (fx->disk[0], MIB, 4096, 'b');
  if (what == STOPPED)
    fixture_stop (fx);
  else
    fixture_crash (fx);
  if (lose_runtime)
    fixture_lose_runtime (fx);
  replace_dir (copy, fx->state);
  fixture_start (fx);
  expect_stale (fx, from);
  /* Said once; from then on the directory is the one in use. */
  fixture_cut (fx, 0, NULL, &at);
  fixture_crash (fx);
  fixture_start (fx);
  g_assert_false (fixture_is_dirty (fx, 0, at, 0, MIB));
  fixture_free (fx);
}

/* Can the files of this test have a mark? */
static bool
files_have_marks (void)
{
  Fixture *fx = fixture_new (1, SIZE);
  StorageFile *file;
  int err;

  g_assert_cmpint (storage_posix.ops->open (&storage_posix, fx->image[0], 0, 0,
                                            &file), ==, 0);
  err = file->ops->set_mark (file, "x");
  file->ops->close (file);
  fixture_free (fx);
  return err == 0;
}

static void
test_marked (void)
{
  bool marks = files_have_marks ();

  for (Case what = 0; what < NR_CASES; what++) {
    stale (what, true, false);
    if (marks)
      stale (what, true, true);
  }
}

static void
test_no_marks (void)
{
  for (Case what = 0; what < NR_CASES; what++)
    stale (what, false, false);
}

/* A time of modification of 0 is one like any other: it passed for
 * "unknown". */
static void
test_time_zero (void)
{
  const struct timespec zero[2] = { { 0 } };
  Fixture *fx = fixture_new (1, SIZE);
  const EpochOpenReport *report;

  fixture_start (fx);
  fixture_write (fx->disk[0], 0, 4096, 'a');
  for (int i = 0; i < 2; i++) {
    fixture_stop (fx);
    g_assert_cmpint (utimensat (AT_FDCWD, fx->image[0], zero, 0), ==, 0);
    fixture_start (fx);
    report = epoch_log_report (disk_epoch_log (fx->disk[0]));
    /* The second time it has not changed. */
    g_assert_cmpint (report->clean, ==, i == 1);
  }
  fixture_free (fx);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/fleece/stale-state/marked", test_marked);
  g_test_add_func ("/fleece/stale-state/no-marks", test_no_marks);
  g_test_add_func ("/fleece/stale-state/time-zero", test_time_zero);
  return g_test_run ();
}
