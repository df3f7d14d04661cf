/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <stdio.h>
#include <string.h>

#include "tools/ctl-args.h"

struct Args {
  GHashTable *options;          /* name -> GPtrArray of values (flags: NULL) */
  GPtrArray *words;
  GPtrArray *none;              /* what an absent option has */
};

static const struct arg_spec *
find (const struct arg_spec *specs, const char *name, size_t length)
{
  for (; specs->name != NULL; specs++)
    if (strlen (specs->name) == length &&
        strncmp (specs->name, name, length) == 0)
      return specs;
  return NULL;
}

/* Takes one option, and its value if that is the next word; returns how many
 * of argv were used, 0 with *out_problem.
 */
static int
take_option (Args *args, char **argv, const struct arg_spec *specs,
             const struct arg_spec *common, char **out_problem)
{
  const char *name = argv[0] + 2, *value = strchr (name, '=');
  size_t length = value != NULL ? (size_t) (value - name) : strlen (name);
  const struct arg_spec *spec = find (specs, name, length);
  GPtrArray *values;
  int used = 1;

  if (spec == NULL)
    spec = find (common, name, length);
  if (spec == NULL) {
    *out_problem = g_strdup_printf ("unknown option '--%.*s'", (int) length,
                                    name);
    return 0;
  }
  if (spec->value == NULL && value != NULL) {
    *out_problem = g_strdup_printf ("--%s takes no value", spec->name);
    return 0;
  }
  if (spec->value != NULL && value == NULL) {
    if (argv[1] == NULL) {
      *out_problem = g_strdup_printf ("--%s needs %s", spec->name,
                                      spec->value);
      return 0;
    }
    value = argv[1];
    used = 2;
  }
  else if (value != NULL)
    value++;
  values = g_hash_table_lookup (args->options, spec->name);
  if (values != NULL && spec->value != NULL && !spec->repeats) {
    *out_problem = g_strdup_printf ("--%s may be given only once", spec->name);
    return 0;
  }
  if (values == NULL) {
    values = g_ptr_array_new ();
    g_hash_table_insert (args->options, (gpointer) spec->name, values);
  }
  g_ptr_array_add (values, (gpointer) value);
  return used;
}

Args *
args_parse (char **argv, const struct arg_spec *specs,
            const struct arg_spec *common, char **out_problem)
{
  g_autoptr (Args) args = g_new0 (Args, 1);
  bool options = true;

  args->options =
    g_hash_table_new_full (g_str_hash, g_str_equal, NULL,
                           (GDestroyNotify) g_ptr_array_unref);
  args->words = g_ptr_array_new ();
  args->none = g_ptr_array_new ();
  while (*argv != NULL) {
    int used = 1;

    if (options && strcmp (*argv, "--") == 0)
      options = false;
    else if (options && strncmp (*argv, "--", 2) == 0) {
      used = take_option (args, argv, specs, common, out_problem);
      if (used == 0)
        return NULL;
    }
    else if (options && (*argv)[0] == '-' && (*argv)[1] != '\0') {
      *out_problem = g_strdup_printf ("unknown option '%s'", *argv);
      return NULL;
    }
    else
      g_ptr_array_add (args->words, *argv);
    argv += used;
  }
  return g_steal_pointer (&args);
}

void
args_free (Args *args)
{
  if (args == NULL)
    return;
  g_hash_table_unref (args->options);
  g_ptr_array_unref (args->words);
  g_ptr_array_unref (args->none);
  g_free (args);
}

bool
args_flag (const Args *args, const char *name)
{
  return g_hash_table_contains (args->options, name);
}

const GPtrArray *
args_values (const Args *args, const char *name)
{
  const GPtrArray *values = g_hash_table_lookup (args->options, name);

  return values != NULL ? values : args->none;
}

const char *
args_value (const Args *args, const char *name)
{
  const GPtrArray *values = args_values (args, name);

  return values->len > 0 ? values->pdata[0] : NULL;
}

const GPtrArray *
args_words (const Args *args)
{
  return args->words;
}

void
args_help (const struct arg_spec *specs)
{
  for (; specs->name != NULL; specs++) {
    g_autofree char *left =
      g_strdup_printf ("--%s%s%s", specs->name,
                       specs->value != NULL ? " " : "",
                       specs->value != NULL ? specs->value : "");

    printf ("  %-22s %s%s\n", left, specs->help,
            specs->repeats ? " (may be repeated)" : "");
  }
}
