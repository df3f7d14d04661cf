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

/* Does an earlier action delete it? */
static bool
is_going (const Transaction *t, const char *name)
{
  return g_hash_table_contains (t->going, name);
}

/* Of a name that is not a checkpoint's but its bitmap's on a disk: the
 * checkpoint's. */
static bool
is_bitmap_going (const Transaction *t, const Disk *disk, const char *name)
{
  g_autoptr (GPtrArray) all = checkpoint_list (plugin.catalog, NULL);
  bool going = true;

  for (guint i = 0; all != NULL && i < all->len; i++) {
    const Checkpoint *ckpt = all->pdata[i];
    const CheckpointDisk *cd = checkpoint_find_disk (ckpt, disk_name (disk));

    if (cd != NULL && (strcmp (ckpt->name, name) == 0 ||
                       strcmp (cd->bitmap, name) == 0))
      going &= is_going (t, ckpt->name);
  }
  return going;
}

bool
transaction_boundary (const Transaction *t, Disk *disk, const char *name,
                      uint64_t *out_boundary)
{
  return checkpoint_boundary (plugin.catalog, disk_name (disk), name,
                              out_boundary, NULL) &&
    (g_hash_table_size (t->going) == 0 || !is_bitmap_going (t, disk, name));
}

/* Is its name, as the actions so far have left it?  ckpt: NULL is fine. */
static bool
check_name_free (const Transaction *t, const Checkpoint *ckpt, GError **error)
{
  bool taken = false;

  if (ckpt == NULL)
    return true;
  if (!checkpoint_name_free (plugin.catalog, ckpt->name, t->going, error))
    return false;
  for (guint i = 0; i < t->created->len; i++) {
    const Checkpoint *other = checkpoint_of (t->created->pdata[i]);

    taken |= other != NULL && strcmp (other->name, ckpt->name) == 0;
  }
  for (guint i = 0; i < t->edits->len; i++) {
    const Edit *edit = t->edits->pdata[i];

    taken |= edit->bm->id == 0 && !edit->removed &&
      strcmp (edit->bm->name, ckpt->name) == 0;
  }
  if (taken)
    command_set_error (error, "a checkpoint or bitmap called '%.1100s' "
                       "exists already", ckpt->name);
  return !taken;
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
  if (ckpt == NULL || !check_name_free (t, ckpt, error))
    return false;
  for (guint i = 0; i < disks->len; i++)
    transaction_cut (t, disks->pdata[i], 0);
  pending = g_new0 (PendingCreate, 1);
  pending->ckpt = g_steal_pointer (&ckpt);
  pending->disks = g_steal_pointer (&disks);
  g_ptr_array_add (t->created, pending);
  return true;
}

/* What a checkpoint told of its disks, as bitmaps that later actions see. */
static bool
keep_bitmaps (Transaction *t, const Checkpoint *ckpt, GError **error)
{
  for (guint i = 0; i < ckpt->disks->len; i++) {
    const CheckpointDisk *cd = ckpt->disks->pdata[i];
    g_autoptr (Disk) disk = fleece_find_disk (plugin.fleece, cd->disk);
    NamedBitmap *bm;

    if (disk == NULL) {
      command_set_error (error, "disk '%s' is not served now: its bitmap "
                         "'%.1100s' cannot be kept", cd->disk, cd->bitmap);
      return false;
    }
    bm = named_bitmap_new_since (disk_row (disk), cd->bitmap,
                                 disk_granularity (disk), disk_size (disk),
                                 cd->boundary);
    bm->persistent = true;
    transaction_add (t, disk, bm);
  }
  return true;
}

/* all: in the catalog, parents first. */
static bool
let_go (Transaction *t, const PendingDelete *pending, const GPtrArray *all,
        bool keep, GError **error)
{
  g_autoptr (GHashTable) below = g_hash_table_new (g_str_hash, g_str_equal);

  for (guint i = 0; i < all->len; i++) {
    const Checkpoint *ckpt = all->pdata[i];
    bool itself = strcmp (ckpt->name, pending->name) == 0;
    bool is_below = ckpt->parent != NULL &&
      (strcmp (ckpt->parent, pending->name) == 0 ||
       g_hash_table_contains (below, ckpt->parent));

    if (is_below)
      g_hash_table_add (below, ckpt->name);
    if ((itself && pending->how != CHECKPOINT_DELETE_CHILDREN) ||
        (is_below && pending->how != CHECKPOINT_DELETE_ONE)) {
      if (!g_hash_table_add (t->going, g_strdup (ckpt->name)) || !keep)
        continue;
      g_ptr_array_add (pending->kept, g_strdup (ckpt->name));
      if (!keep_bitmaps (t, ckpt, error))
        return false;
    }
  }
  return true;
}

bool
action_checkpoint_delete (Transaction *t, json_t *args, GError **error)
{
  const char *name = qmp_get_str (args, "name");
  bool children = qmp_get_bool (args, "children", false);
  bool only = qmp_get_bool (args, "children-only", false);
  g_autoptr (Checkpoint) ckpt = NULL;
  g_autoptr (GPtrArray) all = NULL;
  PendingDelete *pending;

  if (children && only) {
    command_set_error (error, "'children' and 'children-only' cannot be "
                       "given at the same time");
    return false;
  }
  ckpt = checkpoint_lookup (plugin.catalog, name, error);
  if (ckpt == NULL)
    return false;
  if (is_going (t, name)) {
    command_set_error (error, "checkpoint '%s' not found", name);
    return false;
  }
  all = checkpoint_list (plugin.catalog, error);
  if (all == NULL)
    return false;
  pending = g_new0 (PendingDelete, 1);
  pending->name = g_strdup (name);
  pending->how = children ? CHECKPOINT_DELETE_TREE
    : only ? CHECKPOINT_DELETE_CHILDREN : CHECKPOINT_DELETE_ONE;
  pending->kept = g_ptr_array_new_with_free_func (g_free);
  g_ptr_array_add (t->deleted, pending);
  return let_go (t, pending, all, qmp_get_bool (args, "metadata", false),
                 error);
}

/* --- backups */

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
      !check_name_free (t, backup_begin_checkpoint (begin), error) ||
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
