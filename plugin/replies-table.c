/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include "plugin/replies-table.h"

#define ALWAYS .required = true

static const char *const io_statuses[] = { "ok", "failed", "nospace", NULL };
static const char *const job_statuses[] = {
  "created", "running", "paused", "ready", "standby", "waiting", "pending",
  "aborting", "concluded", "null", NULL
};

/* --- query-version, query-commands, query-qmp-schema --- */

static const struct qmp_arg version_numbers[] = {
  { "major", QMP_INT, ALWAYS },
  { "minor", QMP_INT, ALWAYS },
  { "micro", QMP_INT, ALWAYS },
  { NULL }
};
static const struct qmp_arg version[] = {
  { "qemu", QMP_OBJECT, ALWAYS, .members = version_numbers },
  { "package", QMP_STR, ALWAYS },
  { NULL }
};
const struct qmp_arg reply_query_version = {
  "return", QMP_OBJECT, .members = version
};

static const struct qmp_arg command[] = {
  { "name", QMP_STR, ALWAYS },
  { NULL }
};
const struct qmp_arg reply_query_commands = {
  "return", QMP_OBJECTS, .members = command
};

static const char *const meta_types[] = {
  "builtin", "enum", "array", "object", "alternate", "command", "event", NULL
};
static const char *const json_types[] = {
  "string", "number", "int", "boolean", "null", "object", "array", "value",
  NULL
};
static const struct qmp_arg schema_member[] = {
  { "name", QMP_STR },
  { "type", QMP_STR },
  { "default", QMP_ANY },
  { NULL }
};
static const struct qmp_arg schema_variant[] = {
  { "case", QMP_STR, ALWAYS },
  { "type", QMP_STR, ALWAYS },
  { NULL }
};
/* In QEMU a union over meta-type; here each kind's members are optional. */
static const struct qmp_arg schema_info[] = {
  { "name", QMP_STR, ALWAYS },
  { "meta-type", QMP_ENUM, ALWAYS, .values = meta_types },
  { "json-type", QMP_ENUM, .values = json_types },
  { "members", QMP_OBJECTS, .members = schema_member },
  { "values", QMP_STRS },
  { "element-type", QMP_STR },
  { "tag", QMP_STR },
  { "variants", QMP_OBJECTS, .members = schema_variant },
  { "arg-type", QMP_STR },
  { "ret-type", QMP_STR },
  { NULL }
};
const struct qmp_arg reply_query_qmp_schema = {
  "return", QMP_OBJECTS, .members = schema_info
};

/* --- query-block, query-named-block-nodes --- */

static const struct qmp_arg image[] = {
  { "filename", QMP_STR, ALWAYS },
  { "format", QMP_STR, ALWAYS },
  { "virtual-size", QMP_INT, ALWAYS },
  { "actual-size", QMP_INT },
  { NULL }
};
static const char *const recoveries[] = {
  "exact", "bounded", "all-dirty", NULL
};
static const struct qmp_arg tracking[] = {
  { "clean", QMP_BOOL, ALWAYS },
  { "granularity", QMP_INT, ALWAYS },
  { "cuts", QMP_INT, ALWAYS },
  { "snapshots", QMP_INT, ALWAYS },
  { "layers", QMP_INT, ALWAYS },
  { "blocks-copied", QMP_INT, ALWAYS },
  { "blocks-zero", QMP_INT, ALWAYS },
  { "scratch-bytes", QMP_INT, ALWAYS },
  { "intent-bytes", QMP_INT, ALWAYS },
  { "intent-waits", QMP_INT, ALWAYS },
  { "reason", QMP_STR },
  { "recovery", QMP_ENUM, .values = recoveries },
  { "over-reported", QMP_INT },
  { "bad-sectors", QMP_INT },
  { "error", QMP_STR },
  { NULL }
};
static const struct qmp_arg cache[] = {
  { "writeback", QMP_BOOL, ALWAYS },
  { "direct", QMP_BOOL, ALWAYS },
  { "no-flush", QMP_BOOL, ALWAYS },
  { NULL }
};
static const struct qmp_arg dirty_bitmap[] = {
  { "name", QMP_STR },
  { "count", QMP_INT, ALWAYS },
  { "granularity", QMP_INT, ALWAYS },
  { "recording", QMP_BOOL, ALWAYS },
  { "busy", QMP_BOOL, ALWAYS },
  { "persistent", QMP_BOOL, ALWAYS },
  { "inconsistent", QMP_BOOL },
  { NULL }
};
static const struct qmp_arg layer[] = {
  { "node-name", QMP_STR, ALWAYS },
  { "file", QMP_STR, ALWAYS },
  { "present-bytes", QMP_INT },
  { NULL }
};
static const char *const detect_zeroes[] = { "off", "on", "unmap", NULL };
static const struct qmp_arg node[] = {
  { "node-name", QMP_STR },
  { "drv", QMP_STR, ALWAYS },
  { "file", QMP_STR, ALWAYS },
  { "ro", QMP_BOOL, ALWAYS },
  { "image", QMP_OBJECT, ALWAYS, .members = image },
  { "tracking", QMP_OBJECT, .members = tracking },
  { "dirty-bitmaps", QMP_OBJECTS, .members = dirty_bitmap },
  { "layers", QMP_OBJECTS, .members = layer },
  { "present-bytes", QMP_INT },
  { "backing", QMP_STR },
  { "backing_file", QMP_STR },
  { "cache", QMP_OBJECT, ALWAYS, .members = cache },
  { "detect_zeroes", QMP_ENUM, ALWAYS, .values = detect_zeroes },
  { "encrypted", QMP_BOOL, ALWAYS },
  { "backing_file_depth", QMP_INT, ALWAYS },
  { "write_threshold", QMP_INT, ALWAYS },
  { "bps", QMP_INT, ALWAYS },
  { "bps_rd", QMP_INT, ALWAYS },
  { "bps_wr", QMP_INT, ALWAYS },
  { "iops", QMP_INT, ALWAYS },
  { "iops_rd", QMP_INT, ALWAYS },
  { "iops_wr", QMP_INT, ALWAYS },
  { NULL }
};
const struct qmp_arg reply_query_named_block_nodes = {
  "return", QMP_OBJECTS, .members = node
};

static const struct qmp_arg block[] = {
  { "device", QMP_STR, ALWAYS },
  { "qdev", QMP_STR },
  { "type", QMP_STR, ALWAYS },
  { "removable", QMP_BOOL, ALWAYS },
  { "locked", QMP_BOOL, ALWAYS },
  { "io-status", QMP_ENUM, .values = io_statuses },
  { "inserted", QMP_OBJECT, .members = node },
  { NULL }
};
const struct qmp_arg reply_query_block = {
  "return", QMP_OBJECTS, .members = block
};

/* --- query-block-exports --- */

static const char *const export_types[] = { "nbd", NULL };
static const struct qmp_arg block_export[] = {
  { "id", QMP_STR, ALWAYS },
  { "type", QMP_ENUM, ALWAYS, .values = export_types },
  { "node-name", QMP_STR, ALWAYS },
  { "shutting-down", QMP_BOOL, ALWAYS },
  { NULL }
};
const struct qmp_arg reply_query_block_exports = {
  "return", QMP_OBJECTS, .members = block_export
};

/* --- query-changes --- */

static const struct qmp_arg extent[] = {
  { "offset", QMP_INT, ALWAYS },
  { "length", QMP_INT, ALWAYS },
  { NULL }
};
static const struct qmp_arg changes[] = {
  { "disk", QMP_STR, ALWAYS },
  { "since", QMP_STR, ALWAYS },
  { "size", QMP_INT, ALWAYS },
  { "granularity", QMP_INT, ALWAYS },
  { "dirty-bytes", QMP_INT, ALWAYS },
  { "extents", QMP_OBJECTS, ALWAYS, .members = extent },
  { "next-offset", QMP_INT },
  { NULL }
};
const struct qmp_arg reply_query_changes = {
  "return", QMP_OBJECT, .members = changes
};

/* --- checkpoints --- */

static const struct qmp_arg checkpoint_made[] = {
  { "name", QMP_STR, ALWAYS },
  { "creation-time", QMP_INT, ALWAYS },
  { "parent", QMP_STR },
  { NULL }
};
const struct qmp_arg reply_checkpoint_create = {
  "return", QMP_OBJECT, .members = checkpoint_made
};

static const char *const checkpoint_states[] = {
  "ok", "detached", "damaged", "missing", NULL
};
static const struct qmp_arg checkpoint_disk[] = {
  { "disk", QMP_STR, ALWAYS },
  { "bitmap", QMP_STR, ALWAYS },
  { "state", QMP_ENUM, ALWAYS, .values = checkpoint_states },
  { "size", QMP_INT },
  { NULL }
};
static const struct qmp_arg checkpoint[] = {
  { "name", QMP_STR, ALWAYS },
  { "current", QMP_BOOL, ALWAYS },
  { "creation-time", QMP_INT, ALWAYS },
  { "parent", QMP_STR },
  { "description", QMP_STR },
  { "disks", QMP_OBJECTS, ALWAYS, .members = checkpoint_disk },
  { NULL }
};
const struct qmp_arg reply_checkpoint_list = {
  "return", QMP_OBJECTS, .members = checkpoint
};

/* --- backups --- */

static const struct qmp_arg backup_disk_made[] = {
  { "disk", QMP_STR, ALWAYS },
  { "export", QMP_STR },
  { "contexts", QMP_STRS },
  { "target", QMP_STR },
  { "job", QMP_STR },
  { "incremental", QMP_STR },
  { NULL }
};
static const struct qmp_arg backup_made[] = {
  { "id", QMP_STR, ALWAYS },
  { "checkpoint", QMP_STR },
  { "disks", QMP_OBJECTS, ALWAYS, .members = backup_disk_made },
  { NULL }
};
const struct qmp_arg reply_backup_begin = {
  "return", QMP_OBJECT, .members = backup_made
};

static const char *const snapshot_states[] = {
  "prepared", "live", "broken", "lost", "ended", NULL
};
static const struct qmp_arg backup_disk[] = {
  { "disk", QMP_STR, ALWAYS },
  { "export", QMP_STR },
  { "contexts", QMP_STRS },
  { "target", QMP_STR },
  { "job", QMP_STR },
  { "job-status", QMP_ENUM, .values = job_statuses },
  { "current-progress", QMP_INT },
  { "total-progress", QMP_INT },
  { "incremental", QMP_STR },
  { "state", QMP_ENUM, ALWAYS, .values = snapshot_states },
  { "reason", QMP_STR },
  { "scratch-used", QMP_INT, ALWAYS },
  { "scratch-limit", QMP_INT, ALWAYS },
  { "scratch-left", QMP_INT },
  { "preserved", QMP_INT },
  { "read", QMP_INT },
  { "extents", QMP_INT },
  { "clients", QMP_INT },
  { "durable", QMP_BOOL },
  { NULL }
};
static const char *const transfer_modes[] = { "pull", "push", NULL };
static const struct qmp_arg backup[] = {
  { "id", QMP_STR, ALWAYS },
  { "mode", QMP_ENUM, ALWAYS, .values = transfer_modes },
  { "checkpoint", QMP_STR },
  { "creation-time", QMP_INT, ALWAYS },
  { "lease", QMP_INT },
  { "lease-left", QMP_INT },
  { "state", QMP_ENUM, ALWAYS, .values = snapshot_states },
  { "disks", QMP_OBJECTS, ALWAYS, .members = backup_disk },
  { NULL }
};
const struct qmp_arg reply_query_backups = {
  "return", QMP_OBJECTS, .members = backup
};

/* --- clients --- */

static const struct qmp_arg command_counters[] = {
  { "command", QMP_STR, ALWAYS },
  { "requests", QMP_INT, ALWAYS },
  { "bytes", QMP_INT, ALWAYS },
  { "errors", QMP_INT, ALWAYS },
  { NULL }
};
static const struct qmp_arg client[] = {
  { "export", QMP_STR, ALWAYS },
  { "disk", QMP_STR, ALWAYS },
  { "backup", QMP_STR },
  { "restore", QMP_STR },
  { "peer", QMP_STR },
  { "since", QMP_INT, ALWAYS },
  { "bytes-read", QMP_INT },
  { "bytes-written", QMP_INT },
  { "requests", QMP_INT },
  { "errors", QMP_INT },
  { "waits", QMP_INT },
  { "commands", QMP_OBJECTS, .members = command_counters },
  { "connection", QMP_INT },
  { "in-flight", QMP_INT },
  { NULL }
};
const struct qmp_arg reply_query_clients = {
  "return", QMP_OBJECTS, .members = client
};

static const struct qmp_arg export_counters[] = {
  { "export", QMP_STR, ALWAYS },
  { "connections", QMP_INT, ALWAYS },
  { "bytes-read", QMP_INT, ALWAYS },
  { "bytes-written", QMP_INT, ALWAYS },
  { "requests", QMP_INT, ALWAYS },
  { "errors", QMP_INT, ALWAYS },
  { "waits", QMP_INT, ALWAYS },
  { "commands", QMP_OBJECTS, ALWAYS, .members = command_counters },
  { NULL }
};
static const struct qmp_arg limit_hits[] = {
  { "limit", QMP_STR, ALWAYS },
  { "hits", QMP_INT, ALWAYS },
  { NULL }
};
static const struct qmp_arg nbd_stats[] = {
  { "exports", QMP_OBJECTS, ALWAYS, .members = export_counters },
  { "limits", QMP_OBJECTS, ALWAYS, .members = limit_hits },
  { NULL }
};
const struct qmp_arg reply_query_nbd_stats = {
  "return", QMP_OBJECT, .members = nbd_stats
};

/* --- restore-begin, query-restores --- */

static const struct qmp_arg restore_disk_made[] = {
  { "disk", QMP_STR, ALWAYS },
  { "export", QMP_STR, ALWAYS },
  { NULL }
};
static const struct qmp_arg restore_made[] = {
  { "id", QMP_STR, ALWAYS },
  { "disks", QMP_OBJECTS, ALWAYS, .members = restore_disk_made },
  { NULL }
};
const struct qmp_arg reply_restore_begin = {
  "return", QMP_OBJECT, .members = restore_made
};

static const struct qmp_arg restore_disk[] = {
  { "disk", QMP_STR, ALWAYS },
  { "export", QMP_STR, ALWAYS },
  { "served", QMP_BOOL, ALWAYS },
  { "clients", QMP_INT, ALWAYS },
  { NULL }
};
static const char *const restore_bases[] = { "current", "zero", NULL };
static const struct qmp_arg restore[] = {
  { "id", QMP_STR, ALWAYS },
  { "base", QMP_ENUM, ALWAYS, .values = restore_bases },
  { "force", QMP_BOOL, ALWAYS },
  { "creation-time", QMP_INT, ALWAYS },
  { "disks", QMP_OBJECTS, ALWAYS, .members = restore_disk },
  { NULL }
};
const struct qmp_arg reply_query_restores = {
  "return", QMP_OBJECTS, .members = restore
};

/* --- jobs --- */

static const char *const job_types[] = {
  "backup", "bitmap-populate", "commit", "stream", NULL
};
static const struct qmp_arg job[] = {
  { "id", QMP_STR, ALWAYS },
  { "type", QMP_ENUM, ALWAYS, .values = job_types },
  { "status", QMP_ENUM, ALWAYS, .values = job_statuses },
  { "current-progress", QMP_INT, ALWAYS },
  { "total-progress", QMP_INT, ALWAYS },
  { "error", QMP_STR },
  { "reason", QMP_STR },
  { NULL }
};
const struct qmp_arg reply_query_jobs = {
  "return", QMP_OBJECTS, .members = job
};

static const struct qmp_arg block_job[] = {
  { "device", QMP_STR, ALWAYS },
  { "type", QMP_STR, ALWAYS },
  { "status", QMP_ENUM, ALWAYS, .values = job_statuses },
  { "len", QMP_INT, ALWAYS },
  { "offset", QMP_INT, ALWAYS },
  { "speed", QMP_INT, ALWAYS },
  { "busy", QMP_BOOL, ALWAYS },
  { "paused", QMP_BOOL, ALWAYS },
  { "io-status", QMP_ENUM, ALWAYS, .values = io_statuses },
  { "ready", QMP_BOOL, ALWAYS },
  { "auto-finalize", QMP_BOOL, ALWAYS },
  { "auto-dismiss", QMP_BOOL, ALWAYS },
  { "error", QMP_STR },
  { NULL }
};
const struct qmp_arg reply_query_block_jobs = {
  "return", QMP_OBJECTS, .members = block_job
};

/* --- events --- */

static const struct qmp_arg event_id[] = {
  { "id", QMP_STR, ALWAYS },
  { NULL }
};
static const struct qmp_arg event_block_job[] = {
  { "device", QMP_STR, ALWAYS },
  { "type", QMP_ENUM, ALWAYS, .values = job_types },
  { "len", QMP_INT, ALWAYS },
  { "offset", QMP_INT, ALWAYS },
  { "speed", QMP_INT, ALWAYS },
  { NULL }
};
static const struct qmp_arg event_block_job_completed[] = {
  { "device", QMP_STR, ALWAYS },
  { "type", QMP_ENUM, ALWAYS, .values = job_types },
  { "len", QMP_INT, ALWAYS },
  { "offset", QMP_INT, ALWAYS },
  { "speed", QMP_INT, ALWAYS },
  { "error", QMP_STR },
  { NULL }
};
static const char *const operations[] = { "read", "write", NULL };
static const char *const error_actions[] = {
  "ignore", "report", "stop", NULL
};
static const struct qmp_arg event_block_io_error[] = {
  { "device", QMP_STR, ALWAYS },
  { "node-name", QMP_STR, ALWAYS },
  { "operation", QMP_ENUM, ALWAYS, .values = operations },
  { "action", QMP_ENUM, ALWAYS, .values = error_actions },
  { "nospace", QMP_BOOL, ALWAYS },
  { "reason", QMP_STR, ALWAYS },
  { NULL }
};
static const struct qmp_arg event_block_job_error[] = {
  { "device", QMP_STR, ALWAYS },
  { "operation", QMP_ENUM, ALWAYS, .values = operations },
  { "action", QMP_ENUM, ALWAYS, .values = error_actions },
  { NULL }
};
static const struct qmp_arg event_block_job_pending[] = {
  { "id", QMP_STR, ALWAYS },
  { "type", QMP_ENUM, ALWAYS, .values = job_types },
  { NULL }
};
static const char *const checkpoint_changes[] = {
  "created", "deleted", NULL
};
static const struct qmp_arg event_checkpoint_change[] = {
  { "name", QMP_STR, ALWAYS },
  { "action", QMP_ENUM, ALWAYS, .values = checkpoint_changes },
  { NULL }
};
static const struct qmp_arg event_events_lost[] = {
  { "count", QMP_INT, ALWAYS },
  { NULL }
};
static const struct qmp_arg event_job_status_change[] = {
  { "id", QMP_STR, ALWAYS },
  { "status", QMP_ENUM, ALWAYS, .values = job_statuses },
  { NULL }
};
static const char *const shutdown_reasons[] = {
  "host-qmp-quit", "host-signal", NULL
};
static const struct qmp_arg event_shutdown[] = {
  { "guest", QMP_BOOL, ALWAYS },
  { "reason", QMP_ENUM, ALWAYS, .values = shutdown_reasons },
  { NULL }
};
static const struct qmp_arg event_snapshot_broken[] = {
  { "disk", QMP_STR },
  { "snapshot", QMP_STR },
  { "reason", QMP_STR, ALWAYS },
  { "nospace", QMP_BOOL, ALWAYS },
  { NULL }
};
static const struct qmp_arg event_snapshot_lost[] = {
  { "disk", QMP_STR },
  { "snapshot", QMP_STR },
  { "reason", QMP_STR, ALWAYS },
  { NULL }
};
static const struct qmp_arg event_tracking_error[] = {
  { "disk", QMP_STR },
  { "reason", QMP_STR, ALWAYS },
  { "nospace", QMP_BOOL, ALWAYS },
  { NULL }
};

static const struct qmp_arg event_backup_expired[] = {
  { "id", QMP_STR, ALWAYS },
  { "lease", QMP_INT, ALWAYS },
  { NULL }
};

const struct qmp_event_type events_table[] = {
  { "BACKUP_EXPIRED", event_backup_expired },
  { "BLOCK_EXPORT_DELETED", event_id },
  { "BLOCK_IO_ERROR", event_block_io_error },
  { "BLOCK_JOB_CANCELLED", event_block_job },
  { "BLOCK_JOB_COMPLETED", event_block_job_completed },
  { "BLOCK_JOB_ERROR", event_block_job_error },
  { "BLOCK_JOB_PENDING", event_block_job_pending },
  { "BLOCK_JOB_READY", event_block_job },
  { "CHECKPOINT_CHANGE", event_checkpoint_change },
  { "EVENTS_LOST", event_events_lost },
  { "JOB_STATUS_CHANGE", event_job_status_change },
  { "SERVER_REEXEC", NULL },
  { "SHUTDOWN", event_shutdown },
  { "SNAPSHOT_BROKEN", event_snapshot_broken },
  { "SNAPSHOT_LOST", event_snapshot_lost },
  { "TRACKING_ERROR", event_tracking_error },
  { NULL }
};
