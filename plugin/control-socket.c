/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "bitmap/bitmap-error.h"
#include "common/stale-socket.h"
#include "plugin/control-socket.h"

static void
set_errno_error (GError **error, const char *path, int err)
{
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
               "cannot make control socket '%s': %s", path, strerror (err));
}

static bool
remove_stale (const struct sockaddr_un *addr, GError **error)
{
  int r = remove_stale_socket (addr);

  if (r == 0)
    return true;
  if (r == 1 || r == -EBUSY)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_BUSY,
                 "control socket '%s' is in use by another process",
                 addr->sun_path);
  else if (r == -ENOTSOCK)
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS,
                 "cannot make control socket '%s': a file that is not a "
                 "socket is in the way", addr->sun_path);
  else
    set_errno_error (error, addr->sun_path, -r);
  return false;
}

/* Under a umask, since between bind and chmod anybody could connect.  The mask
 * belongs to the process: call this before there are threads. */
static int
bind_private (int fd, const struct sockaddr_un *addr)
{
  mode_t mask = umask (0177);
  int r = bind (fd, (const struct sockaddr *) addr, sizeof *addr);
  int err = errno;

  umask (mask);
  errno = err;
  return r;
}

ControlSocket *
control_socket_new (const char *path, GError **error)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  g_autofree ControlSocket *sock = g_new0 (ControlSocket, 1);
  struct stat st;

  if (strlen (path) >= sizeof addr.sun_path) {
    set_errno_error (error, path, ENAMETOOLONG);
    return NULL;
  }
  strcpy (addr.sun_path, path);
  if (!remove_stale (&addr, error))
    return NULL;

  sock->fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (sock->fd == -1) {
    set_errno_error (error, path, errno);
    return NULL;
  }
  if (bind_private (sock->fd, &addr) == -1) {
    set_errno_error (error, path, errno);
    close (sock->fd);
    return NULL;
  }
  if (listen (sock->fd, 16) == -1 || lstat (path, &st) == -1) {
    set_errno_error (error, path, errno);
    unlink (path);
    close (sock->fd);
    return NULL;
  }
  sock->path = g_strdup (path);
  sock->device = st.st_dev;
  sock->inode = st.st_ino;
  return g_steal_pointer (&sock);
}

ControlSocket *
control_socket_adopt (const char *path, int fd, GError **error)
{
  ControlSocket *sock;
  struct stat st;

  /* Removed meanwhile: nobody could find us any more. */
  if (lstat (path, &st) == -1) {
    close (fd);
    return control_socket_new (path, error);
  }
  sock = g_new0 (ControlSocket, 1);
  sock->fd = fd;
  sock->path = g_strdup (path);
  sock->device = st.st_dev;
  sock->inode = st.st_ino;
  return sock;
}

void
control_socket_forget (ControlSocket *sock)
{
  if (sock == NULL)
    return;
  g_free (sock->path);
  g_free (sock);
}

void
control_socket_free (ControlSocket *sock)
{
  struct stat st;

  if (sock == NULL)
    return;
  if (lstat (sock->path, &st) == 0 &&
      st.st_dev == sock->device && st.st_ino == sock->inode)
    unlink (sock->path);
  close (sock->fd);
  g_free (sock->path);
  g_free (sock);
}

int
control_socket_accept (ControlSocket *sock, bool *out_refused, uid_t *out_uid)
{
  struct ucred peer;
  socklen_t length = sizeof peer;
  int fd;

  *out_refused = false;
  fd = accept4 (sock->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd == -1)
    return -1;
  if (getsockopt (fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == -1)
    peer.uid = (uid_t) -1;
  if (peer.uid == 0 || peer.uid == geteuid ())
    return fd;
  *out_refused = true;
  *out_uid = peer.uid;
  close (fd);
  return -1;
}
