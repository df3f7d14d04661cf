/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "conn-internal.h"
#include "context.h"
#include "listen.h"
#include "log.h"
#include "pool.h"
#include "steal.h"

/* How long clients may take to accept their last replies at shutdown. */
#define GRACE_SECONDS 5
/* How long a handshake may go on while all wait for another image: clients that
 * know what they want need a millisecond. */
#define PARK_HANDSHAKE_SECONDS 1
/* How long receiving blocks once everybody is to stop. */
#define PARK_RECV_US 1000

static struct conn_settings settings;

/* Everybody who is connected; conns_lock protects the list and keeps those on
 * it (and their fd) alive. */
static pthread_mutex_t conns_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t conn_left = PTHREAD_COND_INITIALIZER;
static GPtrArray *conns;
static unsigned last_number;
static GPtrArray *parked;
static atomic_bool parking;

void
conn_init (const struct conn_settings *s)
{
  settings = *s;
  conns = g_ptr_array_new ();
  parked = g_ptr_array_new ();
}

bool
conn_is_parking (void)
{
  return atomic_load_explicit (&parking, memory_order_relaxed);
}

void
conn_set_leader (struct conn *c, bool is_leader)
{
  pthread_mutex_lock (&c->lock);
  if (is_leader)
    c->leader = pthread_self ();
  /* Whoever has lost the leadership may be late to say so. */
  if (is_leader || pthread_equal (c->leader, pthread_self ()))
    c->has_leader = is_leader;
  pthread_mutex_unlock (&c->lock);
}

int64_t
conn_now_ns (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return ts.tv_sec * INT64_C (1000000000) + ts.tv_nsec;
}

int
conn_fd (const struct conn *c)
{
  return c->fd;
}

unsigned
conn_number (const struct conn *c)
{
  return c->number;
}

bool
conn_is_single (const struct conn *c)
{
  return c->listener_max == 1;
}

bool
conn_is_tls (const struct conn *c)
{
  return false;
}

void
conn_keep_string (struct conn *c, char *str)
{
  c->strings = g_slist_prepend (c->strings, str);
}

/* Wait for the socket; false: too late. */
static bool
wait_for (struct conn *c, short events, int64_t deadline)
{
  struct pollfd pfd = { .fd = c->fd, .events = events };
  int64_t left = -1;
  int r;

  do {
    if (deadline) {
      left = (deadline - conn_now_ns () + 999999) / 1000000;
      if (left <= 0)
        return false;
    }
    r = poll (&pfd, 1, left);
  } while (r == -1 && errno == EINTR);
  return r > 0;
}

bool
conn_recv (struct conn *c, void *buf, size_t length, int64_t deadline)
{
  char *p = buf;
  ssize_t r;

  while (length > 0) {
    r = recv (c->fd, p, length, deadline ? MSG_DONTWAIT : 0);
    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1 && errno == EAGAIN && deadline) {
      if (!wait_for (c, POLLIN, deadline)) {
        log_debug ("no answer within the time allowed");
        return false;
      }
      continue;
    }
    if (r <= 0)
      return false;
    p += r;
    length -= r;
  }
  return true;
}

/* Take n sent bytes off the front. */
static void
iov_consume (struct iovec **iov, int *nr, size_t n)
{
  while (*nr > 0 && n >= (*iov)->iov_len) {
    n -= (*iov)->iov_len;
    (*iov)++;
    (*nr)--;
  }
  if (*nr > 0) {
    (*iov)->iov_base = (char *) (*iov)->iov_base + n;
    (*iov)->iov_len -= n;
  }
}

bool
conn_send (struct conn *c, struct iovec *iov, int nr, int64_t deadline)
{
  int flags = MSG_NOSIGNAL | (deadline ? MSG_DONTWAIT : 0);
  bool ok;

  pthread_mutex_lock (&c->send_lock);
  iov_consume (&iov, &nr, 0);
  while (nr > 0 && !atomic_load_explicit (&c->dead, memory_order_relaxed)) {
    struct msghdr msg = { .msg_iov = iov, .msg_iovlen = nr };
    ssize_t r = sendmsg (c->fd, &msg, flags);

    if (r >= 0)
      iov_consume (&iov, &nr, r);
    else if (errno == EINTR)
      continue;
    else if (errno != EAGAIN || !deadline || !wait_for (c, POLLOUT, deadline)) {
      /* A part of a reply may be out: nothing can follow it. */
      atomic_store (&c->dead, true);
      shutdown (c->fd, SHUT_RDWR);
    }
  }
  ok = nr == 0;
  pthread_mutex_unlock (&c->send_lock);
  return ok;
}

static void
conn_main (void *arg)
{
  struct conn *c = arg;

  thread_context.conn = c;
  thread_context.plugin_name = backend_name (c->b);
  c->entered = backend_enter (c->b);
  if (c->entered && !atomic_load (&c->closing) &&
      backend_preconnect (c->b, c->settings->readonly) &&
      conn_handshake (c))
    conn_serve (c);             /* which finishes it */
  else
    conn_finish (c);
}

static void
conn_free (struct conn *c)
{
  close (c->fd);
  g_slist_free_full (c->strings, free);
  g_clear_pointer (&c->inherited, g_bytes_unref);
  if (c->unparsed)
    g_byte_array_unref (c->unparsed);
  g_free (c->export_name);
  metactx_set_free (c->contexts);
  pthread_cond_destroy (&c->room);
  pthread_mutex_destroy (&c->send_lock);
  pthread_mutex_destroy (&c->lock);
  g_free (c);
}

void
conn_finish (struct conn *c)
{
  bool limited = c->listener_max != 0;
  Handle *handle;

  /* Nobody may find the handle while the plugin closes it. */
  pthread_mutex_lock (&c->lock);
  handle = c->handle;
  c->handle = NULL;
  pthread_mutex_unlock (&c->lock);
  if (c->parked) {
    g_free (c->export_name);
    c->export_name = g_strdup (handle_name (handle));
    c->info = *handle_info (handle);
  }
  handle_close (handle);
  if (c->entered)
    backend_leave (c->b);
  log_debug (c->parked ? "client waits for the next image"
             : "client has left");
  memset (&thread_context, 0, sizeof thread_context);

  pthread_mutex_lock (&conns_lock);
  g_ptr_array_remove_fast (conns, c);
  if (c->parked)
    g_ptr_array_add (parked, c);
  else
    conn_free (c);
  pthread_cond_signal (&conn_left);
  pthread_mutex_unlock (&conns_lock);
  if (limited)                  /* another may come in */
    listen_wake ();
}

static struct conn *
conn_new (int fd)
{
  struct conn *c = g_new0 (struct conn, 1);

  c->settings = &settings;
  c->b = settings.backend;
  c->fd = fd;
  c->can_steal = backend_is_parallel (c->b) && settings.threads > 1;
  pthread_mutex_init (&c->lock, NULL);
  pthread_mutex_init (&c->send_lock, NULL);
  pthread_cond_init (&c->room, NULL);
  return c;
}

void
conn_start (int fd, int64_t listener, uint32_t listener_max)
{
  int one = 1;
  struct conn *c;

  /* Harmless failures on a Unix socket. */
  setsockopt (fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  setsockopt (fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);

  pthread_mutex_lock (&conns_lock);
  if (conns->len >= settings.max_connections) {
    pthread_mutex_unlock (&conns_lock);
    log_error ("client refused: %u are connected, the limit of "
               "--max-connections", settings.max_connections);
    close (fd);
    return;
  }
  c = conn_new (fd);
  c->number = ++last_number;
  c->listener = listener;
  c->listener_max = listener_max;
  g_ptr_array_add (conns, c);
  pthread_mutex_unlock (&conns_lock);

  if (!pool_run (conn_main, c)) {
    log_error ("client refused: cannot start a thread: %m");
    pthread_mutex_lock (&conns_lock);
    g_ptr_array_remove_fast (conns, c);
    conn_free (c);
    pthread_mutex_unlock (&conns_lock);
  }
}

/* With conns_lock held. */
static void
shutdown_all_locked (int how)
{
  for (guint i = 0; i < conns->len; i++) {
    struct conn *c = g_ptr_array_index (conns, i);

    atomic_store (&c->closing, true);
    shutdown (c->fd, how);
  }
}

void
conn_stop_all (void)
{
  struct timespec until;
  int err = 0;

  backend_stop_waiting (settings.backend);
  pthread_mutex_lock (&conns_lock);
  shutdown_all_locked (SHUT_RD);
  clock_gettime (CLOCK_REALTIME, &until);
  until.tv_sec += GRACE_SECONDS;
  while (conns->len > 0 && err != ETIMEDOUT)
    err = pthread_cond_timedwait (&conn_left, &conns_lock, &until);
  shutdown_all_locked (SHUT_RDWR);
  while (conns->len > 0)        /* the plugin is at work for them */
    pthread_cond_wait (&conn_left, &conns_lock);
  pthread_mutex_unlock (&conns_lock);
  for (guint i = 0; i < parked->len; i++)
    conn_free (parked->pdata[i]);
  g_ptr_array_free (parked, TRUE);
  g_ptr_array_free (conns, TRUE);
  conns = NULL;
}

static void
on_wake_up (int signum)
{
}

/* Get the leader out of its receive.  Once the handler has run, the system
 * restarts the call, and the socket's timeout, new by then, ends it; one that
 * is not in the call meets the timeout when it is.  (A flag and EINTR alone
 * would leave a gap between looking at the flag and the call.)  SA_RESTART: the
 * thread may just as well be in a call of the plugin's. */
static void
stop_leader_locked (struct conn *c)
{
  struct timeval soon = { .tv_usec = PARK_RECV_US };

  pthread_mutex_lock (&c->lock);
  if (c->has_leader) {
    setsockopt (c->fd, SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof soon);
    pthread_kill (c->leader, SIGURG);
  }
  pthread_mutex_unlock (&c->lock);
}

/* With conns_lock held.  false: some are still there after that time. */
static bool
wait_for_all_locked (unsigned seconds)
{
  struct timespec until;
  int err = 0;

  clock_gettime (CLOCK_REALTIME, &until);
  until.tv_sec += seconds;
  while (conns->len > 0 && err != ETIMEDOUT)
    err = pthread_cond_timedwait (&conn_left, &conns_lock, &until);
  return conns->len == 0;
}

static void
close_handshakes_locked (void)
{
  for (guint i = 0; i < conns->len; i++) {
    struct conn *c = g_ptr_array_index (conns, i);

    pthread_mutex_lock (&c->lock);
    if (!c->has_leader) {
      atomic_store (&c->closing, true);
      shutdown (c->fd, SHUT_RDWR);
    }
    pthread_mutex_unlock (&c->lock);
  }
}

void
conn_park_all (void)
{
  struct sigaction sa = { .sa_handler = on_wake_up, .sa_flags = SA_RESTART };

  sigaction (SIGURG, &sa, NULL);
  pthread_mutex_lock (&conns_lock);
  atomic_store (&parking, true);
  for (guint i = 0; i < conns->len; i++)
    stop_leader_locked (g_ptr_array_index (conns, i));
  if (!wait_for_all_locked (PARK_HANDSHAKE_SECONDS)) {
    backend_stop_waiting (settings.backend);
    close_handshakes_locked ();
    if (!wait_for_all_locked (GRACE_SECONDS))
      shutdown_all_locked (SHUT_RDWR);
    while (conns->len > 0)      /* the plugin is at work for them */
      pthread_cond_wait (&conn_left, &conns_lock);
  }
  pthread_mutex_unlock (&conns_lock);
}

static void
hand_over_one (Handover *h, struct conn *c)
{
  struct handover_conn *out = handover_add_conn (h);
  GByteArray *unparsed = c->unparsed ? c->unparsed : g_byte_array_new ();

  out->number = c->number;
  out->fd = c->fd;
  out->listener = c->listener;
  out->listener_max = c->listener_max;
  out->export_name = g_strdup (c->export_name);
  out->mode = c->mode;
  out->info = c->info;
  out->bytes_read = atomic_load (&c->bytes_read);
  out->bytes_written = atomic_load (&c->bytes_written);
  out->requests = atomic_load (&c->requests);
  out->extents = atomic_load (&c->extents);
  for (size_t i = 0; i < metactx_set_count (c->contexts); i++)
    g_ptr_array_add (out->contexts,
                     g_strdup (metactx_set_get (c->contexts, i)->name));
  out->unparsed = g_byte_array_free_to_bytes (unparsed);
  c->unparsed = NULL;
  c->fd = -1;
  conn_free (c);
}

void
conn_hand_over (Handover *h)
{
  pthread_mutex_lock (&conns_lock);
  for (guint i = 0; i < parked->len; i++)
    hand_over_one (h, parked->pdata[i]);
  g_ptr_array_set_size (parked, 0);
  h->last_conn_number = last_number;
  pthread_mutex_unlock (&conns_lock);
}

static bool
same_info (const struct export_info *a, const struct export_info *b)
{
  return a->flags == b->flags &&
    a->block.min == b->block.min &&
    a->block.preferred == b->block.preferred && a->block.max == b->block.max;
}

/* A client cannot be told that its export is another one now.  A disk that has
 * been resized meanwhile is the same: it goes on with the size that it knows, and
 * what lies past the end is refused if that is less by now. */
static bool
enter_again (struct conn *c)
{
  const struct export_info told = c->info;

  if (!conn_enter_again (c, c->export_name))
    return false;
  if (!same_info (handle_info (c->handle), &told)) {
    log_error ("export '%.128s' has changed: flags 0x%x, not 0x%x, or its "
               "block sizes", c->export_name, handle_info (c->handle)->flags,
               told.flags);
    return false;
  }
  handle_limit_size (c->handle, told.size);
  return true;
}

static void
resumed_main (void *arg)
{
  struct conn *c = arg;

  thread_context.conn = c;
  thread_context.plugin_name = backend_name (c->b);
  c->entered = backend_enter (c->b);
  if (c->entered && backend_preconnect (c->b, c->settings->readonly) &&
      enter_again (c))
    conn_serve (c);
  else {
    log_error ("cannot go on with this client: it is disconnected");
    conn_finish (c);
  }
}

void
conn_resume (const struct handover_conn *from)
{
  struct timeval for_ever = { 0 };
  struct conn *c = conn_new (from->fd);

  setsockopt (c->fd, SOL_SOCKET, SO_RCVTIMEO, &for_ever, sizeof for_ever);
  c->number = from->number;
  c->listener = from->listener;
  c->listener_max = from->listener_max;
  c->mode = from->mode;
  c->info = from->info;
  c->export_name = g_strdup (from->export_name);
  atomic_init (&c->bytes_read, from->bytes_read);
  atomic_init (&c->bytes_written, from->bytes_written);
  atomic_init (&c->requests, from->requests);
  atomic_init (&c->extents, from->extents);
  if (from->contexts->len > 0)
    c->contexts = metactx_set_new (c->export_name);
  for (guint i = 0; i < from->contexts->len; i++) {
    struct metactx *ctx = metactx_set_add (c->contexts,
                                           from->contexts->pdata[i]);

    ctx->is_base = strcmp (ctx->name, METACTX_BASE_ALLOCATION) == 0;
  }
  if (g_bytes_get_size (from->unparsed) > 0)
    c->inherited = g_bytes_ref (from->unparsed);

  pthread_mutex_lock (&conns_lock);
  g_ptr_array_add (conns, c);
  pthread_mutex_unlock (&conns_lock);
  if (!pool_run (resumed_main, c)) {
    log_error ("client dropped: cannot start a thread: %m");
    pthread_mutex_lock (&conns_lock);
    g_ptr_array_remove_fast (conns, c);
    conn_free (c);
    pthread_mutex_unlock (&conns_lock);
  }
}

void
conn_set_last_number (unsigned number)
{
  last_number = number;
}

/* Call fn for the connection that has the plugin's handle open. */
static bool
with_conn_of_handle (void *plugin_handle,
                     void (*fn) (struct conn *c, void *arg), void *arg)
{
  bool found = false;

  pthread_mutex_lock (&conns_lock);
  for (guint i = 0; conns != NULL && i < conns->len && !found; i++) {
    struct conn *c = g_ptr_array_index (conns, i);

    pthread_mutex_lock (&c->lock);
    found =
      (c->handle && handle_plugin_handle (c->handle) == plugin_handle) ||
      (c->probe && handle_plugin_handle (c->probe) == plugin_handle);
    pthread_mutex_unlock (&c->lock);
    if (found)
      fn (c, arg);
  }
  pthread_mutex_unlock (&conns_lock);
  return found;
}

static void
disconnect (struct conn *c, void *arg)
{
  atomic_store (&c->closing, true);
  shutdown (c->fd, SHUT_RD);    /* wakes whoever waits for a request */
}

bool
conn_disconnect_handle (void *plugin_handle)
{
  return with_conn_of_handle (plugin_handle, disconnect, NULL);
}

unsigned
conn_count_of_listener (int64_t listener)
{
  unsigned nr = 0;

  pthread_mutex_lock (&conns_lock);
  for (guint i = 0; conns != NULL && i < conns->len; i++)
    nr += ((struct conn *) conns->pdata[i])->listener == listener;
  pthread_mutex_unlock (&conns_lock);
  return nr;
}

void
conn_disconnect_listener (int64_t listener)
{
  pthread_mutex_lock (&conns_lock);
  for (guint i = 0; conns != NULL && i < conns->len; i++) {
    struct conn *c = conns->pdata[i];

    if (c->listener == listener)
      disconnect (c, NULL);
  }
  pthread_mutex_unlock (&conns_lock);
}

static void
read_counters (struct conn *c, void *arg)
{
  struct metacontext_counters *out = arg;

  out->bytes_read = atomic_load (&c->bytes_read);
  out->bytes_written = atomic_load (&c->bytes_written);
  out->requests = atomic_load (&c->requests);
  out->extents = atomic_load (&c->extents);
}

bool
conn_counters_of_handle (void *plugin_handle,
                         struct metacontext_counters *out)
{
  return with_conn_of_handle (plugin_handle, read_counters, out);
}
