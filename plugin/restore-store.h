/* SPDX-License-Identifier: BSD-3-Clause */
/* restore-store.h - restores in the catalog, and how one is put together. */
#ifndef RESTORE_STORE_H
#define RESTORE_STORE_H

#include "bitmap/catalog.h"
#include "plugin/restore.h"

/* Of the column state of the table backup. */
#define STATE_RESTORE "restore"

/* In restore.c.  One reference; without disks. */
Restore *restore_new (const char *id, int64_t created, bool zero, bool force);
/* The disk is looked for among those that are served. */
RestoreDisk *restore_add_disk (Restore *restore, const char *disk,
                               const char *export);

/* In a transaction. */
bool restore_store_insert (Catalog *cat, const Restore *restore,
                           GError **error);
bool restore_store_delete (Catalog *cat, const char *id, GError **error);
/* In one of its own. */
bool restore_store_delete_now (Catalog *cat, const char *id, GError **error);
/* Of Restore (a reference each), oldest first. */
GPtrArray *restore_store_list (Catalog *cat, GError **error);

#endif
