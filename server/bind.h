/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* bind.h - make the sockets of an address, and listen on them. */
#ifndef NBDFLEECE_BIND_H
#define NBDFLEECE_BIND_H

#include "address.h"

struct bound_socket {
  int fd;
  char *path;                   /* of a Unix socket that we made: absolute */
  dev_t dev;                    /* identity of that file */
  ino_t ino;
  unsigned port;                /* of TCP and vsock, else 0 */
};

/* Of a Unix socket that we made; somebody may have replaced the file
 * meanwhile. */
void bound_socket_remove_file (const struct bound_socket *s);

/* A host's name may stand for several: at least one is added to out (of struct
 * bound_socket, the caller's), or none and false.  A socket file that nobody
 * listens on is replaced.  Not for ADDRESS_FD.  A mode needs the process's
 * umask: only before there are threads. */
bool bind_address (const Address *a, GArray *out, GError **error);

/* A socket that somebody has made for us: it has to be one that listens. */
bool bind_adopt (int fd, const char *what, struct bound_socket *out,
                 GError **error);

#endif /* NBDFLEECE_BIND_H */
