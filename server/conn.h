/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* conn.h - the connected clients, as the rest of the server sees them. */
#ifndef NBDFLEECE_CONN_H
#define NBDFLEECE_CONN_H

#include <stdbool.h>
#include <stdint.h>

#include "metacontext.h"

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
};

struct conn;

void conn_init (const struct conn_settings *settings);

/* A client has connected: serve it on another thread.  Takes fd. */
void conn_start (int fd);

/* Stop reading requests from all clients; finish and answer those that have
 * begun.  Returns when all are gone.  Clients that do not take their replies
 * are cut off after a while.  conn_start must not be called any more. */
void conn_stop_all (void);

/* For metacontext.h; from any thread.  false: nobody has this handle of the
 * plugin open. */
bool conn_disconnect_handle (void *plugin_handle);
bool conn_counters_of_handle (void *plugin_handle,
                              struct metacontext_counters *out);

/* For the thread that serves the client. */
int conn_fd (const struct conn *c);
unsigned conn_number (const struct conn *c);
bool conn_is_tls (const struct conn *c);
/* str: malloc'ed; freed with the connection.  The caller serializes. */
void conn_keep_string (struct conn *c, char *str);

#endif /* NBDFLEECE_CONN_H */
