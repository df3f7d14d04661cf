/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* conn-handover.c - the clients stop at the border of a request, and go on in
 * another image of this program (reexec.h).
 */
#include <config.h>

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "conn-list.h"
#include "context.h"
#include "log.h"
#include "nbd-wire.h"
#include "pool.h"

/* How long a handshake may go on while all wait for another image: clients that
 * know what they want need a millisecond. */
#define PARK_HANDSHAKE_SECONDS 1
/* How long receiving blocks once everybody is to stop. */
#define PARK_RECV_US 1000

static atomic_bool parking;

bool
conn_is_parking (void)
{
  return atomic_load_explicit (&parking, memory_order_relaxed);
}

static void
receive_briefly (struct conn *c)
{
  struct timeval soon = { .tv_usec = PARK_RECV_US };

  setsockopt (c->fd, SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof soon);
}

void
conn_set_leader (struct conn *c, bool is_leader)
{
  pthread_mutex_lock (&c->lock);
  if (is_leader) {
    c->leader = pthread_self ();
    /* conn_interrupt_locked may have found no leader. */
    if (atomic_load (&c->closing) || conn_is_parking ())
      receive_briefly (c);
  }
  /* Whoever has lost the leadership may be late to say so. */
  if (is_leader || pthread_equal (c->leader, pthread_self ()))
    c->has_leader = is_leader;
  pthread_mutex_unlock (&c->lock);
}

/* Get the leader out of its receive.  Once the handler has run, the system
 * restarts the call, and the socket's timeout, new by then, ends it; one that
 * is not in the call meets the timeout when it is.  (A flag and EINTR alone
 * would leave a gap between looking at the flag and the call.)  SA_RESTART: the
 * thread may just as well be in a call of the plugin's. */
void
conn_interrupt_locked (struct conn *c)
{
  pthread_mutex_lock (&c->lock);
  if (c->has_leader) {
    receive_briefly (c);
    pthread_kill (c->leader, SIGURG);
  }
  pthread_mutex_unlock (&c->lock);
}

/* With clients.lock held.  false: some are still there after that time. */
static bool
wait_for_all_locked (unsigned seconds)
{
  struct timespec until;
  int err = 0;

  clock_gettime (CLOCK_REALTIME, &until);
  until.tv_sec += seconds;
  while (clients.conns->len > 0 && err != ETIMEDOUT)
    err = pthread_cond_timedwait (&clients.left, &clients.lock, &until);
  return clients.conns->len == 0;
}

static void
close_handshakes_locked (void)
{
  for (guint i = 0; i < clients.conns->len; i++) {
    struct conn *c = g_ptr_array_index (clients.conns, i);

    pthread_mutex_lock (&c->lock);
    /* Not has_leader, which goes and comes when the leadership is stolen. */
    if (c->served_name == NULL) {
      atomic_store (&c->closing, true);
      shutdown (c->fd, SHUT_RDWR);
    }
    pthread_mutex_unlock (&c->lock);
  }
}

void
conn_park_all (void)
{
  pthread_mutex_lock (&clients.lock);
  atomic_store (&parking, true);
  for (guint i = 0; i < clients.conns->len; i++)
    conn_interrupt_locked (g_ptr_array_index (clients.conns, i));
  if (!wait_for_all_locked (PARK_HANDSHAKE_SECONDS)) {
    backend_stop_waiting (clients.settings.backend);
    close_handshakes_locked ();
    if (!wait_for_all_locked (GRACE_SECONDS))
      conn_shutdown_all_locked (SHUT_RDWR);
    while (clients.conns->len > 0)      /* the plugin is at work for them */
      pthread_cond_wait (&clients.left, &clients.lock);
  }
  pthread_mutex_unlock (&clients.lock);
}

static void
hand_over_one (Handover *h, struct conn *c)
{
  struct stats stats;
  struct handover_conn *out = handover_add_conn (h);
  GByteArray *unparsed = c->unparsed ? c->unparsed : g_byte_array_new ();

  out->number = c->number;
  out->fd = c->fd;
  out->listener = c->listener;
  out->listener_max = c->listener_max;
  out->terms = g_strdup (c->terms->text);
  out->export_name = g_strdup (c->export_name);
  out->mode = c->mode;
  out->info = c->info;
  stats_read (&c->stats, &stats);
  out->bytes_read = stats.command[NBD_CMD_READ].bytes;
  out->bytes_written = stats.command[NBD_CMD_WRITE].bytes;
  out->requests = c->requests_before + stats_requests (&stats);
  out->extents = stats.extents;
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
  pthread_mutex_lock (&clients.lock);
  for (guint i = 0; i < clients.parked->len; i++)
    hand_over_one (h, clients.parked->pdata[i]);
  g_ptr_array_set_size (clients.parked, 0);
  h->last_conn_number = clients.last_number;
  pthread_mutex_unlock (&clients.lock);
}

static bool
same_info (const struct export_info *a, const struct export_info *b)
{
  return a->flags == b->flags &&
    a->block.min == b->block.min &&
    a->block.preferred == b->block.preferred && a->block.max == b->block.max;
}

/* A client cannot be told that its export is another one now.  A disk that has
 * been resized meanwhile is the same: it goes on with the size that it knows,
 * and what lies past the end is refused if that is less by now. */
static bool
enter_again (struct conn *c)
{
  const struct export_info told = c->info;

  if (!conn_enter_export (c, c->export_name))
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
  if (c->entered && backend_preconnect (c->b, conn_is_readonly (c)) &&
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
  struct conn *c = conn_new (from->fd);

  conn_set_socket (c);
  conn_name_peer (c);
  c->number = from->number;
  c->listener = from->listener;
  c->listener_max = from->listener_max;
  conn_set_rates (c);
  c->terms = terms_parse (from->terms);
  c->mode = from->mode;
  c->info = from->info;
  c->export_name = g_strdup (from->export_name);
  atomic_init (&c->stats.command[NBD_CMD_READ].bytes, from->bytes_read);
  atomic_init (&c->stats.command[NBD_CMD_WRITE].bytes, from->bytes_written);
  atomic_init (&c->stats.extents, from->extents);
  c->requests_before = from->requests;
  if (from->contexts->len > 0)
    c->contexts = metactx_set_new (c->export_name);
  for (guint i = 0; i < from->contexts->len; i++) {
    struct metactx *ctx = metactx_set_add (c->contexts,
                                           from->contexts->pdata[i]);

    ctx->is_base = strcmp (ctx->name, METACTX_BASE_ALLOCATION) == 0;
  }
  if (g_bytes_get_size (from->unparsed) > 0)
    c->inherited = g_bytes_ref (from->unparsed);

  pthread_mutex_lock (&clients.lock);
  g_ptr_array_add (clients.conns, c);
  pthread_mutex_unlock (&clients.lock);
  if (!pool_run (resumed_main, c)) {
    log_error ("client dropped: cannot start a thread: %m");
    pthread_mutex_lock (&clients.lock);
    g_ptr_array_remove_fast (clients.conns, c);
    conn_free (c);
    pthread_mutex_unlock (&clients.lock);
  }
}

void
conn_set_last_number (unsigned number)
{
  clients.last_number = number;
}
