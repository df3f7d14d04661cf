/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ctl-export.c - export add, delete, list; server add, remove; client list. */
#include <config.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/ctl.h"
#include "tools/human.h"
#include "tools/table.h"

static const struct arg_spec no_options[] = { { NULL } };

static const struct arg_spec add_options[] = {
  { "id", "ID", "to delete it by; default: its name" },
  { "name", "NAME", "that clients open; default: the node's" },
  { "description", "TEXT", "that clients are told" },
  { "writable", NULL, "clients may write; a disk only" },
  { "writethrough", NULL, "each write is on the disk when it is answered" },
  { "bitmap", "BITMAP", "offer it; of another node as NODE:BITMAP", true },
  { NULL }
};

/* A node's name has no colon, a bitmap's may: for such a one the node is
 * needed. */
static json_t *
bitmap_source (const char *text)
{
  const char *colon = strchr (text, ':');
  g_autofree char *node = NULL;

  if (colon == NULL)
    return json_string (text);
  node = g_strndup (text, colon - text);
  return json_pack ("{s:s, s:s}", "node", node, "name", colon + 1);
}

static int
add (struct ctl *ctl)
{
  const char *node = ctl_word (ctl, 0);
  const char *name = args_value (ctl->args, "name");
  const char *id = args_value (ctl->args, "id");
  const GPtrArray *bitmaps = args_values (ctl->args, "bitmap");
  json_t *arguments;

  if (name == NULL)
    name = node;
  arguments = json_pack ("{s:s, s:s, s:s, s:s}", "type", "nbd", "id",
                         id != NULL ? id : name, "node-name", node, "name",
                         name);
  ctl_put_string (ctl, arguments, "description", "description");
  ctl_put_flag (ctl, arguments, "writable", "writable");
  ctl_put_flag (ctl, arguments, "writethrough", "writethrough");
  if (bitmaps->len > 0) {
    json_t *list = json_array ();

    for (unsigned i = 0; i < bitmaps->len; i++)
      json_array_append_new (list, bitmap_source (bitmaps->pdata[i]));
    json_object_set_new (arguments, "bitmaps", list);
  }
  return ctl_simple (ctl, "block-export-add", arguments, NULL);
}

static const struct arg_spec delete_options[] = {
  { "force", NULL, "also while clients use it: they are dropped" },
  { NULL }
};

static int
delete (struct ctl *ctl)
{
  return ctl_simple (ctl, "block-export-del",
                     json_pack ("{s:s, s:s}", "id", ctl_word (ctl, 0), "mode",
                                args_flag (ctl->args, "force") ? "hard"
                                : "safe"), NULL);
}

static int
list (struct ctl *ctl)
{
  static const char *const titles[] = { "EXPORT", "NODE", "STATE", NULL };
  g_autoptr (Table) table = table_new (titles);
  json_t *exports = ctl_execute (ctl, "query-block-exports", NULL), *export;
  size_t i;

  if (exports == NULL)
    return EXIT_FAILED;
  if (!ctl_print_json (ctl, exports)) {
    json_array_foreach (exports, i, export) {
      bool ends = json_is_true (json_object_get (export, "shutting-down"));

      table_cell (table, ctl_get (export, "id"));
      table_cell (table, ctl_get (export, "node-name"));
      table_cell (table, ends ? "shutting down" : "open");
    }
    table_print (table);
  }
  json_decref (exports);
  return EXIT_OK;
}

/* --- server add, remove --- */

static const struct arg_spec server_options[] = {
  { "max-connections", "N", "clients at a time; default 0: no limit" },
  { NULL }
};

/* A path, or HOST:PORT, with brackets around a host that has colons. */
static json_t *
parse_address (const char *text)
{
  const char *colon = strrchr (text, ':');
  g_autofree char *host = NULL;
  size_t length;

  if (text[0] == '/' || colon == NULL) {
    g_autofree char *path = g_canonicalize_filename (text, NULL);

    return json_pack ("{s:s, s:{s:s}}", "type", "unix", "data", "path", path);
  }
  host = g_strndup (text, colon - text);
  length = strlen (host);
  if (length > 1 && host[0] == '[' && host[length - 1] == ']') {
    host[length - 1] = '\0';
    memmove (host, host + 1, length - 1);
  }
  return json_pack ("{s:s, s:{s:s, s:s}}", "type", "inet", "data", "host",
                    host, "port", colon + 1);
}

static int
server_add (struct ctl *ctl)
{
  const char *limit = args_value (ctl->args, "max-connections");
  json_t *arguments;
  uint64_t n = 0;

  if (limit != NULL && !human_parse_uint (limit, 0, UINT32_MAX, &n))
    return ctl_usage (ctl, "--max-connections needs a number, not '%s'",
                      limit);
  arguments = json_pack ("{s:o, s:I}", "addr",
                         parse_address (ctl_word (ctl, 0)),
                         "max-connections", (json_int_t) n);
  return ctl_simple (ctl, "nbd-server-start", arguments, NULL);
}

static int
server_remove (struct ctl *ctl)
{
  return ctl_simple (ctl, "nbd-server-stop", NULL, NULL);
}

/* --- client list --- */

static const struct arg_spec client_options[] = {
  { "watch", NULL, "go on until nobody is connected" },
  { NULL }
};

void
ctl_print_clients (const struct ctl *ctl, const json_t *clients)
{
  static const char *const titles[] =
    { "EXPORT", "CLIENT", "SINCE", ">READ", ">WRITTEN", ">REQUESTS", NULL };
  g_autoptr (Table) table = table_new (titles);
  const json_t *client;
  size_t i;

  json_array_foreach (clients, i, client) {
    const json_t *requests = json_object_get (client, "requests");

    table_cell (table, ctl_get (client, "export"));
    table_cell (table, ctl_get (client, "peer"));
    table_cell_take (table, ctl_get_time (ctl, client, "since"));
    table_cell_take (table, ctl_get_size (client, "bytes-read"));
    table_cell_take (table, ctl_get_size (client, "bytes-written"));
    table_cell_take (table, json_is_integer (requests) ? g_strdup_printf (
      "%lld", (long long) json_integer_value (requests)) : NULL);
  }
  table_print (table);
}

static int
client_list (struct ctl *ctl)
{
  json_t *clients;

  if (args_flag (ctl->args, "watch"))
    return ctl_watch_list (ctl, "query-clients", ctl_print_clients);
  clients = ctl_execute (ctl, "query-clients", NULL);
  if (clients == NULL)
    return EXIT_FAILED;
  if (!ctl_print_json (ctl, clients))
    ctl_print_clients (ctl, clients);
  json_decref (clients);
  return EXIT_OK;
}

/* --- server stats --- */

static char *
number_text (const json_t *object, const char *key)
{
  const json_t *value = json_object_get (object, key);

  return json_is_integer (value) ?
    g_strdup_printf ("%lld", (long long) json_integer_value (value)) : NULL;
}

static void
print_stats (const json_t *stats)
{
  static const char *const export_titles[] =
    { "EXPORT", ">CLIENTS", ">READ", ">WRITTEN", ">REQUESTS", ">ERRORS",
      ">WAITS", NULL };
  static const char *const limit_titles[] = { "LIMIT", ">MET", NULL };
  g_autoptr (Table) exports = table_new (export_titles);
  g_autoptr (Table) limits = table_new (limit_titles);
  const json_t *entry;
  size_t i;

  json_array_foreach (json_object_get (stats, "exports"), i, entry) {
    table_cell (exports, ctl_get (entry, "export"));
    table_cell_take (exports, number_text (entry, "connections"));
    table_cell_take (exports, ctl_get_size (entry, "bytes-read"));
    table_cell_take (exports, ctl_get_size (entry, "bytes-written"));
    table_cell_take (exports, number_text (entry, "requests"));
    table_cell_take (exports, number_text (entry, "errors"));
    table_cell_take (exports, number_text (entry, "waits"));
  }
  json_array_foreach (json_object_get (stats, "limits"), i, entry) {
    if (json_integer_value (json_object_get (entry, "hits")) == 0)
      continue;
    table_cell (limits, ctl_get (entry, "limit"));
    table_cell_take (limits, number_text (entry, "hits"));
  }
  table_print (exports);
  putchar ('\n');
  table_print (limits);
}

static int
server_stats (struct ctl *ctl)
{
  json_t *stats = ctl_execute (ctl, "query-nbd-stats", NULL);

  if (stats == NULL)
    return EXIT_FAILED;
  if (!ctl_print_json (ctl, stats))
    print_stats (stats);
  json_decref (stats);
  return EXIT_OK;
}

const struct verb export_verbs[] = {
  { "export add", "NODE", 1, 1, "a disk or snapshot under one more name",
    add_options, add },
  { "export delete", "EXPORT", 1, 1, "no longer", delete_options, delete },
  { "export list", "", 0, 0, "those that were added", no_options, list },
  { "client list", "", 0, 0, "who is connected, and what it has moved",
    client_options, client_list },
  { "server add", "PATH|HOST:PORT", 1, 1, "listen there, too",
    server_options, server_add },
  { "server remove", "", 0, 0,
    "no longer; its clients and added exports go", no_options,
    server_remove },
  { "server stats", "", 0, 0,
    "what clients have done on each export, and which limits they met",
    no_options, server_stats },
  { NULL }
};
