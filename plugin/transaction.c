/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <stdatomic.h>
#include <string.h>

#include "plugin/commands.h"
#include "plugin/job-backup.h"
#include "plugin/job-populate.h"
#include "plugin/plugin.h"
#include "plugin/thread.h"
#include "plugin/transaction.h"

/* A bitmap that the transaction has looked at. */
typedef struct {
  Disk *disk;
  NamedBitmap *bm;
  bool changed, removed;
} Edit;

struct Transaction {
  GPtrArray *edits;             /* of Edit */
  GArray *cuts;                 /* of FleeceCutDisk, no disk twice */
  GPtrArray *created;           /* of PendingCheckpoint */
  GPtrArray *deleted;           /* of PendingDelete */
  GArray *jobs;                 /* of PendingJob */
  JobGroup *group;              /* of all jobs; NULL: each its own */
  bool done;                    /* committed: the jobs run */
};

typedef struct {
  Job *job;
  Disk *disk;                   /* whose cut makes its snapshot; NULL: none */
  bool resumable;
} PendingJob;

typedef struct {
  Checkpoint *ckpt;
  GPtrArray *disks;             /* of Disk, a reference each */
} PendingCheckpoint;

typedef struct {
  char *name;
  CheckpointDelete how;
  bool keep;                    /* their bitmaps */
  GPtrArray *deleted;           /* of char *, what went */
} PendingDelete;

static pthread_mutex_t transaction_lock = PTHREAD_MUTEX_INITIALIZER;

static void
edit_free (gpointer data)
{
  Edit *edit = data;

  named_bitmap_free (edit->bm);
  g_free (edit);
}

static void
pending_checkpoint_free (gpointer data)
{
  PendingCheckpoint *pending = data;

  checkpoint_free (pending->ckpt);
  g_ptr_array_unref (pending->disks);
  g_free (pending);
}

static void
pending_delete_free (gpointer data)
{
  PendingDelete *pending = data;

  g_free (pending->name);
  g_clear_pointer (&pending->deleted, g_ptr_array_unref);
  g_free (pending);
}

Transaction *
transaction_new (void)
{
  Transaction *t;

  pthread_mutex_lock (&transaction_lock);
  t = g_new0 (Transaction, 1);
  t->edits = g_ptr_array_new_with_free_func (edit_free);
  t->cuts = g_array_new (FALSE, TRUE, sizeof (FleeceCutDisk));
  t->created = g_ptr_array_new_with_free_func (pending_checkpoint_free);
  t->deleted = g_ptr_array_new_with_free_func (pending_delete_free);
  t->jobs = g_array_new (FALSE, FALSE, sizeof (PendingJob));
  return t;
}

void
transaction_free (Transaction *t)
{
  if (t == NULL)
    return;
  for (guint i = 0; !t->done && i < t->jobs->len; i++)
    job_abandon (g_array_index (t->jobs, PendingJob, i).job);
  g_array_unref (t->jobs);
  job_group_unref (t->group);
  g_ptr_array_unref (t->edits);
  g_array_unref (t->cuts);
  g_ptr_array_unref (t->created);
  g_ptr_array_unref (t->deleted);
  g_free (t);
  pthread_mutex_unlock (&transaction_lock);
}

const Checkpoint *
transaction_created (const Transaction *t)
{
  const PendingCheckpoint *first = t->created->len > 0 ? t->created->pdata[0]
    : NULL;

  return first != NULL ? first->ckpt : NULL;
}

/* --- what actions see */

static int64_t
disk_row (Disk *disk)
{
  return epoch_log_disk_id (disk_epoch_log (disk));
}

/* NULL without an error: there is none. */
static Edit *
look_up (Transaction *t, Disk *disk, const char *name, GError **error)
{
  NamedBitmap *bm;
  Edit *edit;

  for (guint i = 0; i < t->edits->len; i++) {
    edit = t->edits->pdata[i];
    if (edit->disk == disk && strcmp (edit->bm->name, name) == 0)
      return edit;
  }
  bm = named_bitmap_find (plugin.catalog, disk_row (disk), 0, name, error);
  if (bm == NULL)
    return NULL;
  edit = g_new0 (Edit, 1);
  edit->disk = disk;
  edit->bm = bm;
  g_ptr_array_add (t->edits, edit);
  return edit;
}

static void
set_not_found (GError **error, const char *name)
{
  if (error != NULL && *error == NULL)
    command_set_error (error, "Dirty bitmap '%.1100s' not found", name);
}

/* QEMU's checks; shared: those who share it do not count. */
static Edit *
look_up_usable (Transaction *t, Disk *disk, const char *name,
                bool damaged_too, bool shared, GError **error)
{
  Edit *edit = look_up (t, disk, name, error);

  if (edit == NULL) {
    set_not_found (error, name);
    return NULL;
  }
  if (edit->removed || (shared ? bitmap_is_pinned_alone (edit->bm->id)
                        : bitmap_is_pinned (edit->bm->id))) {
    command_set_error (error, "Bitmap '%.1100s' is currently in use by "
                       "another operation and cannot be used", name);
    return NULL;
  }
  if (edit->bm->inconsistent && !damaged_too) {
    command_set_error (error, "Bitmap '%.1100s' is inconsistent and cannot be "
                       "used", name);
    return NULL;
  }
  return edit;
}

NamedBitmap *
transaction_edit (Transaction *t, Disk *disk, const char *name,
                  bool damaged_too, GError **error)
{
  Edit *edit = look_up_usable (t, disk, name, damaged_too, false, error);

  if (edit == NULL)
    return NULL;
  edit->changed = true;
  return edit->bm;
}

const NamedBitmap *
transaction_share (Transaction *t, Disk *disk, const char *name,
                   GError **error)
{
  const Edit *edit = look_up_usable (t, disk, name, false, true, error);

  return edit != NULL ? edit->bm : NULL;
}

void
transaction_add (Transaction *t, Disk *disk, NamedBitmap *bm)
{
  Edit *edit = g_new0 (Edit, 1);

  edit->disk = disk;
  edit->bm = bm;
  edit->changed = true;
  g_ptr_array_add (t->edits, edit);
}

void
transaction_remove (Transaction *t, Disk *disk, const char *name)
{
  Edit *edit = look_up (t, disk, name, NULL);

  g_assert (edit != NULL);
  edit->removed = true;
}

bool
transaction_has_bitmap (Transaction *t, Disk *disk, const char *name)
{
  return look_up (t, disk, name, NULL) != NULL;
}

bool
transaction_has_name (Transaction *t, Disk *disk, const char *name,
                      bool *out_has, GError **error)
{
  g_autoptr (GError) local = NULL;
  Edit *edit = look_up (t, disk, name, &local);
  uint64_t boundary;

  if (local != NULL) {
    g_propagate_error (error, g_steal_pointer (&local));
    return false;
  }
  *out_has = edit != NULL ||
    checkpoint_boundary (plugin.catalog, disk_name (disk), name, &boundary,
                         NULL);
  return true;
}

/* The changes since a checkpoint, as if it were a bitmap that records. */
static NamedBitmap *
checkpoint_as_bitmap (Disk *disk, const char *name)
{
  uint64_t boundary;
  NamedBitmap *bm;

  if (!checkpoint_boundary (plugin.catalog, disk_name (disk), name, &boundary,
                            NULL))
    return NULL;
  bm = named_bitmap_new (disk_row (disk), name, disk_granularity (disk),
                         disk_size (disk), true);
  named_bitmap_resolve (bm, disk_row (disk), boundary);
  return bm;
}

static NamedBitmap *
snapshot_source (const char *node, const char *name, Disk **out_disk,
                 uint64_t *out_size, GError **error)
{
  g_autoptr (Backup) backup = NULL;
  BackupDisk *bd = backup_table_find_export (plugin.backups, node, &backup);
  NamedBitmap *bm;

  if (bd == NULL || bd->disk == NULL || bd->snapshot == NULL) {
    command_set_error (error, "Node '%.100s' not found", node);
    return NULL;
  }
  bm = named_bitmap_find (plugin.catalog, disk_row (bd->disk),
                          snapshot_id (bd->snapshot), name, error);
  if (bm == NULL) {
    set_not_found (error, name);
    return NULL;
  }
  *out_disk = bd->disk;
  *out_size = snapshot_size (bd->snapshot);
  return bm;
}

NamedBitmap *
transaction_source (Transaction *t, const char *node, const char *name,
                    Disk **out_disk, uint64_t *out_size, GError **error)
{
  g_autoptr (Disk) disk = fleece_find_disk (plugin.fleece, node);
  g_autoptr (GError) local = NULL;
  NamedBitmap *bm;
  Edit *edit;

  if (disk == NULL)
    bm = snapshot_source (node, name, out_disk, out_size, error);
  else {
    *out_disk = disk;
    *out_size = disk_size (disk);
    edit = look_up (t, disk, name, &local);
    if (local != NULL) {
      g_propagate_error (error, g_steal_pointer (&local));
      return NULL;
    }
    if (edit != NULL && edit->removed) {
      command_set_error (error, "Bitmap '%.1100s' is currently in use by "
                         "another operation and cannot be used", name);
      return NULL;
    }
    bm = edit != NULL ? named_bitmap_copy (edit->bm)
      : checkpoint_as_bitmap (disk, name);
    if (bm == NULL)
      set_not_found (error, name);
  }
  if (bm != NULL && bm->inconsistent) {
    command_set_error (error, "Bitmap '%.1100s' is inconsistent and cannot be "
                       "used", name);
    g_clear_pointer (&bm, named_bitmap_free);
  }
  return bm;
}

void
transaction_cut (Transaction *t, Disk *disk, uint32_t granularity)
{
  FleeceCutDisk *cut = NULL;

  for (guint i = 0; i < t->cuts->len && cut == NULL; i++) {
    FleeceCutDisk *c = &g_array_index (t->cuts, FleeceCutDisk, i);

    if (c->disk == disk)
      cut = c;
  }
  if (cut == NULL) {
    g_array_set_size (t->cuts, t->cuts->len + 1);
    cut = &g_array_index (t->cuts, FleeceCutDisk, t->cuts->len - 1);
    cut->disk = disk;
  }
  if (granularity != 0)
    cut->granularity = cut->granularity == 0 ? granularity
      : MIN (cut->granularity, granularity);
}

/* --- checkpoints */

bool
action_checkpoint_create (Transaction *t, json_t *args, GError **error)
{
  g_autoptr (DiskTable) all = fleece_disks (plugin.fleece);
  g_autoptr (GPtrArray) disks =
    command_checkpoint_disks (json_object_get (args, "disks"), all->disk,
                              all->len, error);
  PendingCheckpoint *pending;
  Checkpoint *ckpt;

  if (disks == NULL)
    return false;
  if (!command_refuse_redefine (args, error))
    return false;
  ckpt = command_new_checkpoint (qmp_get_str (args, "name"),
                                 qmp_get_str (args, "description"),
                                 g_get_real_time () / G_USEC_PER_SEC, error);
  if (ckpt == NULL)
    return false;
  for (guint i = 0; i < t->created->len; i++) {
    const PendingCheckpoint *other = t->created->pdata[i];

    if (strcmp (other->ckpt->name, ckpt->name) == 0) {
      command_set_error (error, "a checkpoint or bitmap called '%.1100s' "
                         "exists already", ckpt->name);
      checkpoint_free (ckpt);
      return false;
    }
  }
  for (guint i = 0; i < disks->len; i++)
    transaction_cut (t, disks->pdata[i], 0);
  pending = g_new0 (PendingCheckpoint, 1);
  pending->ckpt = ckpt;
  pending->disks = g_steal_pointer (&disks);
  g_ptr_array_add (t->created, pending);
  return true;
}

bool
action_checkpoint_delete (Transaction *t, json_t *args, GError **error)
{
  const char *name = qmp_get_str (args, "name");
  bool children = qmp_get_bool (args, "children", false);
  bool only = qmp_get_bool (args, "children-only", false);
  g_autoptr (Checkpoint) ckpt = NULL;
  PendingDelete *pending;

  if (children && only) {
    command_set_error (error, "'children' and 'children-only' cannot be "
                       "given at the same time");
    return false;
  }
  ckpt = checkpoint_lookup (plugin.catalog, name, error);
  if (ckpt == NULL)
    return false;
  pending = g_new0 (PendingDelete, 1);
  pending->name = g_strdup (name);
  pending->how = children ? CHECKPOINT_DELETE_TREE
    : only ? CHECKPOINT_DELETE_CHILDREN : CHECKPOINT_DELETE_ONE;
  pending->keep = qmp_get_bool (args, "metadata", false);
  g_ptr_array_add (t->deleted, pending);
  return true;
}

/* --- jobs */

/* A name that no backup's snapshot has. */
#define JOB_SNAPSHOT "..job"

bool
action_backup (Transaction *t, json_t *args, GError **error)
{
  PendingJob pending = { .resumable = true };

  pending.job = backup_job_new (t, args, t->group, &pending.disk, error);
  if (pending.job == NULL)
    return false;
  g_array_append_val (t->jobs, pending);
  if (pending.disk != NULL)
    transaction_cut (t, pending.disk, 0);
  return true;
}

bool
action_populate (Transaction *t, json_t *args, GError **error)
{
  PendingJob pending = { .resumable = false };

  pending.job = populate_job_new (t, args, t->group, error);
  if (pending.job == NULL)
    return false;
  g_array_append_val (t->jobs, pending);
  return true;
}

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

bool
action_abort (Transaction *t, json_t *args, GError **error)
{
  command_set_error (error, "Transaction aborted using Abort action");
  return false;
}

/* --- commit */

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
create_checkpoint (Transaction *t, PendingCheckpoint *pending, GError **error)
{
  for (guint i = 0; i < pending->disks->len; i++) {
    Disk *disk = pending->disks->pdata[i];

    checkpoint_add_disk (pending->ckpt, disk_name (disk), pending->ckpt->name,
                         find_cut (t, disk)->boundary);
  }
  return checkpoint_insert (plugin.catalog, pending->ckpt, error);
}

/* What a checkpoint that has gone told of its disks, as bitmaps of its name. */
static bool
keep_bitmaps (const Checkpoint *ckpt, GError **error)
{
  for (guint i = 0; i < ckpt->disks->len; i++) {
    const CheckpointDisk *cd = ckpt->disks->pdata[i];
    g_autoptr (Disk) disk = fleece_find_disk (plugin.fleece, cd->disk);
    g_autoptr (NamedBitmap) bm = NULL;

    if (disk == NULL) {
      command_set_error (error, "disk '%s' is not served now: its bitmap "
                         "'%.1100s' cannot be kept", cd->disk, cd->bitmap);
      return false;
    }
    bm = named_bitmap_new_since (disk_row (disk), cd->bitmap,
                                 disk_granularity (disk), disk_size (disk),
                                 cd->boundary);
    bm->persistent = true;
    if (!named_bitmap_put (plugin.catalog, bm, error))
      return false;
  }
  return true;
}

static bool
delete_checkpoints (PendingDelete *pending, GError **error)
{
  g_autoptr (GPtrArray) all = checkpoint_list (plugin.catalog, error);

  if (all == NULL ||
      !checkpoint_delete (plugin.catalog, pending->name, pending->how,
                          &pending->deleted, error))
    return false;
  for (guint i = 0; pending->keep && i < all->len; i++) {
    const Checkpoint *ckpt = all->pdata[i];

    if (g_ptr_array_find_with_equal_func (pending->deleted, ckpt->name,
                                          g_str_equal, NULL) &&
        !keep_bitmaps (ckpt, error))
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
    for (guint c = 0; c < t->cuts->len; c++) {
      const FleeceCutDisk *cut = &g_array_index (t->cuts, FleeceCutDisk, c);

      named_bitmap_resolve (edit->bm, disk_row (cut->disk), cut->boundary);
    }
    if (!named_bitmap_put (plugin.catalog, edit->bm, error))
      return false;
  }
  for (guint i = 0; i < t->created->len; i++)
    if (!create_checkpoint (t, t->created->pdata[i], error))
      return false;
  return store_jobs (t, error);
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

/* Every disk whose cut a bitmap waits for. */
static void
collect_cuts (Transaction *t)
{
  g_autoptr (DiskTable) disks = fleece_disks (plugin.fleece);

  for (guint i = 0; i < t->edits->len; i++) {
    const Edit *edit = t->edits->pdata[i];

    if (edit->removed || !edit->changed)
      continue;
    for (guint d = 0; d < disks->len; d++) {
      Disk *disk = disks->disk[d];

      if (named_bitmap_needs_cut (edit->bm, disk_row (disk)))
        transaction_cut (t, disk, disk == edit->disk && edit->bm->recording ?
                         edit->bm->granularity : 0);
    }
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
    const PendingCheckpoint *pending = t->created->pdata[i];

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
  if (t->cuts->len > 0)
    ok = fleece_cut (plugin.fleece, (FleeceCutDisk *) t->cuts->data,
                     t->cuts->len, write_rows, t, error);
  else
    ok = write_without_cut (t, error);
  if (!ok)
    return false;
  announce (t);
  ok = start_jobs (t, error);
  command_forget_epochs ();
  keeper_wake (plugin.keeper);
  return ok;
}

/* --- the command --- */

static const struct {
  const char *type;
  bool (*run) (Transaction *t, json_t *args, GError **error);
} actions[] = {
  { "abort", action_abort },
  { "block-dirty-bitmap-add", action_bitmap_add },
  { "block-dirty-bitmap-clear", action_bitmap_clear },
  { "block-dirty-bitmap-disable", action_bitmap_disable },
  { "block-dirty-bitmap-enable", action_bitmap_enable },
  { "block-dirty-bitmap-merge", action_bitmap_merge },
  { "block-dirty-bitmap-populate", action_populate },
  { "block-dirty-bitmap-remove", action_bitmap_remove },
  { "blockdev-backup", action_backup },
  { "checkpoint-create", action_checkpoint_create },
  { "checkpoint-delete", action_checkpoint_delete },
  { "x-block-dirty-bitmap-populate", action_populate },
};

static bool
run_action (Transaction *t, json_t *action, bool grouped, GError **error)
{
  const char *type = qmp_get_str (action, "type");

  if (grouped && strcmp (type, "blockdev-backup") != 0 &&
      !g_str_has_suffix (type, "block-dirty-bitmap-populate")) {
    command_set_error (error, "Action '%s' does not support Transaction "
                       "property completion-mode = grouped", type);
    return false;
  }
  for (size_t i = 0; i < G_N_ELEMENTS (actions); i++)
    if (strcmp (type, actions[i].type) == 0)
      return actions[i].run (t, json_object_get (action, "data"), error);
  g_assert_not_reached ();      /* checked against the same names */
}

json_t *
command_transaction (struct qmp_session *session, json_t *args, GError **error)
{
  const char *mode = qmp_get_str (json_object_get (args, "properties"),
                                  "completion-mode");
  bool grouped = mode != NULL && strcmp (mode, "grouped") == 0;
  g_autoptr (Transaction) t = transaction_new ();
  json_t *action;
  size_t i;

  if (grouped)
    t->group = job_group_new ();
  json_array_foreach (json_object_get (args, "actions"), i, action)
    if (!run_action (t, action, grouped, error))
      return NULL;
  return transaction_commit (t, error) ? json_object () : NULL;
}
