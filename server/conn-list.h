/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* conn-list.h - everybody who is connected, for conn.c and conn-handover.c. */
#ifndef NBDFLEECE_CONN_LIST_H
#define NBDFLEECE_CONN_LIST_H

#include "conn-internal.h"

/* How long clients may take to accept their last replies at shutdown. */
#define GRACE_SECONDS 5

struct conn_list {
  struct conn_settings settings;        /* set once, before the first client */

  /* Protects the rest, and keeps those on it (and their fd) alive. */
  pthread_mutex_t lock;
  pthread_cond_t left;          /* somebody has */
  GPtrArray *conns;
  GPtrArray *parked;            /* of those who go on in the next image */
  unsigned last_number;
};

extern struct conn_list clients;

/* Takes fd; on no list yet. */
struct conn *conn_new (int fd);
/* On no list any more, and without a handle. */
void conn_free (struct conn *c);
/* Call fn, with the lock held, for the connection that has the plugin's handle
 * open.  false: nobody has. */
bool conn_with_handle (void *plugin_handle,
                       void (*fn) (struct conn *c, void *arg), void *arg);
/* With the lock held. */
void conn_shutdown_all_locked (int how);
/* With the lock held.  Wake the leader, and have receiving fail with EAGAIN
 * from now on where nothing is there.  Not in the handshake. */
void conn_interrupt_locked (struct conn *c);
/* With the lock held.  For how long it has been seen not to move although it is
 * its turn; 0: no time, or this is the first look. */
int64_t conn_stalled_ns (struct conn *c, int64_t now);

#endif /* NBDFLEECE_CONN_LIST_H */
