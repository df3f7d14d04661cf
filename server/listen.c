/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bind.h"
#include "conn.h"
#include "listen.h"
#include "log.h"
#include "quit.h"
#include "reexec.h"
#include "reload.h"

#define LISTEN_ERROR (g_quark_from_static_string ("nbdfleece-listen"))

/* Clients taken before the other listeners have their turn. */
#define ACCEPTS_A_ROUND 64

struct listener {
  int64_t id;
  struct bound_socket socket;
  bool removed;                 /* shut down; to be closed by listen_run */
  uint32_t max_connections;     /* 0: no limit of its own */
  Terms *terms;                 /* a reference */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Under lock. */
static GPtrArray *listeners;
static int64_t last_id;
static int wake_fd = -1;        /* the list has changed */
/* The main thread's. */
static bool is_single;

static void
wake (void)
{
  uint64_t one = 1;
  ssize_t r = write (wake_fd, &one, sizeof one);

  (void) r;                     /* fails only when it is awake already */
}

void
listen_wake (void)
{
  wake ();
}

static void
init_locked (void)
{
  if (listeners == NULL) {
    listeners = g_ptr_array_new ();
    wake_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  }
}

/* The sockets of one address have one id: they go together. */
static int64_t
add_listeners (const Address *a, const struct bound_socket *sockets, guint nr)
{
  int64_t id;

  pthread_mutex_lock (&lock);
  init_locked ();
  id = ++last_id;
  for (guint i = 0; i < nr; i++) {
    struct listener *l = g_new0 (struct listener, 1);

    l->id = id;
    l->socket = sockets[i];
    l->max_connections = a->max_connections;
    l->terms = terms_ref (a->terms);
    g_ptr_array_add (listeners, l);
  }
  pthread_mutex_unlock (&lock);
  wake ();
  return id;
}

int64_t
listen_add (const Address *a, unsigned *out_port, GError **error)
{
  g_autoptr (GArray) sockets =
    g_array_new (FALSE, FALSE, sizeof (struct bound_socket));
  const struct bound_socket *first;

  if (!bind_address (a, sockets, error))
    return -1;
  first = &g_array_index (sockets, struct bound_socket, 0);
  if (out_port != NULL)
    *out_port = first->port;
  return add_listeners (a, first, sockets->len);
}

bool
listen_adopt (const Address *a, int fd, const char *what, unsigned *out_port,
              GError **error)
{
  struct bound_socket s;

  if (!bind_adopt (fd, what, &s, error))
    return false;
  if (out_port != NULL)
    *out_port = s.port;
  add_listeners (a, &s, 1);
  return true;
}

int64_t
listen_add_uri (const char *uri, uint32_t max_connections, Terms *terms,
                GError **error)
{
  g_autofree char *scheme = NULL, *host = NULL, *path = NULL, *query = NULL;
  g_autoptr (GHashTable) params = NULL;
  g_autoptr (GError) local = NULL;
  g_autoptr (Address) a = NULL;
  const char *socket_path = NULL;
  int port = -1;

  if (!g_uri_split (uri, G_URI_FLAGS_ENCODED_QUERY, &scheme, NULL, &host,
                    &port, &path, &query, NULL, &local)) {
    g_set_error (error, LISTEN_ERROR, 0, "'%s' is not a valid URI: %s", uri,
                 local->message);
    return -1;
  }
  if (g_strcmp0 (scheme, "nbd+unix") == 0) {
    if (query != NULL)
      params = g_uri_parse_params (query, -1, "&", G_URI_PARAMS_NONE, NULL);
    if (params != NULL)
      socket_path = g_hash_table_lookup (params, "socket");
    if (socket_path == NULL || socket_path[0] != '/') {
      g_set_error (error, LISTEN_ERROR, 0,
                   "'%s' has no absolute socket=PATH", uri);
      return -1;
    }
    a = address_new (ADDRESS_UNIX);
    a->path = g_strdup (socket_path);
  }
  else if (g_strcmp0 (scheme, "nbd") == 0) {
    a = address_new (ADDRESS_TCP);
    a->host = host && *host ? g_strdup (host) : NULL;
    a->port = port == -1 ? g_strdup (DEFAULT_PORT)
      : g_strdup_printf ("%d", port);
  }
  else {
    g_set_error (error, LISTEN_ERROR, 0, "'%s' is neither nbd://HOST:PORT nor "
                 "nbd+unix:///?socket=PATH", uri);
    return -1;
  }
  a->max_connections = max_connections;
  if (terms != NULL) {
    terms_unref (a->terms);
    a->terms = terms_ref (terms);
  }
  return listen_add (a, NULL, error);
}

static void
listener_free (struct listener *l)
{
  close (l->socket.fd);
  g_free (l->socket.path);
  terms_unref (l->terms);
  g_free (l);
}

bool
listen_remove (int64_t id)
{
  bool found = false;

  pthread_mutex_lock (&lock);
  for (guint i = 0; listeners && i < listeners->len; i++) {
    struct listener *l = g_ptr_array_index (listeners, i);

    if (l->id != id || l->removed)
      continue;
    /* Only listen_run may close it: it may be waiting for it in poll. */
    l->removed = true;
    shutdown (l->socket.fd, SHUT_RDWR);
    bound_socket_remove_file (&l->socket);
    found = true;
  }
  pthread_mutex_unlock (&lock);
  if (found)
    wake ();
  return found;
}

/* Whose clients have no listener; ids of those start at 1. */
#define SINGLE_ID INT64_C (0)

void
listen_serve_one (int fd)
{
  g_autoptr (Terms) terms = terms_new ();

  pthread_mutex_lock (&lock);
  init_locked ();
  pthread_mutex_unlock (&lock);
  is_single = true;
  /* Of one that is limited we are told when it leaves. */
  conn_start (fd, SINGLE_ID, 1, terms);
}

/* Its clients wait in the backlog then; conn_finish wakes us. */
static bool
is_full (const struct listener *l)
{
  return l->max_connections != 0 &&
    conn_count_of_listener (l->id) >= l->max_connections;
}

/* Take all that are waiting; not for ever where they come faster than that.
 * Returns false if the system has no more files to give: poll would come back
 * at once, over and over. */
static bool
accept_all (const struct listener *from)
{
  for (unsigned i = 0; i < ACCEPTS_A_ROUND && !quit_requested () &&
         !reexec_scheduled () && !is_full (from); i++) {
    int fd = accept4 (from->socket.fd, NULL, NULL, SOCK_CLOEXEC);

    if (fd >= 0)
      conn_start (fd, from->id, from->max_connections, from->terms);
    else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM ||
             errno == ENOBUFS) {
      log_error ("cannot accept a client: %m");
      return false;
    }
    else if (errno != EINTR && errno != ECONNABORTED)
      break;
  }
  return true;
}

/* Drop removed listeners; fill in who to wait for: fds behind the first two,
 * and from, copies. */
static void
collect (GArray *fds, GArray *from)
{
  struct pollfd pfd = { .events = POLLIN };

  g_array_set_size (fds, 0);
  g_array_set_size (from, 0);
  pfd.fd = quit_fd ();
  g_array_append_val (fds, pfd);
  pfd.fd = wake_fd;
  g_array_append_val (fds, pfd);
  pthread_mutex_lock (&lock);
  for (guint i = 0; i < listeners->len;) {
    struct listener *l = g_ptr_array_index (listeners, i);

    if (l->removed) {
      g_ptr_array_remove_index (listeners, i);
      listener_free (l);
      continue;
    }
    i++;
    if (is_full (l))
      continue;
    pfd.fd = l->socket.fd;
    g_array_append_val (fds, pfd);
    g_array_append_vals (from, l, 1);
  }
  pthread_mutex_unlock (&lock);
}

void
listen_run (void)
{
  GArray *fds = g_array_new (FALSE, FALSE, sizeof (struct pollfd));
  GArray *from = g_array_new (FALSE, FALSE, sizeof (struct listener));
  bool ok = true;
  uint64_t n;

  while (!quit_requested () && !reexec_scheduled ()) {
    if (is_single && conn_count_of_listener (SINGLE_ID) == 0)
      break;
    reload_if_requested ();
    collect (fds, from);
    /* After a failure, wait a little for files to be closed. */
    if (poll ((struct pollfd *) fds->data, ok ? fds->len : 2,
              ok ? -1 : 200) == -1)
      continue;
    if (read (wake_fd, &n, sizeof n) == sizeof n)
      continue;
    for (guint i = 2; i < fds->len && !quit_requested () &&
           !reexec_scheduled (); i++) {
      struct pollfd *pfd = &g_array_index (fds, struct pollfd, i);

      if (!ok || pfd->revents)
        ok = accept_all (&g_array_index (from, struct listener, i - 2));
    }
  }
  g_array_free (fds, TRUE);
  g_array_free (from, TRUE);
}

static void
close_all (bool remove_files)
{
  pthread_mutex_lock (&lock);
  for (guint i = 0; listeners && i < listeners->len; i++) {
    struct listener *l = g_ptr_array_index (listeners, i);

    if (remove_files && !l->removed)
      bound_socket_remove_file (&l->socket);
    listener_free (l);
  }
  if (listeners)
    g_ptr_array_set_size (listeners, 0);
  pthread_mutex_unlock (&lock);
}

void
listen_close_all (void)
{
  close_all (true);
}

void
listen_forget_all (void)
{
  close_all (false);
}

void
listen_hand_over (Handover *h)
{
  pthread_mutex_lock (&lock);
  for (guint i = 0; listeners && i < listeners->len; i++) {
    struct listener *l = g_ptr_array_index (listeners, i);
    struct handover_listener *out;

    if (l->removed) {
      listener_free (l);
      continue;
    }
    out = handover_add_listener (h);
    *out = (struct handover_listener) {
      .id = l->id, .fd = l->socket.fd,
      .path = g_steal_pointer (&l->socket.path),
      .dev = l->socket.dev, .ino = l->socket.ino, .port = l->socket.port,
      .max_connections = l->max_connections,
      .terms = g_strdup (l->terms->text),
    };
    terms_unref (l->terms);
    g_free (l);
  }
  if (listeners)
    g_ptr_array_set_size (listeners, 0);
  h->last_listener_id = last_id;
  pthread_mutex_unlock (&lock);
}

void
listen_take_over (const Handover *h)
{
  pthread_mutex_lock (&lock);
  init_locked ();
  for (guint i = 0; i < h->listeners->len; i++) {
    const struct handover_listener *in = h->listeners->pdata[i];
    struct listener *l = g_new0 (struct listener, 1);
    g_autoptr (GError) error = NULL;

    *l = (struct listener) {
      .id = in->id,
      .socket = { .fd = in->fd, .path = g_strdup (in->path), .dev = in->dev,
                  .ino = in->ino, .port = in->port },
      .max_connections = in->max_connections,
      .terms = terms_parse (in->terms),
    };
    if (!terms_load_keys (l->terms, &error))
      log_error ("nobody can start TLS on a listener any more: %s",
                 error->message);
    g_ptr_array_add (listeners, l);
  }
  last_id = h->last_listener_id;
  pthread_mutex_unlock (&lock);
}
