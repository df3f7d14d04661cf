/* SPDX-License-Identifier: BSD-3-Clause */
/* commands-export.c - block-export-*, nbd-server-start and -stop, and
 * nbd-server-add and -remove, older forms of the first; object-add and -del;
 * query-clients and query-nbd-stats. */
#include <config.h>

#include <string.h>

#include "plugin/added-exports.h"
#include "plugin/commands.h"
#include "plugin/exports.h"
#include "plugin/nbd-server.h"
#include "plugin/objects.h"
#include "plugin/plugin.h"
#include "plugin/server-stats.h"

json_t *
command_query_clients (struct qmp_session *session, json_t *args,
                       GError **error)
{
  return export_list_clients ();
}

json_t *
command_query_nbd_stats (struct qmp_session *session, json_t *args,
                         GError **error)
{
  return server_stats (error);
}

json_t *
command_block_export_add (struct qmp_session *session, json_t *args,
                          GError **error)
{
  return added_export_add (args, error) ? json_object () : NULL;
}

static json_t *
delete_export (json_t *args, const char *key, GError **error)
{
  const char *mode = qmp_get_str (args, "mode");

  return added_export_delete (qmp_get_str (args, key),
                              mode != NULL && strcmp (mode, "hard") == 0,
                              error) ? json_object () : NULL;
}

json_t *
command_block_export_del (struct qmp_session *session, json_t *args,
                          GError **error)
{
  return delete_export (args, "id", error);
}

json_t *
command_query_block_exports (struct qmp_session *session, json_t *args,
                             GError **error)
{
  return added_export_list ();
}

/* As QEMU: the id is the name, and of a snapshot "writable" is not heard. */
json_t *
command_nbd_server_add (struct qmp_session *session, json_t *args,
                        GError **error)
{
  const char *device = qmp_get_str (args, "device");
  const char *name = qmp_get_str (args, "name");
  const char *description = qmp_get_str (args, "description");
  const char *bitmap = qmp_get_str (args, "bitmap");
  g_autoptr (Disk) disk = command_find_live (device);
  g_autoptr (Backup) backup = NULL;
  g_autoptr (json_t) full = NULL;

  if (disk == NULL && command_find_snapshot (device, &backup) == NULL) {
    command_set_error (error, "Cannot find device='%.100s' nor "
                       "node-name='%.100s'", device, device);
    return NULL;
  }
  if (name == NULL)
    name = device;
  full = json_pack ("{s:s, s:s, s:s, s:s, s:b}", "type", "nbd", "id", name,
                    "node-name", device, "name", name, "writable",
                    disk != NULL && qmp_get_bool (args, "writable", false));
  if (description != NULL)
    json_object_set_new (full, "description", json_string (description));
  if (bitmap != NULL)
    json_object_set_new (full, "bitmaps", json_pack ("[s]", bitmap));
  return added_export_add (full, error) ? json_object () : NULL;
}

json_t *
command_nbd_server_start (struct qmp_session *session, json_t *args,
                          GError **error)
{
  return nbd_server_start (args, error) ? json_object () : NULL;
}

json_t *
command_nbd_server_stop (struct qmp_session *session, json_t *args,
                         GError **error)
{
  return nbd_server_stop (error) ? json_object () : NULL;
}

json_t *
command_object_add (struct qmp_session *session, json_t *args, GError **error)
{
  return object_add (args, error) ? json_object () : NULL;
}

json_t *
command_object_del (struct qmp_session *session, json_t *args, GError **error)
{
  return object_del (qmp_get_str (args, "id"), error) ? json_object () : NULL;
}

json_t *
command_nbd_server_remove (struct qmp_session *session, json_t *args,
                           GError **error)
{
  return delete_export (args, "name", error);
}
