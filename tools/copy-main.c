/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* copy-main.c - fleececopy: what is copied to where, and in which order.
 *
 * The order is what makes a copy trustworthy:
 *   1. open both ends, refuse what must be refused: nothing has changed yet
 *   2. the mark says in-progress, durably
 *   3. resize, copy, zero
 *   4. flush the data
 *   5. compare, if asked to
 *   6. the mark says complete, durably
 * Stopped anywhere between 2 and 6, the target is known to be unfinished.
 */
#include <config.h>

#include <inttypes.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "tools/copy-engine.h"
#include "tools/copy-mark.h"
#include "tools/copy-options.h"
#include "tools/human.h"

/* All that main's steps share. */
struct job {
  struct copy_options o;
  Peer *source, *target;
  char *mark_path;              /* NULL: this target is not marked */
  struct mark mark;             /* what it will be marked as */
  bool markable;                /* we know what it is a copy of */
  bool target_is_zero;
  struct engine_counts counts;
  int64_t start_us, took_us;    /* the copy alone, flush included */
};

static int interrupt_fd = -1;
static volatile sig_atomic_t interrupted_by;

static void
on_signal (int sig)
{
  uint64_t one = 1;
  ssize_t r;

  interrupted_by = sig;
  r = write (interrupt_fd, &one, sizeof one);
  (void) r;
}

static void
catch_signals (void)
{
  static const int signals[] = { SIGINT, SIGTERM, SIGHUP };
  struct sigaction sa = { .sa_handler = on_signal, .sa_flags = SA_RESTART };

  interrupt_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  for (size_t i = 0; i < G_N_ELEMENTS (signals); i++) {
    struct sigaction old;

    /* nohup: what is ignored stays ignored. */
    if (sigaction (signals[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
      sigaction (signals[i], &sa, NULL);
  }
  signal (SIGPIPE, SIG_IGN);
}

static G_GNUC_PRINTF (2, 3) void
say (const struct job *job, const char *format, ...)
{
  va_list args;

  if (!job->o.verbose)
    return;
  fputs ("fleececopy: ", stderr);
  va_start (args, format);
  vfprintf (stderr, format, args);
  va_end (args);
  fputc ('\n', stderr);
}

static G_GNUC_PRINTF (2, 3) bool
refuse (GError **error, const char *format, ...)
{
  va_list args;

  va_start (args, format);
  *error = g_error_new_valist (ENGINE_ERROR, ENGINE_ERROR_FAILED, format,
                               args);
  va_end (args);
  return false;
}

/* What the copy will be a copy of: --mark, else the export's name. */
static void
name_the_copy (struct job *job)
{
  const char *export = job->source->export_name;
  struct mark *m = &job->mark;

  m->size = job->source->size;
  m->source = g_strdup (job->o.source);
  if (job->o.mark != NULL) {
    if (mark_split_name (job->o.mark, &m->disk, &m->checkpoint))
      job->markable = true;
    else if (export != NULL) {
      /* --mark ID: the disk is the export's, whatever its own id. */
      g_autofree char *id = NULL;

      if (!mark_split_name (export, &m->disk, &id))
        m->disk = g_strdup (export);
      m->checkpoint = g_strdup (job->o.mark);
      job->markable = true;
    }
  }
  else if (export != NULL)
    job->markable = mark_split_name (export, &m->disk, &m->checkpoint);
  m->since = job->o.since != NULL ? g_strdup (job->o.since) : NULL;
}

/* May the target be updated from X to what the source is?  Refusing is the
 * point: an update of the wrong image is a corrupt backup that looks fine.
 */
static bool
check_mark (const struct job *job, GError **error)
{
  const char *target = job->o.target;
  const struct mark *want = &job->mark;
  g_auto (Mark) have = { 0 };
  g_autofree char *mtime = peer_mtime (job->target);
  int r;

  if (job->mark_path == NULL)
    return refuse (error, "refusing to update '%s': what it is a copy of can "
                   "be noted only in a file named by --mark-file (or use "
                   "--force)", target);
  r = mark_load (job->mark_path, &have, error);
  if (r < 0)
    return false;
  if (r == 0)
    return refuse (error, "refusing to update '%s': it is not marked as a "
                   "copy of '%s' (there is no '%s'); make a full copy, or "
                   "use --force", target, want->since, job->mark_path);
  if (strcmp (have.disk, want->disk) != 0)
    return refuse (error, "refusing to update '%s': it is a copy of disk '%s' "
                   "and the source is disk '%s'", target, have.disk,
                   want->disk);
  if (!have.complete && have.since == NULL)
    return refuse (error, "refusing to update '%s': it is an unfinished full "
                   "copy of '%s@%s'; make the full copy again", target,
                   have.disk, have.checkpoint);
  if (!have.complete && (strcmp (have.since, want->since) != 0 ||
                         strcmp (have.checkpoint, want->checkpoint) != 0))
    return refuse (error, "refusing to update '%s': an update of it from '%s' "
                   "to '%s' was interrupted; repeat that one (--since %s) or "
                   "make a full copy", target, have.since, have.checkpoint,
                   have.since);
  if (have.complete && strcmp (have.checkpoint, want->since) != 0)
    return refuse (error, "refusing to update '%s': it is a copy of '%s@%s', "
                   "not of '%s'", target, have.disk, have.checkpoint,
                   want->since);
  if (have.size != want->size)
    return refuse (error, "refusing to update '%s': it is a copy of %" PRIu64
                   " bytes and the source has %" PRIu64 "; make a full copy",
                   target, have.size, want->size);
  if (have.complete && have.mtime != NULL && mtime != NULL &&
      strcmp (have.mtime, mtime) != 0)
    return refuse (error, "refusing to update '%s': it was modified after it "
                   "was marked as a copy of '%s@%s' (copy images together "
                   "with their marks by cp -p); make a full copy, or use "
                   "--force", target, have.disk, have.checkpoint);
  return true;
}

static bool
check_sizes (struct job *job, GError **error)
{
  const Peer *source = job->source, *target = job->target;
  uint64_t unit = target->min_block;
  uint64_t need = (source->size + unit - 1) & ~(unit - 1);

  if (target->kind == PEER_FILE) {
    if (job->o.since == NULL || job->o.force || target->size == source->size)
      return true;
    return refuse (error, "refusing to update '%s': it has %" PRIu64 " bytes "
                   "and the source has %" PRIu64 "; make a full copy",
                   job->o.target, target->size, source->size);
  }
  if (target->size < need)
    return refuse (error, "cannot copy to '%s': it has %" PRIu64 " bytes and "
                   "%" PRIu64 " are needed", job->o.target, target->size,
                   need);
  return true;
}

static bool
check_distinct (const struct job *job, GError **error)
{
  const struct stat *s = &job->source->st, *t = &job->target->st;

  if (job->source->kind == PEER_NBD || job->target->kind == PEER_NBD)
    return true;
  if (s->st_ino == t->st_ino && s->st_dev == t->st_dev)
    return refuse (error, "cannot copy '%s' to '%s': they are the same file",
                   job->o.source, job->o.target);
  return true;
}

/* Opens both ends.  Nothing is changed, but a missing TARGET of a full copy is
 * created: doing it early finds out early that it cannot be.
 */
static bool
open_both (struct job *job, GError **error)
{
  bool create = job->o.since == NULL || job->o.force;
  unsigned n = job->o.connections;

  job->source = peer_open_source (job->o.source, job->o.since, error);
  if (job->source == NULL)
    return false;
  name_the_copy (job);
  if (job->o.since != NULL && !job->markable && !job->o.force)
    return refuse (error, "cannot tell what '%s' is a snapshot of: its name "
                   "is not DISK@ID; name it with --mark", job->o.source);
  job->target = peer_open_target (job->o.target, create, error);
  if (job->target == NULL) {
    if (job->o.since != NULL && !peer_name_is_uri (job->o.target) &&
        access (job->o.target, F_OK) == -1) {
      g_clear_error (error);
      return refuse (error, "refusing to update '%s': there is no such file; "
                     "make a full copy first", job->o.target);
    }
    return false;
  }
  if (job->target->read_only)
    return refuse (error, "cannot write to '%s': the export is read-only",
                   job->o.target);
  if (!check_distinct (job, error) || !check_sizes (job, error))
    return false;

  if (job->o.mark_file != NULL)
    job->mark_path = g_strdup (job->o.mark_file);
  else if (job->target->kind == PEER_FILE)
    job->mark_path = g_strconcat (job->o.target, MARK_SUFFIX, NULL);
  if (job->o.since != NULL && !job->o.force && !check_mark (job, error))
    return false;

  if ((job->source->kind == PEER_NBD && !job->source->multi_conn) ||
      (job->target->kind == PEER_NBD && !job->target->multi_conn))
    n = 1;
  job->o.connections = n;
  return peer_set_connections (job->source, n, error) &&
         peer_set_connections (job->target, n, error);
}

static void
describe (const struct job *job)
{
  const Peer *s = job->source, *t = job->target;

  say (job, "source: %" PRIu64 " bytes%s%s%s", s->size,
       s->has_base ? ", knows its zeroes" : "",
       s->dirty_context != NULL ? ", " : "",
       s->dirty_context != NULL ? s->dirty_context : "");
  say (job, "target: %" PRIu64 " bytes%s", t->size,
       t->created ? ", created" : "");
  say (job, "%u connection(s) with %u requests of %" PRIu64 " bytes",
       job->o.connections, job->o.requests, job->o.request_size);
  if (job->markable)
    say (job, "copy of '%s@%s'%s%s", job->mark.disk, job->mark.checkpoint,
         job->mark_path != NULL ? ", noted in " : "",
         job->mark_path != NULL ? job->mark_path : "");
  if (s->kind == PEER_NBD && !s->read_only && !job->o.quiet)
    fprintf (stderr, "fleececopy: warning: '%s' is writable: if it is being "
             "written to, the copy is of no one moment\n", job->o.source);
}

/* Step 2: the target is about to change. */
static bool
mark_begin (struct job *job, GError **error)
{
  if (job->mark_path == NULL)
    return true;
  /* Without a name to put into it there can only be no mark, never a stale
   * one.
   */
  if (!job->markable)
    return mark_remove (job->mark_path, error);
  job->mark.complete = false;
  return mark_save (job->mark_path, &job->mark, error);
}

/* Step 6. */
static bool
mark_end (struct job *job, bool whole, GError **error)
{
  if (job->mark_path == NULL || !job->markable)
    return true;
  if (!whole)
    return mark_remove (job->mark_path, error);
  job->mark.complete = true;
  g_clear_pointer (&job->mark.since, g_free);
  job->mark.mtime = peer_mtime (job->target);
  return mark_save (job->mark_path, &job->mark, error);
}

static bool
run_engine (struct job *job, enum engine_mode mode, GError **error)
{
  g_autoptr (Progress) progress =
    progress_new (job->o.progress,
                  mode == ENGINE_COPY ? "copying" : "verifying");
  uint64_t limit = MIN (job->source->max_block, job->target->max_block);
  struct engine_config config = {
    .mode = mode,
    .source = job->source,
    .target = job->target,
    .only_dirty = job->o.since != NULL,
    .target_is_zero = job->target_is_zero,
    .connections = job->o.connections,
    .requests = job->o.requests,
    .request_size = job->o.request_size,
    .progress = progress,
    .interrupt_fd = interrupt_fd,
  };

  while (config.request_size > limit)
    config.request_size /= 2;
  config.request_size =
    MAX (config.request_size, engine_alignment (job->source, job->target));
  if (config.request_size > limit)
    return refuse (error, "cannot copy '%s' to '%s': the block sizes of the "
                   "two ends do not go together", job->o.source,
                   job->o.target);
  return engine_run (&config, &job->counts, error);
}

static bool
copy (struct job *job, GError **error)
{
  /* A forced update of an image that had to be made or resized for it has the
   * changes and nothing else: nobody may take it for a copy of anything.
   */
  bool whole = job->o.flush;

  if (!mark_begin (job, error))
    return false;
  if (job->target->kind == PEER_FILE) {
    bool resize = job->target->size != job->source->size;

    if (job->o.since == NULL || job->target->created || resize) {
      whole = whole && job->o.since == NULL;
      if (!peer_file_reset (job->target, job->source->size, error))
        return false;
      job->target_is_zero = true;
    }
  }
  if (!run_engine (job, ENGINE_COPY, error))
    return false;
  if (job->o.flush) {
    say (job, "flushing");
    if (!peer_flush (job->target, error))
      return false;
  }
  job->took_us = g_get_monotonic_time () - job->start_us;
  if (job->o.verify) {
    struct engine_counts copied = job->counts;

    if (!run_engine (job, ENGINE_COMPARE, error))
      return false;
    copied.compared = job->counts.compared;
    job->counts = copied;
  }
  return mark_end (job, whole, error);
}

static void
summarize (const struct job *job)
{
  int64_t took_us = MAX (job->took_us, 1);
  g_autofree char *copied = human_size (job->counts.copied);
  g_autofree char *zeroed = human_size (job->counts.zeroed);
  g_autofree char *skipped = human_size (job->counts.skipped);
  g_autofree char *rate =
    human_size (job->counts.copied * 1e6 / took_us);

  if (job->o.quiet)
    return;
  fprintf (stderr, "fleececopy: copied %s, zeroed %s, skipped %s in %.1f s "
           "(%s/s)%s\n", copied, zeroed, skipped, took_us / 1e6, rate,
           job->o.verify ? ", verified" : "");
}

/* A target that was created and never written to is not left behind. */
static void
remove_if_untouched (const struct job *job, bool touched)
{
  if (!touched && job->target != NULL && job->target->created)
    unlink (job->o.target);
}

static G_GNUC_NORETURN void
die_of_signal (int sig)
{
  signal (sig, SIG_DFL);
  raise (sig);
  exit (EXIT_FAILED);           /* if it is blocked */
}

int
main (int argc, char *argv[])
{
  struct job job = { .start_us = g_get_monotonic_time () };
  g_autoptr (GError) error = NULL;
  bool opened, ok;

  setlocale (LC_ALL, "");
  copy_options_parse (&job.o, argc, argv);
  catch_signals ();

  opened = open_both (&job, &error);
  if (opened)
    describe (&job);
  ok = opened && copy (&job, &error);
  if (ok)
    summarize (&job);
  else
    fprintf (stderr, "fleececopy: %s%s\n", error->message,
             opened && !g_error_matches (error, ENGINE_ERROR,
                                         ENGINE_ERROR_DIFFERENT)
               ? "; the target is unfinished" : "");
  remove_if_untouched (&job, opened);

  if (interrupted_by != 0)
    die_of_signal (interrupted_by);
  peer_free (job.source);
  peer_free (job.target);
  g_free (job.mark_path);
  mark_clear (&job.mark);
  return ok ? EXIT_OK : EXIT_FAILED;
}
