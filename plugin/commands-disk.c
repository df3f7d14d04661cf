/* SPDX-License-Identifier: BSD-3-Clause */
/* commands-disk.c - blockdev-add and -del, block_resize. */
#include <config.h>

#include <string.h>

#include "plugin/added-disks.h"
#include "plugin/commands.h"
#include "plugin/job.h"
#include "plugin/keeper.h"
#include "plugin/node.h"
#include "plugin/plugin.h"

/* Whoever is connected keeps the size that he was told: NBD has no way to tell
 * another.  See disk.h for what he then gets past the end. */
json_t *
command_block_resize (struct qmp_session *session, json_t *args,
                      GError **error)
{
  const char *device = qmp_get_str (args, "device");
  const char *node = qmp_get_str (args, "node-name");
  g_autoptr (Disk) disk = NULL;
  g_autofree char *job = NULL;

  if (device != NULL && node != NULL && strcmp (device, node) != 0) {
    command_set_error (error, "device='%.100s' and node-name='%.100s' are not "
                       "the same disk", device, node);
    return NULL;
  }
  if (device != NULL || node != NULL)
    disk = fleece_find_disk (plugin.fleece, device != NULL ? device : node);
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
  if (!fleece_resize (plugin.fleece, disk, qmp_get_int (args, "size", 0),
                      error))
    return NULL;
  keeper_wake (plugin.keeper);
  command_forget_epochs ();
  return json_object ();
}

json_t *
command_blockdev_add (struct qmp_session *session, json_t *args,
                      GError **error)
{
  bool ok = qmp_get_bool (args, "disk", false) ? added_disk_add (args, error)
    : node_add (args, error);

  return ok ? json_object () : NULL;
}

json_t *
command_blockdev_del (struct qmp_session *session, json_t *args,
                      GError **error)
{
  const char *name = qmp_get_str (args, "node-name");
  bool is_disk, ok = added_disk_delete (name, &is_disk, error);

  if (!is_disk)
    ok = node_delete (name, error);
  return ok ? json_object () : NULL;
}
