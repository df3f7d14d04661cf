/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ctl-watch.c - jobs and backups as they go on.
 *
 * Asks again and again; the events that arrive meanwhile say how jobs ended
 * that were gone before they were asked for.  On a terminal the picture is
 * redrawn, elsewhere what is new is printed.
 */
#include <config.h>

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tools/ctl.h"
#include "tools/human.h"
#include "tools/progress.h"

#define INTERVAL_US 250000

struct job {
  char *label;                  /* the id, safe to print */
  Progress *progress;
  int last_percent;             /* the last that was printed to a log */
  char *last_status;
  bool failed;
};

struct watch {
  struct ctl *ctl;
  const char *only;             /* NULL: all jobs */
  GHashTable *jobs;             /* id -> struct job */
  GPtrArray *failures;          /* messages; from events */
  unsigned nr_lines;            /* on the terminal, above the cursor */
};

static struct watch the_watch;

static void
job_free (gpointer p)
{
  struct job *job = p;

  progress_free (job->progress);
  g_free (job->last_status);
  g_free (job->label);
  g_free (job);
}

static struct job *
find_job (struct watch *w, const char *id)
{
  struct job *job = g_hash_table_lookup (w->jobs, id);

  if (job == NULL) {
    job = g_new0 (struct job, 1);
    job->label = human_escape (id, 30);
    job->progress = progress_new (PROGRESS_NONE, job->label);
    job->last_percent = -1;
    g_hash_table_insert (w->jobs, g_strdup (id), job);
  }
  return job;
}

static void
add_failure (struct watch *w, const char *id, const char *why)
{
  struct job *job = find_job (w, id);
  g_autofree char *shown = human_escape (id, 100);
  g_autofree char *reason = human_escape (why, 500);

  if (job->failed)
    return;
  job->failed = true;
  g_ptr_array_add (w->failures,
                   g_strdup_printf ("job '%s' failed: %s", shown, reason));
}

static void
take_event (void *opaque, const json_t *event)
{
  struct watch *w = opaque;
  const char *name = ctl_get (event, "event");
  const json_t *data = json_object_get (event, "data");
  const char *id = ctl_get (data, "device");

  if (name == NULL || id == NULL || (w->only != NULL && strcmp (id, w->only)))
    return;
  if (strcmp (name, "BLOCK_JOB_COMPLETED") == 0 &&
      ctl_get (data, "error") != NULL)
    add_failure (w, id, ctl_get (data, "error"));
  else if (strcmp (name, "BLOCK_JOB_CANCELLED") == 0)
    add_failure (w, id, "it was cancelled");
}

void
ctl_watch_begin (struct ctl *ctl)
{
  struct watch *w = &the_watch;

  if (w->jobs != NULL)
    return;
  w->ctl = ctl;
  w->jobs = g_hash_table_new_full (g_str_hash, g_str_equal, g_free, job_free);
  w->failures = g_ptr_array_new_with_free_func (g_free);
  qmp_set_event_handler (ctl->qmp, take_event, w);
}

static bool
has_ended (const char *status)
{
  return g_strcmp0 (status, "concluded") == 0 ||
         g_strcmp0 (status, "null") == 0;
}

static uint64_t
get_count (const json_t *object, const char *key)
{
  json_int_t n = json_integer_value (json_object_get (object, key));

  return n > 0 ? n : 0;
}

/* One line of the picture, or of the log if something is new. */
static void
show_job (struct watch *w, struct job *job, const json_t *entry, bool terminal)
{
  const char *status = ctl_get (entry, "status");
  uint64_t done = get_count (entry, "current-progress");
  uint64_t total = get_count (entry, "total-progress");
  int percent = total > 0 ? (int) (100.0 * done / total) : 0;
  g_autofree char *text = progress_text (job->progress, done, total);
  g_autofree char *shown = human_escape (status != NULL ? status : "?", 20);
  bool running = strcmp (shown, "running") == 0;

  if (terminal) {
    printf ("%s%s%s\033[K\n", text, running ? "" : "  ", running ? "" : shown);
    w->nr_lines++;
  }
  else if (percent > job->last_percent ||
           g_strcmp0 (shown, job->last_status) != 0) {
    printf ("%s  %s\n", text, shown);
    job->last_percent = percent;
    g_free (job->last_status);
    job->last_status = g_steal_pointer (&shown);
  }
}

/* Returns whether any of them is still going. */
static bool
show_jobs (struct watch *w, const json_t *jobs, bool terminal)
{
  bool going = false;
  const json_t *entry;
  size_t i;

  if (w->nr_lines > 0)
    printf ("\033[%uA", w->nr_lines);
  w->nr_lines = 0;
  json_array_foreach (jobs, i, entry) {
    const char *id = ctl_get (entry, "id");
    const char *error = ctl_get (entry, "error");
    struct job *job;

    if (id == NULL || (w->only != NULL && strcmp (id, w->only) != 0))
      continue;
    job = find_job (w, id);
    show_job (w, job, entry, terminal);
    if (!has_ended (ctl_get (entry, "status")))
      going = true;
    else if (error != NULL)     /* its event may have come before we did */
      add_failure (w, id, error);
  }
  if (terminal)
    fputs ("\033[J", stdout);
  fflush (stdout);
  return going;
}

/* Those that have ended well, by now mostly gone from the list. */
static void
say_done (struct watch *w)
{
  GHashTableIter iter;
  gpointer job;

  if (w->nr_lines > 0)
    printf ("\033[%uA\033[J", w->nr_lines);
  if (w->only != NULL)
    find_job (w, w->only);      /* it may have been too quick to be seen */
  g_hash_table_iter_init (&iter, w->jobs);
  while (g_hash_table_iter_next (&iter, NULL, &job))
    if (!((struct job *) job)->failed)
      printf ("job '%s' is done\n", ((struct job *) job)->label);
}

int
ctl_watch_jobs (struct ctl *ctl, const char *only)
{
  struct watch *w = &the_watch;
  bool terminal = isatty (STDOUT_FILENO) && !ctl->json;
  bool going = true;
  json_t *before = NULL;
  int status = EXIT_OK;

  ctl_watch_begin (ctl);
  w->only = only;
  while (going) {
    json_t *jobs = ctl_execute (ctl, "query-jobs", NULL);

    if (jobs == NULL) {
      status = EXIT_FAILED;
      break;
    }
    if (ctl->json) {
      const json_t *entry;
      size_t i;

      if (before == NULL || !json_equal (jobs, before)) {
        json_dumpf (jobs, stdout, JSON_COMPACT);
        putchar ('\n');
        fflush (stdout);
      }
      going = false;
      json_array_foreach (jobs, i, entry)
        going |= (only == NULL ||
                  g_strcmp0 (ctl_get (entry, "id"), only) == 0) &&
                 !has_ended (ctl_get (entry, "status"));
    }
    else
      going = show_jobs (w, jobs, terminal);
    json_decref (before);
    before = jobs;
    if (ferror (stdout))        /* nobody reads it: main says so */
      break;
    if (going)
      g_usleep (INTERVAL_US);
  }
  json_decref (before);
  if (status == EXIT_OK && !ctl->json)
    say_done (w);
  for (unsigned i = 0; i < w->failures->len; i++)
    status = ctl_fail ("%s", (char *) w->failures->pdata[i]);
  qmp_set_event_handler (ctl->qmp, NULL, NULL);
  g_clear_pointer (&w->jobs, g_hash_table_unref);
  g_clear_pointer (&w->failures, g_ptr_array_unref);
  return status;
}

int
ctl_watch_list (struct ctl *ctl, const char *command,
                void (*print) (const struct ctl *ctl, const json_t *list))
{
  bool terminal = isatty (STDOUT_FILENO);
  json_t *before = NULL, *now;
  size_t n;

  do {
    now = ctl_execute (ctl, command, NULL);
    if (now == NULL)
      break;
    n = json_array_size (now);
    if (before == NULL || !json_equal (now, before)) {
      if (ctl->json) {
        json_dumpf (now, stdout, JSON_COMPACT);
        putchar ('\n');
      }
      else {
        if (terminal)
          fputs ("\033[H\033[J", stdout);
        else if (before != NULL)
          putchar ('\n');
        print (ctl, now);
      }
      fflush (stdout);
    }
    json_decref (before);
    before = now;
    if (n > 0)
      g_usleep (INTERVAL_US);
  } while (n > 0 && !ferror (stdout));
  json_decref (before);
  return now != NULL ? EXIT_OK : EXIT_FAILED;
}
