/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "bitmap/bitmap-error.h"
#include "plugin/control-internal.h"
#include "plugin/thread.h"

/* How long to wait for files to be closed when no client can be accepted for
 * want of them: poll would come back at once, over and over. */
#define NO_FILES_MS 200

/* How long control_stop tries to get replies to clients that do not read. */
#define FLUSH_MS 2000

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

void
control_wake (Control *control)
{
  uint64_t one = 1;
  ssize_t r;

  do
    r = write (control->wake_fd, &one, sizeof one);
  while (r == -1 && errno == EINTR);
  /* EAGAIN: the counter is full, so the thread is as good as woken. */
}

/* --- the I/O thread --- */

static void
accept_client (Control *control)
{
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

  client = client_new (control, fd);
  err = thread_create (&client->worker, client_thread, client);
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
    if (!client->ended && client_is_finished_locked (client)) {
      client->ended = true;
      pthread_cond_broadcast (&control->cond);
    }
    done = client->worker_done &&
      (client->ended || client_unread_locked (client) == 0);
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

    client_scan_locked (client);
    if (!control->stop && !client->eof && client->in_pos == client->in_end &&
        client_wants_input_locked (client))
      events |= POLLIN;
    if (client_unread_locked (client) > 0)
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
    client_read (client);
  pthread_mutex_lock (&control->lock);
  if (client_unread_locked (client) > 0)
    client_send_locked (client);
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
    client_queue_event_locked (client, line);
  }
  pthread_mutex_unlock (&control->lock);
  if (behind > 0)
    nbdkit_error ("warning: %u control client(s) do not read their events, and "
                  "lose some", behind);
  control_wake (control);
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
    client_queue_last_reply_locked (control->clients->pdata[i]);
  control->stop = true;
  pthread_cond_broadcast (&control->cond);
  pthread_mutex_unlock (&control->lock);
  control_wake (control);
  pthread_join (control->thread, NULL);
  control->started = false;
}
