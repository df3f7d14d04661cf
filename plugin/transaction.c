/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <string.h>

#include "plugin/commands.h"
#include "plugin/job-backup.h"
#include "plugin/job-populate.h"
#include "plugin/layer-node.h"
#include "plugin/plugin.h"
#include "plugin/thread.h"
#include "plugin/transaction-internal.h"

static pthread_mutex_t transaction_lock = PTHREAD_MUTEX_INITIALIZER;

void
transaction_edit_free (gpointer data)
{
  Edit *edit = data;

  named_bitmap_free (edit->bm);
  g_free (edit);
}

static void
pending_create_free (gpointer data)
{
  PendingCreate *pending = data;

  checkpoint_free (pending->ckpt);
  g_clear_pointer (&pending->disks, g_ptr_array_unref);
  backup_begin_free (pending->begin);
  g_clear_pointer (&pending->seen, g_ptr_array_unref);
  g_free (pending);
}

static void
pending_delete_free (gpointer data)
{
  PendingDelete *pending = data;

  g_free (pending->name);
  g_ptr_array_unref (pending->kept);
  g_clear_pointer (&pending->deleted, g_ptr_array_unref);
  g_free (pending);
}

Transaction *
transaction_new (void)
{
  Transaction *t;

  pthread_mutex_lock (&transaction_lock);
  t = g_new0 (Transaction, 1);
  t->edits = g_ptr_array_new_with_free_func (transaction_edit_free);
  t->cuts = g_array_new (FALSE, TRUE, sizeof (FleeceCutDisk));
  t->created = g_ptr_array_new_with_free_func (pending_create_free);
  t->deleted = g_ptr_array_new_with_free_func (pending_delete_free);
  t->going = g_hash_table_new_full (g_str_hash, g_str_equal, g_free, NULL);
  t->jobs = g_array_new (FALSE, FALSE, sizeof (PendingJob));
  t->layers = g_ptr_array_new_with_free_func (g_free);
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
  g_ptr_array_unref (t->layers);
  job_group_unref (t->group);
  g_ptr_array_unref (t->edits);
  g_array_unref (t->cuts);
  g_ptr_array_unref (t->created);
  g_ptr_array_unref (t->deleted);
  g_hash_table_unref (t->going);
  g_free (t);
  pthread_mutex_unlock (&transaction_lock);
}

const Checkpoint *
transaction_created (const Transaction *t)
{
  const PendingCreate *first = t->created->len > 0 ? t->created->pdata[0]
    : NULL;

  return first != NULL ? first->ckpt : NULL;
}

/* --- what actions see */

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
  *out_has = edit != NULL || transaction_boundary (t, disk, name, &boundary);
  return true;
}

/* The changes since a checkpoint, as if it were a bitmap that records. */
static NamedBitmap *
checkpoint_as_bitmap (const Transaction *t, Disk *disk, const char *name)
{
  uint64_t boundary;
  NamedBitmap *bm;

  if (!transaction_boundary (t, disk, name, &boundary))
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
  BackupDisk *bd = command_find_snapshot (node, &backup);
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
      : checkpoint_as_bitmap (t, disk, name);
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

FleeceCutDisk *
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
  return cut;
}

/* --- jobs */

bool
action_backup (Transaction *t, json_t *args, GError **error)
{
  PendingJob pending = { 0 };

  pending.job = backup_job_new (t, args, t->group, &pending.disk, error);
  if (pending.job == NULL)
    return false;
  pending.resumable = backup_job_is_resumable (pending.job);
  g_array_append_val (t->jobs, pending);
  if (pending.disk != NULL)
    transaction_cut (t, pending.disk, 0);
  return true;
}

/* Is it the layer that guests write to? */
static bool
check_active (Disk *disk, const char *node, const char *layer, GError **error)
{
  g_autoptr (GPtrArray) chain = disk_chain (disk);
  g_autofree char *above = NULL;
  int i = layer_index (chain, layer);

  if (i <= 0)
    return true;
  above = layer_node_name (disk, chain->pdata[i - 1]);
  command_set_error (error, "Node '%.100s' is busy: node is used as backing hd "
                     "of '%s'", node, above);
  return false;
}

bool
action_snapshot (Transaction *t, json_t *args, GError **error)
{
  const char *node = qmp_get_str (args, "node");
  const char *overlay = qmp_get_str (args, "overlay");
  g_autofree char *layer = NULL, *path = NULL;
  g_autoptr (Disk) disk = layer_node_find (node, &layer);
  FleeceCutDisk *cut;

  if (disk == NULL) {
    command_set_error (error, "Cannot find device='%.100s' nor "
                       "node-name='%.100s'", node, node);
    return false;
  }
  if (!layer_node_check_new (overlay, &path, error) ||
      !check_active (disk, node, layer, error))
    return false;
  for (guint i = 0; i < t->cuts->len; i++) {
    const FleeceCutDisk *other = &g_array_index (t->cuts, FleeceCutDisk, i);

    if (other->overlay != NULL && strcmp (other->overlay, overlay) == 0) {
      command_set_error (error, "The overlay already has a backing image");
      return false;
    }
    if (other->overlay != NULL && other->disk == disk) {
      command_set_error (error, "Node '%.100s' is busy: node is used as "
                         "backing hd of '%s'", node, other->overlay);
      return false;
    }
  }
  cut = transaction_cut (t, disk, 0);
  cut->overlay = g_strdup (overlay);
  g_ptr_array_add (t->layers, (char *) cut->overlay);
  cut->overlay_keep = path != NULL;
  cut->overlay_file = g_steal_pointer (&path);
  g_ptr_array_add (t->layers, (char *) cut->overlay_file);
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

bool
action_abort (Transaction *t, json_t *args, GError **error)
{
  command_set_error (error, "Transaction aborted using Abort action");
  return false;
}

/* --- the command --- */

static const struct {
  const char *type;
  bool (*run) (Transaction *t, json_t *args, GError **error);
} actions[] = {
  { "abort", action_abort },
  { "backup-begin", action_backup_begin },
  { "block-dirty-bitmap-add", action_bitmap_add },
  { "block-dirty-bitmap-clear", action_bitmap_clear },
  { "block-dirty-bitmap-disable", action_bitmap_disable },
  { "block-dirty-bitmap-enable", action_bitmap_enable },
  { "block-dirty-bitmap-merge", action_bitmap_merge },
  { "block-dirty-bitmap-populate", action_populate },
  { "block-dirty-bitmap-remove", action_bitmap_remove },
  { "blockdev-backup", action_backup },
  { "blockdev-snapshot", action_snapshot },
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
