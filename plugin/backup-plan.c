/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "plugin/backup-plan.h"
#include "plugin/commands.h"
#include "plugin/plugin.h"

void
backup_plan_free (BackupPlan *plan)
{
  if (plan == NULL)
    return;
  for (guint i = 0; plan->cuts != NULL && i < plan->cuts->len; i++)
    snapshot_unref (g_array_index (plan->cuts, FleeceCutDisk, i).out_snapshot);
  g_clear_pointer (&plan->cuts, g_array_unref);
  g_clear_pointer (&plan->checkpoint_disks, g_ptr_array_unref);
  g_clear_pointer (&plan->strings, g_ptr_array_unref);
  checkpoint_free (plan->checkpoint);
  backup_unref (plan->backup);
  g_free (plan);
}

/* The map of one disk: from since's boundary. */
static bool
plan_increment (BackupDisk *bd, const char *since, const char *bitmap,
                GError **error)
{
  g_autoptr (Checkpoint) ckpt =
    checkpoint_lookup (plugin.catalog, since, NULL);
  g_autoptr (ChangeSet) set = NULL;
  const CheckpointDisk *cd;
  bool damaged = false;

  if (ckpt == NULL) {
    command_set_error (error, "Checkpoint '%.200s' for incremental backup of "
                       "disk '%s' not found", since, bd->disk_name);
    return false;
  }
  /* There is no silent fall-back to "everything": try the record now. */
  cd = checkpoint_find_disk (ckpt, bd->disk_name);
  if (cd != NULL)
    set = epoch_log_changed (disk_epoch_log (bd->disk), cd->boundary, 0,
                             &damaged, NULL);
  if (set == NULL || damaged) {
    command_set_error (error, "missing or broken bitmap '%.200s' for disk "
                       "'%s'", since, bd->disk_name);
    return false;
  }
  if (bitmap != NULL && !name_check_bitmap ("exportbitmap", bitmap, error))
    return false;
  bd->since = g_strdup (since);
  bd->since_boundary = cd->boundary;
  bd->bitmap = g_strdup (bitmap != NULL ? bitmap : since);
  return true;
}

static bool
check_export_name (const char *name, GError **error)
{
  g_autoptr (Disk) disk = NULL;

  if (!name_check_bitmap ("exportname", name, error))
    return false;
  if (strstr (name, ",since=") != NULL) {
    command_set_error (error, "exportname '%.200s' contains ',since=', which "
                       "chooses a map", name);
    return false;
  }
  disk = fleece_find_disk (plugin.fleece, name);
  if (disk != NULL) {
    command_set_error (error, "NBD server already has export named '%.200s'",
                       name);
    return false;
  }
  return true;
}

/* path, folder: resolved. */
static bool
is_inside (const char *path, const char *folder)
{
  char *resolved = realpath (folder, NULL);
  size_t len = resolved != NULL ? strlen (resolved) : 0;
  bool inside = len > 0 && strncmp (path, resolved, len) == 0 &&
    path[len] == '/';

  free (resolved);
  return inside;
}

/* A file that is there, to be lent to us: its path without symbolic links, the
 * caller's to free; else NULL. */
static char *
find_reused (const char *path, const char *disk, GError **error)
{
  char *real = realpath (path, NULL);
  struct stat st;

  if (real == NULL || stat (real, &st) < 0)
    command_set_error (error, "'reuse-external': scratch file '%s' of disk "
                       "'%s': %s", path, disk, g_strerror (errno));
  else if (!S_ISREG (st.st_mode))
    command_set_error (error, "'reuse-external': scratch file '%s' of disk "
                       "'%s' is not a regular file", path, disk);
  else if (access (real, R_OK | W_OK) < 0)
    command_set_error (error, "'reuse-external': scratch file '%s' of disk "
                       "'%s' cannot be written: %s", path, disk,
                       g_strerror (errno));
  else if (is_inside (real, plugin.params->state) &&
           !is_inside (real, plugin.params->scratch))
    command_set_error (error, "'reuse-external': scratch file '%s' of disk "
                       "'%s' is one of the server's own", path, disk);
  else
    return real;
  free (real);
  return NULL;
}

/* item: one of "disks", or NULL. */
static bool
plan_scratch (BackupPlan *plan, FleeceCutDisk *cut, json_t *item,
              GError **error)
{
  json_t *scratch = json_object_get (item, "scratch");
  const char *file = qmp_get_str (scratch, "file");
  char *path;

  cut->scratch_limit = qmp_get_int (scratch, "limit", 0);
  if (file == NULL && cut->scratch_keep) {
    command_set_error (error, "'reuse-external' needs 'scratch' with 'file' "
                       "of disk '%s'", disk_name (cut->disk));
    return false;
  }
  if (file == NULL)
    return true;
  if (file[0] == '\0') {
    command_set_error (error, "scratch file of disk '%s' has an empty name",
                       disk_name (cut->disk));
    return false;
  }
  path = g_path_is_absolute (file) ? g_strdup (file)
    : g_build_filename (plugin.params->scratch, file, NULL);
  g_ptr_array_add (plan->strings, path);
  if (cut->scratch_keep) {
    char *real = find_reused (path, disk_name (cut->disk), error);

    if (real == NULL)
      return false;
    cut->scratch_file = g_strdup (real);
    g_ptr_array_add (plan->strings, (char *) cut->scratch_file);
    free (real);
    return true;
  }
  if (access (path, F_OK) == 0) {
    command_set_error (error, "scratch file '%s' of disk '%s' exists", path,
                       disk_name (cut->disk));
    return false;
  }
  cut->scratch_file = path;
  return true;
}

/* Where a push goes to; of a pull there must be none. */
static bool
plan_target (BackupDisk *bd, json_t *item, GError **error)
{
  const char *target = qmp_get_str (item, "target");
  const Backup *backup = bd->backup;

  if (backup->push && target == NULL)
    command_set_error (error, "disk '%s': mode 'push' needs 'target', the node "
                       "to copy to", bd->disk_name);
  else if (!backup->push && target != NULL)
    command_set_error (error, "disk '%s': 'target' is for mode 'push'",
                       bd->disk_name);
  else if (backup->push && (qmp_get_str (item, "exportname") != NULL ||
                            qmp_get_str (item, "exportbitmap") != NULL))
    command_set_error (error, "disk '%s': 'exportname' and 'exportbitmap' are "
                       "for mode 'pull'", bd->disk_name);
  else {
    bd->target = g_strdup (target);
    if (backup->push)
      bd->job = g_strdup_printf ("backup-%s-%s", backup->id, bd->disk_name);
    return true;
  }
  return false;
}

static bool
plan_disk (BackupPlan *plan, Disk *disk, json_t *args, json_t *item,
           GError **error)
{
  const char *since = qmp_get_str (item, "incremental");
  const char *mode = qmp_get_str (item, "backupmode");
  const char *export = qmp_get_str (item, "exportname");
  const char *bitmap = qmp_get_str (item, "exportbitmap");
  const char *on_error = qmp_get_str (args, "on-cbw-error");
  g_autofree char *own = NULL;
  FleeceCutDisk cut = { .disk = disk, .snapshot = plan->backup->id };
  BackupDisk *bd;
  bool full = mode != NULL && strcmp (mode, "full") == 0;

  if (full && since != NULL) {
    command_set_error (error, "disk '%s': 'incremental' contradicts "
                       "backupmode 'full'", disk_name (disk));
    return false;
  }
  if (!full && since == NULL)
    since = qmp_get_str (args, "incremental");
  if (mode != NULL && !full && since == NULL) {
    command_set_error (error, "disk '%s': backupmode 'incremental' needs "
                       "'incremental', the checkpoint to start from",
                       disk_name (disk));
    return false;
  }
  if (since == NULL && bitmap != NULL) {
    command_set_error (error, "disk '%s': 'exportbitmap' needs "
                       "'incremental'", disk_name (disk));
    return false;
  }
  if (export == NULL)
    export = own = g_strconcat (disk_name (disk), "@", plan->backup->id, NULL);
  else if (!check_export_name (export, error))
    return false;

  bd = backup_add_disk (plan->backup, disk, disk_name (disk), export);
  if (!plan_target (bd, item, error) ||
      (since != NULL && !plan_increment (bd, since, bitmap, error)))
    return false;
  if (on_error != NULL && strcmp (on_error, "break-guest-write") == 0)
    cut.on_error = FLEECE_BREAK_GUEST_WRITE;
  cut.cbw_timeout = qmp_get_int (args, "cbw-timeout", FLEECE_CBW_TIMEOUT);
  cut.durable = qmp_get_bool (args, "durable", false);
  cut.scratch_keep = qmp_get_bool (args, "reuse-external", false);
  if (!plan_scratch (plan, &cut, item, error))
    return false;
  g_array_append_val (plan->cuts, cut);
  return true;
}

static bool
plan_disks (BackupPlan *plan, json_t *args, GError **error)
{
  json_t *list = json_object_get (args, "disks");
  g_autoptr (DiskTable) all = fleece_disks (plugin.fleece);
  g_autoptr (GHashTable) seen = g_hash_table_new (NULL, NULL);
  size_t i;
  json_t *item;

  for (i = 0; list == NULL && i < all->len; i++)
    if (!plan_disk (plan, all->disk[i], args, NULL, error))
      return false;
  json_array_foreach (list, i, item) {
    g_autoptr (Disk) disk = command_find_disk (qmp_get_str (item, "disk"),
                                               error);

    if (disk == NULL)
      return false;
    if (!g_hash_table_add (seen, disk)) {
      command_set_error (error, "disk '%s' is named twice", disk_name (disk));
      return false;
    }
    if (qmp_get_bool (item, "backup", true) &&
        !plan_disk (plan, disk, args, item, error))
      return false;
  }
  if (plan->cuts->len == 0) {
    command_set_error (error, "no disk selected for the backup");
    return false;
  }
  return true;
}

/* The new checkpoint covers the disks of the backup unless it says otherwise;
 * what it covers beyond them takes part in the cut, without a snapshot. */
static bool
plan_checkpoint_disks (BackupPlan *plan, json_t *spec, GError **error)
{
  g_autoptr (GPtrArray) backed_up = g_ptr_array_new ();
  guint nr = plan->cuts->len;

  for (guint i = 0; i < nr; i++)
    g_ptr_array_add (backed_up,
                     g_array_index (plan->cuts, FleeceCutDisk, i).disk);
  plan->checkpoint_disks =
    command_checkpoint_disks (json_object_get (spec, "disks"),
                              (Disk *const *) backed_up->pdata, nr, error);
  if (plan->checkpoint_disks == NULL)
    return false;
  for (size_t i = 0; i < plan->checkpoint_disks->len; i++) {
    FleeceCutDisk cut = { .disk = plan->checkpoint_disks->pdata[i] };

    if (!g_ptr_array_find (backed_up, cut.disk, NULL))
      g_array_append_val (plan->cuts, cut);
  }
  return true;
}

static bool
plan_lease (Backup *backup, json_t *args, GError **error)
{
  int64_t seconds = qmp_get_int (args, "lease", 0);

  if (seconds > 0 && backup->push) {
    command_set_error (error, "'lease' is for mode 'pull': a push ends by "
                       "itself");
    return false;
  }
  atomic_store (&backup->lease, (unsigned) seconds);
  return true;
}

BackupPlan *
backup_plan_new (json_t *args, GError **error)
{
  g_autoptr (BackupPlan) plan = g_new0 (BackupPlan, 1);
  json_t *spec = json_object_get (args, "checkpoint");
  int64_t now = g_get_real_time () / G_USEC_PER_SEC;
  const char *id = qmp_get_str (args, "id");
  const char *mode = qmp_get_str (args, "mode");
  g_autofree char *time_id = g_strdup_printf ("%" G_GINT64_FORMAT, now);

  plan->cuts = g_array_new (FALSE, TRUE, sizeof (FleeceCutDisk));
  plan->strings = g_ptr_array_new_with_free_func (g_free);
  if (spec != NULL) {
    plan->checkpoint =
      command_new_checkpoint (qmp_get_str (spec, "name"),
                              qmp_get_str (spec, "description"), now, error);
    if (plan->checkpoint == NULL)
      return NULL;
  }
  if (id == NULL)
    id = plan->checkpoint != NULL ? plan->checkpoint->name : time_id;
  if (!name_check_id ("backup id", id, error))
    return NULL;
  plan->backup = backup_new (id, plan->checkpoint != NULL ?
                             plan->checkpoint->name : NULL, now);
  plan->backup->push = mode != NULL && strcmp (mode, "push") == 0;
  if (!plan_lease (plan->backup, args, error) ||
      !plan_disks (plan, args, error))
    return NULL;
  if (spec != NULL && !plan_checkpoint_disks (plan, spec, error))
    return NULL;
  return g_steal_pointer (&plan);
}
