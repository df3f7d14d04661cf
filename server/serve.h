/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* serve.h - what steal.c needs to know of the transmission phase. */
#ifndef NBDFLEECE_SERVE_H
#define NBDFLEECE_SERVE_H

#include "conn-internal.h"

/* Keep the leader's lane alive, and count its call as one of another thread:
 * both before the theft, since its owner may return at any moment after it.
 * false: the connection, or all of them, have as many requests in flight as
 * they may have. */
bool serve_prepare_theft (struct conn *c);
/* The theft has failed. */
void serve_cancel_theft (struct conn *c);
/* Go on as the leader of the connection, whose leadership was just stolen. */
void serve_as_new_leader (void *conn);

/* Requests that have a thread of their own, of all clients. */
unsigned serve_nr_threads (void);

#endif /* NBDFLEECE_SERVE_H */
