/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/backup-push.h"
#include "plugin/backup-store.h"
#include "plugin/commands.h"
#include "plugin/job-backup.h"
#include "plugin/plugin.h"

struct BackupPush {
  atomic_uint refs;             /* its jobs that have not ended, and its
                                   maker */
  atomic_bool begun;            /* the cut is through */
  atomic_bool failed;
  atomic_bool suspended;        /* the server stops: nothing has ended */
  Backup *backup;
  GPtrArray *jobs;              /* of Job, borrowed; only before the start */
};

/* The jobs have ended. */
static void
finish (BackupPush *push)
{
  const Backup *backup = push->backup;
  g_autoptr (GError) error = NULL;
  bool checkpoint_gone = false;

  if (atomic_load (&push->failed) &&
      !backup_store_end (plugin.catalog, backup, true, &checkpoint_gone,
                         &error)) {
    nbdkit_error ("warning: backup '%s' has failed, but is forgotten at the "
                  "next start only: %s", backup->id, error->message);
    g_clear_error (&error);
  }
  if (!backup_end_snapshots (backup, &error))
    nbdkit_error ("warning: %s", error->message);
  backup_table_remove (plugin.backups, push->backup);
  if (checkpoint_gone)
    command_checkpoint_event (backup->checkpoint, "deleted");
}

static void
push_unref (BackupPush *push)
{
  if (atomic_fetch_sub (&push->refs, 1) > 1)
    return;
  if (atomic_load (&push->begun) && !atomic_load (&push->suspended))
    finish (push);
  backup_unref (push->backup);
  g_ptr_array_unref (push->jobs);
  g_free (push);
}

/* Of the first job in the group; the others find nothing left to do. */
static bool
push_commit (void *opaque, GError **error)
{
  BackupPush *push = opaque;

  return backup_store_delete (plugin.catalog, push->backup->id, error);
}

static void
push_end (void *opaque, bool ok)
{
  BackupPush *push = opaque;

  if (!ok)
    atomic_store (&push->failed, true);
  push_unref (push);
}

static void
push_suspend (void *opaque)
{
  BackupPush *push = opaque;

  atomic_store (&push->suspended, true);
  push_unref (push);
}

static BackupCopy
make_copy (BackupPush *push, const BackupDisk *bd)
{
  return (BackupCopy) {
    .id = bd->job,
    .disk = bd->disk,
    .since = bd->since_boundary,
    .target = bd->target,
    .backup = push->backup,
    .commit = push_commit,
    .end = push_end,
    .suspend = push_suspend,
    .opaque = push,
    .snap = bd->snapshot,
  };
}

static BackupPush *
push_new (Backup *backup)
{
  BackupPush *push = g_new0 (BackupPush, 1);

  atomic_init (&push->refs, 1);
  push->backup = backup_ref (backup);
  push->jobs = g_ptr_array_new ();
  return push;
}

BackupPush *
backup_push_new (Backup *backup, GError **error)
{
  g_autoptr (BackupPush) push = push_new (backup);
  JobGroup *group = job_group_new ();

  for (guint i = 0; i < backup->disks->len; i++) {
    const BackupDisk *bd = backup->disks->pdata[i];
    BackupCopy copy = make_copy (push, bd);
    Job *job = backup_job_new_copy (&copy, group, error);

    if (job == NULL) {
      job_group_unref (group);
      return NULL;
    }
    atomic_fetch_add (&push->refs, 1);
    g_ptr_array_add (push->jobs, job);
  }
  job_group_unref (group);
  return g_steal_pointer (&push);
}

bool
backup_push_store (BackupPush *push, GError **error)
{
  const char *group = job_id (push->jobs->pdata[0]);

  for (guint i = 0; i < push->jobs->len; i++)
    if (!backup_job_store (push->jobs->pdata[i], push->backup->id, group,
                           error))
      return false;
  return true;
}

bool
backup_push_start (BackupPush *push, GError **error)
{
  g_autoptr (GPtrArray) jobs = push->jobs;
  bool ok = true;

  push->jobs = g_ptr_array_new ();
  atomic_store (&push->begun, true);
  for (guint i = 0; i < jobs->len; i++) {
    const BackupDisk *bd = push->backup->disks->pdata[i];

    backup_job_set_source (jobs->pdata[i], bd->snapshot);
  }
  for (guint i = 0; i < jobs->len; i++)
    if (!ok || !job_start (jobs->pdata[i], error)) {
      job_abandon (jobs->pdata[i]);
      ok = false;
    }
  return ok;
}

void
backup_push_free (BackupPush *push)
{
  if (push == NULL)
    return;
  for (guint i = 0; i < push->jobs->len; i++)
    job_abandon (push->jobs->pdata[i]);
  g_ptr_array_set_size (push->jobs, 0);
  push_unref (push);
}

void
backup_push_cancel (const Backup *backup)
{
  for (guint i = 0; i < backup->disks->len; i++) {
    const BackupDisk *bd = backup->disks->pdata[i];

    job_cancel_wait (bd->job);
  }
}

/* --- at a start --- */

static bool
has_jobs (const GPtrArray *rows, const Backup *backup)
{
  for (guint i = 0; i < rows->len; i++) {
    const JobRow *row = rows->pdata[i];

    if (g_strcmp0 (row->backup, backup->id) == 0)
      return true;
  }
  return false;
}

bool
backup_push_recover (const GPtrArray *rows, GError **error)
{
  g_autoptr (GPtrArray) backups = backup_store_list (plugin.catalog, error);

  if (backups == NULL)
    return false;
  for (guint i = 0; i < backups->len; i++) {
    const Backup *backup = backups->pdata[i];
    bool checkpoint_gone;

    if (!backup->push || has_jobs (rows, backup))
      continue;
    if (!backup_store_end (plugin.catalog, backup, true, &checkpoint_gone,
                           error))
      return false;
    nbdkit_error ("warning: backup '%s' was interrupted: it has failed%s",
                  backup->id, checkpoint_gone ? ", and its checkpoint is "
                  "deleted again" : "");
  }
  return true;
}

BackupPush *
backup_push_restore (Backup *backup)
{
  BackupPush *push = push_new (backup);

  atomic_store (&push->begun, true);
  return push;
}

Job *
backup_push_restore_job (BackupPush *push, const JobRow *row, JobGroup *group,
                         GError **error)
{
  BackupDisk *bd = NULL;
  BackupCopy copy;
  Job *job;

  for (guint i = 0; i < push->backup->disks->len; i++) {
    BackupDisk *other = push->backup->disks->pdata[i];

    if (strcmp (other->disk_name, row->disk_name) == 0)
      bd = other;
  }
  if (bd == NULL) {
    command_set_error (error, "the record of job '%s' is damaged: backup '%s' "
                       "has no disk '%s'", row->id, push->backup->id,
                       row->disk_name);
    return NULL;
  }
  /* Nobody looks at them before the control socket is served. */
  bd->job = g_strdup (row->id);
  bd->target = g_strdup (row->target != NULL ?
                         qmp_get_str (row->target, "node-name") : "");
  copy = make_copy (push, bd);
  job = backup_job_restore (row, group, &copy, NULL, NULL, error);
  if (job != NULL)
    atomic_fetch_add (&push->refs, 1);
  return job;
}
