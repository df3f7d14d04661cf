/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <string.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>

#include "uri.h"

/* Both of the protocol and, by custom, of vsock. */
#define NBD_PORT 10809

static char *
authority (const struct place *where)
{
  const char *host = where->host ? where->host
    : where->family == AF_INET6 ? "::1" : "localhost";
  g_autofree char *port = where->port == NBD_PORT ? g_strdup ("")
    : g_strdup_printf (":%u", where->port);
  g_autofree char *escaped = NULL;

  if (where->family == AF_UNIX)
    return g_strdup ("");
  if (where->family == AF_VSOCK)
    return g_strdup_printf ("%u%s", where->cid == VMADDR_CID_ANY ?
                            VMADDR_CID_LOCAL : where->cid, port);
  if (strchr (host, ':') != NULL) {
    /* The zone's % is one of the characters to be escaped. */
    escaped = g_uri_escape_string (host, ":", FALSE);
    return g_strdup_printf ("[%s]%s", escaped, port);
  }
  return g_strdup_printf ("%s%s", host, port);
}

char *
uri_make (const struct place *where, const char *export)
{
  static const struct { int family; const char *suffix; } suffixes[] = {
    { AF_UNIX, "+unix" }, { AF_VSOCK, "+vsock" },
  };
  /* A slash of the name's own comes behind the one that starts the path. */
  g_autofree char *name = g_uri_escape_string (export, "/", FALSE);
  g_autofree char *socket = where->family == AF_UNIX ?
    g_uri_escape_string (where->path, "/", FALSE) : NULL;
  g_autofree char *host = authority (where);
  const char *suffix = "";

  for (size_t i = 0; i < G_N_ELEMENTS (suffixes); i++)
    if (suffixes[i].family == where->family)
      suffix = suffixes[i].suffix;
  return g_strdup_printf ("nbd%s%s://%s%s%s%s%s", where->is_tls ? "s" : "",
                          suffix, host, *name ? "/" : "", name,
                          socket ? "?socket=" : "", socket ? socket : "");
}
