/* SPDX-License-Identifier: BSD-3-Clause */
/* key-file-twice.h - what GKeyFile takes silently: a group or key given twice.
 *
 * It joins groups of one name and takes the last of two keys; somebody who has
 * two [disk vda] has made a mistake that he wants to hear of.
 */
#ifndef KEY_FILE_TWICE_H
#define KEY_FILE_TWICE_H

#include <stdbool.h>
#include <string.h>
#include <glib.h>

/* What is given twice, and on which line; NULL: nothing.  Caller frees. */
static inline char *
key_file_twice (const char *data, size_t *out_line)
{
  g_auto (GStrv) lines = g_strsplit (data, "\n", -1);
  g_autoptr (GHashTable) seen =
    g_hash_table_new_full (g_str_hash, g_str_equal, g_free, NULL);
  g_autofree char *group = g_strdup ("");

  for (size_t i = 0; lines[i] != NULL; i++) {
    char *line = g_strstrip (lines[i]);
    char *equals = strchr (line, '=');
    bool is_group = line[0] == '[';
    char *what;

    if (line[0] == '#' || (!is_group && equals == NULL))
      continue;
    if (is_group) {
      g_free (group);
      group = g_strdup (line);
      what = g_strdup (line);
    }
    else {
      *equals = '\0';
      what = g_strdup_printf ("%s, key '%s'", group, g_strchomp (line));
    }
    if (g_hash_table_contains (seen, what)) {
      *out_line = i + 1;
      return what;
    }
    g_hash_table_add (seen, what);
  }
  return NULL;
}

#endif /* KEY_FILE_TWICE_H */
