/* SPDX-License-Identifier: BSD-3-Clause */
/* transaction-checkpoint.c - actions that make and delete checkpoints and begin
 * backups. */
#include <config.h>

#include <string.h>

#include "plugin/commands.h"
#include "plugin/plugin.h"
#include "plugin/transaction-internal.h"

/* The one that is made; NULL: none. */
static const Checkpoint *
checkpoint_of (const PendingCreate *pending)
{
  return pending->begin != NULL ? backup_begin_checkpoint (pending->begin)
    : pending->ckpt;
}

/* ckpt: NULL is fine. */
static bool
check_not_created (const Transaction *t, const Checkpoint *ckpt,
                   GError **error)
{
  for (guint i = 0; ckpt != NULL && i < t->created->len; i++) {
    const Checkpoint *other = checkpoint_of (t->created->pdata[i]);

    if (other != NULL && strcmp (other->name, ckpt->name) == 0) {
      command_set_error (error, "a checkpoint or bitmap called '%.1100s' "
                         "exists already", ckpt->name);
      return false;
    }
  }
  return true;
}

bool
action_checkpoint_create (Transaction *t, json_t *args, GError **error)
{
  g_autoptr (DiskTable) all = fleece_disks (plugin.fleece);
  g_autoptr (GPtrArray) disks =
    command_checkpoint_disks (json_object_get (args, "disks"), all->disk,
                              all->len, error);
  g_autoptr (Checkpoint) ckpt = NULL;
  PendingCreate *pending;

  if (disks == NULL)
    return false;
  if (!command_refuse_redefine (args, error))
    return false;
  ckpt = command_new_checkpoint (qmp_get_str (args, "name"),
                                 qmp_get_str (args, "description"),
                                 g_get_real_time () / G_USEC_PER_SEC, error);
  if (ckpt == NULL || !check_not_created (t, ckpt, error))
    return false;
  for (guint i = 0; i < disks->len; i++)
    transaction_cut (t, disks->pdata[i], 0);
  pending = g_new0 (PendingCreate, 1);
  pending->ckpt = g_steal_pointer (&ckpt);
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

/* --- backups */

/* Does an earlier action delete it? */
static bool
is_going (const Transaction *t, const char *name)
{
  g_autoptr (Checkpoint) ckpt =
    checkpoint_lookup (plugin.catalog, name, NULL);
  bool itself = true;

  while (ckpt != NULL) {
    Checkpoint *parent;

    for (guint i = 0; i < t->deleted->len; i++) {
      const PendingDelete *pending = t->deleted->pdata[i];

      if (strcmp (pending->name, ckpt->name) == 0 &&
          pending->how != (itself ? CHECKPOINT_DELETE_CHILDREN
                           : CHECKPOINT_DELETE_ONE))
        return true;
    }
    itself = false;
    parent = ckpt->parent == NULL ? NULL
      : checkpoint_lookup (plugin.catalog, ckpt->parent, NULL);
    checkpoint_free (ckpt);
    ckpt = parent;
  }
  return false;
}

static bool
check_increments (const Transaction *t, const Backup *backup, GError **error)
{
  for (guint i = 0; t->deleted->len > 0 && i < backup->disks->len; i++) {
    const BackupDisk *bd = backup->disks->pdata[i];

    if (bd->since != NULL && is_going (t, bd->since)) {
      command_set_error (error, "Checkpoint '%.200s' for incremental backup of "
                         "disk '%s' not found", bd->since, bd->disk_name);
      return false;
    }
  }
  return true;
}

/* What the catalog does not have yet, but the snapshot is to show. */
static GPtrArray *
changed_bitmaps (const Transaction *t, const Backup *backup)
{
  GPtrArray *seen = g_ptr_array_new_with_free_func (transaction_edit_free);

  for (guint i = 0; i < t->edits->len; i++) {
    const Edit *edit = t->edits->pdata[i];
    bool shown = false;

    for (guint d = 0; d < backup->disks->len; d++)
      shown |= ((BackupDisk *) backup->disks->pdata[d])->disk == edit->disk;
    if (shown && (edit->changed || edit->removed)) {
      Edit *copy = g_new0 (Edit, 1);

      *copy = *edit;
      copy->bm = named_bitmap_copy (edit->bm);
      g_ptr_array_add (seen, copy);
    }
  }
  return seen;
}

bool
action_backup_begin (Transaction *t, json_t *args, GError **error)
{
  g_autoptr (BackupBegin) begin = backup_begin_new (args, error);
  PendingCreate *pending;
  const GArray *cuts;

  if (begin == NULL ||
      !check_not_created (t, backup_begin_checkpoint (begin), error) ||
      !check_increments (t, backup_begin_backup (begin), error))
    return false;
  cuts = backup_begin_cuts (begin);
  for (guint i = 0; i < cuts->len; i++)
    transaction_cut (t, g_array_index (cuts, FleeceCutDisk, i).disk, 0);
  pending = g_new0 (PendingCreate, 1);
  pending->seen = changed_bitmaps (t, backup_begin_backup (begin));
  pending->begin = g_steal_pointer (&begin);
  g_ptr_array_add (t->created, pending);
  return true;
}
