/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ctl-layer.c - layer add, snapshot, commit, stream, list. */
#include <config.h>

#include "tools/ctl.h"
#include "tools/table.h"

static const struct arg_spec no_options[] = { { NULL } };

static const struct arg_spec add_options[] = {
  { "file", "FILE", "empty, or not there yet; default: one of the server's" },
  { NULL }
};

static int
layer_add (struct ctl *ctl)
{
  json_t *arguments = json_pack ("{s:s, s:s}", "driver", "layer", "node-name",
                                 ctl_word (ctl, 0));
  const char *file = args_value (ctl->args, "file");

  if (file != NULL) {           /* the server opens it */
    g_autofree char *path = g_canonicalize_filename (file, NULL);

    json_object_set_new (arguments, "filename", json_string (path));
  }
  return ctl_simple (ctl, "blockdev-add", arguments, NULL);
}

static int
layer_snapshot (struct ctl *ctl)
{
  return ctl_simple (ctl, "blockdev-snapshot",
                     json_pack ("{s:s, s:s}", "node", ctl_word (ctl, 0),
                                "overlay", ctl_word (ctl, 1)), NULL);
}

/* What commit and stream have in common; NULL after a message. */
static json_t *
move_arguments (struct ctl *ctl)
{
  json_t *arguments = json_pack ("{s:s}", "device", ctl_word (ctl, 0));

  ctl_put_string (ctl, arguments, "base-node", "base");
  ctl_put_string (ctl, arguments, "job-id", "job");
  ctl_put_string (ctl, arguments, "on-error", "on-error");
  if (ctl_put_size (ctl, arguments, "speed", "speed"))
    return arguments;
  json_decref (arguments);
  return NULL;
}

static const struct arg_spec commit_options[] = {
  { "top", "NODE", "the uppermost layer to go; default: the active one" },
  { "base", "NODE", "where to; default: the image" },
  { "job", "ID", "the job's name; default: the disk's" },
  { "speed", "SIZE", "most bytes a second" },
  { "on-error", "WHAT", "report, ignore, stop or enospc" },
  { NULL }
};

static int
layer_commit (struct ctl *ctl)
{
  json_t *arguments = move_arguments (ctl);

  if (arguments == NULL)
    return EXIT_USAGE;
  ctl_put_string (ctl, arguments, "top-node", "top");
  return ctl_simple (ctl, "block-commit", arguments, NULL);
}

static const struct arg_spec stream_options[] = {
  { "base", "NODE", "the first that stays; default: none" },
  { "bottom", "NODE", "or the last that goes" },
  { "job", "ID", "the job's name; default: the disk's" },
  { "speed", "SIZE", "most bytes a second" },
  { "on-error", "WHAT", "report, ignore, stop or enospc" },
  { NULL }
};

static int
layer_stream (struct ctl *ctl)
{
  json_t *arguments = move_arguments (ctl);

  if (arguments == NULL)
    return EXIT_USAGE;
  ctl_put_string (ctl, arguments, "bottom", "bottom");
  return ctl_simple (ctl, "block-stream", arguments, NULL);
}

/* Top first; also of disks that have none but their image. */
static int
layer_list (struct ctl *ctl)
{
  static const char *const titles[] =
    { "DISK", "NODE", ">HOLDS", "FILE", NULL };
  g_autoptr (Table) table = table_new (titles);
  json_t *blocks = ctl_execute (ctl, "query-block", NULL), *block, *layer;
  size_t i, j;

  if (blocks == NULL)
    return EXIT_FAILED;
  if (!ctl_print_json (ctl, blocks)) {
    json_array_foreach (blocks, i, block) {
      const json_t *inserted = json_object_get (block, "inserted");
      json_t *layers = json_object_get (inserted, "layers");

      json_array_foreach (layers, j, layer) {
        table_cell (table, ctl_get (block, "device"));
        table_cell (table, ctl_get (layer, "node-name"));
        table_cell_take (table, ctl_get_size (layer, "present-bytes"));
        table_cell (table, ctl_get (layer, "file"));
      }
      if (layers == NULL) {
        table_cell (table, ctl_get (block, "device"));
        table_cell (table, ctl_get (inserted, "node-name"));
        table_cell (table, NULL);
        table_cell (table, ctl_get (inserted, "file"));
      }
    }
    table_print (table);
  }
  json_decref (blocks);
  return EXIT_OK;
}

const struct verb layer_verbs[] = {
  { "layer add", "LAYER", 1, 1, "a new one, for no disk yet", add_options,
    layer_add },
  { "layer snapshot", "DISK|NODE LAYER", 2, 2,
    "put it on: what is below stays as it is", no_options, layer_snapshot },
  { "layer commit", "DISK", 1, 1, "move layers down, and drop them",
    commit_options, layer_commit },
  { "layer stream", "DISK|NODE", 1, 1, "copy into it what is below, and drop that",
    stream_options, layer_stream },
  { "layer list", "", 0, 0, "what disks are made of, the active layer first",
    no_options, layer_list },
  { NULL }
};
