/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <string.h>

#include "plugin/commands.h"
#include "plugin/keeper.h"
#include "plugin/plugin.h"

/* Whoever is connected keeps the size that he was told: NBD has no way to tell
 * another.  See disk.h for what he then gets past the end. */
json_t *
command_block_resize (struct qmp_session *session, json_t *args,
                      GError **error)
{
  const char *device = qmp_get_str (args, "device");
  const char *node = qmp_get_str (args, "node-name");
  Disk *disk;

  if (device != NULL && node != NULL && strcmp (device, node) != 0) {
    command_set_error (error, "device='%.100s' and node-name='%.100s' are not "
                       "the same disk", device, node);
    return NULL;
  }
  if (device == NULL)
    device = node != NULL ? node : "";
  disk = command_find_disk (device, error);
  if (disk == NULL ||
      !fleece_resize (plugin.fleece, disk, qmp_get_int (args, "size", 0),
                      error))
    return NULL;
  keeper_wake (plugin.keeper);
  command_forget_epochs ();
  return json_object ();
}
