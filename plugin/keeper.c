/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "bitmap/bitmap-error.h"
#include "fleece/overlay.h"
#include "plugin/keeper.h"
#include "plugin/plugin.h"
#include "plugin/thread.h"

#define MAX_NOTES 1000

/* A store that failed (disk full) is tried again this often; space that could
 * not be freed since a cut was under way, sooner. */
#define RETRY_SECONDS 10
#define RETRY_DROP_SECONDS 1

typedef struct {
  const char *event;            /* NULL: a note of fleece's, as below */
  json_t *data;
  FleeceNoteKind kind;
  char *disk, *snapshot, *text;
  int error_number;
} Note;

struct Keeper {
  Fleece *fleece;               /* set in start */
  pthread_t thread;
  bool started;                 /* start and stop: the main thread's */

  pthread_mutex_t lock;
  pthread_cond_t cond;
  /* Under lock. */
  GQueue notes;                 /* of Note */
  uint64_t dropped;
  bool store;                   /* there may be something to store */
  bool drop;                    /* a snapshot broke: its space can go */
  bool stop;
};

Keeper *
keeper_new (void)
{
  Keeper *keeper = g_new0 (Keeper, 1);

  pthread_mutex_init (&keeper->lock, NULL);
  thread_cond_init (&keeper->cond);
  g_queue_init (&keeper->notes);
  return keeper;
}

static void
note_free (void *opaque)
{
  Note *note = opaque;

  json_decref (note->data);
  g_free (note->disk);
  g_free (note->snapshot);
  g_free (note->text);
  g_free (note);
}

void
keeper_free (Keeper *keeper)
{
  if (keeper == NULL)
    return;
  g_queue_clear_full (&keeper->notes, note_free);
  pthread_cond_destroy (&keeper->cond);
  pthread_mutex_destroy (&keeper->lock);
  g_free (keeper);
}

/* note: stolen. */
static void
queue (Keeper *keeper, Note *note)
{
  pthread_mutex_lock (&keeper->lock);
  keeper->drop |= note->event == NULL &&
    note->kind == FLEECE_NOTE_SNAPSHOT_BROKEN;
  if (keeper->notes.length < MAX_NOTES) {
    g_queue_push_tail (&keeper->notes, g_steal_pointer (&note));
    pthread_cond_signal (&keeper->cond);
  }
  else
    keeper->dropped++;
  pthread_mutex_unlock (&keeper->lock);
  if (note != NULL)
    note_free (note);
}

void
keeper_event (Keeper *keeper, const char *name, json_t *data)
{
  Note *note = g_new0 (Note, 1);

  note->event = name;
  note->data = data;
  queue (keeper, note);
}

void
keeper_notify (void *opaque, FleeceNoteKind kind, const char *disk,
               const char *snapshot, const char *text, int error_number)
{
  Keeper *keeper = opaque;
  Note *note = g_new0 (Note, 1);

  note->kind = kind;
  note->disk = g_strdup (disk);
  note->snapshot = g_strdup (snapshot);
  note->text = g_strdup (text);
  note->error_number = error_number;
  queue (keeper, note);
}

static void
send_event (const char *name, json_t *data)
{
  if (plugin.control != NULL)
    control_event (plugin.control, name, data);
  else
    json_decref (data);
}

/* To the log, and what a program wants to know of to control clients. */
static void
tell_note (const Note *note)
{
  g_autoptr (GString) where = g_string_new (NULL);

  if (note->event != NULL) {
    send_event (note->event, json_incref (note->data));
    return;
  }
  if (note->disk != NULL)
    g_string_append_printf (where, "disk '%s': ", note->disk);
  if (note->snapshot != NULL)
    g_string_append_printf (where, "snapshot '%s': ", note->snapshot);
  switch (note->kind) {
  case FLEECE_NOTE_INFO:
    nbdkit_debug ("%s%s", where->str, note->text);
    break;
  case FLEECE_NOTE_WARNING:
    nbdkit_error ("warning: %s%s", where->str, note->text);
    break;
  case FLEECE_NOTE_SNAPSHOT_BROKEN:
    nbdkit_error ("warning: %sbroken: %s", where->str, note->text);
    send_event ("SNAPSHOT_BROKEN",
                json_pack ("{s:s?, s:s?, s:o, s:b}", "disk", note->disk,
                           "snapshot", note->snapshot,
                           "reason", qmp_text (note->text),
                           "nospace", note->error_number == ENOSPC));
    break;
  case FLEECE_NOTE_SNAPSHOT_LOST:
    nbdkit_error ("warning: %slost: %s", where->str, note->text);
    send_event ("SNAPSHOT_LOST",
                json_pack ("{s:s?, s:s?, s:o}", "disk", note->disk,
                           "snapshot", note->snapshot,
                           "reason", qmp_text (note->text)));
    break;
  case FLEECE_NOTE_TRACKING:
    nbdkit_error ("warning: %s%s", where->str, note->text);
    send_event ("TRACKING_ERROR",
                json_pack ("{s:s?, s:o, s:b}", "disk", note->disk,
                           "reason", qmp_text (note->text),
                           "nospace", note->error_number == ENOSPC));
    break;
  }
}

void
keeper_flush (Keeper *keeper)
{
  for (;;) {
    uint64_t dropped;
    Note *note;

    pthread_mutex_lock (&keeper->lock);
    note = g_queue_pop_head (&keeper->notes);
    dropped = note == NULL ? keeper->dropped : 0;
    if (note == NULL)
      keeper->dropped = 0;
    pthread_mutex_unlock (&keeper->lock);

    if (dropped > 0)
      nbdkit_error ("warning: %" G_GUINT64_FORMAT " further messages were "
                    "dropped", dropped);
    if (note == NULL)
      return;
    tell_note (note);
    note_free (note);
  }
}

/* *was_failing: a failure is logged when it begins, not at every retry. */
static bool
store_epochs (Keeper *keeper, bool *was_failing)
{
  g_autoptr (GError) error = NULL;

  if (fleece_store_epochs (keeper->fleece, &error) &&
      fleece_compact_epochs (keeper->fleece, &error)) {
    *was_failing = false;
    return true;
  }
  if (!*was_failing)
    nbdkit_error ("warning: cannot store changed blocks: %s; they stay in "
                  "memory and are tried again", error->message);
  *was_failing = true;
  return false;
}

/* A cut that has failed late may have left a layer. */
static bool
settle_layers (Keeper *keeper, bool *was_failing)
{
  g_autoptr (GError) error = NULL;
  bool ok = fleece_settle_overlays (keeper->fleece, &error);

  if (!ok && !*was_failing)
    nbdkit_error ("warning: the layer of a cut that has failed stays for now: "
                  "%s", error->message);
  *was_failing = !ok;
  return ok;
}

/* Wait until there is something to do, or something to try again.  lock
 * held. */
static void
wait_locked (Keeper *keeper, bool store_failed, bool drop_failed)
{
  while (!keeper->stop && !keeper->store && !keeper->drop &&
         keeper->notes.length == 0) {
    struct timespec until;

    if (!store_failed && !drop_failed) {
      pthread_cond_wait (&keeper->cond, &keeper->lock);
      continue;
    }
    clock_gettime (CLOCK_MONOTONIC, &until);
    until.tv_sec += drop_failed ? RETRY_DROP_SECONDS : RETRY_SECONDS;
    if (pthread_cond_timedwait (&keeper->cond, &keeper->lock,
                                &until) == ETIMEDOUT) {
      keeper->store = store_failed;
      keeper->drop = drop_failed;
    }
  }
}

static void *
keeper_thread (void *opaque)
{
  Keeper *keeper = opaque;
  bool store_failed = false, settle_failed = false, drop_failed = false;

  for (;;) {
    bool stop, store, drop;

    pthread_mutex_lock (&keeper->lock);
    wait_locked (keeper, store_failed || settle_failed, drop_failed);
    stop = keeper->stop;
    store = keeper->store;
    drop = keeper->drop;
    keeper->store = keeper->drop = false;
    pthread_mutex_unlock (&keeper->lock);

    keeper_flush (keeper);
    if (stop)
      return NULL;
    if (store) {
      store_epochs (keeper, &store_failed);
      settle_layers (keeper, &settle_failed);
    }
    if (drop)
      drop_failed = !fleece_drop_broken (keeper->fleece);
  }
}

bool
keeper_start (Keeper *keeper, Fleece *fleece, GError **error)
{
  int err;

  keeper->fleece = fleece;
  err = thread_create (&keeper->thread, keeper_thread, keeper);
  if (err != 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NO_MEMORY,
                 "cannot start the background thread: %s", strerror (err));
    return false;
  }
  keeper->started = true;
  return true;
}

void
keeper_stop (Keeper *keeper)
{
  if (keeper->started) {
    pthread_mutex_lock (&keeper->lock);
    keeper->stop = true;
    pthread_cond_signal (&keeper->cond);
    pthread_mutex_unlock (&keeper->lock);
    pthread_join (keeper->thread, NULL);
    keeper->started = false;
  }
  keeper_flush (keeper);
}

void
keeper_wake (Keeper *keeper)
{
  pthread_mutex_lock (&keeper->lock);
  keeper->store = true;
  pthread_cond_signal (&keeper->cond);
  pthread_mutex_unlock (&keeper->lock);
}
