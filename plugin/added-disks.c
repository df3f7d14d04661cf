/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/checkpoint.h"
#include "bitmap/named-bitmap.h"
#include "fleece/overlay.h"
#include "plugin/added-disks.h"
#include "plugin/added-exports.h"
#include "plugin/commands.h"
#include "plugin/config-file.h"
#include "plugin/exports.h"
#include "plugin/job.h"
#include "plugin/layer-node.h"
#include "plugin/node.h"
#include "plugin/plugin.h"
#include "plugin/restore.h"
#include "plugin/snapshot-node.h"
#include "plugin/thread.h"
#include "plugin/transaction.h"

#define FILE_NAME ADDED_DISKS_FILE
#define TEMPORARY FILE_NAME ".new"

/* Commands look a disk up and are done with it soon, but for a cut. */
#define WAIT_UNUSED_MS 2000

/* A leaf: also jobs write, which hold no transaction. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* What the file has, as it was read or last written.  Set up before any thread
 * runs, then under lock. */
static GKeyFile *file;

/* --- the file --- */

bool
added_disks_exist (const char *state)
{
  g_autofree char *path = g_build_filename (state, FILE_NAME, NULL);

  return access (path, F_OK) == 0;
}

static char *
group_of (const char *name)
{
  return g_strconcat (CONFIG_FILE_DISK, name, NULL);
}

static const ParamsDisk *
find_param (const Params *params, const char *name)
{
  for (size_t i = 0; i < params->disks->len; i++) {
    const ParamsDisk *disk = params->disks->pdata[i];

    if (strcmp (disk->name, name) == 0)
      return disk;
  }
  return NULL;
}

static bool
load_one (Params *params, const ParamsDisk *added, const char *path,
          GError **error)
{
  const ParamsDisk *given = find_param (params, added->name);
  g_autofree char *group = group_of (added->name);
  g_autofree char *value = NULL;

  g_key_file_set_string (file, group, "path", added->path);
  if (given == NULL) {
    value = g_strconcat (added->name, ":", added->path, NULL);
    if (!params_set (params, "disk", value, error))
      return false;
    ((ParamsDisk *) params->disks->pdata[params->disks->len - 1])->added = true;
    return true;
  }
  if (strcmp (given->path, added->path) == 0)
    return true;
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID,
               "disk '%s' is given as '%s', and was added as '%s' while the "
               "server ran: leave it out, or take its group out of '%s'",
               added->name, given->path, added->path, path);
  return false;
}

bool
added_disks_load (Params *params, GError **error)
{
  g_autofree char *path = g_build_filename (params->state, FILE_NAME, NULL);
  Params *added;
  bool ok = true;

  g_clear_pointer (&file, g_key_file_unref);
  file = g_key_file_new ();
  if (!added_disks_exist (params->state))
    return true;
  added = params_new ();
  ok = config_file_read_disks (added, path, error);
  for (size_t i = 0; ok && i < added->disks->len; i++)
    ok = load_one (params, added->disks->pdata[i], path, error);
  params_free (added);
  return ok;
}

void
added_disks_free (void)
{
  g_clear_pointer (&file, g_key_file_unref);
}

static bool
fail_errno (const char *what, GError **error)
{
  int err = errno;

  command_set_error (error, "cannot %s '%s/" FILE_NAME "': %s", what,
                     catalog_dir (plugin.catalog), g_strerror (err));
  return false;
}

static bool
write_all (int fd, const char *data, size_t length)
{
  while (length > 0) {
    ssize_t r = write (fd, data, length);

    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1)
      return false;
    data += r;
    length -= r;
  }
  return true;
}

/* Durably, all of it or nothing. */
static bool
store (GKeyFile *new_file, GError **error)
{
  int dir = catalog_dir_fd (plugin.catalog), fd;
  size_t length;
  g_autofree char *data = g_key_file_to_data (new_file, &length, NULL);

  if (length == 0) {
    if (unlinkat (dir, FILE_NAME, 0) == -1 && errno != ENOENT)
      return fail_errno ("remove", error);
  }
  else {
    fd = openat (dir, TEMPORARY,
                 O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd == -1)
      return fail_errno ("write", error);
    if (!write_all (fd, data, length) || fsync (fd) == -1) {
      fail_errno ("write", error);
      close (fd);
      unlinkat (dir, TEMPORARY, 0);
      return false;
    }
    close (fd);
    if (renameat (dir, TEMPORARY, dir, FILE_NAME) == -1) {
      fail_errno ("write", error);
      unlinkat (dir, TEMPORARY, 0);
      return false;
    }
  }
  return fsync (dir) == 0 || fail_errno ("sync", error);
}

/* path: NULL: without it. */
static bool
store_change_locked (const char *name, const char *path, GError **error)
{
  g_autofree char *group = group_of (name);
  g_autofree char *old = g_key_file_get_string (file, group, "path", NULL);

  if (path != NULL)
    g_key_file_set_string (file, group, "path", path);
  else
    g_key_file_remove_group (file, group, NULL);
  if (store (file, error))
    return true;
  /* What the directory has now is not known when its sync has failed: as before
   * is what we say, and so is what we write. */
  if (old != NULL)
    g_key_file_set_string (file, group, "path", old);
  else
    g_key_file_remove_group (file, group, NULL);
  store (file, NULL);
  return false;
}

static bool
store_change (const char *name, const char *path, GError **error)
{
  SCOPED_LOCK (&lock);

  return store_change_locked (name, path, error);
}

static bool
is_stored (const char *name)
{
  g_autofree char *group = group_of (name);
  SCOPED_LOCK (&lock);

  return g_key_file_has_group (file, group);
}

bool
added_disk_follow (const char *name, const char *path, GError **error)
{
  g_autofree char *group = group_of (name);
  g_autofree char *old = NULL;
  SCOPED_LOCK (&lock);

  old = g_key_file_get_string (file, group, "path", NULL);
  return old == NULL || strcmp (old, path) == 0 ||
    store_change_locked (name, path, error);
}

/* --- a start --- */

static bool
open_stored (const ParamsDisk *disk, GError **error)
{
  const Params *params = plugin.params;
  g_autofree char *moved = NULL;

  if (!overlay_moved_image (plugin.catalog, disk->name, disk->path, &moved,
                            error))
    return false;
  /* The catalog had it, and then this file had not yet. */
  return fleece_add_disk (plugin.fleece, disk->name, moved != NULL ? moved
                          : disk->path, params->granularity, error) != NULL &&
    (moved == NULL || added_disk_follow (disk->name, moved, error));
}

bool
added_disks_open (GError **error)
{
  const Params *params = plugin.params;

  for (size_t i = 0; i < params->disks->len; i++) {
    const ParamsDisk *disk = params->disks->pdata[i];

    if (!disk->added || open_stored (disk, error))
      continue;
    g_prefix_error (error, "it was added while the server ran, see '%s/"
                    FILE_NAME "': ", params->state);
    return false;
  }
  return true;
}

/* --- blockdev-add --- */

static bool
check_name (const char *name, GError **error)
{
  g_autoptr (Disk) taken = fleece_find_disk (plugin.fleece, name);

  if (!name_check_id ("disk name", name, error))
    return false;
  if (taken != NULL || node_exists (name)) {
    command_set_error (error, "Duplicate nodes with node-name='%s'", name);
    return false;
  }
  return true;
}

static bool
check_export_name (const char *name, GError **error)
{
  if (!added_export_has_name (name) &&
      !backup_table_has_export (plugin.backups, name))
    return true;
  command_set_error (error, "NBD server already has export named '%s'", name);
  return false;
}

/* What blockdev-add has and a disk has not. */
static bool
check_options (json_t *args, const char *driver, GError **error)
{
  const char *discard = qmp_get_str (args, "discard");

  if (strcmp (driver, "file") != 0 && strcmp (driver, "host_device") != 0)
    command_set_error (error, "a disk is a file or a block device: driver "
                       "'%s' is for targets of backups", driver);
  else if (qmp_get_bool (args, "read-only", false))
    command_set_error (error, "a disk is writable: 'read-only' is for targets "
                       "of backups");
  else if (discard != NULL && strcmp (discard, "unmap") != 0)
    command_set_error (error, "a disk passes on what guests discard: 'discard' "
                       "can only be 'unmap'");
  else
    return true;
  return false;
}

/* "file" and "host_device" inline, or below "raw". */
static const char *
find_path (json_t *args, const char **out_driver, GError **error)
{
  const char *driver = qmp_get_str (args, "driver");
  json_t *from = args;
  const char *path;

  if (strcmp (driver, "raw") == 0) {
    from = json_object_get (args, "file");
    if (from == NULL) {
      command_set_error (error, "Parameter 'file' is missing");
      return NULL;
    }
    driver = qmp_get_str (from, "driver");
  }
  if (!check_options (args, driver, error))
    return NULL;
  path = qmp_get_str (from, "filename");
  if (path == NULL)
    command_set_error (error, "Parameter 'filename' is missing");
  else if (path[0] != '/')
    command_set_error (error, "the path '%.200s' is not absolute", path);
  else {
    *out_driver = driver;
    return path;
  }
  return NULL;
}

static bool
check_driver (Disk *disk, const char *driver, GError **error)
{
  bool wants_block = strcmp (driver, "host_device") == 0;

  if (disk_is_block (disk) == wants_block)
    return true;
  command_set_error (error, wants_block ?
                     "'host_device' driver requires '%s' to be a block device"
                     : "'file' driver requires '%s' to be a regular file",
                     disk_path (disk));
  return false;
}

static bool
check_count (GError **error)
{
  g_autoptr (DiskTable) disks = fleece_disks (plugin.fleece);

  if (disks->len < PARAMS_MAX_DISKS)
    return true;
  command_set_error (error, "at most %d disks a process", PARAMS_MAX_DISKS);
  return false;
}

/* From here on it is served, unless somebody has been faster with the name. */
static bool
show (Disk *disk, GError **error)
{
  const char *name = disk_name (disk);
  bool node;

  fleece_show_disk (plugin.fleece, disk);
  node = node_exists (name);
  if (!node && check_export_name (name, error))
    return true;
  if (node)
    command_set_error (error, "Duplicate nodes with node-name='%s'", name);
  fleece_hide_disk (plugin.fleece, disk);
  return false;
}

static void
forget_transient (Disk *disk)
{
  g_autoptr (GError) error = NULL;

  if (!named_bitmap_delete_transient (plugin.catalog,
                                      epoch_log_disk_id (disk_epoch_log (
                                        disk)), NULL, &error))
    nbdkit_error ("warning: disk '%s': its bitmaps that are not persistent "
                  "stay until the next start: %s", disk_name (disk),
                  error->message);
}

/* Of one that is hidden.  That it was not stopped cleanly costs the next user
 * something, but the disk has gone all the same. */
static void
drop (Disk *disk)
{
  g_autofree char *name = g_strdup (disk_name (disk));
  g_autoptr (GError) error = NULL;

  if (!fleece_drop_disk (plugin.fleece, disk, &error))
    nbdkit_error ("warning: disk '%s': it is not served any more, but what "
                  "changed on it may not be stored exactly: %s", name,
                  error->message);
}

/* Was it given by disk= or config= at the start? */
static bool
is_given (const char *name)
{
  const ParamsDisk *disk = find_param (plugin.params, name);

  return disk != NULL && !disk->added;
}

/* A client that has found it in the moment when it could be found. */
static void
withdraw (Disk *disk)
{
  if (fleece_wait_unused (plugin.fleece, disk, WAIT_UNUSED_MS))
    drop (disk);
  else
    disk_unref (disk);
}

bool
added_disk_add (json_t *args, GError **error)
{
  G_GNUC_UNUSED g_autoptr (Transaction) t = transaction_new ();
  const char *name = qmp_get_str (args, "node-name");
  const char *driver, *path = find_path (args, &driver, error);
  Disk *disk;

  if (path == NULL || !check_name (name, error) ||
      !check_export_name (name, error) || !check_count (error))
    return false;
  disk = fleece_open_disk (plugin.fleece, name, path,
                           plugin.params->granularity, error);
  if (disk == NULL)
    return false;
  if (!check_driver (disk, driver, error) ||
      !backup_table_accept_disk (plugin.backups, disk, error) ||
      !store_change (name, path, error)) {
    drop (disk);
    return false;
  }
  if (!show (disk, error)) {
    store_change (name, NULL, NULL);
    withdraw (disk);
    return false;
  }
  layer_node_sync (disk);
  disk_tell_state (disk);
  disk_unref (disk);
  return true;
}

/* --- blockdev-del --- */

/* Bitmaps of other disks that say what changed on this one. */
static bool
check_bitmaps (Disk *disk, GError **error)
{
  int64_t row = epoch_log_disk_id (disk_epoch_log (disk));
  g_autofree char *bitmap = NULL, *of = NULL;

  if (!named_bitmap_find_user (plugin.catalog, row, &bitmap, &of, error))
    return false;
  if (bitmap == NULL)
    return true;
  command_set_error (error, "Node %s is in use by bitmap '%.1100s' of disk "
                     "'%s', into which changes of it were merged",
                     disk_name (disk), bitmap, of);
  return false;
}

static bool
check_unused (Disk *disk, GError **error)
{
  const char *name = disk_name (disk);
  g_autofree char *backup = backup_table_uses_disk (plugin.backups, disk);
  g_autofree char *export = added_export_uses_disk (disk);
  g_autofree char *job = job_find_of_disk (name);
  g_autofree char *node = snapshot_node_uses_disk (disk);
  g_autofree char *restore = restore_uses_disk (disk);
  g_autoptr (GPtrArray) chain = disk_chain (disk);
  const OverlayInfo *top = chain->pdata[0];
  unsigned clients = export_nr_disk_handles (disk);

  if (backup != NULL)
    command_set_error (error, "Node %s is in use by backup '%s'", name,
                       backup);
  else if (job != NULL)
    command_set_error (error, "Node %s is in use by job '%s'", name, job);
  else if (restore != NULL)
    command_set_error (error, "Node %s is in use by restore '%s'", name,
                       restore);
  else if (node != NULL)
    command_set_error (error, "Node %s is in use by node '%s'", name, node);
  else if (chain->len > 1)
    command_set_error (error, "Node %s is in use: its image alone is not what "
                       "the disk is, as layer '%s' is on it", name,
                       top->name != NULL ? top->name : "(unnamed)");
  else if (export != NULL)
    command_set_error (error, "Node %s is in use by export '%s'", name,
                       export);
  else if (clients > 0)
    command_set_error (error, "Node %s is in use by %u client%s", name,
                       clients, clients == 1 ? "" : "s");
  else
    return check_bitmaps (disk, error);
  return false;
}

static bool
wait_unused (Disk *disk, GError **error)
{
  if (fleece_wait_unused (plugin.fleece, disk, WAIT_UNUSED_MS))
    return true;
  command_set_error (error, "Node %s is in use by a job or a command",
                     disk_name (disk));
  return false;
}

/* Twice: before, so that a disk that is used does not vanish for a moment, and
 * when nobody can find it any more. */
static bool
hide_unused (Disk *disk, GError **error)
{
  if (!check_unused (disk, error) || !wait_unused (disk, error))
    return false;
  fleece_hide_disk (plugin.fleece, disk);
  if (check_unused (disk, error) && wait_unused (disk, error))
    return true;
  fleece_show_disk (plugin.fleece, disk);
  return false;
}

bool
added_disk_delete (const char *name, bool *out_found, GError **error)
{
  G_GNUC_UNUSED g_autoptr (Transaction) t = transaction_new ();
  g_autoptr (Disk) disk = fleece_find_disk (plugin.fleece, name);

  *out_found = disk != NULL;
  if (disk == NULL)
    return false;
  if (is_given (name) || !is_stored (name)) {
    command_set_error (error, "Node %s is not owned by the monitor: it was "
                       "given by disk= or config=", name);
    return false;
  }
  if (!hide_unused (disk, error))
    return false;
  if (!store_change (name, NULL, error)) {
    fleece_show_disk (plugin.fleece, disk);
    return false;
  }
  forget_transient (disk);
  layer_node_forget (disk);
  drop (g_steal_pointer (&disk));
  return true;
}
