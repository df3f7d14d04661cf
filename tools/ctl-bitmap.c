/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ctl-bitmap.c - bitmap add, remove, clear, enable, disable, merge, populate,
 * list. */
#include <config.h>

#include <stdio.h>
#include <string.h>

#include "tools/ctl.h"
#include "tools/human.h"
#include "tools/table.h"

static const struct arg_spec no_options[] = { { NULL } };

static const struct arg_spec add_options[] = {
  { "granularity", "SIZE", "bytes that one bit stands for; default 64K" },
  { "disabled", NULL, "record nothing yet" },
  { "persistent", NULL, "as QEMU's, which would lose it otherwise" },
  { NULL }
};

static int
add (struct ctl *ctl)
{
  json_t *arguments = json_pack ("{s:s, s:s}", "node", ctl_word (ctl, 0),
                                 "name", ctl_word (ctl, 1));

  if (!ctl_put_size (ctl, arguments, "granularity", "granularity")) {
    json_decref (arguments);
    return EXIT_USAGE;
  }
  ctl_put_flag (ctl, arguments, "disabled", "disabled");
  ctl_put_flag (ctl, arguments, "persistent", "persistent");
  return ctl_simple (ctl, "block-dirty-bitmap-add", arguments, NULL);
}

/* remove, clear, enable, disable: the verb's last word is the command's. */
static int
by_name (struct ctl *ctl)
{
  g_autofree char *command =
    g_strconcat ("block-dirty-bitmap-", strchr (ctl->verb->name, ' ') + 1,
                 NULL);

  return ctl_simple (ctl, command,
                     json_pack ("{s:s, s:s}", "node", ctl_word (ctl, 0),
                                "name", ctl_word (ctl, 1)), NULL);
}

static const struct arg_spec merge_options[] = {
  { "from", "DISK:BITMAP", "a source of another disk", true },
  { NULL }
};

/* Adds each DISK:BITMAP that the option has; false after a message.  A disk's
 * name has no colon, a bitmap's may.
 */
static bool
add_pairs (const struct ctl *ctl, const char *option, json_t *list)
{
  const GPtrArray *values = args_values (ctl->args, option);

  for (unsigned i = 0; i < values->len; i++) {
    const char *text = values->pdata[i], *colon = strchr (text, ':');
    g_autofree char *disk = NULL;

    if (colon == NULL || colon == text || colon[1] == '\0') {
      ctl_usage (ctl, "--%s needs DISK:BITMAP, not '%s'", option, text);
      return false;
    }
    disk = g_strndup (text, colon - text);
    json_array_append_new (list, json_pack ("{s:s, s:s}", "node", disk,
                                            "name", colon + 1));
  }
  return true;
}

static int
merge (struct ctl *ctl)
{
  const GPtrArray *words = args_words (ctl->args);
  json_t *sources = json_array ();

  for (unsigned i = 2; i < words->len; i++)
    json_array_append_new (sources, json_string (words->pdata[i]));
  if (!add_pairs (ctl, "from", sources)) {
    json_decref (sources);
    return EXIT_USAGE;
  }
  if (json_array_size (sources) == 0) {
    json_decref (sources);
    return ctl_usage (ctl, "merge what? Give bitmaps, or --from DISK:BITMAP");
  }
  return ctl_simple (ctl, "block-dirty-bitmap-merge",
                     json_pack ("{s:s, s:s, s:o}", "node", ctl_word (ctl, 0),
                                "target", ctl_word (ctl, 1),
                                "bitmaps", sources), NULL);
}

/* "recording,busy"; caller frees. */
static char *
state_text (const json_t *bitmap)
{
  bool recording = json_is_true (json_object_get (bitmap, "recording"));
  bool bad = json_is_true (json_object_get (bitmap, "inconsistent"));

  return g_strconcat (bad ? "inconsistent" : recording ? "recording"
                        : "disabled",
                      json_is_true (json_object_get (bitmap, "busy"))
                        ? ",busy" : "",
                      json_is_true (json_object_get (bitmap, "persistent"))
                        ? ",persistent" : "", NULL);
}

/* For --json: the bitmaps as they are, each with its disk. */
static int
list (struct ctl *ctl)
{
  static const char *const titles[] =
    { "DISK", "BITMAP", ">CHANGED", ">GRANULARITY", "STATE", NULL };
  const char *only = args_words (ctl->args)->len > 0 ? ctl_word (ctl, 0) : NULL;
  g_autoptr (Table) table = table_new (titles);
  json_t *disks = ctl_execute (ctl, "query-block", NULL), *disk, *bitmap;
  json_t *found = json_array ();
  bool known = only == NULL;
  size_t i, j;

  if (disks == NULL) {
    json_decref (found);
    return EXIT_FAILED;
  }
  json_array_foreach (disks, i, disk) {
    const json_t *inserted = json_object_get (disk, "inserted");
    const char *name = ctl_get (disk, "device");

    if (name == NULL || (only != NULL && strcmp (name, only) != 0))
      continue;
    known = true;
    json_array_foreach (json_object_get (inserted, "dirty-bitmaps"), j,
                        bitmap) {
      json_t *copy = json_copy (bitmap);

      table_cell (table, name);
      table_cell (table, ctl_get (bitmap, "name"));
      table_cell_take (table, ctl_get_size (bitmap, "count"));
      table_cell_take (table, ctl_get_size (bitmap, "granularity"));
      table_cell_take (table, state_text (bitmap));
      if (copy != NULL) {
        json_object_set_new (copy, "disk", json_string (name));
        json_array_append_new (found, copy);
      }
    }
  }
  if (known && !ctl_print_json (ctl, found))
    table_print (table);
  json_decref (found);
  json_decref (disks);
  if (!known) {
    g_autofree char *shown = human_escape (only, 200);

    return ctl_fail ("there is no disk '%s'", shown);
  }
  return EXIT_OK;
}

static const struct arg_spec populate_options[] = {
  { "pattern", "PATTERN", "allocation-top (default) or all" },
  { "from", "NODE", "what is allocated on this disk or snapshot", true },
  { "also", "DISK:BITMAP", "add it to this bitmap, too", true },
  { "job", "JOB", "its id; default: the disk's name" },
  { "watch", NULL, "show progress until it has ended" },
  { NULL }
};

static int
populate (struct ctl *ctl)
{
  const char *pattern = args_value (ctl->args, "pattern");
  const char *job = args_value (ctl->args, "job");
  const GPtrArray *from = args_values (ctl->args, "from");
  json_t *arguments, *sources, *targets;
  int status;

  if (pattern != NULL && from->len > 0)
    return ctl_usage (ctl, "--pattern and --from exclude each other");
  if (job == NULL)
    job = ctl_word (ctl, 0);
  targets = json_pack ("[{s:s, s:s}]", "node", ctl_word (ctl, 0),
                       "name", ctl_word (ctl, 1));
  if (!add_pairs (ctl, "also", targets)) {
    json_decref (targets);
    return EXIT_USAGE;
  }
  arguments = json_pack ("{s:s, s:o}", "job-id", job, "targets", targets);
  /* The command takes allocation-top for one target only. */
  if (pattern != NULL && strcmp (pattern, "allocation-top") != 0)
    json_object_set_new (arguments, "pattern", json_string (pattern));
  else {
    sources = json_array ();
    if (from->len == 0)
      json_array_append_new (sources, json_pack (
        "{s:s, s:s}", "pattern", "allocation", "node", ctl_word (ctl, 0)));
    for (unsigned i = 0; i < from->len; i++)
      json_array_append_new (sources, json_pack (
        "{s:s, s:s}", "pattern", "allocation", "node", from->pdata[i]));
    json_object_set_new (arguments, "sources", sources);
  }
  if (!args_flag (ctl->args, "watch"))
    return ctl_simple (ctl, "block-dirty-bitmap-populate", arguments, NULL);
  /* Before it starts, since it may be over when the reply is here. */
  ctl_watch_begin (ctl);
  status = ctl_simple (ctl, "block-dirty-bitmap-populate", arguments, NULL);
  return status == EXIT_OK ? ctl_watch_jobs (ctl, job) : status;
}

const struct verb bitmap_verbs[] = {
  { "bitmap add", "DISK BITMAP", 2, 2, "record changes under a name",
    add_options, add },
  { "bitmap remove", "DISK BITMAP", 2, 2, "forget it", no_options, by_name },
  { "bitmap clear", "DISK BITMAP", 2, 2, "nothing counts as changed",
    no_options, by_name },
  { "bitmap enable", "DISK BITMAP", 2, 2, "record from now on", no_options,
    by_name },
  { "bitmap disable", "DISK BITMAP", 2, 2, "keep it as it is", no_options,
    by_name },
  { "bitmap merge", "DISK TARGET [BITMAP]...", 2, 1000,
    "add what others have to it", merge_options, merge },
  { "bitmap populate", "DISK BITMAP", 2, 2,
    "a job that adds what is allocated to it", populate_options, populate },
  { "bitmap list", "[DISK]", 0, 1, "bitmaps and how much changed", no_options,
    list },
  { NULL }
};
