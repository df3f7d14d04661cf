/* SPDX-License-Identifier: BSD-3-Clause */
/* What the control socket takes: every command, every argument.  The requests
 * are checked against it, and clients and the man page are told of it.
 */
#include <config.h>

#include "plugin/commands.h"
#include "plugin/job.h"
#include "plugin/lease.h"
#include "plugin/replies-table.h"

/* --- the arguments --- */

static const struct qmp_arg args_capabilities[] = {
  { "enable", QMP_STRS },
  { NULL }
};

static const char *const checkpoint_kinds[] = { "bitmap", "no", NULL };
static const struct qmp_arg args_checkpoint_disk[] = {
  { "disk", QMP_STR, .required = true },
  { "checkpoint", QMP_ENUM, .values = checkpoint_kinds },
  { NULL }
};

static const struct qmp_arg args_checkpoint_create[] = {
  { "name", QMP_STR },
  { "description", QMP_STR },
  { "disks", QMP_OBJECTS, .members = args_checkpoint_disk },
  { "redefine", QMP_BOOL },
  { "redefine-validate", QMP_BOOL },
  { "creation-time", QMP_INT, .min = 0, .max = INT64_MAX,
    .range = "uint64_t" },
  { "parent", QMP_STR },
  { NULL }
};

static const struct qmp_arg args_checkpoint_delete[] = {
  { "name", QMP_STR, .required = true },
  { "children", QMP_BOOL },
  { "children-only", QMP_BOOL },
  { "metadata", QMP_BOOL },
  { NULL }
};

static const struct qmp_arg args_checkpoint_list[] = {
  { "name", QMP_STR },
  { "from", QMP_STR },
  { "roots", QMP_BOOL },
  { "leaves", QMP_BOOL },
  { "size", QMP_BOOL },
  { NULL }
};

static const struct qmp_arg args_backup_checkpoint[] = {
  { "name", QMP_STR },
  { "description", QMP_STR },
  { "disks", QMP_OBJECTS, .members = args_checkpoint_disk },
  { NULL }
};

static const struct qmp_arg args_scratch[] = {
  { "file", QMP_STR },
  { "limit", QMP_INT, .min = 0, .max = INT64_MAX, .range = "uint64_t" },
  { NULL }
};

static const char *const backup_modes[] = { "full", "incremental", NULL };
static const struct qmp_arg args_backup_disk[] = {
  { "disk", QMP_STR, .required = true },
  { "backup", QMP_BOOL },
  { "backupmode", QMP_ENUM, .values = backup_modes },
  { "incremental", QMP_STR },
  { "exportname", QMP_STR },
  { "exportbitmap", QMP_STR },
  { "scratch", QMP_OBJECT, .members = args_scratch },
  { "target", QMP_STR },
  { NULL }
};

static const char *const transfer_modes[] = { "pull", "push", NULL };
static const char *const on_cbw_error[] = {
  "break-snapshot", "break-guest-write", NULL
};
static const struct qmp_arg args_backup_begin[] = {
  { "id", QMP_STR },
  { "mode", QMP_ENUM, .values = transfer_modes },
  { "incremental", QMP_STR },
  { "checkpoint", QMP_OBJECT, .members = args_backup_checkpoint },
  { "disks", QMP_OBJECTS, .members = args_backup_disk },
  { "reuse-external", QMP_BOOL },
  { "durable", QMP_BOOL },
  { "on-cbw-error", QMP_ENUM, .values = on_cbw_error },
  { "cbw-timeout", QMP_INT, .min = 0, .max = UINT32_MAX, .range = "uint32_t" },
  { "lease", QMP_INT, .min = 0, .max = LEASE_MAX,
    .range = "seconds, at most a year" },
  { NULL }
};

static const struct qmp_arg args_backup_end[] = {
  { "id", QMP_STR, .required = true },
  { "failed", QMP_BOOL },
  { NULL }
};

static const struct qmp_arg args_backup_renew[] = {
  { "id", QMP_STR, .required = true },
  { "lease", QMP_INT, .min = 0, .max = LEASE_MAX,
    .range = "seconds, at most a year" },
  { NULL }
};

static const struct qmp_arg args_block_resize[] = {
  { "device", QMP_STR },
  { "node-name", QMP_STR },
  { "size", QMP_INT, .required = true, .min = 0, .max = INT64_MAX,
    .range = "a >0 size" },
  { NULL }
};

static const struct qmp_arg args_bitmap_add[] = {
  { "node", QMP_STR, .required = true },
  { "name", QMP_STR, .required = true },
  { "granularity", QMP_INT, .min = 0, .max = UINT32_MAX, .range = "uint32_t" },
  { "persistent", QMP_BOOL },
  { "disabled", QMP_BOOL },
  { NULL }
};

/* Also the address of a bitmap in others' arguments. */
static const struct qmp_arg args_bitmap[] = {
  { "node", QMP_STR, .required = true },
  { "name", QMP_STR, .required = true },
  { NULL }
};

static const struct qmp_arg args_bitmap_merge[] = {
  { "node", QMP_STR, .required = true },
  { "target", QMP_STR, .required = true },
  { "bitmaps", QMP_STRS_OR_OBJECTS, .required = true, .members = args_bitmap },
  { NULL }
};

static const char *const populate_patterns[] = {
  "allocation-top", "all", NULL
};
static const char *const populate_sources[] = {
  "allocation", "bitmap", "all", NULL
};
static const struct qmp_arg args_populate_source[] = {
  { "pattern", QMP_ENUM, .required = true, .values = populate_sources },
  { "node", QMP_STR },
  { "name", QMP_STR },
  { NULL }
};
static const struct qmp_arg args_populate[] = {
  { "job-id", QMP_STR },
  { "node", QMP_STR },
  { "name", QMP_STR },
  { "pattern", QMP_ENUM, .values = populate_patterns },
  { "sources", QMP_OBJECTS, .members = args_populate_source },
  { "targets", QMP_OBJECTS, .members = args_bitmap },
  { "on-error", QMP_ENUM, .values = job_on_error_names },
  { "auto-finalize", QMP_BOOL },
  { "auto-dismiss", QMP_BOOL },
  { NULL }
};

static const char *const blockdev_drivers[] = {
  "copy-before-write", "file", "host_device", "layer", "nbd", "raw",
  "snapshot-access", NULL
};
static const char *const blockdev_files[] = { "file", "host_device", NULL };
static const char *const discard_modes[] = { "ignore", "unmap", NULL };
static const char *const address_types[] = { "unix", "inet", NULL };
static const struct qmp_arg args_address[] = {
  { "type", QMP_ENUM, .required = true, .values = address_types },
  { "path", QMP_STR },
  { "host", QMP_STR },
  { "port", QMP_STR },
  { NULL }
};
static const struct qmp_arg args_blockdev_file[] = {
  { "driver", QMP_ENUM, .required = true, .values = blockdev_files },
  { "filename", QMP_STR, .required = true },
  { NULL }
};
static const struct qmp_arg args_blockdev_add[] = {
  { "driver", QMP_ENUM, .required = true, .values = blockdev_drivers },
  { "node-name", QMP_STR, .required = true },
  { "read-only", QMP_BOOL },
  { "disk", QMP_BOOL },
  { "discard", QMP_ENUM, .values = discard_modes },
  { "file", QMP_STR_OR_OBJECT, .members = args_blockdev_file },
  { "filename", QMP_STR },
  { "backing", QMP_NULL },
  { "server", QMP_OBJECT, .members = args_address },
  { "export", QMP_STR },
  { "tls-creds", QMP_STR },
  { "target", QMP_STR },
  { "bitmap", QMP_OBJECT, .members = args_bitmap },
  { "on-cbw-error", QMP_ENUM, .values = on_cbw_error },
  { "cbw-timeout", QMP_INT, .min = 0, .max = UINT32_MAX, .range = "uint32_t" },
  { "min-cluster-size", QMP_INT, .min = 0, .max = INT64_MAX,
    .range = "uint64" },
  { NULL }
};
static const struct qmp_arg args_blockdev_del[] = {
  { "node-name", QMP_STR, .required = true },
  { NULL }
};

static const char *const export_types[] = { "nbd", NULL };
static const struct qmp_arg args_block_export_add[] = {
  { "type", QMP_ENUM, .required = true, .values = export_types },
  { "id", QMP_STR, .required = true },
  { "fixed-iothread", QMP_BOOL },
  { "iothread", QMP_STR },
  { "node-name", QMP_STR, .required = true },
  { "writable", QMP_BOOL },
  { "writethrough", QMP_BOOL },
  { "name", QMP_STR },
  { "description", QMP_STR },
  { "bitmaps", QMP_STRS_OR_OBJECTS, .members = args_bitmap },
  { "allocation-depth", QMP_BOOL },
  { NULL }
};
static const char *const removal_modes[] = { "safe", "hard", NULL };
static const struct qmp_arg args_block_export_del[] = {
  { "id", QMP_STR, .required = true },
  { "mode", QMP_ENUM, .values = removal_modes },
  { NULL }
};
static const struct qmp_arg args_nbd_server_add[] = {
  { "device", QMP_STR, .required = true },
  { "name", QMP_STR },
  { "description", QMP_STR },
  { "writable", QMP_BOOL },
  { "bitmap", QMP_STR },
  { NULL }
};
static const struct qmp_arg args_listen_data[] = {
  { "path", QMP_STR },
  { "host", QMP_STR },
  { "port", QMP_STR },
  { NULL }
};
static const struct qmp_arg args_listen_address[] = {
  { "type", QMP_ENUM, .required = true, .values = address_types },
  { "data", QMP_OBJECT, .required = true, .members = args_listen_data },
  { NULL }
};
static const char *const object_types[] = {
  "authz-simple", "tls-creds-psk", "tls-creds-x509", NULL
};
static const char *const endpoints[] = { "client", "server", NULL };
static const struct qmp_arg args_object_add[] = {
  { "qom-type", QMP_ENUM, .required = true, .values = object_types },
  { "id", QMP_STR, .required = true },
  { "dir", QMP_STR },
  { "endpoint", QMP_ENUM, .values = endpoints },
  { "identity", QMP_STR },
  { "sanity-check", QMP_BOOL },
  { "username", QMP_STR },
  { "verify-peer", QMP_BOOL },
  { NULL }
};
static const struct qmp_arg args_nbd_server_start[] = {
  { "addr", QMP_OBJECT, .required = true, .members = args_listen_address },
  { "tls-creds", QMP_STR },
  { "tls-authz", QMP_STR },
  { "max-connections", QMP_INT, .min = 0, .max = UINT32_MAX,
    .range = "uint32_t" },
  { NULL }
};
static const struct qmp_arg args_nbd_server_remove[] = {
  { "name", QMP_STR, .required = true },
  { "mode", QMP_ENUM, .values = removal_modes },
  { NULL }
};

static const char *const sync_modes[] = {
  "top", "full", "none", "incremental", "bitmap", NULL
};
static const char *const bitmap_modes[] = {
  "on-success", "never", "always", NULL
};
static const struct qmp_arg args_backup_perf[] = {
  { "use-copy-range", QMP_BOOL },
  { "max-workers", QMP_INT, .min = INT64_MIN, .max = INT64_MAX,
    .range = "int64" },
  { "max-chunk", QMP_INT, .min = INT64_MIN, .max = INT64_MAX,
    .range = "int64" },
  { "min-cluster-size", QMP_INT, .min = 0, .max = INT64_MAX,
    .range = "uint64" },
  { NULL }
};
static const struct qmp_arg args_blockdev_backup[] = {
  { "device", QMP_STR, .required = true },
  { "target", QMP_STR, .required = true },
  { "sync", QMP_ENUM, .required = true, .values = sync_modes },
  { "bitmap", QMP_STR },
  { "bitmap-mode", QMP_ENUM, .values = bitmap_modes },
  { "job-id", QMP_STR },
  { "speed", QMP_INT, .min = 0, .max = INT64_MAX,
    .range = "a non-negative value" },
  { "on-source-error", QMP_ENUM, .values = job_on_error_names },
  { "on-target-error", QMP_ENUM, .values = job_on_error_names },
  { "auto-finalize", QMP_BOOL },
  { "auto-dismiss", QMP_BOOL },
  { "filter-node-name", QMP_STR },
  { "compress", QMP_BOOL },
  { "discard-source", QMP_BOOL },
  { "x-perf", QMP_OBJECT, .members = args_backup_perf },
  { NULL }
};

static const struct qmp_arg args_blockdev_snapshot[] = {
  { "node", QMP_STR, .required = true },
  { "overlay", QMP_STR, .required = true },
  { NULL }
};
static const struct qmp_arg args_block_commit[] = {
  { "job-id", QMP_STR },
  { "device", QMP_STR, .required = true },
  { "base-node", QMP_STR },
  { "top-node", QMP_STR },
  { "backing-file", QMP_STR },
  { "speed", QMP_INT, .min = 0, .max = INT64_MAX,
    .range = "a non-negative value" },
  { "on-error", QMP_ENUM, .values = job_on_error_names },
  { "filter-node-name", QMP_STR },
  { "auto-finalize", QMP_BOOL },
  { "auto-dismiss", QMP_BOOL },
  { NULL }
};
static const struct qmp_arg args_block_stream[] = {
  { "job-id", QMP_STR },
  { "device", QMP_STR, .required = true },
  { "base-node", QMP_STR },
  { "bottom", QMP_STR },
  { "backing-file", QMP_STR },
  { "speed", QMP_INT, .min = 0, .max = INT64_MAX,
    .range = "a non-negative value" },
  { "on-error", QMP_ENUM, .values = job_on_error_names },
  { "filter-node-name", QMP_STR },
  { "auto-finalize", QMP_BOOL },
  { "auto-dismiss", QMP_BOOL },
  { NULL }
};

static const char *const restore_bases[] = { "current", "zero", NULL };
static const struct qmp_arg args_restore_disk[] = {
  { "disk", QMP_STR, .required = true },
  { "exportname", QMP_STR },
  { NULL }
};
static const struct qmp_arg args_restore_begin[] = {
  { "id", QMP_STR },
  { "disks", QMP_OBJECTS, .members = args_restore_disk },
  { "base", QMP_ENUM, .values = restore_bases },
  { "force", QMP_BOOL },
  { NULL }
};
static const char *const restore_actions[] = { "apply", "discard", NULL };
static const struct qmp_arg args_restore_end[] = {
  { "id", QMP_STR, .required = true },
  { "action", QMP_ENUM, .required = true, .values = restore_actions },
  { NULL }
};

static const struct qmp_arg args_id[] = {
  { "id", QMP_STR, .required = true },
  { NULL }
};
static const struct qmp_arg args_device[] = {
  { "device", QMP_STR, .required = true },
  { NULL }
};
static const struct qmp_arg args_block_job_cancel[] = {
  { "device", QMP_STR, .required = true },
  { "force", QMP_BOOL },
  { NULL }
};
static const struct qmp_arg args_block_job_set_speed[] = {
  { "device", QMP_STR, .required = true },
  { "speed", QMP_INT, .required = true, .min = INT64_MIN, .max = INT64_MAX,
    .range = "int64" },
  { NULL }
};

static const struct qmp_branch actions[] = {
  { "abort", NULL },
  { "backup-begin", args_backup_begin },
  { "block-dirty-bitmap-add", args_bitmap_add },
  { "block-dirty-bitmap-clear", args_bitmap },
  { "block-dirty-bitmap-disable", args_bitmap },
  { "block-dirty-bitmap-enable", args_bitmap },
  { "block-dirty-bitmap-merge", args_bitmap_merge },
  { "block-dirty-bitmap-populate", args_populate },
  { "block-dirty-bitmap-remove", args_bitmap },
  { "blockdev-backup", args_blockdev_backup },
  { "blockdev-snapshot", args_blockdev_snapshot },
  { "checkpoint-create", args_checkpoint_create },
  { "checkpoint-delete", args_checkpoint_delete },
  { "x-block-dirty-bitmap-populate", args_populate },
  { NULL }
};

static const char *const completion_modes[] = {
  "individual", "grouped", NULL
};
static const struct qmp_arg args_transaction_properties[] = {
  { "completion-mode", QMP_ENUM, .values = completion_modes },
  { NULL }
};

static const struct qmp_arg args_transaction[] = {
  { "actions", QMP_UNIONS, .required = true, .branches = actions },
  { "properties", QMP_OBJECT, .members = args_transaction_properties },
  { NULL }
};

static const struct qmp_arg args_query_named_block_nodes[] = {
  { "flat", QMP_BOOL },
  { NULL }
};

static const struct qmp_arg args_query_changes[] = {
  { "disk", QMP_STR, .required = true },
  { "since", QMP_STR },
  { "offset", QMP_INT, .min = 0, .max = INT64_MAX, .range = "uint64_t" },
  { "limit", QMP_INT, .min = 1, .max = 65536,
    .range = "a value between 1 and 65536" },
  { NULL }
};

/* --- the commands --- */

const struct qmp_command commands_table[] = {
  { "backup-begin", args_backup_begin, command_backup_begin,
    .returns = &reply_backup_begin },
  { "backup-end", args_backup_end, command_backup_end },
  { "backup-renew", args_backup_renew, command_backup_renew },
  { "block-commit", args_block_commit, command_block_commit },
  { "block-dirty-bitmap-add", args_bitmap_add, command_bitmap_add },
  { "block-dirty-bitmap-clear", args_bitmap, command_bitmap_clear },
  { "block-dirty-bitmap-disable", args_bitmap, command_bitmap_disable },
  { "block-dirty-bitmap-enable", args_bitmap, command_bitmap_enable },
  { "block-dirty-bitmap-merge", args_bitmap_merge, command_bitmap_merge },
  { "block-dirty-bitmap-populate", args_populate, command_bitmap_populate },
  { "block-dirty-bitmap-remove", args_bitmap, command_bitmap_remove },
  { "block-export-add", args_block_export_add, command_block_export_add },
  { "block-export-del", args_block_export_del, command_block_export_del },
  { "block-job-cancel", args_block_job_cancel, command_block_job_cancel },
  { "block-job-complete", args_device, command_block_job_complete },
  { "block-job-dismiss", args_id, command_block_job_dismiss },
  { "block-job-finalize", args_id, command_block_job_finalize },
  { "block-job-pause", args_device, command_block_job_pause },
  { "block-job-resume", args_device, command_block_job_resume },
  { "block-job-set-speed", args_block_job_set_speed,
    command_block_job_set_speed },
  { "block-stream", args_block_stream, command_block_stream },
  { "block_resize", args_block_resize, command_block_resize },
  { "blockdev-add", args_blockdev_add, command_blockdev_add },
  { "blockdev-backup", args_blockdev_backup, command_blockdev_backup },
  { "blockdev-del", args_blockdev_del, command_blockdev_del },
  { "blockdev-snapshot", args_blockdev_snapshot, command_blockdev_snapshot },
  { "checkpoint-create", args_checkpoint_create, command_checkpoint_create,
    .returns = &reply_checkpoint_create },
  { "checkpoint-delete", args_checkpoint_delete, command_checkpoint_delete },
  { "checkpoint-list", args_checkpoint_list, command_checkpoint_list,
    .returns = &reply_checkpoint_list },
  { "job-cancel", args_id, command_job_cancel },
  { "job-complete", args_id, command_job_complete },
  { "job-dismiss", args_id, command_job_dismiss },
  { "job-finalize", args_id, command_job_finalize },
  { "job-pause", args_id, command_job_pause },
  { "job-resume", args_id, command_job_resume },
  { "nbd-server-add", args_nbd_server_add, command_nbd_server_add },
  { "nbd-server-remove", args_nbd_server_remove, command_nbd_server_remove },
  { "nbd-server-start", args_nbd_server_start, command_nbd_server_start },
  { "nbd-server-stop", NULL, command_nbd_server_stop },
  { "object-add", args_object_add, command_object_add },
  { "object-del", args_id, command_object_del },
  { "qmp_capabilities", args_capabilities, command_qmp_capabilities,
    .before_negotiation = true },
  { "query-backups", NULL, command_query_backups,
    .returns = &reply_query_backups },
  { "query-block", NULL, command_query_block,
    .returns = &reply_query_block },
  { "query-block-exports", NULL, command_query_block_exports,
    .returns = &reply_query_block_exports },
  { "query-block-jobs", NULL, command_query_block_jobs,
    .returns = &reply_query_block_jobs },
  { "query-changes", args_query_changes, command_query_changes,
    .returns = &reply_query_changes },
  { "query-clients", NULL, command_query_clients,
    .returns = &reply_query_clients },
  { "query-commands", NULL, command_query_commands,
    .returns = &reply_query_commands },
  { "query-jobs", NULL, command_query_jobs,
    .returns = &reply_query_jobs },
  { "query-named-block-nodes", args_query_named_block_nodes,
    command_query_named_block_nodes,
    .returns = &reply_query_named_block_nodes },
  { "query-nbd-stats", NULL, command_query_nbd_stats,
    .returns = &reply_query_nbd_stats },
  { "query-qmp-schema", NULL, command_query_qmp_schema,
    .returns = &reply_query_qmp_schema },
  { "query-restores", NULL, command_query_restores,
    .returns = &reply_query_restores },
  { "query-version", NULL, command_query_version,
    .returns = &reply_query_version },
  { "quit", NULL, command_quit },
  { "restore-begin", args_restore_begin, command_restore_begin,
    .returns = &reply_restore_begin },
  { "restore-end", args_restore_end, command_restore_end },
  { "server-reexec", NULL, command_server_reexec },
  { "transaction", args_transaction, command_transaction },
  { "x-block-dirty-bitmap-populate", args_populate, command_bitmap_populate },
  { NULL }
};
