/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <errno.h>
#include <string.h>

#include "bitmap/bitmap-error.h"
#include "plugin/backup.h"
#include "plugin/backup-store.h"
#include "plugin/thread.h"

/* Where a backup in the table stands. */
typedef enum {
  RESERVED,                     /* names taken, nothing to see yet */
  PUBLISHED,                    /* exports open */
  HIDDEN,                       /* being ended */
} EntryState;

typedef struct {
  Backup *backup;               /* a reference */
  EntryState state;
} Entry;

struct BackupTable {
  pthread_mutex_t lock;
  GPtrArray *entries;           /* of Entry, under lock, oldest first */
};

static void
backup_disk_free (void *opaque)
{
  BackupDisk *bd = opaque;

  change_set_unref (bd->kept);
  snapshot_unref (bd->snapshot);
  disk_unref (bd->disk);
  g_free (bd->disk_name);
  g_free (bd->export);
  g_free (bd->bitmap);
  g_free (bd->since);
  g_free (bd->served);
  g_free (bd->target);
  g_free (bd->job);
  g_free (bd);
}

Backup *
backup_new (const char *id, const char *checkpoint, int64_t created)
{
  Backup *backup = g_new0 (Backup, 1);

  atomic_init (&backup->refs, 1);
  atomic_init (&backup->ended, false);
  atomic_init (&backup->lease, 0);
  atomic_init (&backup->lease_end_ms, 0);
  atomic_init (&backup->lease_used, 0);
  backup->id = g_strdup (id);
  backup->checkpoint = g_strdup (checkpoint);
  backup->created = created;
  backup->disks = g_ptr_array_new_with_free_func (backup_disk_free);
  return backup;
}

BackupDisk *
backup_add_disk (Backup *backup, Disk *disk, const char *disk_name,
                 const char *export)
{
  BackupDisk *bd = g_new0 (BackupDisk, 1);

  bd->backup = backup;
  bd->disk = disk != NULL ? disk_ref (disk) : NULL;
  bd->disk_name = g_strdup (disk_name);
  bd->export = g_strdup (export);
  bd->served = g_new0 (BackupServed, 1);
  g_ptr_array_add (backup->disks, bd);
  return bd;
}

Backup *
backup_ref (Backup *backup)
{
  atomic_fetch_add (&backup->refs, 1);
  return backup;
}

void
backup_unref (Backup *backup)
{
  if (backup == NULL || atomic_fetch_sub (&backup->refs, 1) != 1)
    return;
  g_ptr_array_unref (backup->disks);
  g_free (backup->id);
  g_free (backup->checkpoint);
  g_free (backup);
}

SnapshotState
backup_disk_state (const BackupDisk *bd)
{
  return bd->snapshot != NULL ? snapshot_state (bd->snapshot) : SNAPSHOT_LOST;
}

int
backup_disk_check_kept (const BackupDisk *bd, uint64_t length, uint64_t offset)
{
  while (bd->kept != NULL && length > 0) {
    bool kept;
    uint64_t run = change_set_run (bd->kept, offset, length, &kept);

    if (!kept)
      return -EIO;
    offset += run;
    length -= run;
  }
  return 0;
}

uint64_t
backup_disk_copied (const BackupDisk *bd)
{
  struct disk_stats stats;

  disk_stats (bd->disk, &stats);
  return stats.blocks_copied;
}

/* --- the table --- */

static void
entry_free (void *opaque)
{
  Entry *entry = opaque;

  backup_unref (entry->backup);
  g_free (entry);
}

BackupTable *
backup_table_new (void)
{
  BackupTable *table = g_new0 (BackupTable, 1);

  pthread_mutex_init (&table->lock, NULL);
  table->entries = g_ptr_array_new_with_free_func (entry_free);
  return table;
}

void
backup_table_free (BackupTable *table)
{
  if (table == NULL)
    return;
  g_ptr_array_unref (table->entries);
  pthread_mutex_destroy (&table->lock);
  g_free (table);
}

static Entry *
find_entry_locked (BackupTable *table, const char *id)
{
  for (size_t i = 0; i < table->entries->len; i++) {
    Entry *entry = table->entries->pdata[i];

    if (strcmp (entry->backup->id, id) == 0)
      return entry;
  }
  return NULL;
}

/* state: the one it has to be in, and then it is no push; or -1 for any. */
static BackupDisk *
find_export_locked (BackupTable *table, const char *name, int state)
{
  for (size_t i = 0; i < table->entries->len; i++) {
    const Entry *entry = table->entries->pdata[i];

    if (state != -1 &&
        (entry->state != (EntryState) state || entry->backup->push))
      continue;
    for (size_t j = 0; j < entry->backup->disks->len; j++) {
      BackupDisk *bd = entry->backup->disks->pdata[j];

      if (strcmp (bd->export, name) == 0)
        return bd;
    }
  }
  return NULL;
}

static void
add_entry_locked (BackupTable *table, Backup *backup, EntryState state)
{
  Entry *entry = g_new0 (Entry, 1);

  entry->backup = backup_ref (backup);
  entry->state = state;
  g_ptr_array_add (table->entries, entry);
}

bool
backup_table_reserve (BackupTable *table, Backup *backup, GError **error)
{
  SCOPED_LOCK (&table->lock);

  if (find_entry_locked (table, backup->id) != NULL) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS,
                 "Backup id '%s' is already in use", backup->id);
    return false;
  }
  for (size_t i = 0; i < backup->disks->len; i++) {
    const BackupDisk *bd = backup->disks->pdata[i];
    bool twice = false;

    for (size_t j = 0; j < i; j++) {
      const BackupDisk *other = backup->disks->pdata[j];

      twice |= strcmp (other->export, bd->export) == 0;
    }
    if (twice || find_export_locked (table, bd->export, -1) != NULL) {
      g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS,
                   "NBD server already has export named '%s'", bd->export);
      return false;
    }
  }
  add_entry_locked (table, backup, RESERVED);
  return true;
}

bool
backup_table_has_export (BackupTable *table, const char *name)
{
  SCOPED_LOCK (&table->lock);

  return find_export_locked (table, name, -1) != NULL;
}

static void
set_state (BackupTable *table, Backup *backup, EntryState state)
{
  SCOPED_LOCK (&table->lock);
  Entry *entry = find_entry_locked (table, backup->id);

  g_assert (entry != NULL && entry->backup == backup);
  entry->state = state;
}

void
backup_table_publish (BackupTable *table, Backup *backup)
{
  atomic_store (&backup->ended, false);
  set_state (table, backup, PUBLISHED);
}

void
backup_table_remove (BackupTable *table, Backup *backup)
{
  SCOPED_LOCK (&table->lock);
  Entry *entry = find_entry_locked (table, backup->id);

  g_assert (entry != NULL && entry->backup == backup);
  g_ptr_array_remove (table->entries, entry);
}

bool
backup_table_hide (BackupTable *table, Backup *backup)
{
  SCOPED_LOCK (&table->lock);
  Entry *entry = find_entry_locked (table, backup->id);

  if (entry == NULL || entry->backup != backup || entry->state != PUBLISHED)
    return false;
  entry->state = HIDDEN;
  atomic_store (&backup->ended, true);
  return true;
}

Backup *
backup_table_find (BackupTable *table, const char *id)
{
  SCOPED_LOCK (&table->lock);
  Entry *entry = find_entry_locked (table, id);

  if (entry == NULL || entry->state != PUBLISHED)
    return NULL;
  return backup_ref (entry->backup);
}

GPtrArray *
backup_table_list (BackupTable *table)
{
  GPtrArray *list =
    g_ptr_array_new_with_free_func ((GDestroyNotify) backup_unref);
  SCOPED_LOCK (&table->lock);

  for (size_t i = 0; i < table->entries->len; i++) {
    const Entry *entry = table->entries->pdata[i];

    if (entry->state == PUBLISHED)
      g_ptr_array_add (list, backup_ref (entry->backup));
  }
  return list;
}

BackupDisk *
backup_table_find_export (BackupTable *table, const char *name,
                          Backup **out_backup)
{
  SCOPED_LOCK (&table->lock);
  BackupDisk *bd = find_export_locked (table, name, PUBLISHED);

  if (bd != NULL)
    *out_backup = backup_ref (bd->backup);
  return bd;
}

/* Two disks of one backup that are both not served have the same snapshot name,
 * so belonging is decided by disk and name. */
static bool
is_wanted_locked (BackupTable *table, Disk *disk, const char *snapshot)
{
  for (size_t i = 0; i < table->entries->len; i++) {
    const Entry *entry = table->entries->pdata[i];

    if (strcmp (entry->backup->id, snapshot) != 0)
      continue;
    for (size_t j = 0; j < entry->backup->disks->len; j++) {
      const BackupDisk *bd = entry->backup->disks->pdata[j];

      if (bd->disk == disk)
        return true;
    }
  }
  return false;
}

static bool
end_orphans_locked (BackupTable *table, Disk *disk, BackupWants wants,
                    void *opaque, GError **error)
{
  g_autoptr (GPtrArray) snaps = disk_snapshots (disk);

  for (size_t j = 0; j < snaps->len; j++) {
    Snapshot *snap = snaps->pdata[j];

    if (!is_wanted_locked (table, disk, snapshot_name (snap)) &&
        (wants == NULL || !wants (opaque, disk, snapshot_name (snap))) &&
        !snapshot_end (snap, error)) {
      g_prefix_error (error, "cannot end left-over snapshot '%s' of disk "
                      "'%s': ", snapshot_name (snap), disk_name (disk));
      return false;
    }
  }
  return true;
}

bool
backup_table_accept_disk (BackupTable *table, Disk *disk, GError **error)
{
  SCOPED_LOCK (&table->lock);

  for (size_t i = 0; i < table->entries->len; i++) {
    const Entry *entry = table->entries->pdata[i];

    for (size_t j = 0; j < entry->backup->disks->len; j++) {
      const BackupDisk *bd = entry->backup->disks->pdata[j];

      if (strcmp (bd->disk_name, disk_name (disk)) != 0)
        continue;
      g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_BUSY,
                   "backup '%s' is of disk '%s' as it was served before: end "
                   "it first, or serve the disk from the next start on",
                   entry->backup->id, disk_name (disk));
      return false;
    }
  }
  return end_orphans_locked (table, disk, NULL, NULL, error);
}

char *
backup_table_uses_disk (BackupTable *table, const Disk *disk)
{
  SCOPED_LOCK (&table->lock);

  for (size_t i = 0; i < table->entries->len; i++) {
    const Backup *backup = ((const Entry *) table->entries->pdata[i])->backup;

    for (size_t j = 0; j < backup->disks->len; j++)
      if (((const BackupDisk *) backup->disks->pdata[j])->disk == disk)
        return g_strdup (backup->id);
  }
  return NULL;
}

bool
backup_table_load (BackupTable *table, Catalog *cat, Fleece *fleece,
                   BackupWants wants, void *opaque, GError **error)
{
  g_autoptr (GPtrArray) backups = backup_store_list (cat, error);
  g_autoptr (DiskTable) disks = fleece_disks (fleece);
  SCOPED_LOCK (&table->lock);

  if (backups == NULL)
    return false;
  for (size_t i = 0; i < backups->len; i++) {
    Backup *backup = backups->pdata[i];

    for (size_t j = 0; j < backup->disks->len; j++) {
      BackupDisk *bd = backup->disks->pdata[j];

      bd->disk = fleece_find_disk (fleece, bd->disk_name);
      if (bd->disk != NULL)
        bd->snapshot = disk_find_snapshot (bd->disk, backup->id);
    }
    add_entry_locked (table, backup, PUBLISHED);
  }
  for (unsigned i = 0; i < disks->len; i++)
    if (!end_orphans_locked (table, disks->disk[i], wants, opaque, error))
      return false;
  return true;
}
