/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ctl-server.c - verbs about disks and about the server itself, and raw QMP. */
#include <config.h>

#include <stdio.h>
#include <string.h>

#include "tools/ctl.h"
#include "tools/human.h"
#include "tools/table.h"

static const struct arg_spec no_options[] = { { NULL } };

/* --- disk list --- */

static char *
bitmap_names (const json_t *inserted)
{
  GString *names = g_string_new (NULL);
  json_t *bitmap;
  size_t i;

  json_array_foreach (json_object_get (inserted, "dirty-bitmaps"), i, bitmap) {
    const char *name = ctl_get (bitmap, "name");

    if (name != NULL)
      g_string_append_printf (names, "%s%s", names->len > 0 ? "," : "", name);
  }
  return g_string_free (names, FALSE);
}

/* What a start after something else than a clean end found. */
static char *
recovery_text (const json_t *tracking)
{
  const char *recovery = ctl_get (tracking, "recovery");
  const char *reason = ctl_get (tracking, "reason");
  g_autofree char *more = ctl_get_size (tracking, "over-reported");

  if (g_strcmp0 (recovery, "exact") == 0)
    return g_strdup ("recovered exactly");
  if (g_strcmp0 (recovery, "bounded") == 0 && more != NULL)
    return g_strdup_printf ("recovered, %s more than changed reported", more);
  return g_strdup_printf ("everything counts as changed%s%s",
                          reason != NULL ? ": " : "",
                          reason != NULL ? reason : "");
}

char *
ctl_tracking_text (const json_t *inserted)
{
  const json_t *tracking = json_object_get (inserted, "tracking");
  const char *failure = ctl_get (tracking, "error");
  json_int_t bad =
    json_integer_value (json_object_get (tracking, "bad-sectors"));
  g_autofree char *text = NULL;

  if (failure != NULL)          /* since the start: it matters more */
    return g_strdup (failure);
  if (!json_is_false (json_object_get (tracking, "clean")))
    return NULL;
  text = recovery_text (tracking);
  return bad > 0 ? g_strdup_printf ("%s (%lld sectors of its maps damaged)",
                                    text, (long long) bad)
    : g_steal_pointer (&text);
}

bool
ctl_tracking_exact (const json_t *inserted)
{
  const json_t *tracking = json_object_get (inserted, "tracking");
  const json_t *more = json_object_get (tracking, "over-reported");
  const char *recovery = ctl_get (tracking, "recovery");

  if (json_object_get (tracking, "error") != NULL)
    return false;
  if (!json_is_false (json_object_get (tracking, "clean")))
    return true;
  return json_integer_value (json_object_get (tracking, "bad-sectors")) == 0 &&
         (g_strcmp0 (recovery, "exact") == 0 ||
          (g_strcmp0 (recovery, "bounded") == 0 && json_is_integer (more) &&
           json_integer_value (more) == 0));
}

static int
disk_list (struct ctl *ctl)
{
  static const char *const titles[] =
    { "DISK", ">SIZE", ">USED", "ACCESS", "STATUS", "TRACKING", "BITMAPS",
      "FILE", NULL };
  g_autoptr (Table) table = table_new (titles);
  json_t *disks = ctl_execute (ctl, "query-block", NULL), *disk;
  size_t i;

  if (disks == NULL)
    return EXIT_FAILED;
  if (!ctl_print_json (ctl, disks)) {
    json_array_foreach (disks, i, disk) {
      const json_t *inserted = json_object_get (disk, "inserted");
      const json_t *image = json_object_get (inserted, "image");

      table_cell (table, ctl_get (disk, "device"));
      table_cell_take (table, ctl_get_size (image, "virtual-size"));
      table_cell_take (table, ctl_get_size (image, "actual-size"));
      table_cell (table, inserted == NULL ? NULL
                  : json_is_true (json_object_get (inserted, "ro"))
                    ? "read-only" : "writable");
      table_cell (table, ctl_get (disk, "io-status"));
      table_cell_take (table, ctl_tracking_text (inserted));
      table_cell_take (table, bitmap_names (inserted));
      table_cell (table, ctl_get (inserted, "file"));
    }
    table_print (table);
  }
  json_decref (disks);
  return EXIT_OK;
}

static int
disk_resize (struct ctl *ctl)
{
  uint64_t bytes;

  if (!human_parse_size (ctl_word (ctl, 1), &bytes)) {
    g_autofree char *shown = human_escape (ctl_word (ctl, 1), 100);

    return ctl_usage (ctl, "disk resize needs a size such as 512M or 10G, not "
                      "'%s'", shown);
  }
  return ctl_simple (ctl, "block_resize",
                     json_pack ("{s:s, s:I}", "node-name", ctl_word (ctl, 0),
                                "size", (json_int_t) bytes), NULL);
}

const struct verb disk_verbs[] = {
  { "disk list", "", 0, 0, "the disks being served", no_options, disk_list },
  { "disk resize", "DISK SIZE", 2, 2, "make a disk larger or smaller",
    no_options, disk_resize },
  { NULL }
};

/* --- version, commands, quit --- */

static int
version (struct ctl *ctl)
{
  json_t *value = ctl_execute (ctl, "query-version", NULL);
  const json_t *v;

  if (value == NULL)
    return EXIT_FAILED;
  if (!ctl_print_json (ctl, value)) {
    g_autofree char *package =
      human_escape (ctl_get (value, "package") != NULL
                      ? ctl_get (value, "package") : "", 200);

    v = json_object_get (value, "qemu");
    printf ("fleecectl  %s\nserver     %lld.%lld.%lld%s%s%s\n",
            PACKAGE_VERSION,
            (long long) json_integer_value (json_object_get (v, "major")),
            (long long) json_integer_value (json_object_get (v, "minor")),
            (long long) json_integer_value (json_object_get (v, "micro")),
            *package != '\0' ? " (" : "", package,
            *package != '\0' ? ")" : "");
  }
  json_decref (value);
  return EXIT_OK;
}

static int
by_name (const void *a, const void *b)
{
  return strcmp (*(const char *const *) a, *(const char *const *) b);
}

static int
commands (struct ctl *ctl)
{
  json_t *value = ctl_execute (ctl, "query-commands", NULL), *command;
  g_autoptr (GPtrArray) names = g_ptr_array_new_with_free_func (g_free);
  size_t i;

  if (value == NULL)
    return EXIT_FAILED;
  if (!ctl_print_json (ctl, value)) {
    json_array_foreach (value, i, command)
      if (ctl_get (command, "name") != NULL)
        g_ptr_array_add (names, human_escape (ctl_get (command, "name"), 200));
    g_ptr_array_sort (names, by_name);
    for (i = 0; i < names->len; i++)
      puts (names->pdata[i]);
  }
  json_decref (value);
  return EXIT_OK;
}

static int
quit (struct ctl *ctl)
{
  return ctl_simple (ctl, "quit", NULL, NULL);
}

/* Once the server is back it greets whoever has connected meanwhile. */
static int
server_reexec (struct ctl *ctl)
{
  json_t *value = ctl_execute (ctl, "server-reexec", NULL);
  g_autoptr (GError) error = NULL;
  Qmp *qmp;

  if (value == NULL)
    return EXIT_FAILED;
  json_decref (value);
  qmp = qmp_connect_again (ctl->qmp, &error);
  if (qmp == NULL)
    return ctl_fail ("the server did not come back, its log says why: %s",
                     error->message);
  qmp_free (ctl->qmp);
  ctl->qmp = qmp;
  return version (ctl);
}

/* --- qmp --- */

/* KEY=VALUE: VALUE is JSON if it is that, else a string, as in qmp-shell. */
static bool
add_pair (const struct ctl *ctl, json_t *arguments, const char *word)
{
  const char *equals = strchr (word, '=');
  g_autofree char *key = NULL;
  json_error_t jerr;
  json_t *value;

  if (equals == NULL || equals == word) {
    ctl_usage (ctl, "arguments are one JSON object or KEY=VALUE, not '%s'",
               word);
    return false;
  }
  key = g_strndup (word, equals - word);
  value = json_loads (equals + 1, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES,
                      &jerr);
  if (value == NULL)
    value = json_string (equals + 1);
  /* argv is UTF-8, so there always is a value. */
  if (json_object_get (arguments, key) != NULL) {
    ctl_usage (ctl, "'%s' is there twice", key);
    json_decref (value);
    return false;
  }
  json_object_set_new (arguments, key, value);
  return true;
}

static json_t *
read_arguments (const struct ctl *ctl)
{
  const GPtrArray *words = args_words (ctl->args);
  json_t *arguments;
  json_error_t jerr;

  if (words->len == 2 && ctl_word (ctl, 1)[0] == '{') {
    arguments = json_loads (ctl_word (ctl, 1), JSON_REJECT_DUPLICATES, &jerr);
    if (arguments == NULL)
      ctl_usage (ctl, "the arguments are not JSON: %s", jerr.text);
    return arguments;
  }
  arguments = json_object ();
  for (unsigned i = 1; i < words->len; i++)
    if (!add_pair (ctl, arguments, ctl_word (ctl, i))) {
      json_decref (arguments);
      return NULL;
    }
  return arguments;
}

/* One object from stdin to the server; prints all that comes until its reply.
 * EXIT_OK also for an error reply, with *out_refused.
 */
static int
relay_one (struct ctl *ctl, const json_t *object, bool *out_refused)
{
  g_autoptr (GError) error = NULL;
  bool is_event;

  if (!qmp_send (ctl->qmp, object, &error))
    return ctl_fail ("%s", error->message);
  do {
    json_t *reply = qmp_receive (ctl->qmp, &error);

    if (reply == NULL)
      return ctl_fail ("%s", error->message);
    json_dumpf (reply, stdout, JSON_COMPACT);
    putchar ('\n');
    fflush (stdout);
    is_event = json_object_get (reply, "event") != NULL;
    *out_refused |= json_object_get (reply, "error") != NULL;
    json_decref (reply);
  } while (is_event);
  return EXIT_OK;
}

static int
relay_stdin (struct ctl *ctl)
{
  bool refused = false;
  int status = EXIT_OK;

  while (status == EXIT_OK) {
    json_error_t jerr;
    json_t *object;
    int c;

    do
      c = getchar ();
    while (c == ' ' || c == '\t' || c == '\r' || c == '\n');
    if (c == EOF)
      break;
    ungetc (c, stdin);
    object = json_loadf (stdin, JSON_DISABLE_EOF_CHECK | JSON_ALLOW_NUL,
                         &jerr);
    if (object == NULL)
      return ctl_fail ("cannot read a command from standard input: %s",
                       jerr.text);
    status = relay_one (ctl, object, &refused);
    json_decref (object);
  }
  return status == EXIT_OK && refused ? EXIT_FAILED : status;
}

static int
raw (struct ctl *ctl)
{
  json_t *arguments, *value;

  if (strcmp (ctl_word (ctl, 0), "-") == 0) {
    if (args_words (ctl->args)->len > 1)
      return ctl_usage (ctl, "with - the arguments come from standard input");
    return relay_stdin (ctl);
  }
  arguments = read_arguments (ctl);
  if (arguments == NULL)
    return EXIT_USAGE;
  if (json_object_size (arguments) == 0) {
    json_decref (arguments);
    arguments = NULL;
  }
  value = ctl_execute (ctl, ctl_word (ctl, 0), arguments);
  if (value == NULL)
    return EXIT_FAILED;
  ctl->json = true;
  ctl_print_json (ctl, value);
  json_decref (value);
  return EXIT_OK;
}

const struct verb server_verbs[] = {
  { "version", "", 0, 0, "versions of fleecectl and the server", no_options,
    version },
  { "commands", "", 0, 0, "the control commands the server knows", no_options,
    commands },
  { "quit", "", 0, 0, "end the server", no_options, quit },
  { "server reexec", "", 0, 0,
    "replace the server while clients stay connected", no_options,
    server_reexec },
  { "qmp", "COMMAND|- [ARG]...", 1, 1000,
    "any control command; - takes JSON from stdin", no_options, raw },
  { NULL }
};
