/* SPDX-License-Identifier: BSD-3-Clause */
/* control-client.c - one client of the control channel: what it has sent and is
 * to be sent. */
#include <config.h>

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "plugin/control-internal.h"
#include "plugin/thread.h"

size_t
client_unread_locked (const Client *client)
{
  return client->out->len - client->out_pos;
}

static void
request_free (void *opaque)
{
  Request *request = opaque;

  if (request == NULL)
    return;
  g_string_free (request->text, TRUE);
  g_free (request);
}

/* --- the worker: its commands --- */

static bool
may_run_locked (const Client *client)
{
  return client->requests.length > 0 && !client->closing &&
    client->last_reply == NULL && client_unread_locked (client) < MAX_UNREAD;
}

/* NULL: the worker shall end. */
static Request *
next_request (Client *client)
{
  Control *control = client->control;
  Request *request = NULL;
  SCOPED_LOCK (&control->lock);

  while (!control->stop && !client->ended &&
         (control->draining || !may_run_locked (client)))
    pthread_cond_wait (&control->cond, &control->lock);
  if (!control->stop && !client->ended) {
    request = g_queue_pop_head (&client->requests);
    client->request_bytes -= request->text->len;
    client->busy = true;
    control->nr_busy++;
  }
  else
    client->worker_done = true;
  return request;
}

void *
client_thread (void *opaque)
{
  Client *client = opaque;
  Control *control = client->control;
  Request *request;

  while ((request = next_request (client)) != NULL) {
    g_autoptr (GString) reply = NULL;

    if (request->broken)
      reply = qmp_error_reply (request->text->str);
    else
      reply = qmp_handle (control->table, &client->session,
                          request->text->str, request->text->len);
    request_free (request);

    pthread_mutex_lock (&control->lock);
    if (client->quits)
      client->last_reply = g_steal_pointer (&reply);
    else if (!client->deaf)
      g_string_append_len (client->out, reply->str, reply->len);
    client->negotiated = client->session.negotiated;
    client->busy = false;
    control->nr_busy--;
    pthread_cond_broadcast (&control->cond);
    pthread_mutex_unlock (&control->lock);
    control_wake (control);
  }
  control_wake (control);
  return NULL;
}

/* --- its socket, by the I/O thread --- */

bool
client_wants_input_locked (const Client *client)
{
  return !client->closing && client->requests.length < CONTROL_MAX_QUEUED &&
    client->request_bytes < QMP_MAX_MESSAGE &&
    client_unread_locked (client) < MAX_UNREAD;
}

void
client_scan_locked (Client *client)
{
  while (client->in_pos < client->in_end &&
         client_wants_input_locked (client)) {
    GString *text = NULL;
    size_t used = 0;
    QmpScanResult result =
      qmp_scan_feed (client->scan, client->in + client->in_pos,
                     client->in_end - client->in_pos, &used, &text);

    client->in_pos += used;
    if (result == QMP_SCAN_MORE)
      continue;
    Request *request = g_new0 (Request, 1);
    request->text = text;
    request->broken = result == QMP_SCAN_ERROR;
    client->request_bytes += text->len;
    g_queue_push_tail (&client->requests, request);
    pthread_cond_broadcast (&client->control->cond);
  }
}

void
client_read (Client *client)
{
  ssize_t r = recv (client->fd, client->in, sizeof client->in, 0);

  if (r == -1 && (errno == EAGAIN || errno == EINTR))
    return;
  client->in_pos = 0;
  client->in_end = r > 0 ? r : 0;
  if (r <= 0)
    client->eof = true;
}

void
client_queue_event_locked (Client *client, const GString *line)
{
  QueuedEvent *event = g_new (QueuedEvent, 1);

  g_string_append_len (client->out, line->str, line->len);
  event->end = client->sent + client_unread_locked (client);
  event->length = line->len;
  client->event_bytes += line->len;
  g_queue_push_tail (&client->events, event);
}

/* All up to out_pos is sent: forget it, and announce a gap in the events where
 * it is, behind those that came before it. */
static void
forget_sent_locked (Client *client)
{
  QueuedEvent *event;

  if (client_unread_locked (client) == 0) {
    g_string_truncate (client->out, 0);
    client->out_pos = 0;
  }
  /* Moves no more bytes than were sent since it last did. */
  else if (client->out_pos >= MAX_UNREAD &&
           client->out_pos >= client_unread_locked (client)) {
    g_string_erase (client->out, 0, client->out_pos);
    client->out_pos = 0;
  }
  while ((event = g_queue_peek_head (&client->events)) != NULL &&
         event->end <= client->sent) {
    client->event_bytes -= event->length;
    g_free (g_queue_pop_head (&client->events));
  }
  if (client->lost_events > 0 &&
      client->event_bytes <= CONTROL_MAX_EVENT_BYTES / 2) {
    g_autoptr (GString) line =
      qmp_event ("EVENTS_LOST", json_pack ("{s:I}", "count",
                                           (json_int_t) client->lost_events));

    client->lost_events = 0;
    client_queue_event_locked (client, line);
  }
  pthread_cond_broadcast (&client->control->cond);
}

/* The peer is gone: nothing that is queued for it matters any more. */
static void
set_deaf_locked (Client *client)
{
  client->deaf = true;
  client->lost_events = 0;
  client->sent += client_unread_locked (client);
  client->out_pos = client->out->len;
  forget_sent_locked (client);
}

void
client_send_locked (Client *client)
{
  while (client_unread_locked (client) > 0) {
    ssize_t r = send (client->fd, client->out->str + client->out_pos,
                      client_unread_locked (client), MSG_NOSIGNAL);

    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1 && errno == EAGAIN)
      return;
    if (r == -1) {
      set_deaf_locked (client);
      return;
    }
    client->out_pos += r;
    client->sent += r;
    forget_sent_locked (client);
  }
}

bool
client_is_finished_locked (const Client *client)
{
  if (client->busy || client_unread_locked (client) > 0 ||
      (client->last_reply != NULL && !client->deaf))
    return false;
  return client->closing ||
    (client->eof && client->requests.length == 0 &&
     client->in_pos == client->in_end);
}

Client *
client_new (Control *control, int fd)
{
  Client *client = g_new0 (Client, 1);

  client->control = control;
  client->fd = fd;
  client->scan = qmp_scan_new ();
  client->session.opaque = client;
  client->out = qmp_greeting ();
  g_queue_init (&client->requests);
  g_queue_init (&client->events);
  return client;
}

void
client_free (Client *client)
{
  if (client->fd != -1)
    close (client->fd);
  qmp_scan_free (client->scan);
  g_queue_clear_full (&client->requests, request_free);
  g_string_free (client->out, TRUE);
  if (client->last_reply != NULL)
    g_string_free (client->last_reply, TRUE);
  g_queue_clear_full (&client->events, g_free);
  g_free (client);
}

void
client_queue_last_reply_locked (Client *client)
{
  if (client->last_reply == NULL)
    return;
  if (!client->deaf)
    g_string_append_len (client->out, client->last_reply->str,
                         client->last_reply->len);
  client->closing = true;
}
