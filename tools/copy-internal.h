/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* copy-internal.h - what copy-engine.c, copy-op.c and copy-status.c share.
 *
 * A worker is a thread with at most one NBD handle at either end.  libnbd calls
 * back with the handle's lock held, so callbacks only note what happened (an op
 * goes onto its worker's ready list); the worker acts on it afterwards.
 */
#ifndef NBDFLEECE_COPY_INTERNAL_H
#define NBDFLEECE_COPY_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "tools/copy-engine.h"
#include "tools/copy-plan.h"

struct worker;

/* One piece of the plan on its way. */
struct op {
  struct worker *worker;
  struct op *next;              /* in the worker's free or ready list */
  struct plan_piece piece;
  char *buf;                    /* request_size bytes */
  char *buf2;                   /* ENGINE_COMPARE: what the target has */
  unsigned pending;             /* requests that have not been answered */
  const char *doing;            /* "read" or "write", for the message */
  const Peer *where;            /* whom it asked */
  int error;                    /* errno of the first that failed */
};

/* The one block status request in flight (NBD source, worker 0). */
struct status {
  uint64_t offset;
  GArray *base, *dirty;         /* of struct status_extent */
  bool asked, answered;
  int error;
};

struct engine {
  struct engine_config c;
  Plan *plan;
  struct worker *workers;       /* c.connections */

  int stop_fd;                  /* eventfd, readable once `stop` is set */
  atomic_bool stop;
  atomic_uint_fast64_t copied, zeroed, compared;
  atomic_uint_fast64_t zero_pieces;     /* the part of zeroed never read */
  atomic_uint_fast64_t different;       /* lowest such offset, or UINT64_MAX */

  atomic_uint nr_running;
  int done_fd;                  /* eventfd, readable once nr_running is 0 */

  pthread_mutex_t lock;         /* protects error */
  GError *error;                /* the first */
};

struct worker {
  struct engine *engine;
  unsigned index;
  pthread_t thread;
  bool started;
  struct nbd_handle *source, *target;   /* NULL for files */
  int wake_fd;                  /* eventfd: the plan has grown */
  struct op *ops, *free, *ready;
  unsigned nr_busy;             /* ops that are not free */
  struct status status;         /* worker 0 */
};

/* Record the first failure, stop everybody.  Takes the error. */
void engine_fail (struct engine *engine, GError *error);
void engine_wake (struct engine *engine);

/* copy-op.c: begin a piece; act on one that is on the ready list. */
void op_start (struct op *op);
void op_continue (struct op *op);

/* copy-status.c: ask for more of the map if it is wanted and nobody does;
 * take in what has been answered.
 */
void status_ask (struct worker *worker);
void status_take (struct worker *worker);

#endif /* NBDFLEECE_COPY_INTERNAL_H */
