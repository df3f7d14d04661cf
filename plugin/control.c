/* SPDX-License-Identifier: BSD-3-Clause */
/* A client lives like this: accepted by the I/O thread, which starts its worker
 * and alone reads and writes its socket.  Once the peer sends no more and all
 * is answered, or the client was told to close, it is ended: the worker stops,
 * is joined by the I/O thread, and the client is freed.  A peer that is gone
 * still gets its commands done, as far as they arrived; the replies are
 * dropped.
 */
#include <config.h>

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "bitmap/bitmap-error.h"
#include "plugin/control-socket.h"
#include "plugin/control.h"
#include "plugin/qmp-scan.h"
#include "plugin/thread.h"

/* Requests are neither read nor run while so many bytes of replies wait. */
#define MAX_UNREAD (64 * 1024)

/* How long to wait for files to be closed when no client can be accepted for
 * want of them: poll would come back at once, over and over. */
#define NO_FILES_MS 200

/* How long control_stop tries to get replies to clients that do not read. */
#define FLUSH_MS 2000

typedef struct {
  GString *text;
  bool broken;                  /* text is an error message, not JSON */
} Request;

/* An event that is still in a client's out, wholly or in part. */
typedef struct {
  uint64_t end;                 /* of all that was ever queued for the client */
  size_t length;
} QueuedEvent;

typedef struct {
  Control *control;
  int fd;

  /* The I/O thread's. */
  pthread_t worker;
  QmpScan *scan;
  char in[16384];
  size_t in_pos, in_end;        /* what scan has not eaten yet */
  bool eof;                     /* the peer sends no more */
  struct pollfd *pollfd;

  /* The worker's. */
  struct qmp_session session;
  bool quits;                   /* the command that runs is quit */

  /* Under control->lock. */
  GQueue requests;              /* of Request */
  size_t request_bytes;
  GString *out;
  size_t out_pos;               /* sent up to here */
  uint64_t sent;                /* in all */
  GQueue events;                /* of QueuedEvent */
  size_t event_bytes;           /* of them */
  uint64_t lost_events;         /* not queued, and not told yet */
  bool negotiated;              /* wants events */
  bool busy;                    /* a command is running */
  GString *last_reply;          /* to quit, until control_stop; or NULL */
  bool closing;                 /* takes no more requests; end when sent */
  bool deaf;                    /* the peer is gone: nothing is queued in out */
  bool ended;                   /* the worker shall stop */
  bool worker_done;
} Client;

struct Control {
  ControlSocket *sock;
  const struct qmp_command *table;
  int wake_fd;                  /* eventfd */
  pthread_t thread;
  atomic_bool started;
  bool no_files;                /* the I/O thread's: accept has just failed */
  bool said_no_files;           /* the I/O thread's: since the last client */
  GPtrArray *clients;           /* of Client; changed by the I/O thread only,
                                 * under lock */
  pthread_mutex_t lock;
  pthread_cond_t cond;          /* any worker may have something to do */
  unsigned nr_busy;             /* commands that are running; under lock */
  bool draining;                /* no further ones; under lock */
  bool stop;                    /* under lock */
  bool said_reexec;             /* SERVER_REEXEC; under lock */
  bool quit;                    /* a client wants the end; under lock */
};

Control *
control_new (const char *path, int fd, GError **error)
{
  Control *control = g_new0 (Control, 1);

  control->sock = fd == -1 ? control_socket_new (path, error)
    : control_socket_adopt (path, fd, error);
  if (control->sock == NULL) {
    g_free (control);
    return NULL;
  }
  control->wake_fd = -1;
  control->clients = g_ptr_array_new ();
  pthread_mutex_init (&control->lock, NULL);
  thread_cond_init (&control->cond);
  return control;
}

void
control_free (Control *control)
{
  if (control == NULL)
    return;
  control_socket_free (control->sock);
  if (control->wake_fd != -1)
    close (control->wake_fd);
  g_ptr_array_unref (control->clients);
  pthread_cond_destroy (&control->cond);
  pthread_mutex_destroy (&control->lock);
  g_free (control);
}

/* Make the I/O thread look at everything again. */
static void
wake_io (Control *control)
{
  uint64_t one = 1;
  ssize_t r;

  do
    r = write (control->wake_fd, &one, sizeof one);
  while (r == -1 && errno == EINTR);
  /* EAGAIN: the counter is full, so the thread is as good as woken. */
}

static size_t
unread_locked (const Client *client)
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

/* --- the worker: one client's commands --- */

static bool
may_run_locked (const Client *client)
{
  return client->requests.length > 0 && !client->closing &&
    client->last_reply == NULL && unread_locked (client) < MAX_UNREAD;
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

static void *
worker_thread (void *opaque)
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
    wake_io (control);
  }
  wake_io (control);
  return NULL;
}

/* --- the I/O thread --- */

/* May more be read from this client? */
static bool
wants_input_locked (const Client *client)
{
  return !client->closing && client->requests.length < CONTROL_MAX_QUEUED &&
    client->request_bytes < QMP_MAX_MESSAGE &&
    unread_locked (client) < MAX_UNREAD;
}

/* Turn what was read into requests, as many as may wait. */
static void
scan_input_locked (Client *client)
{
  while (client->in_pos < client->in_end && wants_input_locked (client)) {
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

static void
read_input (Client *client)
{
  ssize_t r = recv (client->fd, client->in, sizeof client->in, 0);

  if (r == -1 && (errno == EAGAIN || errno == EINTR))
    return;
  client->in_pos = 0;
  client->in_end = r > 0 ? r : 0;
  if (r <= 0)
    client->eof = true;
}

static void
queue_event_locked (Client *client, const GString *line)
{
  QueuedEvent *event = g_new (QueuedEvent, 1);

  g_string_append_len (client->out, line->str, line->len);
  event->end = client->sent + unread_locked (client);
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

  if (unread_locked (client) == 0) {
    g_string_truncate (client->out, 0);
    client->out_pos = 0;
  }
  /* Moves no more bytes than were sent since it last did. */
  else if (client->out_pos >= MAX_UNREAD &&
           client->out_pos >= unread_locked (client)) {
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
    queue_event_locked (client, line);
  }
  pthread_cond_broadcast (&client->control->cond);
}

/* The peer is gone: nothing that is queued for it matters any more. */
static void
set_deaf_locked (Client *client)
{
  client->deaf = true;
  client->lost_events = 0;
  client->sent += unread_locked (client);
  client->out_pos = client->out->len;
  forget_sent_locked (client);
}

/* The socket is non-blocking: the lock is held for as long as a copy takes. */
static void
send_output_locked (Client *client)
{
  while (unread_locked (client) > 0) {
    ssize_t r = send (client->fd, client->out->str + client->out_pos,
                      unread_locked (client), MSG_NOSIGNAL);

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

static bool
is_finished_locked (const Client *client)
{
  if (client->busy || unread_locked (client) > 0 ||
      (client->last_reply != NULL && !client->deaf))
    return false;
  return client->closing ||
    (client->eof && client->requests.length == 0 &&
     client->in_pos == client->in_end);
}

static void
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

static void
accept_client (Control *control)
{
  GString *greeting;
  Client *client;
  bool refused;
  uid_t uid;
  int fd, err;

  fd = control_socket_accept (control->sock, &refused, &uid);
  if (refused)
    nbdkit_error ("control client with uid %u was turned away",
                  (unsigned) uid);
  else if (fd == -1 && (errno == EMFILE || errno == ENFILE ||
                        errno == ENOMEM || errno == ENOBUFS)) {
    if (!control->said_no_files)
      nbdkit_error ("cannot accept a control client: %s", strerror (errno));
    control->no_files = control->said_no_files = true;
  }
  if (fd == -1)
    return;
  control->said_no_files = false;

  greeting = qmp_greeting ();
  client = g_new0 (Client, 1);
  client->control = control;
  client->fd = fd;
  client->scan = qmp_scan_new ();
  client->session.opaque = client;
  client->out = greeting;
  g_queue_init (&client->requests);
  g_queue_init (&client->events);
  err = thread_create (&client->worker, worker_thread, client);
  if (err != 0) {
    nbdkit_error ("cannot start a thread for a control client: %s",
                  strerror (err));
    client_free (client);
    return;
  }
  pthread_mutex_lock (&control->lock);
  g_ptr_array_add (control->clients, client);
  pthread_mutex_unlock (&control->lock);
}

/* End what is finished; join and free clients whose worker has stopped. */
static void
reap_clients (Control *control)
{
  for (size_t i = control->clients->len; i-- > 0; ) {
    Client *client = control->clients->pdata[i];
    bool done;

    pthread_mutex_lock (&control->lock);
    if (!client->ended && is_finished_locked (client)) {
      client->ended = true;
      pthread_cond_broadcast (&control->cond);
    }
    done = client->worker_done &&
      (client->ended || unread_locked (client) == 0);
    if (done)
      g_ptr_array_remove_index_fast (control->clients, i);
    pthread_mutex_unlock (&control->lock);

    if (done) {
      pthread_join (client->worker, NULL);
      client_free (client);
    }
  }
}

/* Fills fds; returns how many. */
static nfds_t
prepare_poll (Control *control, struct pollfd *fds, bool *out_stop)
{
  nfds_t nr = 0;
  SCOPED_LOCK (&control->lock);

  *out_stop = control->stop;
  fds[nr++] = (struct pollfd) { .fd = control->wake_fd, .events = POLLIN };
  fds[nr] = (struct pollfd) { .fd = -1, .events = POLLIN };
  if (!control->stop && !control->no_files &&
      control->clients->len < CONTROL_MAX_CLIENTS)
    fds[nr].fd = control->sock->fd;
  nr++;

  for (size_t i = 0; i < control->clients->len; i++) {
    Client *client = control->clients->pdata[i];
    short events = 0;

    scan_input_locked (client);
    if (!control->stop && !client->eof && client->in_pos == client->in_end &&
        wants_input_locked (client))
      events |= POLLIN;
    if (unread_locked (client) > 0)
      events |= POLLOUT;
    /* poll reports a hangup unasked, for ever: leave out what we can do nothing
     * for at the moment. */
    client->pollfd = &fds[nr];
    fds[nr++] = (struct pollfd) {
      .fd = events != 0 ? client->fd : -1, .events = events
    };
  }
  return nr;
}

static void
serve_client (Control *control, Client *client)
{
  short revents = client->pollfd->revents;
  short events = client->pollfd->events;

  if (revents == 0)
    return;
  if (events & POLLIN)
    read_input (client);
  pthread_mutex_lock (&control->lock);
  if (unread_locked (client) > 0)
    send_output_locked (client);
  pthread_mutex_unlock (&control->lock);
}

static void
drain_wake_fd (Control *control)
{
  uint64_t count;
  ssize_t r = read (control->wake_fd, &count, sizeof count);

  (void) r;                     /* EAGAIN: somebody else's wake-up */
}

/* How long poll may sleep; false: time is up. */
static bool
poll_timeout (Control *control, bool stop, int64_t *deadline, int *out_ms)
{
  bool running = false;

  *out_ms = control->no_files ? NO_FILES_MS : -1;
  if (!stop)
    return true;
  if (control->clients->len == 0)
    return false;
  pthread_mutex_lock (&control->lock);
  for (size_t i = 0; i < control->clients->len; i++) {
    const Client *client = control->clients->pdata[i];

    running |= !client->worker_done;
  }
  pthread_mutex_unlock (&control->lock);
  if (running)                  /* a command ends within the drain timeout */
    return true;
  if (*deadline == 0)
    *deadline = g_get_monotonic_time () + FLUSH_MS * 1000;
  *out_ms = (*deadline - g_get_monotonic_time ()) / 1000;
  return *out_ms > 0;
}

static void *
io_thread (void *opaque)
{
  Control *control = opaque;
  struct pollfd fds[CONTROL_MAX_CLIENTS + 2];
  int64_t deadline = 0;

  for (;;) {
    bool stop;
    int timeout_ms;
    nfds_t nr;
    size_t nr_clients;

    reap_clients (control);
    nr = prepare_poll (control, fds, &stop);
    if (!poll_timeout (control, stop, &deadline, &timeout_ms))
      break;
    if (poll (fds, nr, timeout_ms) == -1)
      continue;                 /* EINTR; anything else is a bug of ours */
    control->no_files = false;
    if (fds[0].revents != 0)
      drain_wake_fd (control);
    nr_clients = control->clients->len;
    for (size_t i = 0; i < nr_clients; i++)
      serve_client (control, control->clients->pdata[i]);
    if (fds[1].revents != 0)
      accept_client (control);
  }

  /* All workers have ended. */
  for (size_t i = 0; i < control->clients->len; i++) {
    Client *client = control->clients->pdata[i];

    pthread_join (client->worker, NULL);
    client_free (client);
  }
  pthread_mutex_lock (&control->lock);
  g_ptr_array_set_size (control->clients, 0);
  pthread_mutex_unlock (&control->lock);
  return NULL;
}

/* --- from outside --- */

bool
control_start (Control *control, const struct qmp_command *table,
               GError **error)
{
  int err;

  control->table = table;
  control->wake_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (control->wake_fd == -1) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                 "cannot serve the control socket: eventfd: %s",
                 strerror (errno));
    return false;
  }
  err = thread_create (&control->thread, io_thread, control);
  if (err != 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NO_MEMORY,
                 "cannot start the control thread: %s", strerror (err));
    return false;
  }
  control->started = true;
  return true;
}

void
control_event (Control *control, const char *name, json_t *data)
{
  g_autoptr (GString) line = qmp_event (name, data);
  unsigned behind = 0;          /* clients that begin to lose events */

  if (control == NULL || !control->started)
    return;
  pthread_mutex_lock (&control->lock);
  if (strcmp (name, "SERVER_REEXEC") == 0)
    control->said_reexec = true;
  for (size_t i = 0; i < control->clients->len; i++) {
    Client *client = control->clients->pdata[i];

    if (!client->negotiated || client->deaf || client->closing)
      continue;
    /* Behind a gap none is queued until it is announced, even if it fits. */
    if (client->lost_events > 0 ||
        client->event_bytes + line->len > CONTROL_MAX_EVENT_BYTES) {
      behind += client->lost_events++ == 0;
      continue;
    }
    queue_event_locked (client, line);
  }
  pthread_mutex_unlock (&control->lock);
  if (behind > 0)
    nbdkit_error ("warning: %u control client(s) do not read their events, and "
                  "lose some", behind);
  wake_io (control);
}

void
control_quit (struct qmp_session *session)
{
  Client *client = session->opaque;
  SCOPED_LOCK (&client->control->lock);

  client->quits = true;
  client->control->quit = true;
}

int
control_fd (const Control *control)
{
  return control->sock->fd;
}

void
control_forget_socket (Control *control)
{
  g_clear_pointer (&control->sock, control_socket_forget);
}

void
control_drain (Control *control)
{
  if (control == NULL || !control->started)
    return;
  SCOPED_LOCK (&control->lock);

  control->draining = true;
  while (control->nr_busy > 0)
    pthread_cond_wait (&control->cond, &control->lock);
}

/* Nothing comes after it. */
static void
queue_last_reply_locked (Client *client)
{
  if (client->last_reply == NULL)
    return;
  if (!client->deaf)
    g_string_append_len (client->out, client->last_reply->str,
                         client->last_reply->len);
  client->closing = true;
}

void
control_stop (Control *control)
{
  bool said, quit;

  if (!control->started)
    return;
  pthread_mutex_lock (&control->lock);
  said = control->said_reexec;
  quit = control->quit;
  pthread_mutex_unlock (&control->lock);
  if (!said)
    control_event (control, "SHUTDOWN",
                   json_pack ("{s:b, s:s}", "guest", 0, "reason",
                              quit ? "host-qmp-quit" : "host-signal"));

  pthread_mutex_lock (&control->lock);
  for (size_t i = 0; i < control->clients->len; i++)
    queue_last_reply_locked (control->clients->pdata[i]);
  control->stop = true;
  pthread_cond_broadcast (&control->cond);
  pthread_mutex_unlock (&control->lock);
  wake_io (control);
  pthread_join (control->thread, NULL);
  control->started = false;
}
