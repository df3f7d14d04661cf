/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <stdarg.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/added-exports.h"
#include "fleece/overlay.h"
#include "plugin/commands.h"
#include "plugin/layer-node.h"
#include "plugin/plugin.h"
#include "plugin/snapshot-node.h"
#include "plugin/replies-table.h"

/* --- what needs no file of its own --- */

json_t *
command_qmp_capabilities (struct qmp_session *session, json_t *args,
                          GError **error)
{
  json_t *enable = json_object_get (args, "enable");

  if (json_array_size (enable) > 0) {   /* we offer none */
    command_set_error (error, "Parameter 'enable' does not accept value "
                       "'%.100s'",
                       json_string_value (json_array_get (enable, 0)));
    return NULL;
  }
  session->negotiated = true;
  return json_object ();
}

json_t *
command_query_version (struct qmp_session *session, json_t *args,
                       GError **error)
{
  return qmp_version ();
}

json_t *
command_quit (struct qmp_session *session, json_t *args, GError **error)
{
  added_export_delete_all ();
  control_quit (session);
  nbdkit_shutdown ();
  return json_object ();
}

/* The next image would have the arguments of this one, and end. */
static bool
check_images (GError **error)
{
  const Params *params = plugin.params;

  for (size_t i = 0; i < params->disks->len; i++) {
    const ParamsDisk *disk = params->disks->pdata[i];
    g_autofree char *moved = NULL;

    if (disk->added)
      continue;
    if (!overlay_moved_image (plugin.catalog, disk->name, disk->path, &moved,
                              error))
      return false;
    if (moved == NULL)
      continue;
    command_set_error (error, "disk '%s' was moved to '%s' by block-stream: "
                       "the server is not replaced, it has to be started with "
                       "that as its image", disk->name, moved);
    return false;
  }
  return true;
}

/* The server calls .cleanup soon, in another thread: control_stop waits for
 * this command, and sends its reply. */
json_t *
command_server_reexec (struct qmp_session *session, json_t *args,
                       GError **error)
{
  const struct metacontext_host *host = plugin.host;

  if (host == NULL || host->size < offsetof (struct metacontext_host, reexec) +
      sizeof host->reexec || host->reexec == NULL) {
    command_set_error (error, "this server cannot replace itself while it is "
                       "running: only nbdfleece can");
    return NULL;
  }
  if (!check_images (error))
    return NULL;
  if (host->reexec () == -1) {
    command_set_error (error, "the server is not replaced, its log says why");
    return NULL;
  }
  return json_object ();
}

json_t *
command_query_commands (struct qmp_session *session, json_t *args,
                        GError **error)
{
  json_t *list = json_array ();

  for (const struct qmp_command *cmd = commands_table; cmd->name; cmd++)
    json_array_append_new (list, json_pack ("{s:s}", "name", cmd->name));
  return list;
}

json_t *
command_query_qmp_schema (struct qmp_session *session, json_t *args,
                          GError **error)
{
  return qmp_schema (commands_table, events_table);
}

/* --- shared --- */

void
command_set_error (GError **error, const char *format, ...)
{
  va_list args;

  va_start (args, format);
  g_propagate_error (error, g_error_new_valist (QMP_ERROR, QMP_ERROR_GENERIC,
                                                format, args));
  va_end (args);
}

Disk *
command_find_active (const char *name)
{
  g_autofree char *layer = NULL;
  g_autoptr (Disk) disk = layer_node_find (name, &layer);

  if (disk != NULL && layer != NULL) {
    g_autoptr (GPtrArray) chain = disk_chain (disk);

    if (layer_index (chain, layer) != 0)
      return NULL;
  }
  return g_steal_pointer (&disk);
}

Disk *
command_find_live (const char *name)
{
  g_autofree char *layer = NULL;
  g_autoptr (Disk) disk = layer_node_find (name, &layer);

  return disk != NULL ? command_find_active (name) :
    snapshot_node_find_disk (name);
}

BackupDisk *
command_find_snapshot (const char *name, Backup **out_backup)
{
  BackupDisk *bd = backup_table_find_export (plugin.backups, name, out_backup);

  return bd != NULL ? bd : snapshot_node_find (name, out_backup);
}

Disk *
command_find_disk (const char *name, GError **error)
{
  Disk *disk = command_find_active (name);

  if (disk == NULL)
    command_set_error (error, "Cannot find device='%.100s' nor "
                       "node-name='%.100s'", name, name);
  return disk;
}

typedef struct {
  const DiskTable *disks;
  Disk *own;                    /* found even if it is about to go */
} FindLog;

/* A NamedBitmapFindLog. */
static EpochLog *
find_log (void *opaque, int64_t id)
{
  const FindLog *find = opaque;
  EpochLog *log = disk_epoch_log (find->own);

  if (epoch_log_disk_id (log) == id)
    return log;
  for (unsigned i = 0; i < find->disks->len; i++) {
    log = disk_epoch_log (find->disks->disk[i]);
    if (epoch_log_disk_id (log) == id)
      return log;
  }
  return NULL;
}

ChangeSet *
command_bitmap_changes (Disk *disk, const NamedBitmap *bm, uint64_t size,
                        bool *out_damaged, GError **error)
{
  g_autoptr (DiskTable) disks = fleece_disks (plugin.fleece);
  FindLog find = { disks, disk };

  return named_bitmap_changes (plugin.catalog, bm, size, find_log, &find,
                               out_damaged, error);
}

NamedBitmapCount *
command_count_bitmaps (Disk *disk, const GPtrArray *bitmaps, GError **error)
{
  g_autoptr (DiskTable) disks = fleece_disks (plugin.fleece);
  FindLog find = { disks, disk };

  return named_bitmap_count_all (plugin.catalog, bitmaps, disk_size (disk),
                                 find_log, &find, error);
}

void
command_checkpoint_event (const char *name, const char *action)
{
  control_event (plugin.control, "CHECKPOINT_CHANGE",
                 json_pack ("{s:s, s:s}", "name", name, "action", action));
}

static bool
forget_epochs_of (Disk *disk, GError **error)
{
  EpochLog *log = disk_epoch_log (disk);
  uint64_t oldest;

  if (!checkpoint_oldest_boundary (plugin.catalog, disk_name (disk), &oldest,
                                   error))
    return false;
  if (oldest == 0)              /* nobody needs any but the open one */
    oldest = epoch_log_current (log)->id;
  return epoch_log_forget_before (log, oldest, error);
}

void
command_forget_epochs (void)
{
  g_autoptr (DiskTable) disks = fleece_disks (plugin.fleece);
  g_autoptr (GError) error = NULL;
  bool ok = catalog_begin (plugin.catalog, &error);

  if (ok) {
    for (size_t i = 0; i < disks->len && ok; i++)
      ok = forget_epochs_of (disks->disk[i], &error);
    if (ok)
      ok = catalog_commit (plugin.catalog, &error);
    else
      catalog_rollback (plugin.catalog);
  }
  if (!ok)
    nbdkit_error ("warning: cannot drop old records of changes: %s",
                  error->message);
}

uint64_t
command_dirty_bytes (const ChangeSet *set)
{
  uint64_t granularity = change_set_granularity (set);
  uint64_t size = change_set_size (set);
  uint64_t bytes = change_set_count (set) * granularity;
  uint64_t tail = size % granularity;

  /* The last granule may be short. */
  if (tail != 0 && change_set_get (set, size - 1))
    bytes -= granularity - tail;
  return bytes;
}
