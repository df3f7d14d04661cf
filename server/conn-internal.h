/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* conn-internal.h - the connection object, for conn*.c and what they drive:
 * handshake*.c, serve*.c and steal.c.
 *
 * Phases: handshake (one thread), transmission (a leader and workers), gone.
 * Locks, in the order they may be taken: the list of connections (conn.c), the
 * monitor's list (steal.c), lock.
 */
#ifndef NBDFLEECE_CONN_INTERNAL_H
#define NBDFLEECE_CONN_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/uio.h>

#include <glib.h>

#include "access.h"
#include "backend.h"
#include "conn.h"
#include "metactx.h"
#include "rate.h"
#include "request.h"
#include "stats.h"
#include "tls-session.h"
#include "tls.h"

struct lane;

struct conn {
  /* Set when it starts, never changed. */
  const struct conn_settings *settings;
  Backend *b;
  int fd;
  unsigned number;
  int64_t listener;             /* by which it came in */
  uint32_t listener_max;        /* clients that that takes at a time, 0: any */
  Terms *terms;                 /* what it grants; a reference */
  unsigned told;                /* hash of the last export it was refused */
  uint64_t requests_before;     /* answered by an earlier image */
  Rate *rate, *listener_rate;   /* references; NULL: none */
  char peer[64];                /* "uid 0", an address, "cid 3"; or "" */

  /* Atomic. */
  atomic_bool closing;          /* read no more requests */
  atomic_bool dead;             /* sending has failed: do not try again */
  struct stats_shared stats;
  atomic_bool in_payload;       /* the leader waits for a large one */
  atomic_uint progress;         /* the client has sent or taken something */

  /* The handshake's; not changed in transmission. */
  bool no_zeroes;
  enum reply_mode mode;
  MetaCtxSet *contexts;         /* NULL: none selected */
  TlsSession *tls;              /* NULL: plain text */
  GSList *strings;              /* under the lock of nbdkit-api.c */
  bool entered;                 /* backend_leave is due */

  /* Received by an earlier image of this program; the leader's.  NULL: none, or
   * used up. */
  GBytes *inherited;
  size_t inherited_pos;
  /* Stopped at the border of a request, to be left to the next image; the
   * leader's. */
  bool parked;
  GByteArray *unparsed;         /* received, not looked at; NULL: nothing */
  char *export_name;            /* set when the handle is closed */
  struct export_info info;      /* likewise; before: what the client was told */

  pthread_mutex_t lock;
  /* Under lock. */
  bool has_leader;              /* in transmission; leader is valid */
  pthread_t leader;
  char *served_name;            /* of the export; NULL: not in transmission */
  /* Under lock for whoever is not the handshake's thread. */
  Handle *handle;               /* selected by SET_META_CONTEXT or GO */
  Handle *probe;                /* open for the duration of one option */
  /* Under lock. */
  unsigned in_flight;           /* requests that other threads than the leader
                                   had, until their replies are sent */
  size_t in_flight_bytes;       /* buffers they own */
  /* For the leader: one of them has finished, or its own replies are sent. */
  pthread_cond_t room;

  _Atomic (struct outgoing *) unsent;   /* see conn-queue.c */

  /* Transmission: see serve.c. */
  bool can_steal;               /* set before, not changed in, transmission */
  struct lane *lane;            /* the leader's; changed by the monitor only
                                   after a successful theft */
  uint64_t call_seq;            /* the leader's */
  atomic_uint_fast64_t call;    /* odd: the leader is inside the plugin */
  atomic_bool busy;             /* the leader is not waiting for the client */
  atomic_bool unwatched;        /* the monitor does not look at it */
  unsigned idle_looks;          /* the monitor's: in a row */
  uint64_t seen_call;           /* the monitor's */
  bool needs_leader;            /* the monitor's: a thread could not start */
  struct conn *next_monitored;  /* under the monitor's lock */
  atomic_int_fast64_t call_ns;  /* moving average of a call of the plugin */
  /* The leader's. */
  bool slow;                    /* calls are being handed over */
  unsigned slow_batches;        /* in a row */
  unsigned tick;                /* seconds that receiving blocks */
  int64_t silent_since;         /* 0: it has just sent something */
  int64_t asking_since;         /* refused only, and nothing in flight; 0:
                                   not */

  /* Under the lock of the list of connections: when somebody last looked
   * whether it moves, see conn_drop_stalled. */
  unsigned seen_progress;
  int64_t stalled_since;        /* 0: never */
};

/* conn-access.c.  Exports are read-only for this client, whichever they are. */
bool conn_is_readonly (const struct conn *c);
enum tls_mode conn_tls_mode (const struct conn *c);
/* Does an export of this name exist for it, as far as can be said without
 * opening it?  Both answers take about the same time.  Afterwards, of what was
 * opened, conn_still_may.  *out_readonly: it may not write to it. */
bool conn_may_open (struct conn *c, const char *name, bool *out_readonly);
bool conn_still_may (struct conn *c, Handle *h);
bool conn_may_list (struct conn *c, const char *name);

/* handshake.c.  true: c->handle is open, go on with transmission. */
bool conn_handshake (struct conn *c);

/* enter.c.  For GO, EXPORT_NAME, SET_META_CONTEXT, and a client of an earlier
 * image: after this, c->handle is of that export, its contexts in c->contexts
 * are selected, and those chosen for another export are void.  false: not
 * possible. */
bool conn_enter_export (struct conn *c, const char *name);

/* serve.c.  Transmission; ends with conn_finish, maybe on another thread. */
void conn_serve (struct conn *c);

/* conn.c.  Close and free, or, if it is parked, close the handle and keep the
 * rest. */
void conn_finish (struct conn *c);

/* All are to be parked: stop at the border of the next request.  The sockets of
 * those who have a leader do not block any more then: they fail with EAGAIN
 * after a short wait. */
bool conn_is_parking (void);
/* All are to leave: read what is there without waiting, refuse it, and end.
 * conn_is_drained: that has lasted too long, from *since on, which is set if it
 * is 0; in_request: a part of one is here. */
bool conn_is_draining (void);
bool conn_is_drained (int64_t *since, bool in_request);
/* All are to leave: how long options are answered from the first on that gets
 * NBD_REP_ERR_SHUTDOWN; and whether nothing is received any more. */
#define CONN_SEE_OFF_NS INT64_C (200000000)
bool conn_handshakes_are_over (void);
/* This thread is the leader now; or nobody is. */
void conn_set_leader (struct conn *c, bool is_leader);

/* As recv: how many bytes there are, 0: end of stream, -1 and errno.
 * dont_wait: EAGAIN rather than to wait for any. */
ssize_t conn_receive (struct conn *c, void *buf, size_t n, bool dont_wait);
/* conn-limit.c */

/* What any client's socket needs; of the transmission phase. */
void conn_set_socket (struct conn *c);
void conn_set_timeouts (struct conn *c);
/* Once c->listener is set. */
void conn_set_rates (struct conn *c);
/* Wait as long as the rates want it before so many bytes move. */
void conn_wait_for_rates (struct conn *c, enum rate_direction direction,
                          uint64_t bytes);
/* Fill in c->peer. */
void conn_name_peer (struct conn *c);
/* With the lock of the list of connections.  false: *out_met is the limit. */
bool conn_is_admitted_locked (const struct conn *c, enum limit_kind *out_met);
/* The leader has received nothing for c->tick seconds.  in_request: of which a
 * part is here.  false: it is reported, to be closed. */
bool conn_is_patient (struct conn *c, bool in_request);
/* The client has not taken all that was sent, or is sending a large payload. */
bool conn_is_waited_for (const struct conn *c);
/* Others wait for memory: disconnect clients that have kept some for a while by
 * neither taking their replies nor completing their request.  To be called
 * about once a second. */
void conn_drop_stalled (void);

/* In the handshake: receive exactly length bytes.  deadline: CLOCK_MONOTONIC in
 * ns, 0: none.  false: end of stream, error, or too late. */
bool conn_recv (struct conn *c, void *buf, size_t length, int64_t deadline);
/* Send all of it; iov is used up.  false: the client is gone, now or earlier.
 * deadline as above.  By one thread at a time: in transmission only
 * conn-queue.c calls this. */
bool conn_send (struct conn *c, struct iovec *iov, int nr, int64_t deadline);

/* conn-queue.c.  A whole reply, or several. */
struct outgoing {
  struct outgoing *next;        /* conn-queue.c's */
  struct iovec iov;
  /* Called once it is sent, or never will be: from any thread, without locks.
   * owner is not used afterwards. */
  void (*sent) (void *owner);
  void *owner;
};

/* Send it, or leave it to the thread that is sending; *o belongs to
 * conn-queue.c until sent is called, which has to keep the connection until
 * then, e.g. by being in flight.  So it may be gone on return. */
void conn_post (struct conn *c, struct outgoing *o);
/* The leader's: return when it is sent, or never will be. */
void conn_send_reply (struct conn *c, struct iovec iov);

/* For handshake-tls.c: receive once for TLS, and send what it has to say.
 * false: end of stream, error, or too late; the client is gone, or too late. */
bool conn_receive_tls (struct conn *c, TlsSession *t, int64_t deadline);
bool conn_send_tls (struct conn *c, TlsSession *t, int64_t deadline);
/* Tell the client that nothing follows; does not wait for it. */
void conn_say_goodbye (struct conn *c);

int64_t conn_now_ns (void);

#endif /* NBDFLEECE_CONN_INTERNAL_H */
