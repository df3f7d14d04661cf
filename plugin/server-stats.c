/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <string.h>

#include "plugin/commands.h"
#include "plugin/job.h"
#include "plugin/plugin.h"
#include "plugin/server-stats.h"

/* --- the server's --- */

static const char *const commands[METACONTEXT_COMMANDS] = {
  "read", "write", "other", "flush", "trim", "cache", "write-zeroes",
  "block-status",
};

void
server_stats_add_counters (json_t *to, const struct metacontext_counters *c)
{
  json_t *list = json_array ();

  json_object_set_new (to, "bytes-read",
                       json_integer ((json_int_t) c->bytes_read));
  json_object_set_new (to, "bytes-written",
                       json_integer ((json_int_t) c->bytes_written));
  json_object_set_new (to, "requests",
                       json_integer ((json_int_t) c->requests));
  /* An older host fills in no more. */
  if (c->size < sizeof *c) {
    json_decref (list);
    return;
  }
  json_object_set_new (to, "errors", json_integer ((json_int_t) c->errors));
  json_object_set_new (to, "waits", json_integer ((json_int_t) c->waits));
  for (unsigned i = 0; i < METACONTEXT_COMMANDS; i++)
    if (c->command[i].requests > 0)
      json_array_append_new (
        list, json_pack ("{s:s, s:I, s:I, s:I}", "command", commands[i],
                         "requests", (json_int_t) c->command[i].requests,
                         "bytes", (json_int_t) c->command[i].bytes,
                         "errors", (json_int_t) c->command[i].errors));
  json_object_set_new (to, "commands", list);
}

static void
add_export (void *arg, const char *export_name, unsigned connections,
            const struct metacontext_counters *c)
{
  json_t *entry = json_pack ("{s:o, s:I}", "export", qmp_text (export_name),
                             "connections", (json_int_t) connections);

  server_stats_add_counters (entry, c);
  json_array_append_new (arg, entry);
}

static void
add_limit (void *arg, const char *option, uint64_t hits)
{
  json_array_append_new (arg, json_pack ("{s:s, s:I}", "limit", option, "hits",
                                         (json_int_t) hits));
}

json_t *
server_stats (GError **error)
{
  const struct metacontext_host *host = plugin.host;
  json_t *exports, *limits;

  if (host == NULL ||
      host->size < offsetof (struct metacontext_host, limit_hits) +
      sizeof host->limit_hits || host->limit_hits == NULL) {
    command_set_error (error, "this server has no such numbers");
    return NULL;
  }
  exports = json_array ();
  limits = json_array ();
  host->export_counters (add_export, exports);
  host->limit_hits (add_limit, limits);
  return json_pack ("{s:o, s:o}", "exports", exports, "limits", limits);
}

/* --- ours --- */

static uint64_t
size_of (Disk *disk)
{
  return disk_size (disk);
}

static uint64_t
scratch_bytes (Disk *disk)
{
  struct disk_stats stats;

  disk_stats (disk, &stats);
  return stats.scratch_bytes;
}

static uint64_t
nr_snapshots (Disk *disk)
{
  struct disk_stats stats;

  disk_stats (disk, &stats);
  return stats.snapshots;
}

static uint64_t
nr_layers (Disk *disk)
{
  struct disk_stats stats;

  disk_stats (disk, &stats);
  return stats.layers;
}

static uint64_t
nr_cuts (Disk *disk)
{
  struct disk_stats stats;

  disk_stats (disk, &stats);
  return stats.cuts;
}

static uint64_t
copied_bytes (Disk *disk)
{
  struct disk_stats stats;

  disk_stats (disk, &stats);
  return stats.blocks_copied * 4096;
}

static uint64_t
intent_bytes (Disk *disk)
{
  return epoch_log_intent_bytes (disk_epoch_log (disk));
}

static uint64_t
intent_waits (Disk *disk)
{
  return epoch_log_intent_waits (disk_epoch_log (disk));
}

static uint64_t
is_untracked (Disk *disk)
{
  g_autofree char *failure = disk_tracking_error (disk);

  return failure != NULL;
}

static const struct {
  const char *name, *help;
  uint64_t (*value) (Disk *disk);
} of_disk[] = {
  { "fleece_disk_size_bytes", "size of a disk", size_of },
  { "fleece_snapshots", "snapshots of a disk", nr_snapshots },
  { "fleece_layers", "layers of old data", nr_layers },
  { "fleece_scratch_bytes", "data held in layers", scratch_bytes },
  { "fleece_copied_bytes_total", "old data saved before writes",
    copied_bytes },
  { "fleece_cuts_total", "snapshots and checkpoints begun", nr_cuts },
  { "fleece_intent_bytes",
    "what a power cut would now add to what counts as changed",
    intent_bytes },
  { "fleece_intent_waits_total", "writes that have waited for an intent",
    intent_waits },
  { "fleece_tracking_failed", "1: changes cannot be recorded",
    is_untracked },
};

static void
add_jobs (struct metacontext_metrics *metrics)
{
  static const char *const statuses[] = {
    "created", "running", "paused", "waiting", "pending", "aborting",
    "concluded",
  };
  g_autoptr (json_t) jobs = job_query ();
  json_t *job;
  size_t i;

  for (size_t s = 0; s < G_N_ELEMENTS (statuses); s++) {
    uint64_t nr = 0;

    json_array_foreach (jobs, i, job)
      nr += g_strcmp0 (json_string_value (json_object_get (job, "status")),
                       statuses[s]) == 0;
    plugin.host->metric_add (metrics, "fleece_jobs", "jobs, by their status",
                             "status", statuses[s], nr);
  }
}

void
server_stats_metrics (struct metacontext_metrics *metrics)
{
  const struct metacontext_host *host = plugin.host;
  g_autoptr (DiskTable) disks = fleece_disks (plugin.fleece);

  host->metric_add (metrics, "fleece_disks", "disks being served", NULL, NULL,
                    disks->len);
  for (size_t i = 0; i < G_N_ELEMENTS (of_disk); i++)
    for (size_t d = 0; d < disks->len; d++)
      host->metric_add (metrics, of_disk[i].name, of_disk[i].help, "disk",
                        disk_name (disks->disk[d]),
                        of_disk[i].value (disks->disk[d]));
  add_jobs (metrics);
}
