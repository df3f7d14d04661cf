/* SPDX-License-Identifier: BSD-3-Clause */
/* exports.h - export names, and the handles that clients open on them.
 *
 *   DISK               the live disk, writable
 *   DISK@ID            its snapshot of backup ID (or the backup's own name for
 *                      it), read-only
 *   DISK@ID,since=X    the same, with the map "changed since checkpoint X"
 *                      instead of the backup's own
 *
 * and what block-export-add has made (added-exports.h).
 *
 * A handle of a snapshot holds a reference to its backup.  Once the backup has
 * ended, every request on the handle answers ESHUTDOWN; it never turns into the
 * live disk.
 *
 * Locking: the list of open handles has a mutex; it is held while the host is
 * asked to disconnect one, so that the handle cannot be closed meanwhile.
 */
#ifndef EXPORTS_H
#define EXPORTS_H

#include <stdbool.h>
#include <stdint.h>
#include <glib.h>
#include <jansson.h>

#include "plugin/added-exports.h"
#include "plugin/backup.h"
#include "plugin/contexts.h"
#include "plugin/restore.h"

typedef struct {
  Disk *disk;                   /* a reference */
  /* NULL on the live disk. */
  Backup *backup;               /* a reference */
  const BackupDisk *bd;         /* the backup's */
  AddedExport *added;           /* opened by a name that was added, or NULL */
  Restore *restore;             /* a reference; NULL: not of one */
  const RestoreDisk *rd;        /* the restore's */
  HandleContexts contexts;
  /* For query-clients. */
  char *name;                   /* as the client has asked */
  char *peer;                   /* NULL: not known */
  int64_t opened;               /* seconds since 1970 */
} Handle;

/* NOT_FOUND: no such export, or no such checkpoint for since=. */
Handle *export_open (const char *name, GError **error);
void export_close (Handle *handle);

/* metacontext.h's: a writable export of a disk is the live disk, whatever its
 * name. */
int export_kind (void *handle, const char *name);

/* Is the disk or snapshot behind it usable?  0 or a negative errno. */
int handle_check (const Handle *handle);

/* What a client reads about an export; caller frees. */
char *export_describe_disk (Disk *disk);
char *export_describe_snapshot (const BackupDisk *bd);

/* How many handles are open on this part of a backup, or of a restore. */
unsigned export_nr_handles (const BackupDisk *bd);
unsigned export_nr_restore_handles (const RestoreDisk *rd);
/* On the live disk, by whatever name. */
unsigned export_nr_live_handles (const Disk *disk);

/* Ask the host to drop all clients of a backup.  Without a host that can, they
 * stay, and get ESHUTDOWN. */
void export_disconnect (const Backup *backup);
void export_disconnect_added (const AddedExport *added);
void export_disconnect_restore (const Restore *restore);

/* Of query-clients.  Counters only from a host that has them; without it,
 * handles that were opened for a question only are listed as well. */
json_t *export_list_clients (void);

/* How many handles need this disk, live or a snapshot. */
unsigned export_nr_disk_handles (const Disk *disk);

#endif
