/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "conn-list.h"
#include "context.h"
#include "listen.h"
#include "log.h"
#include "memory-pool.h"
#include "pool.h"
#include "steal.h"

struct conn_list clients = {
  .lock = PTHREAD_MUTEX_INITIALIZER,
  .left = PTHREAD_COND_INITIALIZER,
};

void
conn_init (const struct conn_settings *s)
{
  clients.settings = *s;
  memory_init (s->limits.memory);
  clients.conns = g_ptr_array_new ();
  clients.parked = g_ptr_array_new ();
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
  return c->tls != NULL;
}

const struct tls_peer *
conn_tls_peer (const struct conn *c)
{
  return c->tls ? tls_session_peer (c->tls) : NULL;
}

bool
conn_is_closing (const struct conn *c)
{
  return atomic_load_explicit (&c->closing, memory_order_relaxed) ||
    atomic_load_explicit (&c->dead, memory_order_relaxed);
}

void
conn_keep_string (struct conn *c, char *str)
{
  c->strings = g_slist_prepend (c->strings, str);
}

static void
conn_main (void *arg)
{
  struct conn *c = arg;

  thread_context.conn = c;
  thread_context.plugin_name = backend_name (c->b);
  thread_context.in_handshake = true;
  log_debug ("client connected (%s)", *c->peer ? c->peer : "unknown");
  c->entered = backend_enter (c->b);
  if (c->entered && !atomic_load (&c->closing) &&
      backend_preconnect (c->b, conn_is_readonly (c)) &&
      conn_handshake (c))
    conn_serve (c);             /* which finishes it */
  else
    conn_finish (c);
}

void
conn_free (struct conn *c)
{
  close (c->fd);
  tls_session_free (c->tls);
  g_slist_free_full (c->strings, free);
  g_clear_pointer (&c->inherited, g_bytes_unref);
  if (c->unparsed)
    g_byte_array_unref (c->unparsed);
  g_free (c->export_name);
  g_free (c->served_name);
  rate_unref (c->rate);
  rate_unref (c->listener_rate);
  metactx_set_free (c->contexts);
  terms_unref (c->terms);
  pthread_cond_destroy (&c->room);
  pthread_mutex_destroy (&c->lock);
  g_free (c);
}

void
conn_finish (struct conn *c)
{
  bool limited = c->listener_max != 0;
  struct stats stats;
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
  conn_say_goodbye (c);
  handle_close (handle);
  if (c->entered)
    backend_leave (c->b);
  log_debug (c->parked ? "client waits for the next image"
             : "client has left");
  memset (&thread_context, 0, sizeof thread_context);

  pthread_mutex_lock (&clients.lock);
  g_ptr_array_remove_fast (clients.conns, c);
  if (c->served_name != NULL) {
    stats_read (&c->stats, &stats);
    stats_keep (c->served_name, &stats);
  }
  if (c->parked)
    g_ptr_array_add (clients.parked, c);
  else
    conn_free (c);
  pthread_cond_signal (&clients.left);
  pthread_mutex_unlock (&clients.lock);
  if (limited)                  /* another may come in */
    listen_wake ();
}

struct conn *
conn_new (int fd)
{
  struct conn *c = g_new0 (struct conn, 1);

  c->settings = &clients.settings;
  c->b = clients.settings.backend;
  c->fd = fd;
  c->can_steal = backend_is_parallel (c->b) && clients.settings.threads > 1;
  pthread_mutex_init (&c->lock, NULL);
  pthread_cond_init (&c->room, NULL);
  return c;
}

/* Whoever could open nothing is not let in: else he would take one of the
 * connections that there may be. */
static bool
is_welcome (int fd, const Terms *terms)
{
  static struct log_bound bound;
  struct access_peer peer;
  g_autofree char *who = NULL;
  bool ok;

  access_peer_init (&peer, fd);
  peer.may_have_tls = terms_tls_mode (terms) != TLS_OFF;
  ok = access_may_connect (terms, &peer);
  if (!ok) {
    who = access_peer_describe (&peer);
    log_error_bounded (&bound, "client refused: no access for %s%s%s", who,
                       *terms->name ? " by listener " : "", terms->name);
  }
  access_peer_clear (&peer);
  return ok;
}

void
conn_start (int fd, int64_t listener, uint32_t listener_max, Terms *terms)
{
  enum limit_kind met;
  struct conn *c;

  if (!is_welcome (fd, terms)) {
    close (fd);
    return;
  }
  c = conn_new (fd);
  conn_set_socket (c);
  conn_name_peer (c);
  c->listener = listener;
  c->listener_max = listener_max;
  c->terms = terms_ref (terms);
  pthread_mutex_lock (&clients.lock);
  if (!conn_is_admitted_locked (c, &met)) {
    pthread_mutex_unlock (&clients.lock);
    limit_enforced (NULL, met, "client refused (%s): too many are connected",
                    *c->peer ? c->peer : "unknown");
    conn_free (c);
    return;
  }
  conn_set_rates (c);
  c->number = ++clients.last_number;
  g_ptr_array_add (clients.conns, c);
  pthread_mutex_unlock (&clients.lock);

  if (!pool_run (conn_main, c)) {
    log_error ("client refused: cannot start a thread: %m");
    pthread_mutex_lock (&clients.lock);
    g_ptr_array_remove_fast (clients.conns, c);
    conn_free (c);
    pthread_mutex_unlock (&clients.lock);
  }
}

void
conn_shutdown_all_locked (int how)
{
  for (guint i = 0; i < clients.conns->len; i++) {
    struct conn *c = g_ptr_array_index (clients.conns, i);

    atomic_store (&c->closing, true);
    shutdown (c->fd, how);
  }
}

bool
conn_with_handle (void *plugin_handle,
                  void (*fn) (struct conn *c, void *arg), void *arg)
{
  bool found = false;

  pthread_mutex_lock (&clients.lock);
  for (guint i = 0; clients.conns != NULL && i < clients.conns->len && !found;
       i++) {
    struct conn *c = g_ptr_array_index (clients.conns, i);

    pthread_mutex_lock (&c->lock);
    found =
      (c->handle && handle_plugin_handle (c->handle) == plugin_handle) ||
      (c->probe && handle_plugin_handle (c->probe) == plugin_handle);
    pthread_mutex_unlock (&c->lock);
    if (found)
      fn (c, arg);
  }
  pthread_mutex_unlock (&clients.lock);
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
  return conn_with_handle (plugin_handle, disconnect, NULL);
}

unsigned
conn_count_of_listener (int64_t listener)
{
  unsigned nr = 0;

  pthread_mutex_lock (&clients.lock);
  for (guint i = 0; clients.conns != NULL && i < clients.conns->len; i++)
    nr += ((struct conn *) clients.conns->pdata[i])->listener == listener;
  pthread_mutex_unlock (&clients.lock);
  return nr;
}

void
conn_disconnect_listener (int64_t listener)
{
  pthread_mutex_lock (&clients.lock);
  for (guint i = 0; clients.conns != NULL && i < clients.conns->len; i++) {
    struct conn *c = clients.conns->pdata[i];

    if (c->listener == listener)
      disconnect (c, NULL);
  }
  pthread_mutex_unlock (&clients.lock);
}
