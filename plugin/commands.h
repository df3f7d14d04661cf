/* SPDX-License-Identifier: BSD-3-Clause */
/* commands.h - the control commands: one table, a function each.
 *
 * The functions run in a control client's thread, several at once; what they
 * change they change in one catalog transaction.
 */
#ifndef COMMANDS_H
#define COMMANDS_H

#include "bitmap/change-set.h"
#include "bitmap/checkpoint.h"
#include "bitmap/named-bitmap.h"
#include "fleece/disk.h"
#include "plugin/backup.h"
#include "plugin/qmp.h"

extern const struct qmp_command commands_table[];

json_t *command_qmp_capabilities (struct qmp_session *session, json_t *args,
                                  GError **error);
json_t *command_query_version (struct qmp_session *session, json_t *args,
                               GError **error);
json_t *command_quit (struct qmp_session *session, json_t *args,
                      GError **error);
json_t *command_server_reexec (struct qmp_session *session, json_t *args,
                               GError **error);
json_t *command_query_commands (struct qmp_session *session, json_t *args,
                                GError **error);
json_t *command_query_qmp_schema (struct qmp_session *session, json_t *args,
                                  GError **error);
json_t *command_query_block (struct qmp_session *session, json_t *args,
                             GError **error);
json_t *command_query_named_block_nodes (struct qmp_session *session,
                                         json_t *args, GError **error);
json_t *command_query_changes (struct qmp_session *session, json_t *args,
                               GError **error);
json_t *command_checkpoint_create (struct qmp_session *session, json_t *args,
                                   GError **error);
json_t *command_checkpoint_delete (struct qmp_session *session, json_t *args,
                                   GError **error);
json_t *command_checkpoint_list (struct qmp_session *session, json_t *args,
                                 GError **error);
json_t *command_bitmap_add (struct qmp_session *session, json_t *args,
                            GError **error);
json_t *command_bitmap_remove (struct qmp_session *session, json_t *args,
                               GError **error);
json_t *command_bitmap_clear (struct qmp_session *session, json_t *args,
                              GError **error);
json_t *command_bitmap_enable (struct qmp_session *session, json_t *args,
                               GError **error);
json_t *command_bitmap_disable (struct qmp_session *session, json_t *args,
                                GError **error);
json_t *command_bitmap_merge (struct qmp_session *session, json_t *args,
                              GError **error);
json_t *command_bitmap_populate (struct qmp_session *session, json_t *args,
                                 GError **error);
json_t *command_block_job_cancel (struct qmp_session *session, json_t *args,
                                  GError **error);
json_t *command_block_job_complete (struct qmp_session *session, json_t *args,
                                    GError **error);
json_t *command_block_job_dismiss (struct qmp_session *session, json_t *args,
                                   GError **error);
json_t *command_block_job_finalize (struct qmp_session *session, json_t *args,
                                    GError **error);
json_t *command_block_job_pause (struct qmp_session *session, json_t *args,
                                 GError **error);
json_t *command_block_job_resume (struct qmp_session *session, json_t *args,
                                  GError **error);
json_t *command_block_job_set_speed (struct qmp_session *session, json_t *args,
                                     GError **error);
json_t *command_blockdev_add (struct qmp_session *session, json_t *args,
                              GError **error);
json_t *command_blockdev_snapshot (struct qmp_session *session, json_t *args,
                                   GError **error);
json_t *command_block_commit (struct qmp_session *session, json_t *args,
                              GError **error);
json_t *command_block_stream (struct qmp_session *session, json_t *args,
                              GError **error);
json_t *command_blockdev_backup (struct qmp_session *session, json_t *args,
                                 GError **error);
json_t *command_blockdev_del (struct qmp_session *session, json_t *args,
                              GError **error);
json_t *command_job_cancel (struct qmp_session *session, json_t *args,
                            GError **error);
json_t *command_job_complete (struct qmp_session *session, json_t *args,
                              GError **error);
json_t *command_job_dismiss (struct qmp_session *session, json_t *args,
                             GError **error);
json_t *command_job_finalize (struct qmp_session *session, json_t *args,
                              GError **error);
json_t *command_job_pause (struct qmp_session *session, json_t *args,
                           GError **error);
json_t *command_job_resume (struct qmp_session *session, json_t *args,
                            GError **error);
json_t *command_query_block_jobs (struct qmp_session *session, json_t *args,
                                  GError **error);
json_t *command_query_jobs (struct qmp_session *session, json_t *args,
                            GError **error);
json_t *command_transaction (struct qmp_session *session, json_t *args,
                             GError **error);
json_t *command_backup_begin (struct qmp_session *session, json_t *args,
                              GError **error);
json_t *command_backup_end (struct qmp_session *session, json_t *args,
                            GError **error);
json_t *command_backup_renew (struct qmp_session *session, json_t *args,
                              GError **error);
json_t *command_block_resize (struct qmp_session *session, json_t *args,
                              GError **error);
json_t *command_block_export_add (struct qmp_session *session, json_t *args,
                                  GError **error);
json_t *command_block_export_del (struct qmp_session *session, json_t *args,
                                  GError **error);
json_t *command_nbd_server_add (struct qmp_session *session, json_t *args,
                                GError **error);
json_t *command_nbd_server_remove (struct qmp_session *session, json_t *args,
                                   GError **error);
json_t *command_query_block_exports (struct qmp_session *session, json_t *args,
                                     GError **error);
json_t *command_nbd_server_start (struct qmp_session *session, json_t *args,
                                  GError **error);
json_t *command_nbd_server_stop (struct qmp_session *session, json_t *args,
                                 GError **error);
json_t *command_object_add (struct qmp_session *session, json_t *args,
                            GError **error);
json_t *command_object_del (struct qmp_session *session, json_t *args,
                            GError **error);
json_t *command_query_clients (struct qmp_session *session, json_t *args,
                               GError **error);
json_t *command_query_nbd_stats (struct qmp_session *session, json_t *args,
                                 GError **error);
json_t *command_restore_begin (struct qmp_session *session, json_t *args,
                               GError **error);
json_t *command_restore_end (struct qmp_session *session, json_t *args,
                             GError **error);
json_t *command_query_restores (struct qmp_session *session, json_t *args,
                                GError **error);
json_t *command_query_backups (struct qmp_session *session, json_t *args,
                               GError **error);

/* --- shared by them --- */

/* Of a pull, that anybody may be at: false without an error if somebody else
 * is.  On an error it goes on, unless backup->ended stays set: then only its
 * snapshots are not gone. */
bool command_end_backup (Backup *backup, bool failed, GError **error);

/* All of them, even if one fails; the first error is reported. */
bool backup_end_snapshots (const Backup *backup, GError **error);

/* A GenericError. */
void command_set_error (GError **error, const char *format, ...)
  G_GNUC_PRINTF (2, 3);

/* A new reference, or NULL with the error that QEMU would give. */
Disk *command_find_disk (const char *name, GError **error);
/* A disk by its name, or by that of its active layer: a new reference, or
 * NULL. */
Disk *command_find_active (const char *name);
/* Also by that of a node copy-before-write over it. */
Disk *command_find_live (const char *name);
/* A snapshot by the name of its export, or of a node snapshot-access; it
 * belongs to *out_backup, a new reference.  NULL: none. */
BackupDisk *command_find_snapshot (const char *name, Backup **out_backup);

/* What a bitmap of this disk, or of a snapshot of it, of size bytes says; see
 * named_bitmap_changes and named_bitmap_count_all.  Other disks that it refers
 * to are looked for among those that are served. */
ChangeSet *command_bitmap_changes (Disk *disk, const NamedBitmap *bm,
                                   uint64_t size, bool *out_damaged,
                                   GError **error);
NamedBitmapCount *command_count_bitmaps (Disk *disk, const GPtrArray *bitmaps,
                                         GError **error);

/* Which disks "disks": [{"disk", "checkpoint"}] names for a checkpoint; every
 * one of fallback if it is NULL.  A disk that is named twice, or none left, is
 * an error.  Of Disk, a reference each. */
GPtrArray *command_checkpoint_disks (json_t *list, Disk *const *fallback,
                                     size_t nr_fallback, GError **error);

/* What only a command by itself can do: false if it is asked for. */
bool command_refuse_redefine (json_t *args, GError **error);

/* One checkpoint, its name checked, not in the catalog yet. */
Checkpoint *command_new_checkpoint (const char *name, const char *description,
                                    int64_t now, GError **error);

void command_checkpoint_event (const char *name, const char *action);

/* Drop the records of changes that nobody can ask for any more.  A failure is
 * logged only: they are dropped next time. */
void command_forget_epochs (void);

/* Bytes of the disk that are in the set. */
uint64_t command_dirty_bytes (const ChangeSet *set);

#endif
