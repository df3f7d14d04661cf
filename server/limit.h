/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* limit.h - what clients may take of the server, and how often they have
 * wanted more.
 *
 * A limit is either held (the client waits: no request of it is read
 * meanwhile) or enforced (it is refused, or disconnected).  Both are counted;
 * the latter is logged, with a bound on the lines of each kind.
 */
#ifndef NBDFLEECE_LIMIT_H
#define NBDFLEECE_LIMIT_H

#include <stdbool.h>
#include <stdint.h>

struct conn;

/* From the command line; 0 stands for no limit where limit.c allows it. */
struct limits {
  uint64_t idle_timeout, stall_timeout, shutdown_timeout;       /* seconds */
  uint64_t listener_connections, peer_connections;
  uint64_t options, option_size;        /* a session; bytes of one */
  uint64_t requests;            /* of all clients, on threads of their own */
  uint64_t client_memory, memory;       /* bytes, of one client; of all */
  uint64_t rate, listener_rate; /* bytes a second, in each direction */
};

void limits_set_defaults (struct limits *limits);

/* option: without the dashes.  -1: it is none of these. */
int limits_find (const char *option);
/* number: from limits_find.  Returns NULL, or why not, to be freed. */
char *limits_set (struct limits *limits, int number, const char *value);

enum limit_kind {
  LIMIT_CLIENT_MEMORY,
  LIMIT_CLIENT_REQUESTS,
  LIMIT_CONNECTIONS,
  LIMIT_HANDSHAKE_TIMEOUT,
  LIMIT_IDLE_TIMEOUT,
  LIMIT_LISTENER_CONNECTIONS,
  LIMIT_LISTENER_RATE,
  LIMIT_MEMORY,
  LIMIT_OPTIONS,
  LIMIT_OPTION_SIZE,
  LIMIT_PEER_CONNECTIONS,
  LIMIT_RATE,
  LIMIT_REQUESTS,
  LIMIT_STALL_TIMEOUT,
  LIMIT_KINDS
};

/* The name of its option. */
const char *limit_name (enum limit_kind kind);
/* How often it has been met since the server started. */
uint64_t limit_hits (enum limit_kind kind);

/* Somebody waits, or gets a thread less. */
void limit_count (enum limit_kind kind);
/* c is refused or dropped (NULL: it has not become a connection); text: why. */
void limit_enforced (struct conn *c, enum limit_kind kind, const char *fs, ...)
  __attribute__ ((format (printf, 3, 4)));

#endif /* NBDFLEECE_LIMIT_H */
