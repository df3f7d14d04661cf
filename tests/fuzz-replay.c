/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-replay.c - run a fuzz target over files and folders of them, where there
 * is no libFuzzer.  Says which file it is at before it dies of it. */
#include <config.h>

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <glib.h>

int LLVMFuzzerInitialize (int *argc, char ***argv);
int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

static unsigned nr;

static void
replay (const char *path)
{
  g_autoptr (GDir) dir = g_dir_open (path, 0, NULL);
  g_autofree char *data = NULL;
  const char *name;
  gsize size;

  if (dir != NULL) {
    while ((name = g_dir_read_name (dir)) != NULL) {
      g_autofree char *child = g_build_filename (path, name, NULL);

      replay (child);
    }
    return;
  }
  if (!g_file_get_contents (path, &data, &size, NULL)) {
    fprintf (stderr, "cannot read '%s'\n", path);
    exit (EXIT_FAILURE);
  }
  printf ("%s\n", path);
  fflush (stdout);
  LLVMFuzzerTestOneInput ((const uint8_t *) data, size);
  nr++;
}

int
main (int argc, char **argv)
{
  LLVMFuzzerInitialize (&argc, &argv);
  for (int i = 1; i < argc; i++)
    replay (argv[i]);
  printf ("%u inputs\n", nr);
  return nr > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
