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

#include "handover.h"

/* mode: permissions of the socket file, or -1 for what the umask leaves.  A
 * socket file that nobody listens on is replaced. */
bool listen_add_unix (const char *path, int mode, GError **error);

/* host: name or address, NULL for all interfaces.  port: number or service;
 * "0" lets the system choose.  family: AF_UNSPEC, AF_INET or AF_INET6. */
bool listen_add_tcp (const char *host, const char *port, int family,
                     GError **error);

/* nbd://HOST[:PORT] or nbd+unix:///?socket=PATH.  An id > 0, or -1.
 * max_connections: clients at a time, 0: no limit of its own. */
int64_t listen_add_uri (const char *uri, uint32_t max_connections,
                        GError **error);
/* Returns false if there is none.  New clients are refused at once. */
bool listen_remove (int64_t id);

/* The port of the first TCP listener, 0: there is none. */
unsigned listen_tcp_port (void);

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
