/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ctl-backup.c - backup begin, end, renew, list. */
#include <config.h>

#include <stdio.h>
#include <string.h>

#include "tools/ctl.h"
#include "tools/human.h"
#include "tools/table.h"

static const struct arg_spec begin_options[] = {
  { "id", "ID", "its name; default: the checkpoint's, or the time" },
  { "disk", "DISK", "needed; DISK or DISK,KEY=VALUE,...; the keys are mode, "
    "incremental, export, bitmap, scratch, limit and target", true },
  { "checkpoint", "NAME", "also create this checkpoint, at the same instant" },
  { "description", "TEXT", "of the checkpoint" },
  { "incremental", "NAME", "offer what changed since this checkpoint" },
  { "scratch-limit", "SIZE", "most that old data may take, a disk" },
  { "reuse-external", NULL, "the files of scratch= exist and are kept" },
  { "on-cbw-error", "WHAT", "break-snapshot (default) or break-guest-write" },
  { "cbw-timeout", "SECONDS", "longest that a write may be held up" },
  { "durable", NULL, "let the snapshot survive power loss" },
  { "lease", "SECONDS", "end it, as failed, when it is not used for so long" },
  { NULL }
};

bool
ctl_get_lease (const struct ctl *ctl, uint64_t *out)
{
  const char *lease = args_value (ctl->args, "lease");

  if (lease == NULL || human_parse_uint (lease, 0, 366 * 24 * 3600, out))
    return true;
  ctl_usage (ctl, "--lease needs seconds, at most a year, not '%s'", lease);
  return false;
}

/* What may follow the disk's name, and the member that it stands for. */
static const struct disk_key {
  const char *name, *member;
  bool of_scratch, is_size;
} disk_keys[] = {
  { "mode", "backupmode" },
  { "incremental", "incremental" },
  { "export", "exportname" },
  { "bitmap", "exportbitmap" },
  { "scratch", "file", true },
  { "limit", "limit", true, true },
  { "target", "target" },
};

/* False after a message. */
static bool
put_disk_key (const struct ctl *ctl, const struct disk_key *key,
              const char *value, json_t *disk, json_t *scratch)
{
  json_t *to = key->of_scratch ? scratch : disk;
  uint64_t bytes = 0;

  if (json_object_get (to, key->member) != NULL) {
    ctl_usage (ctl, "--disk %s: %s is there twice", ctl_get (disk, "disk"),
               key->name);
    return false;
  }
  if (key->is_size && !human_parse_size (value, &bytes)) {
    ctl_usage (ctl, "--disk %s: %s needs a size such as 512M or 10G, not '%s'",
               ctl_get (disk, "disk"), key->name, value);
    return false;
  }
  json_object_set_new (to, key->member, key->is_size ?
                       json_integer ((json_int_t) bytes)
                       : json_string (value));
  return true;
}

/* text: "KEY=VALUE"; modified.  false after a message. */
static bool
take_disk_key (const struct ctl *ctl, char *text, json_t *disk,
               json_t *scratch)
{
  char *value = strchr (text, '=');

  if (value == NULL || value[1] == '\0') {
    ctl_usage (ctl, "--disk %s: '%s' is not KEY=VALUE", ctl_get (disk, "disk"),
               text);
    return false;
  }
  *value++ = '\0';
  for (size_t i = 0; i < G_N_ELEMENTS (disk_keys); i++)
    if (strcmp (text, disk_keys[i].name) == 0)
      return put_disk_key (ctl, &disk_keys[i], value, disk, scratch);
  ctl_usage (ctl, "--disk %s: there is no key '%s'; use mode, incremental, "
             "export, bitmap, scratch, limit or target",
             ctl_get (disk, "disk"), text);
  return false;
}

/* text: "DISK[,KEY=VALUE]..."; no disk's name has a comma.  scratch: what disks
 * have that do not say.  NULL after a message.
 */
static json_t *
begin_disk (const struct ctl *ctl, const char *text, json_t *scratch)
{
  g_auto (GStrv) parts = g_strsplit (text, ",", -1);
  json_t *own = json_object ();
  json_t *disk = json_pack ("{s:s}", "disk", parts[0] != NULL ? parts[0] : "");

  for (unsigned i = 1; parts[0] != NULL && parts[i] != NULL; i++)
    if (!take_disk_key (ctl, parts[i], disk, own)) {
      json_decref (own);
      json_decref (disk);
      return NULL;
    }
  json_object_update_missing (own, scratch);
  if (json_object_size (own) > 0)
    json_object_set (disk, "scratch", own);
  json_decref (own);
  return disk;
}

/* *out_push: one has a target.  NULL after a message. */
static json_t *
begin_disks (const struct ctl *ctl, bool *out_push)
{
  const GPtrArray *disks = args_values (ctl->args, "disk");
  json_t *list = json_array (), *scratch = json_object ();

  *out_push = false;
  if (!ctl_put_size (ctl, scratch, "limit", "scratch-limit"))
    g_clear_pointer (&list, json_decref);
  for (unsigned i = 0; list != NULL && i < disks->len; i++) {
    json_t *disk = begin_disk (ctl, disks->pdata[i], scratch);

    *out_push |= json_object_get (disk, "target") != NULL;
    if (disk == NULL)
      g_clear_pointer (&list, json_decref);
    else
      json_array_append_new (list, disk);
  }
  json_decref (scratch);
  return list;
}

static void
print_backup (const json_t *backup, bool push)
{
  static const char *const pull_titles[] =
    { "BACKUP", "DISK", "EXPORT", "SINCE", "CHECKPOINT", "CONTEXTS", NULL };
  static const char *const push_titles[] =
    { "BACKUP", "DISK", "TARGET", "SINCE", "CHECKPOINT", "JOB", NULL };
  g_autoptr (Table) table = table_new (push ? push_titles : pull_titles);
  json_t *disk;
  size_t i;

  json_array_foreach (json_object_get (backup, "disks"), i, disk) {
    g_autoptr (GString) contexts = g_string_new (NULL);
    json_t *context;
    size_t j;

    json_array_foreach (json_object_get (disk, "contexts"), j, context)
      g_string_append_printf (contexts, "%s%s", j > 0 ? "," : "",
                              json_string_value (context) != NULL
                                ? json_string_value (context) : "?");
    table_cell (table, ctl_get (backup, "id"));
    table_cell (table, ctl_get (disk, "disk"));
    table_cell (table, ctl_get (disk, push ? "target" : "export"));
    table_cell (table, ctl_get (disk, "incremental"));
    table_cell (table, ctl_get (backup, "checkpoint"));
    table_cell (table, push ? ctl_get (disk, "job") : contexts->str);
  }
  table_print (table);
}

static int
begin (struct ctl *ctl)
{
  const char *name = args_value (ctl->args, "checkpoint");
  const char *timeout = args_value (ctl->args, "cbw-timeout");
  json_t *arguments, *disks, *reply;
  uint64_t seconds, lease = 0;
  bool push;

  if (args_value (ctl->args, "description") != NULL && name == NULL)
    return ctl_usage (ctl, "--description is the checkpoint's: it needs "
                      "--checkpoint");
  if (args_values (ctl->args, "disk")->len == 0)
    return ctl_usage (ctl, "which disks? Use --disk DISK, for each");
  if (timeout != NULL &&
      !human_parse_uint (timeout, 0, UINT32_MAX, &seconds))
    return ctl_usage (ctl, "--cbw-timeout needs a number of seconds, not '%s'",
                      timeout);
  if (!ctl_get_lease (ctl, &lease))
    return EXIT_USAGE;
  disks = begin_disks (ctl, &push);
  if (disks == NULL)
    return EXIT_USAGE;
  arguments = json_pack ("{s:o, s:s*}", "disks", disks,
                         "mode", push ? "push" : NULL);
  ctl_put_string (ctl, arguments, "id", "id");
  ctl_put_string (ctl, arguments, "incremental", "incremental");
  ctl_put_string (ctl, arguments, "on-cbw-error", "on-cbw-error");
  ctl_put_flag (ctl, arguments, "durable", "durable");
  ctl_put_flag (ctl, arguments, "reuse-external", "reuse-external");
  if (timeout != NULL)
    json_object_set_new (arguments, "cbw-timeout", json_integer (seconds));
  if (lease > 0)
    json_object_set_new (arguments, "lease", json_integer (lease));
  if (name != NULL) {
    json_t *checkpoint = json_pack ("{s:s}", "name", name);

    ctl_put_string (ctl, checkpoint, "description", "description");
    json_object_set_new (arguments, "checkpoint", checkpoint);
  }
  reply = ctl_execute (ctl, "backup-begin", arguments);
  if (reply == NULL)
    return EXIT_FAILED;
  if (!ctl_print_json (ctl, reply))
    print_backup (reply, push);
  json_decref (reply);
  return EXIT_OK;
}

static const struct arg_spec end_options[] = {
  { "failed", NULL, "the data were not got: delete its checkpoint too" },
  { NULL }
};

static int
end (struct ctl *ctl)
{
  json_t *arguments = json_pack ("{s:s}", "id", ctl_word (ctl, 0));

  ctl_put_flag (ctl, arguments, "failed", "failed");
  return ctl_simple (ctl, "backup-end", arguments, NULL);
}

static const struct arg_spec renew_options[] = {
  { "lease", "SECONDS", "with another lease from now on; 0: none" },
  { NULL }
};

static int
renew (struct ctl *ctl)
{
  json_t *arguments;
  uint64_t lease = 0;

  if (!ctl_get_lease (ctl, &lease))
    return EXIT_USAGE;
  arguments = json_pack ("{s:s}", "id", ctl_word (ctl, 0));
  if (args_value (ctl->args, "lease") != NULL)
    json_object_set_new (arguments, "lease", json_integer (lease));
  return ctl_simple (ctl, "backup-renew", arguments, NULL);
}

static const struct arg_spec list_options[] = {
  { "watch", NULL, "go on until no backup is left" },
  { NULL }
};

/* The disk's own member, else that of the whole backup. */
static const json_t *
either (const json_t *disk, const json_t *backup, const char *key)
{
  const json_t *value = json_object_get (disk, key);

  return value != NULL ? value : json_object_get (backup, key);
}

static char *
count_text (const json_t *value)
{
  if (json_is_array (value))
    return g_strdup_printf ("%zu", json_array_size (value));
  if (json_is_integer (value))
    return g_strdup_printf ("%lld", (long long) json_integer_value (value));
  return NULL;
}

/* 0 stands for none. */
static char *
limit_text (const json_t *disk)
{
  if (json_integer_value (json_object_get (disk, "scratch-limit")) == 0)
    return NULL;
  return ctl_get_size (disk, "scratch-limit");
}

static char *
lease_text (const json_t *backup)
{
  const json_t *left = json_object_get (backup, "lease-left");

  return json_is_integer (left)
    ? g_strdup_printf ("%lld s", (long long) json_integer_value (left)) : NULL;
}

void
ctl_print_backups (const struct ctl *ctl, const json_t *backups)
{
  static const char *const titles[] =
    { "BACKUP", "DISK", "EXPORT", "SINCE", "CHECKPOINT", "STATE", ">SCRATCH",
      ">LIMIT", ">CLIENTS", ">LEASE", "REASON", NULL };
  g_autoptr (Table) table = table_new (titles);
  const json_t *backup, *disk;
  size_t i, j;

  json_array_foreach (backups, i, backup)
    json_array_foreach (json_object_get (backup, "disks"), j, disk) {
      table_cell (table, ctl_get (backup, "id"));
      table_cell (table, ctl_get (disk, "disk"));
      table_cell (table, ctl_get (disk, "export"));
      table_cell (table, ctl_get (disk, "incremental"));
      table_cell (table, ctl_get (backup, "checkpoint"));
      table_cell (table, json_string_value (either (disk, backup, "state")));
      table_cell_take (table, ctl_get_size (disk, "scratch-used"));
      table_cell_take (table, limit_text (disk));
      table_cell_take (table, count_text (either (disk, backup, "clients")));
      table_cell_take (table, lease_text (backup));
      table_cell (table, json_string_value (either (disk, backup, "reason")));
    }
  table_print (table);
}

static int
list (struct ctl *ctl)
{
  json_t *backups;

  if (args_flag (ctl->args, "watch"))
    return ctl_watch_list (ctl, "query-backups", ctl_print_backups);
  backups = ctl_execute (ctl, "query-backups", NULL);
  if (backups == NULL)
    return EXIT_FAILED;
  if (!ctl_print_json (ctl, backups))
    ctl_print_backups (ctl, backups);
  json_decref (backups);
  return EXIT_OK;
}

const struct verb backup_verbs[] = {
  { "backup begin", "", 0, 0, "freeze snapshots of disks and export them",
    begin_options, begin },
  { "backup end", "ID", 1, 1, "end it: its exports and snapshots go",
    end_options, end },
  { "backup renew", "ID", 1, 1, "it is still wanted: its lease begins anew",
    renew_options, renew },
  { "backup list", "", 0, 0, "the backups that have begun", list_options,
    list },
  { NULL }
};
