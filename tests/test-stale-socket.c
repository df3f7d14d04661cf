/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A socket file is removed only if its server is gone, which one refused
 * connect does not prove. */
#include <config.h>

#include <glib.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/socket.h>

static int fake_connect (int fd, const struct sockaddr *addr, socklen_t length);
#define connect fake_connect
#include "common/stale-socket.h"
#undef connect

static char *dir;
static struct sockaddr_un addr;
static unsigned attempts, come_alive_after;
static int server = -1;

/* The socket's owner gets to listen after this many refused attempts. */
static int
fake_connect (int fd, const struct sockaddr *to, socklen_t length)
{
  int r, err;

  r = connect (fd, to, length);
  err = errno;
  if (++attempts == come_alive_after)
    g_assert_cmpint (listen (server, 1), ==, 0);
  errno = err;
  return r;
}

static void
bind_server (void)
{
  attempts = come_alive_after = 0;
  server = socket (AF_UNIX, SOCK_STREAM, 0);
  g_assert_cmpint (bind (server, (struct sockaddr *) &addr, sizeof addr), ==,
                   0);
}

static bool
is_there (void)
{
  return access (addr.sun_path, F_OK) == 0;
}

static void
drop_server (void)
{
  close (server);
  g_unlink (addr.sun_path);
}

static void
test_gone (void)
{
  bind_server ();
  close (server);
  g_assert_cmpint (remove_stale_socket (&addr), ==, 0);
  g_assert_false (is_there ());
  g_assert_cmpint (remove_stale_socket (&addr), ==, 0);
}

static void
test_starting (void)
{
  for (unsigned i = 1; i < STALE_SOCKET_ATTEMPTS; i++) {
    bind_server ();
    come_alive_after = i;
    g_assert_cmpint (remove_stale_socket (&addr), ==, 1);
    g_assert_true (is_there ());
    drop_server ();
  }
}

/* A server whose backlog is full lives. */
static void
test_busy (void)
{
  int fd[8];

  bind_server ();
  g_assert_cmpint (listen (server, 0), ==, 0);
  for (unsigned i = 0; i < G_N_ELEMENTS (fd); i++) {
    fd[i] = socket (AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    connect (fd[i], (struct sockaddr *) &addr, sizeof addr);
  }
  g_assert_cmpint (remove_stale_socket (&addr), ==, 1);
  g_assert_true (is_there ());
  for (unsigned i = 0; i < G_N_ELEMENTS (fd); i++)
    close (fd[i]);
  drop_server ();
}

static void
test_file (void)
{
  g_assert_true (g_file_set_contents (addr.sun_path, "x", 1, NULL));
  g_assert_cmpint (remove_stale_socket (&addr), ==, -ENOTSOCK);
  g_assert_true (is_there ());
  g_unlink (addr.sun_path);
}

int
main (int argc, char **argv)
{
  int r;

  g_test_init (&argc, &argv, NULL);
  dir = g_dir_make_tmp ("nbdf.XXXXXX", NULL);
  g_assert_nonnull (dir);
  addr.sun_family = AF_UNIX;
  g_snprintf (addr.sun_path, sizeof addr.sun_path, "%s/s", dir);
  g_test_add_func ("/stale-socket/gone", test_gone);
  g_test_add_func ("/stale-socket/starting", test_starting);
  g_test_add_func ("/stale-socket/busy", test_busy);
  g_test_add_func ("/stale-socket/file", test_file);
  r = g_test_run ();
  g_rmdir (dir);
  g_free (dir);
  return r;
}
