/* SPDX-License-Identifier: BSD-3-Clause */
/* The end of a transaction: one cut, and all rows in the cut's own transaction
 * of the catalog. */
#include <config.h>

#include <stdatomic.h>
#include <string.h>

#include "plugin/commands.h"
#include "plugin/job-backup.h"
#include "plugin/layer-node.h"
#include "plugin/plugin.h"
#include "plugin/transaction-internal.h"

/* --- snapshots */

/* A name that no backup's snapshot has. */
#define JOB_SNAPSHOT "..job"

/* Jobs that were interrupted have theirs from before. */
static char *
new_snapshot_name (Disk *disk)
{
  static atomic_uint last;

  for (;;) {
    g_autofree char *name = g_strdup_printf (JOB_SNAPSHOT "%u",
                                             atomic_fetch_add (&last, 1));
    g_autoptr (Snapshot) snap = disk_find_snapshot (disk, name);

    if (snap == NULL)
      return g_steal_pointer (&name);
  }
}

/* A snapshot of each disk that a job reads; of all its jobs here. */
static void
ask_for_snapshots (Transaction *t, GPtrArray *names)
{
  for (guint c = 0; c < t->cuts->len; c++) {
    FleeceCutDisk *cut = &g_array_index (t->cuts, FleeceCutDisk, c);

    for (guint i = 0; i < t->jobs->len; i++)
      if (g_array_index (t->jobs, PendingJob, i).disk == cut->disk &&
          cut->snapshot == NULL) {
        char *name = new_snapshot_name (cut->disk);

        g_ptr_array_add (names, name);
        cut->snapshot = name;
      }
  }
}

/* Parts of their own, behind those that transaction_cut and jobs know. */
static void
add_backup_cuts (Transaction *t)
{
  for (guint b = 0; b < t->created->len; b++) {
    PendingCreate *pending = t->created->pdata[b];
    GArray *cuts;

    if (pending->begin == NULL)
      continue;
    cuts = backup_begin_cuts (pending->begin);
    pending->first_cut = t->cuts->len;
    g_array_append_vals (t->cuts, cuts->data,
                         backup_begin_backup (pending->begin)->disks->len);
  }
}

/* After the cut.  All of them, even if one fails; the first error is
 * reported. */
static bool
finish_backups (Transaction *t, GError **error)
{
  bool ok = true;

  for (guint b = 0; b < t->created->len; b++) {
    const PendingCreate *pending = t->created->pdata[b];
    GArray *cuts;
    guint nr;

    if (pending->begin == NULL)
      continue;
    cuts = backup_begin_cuts (pending->begin);
    nr = backup_begin_backup (pending->begin)->disks->len;
    for (guint i = 0; i < nr; i++)
      g_array_index (cuts, FleeceCutDisk, i).out_snapshot =
        g_steal_pointer (&g_array_index (t->cuts, FleeceCutDisk,
                                         pending->first_cut + i).out_snapshot);
    ok &= backup_begin_finish (pending->begin, ok ? error : NULL);
  }
  return ok;
}

/* Nothing can fail any more but a thread that cannot be made. */
static bool
start_jobs (Transaction *t, GError **error)
{
  bool ok = true;

  for (guint c = 0; c < t->cuts->len; c++) {
    FleeceCutDisk *cut = &g_array_index (t->cuts, FleeceCutDisk, c);
    JobSnapshot *shared;

    if (cut->out_snapshot == NULL)
      continue;
    shared = job_snapshot_new (g_steal_pointer (&cut->out_snapshot));
    for (guint i = 0; i < t->jobs->len; i++) {
      const PendingJob *pending = &g_array_index (t->jobs, PendingJob, i);

      if (pending->disk == cut->disk)
        backup_job_set_snapshot (pending->job, shared);
    }
    job_snapshot_unref (shared);
  }
  t->done = true;
  for (guint i = 0; i < t->jobs->len; i++) {
    Job *job = g_array_index (t->jobs, PendingJob, i).job;

    if (!ok || !job_start (job, error)) {
      job_abandon (job);
      ok = false;
    }
  }
  return ok;
}

/* --- rows */

static const FleeceCutDisk *
find_cut (const Transaction *t, const Disk *disk)
{
  for (guint i = 0; i < t->cuts->len; i++) {
    const FleeceCutDisk *cut = &g_array_index (t->cuts, FleeceCutDisk, i);

    if (cut->disk == disk)
      return cut;
  }
  return NULL;
}

static bool
create_checkpoint (Transaction *t, PendingCreate *pending, GError **error)
{
  for (guint i = 0; i < pending->disks->len; i++) {
    Disk *disk = pending->disks->pdata[i];

    checkpoint_add_disk (pending->ckpt, disk_name (disk), pending->ckpt->name,
                         find_cut (t, disk)->boundary);
  }
  return checkpoint_insert (plugin.catalog, pending->ckpt, error);
}

/* Cuts are known now. */
static void
resolve (const Transaction *t, NamedBitmap *bm)
{
  for (guint c = 0; c < t->cuts->len; c++) {
    const FleeceCutDisk *cut = &g_array_index (t->cuts, FleeceCutDisk, c);

    named_bitmap_resolve (bm, disk_row (cut->disk), cut->boundary);
  }
}

/* The cut has let the snapshots keep what the catalog had. */
static bool
keep_seen (const Transaction *t, const PendingCreate *pending, GError **error)
{
  const char *id = backup_begin_backup (pending->begin)->id;

  for (guint i = 0; i < pending->seen->len; i++) {
    const Edit *edit = pending->seen->pdata[i];
    g_autoptr (Snapshot) snap = disk_find_snapshot (edit->disk, id);

    resolve (t, edit->bm);
    named_bitmap_end_at (edit->bm, find_cut (t, edit->disk)->boundary);
    if (!named_bitmap_keep (plugin.catalog, snapshot_id (snap), edit->bm->name,
                            edit->removed ? NULL : edit->bm, error))
      return false;
  }
  return true;
}

/* Before anything is deleted. */
static bool
prepare_backups (Transaction *t, GError **error)
{
  for (guint b = 0; b < t->created->len; b++) {
    PendingCreate *pending = t->created->pdata[b];
    GArray *cuts;

    if (pending->begin == NULL)
      continue;
    cuts = backup_begin_cuts (pending->begin);
    for (guint i = 0; i < cuts->len; i++) {
      FleeceCutDisk *cut = &g_array_index (cuts, FleeceCutDisk, i);

      cut->boundary = find_cut (t, cut->disk)->boundary;
    }
    if (!backup_begin_check (pending->begin, error) ||
        !keep_seen (t, pending, error))
      return false;
  }
  return true;
}

static bool
create_rows (Transaction *t, GError **error)
{
  for (guint i = 0; i < t->created->len; i++) {
    PendingCreate *pending = t->created->pdata[i];

    if (!(pending->begin != NULL ? backup_begin_store (pending->begin, error)
          : create_checkpoint (t, pending, error)))
      return false;
  }
  return true;
}

static bool
delete_checkpoints (PendingDelete *pending, GError **error)
{
  if (!checkpoint_delete (plugin.catalog, pending->name, pending->how,
                          &pending->deleted, error))
    return false;
  /* A backup that has failed deletes its own, without a transaction. */
  for (guint i = 0; i < pending->kept->len; i++)
    if (!g_ptr_array_find_with_equal_func (pending->deleted,
                                           pending->kept->pdata[i],
                                           g_str_equal, NULL)) {
      command_set_error (error, "checkpoint '%s' not found",
                         (const char *) pending->kept->pdata[i]);
      return false;
    }
  return true;
}

/* They outlive the server.  Not a group with one that does not: those end
 * together. */
static bool
store_jobs (Transaction *t, GError **error)
{
  const PendingJob *pending = (const PendingJob *) t->jobs->data;
  bool all = true;

  for (guint i = 0; i < t->jobs->len; i++)
    all &= pending[i].resumable;
  for (guint i = 0; i < t->jobs->len; i++) {
    const Job *first = t->group != NULL ? pending->job : pending[i].job;
    const char *snapshot = pending[i].disk == NULL ? NULL
      : find_cut (t, pending[i].disk)->snapshot;

    if ((t->group != NULL ? all : pending[i].resumable) &&
        !backup_job_store (pending[i].job, snapshot, job_id (first), error))
      return false;
  }
  return true;
}

/* In the cut's transaction.  What goes makes room for names that come. */
static bool
write_rows (void *opaque, GError **error)
{
  Transaction *t = opaque;

  if (!prepare_backups (t, error))
    return false;
  for (guint i = 0; i < t->deleted->len; i++)
    if (!delete_checkpoints (t->deleted->pdata[i], error))
      return false;
  for (guint i = 0; i < t->edits->len; i++) {
    const Edit *edit = t->edits->pdata[i];

    if (edit->removed && edit->bm->id != 0 &&
        !named_bitmap_delete (plugin.catalog, edit->bm->id, error))
      return false;
  }
  for (guint i = 0; i < t->edits->len; i++) {
    Edit *edit = t->edits->pdata[i];

    if (edit->removed || !edit->changed)
      continue;
    resolve (t, edit->bm);
    if (!named_bitmap_put (plugin.catalog, edit->bm, error))
      return false;
  }
  return create_rows (t, error) && store_jobs (t, error);
}

static bool
write_without_cut (Transaction *t, GError **error)
{
  if (!catalog_begin (plugin.catalog, error))
    return false;
  if (!write_rows (t, error)) {
    catalog_rollback (plugin.catalog);
    return false;
  }
  return catalog_commit (plugin.catalog, error);
}

static void
collect_cuts_of (Transaction *t, const DiskTable *disks, const Edit *edit)
{
  if (edit->removed || !edit->changed)
    return;
  for (guint d = 0; d < disks->len; d++) {
    Disk *disk = disks->disk[d];

    if (named_bitmap_needs_cut (edit->bm, disk_row (disk)))
      transaction_cut (t, disk, disk == edit->disk && edit->bm->recording ?
                       edit->bm->granularity : 0);
  }
}

/* Every disk whose cut a bitmap waits for. */
static void
collect_cuts (Transaction *t)
{
  g_autoptr (DiskTable) disks = fleece_disks (plugin.fleece);

  for (guint i = 0; i < t->edits->len; i++)
    collect_cuts_of (t, disks, t->edits->pdata[i]);
  for (guint i = 0; i < t->created->len; i++) {
    const PendingCreate *pending = t->created->pdata[i];

    for (guint j = 0; pending->seen != NULL && j < pending->seen->len; j++)
      collect_cuts_of (t, disks, pending->seen->pdata[j]);
  }
}

static void
announce (Transaction *t)
{
  for (guint i = 0; i < t->deleted->len; i++) {
    const PendingDelete *pending = t->deleted->pdata[i];

    for (guint j = 0; j < pending->deleted->len; j++)
      command_checkpoint_event (pending->deleted->pdata[j], "deleted");
  }
  for (guint i = 0; i < t->created->len; i++) {
    const PendingCreate *pending = t->created->pdata[i];

    if (pending->ckpt != NULL)
      command_checkpoint_event (pending->ckpt->name, "created");
  }
}

bool
transaction_commit (Transaction *t, GError **error)
{
  g_autoptr (GPtrArray) names = g_ptr_array_new_with_free_func (g_free);
  bool ok;

  collect_cuts (t);
  ask_for_snapshots (t, names);
  add_backup_cuts (t);
  if (t->cuts->len > 0)
    ok = fleece_cut (plugin.fleece, (FleeceCutDisk *) t->cuts->data,
                     t->cuts->len, write_rows, t, error);
  else
    ok = write_without_cut (t, error);
  if (!ok) {
    keeper_wake (plugin.keeper);        /* a layer may have to go again */
    return false;
  }
  for (guint i = 0; i < t->cuts->len; i++) {
    const FleeceCutDisk *cut = &g_array_index (t->cuts, FleeceCutDisk, i);

    if (cut->overlay != NULL)
      layer_node_sync (cut->disk);
  }
  announce (t);
  ok = finish_backups (t, error);
  ok = start_jobs (t, ok ? error : NULL) && ok;
  command_forget_epochs ();
  keeper_wake (plugin.keeper);
  return ok;
}
