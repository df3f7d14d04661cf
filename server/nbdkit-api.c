/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* nbdkit-api.c - the nbdkit_* functions that plugins may call, but for those
 * that live with their type (exports.c, handle.c) or parse (nbdkit-parse.c).
 *
 * server.syms lists all that plugins see.
 */
#include <config.h>

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "backend.h"
#include "conn.h"
#include "context.h"
#include "log.h"
#include "quit.h"
#include "single.h"

/* In the handshake whoever gets that far makes the plugin say something, of
 * exports that are not there above all, as often as he likes; later on only
 * those who may have the export. */
void
nbdkit_verror (const char *fs, va_list args)
{
  static struct log_bound bound = { .most = 40 };      /* names differ */

  if (thread_context.in_handshake)
    log_verror_bounded (&bound, fs, args);
  else
    log_verror (fs, args);
}

void
nbdkit_error (const char *fs, ...)
{
  va_list args;

  va_start (args, fs);
  nbdkit_verror (fs, args);
  va_end (args);
}

void
nbdkit_vdebug (const char *fs, va_list args)
{
  log_vdebug (fs, args);
}

void
nbdkit_debug (const char *fs, ...)
{
  va_list args;

  if (!log_verbose)
    return;
  va_start (args, fs);
  log_vdebug (fs, args);
  va_end (args);
}

void
nbdkit_set_error (int err)
{
  thread_context.error = err;
}

const char *
nbdkit_export_name (void)
{
  if (thread_context.export_name == NULL) {
    nbdkit_error ("nbdkit_export_name: no export is open in this thread");
    return NULL;
  }
  return thread_context.export_name;
}

/* The connection of this thread, for a function that needs one. */
static struct conn *
this_conn (const char *function)
{
  if (thread_context.conn == NULL)
    nbdkit_error ("%s: no client is connected in this thread", function);
  return thread_context.conn;
}

int
nbdkit_is_tls (void)
{
  struct conn *c = this_conn ("nbdkit_is_tls");

  return c ? conn_is_tls (c) : -1;
}

int
nbdkit_peer_name (struct sockaddr *addr, socklen_t *addrlen)
{
  struct conn *c = this_conn ("nbdkit_peer_name");

  if (c == NULL)
    return -1;
  if (getpeername (conn_fd (c), addr, addrlen) == -1) {
    nbdkit_error ("getpeername: %m");
    return -1;
  }
  return 0;
}

/* false: already reported. */
static bool
peer_cred (const char *function, struct ucred *out)
{
  struct conn *c = this_conn (function);
  struct sockaddr_storage addr;
  socklen_t n = sizeof addr;

  if (c == NULL)
    return false;
  /* TCP sockets answer too, with nonsense. */
  if (getpeername (conn_fd (c), (struct sockaddr *) &addr, &n) == 0 &&
      addr.ss_family != AF_UNIX) {
    nbdkit_error ("%s: only known for clients on a Unix socket", function);
    return false;
  }
  n = sizeof *out;
  if (getsockopt (conn_fd (c), SOL_SOCKET, SO_PEERCRED, out, &n) == -1) {
    nbdkit_error ("%s: %m", function);
    return false;
  }
  return true;
}

int64_t
nbdkit_peer_pid (void)
{
  struct ucred cred;

  return peer_cred ("nbdkit_peer_pid", &cred) ? cred.pid : -1;
}

int64_t
nbdkit_peer_uid (void)
{
  struct ucred cred;

  return peer_cred ("nbdkit_peer_uid", &cred) ? (int64_t) cred.uid : -1;
}

int64_t
nbdkit_peer_gid (void)
{
  struct ucred cred;

  return peer_cred ("nbdkit_peer_gid", &cred) ? (int64_t) cred.gid : -1;
}

/* Since nbdkit 1.38; older headers do not have them. */
char *nbdkit_peer_tls_dn (void);
char *nbdkit_peer_tls_issuer_dn (void);

/* The caller frees it; "" if there is none. */
static char *
copy_name (const char *name)
{
  char *copy = strdup (name ? name : "");

  if (copy == NULL)
    nbdkit_error ("out of memory");
  return copy;
}

char *
nbdkit_peer_tls_dn (void)
{
  struct conn *c = this_conn ("nbdkit_peer_tls_dn");
  const struct tls_peer *peer = c ? conn_tls_peer (c) : NULL;

  return c ? copy_name (peer ? peer->dn : NULL) : NULL;
}

char *
nbdkit_peer_tls_issuer_dn (void)
{
  struct conn *c = this_conn ("nbdkit_peer_tls_issuer_dn");
  const struct tls_peer *peer = c ? conn_tls_peer (c) : NULL;

  return c ? copy_name (peer ? peer->issuer_dn : NULL) : NULL;
}

void
nbdkit_shutdown (void)
{
  quit_request ();
}

int
nbdkit_nanosleep (unsigned sec, unsigned nsec)
{
  struct pollfd fds[2] = { { .fd = quit_fd (), .events = POLLIN },
                           { .fd = -1 } };
  struct timespec until, now, left;
  int r;

  if (sec > INT_MAX || nsec >= 1000000000) {
    nbdkit_error ("nbdkit_nanosleep: sleep of %u.%09u seconds is too long",
                  sec, nsec);
    errno = EINVAL;
    return -1;
  }
  /* POLLHUP (both directions are closed) needs no events.  A client that only
   * closed its sending side still waits for replies. */
  if (thread_context.conn)
    fds[1].fd = conn_fd (thread_context.conn);
  clock_gettime (CLOCK_MONOTONIC, &until);
  until.tv_sec += sec;
  until.tv_nsec += nsec;
  for (;;) {
    clock_gettime (CLOCK_MONOTONIC, &now);
    left.tv_sec = until.tv_sec - now.tv_sec;
    left.tv_nsec = until.tv_nsec - now.tv_nsec;
    while (left.tv_nsec < 0) {
      left.tv_sec--;
      left.tv_nsec += 1000000000;
    }
    while (left.tv_nsec >= 1000000000) {
      left.tv_sec++;
      left.tv_nsec -= 1000000000;
    }
    if (left.tv_sec < 0)
      return 0;
    r = ppoll (fds, 2, &left, NULL);
    if (r == 0)
      return 0;
    if (r > 0)
      break;
    if (errno != EINTR) {
      nbdkit_error ("nbdkit_nanosleep: %m");
      return -1;
    }
  }
  nbdkit_error ("aborting a sleep: %s",
                fds[0].revents ? "the server is shutting down"
                               : "the client has gone");
  errno = ESHUTDOWN;
  return -1;
}

/* Interned strings live as long as the connection, or the process. */
static pthread_mutex_t intern_lock = PTHREAD_MUTEX_INITIALIZER;
static GSList *global_interned; /* under intern_lock */

static void __attribute__ ((destructor))
free_global_interned (void)
{
  g_slist_free_full (global_interned, free);
}

static const char *
keep (char *str)
{
  if (str == NULL) {
    nbdkit_error ("out of memory");
    return NULL;
  }
  pthread_mutex_lock (&intern_lock);
  if (thread_context.conn)
    conn_keep_string (thread_context.conn, str);
  else
    global_interned = g_slist_prepend (global_interned, str);
  pthread_mutex_unlock (&intern_lock);
  return str;
}

const char *
nbdkit_strdup_intern (const char *str)
{
  return keep (strdup (str));
}

const char *
nbdkit_strndup_intern (const char *str, size_t n)
{
  return keep (strndup (str, n));
}

const char *
nbdkit_vprintf_intern (const char *fs, va_list args)
{
  char *str;

  return keep (vasprintf (&str, fs, args) == -1 ? NULL : str);
}

const char *
nbdkit_printf_intern (const char *fs, ...)
{
  const char *str;
  va_list args;

  va_start (args, fs);
  str = nbdkit_vprintf_intern (fs, args);
  va_end (args);
  return str;
}

int
nbdkit_stdio_safe (void)
{
  return !single_is_on ();
}
