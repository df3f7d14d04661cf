/* SPDX-License-Identifier: BSD-3-Clause */
/* control-socket.h - the listening unix socket of the control channel.
 *
 * Mode 0600, and only peers of our own uid or root are let in (the mode alone
 * does not bind on every system).  A socket file that a dead server left behind
 * is replaced; one that answers, and anything that is no socket, is left alone.
 */
#ifndef CONTROL_SOCKET_H
#define CONTROL_SOCKET_H

#include <stdbool.h>
#include <sys/types.h>
#include <glib.h>

typedef struct {
  int fd;
  char *path;                   /* absolute */
  dev_t device;                 /* of the file that we bound: never remove */
  ino_t inode;                  /* another one that took its place */
} ControlSocket;

ControlSocket *control_socket_new (const char *path, GError **error);
/* One that is bound to path and listens already; takes fd. */
ControlSocket *control_socket_adopt (const char *path, int fd,
                                     GError **error);
/* Free it, but leave socket and file alone.  NULL is fine. */
void control_socket_forget (ControlSocket *sock);
/* Closes it and removes the file if it is still ours.  NULL is fine. */
void control_socket_free (ControlSocket *sock);

/* A new connection of a peer that may talk to us, non-blocking; -1 if there was
 * none or it was turned away (*out_refused: with this uid). */
int control_socket_accept (ControlSocket *sock, bool *out_refused,
                           uid_t *out_uid);

#endif
