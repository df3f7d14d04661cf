/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "tests/overlay-fixture.h"

bool
overlay_fixture_try_put_on (Fixture *fx, unsigned i, const char *name,
                            const char *path, bool keep, GError **error)
{
  FleeceCutDisk cd = { .disk = fx->disk[i], .overlay = name,
                       .overlay_file = path, .overlay_keep = keep };

  return fleece_cut (fx->f, &cd, 1, NULL, NULL, error);
}

void
overlay_fixture_put_on (Fixture *fx, unsigned i, const char *name)
{
  g_autoptr (GError) error = NULL;

  overlay_fixture_try_put_on (fx, i, name, NULL, false, &error);
  g_assert_no_error (error);
}

void
overlay_fixture_check_chain (Fixture *fx, unsigned i, const char *want)
{
  g_autoptr (GPtrArray) chain = disk_chain (fx->disk[i]);
  g_autoptr (GString) text = g_string_new (NULL);

  for (unsigned j = 0; j < chain->len; j++) {
    const OverlayInfo *info = chain->pdata[j];

    if (info->name == NULL)
      g_string_append (text, "image");
    else
      g_string_append_printf (text, "%s %" G_GUINT64_FORMAT ", ", info->name,
                              info->present_bytes);
  }
  g_assert_cmpstr (text->str, ==, want);
}

char *
overlay_fixture_path (Fixture *fx, unsigned i, const char *name)
{
  g_autoptr (GPtrArray) chain = disk_chain (fx->disk[i]);

  for (unsigned j = 0; j < chain->len; j++) {
    const OverlayInfo *info = chain->pdata[j];

    if (g_strcmp0 (info->name, name) == 0)
      return g_strdup (info->path);
  }
  g_assert_not_reached ();
}

void
overlay_fixture_check_file (const char *path, uint64_t offset,
                            uint64_t length, int value)
{
  g_autofree char *buf = g_malloc (length);
  int fd = open (path, O_RDONLY | O_CLOEXEC);

  g_assert_cmpint (fd, >=, 0);
  g_assert_cmpint (pread (fd, buf, length, offset), ==, length);
  close (fd);
  for (uint64_t i = 0; i < length; i++)
    if (buf[i] != value)
      g_error ("byte %" G_GUINT64_FORMAT " of '%s' is %d, not %d", offset + i,
               path, buf[i], value);
}

void
overlay_fixture_finish (OverlayMove *move)
{
  g_autoptr (GError) error = NULL;
  uint64_t copied;
  bool write;
  int r;

  do
    r = overlay_move_step (move, 128 * 1024, &copied, &write);
  while (r == 1);
  g_assert_cmpint (r, ==, 0);
  overlay_move_finish (move, &error);
  g_assert_no_error (error);
  overlay_move_free (move);
}

void
overlay_fixture_commit (Fixture *fx, unsigned i, const char *top,
                        const char *base)
{
  g_autoptr (GError) error = NULL;
  OverlayMove *move = overlay_commit (fx->disk[i], top, base, &error);

  g_assert_no_error (error);
  overlay_fixture_finish (move);
}
