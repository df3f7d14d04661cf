/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ctl-node.c - node add, delete, list: where backup push writes to; disk add,
 * remove. */
#include <config.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/ctl.h"
#include "tools/human.h"
#include "tools/table.h"

static const struct arg_spec no_options[] = { { NULL } };

static const struct arg_spec add_options[] = {
  { "read-only", NULL, "nobody may write to it" },
  { "discard", "MODE", "unmap (zeroes may become holes) or ignore" },
  { NULL }
};

/* "nbd+unix:///EXPORT?socket=PATH" or "nbd://HOST[:PORT]/EXPORT" as the members
 * of blockdev-add.  False after a message.
 */
static bool
put_nbd (const struct ctl *ctl, json_t *arguments, const char *text)
{
  g_autoptr (GError) error = NULL;
  g_autoptr (GUri) uri = g_uri_parse (text, G_URI_FLAGS_NONE, &error);
  const char *scheme = uri != NULL ? g_uri_get_scheme (uri) : NULL;
  const char *export = NULL;
  json_t *server = NULL;

  if (g_strcmp0 (scheme, "nbd+unix") == 0) {
    g_autoptr (GHashTable) query =
      g_uri_get_query (uri) == NULL ? NULL
        : g_uri_parse_params (g_uri_get_query (uri), -1, "&;",
                              G_URI_PARAMS_NONE, NULL);
    const char *path =
      query != NULL ? g_hash_table_lookup (query, "socket") : NULL;

    if (path != NULL)
      server = json_pack ("{s:s, s:s}", "type", "unix", "path", path);
  }
  else if (g_strcmp0 (scheme, "nbd") == 0 && g_uri_get_host (uri) != NULL &&
           *g_uri_get_host (uri) != '\0') {
    g_autofree char *port =
      g_strdup_printf ("%d", g_uri_get_port (uri) > 0 ? g_uri_get_port (uri)
                                                      : 10809);

    server = json_pack ("{s:s, s:s, s:s}", "type", "inet",
                        "host", g_uri_get_host (uri), "port", port);
  }
  if (server == NULL) {
    ctl_usage (ctl, "'%s' is neither nbd+unix:///EXPORT?socket=PATH nor "
               "nbd://HOST[:PORT]/EXPORT", text);
    return false;
  }
  export = g_uri_get_path (uri);
  json_object_set_new (arguments, "driver", json_string ("nbd"));
  json_object_set_new (arguments, "server", server);
  json_object_set_new (arguments, "export",
                       json_string (*export == '/' ? export + 1 : export));
  return true;
}

/* The server opens it, so the path has to mean there what it means here. */
static void
put_file (json_t *arguments, const char *name)
{
  g_autofree char *path = g_canonicalize_filename (name, NULL);
  bool device = g_str_has_prefix (path, "/dev/");

  json_object_set_new (arguments, "driver", json_string ("raw"));
  json_object_set_new (arguments, "file",
                       json_pack ("{s:s, s:s}", "driver",
                                  device ? "host_device" : "file",
                                  "filename", path));
}

static int
add (struct ctl *ctl)
{
  json_t *arguments = json_pack ("{s:s}", "node-name", ctl_word (ctl, 0));
  const char *where = ctl_word (ctl, 1);

  if (strstr (where, "://") == NULL)
    put_file (arguments, where);
  else if (!put_nbd (ctl, arguments, where)) {
    json_decref (arguments);
    return EXIT_USAGE;
  }
  ctl_put_flag (ctl, arguments, "read-only", "read-only");
  ctl_put_string (ctl, arguments, "discard", "discard");
  return ctl_simple (ctl, "blockdev-add", arguments, NULL);
}

static int
disk_add (struct ctl *ctl)
{
  json_t *arguments = json_pack ("{s:s, s:b}", "node-name", ctl_word (ctl, 0),
                                 "disk", 1);

  put_file (arguments, ctl_word (ctl, 1));
  return ctl_simple (ctl, "blockdev-add", arguments, NULL);
}

static int
delete (struct ctl *ctl)
{
  return ctl_simple (ctl, "blockdev-del",
                     json_pack ("{s:s}", "node-name", ctl_word (ctl, 0)),
                     NULL);
}

static int
list (struct ctl *ctl)
{
  static const char *const titles[] =
    { "NODE", "DRIVER", ">SIZE", "ACCESS", "FILE", NULL };
  g_autoptr (Table) table = table_new (titles);
  json_t *nodes = ctl_execute (ctl, "query-named-block-nodes", NULL), *node;
  size_t i;

  if (nodes == NULL)
    return EXIT_FAILED;
  if (!ctl_print_json (ctl, nodes)) {
    json_array_foreach (nodes, i, node) {
      table_cell (table, ctl_get (node, "node-name"));
      table_cell (table, ctl_get (node, "drv"));
      table_cell_take (table, ctl_get_size (json_object_get (node, "image"),
                                            "virtual-size"));
      table_cell (table, json_is_true (json_object_get (node, "ro"))
                           ? "read-only" : "writable");
      table_cell (table, ctl_get (node, "file"));
    }
    table_print (table);
  }
  json_decref (nodes);
  return EXIT_OK;
}

const struct verb node_verbs[] = {
  { "disk add", "DISK FILE", 2, 2, "serve one more, from now on",
    no_options, disk_add },
  { "disk remove", "DISK", 1, 1, "one that was added; nobody may use it",
    no_options, delete },
  { "node add", "NODE FILE|URI", 2, 2, "open what a backup is pushed to",
    add_options, add },
  { "node delete", "NODE", 1, 1, "close it", no_options, delete },
  { "node list", "", 0, 0, "disks, and nodes that were added", no_options,
    list },
  { NULL }
};
