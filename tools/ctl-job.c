/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ctl-job.c - job list, pause, resume, ..., backup push, transaction. */
#include <config.h>

#include <stdio.h>
#include <string.h>

#include "tools/ctl.h"
#include "tools/human.h"
#include "tools/table.h"

static const struct arg_spec no_options[] = { { NULL } };

/* --- job list --- */

static const struct arg_spec list_options[] = {
  { "watch", NULL, "draw progress until all jobs have ended" },
  { NULL }
};

/* The entry of query-block-jobs for this one, or NULL. */
static const json_t *
find_block_job (const json_t *block_jobs, const char *id)
{
  const json_t *entry;
  size_t i;

  json_array_foreach (block_jobs, i, entry)
    if (g_strcmp0 (ctl_get (entry, "device"), id) == 0)
      return entry;
  return NULL;
}

static char *
percent_text (const json_t *job)
{
  const json_t *done = json_object_get (job, "current-progress");
  const json_t *total = json_object_get (job, "total-progress");

  if (!json_is_integer (done) || !json_is_integer (total) ||
      json_integer_value (total) <= 0)
    return NULL;
  return g_strdup_printf ("%.1f %%", 100.0 * json_integer_value (done) /
                          json_integer_value (total));
}

/* 0 stands for no limit. */
static char *
speed_text (const json_t *block_job)
{
  g_autofree char *size = ctl_get_size (block_job, "speed");

  if (size == NULL ||
      json_integer_value (json_object_get (block_job, "speed")) == 0)
    return NULL;
  return g_strconcat (size, "/s", NULL);
}

void
ctl_print_jobs (const json_t *jobs, const json_t *block_jobs)
{
  static const char *const titles[] =
    { "JOB", "TYPE", "STATUS", ">DONE", ">OF", ">PERCENT", ">SPEED LIMIT",
      "IO", "ERROR OR REASON", NULL };
  g_autoptr (Table) table = table_new (titles);
  const json_t *job;
  size_t i;

  json_array_foreach (jobs, i, job) {
    const json_t *block = find_block_job (block_jobs, ctl_get (job, "id"));
    const char *io = ctl_get (block, "io-status");
    const char *error = ctl_get (job, "error");

    table_cell (table, ctl_get (job, "id"));
    table_cell (table, ctl_get (job, "type"));
    table_cell (table, ctl_get (job, "status"));
    table_cell_take (table, ctl_get_size (job, "current-progress"));
    table_cell_take (table, ctl_get_size (job, "total-progress"));
    table_cell_take (table, percent_text (job));
    table_cell_take (table, speed_text (block));
    table_cell (table, g_strcmp0 (io, "ok") == 0 ? NULL : io);
    table_cell (table, error != NULL ? error : ctl_get (job, "reason"));
  }
  table_print (table);
}

static int
list (struct ctl *ctl)
{
  json_t *jobs, *block_jobs = NULL;

  if (args_flag (ctl->args, "watch"))
    return ctl_watch_jobs (ctl, NULL);
  jobs = ctl_execute (ctl, "query-jobs", NULL);
  if (jobs == NULL)
    return EXIT_FAILED;
  if (!ctl_print_json (ctl, jobs)) {
    block_jobs = ctl_execute (ctl, "query-block-jobs", NULL);
    if (block_jobs == NULL) {
      json_decref (jobs);
      return EXIT_FAILED;
    }
    ctl_print_jobs (jobs, block_jobs);
  }
  json_decref (block_jobs);
  json_decref (jobs);
  return EXIT_OK;
}

/* --- job pause, resume, cancel, complete, finalize, dismiss, speed --- */

static int
by_id (struct ctl *ctl)
{
  g_autofree char *command = g_strdup (ctl->verb->name);

  *strchr (command, ' ') = '-';
  return ctl_simple (ctl, command,
                     json_pack ("{s:s}", "id", ctl_word (ctl, 0)), NULL);
}

static int
speed (struct ctl *ctl)
{
  uint64_t bytes;

  if (!human_parse_size (ctl_word (ctl, 1), &bytes)) {
    g_autofree char *shown = human_escape (ctl_word (ctl, 1), 100);

    return ctl_usage (ctl, "job speed needs bytes a second such as 50M, or 0 "
                      "for no limit, not '%s'", shown);
  }
  return ctl_simple (ctl, "block-job-set-speed",
                     json_pack ("{s:s, s:I}", "device", ctl_word (ctl, 0),
                                "speed", (json_int_t) bytes), NULL);
}

const struct verb job_verbs[] = {
  { "job list", "", 0, 0, "what is running, and how far it is", list_options,
    list },
  { "job pause", "JOB", 1, 1, "hold it", no_options, by_id },
  { "job resume", "JOB", 1, 1, "let it go on", no_options, by_id },
  { "job cancel", "JOB", 1, 1, "end it, as if it had not been", no_options,
    by_id },
  { "job complete", "JOB", 1, 1, "let it come to its end", no_options, by_id },
  { "job finalize", "JOB", 1, 1, "let what it did take effect", no_options,
    by_id },
  { "job dismiss", "JOB", 1, 1, "take it off the list", no_options, by_id },
  { "job speed", "JOB SPEED", 2, 2, "limit its bytes a second; 0: no limit",
    no_options, speed },
  { NULL }
};

/* --- backup push --- */

static const struct arg_spec push_options[] = {
  { "sync", "MODE", "full, incremental, bitmap, top or none" },
  { "bitmap", "BITMAP", "what changed; --sync is then incremental" },
  { "bitmap-mode", "MODE", "of --sync bitmap: on-success, never or always" },
  { "job", "ID", "the job's name; default: the disk's" },
  { "speed", "SIZE", "most bytes a second" },
  { "on-source-error", "WHAT", "report, ignore, stop or enospc" },
  { "on-target-error", "WHAT", "report, ignore, stop or enospc" },
  { "manual-finalize", NULL, "wait for job finalize before it takes effect" },
  { "manual-dismiss", NULL, "keep it on the list until job dismiss" },
  { "watch", NULL, "draw progress until it has ended" },
  { NULL }
};

static int
push (struct ctl *ctl)
{
  const char *sync = args_value (ctl->args, "sync");
  const char *bitmap = args_value (ctl->args, "bitmap");
  const char *id = args_value (ctl->args, "job");
  json_t *arguments;
  int status;

  if (sync == NULL)
    sync = bitmap == NULL ? "full"
      : args_value (ctl->args, "bitmap-mode") != NULL ? "bitmap"
        : "incremental";
  arguments = json_pack ("{s:s, s:s, s:s}", "device", ctl_word (ctl, 0),
                         "target", ctl_word (ctl, 1), "sync", sync);
  if (!ctl_put_size (ctl, arguments, "speed", "speed")) {
    json_decref (arguments);
    return EXIT_USAGE;
  }
  ctl_put_string (ctl, arguments, "bitmap", "bitmap");
  ctl_put_string (ctl, arguments, "bitmap-mode", "bitmap-mode");
  ctl_put_string (ctl, arguments, "job-id", "job");
  ctl_put_string (ctl, arguments, "on-source-error", "on-source-error");
  ctl_put_string (ctl, arguments, "on-target-error", "on-target-error");
  if (args_flag (ctl->args, "manual-finalize"))
    json_object_set_new (arguments, "auto-finalize", json_false ());
  if (args_flag (ctl->args, "manual-dismiss"))
    json_object_set_new (arguments, "auto-dismiss", json_false ());
  if (!args_flag (ctl->args, "watch"))
    return ctl_simple (ctl, "blockdev-backup", arguments, NULL);
  /* Before it starts, since it may be over when the reply is here. */
  ctl_watch_begin (ctl);
  status = ctl_simple (ctl, "blockdev-backup", arguments, NULL);
  if (status == EXIT_OK)
    status = ctl_watch_jobs (ctl, id != NULL ? id : ctl_word (ctl, 0));
  return status;
}

const struct verb push_verbs[] = {
  { "backup push", "DISK NODE", 2, 2, "a job that copies a disk to a node",
    push_options, push },
  { NULL }
};

/* --- transaction --- */

static const struct arg_spec transaction_options[] = {
  { "grouped", NULL, "its jobs end together, or not at all" },
  { NULL }
};

/* The command's arguments, or only the list of actions. */
static json_t *
read_transaction (const char *name)
{
  bool is_stdin = strcmp (name, "-") == 0;
  FILE *f = is_stdin ? stdin : fopen (name, "r");
  g_autofree char *shown = human_escape (is_stdin ? "standard input" : name,
                                         500);
  json_error_t jerr;
  json_t *value;

  if (f == NULL) {
    ctl_fail ("cannot open '%s': %m", shown);
    return NULL;
  }
  value = json_loadf (f, JSON_REJECT_DUPLICATES, &jerr);
  if (value == NULL) {
    g_autofree char *why = human_escape (jerr.text, 300);

    ctl_fail ("cannot read a transaction from '%s', line %d: %s", shown,
              jerr.line, why);
  }
  else if (json_is_array (value))
    value = json_pack ("{s:o}", "actions", value);
  if (!is_stdin)
    fclose (f);
  return value;
}

static int
transaction (struct ctl *ctl)
{
  json_t *arguments = read_transaction (ctl_word (ctl, 0));

  if (arguments == NULL)
    return EXIT_FAILED;
  if (args_flag (ctl->args, "grouped"))
    json_object_set_new (arguments, "properties",
                         json_pack ("{s:s}", "completion-mode", "grouped"));
  return ctl_simple (ctl, "transaction", arguments, NULL);
}

const struct verb transaction_verbs[] = {
  { "transaction", "FILE|-", 1, 1, "several commands, all of them or none",
    transaction_options, transaction },
  { NULL }
};
