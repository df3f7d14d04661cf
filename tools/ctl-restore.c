/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ctl-restore.c - restore begin, end, list. */
#include <config.h>

#include <string.h>

#include "tools/ctl.h"
#include "tools/table.h"

static const struct arg_spec no_options[] = { { NULL } };

static const struct arg_spec begin_options[] = {
  { "id", "ID", "the restore's name; default: the time in seconds" },
  { "base", "WHAT", "what is not written: current (default) or zero" },
  { "force", NULL, "though guests are connected" },
  { NULL }
};

static void
print_restores (const json_t *restores)
{
  static const char *const titles[] =
    { "ID", "DISK", "EXPORT", ">CLIENTS", NULL };
  g_autoptr (Table) table = table_new (titles);
  const json_t *restore, *disk;
  size_t i, j;

  json_array_foreach (restores, i, restore)
    json_array_foreach (json_object_get (restore, "disks"), j, disk) {
      const json_t *clients = json_object_get (disk, "clients");

      table_cell (table, ctl_get (restore, "id"));
      table_cell (table, ctl_get (disk, "disk"));
      table_cell (table, ctl_get (disk, "export"));
      table_cell_take (table, clients == NULL ? NULL : g_strdup_printf (
                         "%" JSON_INTEGER_FORMAT,
                         json_integer_value (clients)));
    }
  table_print (table);
}

static int
restore_begin (struct ctl *ctl)
{
  const GPtrArray *words = args_words (ctl->args);
  json_t *disks = json_array (), *reply, *list;
  json_t *arguments = json_pack ("{s:o}", "disks", disks);

  for (guint i = 0; i < words->len; i++)
    json_array_append_new (disks, json_pack ("{s:s}", "disk",
                                             words->pdata[i]));
  ctl_put_string (ctl, arguments, "id", "id");
  ctl_put_string (ctl, arguments, "base", "base");
  ctl_put_flag (ctl, arguments, "force", "force");
  reply = ctl_execute (ctl, "restore-begin", arguments);
  if (reply == NULL)
    return EXIT_FAILED;
  if (!ctl_print_json (ctl, reply)) {
    list = json_pack ("[O]", reply);
    print_restores (list);
    json_decref (list);
  }
  json_decref (reply);
  return EXIT_OK;
}

static int
restore_end (struct ctl *ctl)
{
  const char *action = ctl_word (ctl, 1);

  if (strcmp (action, "apply") != 0 && strcmp (action, "discard") != 0)
    return ctl_usage (ctl, "restore end needs 'apply' or 'discard'");
  return ctl_simple (ctl, "restore-end",
                     json_pack ("{s:s, s:s}", "id", ctl_word (ctl, 0),
                                "action", action), NULL);
}

static int
restore_list (struct ctl *ctl)
{
  json_t *list = ctl_execute (ctl, "query-restores", NULL);

  if (list == NULL)
    return EXIT_FAILED;
  if (!ctl_print_json (ctl, list))
    print_restores (list);
  json_decref (list);
  return EXIT_OK;
}

const struct verb restore_verbs[] = {
  { "restore begin", "DISK...", 1, 1000, "offer exports to write to, beside guests",
    begin_options, restore_begin },
  { "restore end", "RESTORE apply|discard", 2, 2,
    "put all of it into effect at one instant, or forget it", no_options,
    restore_end },
  { "restore list", "", 0, 0, "what is being restored", no_options,
    restore_list },
  { NULL }
};
