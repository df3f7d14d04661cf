/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* conn.h - the connected clients, as the rest of the server sees them. */
#ifndef NBDFLEECE_CONN_H
#define NBDFLEECE_CONN_H

#include <stdbool.h>
#include <stdint.h>

#include "access.h"
#include "handover.h"
#include "limit.h"
#include "tls-peer.h"

struct Backend;

/* Set by main before the first client; never changed afterwards. */
struct conn_settings {
  struct Backend *backend;
  bool readonly;
  unsigned threads;             /* requests in flight of one client */
  unsigned max_connections;
  unsigned handshake_timeout;   /* seconds; 0: none */
  unsigned mask_handshake;      /* of the flags in our greeting */
  bool no_structured_replies;
  struct limits limits;
};

struct conn;

void conn_init (const struct conn_settings *settings);

/* A client has connected: serve it on another thread.  Takes fd.  listener: id
 * of what it has connected to; the clients that that takes, 0: any number; and
 * what it grants. */
void conn_start (int fd, int64_t listener, uint32_t listener_max,
                 Terms *terms);
unsigned conn_count_of_listener (int64_t listener);
void conn_disconnect_listener (int64_t listener);

/* Finish and answer all requests that have begun, refuse others, and let all
 * clients go.  Clients that do not take their replies are cut off after a
 * while, and everybody at the shutdown timeout or on quit_at_once.  conn_start
 * must not be called any more.  false: threads are still inside the plugin, and
 * may be for ever: nothing but to exit is possible. */
bool conn_stop_all (void);

/* For reexec.h.  Let handshakes that are under way get on or give up, answer
 * what is in flight, stop all clients at the border of a request and close
 * their handles.  Returns when that is done; clients that are in nobody's way
 * any more (silent in the handshake; not taking replies) are cut off after a
 * while.  conn_start must not be called any more.  What follows is
 * conn_hand_over or, for a change of mind, conn_stop_all. */
void conn_park_all (void);
void conn_hand_over (Handover *h);

/* In the next image, before the first conn_start: go on with a client.  Takes
 * its file. */
void conn_resume (const struct handover_conn *from);
/* Numbers of clients go on behind this one. */
void conn_set_last_number (unsigned number);

/* For metacontext.h; from any thread.  false: nobody has this handle of the
 * plugin open. */
bool conn_disconnect_handle (void *plugin_handle);

/* For the thread that serves the client. */
int conn_fd (const struct conn *c);
unsigned conn_number (const struct conn *c);
bool conn_is_tls (const struct conn *c);
/* Nothing more is read from it, or can be sent to it. */
bool conn_is_closing (const struct conn *c);
/* Who it has proved to be; NULL: it speaks plain text. */
const struct tls_peer *conn_tls_peer (const struct conn *c);
/* It cannot have a second connection. */
bool conn_is_single (const struct conn *c);
/* str: malloc'ed; freed with the connection.  The caller serializes. */
void conn_keep_string (struct conn *c, char *str);

#endif /* NBDFLEECE_CONN_H */
