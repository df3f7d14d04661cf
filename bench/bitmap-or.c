/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* bitmap-or - what it costs to answer "changed since" over many epochs.
 *
 * usage: bitmap-or [EPOCHS [PERCENT]]
 *
 * A 1 TiB disk at 64 KiB with EPOCHS (365) sealed epochs, each with PERCENT (1)
 * of its granules dirty at random, in a catalog on $TMPDIR.  Prints the time of
 * the union from the catalog, of opening, of making a change set from flat bits
 * and of walking all runs of the worst case (every second granule dirty).
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <glib.h>
#include <glib/gstdio.h>

#include "bitmap/epoch.h"

#define DISK_SIZE (UINT64_C (1) << 40)
#define GRAN      UINT64_C (65536)

static void
check (GError *error)
{
  if (error != NULL)
    g_error ("%s", error->message);
}

static double
ms_since (gint64 start_us)
{
  return (double) (g_get_monotonic_time () - start_us) / 1000.0;
}

static void
fill (EpochLog *log, unsigned nr_epochs, double percent)
{
  g_autoptr (GRand) rand = g_rand_new_with_seed (1);
  uint64_t nr = DISK_SIZE / GRAN;
  GError *error = NULL;

  for (unsigned e = 0; e < nr_epochs; e++) {
    DirtyBitmap *bm = epoch_log_current (log)->bitmap;
    Epoch *next;

    for (uint64_t n = 0; n < (uint64_t) ((double) nr * percent / 100); n++)
      dirty_bitmap_set (bm, g_rand_int_range (rand, 0, (gint32) nr) * GRAN, 1);
    next = epoch_log_prepare (log, DISK_SIZE, GRAN, &error);
    check (error);
    epoch_log_seal (log, next, &error);
    check (error);
    epoch_log_store (log, &error);
    check (error);
  }
}

static uint64_t
walk (const ChangeSet *cs)
{
  uint64_t offset = 0, nr_runs = 0;

  while (offset < DISK_SIZE) {
    bool dirty;

    offset += change_set_run (cs, offset, G_MAXUINT64, &dirty);
    nr_runs++;
  }
  return nr_runs;
}

static void
bench_flat (void)
{
  GError *error = NULL;
  g_autoptr (DirtyBitmap) bm = dirty_bitmap_new (DISK_SIZE, GRAN, &error);
  g_autoptr (ChangeSet) cs = NULL;
  uint64_t nr_runs;
  gint64 start;

  check (error);
  for (uint64_t g = 0; g < DISK_SIZE / GRAN; g += 2)
    dirty_bitmap_set (bm, g * GRAN, 1);
  start = g_get_monotonic_time ();
  cs = dirty_bitmap_to_change_set (bm, &error);
  check (error);
  printf ("flat to change set, every second granule: %.1f ms\n",
          ms_since (start));
  start = g_get_monotonic_time ();
  nr_runs = walk (cs);
  printf ("walk of its %" G_GUINT64_FORMAT " runs: %.1f ms\n", nr_runs,
          ms_since (start));
}

int
main (int argc, char **argv)
{
  unsigned nr_epochs = argc > 1 ? (unsigned) atoi (argv[1]) : 365;
  double percent = argc > 2 ? atof (argv[2]) : 1.0;
  DiskIdentity identity = { .size = DISK_SIZE };
  g_autofree char *dir = g_dir_make_tmp ("nbdfleece-bench-XXXXXX", NULL);
  static const char *const files[] = { "catalog.sqlite", "lock" };
  GError *error = NULL;
  Catalog *cat;
  EpochLog *log;
  uint64_t first;
  gint64 start;

  bench_flat ();

  cat = catalog_new (dir, &error);
  check (error);
  catalog_open (cat, &error);
  check (error);
  log = epoch_log_open (cat, "vda", GRAN, &identity, &error);
  check (error);
  first = epoch_log_current (log)->id;
  fill (log, nr_epochs, percent);
  epoch_log_close (log, &identity, &error);
  check (error);
  epoch_log_free (log);
  catalog_free (cat);

  start = g_get_monotonic_time ();
  cat = catalog_new (dir, &error);
  check (error);
  catalog_open (cat, &error);
  check (error);
  log = epoch_log_open (cat, "vda", GRAN, &identity, &error);
  check (error);
  printf ("open: %.1f ms\n", ms_since (start));
  for (int i = 0; i < 5; i++) {
    g_autoptr (ChangeSet) cs = NULL;

    start = g_get_monotonic_time ();
    cs = epoch_log_changed (log, first, 0, NULL, &error);
    check (error);
    printf ("union of %u epochs of %g %%: %.1f ms, %.1f %% dirty\n", nr_epochs,
            percent, ms_since (start),
            100.0 * (double) change_set_count (cs) /
            (double) (DISK_SIZE / GRAN));
  }
  epoch_log_free (log);
  catalog_free (cat);
  for (size_t i = 0; i < G_N_ELEMENTS (files); i++) {
    g_autofree char *path = g_build_filename (dir, files[i], NULL);

    g_unlink (path);
  }
  g_rmdir (dir);
  return 0;
}
