/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* conn-internal.h - the connection object, for conn.c and what it drives:
 * handshake.c, serve.c and steal.c.
 *
 * Phases: handshake (one thread), transmission (a leader and workers), gone.
 * Locks, in the order they may be taken: the list of connections (conn.c), the
 * monitor's list (steal.c), lock, send_lock.
 */
#ifndef NBDFLEECE_CONN_INTERNAL_H
#define NBDFLEECE_CONN_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/uio.h>

#include <glib.h>

#include "backend.h"
#include "conn.h"
#include "metactx.h"
#include "request.h"

struct lane;

struct conn {
  /* Set when it starts, never changed. */
  const struct conn_settings *settings;
  Backend *b;
  int fd;
  unsigned number;

  /* Atomic. */
  atomic_bool closing;          /* read no more requests */
  atomic_bool dead;             /* sending has failed: do not try again */
  atomic_uint_fast64_t bytes_read, bytes_written, requests, extents;

  /* The handshake's; not changed in transmission. */
  bool no_zeroes;
  enum reply_mode mode;
  MetaCtxSet *contexts;         /* NULL: none selected */
  GSList *strings;              /* under the lock of nbdkit-api.c */
  bool entered;                 /* backend_leave is due */

  pthread_mutex_t lock;
  /* Under lock for whoever is not the handshake's thread. */
  Handle *handle;               /* selected by SET_META_CONTEXT or GO */
  Handle *probe;                /* open for the duration of one option */
  /* Under lock. */
  unsigned in_flight;           /* requests on other threads than the leader's */
  size_t in_flight_bytes;       /* buffers they own */
  pthread_cond_t room;          /* one of them has finished */

  pthread_mutex_t send_lock;    /* whole replies are sent under it */

  /* Transmission: see serve.c. */
  bool can_steal;               /* set before, not changed in, transmission */
  struct lane *lane;            /* the leader's; changed by the monitor only
                                   after a successful theft */
  uint64_t call_seq;            /* the leader's */
  atomic_uint_fast64_t call;    /* odd: the leader is inside the plugin */
  atomic_bool busy;             /* the leader is not waiting for the client */
  uint64_t seen_call;           /* the monitor's */
  bool needs_leader;            /* the monitor's: a thread could not start */
  struct conn *next_monitored;  /* under the monitor's lock */
  atomic_int_fast64_t call_ns;  /* moving average of a call of the plugin */
  /* The leader's. */
  bool slow;                    /* calls are being handed over */
  unsigned slow_batches;        /* in a row */
};

/* handshake.c.  true: c->handle is open, go on with transmission. */
bool conn_handshake (struct conn *c);

/* serve.c.  Transmission; ends with conn_finish, maybe on another thread. */
void conn_serve (struct conn *c);

/* conn.c.  Close and free. */
void conn_finish (struct conn *c);

/* Receive exactly length bytes.  deadline: CLOCK_MONOTONIC in ns, 0: none.
 * false: end of stream, error, or too late. */
bool conn_recv (struct conn *c, void *buf, size_t length, int64_t deadline);
/* Send all of it, under send_lock; iov is used up.  false: the client is gone,
 * now or earlier.  deadline as above. */
bool conn_send (struct conn *c, struct iovec *iov, int nr, int64_t deadline);

int64_t conn_now_ns (void);

#endif /* NBDFLEECE_CONN_INTERNAL_H */
