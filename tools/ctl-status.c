/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ctl-status.c - status: all that an operator wants to know, on one screen. */
#include <config.h>

#include <stdio.h>
#include <string.h>

#include "tools/ctl.h"
#include "tools/human.h"
#include "tools/table.h"

/* The newest ones; `checkpoint list` shows all. */
#define MAX_CHECKPOINTS 10

#define SCRATCH_WARN_PERCENT 80
#define BACKUP_WARN_SECONDS (24 * 3600)

static const struct arg_spec no_options[] = { { NULL } };

struct status {
  struct ctl *ctl;
  json_t *disks, *backups, *restores, *checkpoints, *jobs, *block_jobs;
  json_t *clients;
  json_t *warnings;             /* strings, not escaped */
};

G_GNUC_PRINTF (2, 3)
static void
warn (struct status *s, const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list args;

  va_start (args, format);
  text = g_strdup_vprintf (format, args);
  va_end (args);
  json_array_append_new (s->warnings, json_string (text));
}

static const char *
name_of (const json_t *object, const char *key)
{
  return ctl_get (object, key) != NULL ? ctl_get (object, key) : "?";
}

/* --- what is wrong --- */

static void
check_disks (struct status *s)
{
  const json_t *disk, *bitmap;
  size_t i, j;

  json_array_foreach (s->disks, i, disk) {
    const json_t *inserted = json_object_get (disk, "inserted");
    g_autofree char *tracking = ctl_tracking_text (inserted);
    const char *io = ctl_get (disk, "io-status");

    if (tracking != NULL && !ctl_tracking_exact (inserted))
      warn (s, "disk '%s': %s", name_of (disk, "device"), tracking);
    if (io != NULL && strcmp (io, "ok") != 0)
      warn (s, "disk '%s': I/O status %s", name_of (disk, "device"), io);
    json_array_foreach (json_object_get (inserted, "dirty-bitmaps"), j, bitmap)
      if (json_is_true (json_object_get (bitmap, "inconsistent")))
        warn (s, "disk '%s': bitmap '%s' is inconsistent",
              name_of (disk, "device"), name_of (bitmap, "name"));
  }
}

static void
check_backup_disk (struct status *s, const json_t *disk)
{
  const char *state = ctl_get (disk, "state");
  const char *reason = ctl_get (disk, "reason");
  json_int_t used = json_integer_value (json_object_get (disk,
                                                         "scratch-used"));
  json_int_t limit = json_integer_value (json_object_get (disk,
                                                          "scratch-limit"));

  if (state != NULL && strcmp (state, "live") != 0)
    warn (s, "snapshot '%s' is %s%s%s", name_of (disk, "export"), state,
          reason != NULL ? ": " : "", reason != NULL ? reason : "");
  else if (limit > 0 && (double) used * 100 > (double) limit *
           SCRATCH_WARN_PERCENT)
    warn (s, "snapshot '%s' has used %.0f %% of its scratch space",
          name_of (disk, "export"), 100.0 * used / limit);
}

/* Seconds since a backup or a restore was begun; -1: not known. */
static int64_t
age_of (const json_t *object)
{
  int64_t created =
    json_integer_value (json_object_get (object, "creation-time"));
  int64_t now = g_get_real_time () / G_USEC_PER_SEC;

  return created > 0 && created <= now ? now - created : -1;
}

static void
check_age (struct status *s, const char *what, const json_t *object)
{
  int64_t age = age_of (object);

  if (age > BACKUP_WARN_SECONDS) {
    g_autofree char *text = human_duration (age);

    warn (s, "%s '%s' has been open for %s", what, name_of (object, "id"),
          text);
  }
}

static void
check_backups (struct status *s)
{
  const json_t *backup, *disk;
  size_t i, j;

  json_array_foreach (s->backups, i, backup) {
    json_array_foreach (json_object_get (backup, "disks"), j, disk)
      check_backup_disk (s, disk);
    check_age (s, "backup", backup);
  }
}

static void
check_restores (struct status *s)
{
  const json_t *restore, *disk;
  size_t i, j;

  json_array_foreach (s->restores, i, restore) {
    json_array_foreach (json_object_get (restore, "disks"), j, disk)
      if (!json_is_true (json_object_get (disk, "served")))
        warn (s, "restore '%s': its disk '%s' is not served",
              name_of (restore, "id"), name_of (disk, "disk"));
    check_age (s, "restore", restore);
  }
}

static void
check_checkpoints (struct status *s)
{
  const json_t *ckpt, *disk;
  size_t i, j;

  json_array_foreach (s->checkpoints, i, ckpt)
    json_array_foreach (json_object_get (ckpt, "disks"), j, disk) {
      const char *state = ctl_get (disk, "state");

      if (state != NULL && strcmp (state, "ok") != 0)
        warn (s, "checkpoint '%s' of disk '%s' is %s", name_of (ckpt, "name"),
              name_of (disk, "disk"), state);
    }
}

/* Why the job is on hold; NULL: it is not, or somebody has paused it. */
static const char *
reason_of_job (const struct status *s, const char *id)
{
  const json_t *job;
  size_t i;

  json_array_foreach (s->jobs, i, job)
    if (g_strcmp0 (ctl_get (job, "id"), id) == 0)
      return ctl_get (job, "reason");
  return NULL;
}

static void
check_jobs (struct status *s)
{
  const json_t *job;
  size_t i;

  json_array_foreach (s->jobs, i, job)
    if (ctl_get (job, "error") != NULL)
      warn (s, "job '%s' failed: %s", name_of (job, "id"),
            ctl_get (job, "error"));
    else if (ctl_get (job, "reason") != NULL)
      warn (s, "job '%s' is %s: %s", name_of (job, "id"),
            name_of (job, "status"), ctl_get (job, "reason"));
  json_array_foreach (s->block_jobs, i, job) {
    const char *io = ctl_get (job, "io-status");

    if (io != NULL && strcmp (io, "ok") != 0 &&
        reason_of_job (s, ctl_get (job, "device")) == NULL)
      warn (s, "job '%s' is held up: I/O status %s", name_of (job, "device"),
            io);
  }
}

/* --- tables --- */

/* Those above the image, which is listed with them if there are any. */
static char *
layers_text (const json_t *inserted)
{
  size_t n = json_array_size (json_object_get (inserted, "layers"));

  return g_strdup_printf ("%zu", n > 0 ? n - 1 : 0);
}

static char *
age_text (const json_t *object)
{
  return age_of (object) >= 0 ? human_duration (age_of (object)) : NULL;
}

static char *
clients_text (const json_t *disk)
{
  return g_strdup_printf ("%lld", (long long) json_integer_value (
                            json_object_get (disk, "clients")));
}

static void
print_disks (const struct status *s)
{
  static const char *const titles[] =
    { "DISK", ">SIZE", ">USED", "TRACKING", ">SNAPSHOTS", ">SCRATCH",
      ">BITMAPS", ">LAYERS", NULL };
  g_autoptr (Table) table = table_new (titles);
  const json_t *disk;
  size_t i;

  json_array_foreach (s->disks, i, disk) {
    const json_t *inserted = json_object_get (disk, "inserted");
    const json_t *image = json_object_get (inserted, "image");
    const json_t *tracking = json_object_get (inserted, "tracking");

    table_cell (table, ctl_get (disk, "device"));
    table_cell_take (table, ctl_get_size (image, "virtual-size"));
    table_cell_take (table, ctl_get_size (image, "actual-size"));
    table_cell (table, tracking == NULL ? NULL
                : ctl_tracking_exact (inserted) ? "exact" : "see below");
    table_cell_take (table, g_strdup_printf (
      "%lld", (long long) json_integer_value (json_object_get (tracking,
                                                               "snapshots"))));
    table_cell_take (table, ctl_get_size (tracking, "scratch-bytes"));
    table_cell_take (table, g_strdup_printf (
      "%zu", json_array_size (json_object_get (inserted, "dirty-bitmaps"))));
    table_cell_take (table, layers_text (inserted));
  }
  table_print (table);
}

static char *
left_text (const json_t *disk)
{
  json_int_t used = json_integer_value (json_object_get (disk,
                                                         "scratch-used"));
  json_int_t limit = json_integer_value (json_object_get (disk,
                                                          "scratch-limit"));

  return limit > 0 ? human_size (limit > used ? limit - used : 0)
    : g_strdup ("no limit");
}

static void
print_backups (const struct status *s)
{
  static const char *const titles[] =
    { "BACKUP", "EXPORT", "STATE", ">OPEN FOR", ">SCRATCH", ">LEFT",
      ">CLIENTS", NULL };
  g_autoptr (Table) table = table_new (titles);
  const json_t *backup, *disk;
  size_t i, j;

  json_array_foreach (s->backups, i, backup)
    json_array_foreach (json_object_get (backup, "disks"), j, disk) {
      table_cell (table, ctl_get (backup, "id"));
      table_cell (table, ctl_get (disk, "export"));
      table_cell (table, ctl_get (disk, "state"));
      table_cell_take (table, age_text (backup));
      table_cell_take (table, ctl_get_size (disk, "scratch-used"));
      table_cell_take (table, left_text (disk));
      table_cell_take (table, clients_text (disk));
    }
  table_print (table);
}

static void
print_restores (const struct status *s)
{
  static const char *const titles[] =
    { "RESTORE", "EXPORT", "BASE", ">OPEN FOR", ">CLIENTS", NULL };
  g_autoptr (Table) table = table_new (titles);
  const json_t *restore, *disk;
  size_t i, j;

  json_array_foreach (s->restores, i, restore)
    json_array_foreach (json_object_get (restore, "disks"), j, disk) {
      table_cell (table, ctl_get (restore, "id"));
      table_cell (table, ctl_get (disk, "export"));
      table_cell (table, ctl_get (restore, "base"));
      table_cell_take (table, age_text (restore));
      table_cell_take (table, clients_text (disk));
    }
  table_print (table);
}

static void
print_checkpoint (const struct status *s, Table *table, const json_t *ckpt)
{
  g_autoptr (GString) changed = g_string_new (NULL);
  const json_t *disk;
  size_t i;

  json_array_foreach (json_object_get (ckpt, "disks"), i, disk) {
    g_autofree char *size = ctl_get_size (disk, "size");

    g_string_append_printf (changed, "%s%s %s", i > 0 ? ", " : "",
                            name_of (disk, "disk"),
                            size != NULL ? size : name_of (disk, "state"));
  }
  table_cell (table, ctl_get (ckpt, "name"));
  table_cell_take (table, ctl_get_time (s->ctl, ckpt, "creation-time"));
  table_cell (table, changed->str);
}

static void
print_checkpoints (const struct status *s)
{
  static const char *const titles[] =
    { "CHECKPOINT", "CREATED", "CHANGED SINCE", NULL };
  g_autoptr (Table) table = table_new (titles);
  size_t n = json_array_size (s->checkpoints);
  size_t first = n > MAX_CHECKPOINTS ? n - MAX_CHECKPOINTS : 0;

  for (size_t i = first; i < n; i++)
    print_checkpoint (s, table, json_array_get (s->checkpoints, i));
  table_print (table);
  if (first > 0)
    printf ("and %zu older ones\n", first);
}

static void
print_all (const struct status *s)
{
  const json_t *warning;
  size_t i;

  print_disks (s);
  putchar ('\n');
  if (json_array_size (s->backups) > 0)
    print_backups (s);
  else
    puts ("no backup is open");
  putchar ('\n');
  if (json_array_size (s->restores) > 0) {
    print_restores (s);
    putchar ('\n');
  }
  if (json_array_size (s->checkpoints) > 0)
    print_checkpoints (s);
  else
    puts ("no checkpoints");
  putchar ('\n');
  if (json_array_size (s->jobs) > 0)
    ctl_print_jobs (s->jobs, s->block_jobs);
  else
    puts ("no jobs");
  putchar ('\n');
  if (json_array_size (s->clients) > 0)
    ctl_print_clients (s->ctl, s->clients);
  else
    puts ("no clients");
  putchar ('\n');
  json_array_foreach (s->warnings, i, warning) {
    g_autofree char *text = human_escape (json_string_value (warning), 500);

    printf ("warning: %s\n", text);
  }
  if (i == 0)
    puts ("no warnings");
}

/* --- together --- */

static bool
ask (struct status *s)
{
  const struct {
    const char *command;
    json_t **to;
  } queries[] = {
    { "query-block", &s->disks },
    { "query-backups", &s->backups },
    { "query-restores", &s->restores },
    { "checkpoint-list", &s->checkpoints },
    { "query-jobs", &s->jobs },
    { "query-block-jobs", &s->block_jobs },
    { "query-clients", &s->clients },
  };

  for (size_t i = 0; i < G_N_ELEMENTS (queries); i++) {
    json_t *arguments = queries[i].to == &s->checkpoints
      ? json_pack ("{s:b}", "size", 1) : NULL;

    *queries[i].to = ctl_execute (s->ctl, queries[i].command, arguments);
    if (*queries[i].to == NULL)
      return false;
  }
  return true;
}

static int
status (struct ctl *ctl)
{
  struct status s = { .ctl = ctl, .warnings = json_array () };
  bool ok = ask (&s);

  if (ok) {
    json_t *all;

    check_disks (&s);
    check_backups (&s);
    check_restores (&s);
    check_checkpoints (&s);
    check_jobs (&s);
    all = json_pack ("{s:O, s:O, s:O, s:O, s:O, s:O, s:O}", "disks", s.disks,
                     "backups", s.backups, "restores", s.restores,
                     "checkpoints", s.checkpoints, "jobs", s.jobs, "clients",
                     s.clients, "warnings", s.warnings);
    if (!ctl_print_json (ctl, all))
      print_all (&s);
    json_decref (all);
  }
  json_decref (s.disks);
  json_decref (s.backups);
  json_decref (s.restores);
  json_decref (s.checkpoints);
  json_decref (s.jobs);
  json_decref (s.block_jobs);
  json_decref (s.clients);
  json_decref (s.warnings);
  return ok ? EXIT_OK : EXIT_FAILED;
}

const struct verb status_verbs[] = {
  { "status", "", 0, 0, "disks, backups, restores, checkpoints, jobs, clients,"
    " warnings",
    no_options, status },
  { NULL }
};
