/* SPDX-License-Identifier: BSD-3-Clause */
/* backup-store.h - backups as rows of the catalog (tables backup, backup_disk).
 * Insert and delete are to be called inside a transaction. */
#ifndef BACKUP_STORE_H
#define BACKUP_STORE_H

#include "plugin/backup.h"

bool backup_store_insert (Catalog *cat, const Backup *backup, GError **error);
/* Deleting what is not there is no error. */
bool backup_store_delete (Catalog *cat, const char *id, GError **error);
/* The end of one, in a transaction of its own.  failed: as if its checkpoint
 * had not been made; *out_checkpoint_gone: it has been deleted. */
bool backup_store_end (Catalog *cat, const Backup *backup, bool failed,
                       bool *out_checkpoint_gone, GError **error);
/* Of Backup (references), oldest first; their disks have no Disk and no
 * Snapshot yet. */
GPtrArray *backup_store_list (Catalog *cat, GError **error);

/* Of a backup that is there: its lease has changed. */
bool backup_store_arguments (Catalog *cat, const Backup *backup,
                             GError **error);

#endif
