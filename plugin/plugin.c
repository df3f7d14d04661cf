/* SPDX-License-Identifier: BSD-3-Clause */
/* plugin.c - nbdkit's callbacks, in the order in which nbdkit calls them, and
 * the one place where errors become nbdkit's.
 *
 * What a user can get wrong fails in get_ready, while there is a terminal to
 * tell it: the images, the state directory, the control socket.  SQLite and
 * threads do not survive a fork, so they wait for after_fork.
 */
#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "bitmap/named-bitmap.h"
#include "plugin/added-disks.h"
#include "plugin/commands.h"
#include "plugin/exports.h"
#include "plugin/io-error.h"
#include "plugin/job-restore.h"
#include "plugin/job.h"
#include "plugin/layer-node.h"
#include "plugin/lease.h"
#include "plugin/nbd-server.h"
#include "plugin/objects.h"
#include "plugin/node.h"
#include "plugin/plugin.h"
#include "plugin/restore.h"
#include "plugin/snapshot-node.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

Plugin plugin;

/* What the symbol METACONTEXT_SYMBOL names. */
NBDKIT_DLL_PUBLIC extern const struct metacontext_plugin *
nbdkit_metacontext_init (int api_version, const struct metacontext_host *host);

/* Always -1. */
static int
report (GError *error)
{
  nbdkit_error ("%s", error->message);
  g_error_free (error);
  return -1;
}

/* Of a request: 0 or -errno to nbdkit's convention.  That a backup has ended,
 * or that its snapshot broke, has been logged already, and EOPNOTSUPP is an
 * answer, not a failure: clients that go on asking shall not fill the log. */
static int
request_result (const Handle *handle, const char *what, int r)
{
  if (r == 0)
    return 0;
  if (handle->backup == NULL && r != -EOPNOTSUPP && r != -ESHUTDOWN)
    nbdkit_error ("disk '%s': %s: %s", disk_name (handle->disk), what,
                  strerror (-r));
  else
    nbdkit_debug ("disk '%s': %s: %s", disk_name (handle->disk), what,
                  strerror (-r));
  nbdkit_set_error (-r);
  errno = -r;
  return -1;
}

/* Of a request that a guest's own would be: a failure is told to control
 * clients, unless what it asks for is not there (any more) or cannot be done by
 * anybody. */
static int
guest_result (const Handle *handle, const char *what, uint64_t length,
              uint64_t offset, int r)
{
  if (r < 0 && handle->bd == NULL && handle->rd == NULL &&
      r != -EOPNOTSUPP && r != -ESHUTDOWN && r != -EPERM &&
      offset + length <= disk_size (handle->disk))
    io_error_note (handle->disk, strcmp (what, "read") == 0, -r);
  return request_result (handle, what, r);
}

/* --- set-up --- */

const struct metacontext_plugin *
nbdkit_metacontext_init (int api_version, const struct metacontext_host *host)
{
  /* What .list and .extents call has been there from the first version. */
  if (api_version < METACONTEXT_API_VERSION ||
      host->size < offsetof (struct metacontext_host, extent_add) +
      sizeof host->extent_add)
    return NULL;
  plugin.host = host;
  return &contexts_table;
}

static void
fleece_plugin_load (void)
{
  plugin.params = params_new ();
  plugin.keeper = keeper_new ();
  plugin.backups = backup_table_new ();
}

static void
fleece_plugin_unload (void)
{
  control_free (plugin.control);
  backup_table_free (plugin.backups);
  fleece_free (plugin.fleece);
  catalog_free (plugin.catalog);
  keeper_free (plugin.keeper);
  added_disks_free ();
  io_error_free ();
  params_free (plugin.params);
}

static int
fleece_plugin_config (const char *key, const char *value)
{
  GError *error = NULL;

  return params_set (plugin.params, key, value, &error) ? 0 : report (error);
}

static int
fleece_plugin_config_complete (void)
{
  GError *error = NULL;

  return params_finish (plugin.params, &error) ? 0 : report (error);
}

static void
fleece_plugin_dump_plugin (void)
{
  printf ("fleece_control=qmp\n");
  printf ("fleece_metacontext_api_version=%d\n", METACONTEXT_API_VERSION);
  printf ("fleece_min_granularity=%u\n", GRANULARITY_MIN);
  printf ("fleece_max_granularity=%u\n", GRANULARITY_MAX);
}

/* Those that an earlier run added come when the catalog is open. */
static bool
add_disks (GError **error)
{
  const Params *params = plugin.params;

  for (size_t i = 0; i < params->disks->len; i++) {
    const ParamsDisk *disk = params->disks->pdata[i];

    if (!disk->added &&
        fleece_add_disk (plugin.fleece, disk->name, disk->path,
                         params->granularity, error) == NULL)
      return false;
  }
  return true;
}

/* The control socket stays open while the server replaces itself: clients that
 * connect meanwhile wait, and need not try again. */
#define CONTROL_FILE "control"

static bool
host_has_files (void)
{
  return plugin.host != NULL &&
    plugin.host->size >= offsetof (struct metacontext_host, file_take) +
    sizeof plugin.host->file_take;
}

static int
take_control_socket (void)
{
  return host_has_files () ? plugin.host->file_take (CONTROL_FILE) : -1;
}

static bool
keep_control_socket (void)
{
  return host_has_files () &&
    plugin.host->file_keep (CONTROL_FILE, control_fd (plugin.control)) == 0;
}

/* Exports and objects that were added are left to the next image as the
 * commands that made them; the server leaves the listener. */
#define EXPORTS_FILE "exports"

static void
keep_exports (void)
{
  g_autoptr (json_t) saved = added_export_save ();
  g_autoptr (json_t) objects = object_save ();
  g_autoptr (json_t) all = NULL;
  int fd;

  if (saved == NULL && objects == NULL && nbd_server_listener () == 0)
    return;
  all = json_pack ("{s:o*, s:o*, s:I}", "exports", json_incref (saved),
                   "objects", json_incref (objects), "listener",
                   (json_int_t) nbd_server_listener ());
  fd = memfd_create (EXPORTS_FILE, MFD_CLOEXEC);
  if (fd == -1)
    return;
  if (json_dumpfd (all, fd, 0) == 0 && lseek (fd, 0, SEEK_SET) == 0 &&
      plugin.host->file_keep (EXPORTS_FILE, fd) == 0)
    return;
  nbdkit_error ("warning: exports that were added are not kept: %s",
                strerror (errno));
  close (fd);
}

/* Always true: what cannot be there again is told. */
static bool
restore_exports (void)
{
  int fd = host_has_files () ? plugin.host->file_take (EXPORTS_FILE) : -1;
  g_autoptr (json_t) saved = NULL;

  if (fd != -1) {
    saved = json_loadfd (fd, 0, NULL);
    close (fd);
    added_export_restore (json_object_get (saved, "exports"));
    object_restore (json_object_get (saved, "objects"));
    nbd_server_set_listener (qmp_get_int (saved, "listener", 0));
  }
  return true;
}

static void
stop_control (void)
{
  bool kept = keep_control_socket ();

  if (kept)
    control_event (plugin.control, "SERVER_REEXEC", NULL);
  else
    added_export_delete_all ();         /* clients are told of each */
  control_stop (plugin.control);
  if (kept) {
    keep_exports ();
    control_forget_socket (plugin.control);
  }
  added_export_delete_all ();
  object_delete_all ();
}

static int
fleece_plugin_get_ready (void)
{
  const Params *params = plugin.params;
  FleeceOptions options = {
    .scratch_dir = params->scratch,
    .runtime_dir = params->runtime,
    .drain_timeout_ms = params->drain_timeout_ms,
    .epochs = params->epochs,
    .scratch_reserve_set = params->scratch_reserve_set,
    .scratch_reserve = params->scratch_reserve,
    .notify = keeper_notify,
    .notify_opaque = plugin.keeper,
  };
  GError *error = NULL;

  plugin.catalog = catalog_new (params->state, &error);
  if (plugin.catalog == NULL ||
      !added_disks_load (plugin.params, &error))
    return report (error);
  plugin.fleece = fleece_new (&options, &error);
  if (plugin.fleece == NULL || !add_disks (&error))
    return report (error);
  keeper_flush (plugin.keeper);

  /* Last: a socket file must not stay behind when something above fails. */
  if (params->control != NULL) {
    int fd = take_control_socket ();

    plugin.resumed = fd != -1;
    plugin.control = control_new (params->control, fd, &error);
    if (plugin.control == NULL)
      return report (error);
  }
  return 0;
}

static void
tell_recovery (const char *disk, const EpochOpenReport *report)
{
  switch (report->recovery) {
  case EPOCHS_NONE_LOST:
  case EPOCHS_EXACT:
    nbdkit_debug ("disk '%s': %s; tracking goes on exactly", disk,
                  report->reason);
    break;
  case EPOCHS_BOUNDED:
    nbdkit_error ("warning: disk '%s': %s; up to %" G_GUINT64_FORMAT
                  " bytes more than what changed count as changed", disk,
                  report->reason, report->over_reported);
    break;
  case EPOCHS_ALL_DIRTY:
    nbdkit_error ("warning: disk '%s': everything counts as changed since "
                  "every checkpoint: %s", disk, report->reason);
    break;
  }
  if (report->bad_sectors > 0) {
    g_autofree char *text =
      g_strdup_printf ("%u sectors of its maps in the state directory were "
                       "damaged; all that they stand for counts as changed",
                       report->bad_sectors);

    keeper_notify (plugin.keeper, FLEECE_NOTE_TRACKING, disk, NULL, text, 0);
  }
}

void
disk_tell_state (Disk *disk)
{
  const EpochOpenReport *report = epoch_log_report (disk_epoch_log (disk));

  if (report->created && report->reason != NULL)
    nbdkit_error ("warning: disk '%s': tracking begins anew, no checkpoint of "
                  "it is known: %s", disk_name (disk), report->reason);
  else if (report->created)
    nbdkit_debug ("disk '%s': new: tracking begins", disk_name (disk));
  else if (report->clean)
    nbdkit_debug ("disk '%s': tracking goes on", disk_name (disk));
  else
    tell_recovery (disk_name (disk), report);
}

/* Always true: what cannot be named is told. */
static bool
name_layers (void)
{
  g_autoptr (DiskTable) disks = fleece_disks (plugin.fleece);

  for (size_t i = 0; i < disks->len; i++)
    layer_node_sync (disks->disk[i]);
  return true;
}

static void
tell_state_of_disks (void)
{
  g_autoptr (DiskTable) disks = fleece_disks (plugin.fleece);

  for (size_t i = 0; i < disks->len; i++)
    disk_tell_state (disks->disk[i]);
}

static void
tell_lost_backups (void)
{
  g_autoptr (GPtrArray) backups = backup_table_list (plugin.backups);

  for (size_t i = 0; i < backups->len; i++) {
    const Backup *backup = backups->pdata[i];

    for (size_t j = 0; j < backup->disks->len; j++) {
      const BackupDisk *bd = backup->disks->pdata[j];

      if (bd->disk == NULL)
        nbdkit_error ("warning: backup '%s': its disk '%s' is not served",
                      backup->id, bd->disk_name);
      else if (backup_disk_state (bd) == SNAPSHOT_LOST)
        nbdkit_error ("warning: backup '%s': its snapshot of disk '%s' is "
                      "lost: end the backup and begin another",
                      backup->id, bd->disk_name);
    }
  }
}

/* Each layer is an open file, and those of ended snapshots stay while an older
 * snapshot reads through them: the usual 1024 are soon used up.  Nothing here
 * uses select, which is what that limit protects. */
static void
raise_file_limit (void)
{
  struct rlimit limit;

  if (getrlimit (RLIMIT_NOFILE, &limit) == -1)
    return;
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit (RLIMIT_NOFILE, &limit) == -1)
    nbdkit_debug ("cannot raise the limit of open files: %s",
                  strerror (errno));
}

static int
fleece_plugin_after_fork (void)
{
  GError *error = NULL;

  raise_file_limit ();
  if (catalog_open (plugin.catalog, &error) && added_disks_open (&error) &&
      (plugin.resumed ||
       job_restore_bitmaps (&error)) &&
      fleece_start (plugin.fleece, plugin.catalog, &error) &&
      name_layers () && job_restore_all (&error) &&
      restore_load (&error) &&
      keeper_start (plugin.keeper, plugin.fleece, &error) &&
      restore_exports () &&
      (plugin.control == NULL ||
       control_start (plugin.control, commands_table, &error)) &&
      lease_start (&error)) {
    tell_state_of_disks ();
    tell_lost_backups ();
    return 0;
  }
  /* The server ends now, perhaps without .cleanup and .unload. */
  lease_stop ();
  node_stop ();
  job_stop_all ();
  keeper_stop (plugin.keeper);
  if (plugin.control != NULL)
    control_stop (plugin.control);
  g_clear_pointer (&plugin.control, control_free);
  return report (error);
}

static void
fleece_plugin_cleanup (void)
{
  GError *error = NULL;

  node_stop ();                 /* a command may be waiting for one */
  /* No command finds half of all this gone, or begins a job after the last. */
  control_drain (plugin.control);
  /* While clients can still be told. */
  lease_stop ();
  job_stop_all ();
  if (plugin.control != NULL)
    stop_control ();
  snapshot_node_stop ();
  restore_free_all ();
  layer_node_free_all ();
  node_free_all ();
  keeper_stop (plugin.keeper);  /* it works on the disks */
  if (!fleece_stop (plugin.fleece, &error))
    report (error);
  keeper_flush (plugin.keeper);
}

/* --- exports --- */

static int
add_export (struct nbdkit_exports *exports, const char *name, char *description)
{
  int r = nbdkit_add_export (exports, name, description);

  g_free (description);
  return r;
}

static bool
add_added_export (void *opaque, const char *name, const char *description)
{
  return nbdkit_add_export (opaque, name, description) == 0;
}

static int
fleece_plugin_list_exports (int readonly, int is_tls,
                            struct nbdkit_exports *exports)
{
  g_autoptr (DiskTable) disks = fleece_disks (plugin.fleece);
  g_autoptr (GPtrArray) backups = backup_table_list (plugin.backups);

  for (size_t i = 0; i < disks->len; i++)
    if (add_export (exports, disk_name (disks->disk[i]),
                    export_describe_disk (disks->disk[i])) == -1)
      return -1;
  for (size_t i = 0; i < backups->len; i++) {
    const Backup *backup = backups->pdata[i];

    if (backup->push)
      continue;
    for (size_t j = 0; j < backup->disks->len; j++) {
      const BackupDisk *bd = backup->disks->pdata[j];

      /* One that cannot be opened is not offered. */
      if (bd->disk != NULL && bd->snapshot != NULL &&
          add_export (exports, bd->export,
                      export_describe_snapshot (bd)) == -1)
        return -1;
    }
  }
  return added_export_foreach (add_added_export, exports) &&
    restore_foreach_export (add_added_export, exports) ? 0 : -1;
}

static const char *
fleece_plugin_default_export (int readonly, int is_tls)
{
  g_autoptr (DiskTable) disks = fleece_disks (plugin.fleece);

  /* The disk may go before the answer does.  nbdkit_strdup_intern would take
   * memory for every client that asks. */
  return disks->len == 1 ? g_intern_string (disk_name (disks->disk[0])) : "";
}

static void *
fleece_plugin_open (int readonly)
{
  const char *name = nbdkit_export_name ();
  GError *error = NULL;
  Handle *handle;

  if (name == NULL)             /* nbdkit has reported it */
    return NULL;
  handle = export_open (name, &error);
  if (handle == NULL) {
    report (error);
    nbdkit_set_error (ENOENT);
    errno = ENOENT;
  }
  return handle;
}

static void
fleece_plugin_close (void *handle)
{
  export_close (handle);
}

static const char *
fleece_plugin_export_description (void *opaque)
{
  const Handle *handle = opaque;
  g_autofree char *text = handle->added != NULL
    ? g_strdup (added_export_description (handle->added))
    : handle->rd != NULL ? restore_describe (handle->rd)
    : handle->bd == NULL
    ? export_describe_disk (handle->disk)
    : export_describe_snapshot (handle->bd);

  return nbdkit_strdup_intern (text);
}

static int64_t
fleece_plugin_get_size (void *opaque)
{
  const Handle *handle = opaque;

  return handle->bd == NULL ? disk_size (handle->disk)
    : snapshot_size (handle->bd->snapshot);
}

static int
is_writable (void *opaque)
{
  const Handle *handle = opaque;

  return handle->bd == NULL &&
    (handle->added == NULL || added_export_is_writable (handle->added));
}

/* 0, or why a call that writes is not let through, whatever the server lets
 * through. */
static int
check_write (Handle *handle)
{
  if (!is_writable (handle))
    return -EPERM;
  return handle_check (handle);
}

static bool
wants_fua (const Handle *handle, uint32_t flags)
{
  return (flags & NBDKIT_FLAG_FUA) != 0 ||
    (handle->added != NULL && added_export_is_writethrough (handle->added));
}

static int
always (void *handle)
{
  return 1;
}

static int
fleece_plugin_can_fua (void *handle)
{
  return is_writable (handle) ? NBDKIT_FUA_NATIVE : NBDKIT_FUA_NONE;
}

/* Of a snapshot part may come from the base, part from layers: reading it is
 * the way to get it into memory. */
static int
fleece_plugin_can_cache (void *opaque)
{
  const Handle *handle = opaque;

  return handle->bd == NULL && handle->rd == NULL ? NBDKIT_CACHE_NATIVE
    : NBDKIT_CACHE_EMULATE;
}

static int
fleece_plugin_block_size (void *handle, uint32_t *minimum,
                          uint32_t *preferred, uint32_t *maximum)
{
  *minimum = 1;
  *preferred = 4096;            /* what copy-before-write works in */
  *maximum = 32 * 1024 * 1024;
  return 0;
}

/* --- requests --- */

static int
fleece_plugin_pread (void *opaque, void *buf, uint32_t count, uint64_t offset,
                     uint32_t flags)
{
  Handle *handle = opaque;
  int r;

  if (handle->added != NULL && added_export_is_gone (handle->added))
    r = -ESHUTDOWN;
  else if (handle->rd != NULL)
    r = overlay_pread (handle->rd->overlay, buf, count, offset);
  else if (handle->bd == NULL)
    r = disk_pread (handle->disk, buf, count, offset);
  else if (atomic_load (&handle->backup->ended))
    r = -ESHUTDOWN;
  else {
    r = backup_disk_check_kept (handle->bd, count, offset);
    if (r == 0)
      r = snapshot_pread (handle->bd->snapshot, buf, count, offset);
  }
  if (handle->bd != NULL && r == 0)
    atomic_fetch_add_explicit (&handle->bd->served->bytes_read, count,
                               memory_order_relaxed);
  return guest_result (handle, "read", count, offset, r);
}

static int
fleece_plugin_pwrite (void *opaque, const void *buf, uint32_t count,
                      uint64_t offset, uint32_t flags)
{
  Handle *handle = opaque;
  int r = check_write (handle);

  if (r == 0 && handle->rd != NULL)
    r = overlay_pwrite (handle->rd->overlay, buf, count, offset,
                        wants_fua (handle, flags));
  else if (r == 0)
    r = disk_pwrite (handle->disk, buf, count, offset,
                     wants_fua (handle, flags));
  return guest_result (handle, "write", count, offset, r);
}

static int
fleece_plugin_zero (void *opaque, uint32_t count, uint64_t offset,
                    uint32_t flags)
{
  Handle *handle = opaque;
  unsigned how = 0;
  int r = check_write (handle);

  if (wants_fua (handle, flags))
    how |= DISK_FUA;
  if (flags & NBDKIT_FLAG_MAY_TRIM)
    how |= DISK_MAY_PUNCH;
  if (flags & NBDKIT_FLAG_FAST_ZERO)
    how |= DISK_FAST;
  if (r == 0)
    r = handle->rd != NULL
      ? overlay_zero (handle->rd->overlay, count, offset, how)
      : disk_zero (handle->disk, count, offset, how);
  return guest_result (handle, "write zeroes", count, offset, r);
}

static int
fleece_plugin_trim (void *opaque, uint32_t count, uint64_t offset,
                    uint32_t flags)
{
  Handle *handle = opaque;
  int r = check_write (handle);

  if (r == 0 && handle->rd != NULL)
    r = overlay_trim (handle->rd->overlay, count, offset,
                      wants_fua (handle, flags));
  else if (r == 0)
    r = disk_trim (handle->disk, count, offset, wants_fua (handle, flags));
  return guest_result (handle, "trim", count, offset, r);
}

static int
fleece_plugin_flush (void *opaque, uint32_t flags)
{
  Handle *handle = opaque;

  /* A snapshot has nothing to flush. */
  return guest_result (handle, "flush", 0, 0, handle->rd != NULL ?
                       overlay_flush (handle->rd->overlay)
                       : handle->bd == NULL ? disk_flush (handle->disk)
                       : handle_check (handle));
}

static int
fleece_plugin_cache (void *opaque, uint32_t count, uint64_t offset,
                     uint32_t flags)
{
  Handle *handle = opaque;

  return request_result (handle, "cache",
                         handle->bd == NULL && handle->rd == NULL ?
                         disk_cache (handle->disk, count, offset)
                         : handle_check (handle));
}

static int
fleece_plugin_extents (void *opaque, uint32_t count, uint64_t offset,
                       uint32_t flags, struct nbdkit_extents *extents)
{
  return request_result (opaque, "block status",
                         contexts_allocation (opaque, count, offset,
                                              flags & NBDKIT_FLAG_REQ_ONE,
                                              extents));
}

/* What NBDKIT_REGISTER_PLUGIN defines and nbdkit's headers do not declare. */
struct nbdkit_plugin *plugin_init (void);

static struct nbdkit_plugin nbdkit_fleece_plugin = {
  .name = "fleece",
  .longname = "nbdfleece: live disks with snapshots and changed blocks",
  .version = PACKAGE_VERSION,
  .load = fleece_plugin_load,
  .unload = fleece_plugin_unload,
  .config = fleece_plugin_config,
  .config_complete = fleece_plugin_config_complete,
  .config_help = params_help,
  .magic_config_key = "disk",
  .dump_plugin = fleece_plugin_dump_plugin,
  .get_ready = fleece_plugin_get_ready,
  .after_fork = fleece_plugin_after_fork,
  .cleanup = fleece_plugin_cleanup,
  .list_exports = fleece_plugin_list_exports,
  .default_export = fleece_plugin_default_export,
  .open = fleece_plugin_open,
  .close = fleece_plugin_close,
  .export_description = fleece_plugin_export_description,
  .get_size = fleece_plugin_get_size,
  .can_write = is_writable,
  .can_flush = always,
  .can_trim = is_writable,
  .can_zero = is_writable,
  .can_fast_zero = is_writable,
  .can_fua = fleece_plugin_can_fua,
  .can_cache = fleece_plugin_can_cache,
  .can_multi_conn = always,
  .can_extents = always,
  .block_size = fleece_plugin_block_size,
  .pread = fleece_plugin_pread,
  .pwrite = fleece_plugin_pwrite,
  .flush = fleece_plugin_flush,
  .trim = fleece_plugin_trim,
  .zero = fleece_plugin_zero,
  .cache = fleece_plugin_cache,
  .extents = fleece_plugin_extents,
  .errno_is_preserved = 1,
};

NBDKIT_REGISTER_PLUGIN (nbdkit_fleece_plugin)
