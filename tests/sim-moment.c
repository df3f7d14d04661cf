/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* sim-moment.c - all that a history has left at a crash, kept aside, so that
 * many crashes can be tried from it. */
#include <config.h>

#include <string.h>
#include <glib/gstdio.h>

#include "tests/sim-disk-internal.h"
#include "tests/sim-history.h"

typedef struct {
  char *path;                   /* inside the runtime folder */
  char *bytes;
  size_t length;
} Map;

struct SimMoment {
  GByteArray *slots;            /* SimSlot, up to nr_slots */
  GByteArray *pages;            /* for each page of a slot: memory, medium */
  GArray *maps;                 /* of Map */
  Oracle *oracle;
};

static bool
is_written (const SimSlot *slot, uint64_t page)
{
  return slot->written[page / 64] >> page % 64 & 1;
}

static void
free_map (gpointer data)
{
  Map *map = data;

  g_free (map->path);
  g_free (map->bytes);
}

/* Folders are one deep, a catalog's each. */
static void
keep_maps (GArray *maps)
{
  g_autoptr (GDir) top = g_dir_open (sim.runtime_folder, 0, NULL);
  const char *uuid, *name;

  while (top != NULL && (uuid = g_dir_read_name (top)) != NULL) {
    g_autofree char *path = g_build_filename (sim.runtime_folder, uuid, NULL);
    g_autoptr (GDir) folder = g_dir_open (path, 0, NULL);

    while (folder != NULL && (name = g_dir_read_name (folder)) != NULL) {
      g_autofree char *file = g_build_filename (path, name, NULL);
      g_autoptr (GError) error = NULL;
      Map map = { .path = g_build_filename (uuid, name, NULL) };

      g_file_get_contents (file, &map.bytes, &map.length, &error);
      g_assert_no_error (error);
      g_array_append_val (maps, map);
    }
  }
}

SimMoment *
sim_moment_keep (void)
{
  SimMoment *m = g_new0 (SimMoment, 1);

  m->slots = g_byte_array_new ();
  m->pages = g_byte_array_new ();
  m->maps = g_array_new (FALSE, FALSE, sizeof (Map));
  g_array_set_clear_func (m->maps, free_map);
  m->oracle = g_memdup2 (oracle, sizeof *oracle);
  g_byte_array_append (m->slots, (const guint8 *) sim_shared->slot,
                       sim_shared->nr_slots * sizeof (SimSlot));
  for (unsigned i = 0; i < sim_shared->nr_slots; i++) {
    const SimSlot *slot = &sim_shared->slot[i];

    for (uint64_t p = 0; p < SIM_MAX_PAGES; p++)
      if (is_written (slot, p)) {
        g_byte_array_append (m->pages, sim_bytes_of (sim_now_bytes, slot) +
                             p * SIM_PAGE, SIM_PAGE);
        g_byte_array_append (m->pages, sim_bytes_of (sim_medium_bytes, slot) +
                             p * SIM_PAGE, SIM_PAGE);
      }
  }
  keep_maps (m->maps);
  return m;
}

static void
put_maps_back (const GArray *maps)
{
  sim_empty_folder (sim.runtime_folder);
  for (guint i = 0; i < maps->len; i++) {
    const Map *map = &g_array_index (maps, Map, i);
    g_autofree char *path = g_build_filename (sim.runtime_folder, map->path,
                                              NULL);
    g_autofree char *folder = g_path_get_dirname (path);
    g_autoptr (GError) error = NULL;

    g_mkdir (folder, 0700);
    g_file_set_contents_full (path, map->bytes, (gssize) map->length,
                              G_FILE_SET_CONTENTS_NONE, 0600, &error);
    g_assert_no_error (error);
  }
}

void
sim_moment_put_back (const SimMoment *m)
{
  const guint8 *page = m->pages->data;

  sim_disk_clear ();
  *oracle = *m->oracle;
  memcpy (sim_shared->slot, m->slots->data, m->slots->len);
  for (unsigned i = 0; i < m->slots->len / sizeof (SimSlot); i++) {
    const SimSlot *slot = &sim_shared->slot[i];

    for (uint64_t p = 0; p < SIM_MAX_PAGES; p++)
      if (is_written (slot, p)) {
        memcpy (sim_bytes_of (sim_now_bytes, slot) + p * SIM_PAGE, page,
                SIM_PAGE);
        memcpy (sim_bytes_of (sim_medium_bytes, slot) + p * SIM_PAGE,
                page + SIM_PAGE, SIM_PAGE);
        page += 2 * SIM_PAGE;
      }
  }
  put_maps_back (m->maps);
}

void
sim_moment_free (SimMoment *m)
{
  g_byte_array_unref (m->slots);
  g_byte_array_unref (m->pages);
  g_array_unref (m->maps);
  g_free (m->oracle);
  g_free (m);
}
