/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* listen.h - sockets that clients connect to.
 *
 * Those of the command line are set up before the fork, by the main thread;
 * listen_add_uri and listen_remove may come from any thread later.
 */
#ifndef NBDFLEECE_LISTEN_H
#define NBDFLEECE_LISTEN_H

#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "address.h"
#include "handover.h"

/* An id > 0, or -1.  out_port: of TCP and vsock, where the system may have
 * chosen it; may be NULL.  A socket file that nobody listens on is replaced. */
int64_t listen_add (const Address *a, unsigned *out_port, GError **error);
/* fd: listens already, and is the caller's if this fails; a: the terms. */
bool listen_adopt (const Address *a, int fd, const char *what,
                   unsigned *out_port, GError **error);

/* nbd://HOST[:PORT] or nbd+unix:///?socket=PATH.  An id > 0, or -1.
 * max_connections: clients at a time, 0: no limit of its own.  terms: NULL:
 * none of its own. */
int64_t listen_add_uri (const char *uri, uint32_t max_connections,
                        Terms *terms, GError **error);
/* Returns false if there is none.  New clients are refused at once. */
bool listen_remove (int64_t id);

/* Serve this one client.  listen_run returns when it has left; takes fd. */
void listen_serve_one (int fd);

/* Accept clients and start them, until quit_requested or reexec_scheduled. */
void listen_run (void);
/* Have listen_run look again; from any thread. */
void listen_wake (void);

/* Leave all listeners to the next image: none is left here.  Clients that
 * connect meanwhile wait in the backlog.  After listen_run. */
void listen_hand_over (Handover *h);
/* Before any listener is added. */
void listen_take_over (const Handover *h);

/* Close all, and remove the socket files that are still ours. */
void listen_close_all (void);
/* In a process that is not the server (any more): close, remove nothing. */
void listen_forget_all (void);

#endif /* NBDFLEECE_LISTEN_H */
