/* SPDX-License-Identifier: BSD-3-Clause */
/* commands-disk.c - blockdev-add and -del, block_resize. */
#include <config.h>

#include <string.h>

#include "plugin/added-disks.h"
#include "plugin/commands.h"
#include "plugin/job.h"
#include "plugin/keeper.h"
#include "plugin/layer-node.h"
#include "plugin/node.h"
#include "plugin/plugin.h"
#include "plugin/restore.h"
#include "plugin/transaction.h"
#include "plugin/snapshot-node.h"

/* Whoever is connected keeps the size that he was told: NBD has no way to tell
 * another.  See disk.h for what he then gets past the end. */
json_t *
command_block_resize (struct qmp_session *session, json_t *args,
                      GError **error)
{
  const char *device = qmp_get_str (args, "device");
  const char *node = qmp_get_str (args, "node-name");
  /* Held: no job begins, and nobody who has read a bitmap writes it back with
   * what it had of the size before. */
  G_GNUC_UNUSED g_autoptr (Transaction) t = transaction_new ();
  g_autoptr (Disk) disk = NULL;
  g_autofree char *job = NULL, *restore = NULL;

  if (device != NULL && node != NULL && strcmp (device, node) != 0) {
    command_set_error (error, "device='%.100s' and node-name='%.100s' are not "
                       "the same disk", device, node);
    return NULL;
  }
  if (device != NULL || node != NULL)
    disk = command_find_active (device != NULL ? device : node);
  if (disk == NULL) {
    command_set_error (error, "Cannot find device='%.100s' nor "
                       "node-name='%.100s'", device != NULL ? device : "",
                       node != NULL ? node : "");
    return NULL;
  }
  device = disk_name (disk);
  job = job_find_of_disk (device);
  if (job != NULL) {            /* its copy has the size of before */
    command_set_error (error, "disk '%s' is in use by job '%s'", device, job);
    return NULL;
  }
  restore = restore_uses_disk (disk);
  if (restore != NULL) {        /* what is written there has the size of
                                   before */
    command_set_error (error, "disk '%s' is in use by restore '%s'", device,
                       restore);
    return NULL;
  }
  if (!fleece_resize (plugin.fleece, disk, qmp_get_int (args, "size", 0),
                      error))
    return NULL;
  keeper_wake (plugin.keeper);
  command_forget_epochs ();
  return json_object ();
}

/* The members that a driver has beside those that all have: the table knows of
 * one object with all of them. */
static bool
check_driver (json_t *args, GError **error)
{
  static const char *const common[] = {
    "driver", "node-name", "read-only", "disk", "discard", NULL
  };
  static const struct {
    const char *driver, *members[8];
  } drivers[] = {
    { "copy-before-write", { "file", "target", "bitmap", "on-cbw-error",
                             "cbw-timeout", "min-cluster-size" } },
    { "file", { "filename" } },
    { "host_device", { "filename" } },
    { "layer", { "filename", "backing" } },
    { "nbd", { "server", "export", "tls-creds" } },
    { "raw", { "file" } },
    { "snapshot-access", { "file" } },
  };
  size_t i = 0;
  const char *key;
  json_t *value;

  while (strcmp (drivers[i].driver, qmp_get_str (args, "driver")) != 0)
    i++;
  json_object_foreach (args, key, value)
    if (!g_strv_contains (common, key) &&
        !g_strv_contains (drivers[i].members, key)) {
      command_set_error (error, "Parameter '%s' is unexpected", key);
      return false;
    }
  if (!qmp_get_bool (args, "disk", false) ||
      (!snapshot_node_is_driver (drivers[i].driver) &&
       strcmp (drivers[i].driver, "layer") != 0))
    return true;
  command_set_error (error, "'disk' is not for the driver '%s'",
                     drivers[i].driver);
  return false;
}

json_t *
command_blockdev_add (struct qmp_session *session, json_t *args,
                      GError **error)
{
  bool ok = check_driver (args, error);

  if (ok && qmp_get_bool (args, "disk", false))
    ok = added_disk_add (args, error);
  else if (ok && snapshot_node_is_driver (qmp_get_str (args, "driver")))
    ok = snapshot_node_add (args, error);
  else if (ok && strcmp (qmp_get_str (args, "driver"), "layer") == 0)
    ok = layer_node_add (args, error);
  else if (ok)
    ok = node_add (args, error);
  return ok ? json_object () : NULL;
}

json_t *
command_blockdev_del (struct qmp_session *session, json_t *args,
                      GError **error)
{
  const char *name = qmp_get_str (args, "node-name");
  bool found, ok = added_disk_delete (name, &found, error);

  if (!found)
    ok = snapshot_node_delete (name, &found, error);
  if (!found)
    ok = layer_node_delete (name, &found, error);
  if (!found)
    ok = node_delete (name, error);
  return ok ? json_object () : NULL;
}
