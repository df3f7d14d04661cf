/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <fcntl.h>
#include <glib/gstdio.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/fleece-fixture.h"

Fixture *
fixture_new (unsigned nr_disks, uint64_t size)
{
  Fixture *fx = g_new0 (Fixture, 1);
  g_autoptr (GError) error = NULL;

  g_assert_cmpint (nr_disks, <=, FIXTURE_MAX_DISKS);
  fx->dir = g_dir_make_tmp ("fleece-XXXXXX", &error);
  g_assert_no_error (error);
  fx->state = g_strdup_printf ("%s/state", fx->dir);
  fx->scratch = g_strdup_printf ("%s/scratch", fx->dir);
  fx->nr_disks = nr_disks;
  fx->granularity = 65536;
  fx->notes = g_string_new (NULL);
  pthread_mutex_init (&fx->notes_lock, NULL);
  for (unsigned i = 0; i < nr_disks; i++) {
    int fd;

    fx->image[i] = g_strdup_printf ("%s/d%u.img", fx->dir, i);
    fd = open (fx->image[i], O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    g_assert_cmpint (fd, >=, 0);
    g_assert_cmpint (ftruncate (fd, size), ==, 0);
    close (fd);
  }
  return fx;
}

static void
note (void *opaque, FleeceNoteKind kind, const char *disk,
      const char *snapshot, const char *text, int error_number)
{
  static const char *const kinds[] = { "info", "warning", "broken" };
  Fixture *fx = opaque;

  pthread_mutex_lock (&fx->notes_lock);
  g_string_append_printf (fx->notes, "%s %s %s: %s\n", kinds[kind],
                          disk != NULL ? disk : "-",
                          snapshot != NULL ? snapshot : "-", text);
  pthread_mutex_unlock (&fx->notes_lock);
}

void
fixture_start (Fixture *fx)
{
  g_autoptr (GError) error = NULL;
  FleeceOptions options = {
    .storage = fx->storage, .scratch_dir = fx->scratch,
    .drain_timeout_ms = fx->drain_timeout_ms,
    .notify = note, .notify_opaque = fx,
  };

  fx->f = fleece_new (&options, &error);
  g_assert_no_error (error);
  for (unsigned i = 0; i < fx->nr_disks; i++) {
    char name[] = { 'd', '0' + i, '\0' };

    fx->disk[i] = fleece_add_disk (fx->f, name, fx->image[i],
                                   fx->granularity, &error);
    g_assert_no_error (error);
  }
  fx->cat = catalog_new (fx->state, &error);
  g_assert_no_error (error);
  catalog_open (fx->cat, &error);
  g_assert_no_error (error);
  fleece_start (fx->f, fx->cat, &error);
  g_assert_no_error (error);
}

void
fixture_stop (Fixture *fx)
{
  g_autoptr (GError) error = NULL;

  fleece_stop (fx->f, &error);
  g_assert_no_error (error);
  fixture_crash (fx);
}

void
fixture_crash (Fixture *fx)
{
  fleece_free (fx->f);
  catalog_free (fx->cat);
  fx->f = NULL;
  fx->cat = NULL;
}

static void
remove_tree (const char *path)
{
  g_autoptr (GDir) dir = g_dir_open (path, 0, NULL);
  const char *name;

  while (dir != NULL && (name = g_dir_read_name (dir)) != NULL) {
    g_autofree char *child = g_build_filename (path, name, NULL);

    if (g_file_test (child, G_FILE_TEST_IS_DIR))
      remove_tree (child);
    else
      g_unlink (child);
  }
  g_rmdir (path);
}

void
fixture_free (Fixture *fx)
{
  if (fx->f != NULL)
    fixture_stop (fx);
  remove_tree (fx->dir);
  for (unsigned i = 0; i < fx->nr_disks; i++)
    g_free (fx->image[i]);
  g_free (fx->dir);
  g_free (fx->state);
  g_free (fx->scratch);
  g_string_free (fx->notes, TRUE);
  pthread_mutex_destroy (&fx->notes_lock);
  g_free (fx);
}

Snapshot *
fixture_cut (Fixture *fx, unsigned i, const char *name,
             uint64_t *out_boundary)
{
  g_autoptr (GError) error = NULL;
  FleeceCutDisk cd = { .disk = fx->disk[i], .snapshot = name };

  fleece_cut (fx->f, &cd, 1, NULL, NULL, &error);
  g_assert_no_error (error);
  if (out_boundary != NULL)
    *out_boundary = cd.boundary;
  return cd.out_snapshot;
}

unsigned
fixture_nr_scratch_files (Fixture *fx)
{
  g_autoptr (GDir) dir = g_dir_open (fx->scratch, 0, NULL);
  unsigned nr = 0;

  while (dir != NULL && g_dir_read_name (dir) != NULL)
    nr++;
  return nr;
}

char *
fixture_read_snapshot (Snapshot *snap)
{
  char *buf = g_malloc (snapshot_size (snap));

  g_assert_cmpint (snapshot_pread (snap, buf, snapshot_size (snap), 0), ==, 0);
  return buf;
}
