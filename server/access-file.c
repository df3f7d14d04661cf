/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <pthread.h>
#include <string.h>

#include "access-file.h"
#include "common/key-file-twice.h"
#include "read-file.h"

#define GROUP "allow "

/* More than this is no list of people, but another file. */
#define MAX_FILE (1 << 20)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Under lock. */
static char *loaded;            /* absolute */
static GPtrArray *current;      /* NULL: no file was ever loaded */

static bool
set_key (AccessRule *rule, GKeyFile *file, const char *group, const char *key,
         GError **error)
{
  g_auto (GStrv) values = NULL;
  g_autoptr (GError) local = NULL;
  bool on;

  if (strcmp (key, "readonly") == 0) {
    on = g_key_file_get_boolean (file, group, key, &local);
    if (local != NULL) {
      g_propagate_error (error, g_steal_pointer (&local));
      return false;
    }
    if (on)
      access_rule_set_readonly (rule);
    return true;
  }
  values = g_key_file_get_string_list (file, group, key, NULL, error);
  if (values == NULL)
    return false;
  /* A condition without a value would be none: it would let everybody in. */
  if (values[0] == NULL) {
    g_set_error (error, ACCESS_ERROR, 0, "has no value");
    return false;
  }
  for (size_t i = 0; values[i] != NULL; i++)
    if (!access_rule_add (rule, key, g_strstrip (values[i]), error))
      return false;
  return true;
}

static AccessRule *
read_rule (GKeyFile *file, const char *group, GError **error)
{
  g_autoptr (AccessRule) rule = access_rule_new (group + strlen (GROUP));
  g_auto (GStrv) keys = g_key_file_get_keys (file, group, NULL, error);

  if (keys == NULL)
    return NULL;
  for (size_t i = 0; keys[i] != NULL; i++)
    if (!set_key (rule, file, group, keys[i], error)) {
      g_prefix_error (error, "[%s], key '%s': ", group, keys[i]);
      return NULL;
    }
  return g_steal_pointer (&rule);
}

static bool
refuse_twice (const char *data, GError **error)
{
  size_t line;
  g_autofree char *what = key_file_twice (data, &line);

  if (what != NULL)
    g_set_error (error, ACCESS_ERROR, 0, "line %zu: %s is given twice", line,
                 what);
  return what == NULL;
}

static GPtrArray *
parse (const char *data, size_t length, GError **error)
{
  g_autoptr (GPtrArray) rules =
    g_ptr_array_new_with_free_func ((GDestroyNotify) access_rule_unref);
  g_autoptr (GKeyFile) file = g_key_file_new ();
  g_auto (GStrv) groups = NULL;

  if (strlen (data) != length) {
    g_set_error (error, ACCESS_ERROR, 0, "it has a zero byte");
    return NULL;
  }
  if (!g_key_file_load_from_data (file, data, length,
                                  G_KEY_FILE_KEEP_TRANSLATIONS,
                                  error) ||
      !refuse_twice (data, error))
    return NULL;
  groups = g_key_file_get_groups (file, NULL);
  for (size_t i = 0; groups[i] != NULL; i++) {
    AccessRule *rule;

    if (!g_str_has_prefix (groups[i], GROUP) ||
        groups[i][strspn (groups[i] + strlen (GROUP), " ") +
                  strlen (GROUP)] == '\0') {
      g_set_error (error, ACCESS_ERROR, 0, "[%s]: expected [" GROUP "NAME]",
                   groups[i]);
      return NULL;
    }
    rule = read_rule (file, groups[i], error);
    if (rule == NULL)
      return NULL;
    g_ptr_array_add (rules, rule);
  }
  return g_steal_pointer (&rules);
}

bool
access_file_load (const char *path, GError **error)
{
  g_autofree char *data = NULL, *absolute = NULL;
  g_autoptr (GPtrArray) rules = NULL, before = NULL;
  size_t length = 0;

  data = read_file (path, MAX_FILE, &length, error);
  if (data == NULL)
    return false;               /* names the file */
  rules = parse (data, length, error);
  if (rules == NULL) {
    g_prefix_error (error, "%s: ", path);
    return false;
  }
  /* A daemon changes its folder. */
  absolute = g_canonicalize_filename (path, NULL);
  pthread_mutex_lock (&lock);
  before = g_steal_pointer (&current);
  current = g_steal_pointer (&rules);
  g_free (loaded);
  loaded = g_steal_pointer (&absolute);
  pthread_mutex_unlock (&lock);
  return true;
}

bool
access_file_reload (GError **error)
{
  g_autofree char *path = NULL;

  pthread_mutex_lock (&lock);
  path = g_strdup (loaded);
  pthread_mutex_unlock (&lock);
  return path == NULL || access_file_load (path, error);
}

GPtrArray *
access_file_rules (void)
{
  GPtrArray *rules;

  pthread_mutex_lock (&lock);
  rules = current ? g_ptr_array_ref (current) : NULL;
  pthread_mutex_unlock (&lock);
  return rules;
}
