/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* backup-dir.h - a folder that `fleecectl backup run` keeps backups in.
 *
 *   DISK.raw             the image, as of the last run that was good
 *   DISK.raw.fleececopy  fleececopy's mark of it
 *   manifest.json        {"nbdfleece-backup": 1, "disks": [...]}; of each disk:
 *     disk, file, size   name, file below the folder, bytes
 *     checkpoint         what it is a copy of, and the next run starts from
 *     mode               "full" or "incremental": how it got there
 *     since              incremental: from which checkpoint
 *     time               of the cut, UTC
 *     frozen             whether the guest's file systems were frozen
 *     sha256             of the file
 *     unfinished         checkpoints, gone since, of runs that came to no end:
 *                        the image may hold blocks of these, all of which
 *                        changed since `checkpoint`, so that the next update
 *                        repairs it
 *   running.json         {"id": ..., "disks": [...]}: a run under way, or one
 *                        that was killed
 *
 * Both are replaced by rename after fsync.  One process at a time: flock on the
 * folder.
 */
#ifndef NBDFLEECE_BACKUP_DIR_H
#define NBDFLEECE_BACKUP_DIR_H

#include <stdbool.h>

#include <glib.h>
#include <jansson.h>

#include "tools/progress.h"

typedef struct {
  char *path;
  int fd;                       /* locked */
  json_t *disks;                /* the array of the manifest */
} BackupDir;

/* create: make the folder if it is missing.  write: lock it for a run, not for
 * reading only.  NULL: it is no such folder, in use, or its manifest is
 * damaged.
 */
BackupDir *backup_dir_open (const char *path, bool create, bool write,
                            GError **error);
void backup_dir_free (BackupDir *dir);          /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (BackupDir, backup_dir_free)

char *backup_dir_image (const BackupDir *dir, const char *disk);
/* Borrowed; NULL: this folder has no backup of it. */
json_t *backup_dir_find (const BackupDir *dir, const char *disk);
/* In place of what there is about the disk; takes entry. */
void backup_dir_put (BackupDir *dir, json_t *entry);
bool backup_dir_save (const BackupDir *dir, GError **error);

/* The id in running.json (g_free), and the names of its disks (json_decref;
 * NULL: not on record); NULL if there is none.
 */
char *backup_dir_running (const BackupDir *dir, json_t **out_disks);
/* Takes disks.  id NULL: no run any more. */
bool backup_dir_set_running (const BackupDir *dir, const char *id,
                             json_t *disks, GError **error);

/* SHA-256 in hexadecimal and the size in bytes.  stop: looked at now and then;
 * NULL with *error then, and if the file cannot be read.
 */
char *backup_dir_digest (const char *file, enum progress_style style,
                         bool (*stop) (void), uint64_t *out_size,
                         GError **error);

#endif /* NBDFLEECE_BACKUP_DIR_H */
