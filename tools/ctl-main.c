/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ctl-main.c - fleecectl: finds the verb, connects, runs it. */
#include <config.h>

#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/ctl.h"
#include "tools/human.h"

#define CONTROL_VARIABLE "NBDFLEECE_CONTROL"

static const struct verb *const all_verbs[] = {
  status_verbs, disk_verbs, checkpoint_verbs, backup_verbs, backup_run_verbs,
  restore_run_verbs, restore_verbs, push_verbs, bitmap_verbs, job_verbs,
  node_verbs, layer_verbs,
  transaction_verbs, map_verbs, export_verbs, server_verbs
};

static const struct arg_spec common[] = {
  { "control", "PATH", "the server's control socket" },
  { "json", NULL, "print the server's reply as JSON" },
  { "utc", NULL, "dates in UTC, not local time" },
  { "help", NULL, "this text; after a verb, that verb's options" },
  { "version", NULL, "print the version of fleecectl" },
  { NULL }
};

int
ctl_fail (const char *format, ...)
{
  va_list args;

  fputs ("fleecectl: ", stderr);
  va_start (args, format);
  vfprintf (stderr, format, args);
  va_end (args);
  fputc ('\n', stderr);
  return EXIT_FAILED;
}

int
ctl_usage (const struct ctl *ctl, const char *format, ...)
{
  va_list args;

  fputs ("fleecectl: ", stderr);
  va_start (args, format);
  vfprintf (stderr, format, args);
  va_end (args);
  fprintf (stderr, "\nTry 'fleecectl %s%s--help'.\n",
           ctl->verb != NULL ? ctl->verb->name : "",
           ctl->verb != NULL ? " " : "");
  return EXIT_USAGE;
}

const char *
ctl_word (const struct ctl *ctl, unsigned n)
{
  return args_words (ctl->args)->pdata[n];
}

json_t *
ctl_execute (struct ctl *ctl, const char *command, json_t *arguments)
{
  g_autoptr (GError) error = NULL;
  json_t *value = qmp_execute (ctl->qmp, command, arguments, &error);

  if (value == NULL)
    ctl_fail ("%s", error->message);
  return value;
}

bool
ctl_print_json (const struct ctl *ctl, const json_t *value)
{
  if (!ctl->json)
    return false;
  json_dumpf (value, stdout, JSON_INDENT (2) | JSON_ENCODE_ANY);
  putchar ('\n');
  return true;
}

int
ctl_simple (struct ctl *ctl, const char *command, json_t *arguments,
            const char *done)
{
  json_t *value = ctl_execute (ctl, command, arguments);

  if (value == NULL)
    return EXIT_FAILED;
  if (!ctl_print_json (ctl, value) && done != NULL)
    puts (done);
  json_decref (value);
  return EXIT_OK;
}

void
ctl_put_string (const struct ctl *ctl, json_t *arguments, const char *key,
                const char *option)
{
  const char *value = args_value (ctl->args, option);

  if (value != NULL)
    json_object_set_new (arguments, key, json_string (value));
}

void
ctl_put_flag (const struct ctl *ctl, json_t *arguments, const char *key,
              const char *option)
{
  if (args_flag (ctl->args, option))
    json_object_set_new (arguments, key, json_true ());
}

bool
ctl_put_size (const struct ctl *ctl, json_t *object, const char *key,
              const char *option)
{
  const char *value = args_value (ctl->args, option);
  uint64_t bytes;

  if (value == NULL)
    return true;
  if (!human_parse_size (value, &bytes)) {
    ctl_usage (ctl, "--%s needs a size such as 512M or 10G, not '%s'", option,
               value);
    return false;
  }
  json_object_set_new (object, key, json_integer (bytes));
  return true;
}

const char *
ctl_get (const json_t *object, const char *key)
{
  return json_string_value (json_object_get (object, key));
}

char *
ctl_get_size (const json_t *object, const char *key)
{
  const json_t *value = json_object_get (object, key);

  return json_is_integer (value) && json_integer_value (value) >= 0
           ? human_size (json_integer_value (value)) : NULL;
}

char *
ctl_get_time (const struct ctl *ctl, const json_t *object, const char *key)
{
  const json_t *value = json_object_get (object, key);

  return json_is_integer (value)
           ? human_time (json_integer_value (value), ctl->utc) : NULL;
}

/* "[--disk DISK]... [--size]" of a verb, indented, in lines that fit. */
static void
help_synopsis (const struct verb *v)
{
  size_t column = 0;

  for (const struct arg_spec *spec = v->specs; spec->name != NULL; spec++) {
    g_autofree char *text =
      g_strdup_printf ("[--%s%s%s]%s", spec->name,
                       spec->value != NULL ? " " : "",
                       spec->value != NULL ? spec->value : "",
                       spec->repeats ? "..." : "");

    if (column > 0 && column + 1 + strlen (text) > 78) {
      putchar ('\n');
      column = 0;
    }
    column += printf ("%s%s", column == 0 ? "      " : " ", text);
  }
  if (column > 0)
    putchar ('\n');
}

static void
help_all (void)
{
  puts ("Usage: fleecectl [OPTION]... VERB [ARGUMENT]...\n"
        "Look after the disks, checkpoints and backups of nbdfleece.\n");
  for (size_t i = 0; i < G_N_ELEMENTS (all_verbs); i++)
    for (const struct verb *v = all_verbs[i]; v->name != NULL; v++) {
      g_autofree char *left = g_strdup_printf ("%s %s", v->name, v->words);
      printf ("  %-26s %s\n", left, v->summary);
      help_synopsis (v);
    }
  puts ("\nOptions of every verb:");
  args_help (common);
  puts ("\nThe control socket is --control or $" CONTROL_VARIABLE ".\n"
        "Exit status: 0 done, 1 refused or failed, 2 wrong usage.");
}

static void
help_verb (const struct verb *v)
{
  printf ("Usage: fleecectl %s%s%s [OPTION]...\n%s\n", v->name,
          *v->words != '\0' ? " " : "", v->words, v->summary);
  if (v->specs[0].name != NULL) {
    puts ("\nOptions:");
    args_help (v->specs);
  }
  puts ("\nOptions of every verb:");
  args_help (common);
}

/* The verb whose words argv begins with; *out_used is how many those are. */
static const struct verb *
find_verb (char **argv, int *out_used)
{
  for (size_t i = 0; i < G_N_ELEMENTS (all_verbs); i++)
    for (const struct verb *v = all_verbs[i]; v->name != NULL; v++) {
      g_auto (GStrv) words = g_strsplit (v->name, " ", -1);
      int n = 0;

      while (words[n] != NULL && argv[n] != NULL &&
             strcmp (words[n], argv[n]) == 0)
        n++;
      if (words[n] == NULL) {
        *out_used = n;
        return v;
      }
    }
  return NULL;
}

static int
unknown_verb (const struct ctl *ctl, char **argv)
{
  g_autofree char *first = human_escape (argv[0], 100);
  g_autofree char *prefix = g_strconcat (argv[0], " ", NULL);
  g_autoptr (GString) known = g_string_new (NULL);

  for (size_t i = 0; i < G_N_ELEMENTS (all_verbs); i++)
    for (const struct verb *v = all_verbs[i]; v->name != NULL; v++)
      if (g_str_has_prefix (v->name, prefix))
        g_string_append_printf (known, "%s%s", known->len > 0 ? ", " : "",
                                v->name + strlen (prefix));
  if (known->len > 0)
    return ctl_usage (ctl, "'%s' needs one of: %s", first, known->str);
  return ctl_usage (ctl, "there is no verb '%s'", first);
}

/* JSON takes nothing else, and its makers would drop what is not. */
static bool
check_utf8 (const struct ctl *ctl, char **argv)
{
  for (int i = 1; argv[i] != NULL; i++)
    if (!g_utf8_validate (argv[i], -1, NULL)) {
      g_autofree char *escaped = human_escape (argv[i], 200);

      ctl_usage (ctl, "argument %d is not UTF-8: '%s'", i, escaped);
      return false;
    }
  return true;
}

/* Common options may stand before the verb: moves past them.  Returns where
 * the verb is, or NULL after --help or --version or an error, with *out_status.
 */
static char **
skip_common (struct ctl *ctl, char **argv, char **out_control, int *out_status)
{
  char **start = argv;

  while (*argv != NULL && strncmp (*argv, "--", 2) == 0)
    argv += strcmp (*argv, "--control") == 0 && argv[1] != NULL ? 2 : 1;
  if (argv > start) {
    static const struct arg_spec none[] = { { NULL } };
    g_autofree char **before = g_new0 (char *, argv - start + 1);
    g_autofree char *problem = NULL;
    g_autoptr (Args) args = NULL;

    memcpy (before, start, (argv - start) * sizeof *before);
    args = args_parse (before, none, common, &problem);
    if (args == NULL) {
      *out_status = ctl_usage (ctl, "%s", problem);
      return NULL;
    }
    *out_status = EXIT_OK;
    if (args_flag (args, "help")) {
      help_all ();
      return NULL;
    }
    if (args_flag (args, "version")) {
      printf ("fleecectl %s\n", PACKAGE_VERSION);
      return NULL;
    }
    *out_control = (char *) args_value (args, "control");
    ctl->json = args_flag (args, "json");
    ctl->utc = args_flag (args, "utc");
  }
  return argv;
}

static int
run_verb (struct ctl *ctl, const char *control)
{
  g_autoptr (GError) error = NULL;
  int status;

  if (args_value (ctl->args, "control") != NULL)
    control = args_value (ctl->args, "control");
  if (control == NULL)
    control = g_getenv (CONTROL_VARIABLE);
  if (control == NULL || *control == '\0')
    return ctl_usage (ctl, "which control socket? Use --control PATH or set $"
                      CONTROL_VARIABLE);
  ctl->control = control;
  ctl->qmp = qmp_connect (control, &error);
  if (ctl->qmp == NULL)
    return ctl_fail ("%s", error->message);
  status = ctl->verb->run (ctl);
  qmp_free (ctl->qmp);
  /* A full disk or a closed pipe behind stdout is a failure as well. */
  if (fflush (stdout) == EOF && status == EXIT_OK)
    status = ctl_fail ("cannot write to standard output");
  return status;
}

int
main (int argc, char *argv[])
{
  struct ctl ctl = { 0 };
  g_autofree char *problem = NULL;
  char *control = NULL, **words;
  const struct verb *verb;
  int used, status;
  unsigned n;

  setlocale (LC_ALL, "");
  signal (SIGPIPE, SIG_IGN);
  if (!check_utf8 (&ctl, argv))
    return EXIT_USAGE;
  words = skip_common (&ctl, argv + 1, &control, &status);
  if (words == NULL)
    return status;
  if (*words == NULL)
    return ctl_usage (&ctl, "what shall it do?");
  verb = find_verb (words, &used);
  if (verb == NULL)
    return unknown_verb (&ctl, words);
  ctl.verb = verb;
  ctl.args = args_parse (words + used, verb->specs, common, &problem);
  if (ctl.args == NULL)
    return ctl_usage (&ctl, "%s", problem);
  if (args_flag (ctl.args, "help")) {
    help_verb (verb);
    status = EXIT_OK;
    goto out;
  }
  n = args_words (ctl.args)->len;
  if (n < verb->min_words || n > verb->max_words) {
    status = n < verb->min_words
      ? ctl_usage (&ctl, "%s needs %s", verb->name, verb->words)
      : ctl_usage (&ctl, "%s takes no '%s'", verb->name,
                   ctl_word (&ctl, verb->max_words));
    goto out;
  }
  ctl.json |= args_flag (ctl.args, "json");
  ctl.utc |= args_flag (ctl.args, "utc");
  status = run_verb (&ctl, control);
 out:
  args_free (ctl.args);
  return status;
}
