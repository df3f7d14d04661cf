/* SPDX-License-Identifier: BSD-3-Clause */
/* backup.h - running backups: a snapshot of each of their disks, offered as an
 * export, with a map of what changed since a checkpoint.
 *
 * A backup's rows go into the catalog in the transaction of its cut, so that it
 * is found again after a restart with the same exports and the same maps.  A
 * Backup and its BackupDisks never change once they are in the table, but for
 * `ended` and its lease; an export handle holds a reference and so may look at
 * them freely.
 *
 * Locking: the table's mutex guards what is in it.  It may be held while the
 * catalog's is taken, never the other way round, and never across a cut.
 */
#ifndef BACKUP_H
#define BACKUP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <glib.h>

#include "bitmap/catalog.h"
#include "bitmap/change-set.h"
#include "fleece/disk.h"
#include "fleece/fleece.h"
#include "fleece/snapshot.h"

typedef struct Backup Backup;
typedef struct BackupTable BackupTable;

/* What clients have got, of this process's life; any thread. */
typedef struct {
  atomic_uint_fast64_t bytes_read;
  atomic_uint_fast64_t extents;         /* in replies to block status */
} BackupServed;

typedef struct {
  Backup *backup;
  Disk *disk;                   /* a reference; NULL: not served now */
  Snapshot *snapshot;           /* NULL: gone (crash, disk not served) */
  char *disk_name;
  char *export;                 /* name of the export */
  /* For an incremental one, else NULL and 0. */
  char *bitmap;                 /* name of the map, as offered */
  char *since;                  /* name of the checkpoint then */
  uint64_t since_boundary;      /* pinned: stays when the checkpoint goes */
  /* Of a push: the node that it is copied to, and the job; else NULL. */
  char *target, *job;
  BackupServed *served;
  ChangeSet *kept;              /* a reference: only these blocks can be read;
                                 * NULL: all */
  uint64_t copied_before;       /* blocks preserved on the disk before the
                                   cut */
} BackupDisk;

struct Backup {
  atomic_uint refs;
  atomic_bool ended;            /* its exports answer ESHUTDOWN */
  char *id;
  char *checkpoint;             /* made with it; NULL: none */
  int64_t created;              /* seconds since 1970 */
  bool node;                    /* of a node snapshot-access: not in the table,
                                 * and gone with the server */
  bool push;                    /* jobs copy it; its exports are not offered */
  /* See lease.h. */
  atomic_uint lease;            /* seconds; 0: none */
  atomic_int_fast64_t lease_end_ms;     /* on the monotonic clock */
  atomic_uint_fast64_t lease_used;
  GPtrArray *disks;             /* of BackupDisk */
};

Backup *backup_new (const char *id, const char *checkpoint, int64_t created);
/* Names are copied; the caller fills in the rest, allocated with g_malloc. */
BackupDisk *backup_add_disk (Backup *backup, Disk *disk, const char *disk_name,
                             const char *export);
Backup *backup_ref (Backup *backup);
void backup_unref (Backup *backup);             /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Backup, backup_unref)

/* LIVE, BROKEN, ...: of its snapshot; LOST where that is gone. */
SnapshotState backup_disk_state (const BackupDisk *bd);

/* -EIO: some of the range are not kept; else 0. */
int backup_disk_check_kept (const BackupDisk *bd, uint64_t length,
                            uint64_t offset);

/* 4 KiB blocks that were preserved, with data, on its disk in this process. */
uint64_t backup_disk_copied (const BackupDisk *bd);

BackupTable *backup_table_new (void);
void backup_table_free (BackupTable *table);    /* NULL is fine */

/* Reads the rows and finds the snapshots.  A snapshot that belongs to no backup
 * (the process died between two steps of backup-end), and that nobody else
 * wants, is ended. */
typedef bool (*BackupWants) (void *opaque, Disk *disk, const char *snapshot);
bool backup_table_load (BackupTable *table, Catalog *cat, Fleece *fleece,
                        BackupWants wants, void *opaque, GError **error);

/* A disk that is going to be served, but is not yet: ends its snapshots that
 * belong to no backup.  BUSY: a backup from when it was served has it, and
 * cannot be given it back while others may look at it. */
bool backup_table_accept_disk (BackupTable *table, Disk *disk,
                               GError **error);
/* The id of a backup, in whatever state, that has this disk; NULL: none.
 * Caller frees. */
char *backup_table_uses_disk (BackupTable *table, const Disk *disk);

/* Reserves id and export names, which nobody sees yet; EXISTS names what is
 * taken.  Then either publish or remove it. */
bool backup_table_reserve (BackupTable *table, Backup *backup,
                           GError **error);
/* Is the name taken, by whatever state of a backup? */
bool backup_table_has_export (BackupTable *table, const char *name);
void backup_table_publish (BackupTable *table, Backup *backup);
void backup_table_remove (BackupTable *table, Backup *backup);

/* A new reference or NULL: of a published backup. */
Backup *backup_table_find (BackupTable *table, const char *id);
/* Of Backup (each with a reference), oldest first. */
GPtrArray *backup_table_list (BackupTable *table);
/* The part of a published backup (no push) offered as export name, with a
 * reference to its backup in *out_backup; NULL: none. */
BackupDisk *backup_table_find_export (BackupTable *table, const char *name,
                                      Backup **out_backup);

/* Hide the exports of a published backup, so that its end can begin: false if
 * somebody else is at it.  publish undoes it. */
bool backup_table_hide (BackupTable *table, Backup *backup);

#endif
