/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "conn-internal.h"
#include "context.h"
#include "log.h"
#include "pool.h"
#include "steal.h"

/* How long clients may take to accept their last replies at shutdown. */
#define GRACE_SECONDS 5

static struct conn_settings settings;

/* Everybody who is connected; conns_lock protects the list and keeps those on
 * it (and their fd) alive. */
static pthread_mutex_t conns_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t conn_left = PTHREAD_COND_INITIALIZER;
static GPtrArray *conns;
static unsigned last_number;

void
conn_init (const struct conn_settings *s)
{
  settings = *s;
  conns = g_ptr_array_new ();
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
  metactx_set_free (c->contexts);
  pthread_cond_destroy (&c->room);
  pthread_mutex_destroy (&c->send_lock);
  pthread_mutex_destroy (&c->lock);
  g_free (c);
}

void
conn_finish (struct conn *c)
{
  Handle *handle;

  /* Nobody may find the handle while the plugin closes it. */
  pthread_mutex_lock (&c->lock);
  handle = c->handle;
  c->handle = NULL;
  pthread_mutex_unlock (&c->lock);
  handle_close (handle);
  if (c->entered)
    backend_leave (c->b);
  log_debug ("client has left");
  memset (&thread_context, 0, sizeof thread_context);

  pthread_mutex_lock (&conns_lock);
  g_ptr_array_remove_fast (conns, c);
  conn_free (c);
  pthread_cond_signal (&conn_left);
  pthread_mutex_unlock (&conns_lock);
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
conn_start (int fd)
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
  g_ptr_array_free (conns, TRUE);
  conns = NULL;
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
