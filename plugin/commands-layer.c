/* SPDX-License-Identifier: BSD-3-Clause */
/* commands-layer.c - blockdev-snapshot, block-commit, block-stream;
 * restore-*. */
#include <config.h>

#include <string.h>

#include "plugin/commands.h"
#include "plugin/job-move.h"
#include "plugin/layer-node.h"
#include "plugin/plugin.h"
#include "plugin/restore.h"
#include "plugin/transaction.h"

json_t *
command_blockdev_snapshot (struct qmp_session *session, json_t *args,
                           GError **error)
{
  g_autoptr (Transaction) t = transaction_new ();

  if (!action_snapshot (t, args, error) || !transaction_commit (t, error))
    return NULL;
  return json_object ();
}

static bool
set_no_node (const char *device, const char *node, GError **error)
{
  command_set_error (error, "Cannot find device='%.100s' nor "
                     "node-name='%.100s'", device, node);
  return false;
}

static void
fill_options (MoveOptions *options, Disk *disk, json_t *args)
{
  options->job.id = qmp_get_str (args, "job-id");
  options->job.device = disk_name (disk);
  options->job.speed = (uint64_t) qmp_get_int (args, "speed", 0);
  options->job.auto_finalize = qmp_get_bool (args, "auto-finalize", true);
  options->job.auto_dismiss = qmp_get_bool (args, "auto-dismiss", true);
  options->on_error = job_on_error (qmp_get_str (args, "on-error"));
}

/* Of a node of args, its place in the disk's chain; -2: it is not given, -1: it
 * is nowhere in it (no error is set then), -3: an error. */
static int
find_in_chain (Disk *disk, const GPtrArray *chain, json_t *args,
               const char *key, GError **error)
{
  const char *node = qmp_get_str (args, key);
  g_autofree char *layer = NULL;
  g_autoptr (Disk) of = NULL;

  if (node == NULL)
    return -2;
  of = layer_node_find (node, &layer);
  if (of == NULL) {
    set_no_node ("", node, error);
    return -3;
  }
  return of == disk ? layer_index (chain, layer) : -1;
}

static const char *
layer_at (const GPtrArray *chain, int i)
{
  return ((const OverlayInfo *) chain->pdata[i])->name;
}

/* --- block-commit --- */

static Disk *
find_commit_device (const char *name, GError **error)
{
  g_autofree char *layer = NULL;
  g_autoptr (Disk) disk = layer_node_find (name, &layer);
  g_autoptr (GPtrArray) chain = disk != NULL ? disk_chain (disk) : NULL;

  if (disk == NULL)
    g_set_error (error, QMP_ERROR, QMP_ERROR_DEVICE_NOT_FOUND,
                 "Device '%.100s' not found", name);
  else if (layer != NULL && layer_index (chain, layer) != 0)
    command_set_error (error, "Need a root block node");
  else
    return g_steal_pointer (&disk);
  return NULL;
}

static bool
set_not_in_chain (json_t *args, const char *key, GError **error)
{
  command_set_error (error, "'%.100s' is not in this backing file chain",
                     qmp_get_str (args, key));
  return false;
}

static bool
find_commit_range (Disk *disk, const GPtrArray *chain, json_t *args,
                   int *out_top, int *out_base, GError **error)
{
  int top = find_in_chain (disk, chain, args, "top-node", error);
  int base;

  if (top == -3)
    return false;
  if (top == -1)
    return set_not_in_chain (args, "top-node", error);
  if (top == -2)
    top = 0;
  base = find_in_chain (disk, chain, args, "base-node", error);
  if (base == -3)
    return false;
  if (base == -2)
    base = (int) chain->len - 1;
  if (base == -1 || base < top)
    return set_not_in_chain (args, "base-node", error);
  if (base == top) {
    command_set_error (error, "cannot commit an image into itself");
    return false;
  }
  if (top == 0 && qmp_get_str (args, "backing-file") != NULL) {
    command_set_error (error, "'backing-file' specified, but 'top' is the "
                       "active layer");
    return false;
  }
  *out_top = top;
  *out_base = base;
  return true;
}

json_t *
command_block_commit (struct qmp_session *session, json_t *args,
                      GError **error)
{
  g_autoptr (Disk) disk = find_commit_device (qmp_get_str (args, "device"),
                                              error);
  g_autoptr (GPtrArray) chain = disk != NULL ? disk_chain (disk) : NULL;
  MoveOptions options = { .type = "commit" };
  OverlayMove *move;
  int top, base;

  if (disk == NULL || !find_commit_range (disk, chain, args, &top, &base,
                                          error))
    return NULL;
  fill_options (&options, disk, args);
  move = overlay_commit (disk, layer_at (chain, top), layer_at (chain, base),
                         error);
  if (move == NULL || !move_job_start (disk, move, &options, error))
    return NULL;
  return json_object ();
}

/* --- block-stream --- */

/* *out_base: the first of the chain that is not copied; its length: all are. */
static bool
find_stream_base (Disk *disk, const GPtrArray *chain, int from, json_t *args,
                  int *out_base, GError **error)
{
  const char *device = qmp_get_str (args, "device");
  int base = find_in_chain (disk, chain, args, "base-node", error);
  int bottom = base == -3 ? -3
    : find_in_chain (disk, chain, args, "bottom", error);

  if (base == -3 || bottom == -3)
    return false;
  if (base != -2 && base <= from) {
    command_set_error (error, "Node '%.100s' is not a backing image of "
                       "'%.100s'", qmp_get_str (args, "base-node"), device);
    return false;
  }
  if (bottom != -2 && bottom < from) {
    command_set_error (error, "Node '%.100s' is not in a chain starting from "
                       "'%.100s'", qmp_get_str (args, "bottom"), device);
    return false;
  }
  *out_base = base != -2 ? base : bottom != -2 ? bottom + 1
    : (int) chain->len;
  return true;
}

json_t *
command_block_stream (struct qmp_session *session, json_t *args,
                      GError **error)
{
  const char *device = qmp_get_str (args, "device");
  g_autofree char *layer = NULL;
  g_autoptr (Disk) disk = layer_node_find (device, &layer);
  g_autoptr (GPtrArray) chain = disk != NULL ? disk_chain (disk) : NULL;
  MoveOptions options = { .type = "stream" };
  OverlayMove *move;
  int from, base;

  if (disk == NULL) {
    set_no_node (device, device, error);
    return NULL;
  }
  if (qmp_get_str (args, "base-node") != NULL &&
      qmp_get_str (args, "bottom") != NULL) {
    command_set_error (error, "'bottom' and 'base-node' cannot be specified at "
                       "the same time");
    return NULL;
  }
  /* As a device, a disk is its active layer. */
  from = layer == NULL ? 0 : layer_index (chain, layer);
  if (!find_stream_base (disk, chain, from, args, &base, error))
    return NULL;
  if (base == (int) chain->len && qmp_get_str (args, "backing-file") != NULL) {
    command_set_error (error, "backing file specified, but streaming the "
                       "entire chain");
    return NULL;
  }
  if (chain->len == 1) {
    command_set_error (error, "Disk '%s' has no layers: there is nothing to "
                       "stream", disk_name (disk));
    return NULL;
  }
  fill_options (&options, disk, args);
  move = overlay_stream (disk, layer_at (chain, from), base == (int) chain->len,
                         base == (int) chain->len ? NULL
                         : layer_at (chain, base), error);
  if (move == NULL || !move_job_start (disk, move, &options, error))
    return NULL;
  return json_object ();
}

/* --- restore-begin and -end --- */

json_t *
command_restore_begin (struct qmp_session *session, json_t *args,
                       GError **error)
{
  return restore_begin (args, error);
}

json_t *
command_restore_end (struct qmp_session *session, json_t *args,
                     GError **error)
{
  return restore_end (args, error) ? json_object () : NULL;
}

json_t *
command_query_restores (struct qmp_session *session, json_t *args,
                        GError **error)
{
  return restore_query ();
}
