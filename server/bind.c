/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

#include "bind.h"
#include "common/stale-socket.h"
#include "log.h"

#define BIND_ERROR (g_quark_from_static_string ("nbdfleece-bind"))

/* The length that the system caps anyway; clients may come in bursts. */
#define BACKLOG SOMAXCONN

/* SELinux's label for sockets that this thread makes from now on; NULL: the
 * policy's again.  What libselinux's setsockcreatecon does. */
static bool
set_socket_label (const char *label, GError **error)
{
  int fd = open ("/proc/thread-self/attr/sockcreate", O_WRONLY | O_CLOEXEC);
  /* Nothing to write is how a label is taken back. */
  bool ok = fd != -1 &&
    write (fd, label, label ? strlen (label) + 1 : 0) != -1;
  int err = errno;

  if (fd != -1)
    close (fd);
  if (!ok && label != NULL)
    g_set_error (error, BIND_ERROR, 0, "cannot give a socket the SELinux label "
                 "'%s': %s", label, err == EINVAL || err == ENOENT ?
                 "SELinux is not enabled, or does not know it" :
                 g_strerror (err));
  return ok;
}

static int
make_socket (int family, int protocol)
{
  return socket (family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol);
}

/* A file is there.  Remove it if it is the socket of a server that is gone;
 * false: somebody is there, or it is something else. */
static bool
remove_stale (const struct sockaddr_un *addr, GError **error)
{
  int r = remove_stale_socket (addr);
  const char *why = r == 1 || r == -EBUSY ? "another server is listening there"
    : r == -ENOTSOCK ? "the file exists and is not a socket"
    : r == -EACCES ? "the socket belongs to somebody else"
    : g_strerror (-r);

  if (r == 0)
    log_debug ("removed stale socket '%s'", addr->sun_path);
  else
    g_set_error (error, BIND_ERROR, 0, "cannot listen on '%s': %s",
                 addr->sun_path, why);
  return r == 0;
}

/* The mode has to be right from the start: another server that finds the file
 * would not wait for it. */
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

/* Nobody can connect yet: the socket does not listen.  Through a file
 * descriptor, so that what gets another owner is what was looked at. */
static bool
set_owner (const char *path, const Address *a, GError **error)
{
  int fd, err = 0;
  struct stat st;

  if (a->owner == (uid_t) -1 && a->group == (gid_t) -1)
    return true;
  fd = open (path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
  if (fd == -1 || fstat (fd, &st) == -1)
    err = errno;
  else if (!S_ISSOCK (st.st_mode))
    err = ENOTSOCK;
  else if (fchownat (fd, "", a->owner, a->group, AT_EMPTY_PATH) == -1)
    err = errno;
  if (fd != -1)
    close (fd);
  if (err)
    g_set_error (error, BIND_ERROR, 0, "cannot give socket '%s' its owner: %s",
                 path, g_strerror (err));
  return err == 0;
}

static bool
bind_unix (const Address *a, GArray *out, GError **error)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  struct bound_socket s = { .fd = -1 };
  const char *path = a->path;
  bool is_made = false;
  struct stat st;

  if (*path == '\0' || strlen (path) >= sizeof addr.sun_path) {
    g_set_error (error, BIND_ERROR, 0, "cannot listen on '%s': the path of a "
                 "Unix socket has 1 to %zu bytes", path,
                 sizeof addr.sun_path - 1);
    return false;
  }
  memcpy (addr.sun_path, path, strlen (path));
  s.fd = make_socket (AF_UNIX, 0);
  if (s.fd == -1)
    goto fail_errno;
  if (bind_with_mode (s.fd, &addr, a->mode) == -1) {
    if (errno != EADDRINUSE)
      goto fail_errno;
    if (!remove_stale (&addr, error))
      goto fail;
    if (bind_with_mode (s.fd, &addr, a->mode) == -1)
      goto fail_errno;
  }
  is_made = true;
  if (!set_owner (path, a, error))
    goto fail;
  if (listen (s.fd, BACKLOG) == -1 || lstat (path, &st) == -1)
    goto fail_errno;
  /* A daemon changes its folder before it removes the file. */
  s.path = g_canonicalize_filename (path, NULL);
  s.dev = st.st_dev;
  s.ino = st.st_ino;
  g_array_append_val (out, s);
  return true;

 fail_errno:
  g_set_error (error, BIND_ERROR, 0, "cannot listen on '%s': %s", path,
               g_strerror (errno));
 fail:
  if (is_made)
    unlink (path);
  if (s.fd != -1)
    close (s.fd);
  return false;
}

static unsigned
port_of (const struct sockaddr_storage *addr)
{
  switch (addr->ss_family) {
  case AF_INET:
    return ntohs (((const struct sockaddr_in *) addr)->sin_port);
  case AF_INET6:
    return ntohs (((const struct sockaddr_in6 *) addr)->sin6_port);
  case AF_VSOCK:
    return ((const struct sockaddr_vm *) addr)->svm_port;
  default:
    return 0;
  }
}

/* One address; an fd, or -1 with errno. */
static int
bind_tcp_one (const struct addrinfo *ai, unsigned *port)
{
  struct sockaddr_storage addr;
  socklen_t n = sizeof addr;
  int one = 1, saved_errno;
  int fd = make_socket (ai->ai_family, ai->ai_protocol);

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
  *port = port_of (&addr);
  return fd;
}

static bool
bind_tcp (const Address *a, GArray *out, GError **error)
{
  struct addrinfo hints = { .ai_family = a->family,
                            .ai_socktype = SOCK_STREAM,
                            .ai_flags = a->loopback ? 0 : AI_PASSIVE };
  const char *host = a->host ? a->host
    : a->loopback ? "this machine's own addresses" : "all interfaces";
  struct addrinfo *list, *ai;
  guint before = out->len;
  unsigned port = 0;
  int err, last_errno = 0;

  err = getaddrinfo (a->host, a->port, &hints, &list);
  if (err) {
    g_set_error (error, BIND_ERROR, 0, "cannot listen on %s, port %s: %s",
                 host, a->port,
                 err == EAI_SYSTEM ? g_strerror (errno) : gai_strerror (err));
    return false;
  }
  for (ai = list; ai; ai = ai->ai_next) {
    struct bound_socket s = { .fd = bind_tcp_one (ai, &port) };

    if (s.fd == -1) {
      last_errno = errno;
      /* A machine without IPv6, or without an address of that kind. */
      if (errno == EAFNOSUPPORT || errno == EADDRNOTAVAIL)
        continue;
      break;
    }
    s.port = port;
    g_array_append_val (out, s);
  }
  freeaddrinfo (list);
  if (ai == NULL && out->len > before)
    return true;
  for (guint i = before; i < out->len; i++)
    close (g_array_index (out, struct bound_socket, i).fd);
  g_array_set_size (out, before);
  g_set_error (error, BIND_ERROR, 0, "cannot listen on %s, port %s: %s", host,
               a->port, g_strerror (last_errno));
  return false;
}

static bool
bind_vsock (const Address *a, GArray *out, GError **error)
{
  struct sockaddr_vm addr = { .svm_family = AF_VSOCK, .svm_cid = a->cid,
                              .svm_port = a->vsock_port };
  struct bound_socket s = { .fd = make_socket (AF_VSOCK, 0) };
  socklen_t n = sizeof addr;

  if (addr.svm_port == 0)       /* as elsewhere: the system chooses */
    addr.svm_port = VMADDR_PORT_ANY;
  if (s.fd == -1 ||
      bind (s.fd, (struct sockaddr *) &addr, sizeof addr) == -1 ||
      listen (s.fd, BACKLOG) == -1 ||
      getsockname (s.fd, (struct sockaddr *) &addr, &n) == -1) {
    g_set_error (error, BIND_ERROR, 0, "cannot listen on vsock %d, port %u: %s",
                 (int) a->cid, a->vsock_port, g_strerror (errno));
    if (s.fd != -1)
      close (s.fd);
    return false;
  }
  s.port = addr.svm_port;
  g_array_append_val (out, s);
  return true;
}

static bool
bind_unlabelled (const Address *a, GArray *out, GError **error)
{
  switch (a->kind) {
  case ADDRESS_UNIX:
    return bind_unix (a, out, error);
  case ADDRESS_TCP:
    return bind_tcp (a, out, error);
  default:
    return bind_vsock (a, out, error);
  }
}

bool
bind_address (const Address *a, GArray *out, GError **error)
{
  bool ok;

  if (a->label != NULL && !set_socket_label (a->label, error))
    return false;
  ok = bind_unlabelled (a, out, error);
  if (a->label != NULL)
    set_socket_label (NULL, NULL);
  return ok;
}

void
bound_socket_remove_file (const struct bound_socket *s)
{
  struct stat st;

  if (s->path && lstat (s->path, &st) == 0 &&
      st.st_dev == s->dev && st.st_ino == s->ino)
    unlink (s->path);
}

static int
socket_option (int fd, int option)
{
  int value = -1;
  socklen_t n = sizeof value;

  return getsockopt (fd, SOL_SOCKET, option, &value, &n) == 0 ? value : -1;
}

bool
bind_adopt (int fd, const char *what, struct bound_socket *out,
            GError **error)
{
  struct sockaddr_storage addr = { 0 };
  socklen_t n = sizeof addr;
  const char *why = NULL;

  if (getsockname (fd, (struct sockaddr *) &addr, &n) == -1)
    why = errno == ENOTSOCK ? "it is not a socket" : g_strerror (errno);
  else if (addr.ss_family != AF_UNIX && addr.ss_family != AF_INET &&
           addr.ss_family != AF_INET6 && addr.ss_family != AF_VSOCK)
    why = "it is neither a Unix, TCP nor vsock socket";
  else if (socket_option (fd, SO_TYPE) != SOCK_STREAM)
    why = "it is not a stream socket";
  else if (socket_option (fd, SO_ACCEPTCONN) != 1)
    why = "it does not listen (Accept=no is needed in its socket unit)";
  else if (fcntl (fd, F_SETFD, FD_CLOEXEC) == -1 ||
           fcntl (fd, F_SETFL, fcntl (fd, F_GETFL) | O_NONBLOCK) == -1)
    why = g_strerror (errno);
  if (why != NULL) {
    g_set_error (error, BIND_ERROR, 0, "cannot listen on %s (file descriptor "
                 "%d): %s", what, fd, why);
    return false;
  }
  *out = (struct bound_socket) { .fd = fd, .port = port_of (&addr) };
  return true;
}
