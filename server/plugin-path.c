/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "plugin-path.h"

#define DEFAULT_PLUGIN "fleece"

#define PLUGIN_PATH_ERROR (g_quark_from_static_string ("nbdfleece-plugin-path"))

static const char *const folders[] = { PLUGINDIR, NBDKIT_PLUGINDIR };

/* The folder of this very program; "" if it cannot be found out. */
static char *
program_folder (void)
{
  g_autofree char *exe = g_file_read_link ("/proc/self/exe", NULL);

  return exe ? g_path_get_dirname (exe) : g_strdup ("");
}

char *
plugin_path_default (void)
{
  g_autofree char *folder = program_folder ();
  char *path = g_build_filename (folder, "..", "plugin", ".libs",
                                 "nbdkit-fleece-plugin.so", NULL);

  if (access (path, F_OK) == 0)
    return path;
  g_free (path);
  return g_build_filename (PLUGINDIR, "nbdkit-fleece-plugin.so", NULL);
}

/* nbdkit-NAME-plugin with that ending in one of the folders; NULL: in none. */
static char *
find_in_folders (const char *name, const char *ending, int mode)
{
  g_autofree char *leaf = g_strdup_printf ("nbdkit-%s-plugin%s", name, ending);

  for (size_t i = 0; i < G_N_ELEMENTS (folders); i++) {
    char *path = g_build_filename (folders[i], leaf, NULL);

    if (access (path, mode) == 0)
      return path;
    g_free (path);
  }
  return NULL;
}

/* The name of the plugin that runs the script, from its first line; NULL: it
 * is for something else. */
static char *
language_of (const char *script)
{
  FILE *fp = fopen (script, "re");
  char line[256], program[256], language[64], *leaf;
  bool ok;

  if (fp == NULL)
    return NULL;
  ok = fgets (line, sizeof line, fp) != NULL &&
    sscanf (line, "#! %255s %63[a-zA-Z0-9]", program, language) == 2;
  fclose (fp);
  if (!ok)
    return NULL;
  leaf = strrchr (program, '/');
  leaf = leaf ? leaf + 1 : program;
  if (strcmp (leaf, "nbdkit") != 0 && strcmp (leaf, PACKAGE_NAME) != 0)
    return NULL;
  return g_strdup (language);
}

char *
plugin_path (const char *name, char **out_script, GError **error)
{
  g_autofree char *script = NULL, *language = NULL, *leaf = NULL;
  char *path;

  *out_script = NULL;
  if (name == NULL || strcmp (name, DEFAULT_PLUGIN) == 0)
    return plugin_path_default ();
  if (strchr (name, '/') || strchr (name, '.'))
    return strchr (name, '/') ? g_strdup (name)
                              : g_build_filename (".", name, NULL);
  path = find_in_folders (name, ".so", F_OK);
  if (path != NULL)
    return path;
  script = find_in_folders (name, "", X_OK);
  if (script != NULL) {
    language = language_of (script);
    path = language ? find_in_folders (language, ".so", F_OK) : NULL;
    if (path == NULL) {
      g_set_error (error, PLUGIN_PATH_ERROR, 0, "cannot open plugin: '%s' is "
                   "a script%s%s%s", script,
                   language ? ", and the plugin '" : " not for nbdkit",
                   language ? language : "",
                   language ? "' that it is for is not installed" : "");
      return NULL;
    }
    *out_script = g_steal_pointer (&script);
    return path;
  }
  /* For the message of whoever opens it. */
  leaf = g_strdup_printf ("nbdkit-%s-plugin.so", name);
  return g_build_filename (NBDKIT_PLUGINDIR, leaf, NULL);
}
