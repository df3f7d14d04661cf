/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <string.h>

#include "access-peer.h"

static GArray *
read_groups (int fd)
{
#ifdef SO_PEERGROUPS
  GArray *groups = g_array_new (FALSE, FALSE, sizeof (gid_t));
  socklen_t size = 64 * sizeof (gid_t);
  int r;

  do {
    g_array_set_size (groups, size / sizeof (gid_t));
    r = getsockopt (fd, SOL_SOCKET, SO_PEERGROUPS, groups->data, &size);
  } while (r == -1 && errno == ERANGE);
  g_array_set_size (groups, r == -1 ? 0 : size / sizeof (gid_t));
  return groups;
#else
  return NULL;
#endif
}

/* An IPv4 client of an IPv6 socket is one of IPv4. */
static void
unmap (struct sockaddr_storage *address)
{
  const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *) address;
  struct sockaddr_in in = { .sin_family = AF_INET };

  if (address->ss_family != AF_INET6 ||
      !IN6_IS_ADDR_V4MAPPED (&in6->sin6_addr))
    return;
  memcpy (&in.sin_addr, in6->sin6_addr.s6_addr + 12, 4);
  in.sin_port = in6->sin6_port;
  memcpy (address, &in, sizeof in);
}

void
access_peer_init (struct access_peer *peer, int fd)
{
  struct ucred cred;
  socklen_t length = sizeof peer->address;

  *peer = (struct access_peer) { 0 };
  if (getpeername (fd, (struct sockaddr *) &peer->address, &length) == -1)
    peer->address.ss_family = 0;
  unmap (&peer->address);
  length = sizeof cred;
  if (peer->address.ss_family == AF_UNIX &&
      getsockopt (fd, SOL_SOCKET, SO_PEERCRED, &cred, &length) == 0 &&
      cred.uid != (uid_t) -1) {
    peer->has_uid = true;
    peer->uid = cred.uid;
    peer->gid = cred.gid;
    peer->groups = read_groups (fd);
  }
}

void
access_peer_clear (struct access_peer *peer)
{
  g_clear_pointer (&peer->groups, g_array_unref);
}

char *
access_peer_describe (const struct access_peer *peer)
{
  const struct sockaddr_storage *a = &peer->address;
  char text[INET6_ADDRSTRLEN] = "?";
  g_autoptr (GString) str = g_string_new (NULL);

  if (peer->has_uid)
    g_string_append_printf (str, "uid %u", (unsigned) peer->uid);
  else if (a->ss_family == AF_INET || a->ss_family == AF_INET6) {
    inet_ntop (a->ss_family, a->ss_family == AF_INET ?
               (const void *) &((const struct sockaddr_in *) a)->sin_addr :
               (const void *) &((const struct sockaddr_in6 *) a)->sin6_addr,
               text, sizeof text);
    g_string_append (str, text);
  }
  else
    g_string_append (str, a->ss_family == AF_VSOCK ? "vsock" : "unknown");
  if (peer->tls != NULL && peer->tls->dn != NULL)
    g_string_append_printf (str, ", certificate '%.256s'", peer->tls->dn);
  if (peer->tls != NULL && peer->tls->psk_user != NULL)
    g_string_append_printf (str, ", PSK user '%.256s'", peer->tls->psk_user);
  return g_string_free (g_steal_pointer (&str), FALSE);
}
