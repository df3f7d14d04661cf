/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/stale-socket.h"
#include "conn.h"
#include "listen.h"
#include "log.h"
#include "quit.h"
#include "reexec.h"

#define LISTEN_ERROR (g_quark_from_static_string ("nbdfleece-listen"))

/* The length that the system caps anyway; clients may come in bursts. */
#define BACKLOG SOMAXCONN

/* Clients taken before the other listeners have their turn. */
#define ACCEPTS_A_ROUND 64

struct listener {
  int64_t id;
  int fd;
  bool removed;                 /* shut down; to be closed by listen_run */
  char *path;                   /* of a Unix socket, else NULL */
  dev_t dev;                    /* identity of that file */
  ino_t ino;
  unsigned port;                /* of TCP, else 0 */
  uint32_t max_connections;     /* 0: no limit of its own */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Under lock. */
static GPtrArray *listeners;
static int64_t last_id;
static int wake_fd = -1;        /* the list has changed */

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

static int64_t
add_listener (struct listener *l, int64_t id)
{
  pthread_mutex_lock (&lock);
  init_locked ();
  l->id = id ? id : ++last_id;
  g_ptr_array_add (listeners, l);
  id = l->id;
  pthread_mutex_unlock (&lock);
  wake ();
  return id;
}

static void
set_errno_error (GError **error, const char *what, int err)
{
  g_set_error (error, LISTEN_ERROR, 0, "cannot listen on %s: %s", what,
               g_strerror (err));
}

/* A file is there.  Remove it if it is the socket of a server that is gone; false:
 * somebody is there, or it is something else. */
static bool
remove_stale (const struct sockaddr_un *addr, GError **error)
{
  int r = remove_stale_socket (addr);

  if (r == 0) {
    log_debug ("removed stale socket '%s'", addr->sun_path);
    return true;
  }
  if (r == 1 || r == -EBUSY)
    g_set_error (error, LISTEN_ERROR, 0,
                 "cannot listen on '%s': another server is listening there",
                 addr->sun_path);
  else if (r == -ENOTSOCK)
    g_set_error (error, LISTEN_ERROR, 0,
                 "cannot listen on '%s': the file exists and is not a socket",
                 addr->sun_path);
  else if (r == -EACCES)
    g_set_error (error, LISTEN_ERROR, 0,
                 "cannot listen on '%s': the socket belongs to somebody else",
                 addr->sun_path);
  else
    g_set_error (error, LISTEN_ERROR, 0, "cannot listen on '%s': %s",
                 addr->sun_path, g_strerror (-r));
  return false;
}

/* The mode has to be right from the start: a client could connect between
 * bind and chmod. */
static int
bind_with_mode (int fd, const struct sockaddr_un *addr, int mode)
{
  mode_t saved = 0;
  int r;

  if (mode != -1)
    saved = umask (~mode & 0777);
  r = bind (fd, (const struct sockaddr *) addr, sizeof *addr);
  if (mode != -1)
    umask (saved);
  return r;
}

static int64_t
add_unix (const char *path, int mode, uint32_t max_connections,
          GError **error)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  struct listener *l;
  struct stat st;
  int fd;

  if (*path == '\0' || strlen (path) >= sizeof addr.sun_path) {
    g_set_error (error, LISTEN_ERROR, 0, "cannot listen on '%s': the path of "
                 "a Unix socket has 1 to %zu bytes", path,
                 sizeof addr.sun_path - 1);
    return -1;
  }
  memcpy (addr.sun_path, path, strlen (path));
  fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd == -1) {
    set_errno_error (error, path, errno);
    return -1;
  }
  if (bind_with_mode (fd, &addr, mode) == -1) {
    if (errno != EADDRINUSE) {
      g_set_error (error, LISTEN_ERROR, 0, "cannot listen on '%s': %s", path,
                   g_strerror (errno));
      close (fd);
      return -1;
    }
    if (!remove_stale (&addr, error)) {
      close (fd);
      return -1;
    }
    if (bind_with_mode (fd, &addr, mode) == -1)
      goto fail;
  }
  if (listen (fd, BACKLOG) == -1 || lstat (path, &st) == -1)
    goto fail;
  l = g_new0 (struct listener, 1);
  l->fd = fd;
  /* A daemon changes its folder before it removes the file. */
  l->path = g_canonicalize_filename (path, NULL);
  l->dev = st.st_dev;
  l->ino = st.st_ino;
  l->max_connections = max_connections;
  return add_listener (l, 0);

 fail:
  set_errno_error (error, path, errno);
  close (fd);
  return -1;
}

bool
listen_add_unix (const char *path, int mode, GError **error)
{
  return add_unix (path, mode, 0, error) != -1;
}

/* One address; an fd, or -1 with errno. */
static int
bind_tcp (const struct addrinfo *ai, unsigned *port)
{
  struct sockaddr_storage addr;
  socklen_t n = sizeof addr;
  int one = 1, saved_errno;
  int fd = socket (ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK,
                   ai->ai_protocol);

  if (fd == -1)
    return -1;
  setsockopt (fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (ai->ai_family == AF_INET6)
    setsockopt (fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
  memcpy (&addr, ai->ai_addr, ai->ai_addrlen);
  /* All addresses share the port that the system chose for the first. */
  if (*port && addr.ss_family == AF_INET)
    ((struct sockaddr_in *) &addr)->sin_port = htons (*port);
  else if (*port && addr.ss_family == AF_INET6)
    ((struct sockaddr_in6 *) &addr)->sin6_port = htons (*port);
  if (bind (fd, (struct sockaddr *) &addr, ai->ai_addrlen) == -1 ||
      listen (fd, BACKLOG) == -1 ||
      getsockname (fd, (struct sockaddr *) &addr, &n) == -1) {
    saved_errno = errno;
    close (fd);
    errno = saved_errno;
    return -1;
  }
  *port = ntohs (addr.ss_family == AF_INET ?
                 ((struct sockaddr_in *) &addr)->sin_port :
                 ((struct sockaddr_in6 *) &addr)->sin6_port);
  return fd;
}

static int64_t
add_tcp (const char *host, const char *port_name, int family,
         uint32_t max_connections, GError **error)
{
  struct addrinfo hints = { .ai_family = family, .ai_socktype = SOCK_STREAM,
                            .ai_flags = AI_PASSIVE };
  struct addrinfo *list, *ai;
  int64_t id = 0;
  unsigned port = 0;
  int err, last_errno = 0;

  err = getaddrinfo (host, port_name, &hints, &list);
  if (err) {
    g_set_error (error, LISTEN_ERROR, 0, "cannot listen on %s, port %s: %s",
                 host ? host : "all interfaces", port_name,
                 err == EAI_SYSTEM ? g_strerror (errno) : gai_strerror (err));
    return -1;
  }
  for (ai = list; ai; ai = ai->ai_next) {
    int fd = bind_tcp (ai, &port);
    struct listener *l;

    if (fd == -1) {
      last_errno = errno;
      /* A machine without IPv6, or without an address of that kind. */
      if (errno == EAFNOSUPPORT || errno == EADDRNOTAVAIL)
        continue;
      break;
    }
    l = g_new0 (struct listener, 1);
    l->fd = fd;
    l->port = port;
    l->max_connections = max_connections;
    id = add_listener (l, id);
  }
  freeaddrinfo (list);
  if (ai != NULL && id != 0)
    listen_remove (id);
  if (ai != NULL || id == 0) {
    g_set_error (error, LISTEN_ERROR, 0, "cannot listen on %s, port %s: %s",
                 host ? host : "all interfaces", port_name,
                 g_strerror (last_errno));
    return -1;
  }
  return id;
}

bool
listen_add_tcp (const char *host, const char *port, int family,
                GError **error)
{
  return add_tcp (host, port, family, 0, error) != -1;
}

int64_t
listen_add_uri (const char *uri, uint32_t max_connections, GError **error)
{
  g_autofree char *scheme = NULL, *host = NULL, *path = NULL, *query = NULL;
  g_autoptr (GHashTable) params = NULL;
  g_autoptr (GError) local = NULL;
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
    return add_unix (socket_path, -1, max_connections, error);
  }
  if (g_strcmp0 (scheme, "nbd") == 0) {
    g_autofree char *port_name =
      g_strdup_printf ("%d", port == -1 ? 10809 : port);

    return add_tcp (host && *host ? host : NULL, port_name, AF_UNSPEC,
                    max_connections, error);
  }
  g_set_error (error, LISTEN_ERROR, 0, "'%s' is neither nbd://HOST:PORT nor "
               "nbd+unix:///?socket=PATH", uri);
  return -1;
}

/* Somebody may have replaced the file meanwhile. */
static void
remove_socket_file (const struct listener *l)
{
  struct stat st;

  if (l->path && lstat (l->path, &st) == 0 &&
      st.st_dev == l->dev && st.st_ino == l->ino)
    unlink (l->path);
}

static void
listener_free (struct listener *l)
{
  close (l->fd);
  g_free (l->path);
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
    shutdown (l->fd, SHUT_RDWR);
    remove_socket_file (l);
    found = true;
  }
  pthread_mutex_unlock (&lock);
  if (found)
    wake ();
  return found;
}

unsigned
listen_tcp_port (void)
{
  unsigned port = 0;

  pthread_mutex_lock (&lock);
  for (guint i = 0; listeners && i < listeners->len && port == 0; i++)
    port = ((struct listener *) g_ptr_array_index (listeners, i))->port;
  pthread_mutex_unlock (&lock);
  return port;
}

/* Its clients wait in the backlog then; conn_finish wakes us. */
static bool
is_full (const struct listener *l)
{
  return l->max_connections != 0 &&
    conn_count_of_listener (l->id) >= l->max_connections;
}

/* Take all that are waiting; not for ever where they come faster than that.
 * Returns false if the system has no more files to give: poll would come back at
 * once, over and over. */
static bool
accept_all (const struct listener *from)
{
  for (unsigned i = 0; i < ACCEPTS_A_ROUND && !quit_requested () &&
         !reexec_scheduled () && !is_full (from); i++) {
    int fd = accept4 (from->fd, NULL, NULL, SOCK_CLOEXEC);

    if (fd >= 0)
      conn_start (fd, from->id, from->max_connections);
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

/* Drop removed listeners; fill in who to wait for: fds behind the first two, and
 * from, copies. */
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
    pfd.fd = l->fd;
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
      remove_socket_file (l);
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
      .id = l->id, .fd = l->fd, .path = g_steal_pointer (&l->path),
      .dev = l->dev, .ino = l->ino, .port = l->port,
      .max_connections = l->max_connections,
    };
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

    *l = (struct listener) {
      .id = in->id, .fd = in->fd, .path = g_strdup (in->path),
      .dev = in->dev, .ino = in->ino, .port = in->port,
      .max_connections = in->max_connections,
    };
    g_ptr_array_add (listeners, l);
  }
  last_id = h->last_listener_id;
  pthread_mutex_unlock (&lock);
}
