/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* write-path - what tracking adds to a write, in nanoseconds.
 *
 * usage: write-path STATE RUNTIME [GIB]
 *
 * Random writes of 4 KiB, one thread, to a disk of GIB (200), all of it warm;
 * the write itself does nothing, so what is left is A1 to A4.  STATE, RUNTIME:
 * empty folders, RUNTIME in a tmpfs.  The best of many short slices: a busy
 * machine then says the same as an idle one.
 */
#include <config.h>

#include <stdio.h>
#include <stdlib.h>
#include <glib.h>
#include <time.h>

#include "bitmap/catalog.h"
#include "bitmap/epoch-log.h"
#include "fleece/disk.h"
#include "fleece/fleece.h"

#define BLOCK  4096u
#define SLICE  4096u            /* writes */
#define SLICES 2000u

static struct storage_file_ops image_ops;

static int
write_nothing (StorageFile *file, const void *buf, size_t length,
               uint64_t offset, bool dsync)
{
  return 0;
}

static int
open_file (Storage *storage, const char *path, unsigned flags, uint64_t size,
           StorageFile **out_file)
{
  int err = storage_posix.ops->open (&storage_posix, path, flags, size,
                                     out_file);

  if (err == 0 && g_str_has_suffix (path, "/image")) {
    image_ops = *(*out_file)->ops;
    image_ops.pwrite = write_nothing;
    (*out_file)->ops = &image_ops;
  }
  return err;
}

static void
check (GError *error)
{
  if (error != NULL)
    g_error ("%s", error->message);
}

static int64_t
now_ns (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (int64_t) ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static double
best_ns (Disk *disk, const uint64_t *offsets, const char *buf)
{
  int64_t best = INT64_MAX;

  for (unsigned s = 0; s < SLICES; s++) {
    int64_t start = now_ns ();

    for (unsigned i = 0; i < SLICE; i++)
      if (disk_pwrite (disk, buf, BLOCK, offsets[i], false) < 0)
        g_error ("a write failed");
    best = MIN (best, now_ns () - start);
  }
  return (double) best / SLICE;
}

int
main (int argc, char *argv[])
{
  static char buf[BLOCK];
  struct storage_ops ops = *storage_posix.ops;
  Storage storage = { .ops = &ops };
  g_autofree uint64_t *offsets = g_new (uint64_t, SLICE);
  g_autoptr (GRand) rand = g_rand_new_with_seed (1);
  FleeceOptions options = { .storage = &storage, .drain_timeout_ms = 60000 };
  g_autofree char *image = NULL;
  uint64_t size = (argc > 3 ? strtoull (argv[3], NULL, 10) : 200) << 30;
  GError *error = NULL;
  StorageFile *file;
  double fresh;
  Catalog *cat;
  Fleece *f;
  Disk *disk;

  if (argc < 3 || size == 0)
    g_error ("usage: %s STATE RUNTIME [GIB]", argv[0]);
  ops.open = open_file;
  image = g_build_filename (argv[2], "image", NULL);
  if (storage_posix.ops->open (&storage_posix, image, STORAGE_CREATE, size,
                               &file) < 0)
    g_error ("cannot create '%s'", image);
  file->ops->close (file);
  options.scratch_dir = argv[1];
  options.runtime_dir = argv[2];
  f = fleece_new (&options, &error);
  check (error);
  disk = fleece_add_disk (f, "vda", image, 65536, &error);
  check (error);
  cat = catalog_new (argv[1], &error);
  check (error);
  catalog_open (cat, &error);
  check (error);
  fleece_start (f, cat, &error);
  check (error);

  for (unsigned i = 0; i < SLICE; i++)
    offsets[i] = (uint64_t) (g_rand_double (rand) * (double) (size / BLOCK))
      * BLOCK;
  /* Longer than anybody's, but nothing is written. */
  for (uint64_t at = 0; at < size; at += 1 << 30)
    if (disk_pwrite (disk, buf, 1 << 30, at, false) < 0)
      g_error ("a write failed");
  fresh = best_ns (disk, offsets, buf);
  /* From here on the durable map has it all. */
  if (epoch_log_sync_maps (disk_epoch_log (disk)) < 0)
    g_error ("cannot sync the map");
  printf ("%.0f ns a write to a region with an intent, %.0f ns where the map "
          "on disk has the bit\n", fresh, best_ns (disk, offsets, buf));

  fleece_stop (f, &error);
  check (error);
  fleece_free (f);
  catalog_free (cat);
  return 0;
}
