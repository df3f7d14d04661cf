/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "tools/copy-internal.h"

/* The longest range zeroed by one call or request: short enough that a server
 * or a disk that must write real zeroes does not go silent for minutes.
 */
#define ZERO_MAX ((uint64_t) 128 << 20)

/* Pieces begun before a worker looks at its sockets again.  Files answer at
 * once, so without a limit one would never look.
 */
#define START_BUDGET 32

G_DEFINE_QUARK (fleececopy-engine, engine_error)

uint64_t
engine_alignment (const Peer *source, const Peer *target)
{
  return MAX (source->min_block, target->min_block);
}

static void
signal_fd (int fd)
{
  uint64_t one = 1;
  ssize_t r = write (fd, &one, sizeof one);

  (void) r;                     /* EAGAIN: it is readable already */
}

void
engine_fail (struct engine *engine, GError *error)
{
  pthread_mutex_lock (&engine->lock);
  if (engine->error == NULL)
    engine->error = g_steal_pointer (&error);
  pthread_mutex_unlock (&engine->lock);
  g_clear_error (&error);
  atomic_store (&engine->stop, true);
  signal_fd (engine->stop_fd);
}

void
engine_wake (struct engine *engine)
{
  for (unsigned i = 0; i < engine->c.connections; i++)
    signal_fd (engine->workers[i].wake_fd);
}

/* A comparison that has found a difference goes on only below it. */
static bool
is_beyond_difference (struct engine *engine, const struct plan_piece *piece)
{
  return piece->offset >= atomic_load (&engine->different);
}

enum start_result {
  START_MORE,                   /* came to its limit: call again */
  START_WAIT,                   /* nothing to do until something happens */
  START_END                     /* the plan has nothing more and never will */
};

/* Begin pieces while there are any and ops to carry them. */
static enum start_result
start_pieces (struct worker *worker)
{
  struct engine *engine = worker->engine;

  for (int i = 0; i < START_BUDGET; i++) {
    struct op *op = worker->free;

    if (op == NULL || atomic_load (&engine->stop))
      return START_WAIT;
    switch (plan_next (engine->plan, &op->piece)) {
    case PLAN_END:
      return START_END;
    case PLAN_WAIT:
      return START_WAIT;
    case PLAN_PIECE:
      break;
    }
    if (is_beyond_difference (engine, &op->piece))
      continue;
    worker->free = op->next;
    worker->nr_busy++;
    op_start (op);
  }
  return START_MORE;
}

static void
fail_connection (struct worker *worker, const Peer *peer)
{
  const char *why = peer_nbd_error ();

  engine_fail (worker->engine, g_error_new (
    ENGINE_ERROR, ENGINE_ERROR_FAILED, "lost the connection to '%s': %s",
    peer->name, why));
}

/* What poll should wait for on a handle. */
static short
handle_events (struct nbd_handle *h)
{
  unsigned dir = nbd_aio_get_direction (h);

  return (dir & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
         (dir & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0);
}

static void
handle_notify (struct worker *worker, struct nbd_handle *h, const Peer *peer,
               short revents)
{
  unsigned dir = nbd_aio_get_direction (h);
  int r = 0;

  if ((revents & (POLLIN | POLLHUP | POLLERR)) &&
      (dir & LIBNBD_AIO_DIRECTION_READ))
    r = nbd_aio_notify_read (h);
  else if ((revents & (POLLOUT | POLLHUP | POLLERR)) &&
           (dir & LIBNBD_AIO_DIRECTION_WRITE))
    r = nbd_aio_notify_write (h);
  if (r == -1 || nbd_aio_is_dead (h) || nbd_aio_is_closed (h))
    fail_connection (worker, peer);
}

/* may_sleep: there is nothing to do until something happens. */
static void
wait_for_events (struct worker *worker, bool may_sleep)
{
  struct engine *engine = worker->engine;
  struct pollfd fds[4] = {
    { .fd = engine->stop_fd, .events = POLLIN },
    { .fd = worker->wake_fd, .events = POLLIN },
    { .fd = -1 }, { .fd = -1 },
  };
  uint64_t count;

  if (worker->source != NULL) {
    fds[2].fd = nbd_aio_get_fd (worker->source);
    fds[2].events = handle_events (worker->source);
  }
  if (worker->target != NULL) {
    fds[3].fd = nbd_aio_get_fd (worker->target);
    fds[3].events = handle_events (worker->target);
  }
  if (poll (fds, G_N_ELEMENTS (fds), may_sleep ? -1 : 0) == -1) {
    if (errno != EINTR)
      engine_fail (engine, g_error_new (ENGINE_ERROR, ENGINE_ERROR_FAILED,
                                        "cannot poll: %s",
                                        g_strerror (errno)));
    return;
  }
  if (fds[1].revents & POLLIN) {
    ssize_t r = read (worker->wake_fd, &count, sizeof count);
    (void) r;
  }
  if (fds[2].revents != 0)
    handle_notify (worker, worker->source, engine->c.source, fds[2].revents);
  if (fds[3].revents != 0)
    handle_notify (worker, worker->target, engine->c.target, fds[3].revents);
}

/* Act on all that was answered.  Oldest first: the list was built by pushing,
 * and file systems like writes in order.
 */
static void
continue_ready (struct worker *worker)
{
  struct op *list = worker->ready, *in_order = NULL;

  worker->ready = NULL;
  while (list != NULL) {
    struct op *op = list;

    list = op->next;
    op->next = in_order;
    in_order = op;
  }
  while (in_order != NULL && !atomic_load (&worker->engine->stop)) {
    struct op *op = in_order;

    in_order = op->next;
    op_continue (op);
  }
}

static void *
worker_main (void *opaque)
{
  struct worker *worker = opaque;
  struct engine *engine = worker->engine;

  while (!atomic_load (&engine->stop)) {
    enum start_result result;

    continue_ready (worker);
    status_take (worker);
    status_ask (worker);
    result = start_pieces (worker);
    if (result == START_END && worker->nr_busy == 0)
      break;
    wait_for_events (worker, result != START_MORE && worker->ready == NULL &&
                             !worker->status.answered);
  }
  if (atomic_fetch_sub (&engine->nr_running, 1) == 1)
    signal_fd (engine->done_fd);
  return NULL;
}

static void
show_progress (struct engine *engine)
{
  struct plan_totals t;
  uint64_t done, total;

  plan_totals (engine->plan, &t);
  if (engine->c.mode == ENGINE_COMPARE) {
    done = atomic_load (&engine->compared);
    total = engine->c.source->size;
  }
  else {
    /* Zeroes found in data that were read count as data here. */
    uint64_t zero_work = engine->c.target_is_zero ? 0 : t.zero;

    total = t.to_read + zero_work + (engine->c.source->size - t.scanned);
    done = atomic_load (&engine->copied) + atomic_load (&engine->zeroed);
    if (engine->c.target_is_zero)
      done -= MIN (done, atomic_load (&engine->zero_pieces));
  }
  progress_update (engine->c.progress, MIN (done, total), total);
}

static void
wait_for_workers (struct engine *engine)
{
  struct pollfd fds[2] = {
    { .fd = engine->done_fd, .events = POLLIN },
    { .fd = engine->c.interrupt_fd, .events = POLLIN },
  };

  for (;;) {
    int r = poll (fds, 2, 100);

    if (r == 0 || (r == -1 && errno == EINTR)) {
      show_progress (engine);
      continue;
    }
    if (fds[0].revents != 0)
      break;
    if (fds[1].revents != 0) {
      engine_fail (engine, g_error_new (ENGINE_ERROR, ENGINE_ERROR_INTERRUPTED,
                                        "interrupted"));
      fds[1].fd = -1;
    }
  }
  if (!atomic_load (&engine->stop))
    show_progress (engine);
}

static void
worker_free (struct worker *worker, unsigned requests)
{
  for (unsigned i = 0; worker->ops != NULL && i < requests; i++) {
    free (worker->ops[i].buf);
    free (worker->ops[i].buf2);
  }
  g_free (worker->ops);
  if (worker->status.base != NULL)
    g_array_free (worker->status.base, TRUE);
  if (worker->status.dirty != NULL)
    g_array_free (worker->status.dirty, TRUE);
  if (worker->wake_fd >= 0)
    close (worker->wake_fd);
}

/* False if there is no memory or no file descriptor. */
static bool
worker_init (struct worker *worker, struct engine *engine, unsigned index)
{
  const struct engine_config *c = &engine->c;

  worker->engine = engine;
  worker->index = index;
  worker->wake_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (worker->wake_fd == -1)
    return false;
  if (c->source->kind == PEER_NBD) {
    worker->source = c->source->nbd[index];
    /* Saves clearing each buffer before the answer is put there; what a failed
     * read leaves in it is never used.
     */
    nbd_set_pread_initialize (worker->source, false);
  }
  if (c->target->kind == PEER_NBD) {
    worker->target = c->target->nbd[index];
    nbd_set_pread_initialize (worker->target, false);
  }
  worker->ops = g_new0 (struct op, c->requests);
  for (unsigned i = 0; i < c->requests; i++) {
    struct op *op = &worker->ops[i];

    op->worker = worker;
    op->buf = aligned_alloc (4096, MAX (c->request_size, 4096));
    if (c->mode == ENGINE_COMPARE)
      op->buf2 = aligned_alloc (4096, MAX (c->request_size, 4096));
    if (op->buf == NULL || (c->mode == ENGINE_COMPARE && op->buf2 == NULL))
      return false;
    op->next = worker->free;
    worker->free = op;
  }
  return true;
}

static bool
start_workers (struct engine *engine)
{
  for (unsigned i = 0; i < engine->c.connections; i++)
    engine->workers[i].wake_fd = -1;
  for (unsigned i = 0; i < engine->c.connections; i++)
    if (!worker_init (&engine->workers[i], engine, i)) {
      engine_fail (engine, g_error_new (
        ENGINE_ERROR, ENGINE_ERROR_FAILED,
        "cannot set up connection %u: out of memory or file descriptors; "
        "ask for fewer --connections or --requests", i + 1));
      return false;
    }
  atomic_store (&engine->nr_running, engine->c.connections);
  for (unsigned i = 0; i < engine->c.connections; i++) {
    struct worker *worker = &engine->workers[i];
    int err = pthread_create (&worker->thread, NULL, worker_main, worker);

    if (err == 0) {
      worker->started = true;
      continue;
    }
    engine_fail (engine, g_error_new (ENGINE_ERROR, ENGINE_ERROR_FAILED,
                                      "cannot start a thread: %s",
                                      g_strerror (err)));
    /* Those that never started cannot say that they have ended. */
    unsigned missing = engine->c.connections - i;
    if (atomic_fetch_sub (&engine->nr_running, missing) == missing)
      signal_fd (engine->done_fd);
    break;
  }
  return true;
}

bool
engine_run (const struct engine_config *config,
            struct engine_counts *out_counts, GError **error)
{
  struct engine engine = { .c = *config };
  uint64_t align = engine_alignment (config->source, config->target);
  struct plan_totals totals;
  uint64_t different;

  pthread_mutex_init (&engine.lock, NULL);
  engine.stop_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  engine.done_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  atomic_store (&engine.different, UINT64_MAX);
  engine.plan = plan_new (config->source->size, align, config->request_size,
                          ZERO_MAX);
  engine.workers = g_new0 (struct worker, config->connections);

  if (start_workers (&engine)) {
    wait_for_workers (&engine);
    for (unsigned i = 0; i < config->connections; i++)
      if (engine.workers[i].started)
        pthread_join (engine.workers[i].thread, NULL);
  }
  plan_totals (engine.plan, &totals);
  out_counts->copied = atomic_load (&engine.copied);
  out_counts->zeroed = atomic_load (&engine.zeroed);
  out_counts->compared = atomic_load (&engine.compared);
  out_counts->skipped = totals.skipped;

  for (unsigned i = 0; i < config->connections; i++)
    worker_free (&engine.workers[i], config->requests);
  g_free (engine.workers);
  plan_free (engine.plan);
  close (engine.stop_fd);
  close (engine.done_fd);
  pthread_mutex_destroy (&engine.lock);

  different = atomic_load (&engine.different);
  if (engine.error == NULL && different != UINT64_MAX)
    engine.error = g_error_new (
      ENGINE_ERROR, ENGINE_ERROR_DIFFERENT,
      "'%s' and '%s' differ, first at offset %" G_GUINT64_FORMAT,
      config->source->name, config->target->name, different);
  if (engine.error != NULL) {
    g_propagate_error (error, engine.error);
    return false;
  }
  return true;
}
