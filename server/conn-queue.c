/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* conn-queue.c - who sends to a client in transmission.
 *
 * At most one thread does at a time, the sender.  Whoever has a reply meanwhile
 * leaves it in the queue and goes; the sender sends it too before it stops
 * being the sender.  So a client that does not take its replies keeps one
 * thread of those that its requests had, whatever their number, and its leader.
 * There is no more in the queue than may be in flight: a reply there still
 * counts.
 *
 * c->unsent says all of that: NULL, there is no sender; &nothing, there is one,
 * and the queue is empty; else the reply that came last, linked to those before
 * it.  Without contention becoming the sender and leaving is one
 * compare-and-swap each, as a lock would be.
 */
#include <config.h>

#include "conn-internal.h"

/* What is sent in one call: small replies together; not so much that a client
 * which is slow, but moves, seems to stand still (c->progress). */
#define GROUP_REPLIES 32
#define GROUP_BYTES (128 << 10)

static struct outgoing nothing;

/* true: this thread is the sender now, and o its own; else o is in the queue,
 * and may have been sent already. */
static bool
enter (struct conn *c, struct outgoing *o)
{
  struct outgoing *last = NULL;

  /* Nobody else takes single replies off the queue: that last is still the last
   * is all that matters, even if it is another one at the same address. */
  while (!atomic_compare_exchange_weak_explicit
         (&c->unsent, &last, last == NULL ? &nothing : o, memory_order_acq_rel,
          memory_order_relaxed))
    o->next = last == &nothing ? NULL : last;
  return last == NULL;
}

/* The sender's: what has come meanwhile, in order.  NULL: nothing, and this
 * thread is not the sender any more. */
static struct outgoing *
more_or_leave (struct conn *c)
{
  struct outgoing *last = &nothing, *in_order = NULL;

  if (atomic_compare_exchange_strong_explicit (&c->unsent, &last, NULL,
                                               memory_order_acq_rel,
                                               memory_order_relaxed))
    return NULL;
  last = atomic_exchange_explicit (&c->unsent, &nothing, memory_order_acq_rel);
  while (last != NULL) {
    struct outgoing *before = last->next;

    last->next = in_order;
    in_order = last;
    last = before;
  }
  return in_order;
}

/* Take the first ones off the list.  Returns how many: iov has been filled. */
static int
take_group (struct outgoing **list, struct iovec *iov)
{
  struct outgoing *o = *list;
  size_t bytes = 0;
  int nr = 0;

  do {
    iov[nr++] = o->iov;
    bytes += o->iov.iov_len;
    o = o->next;
  } while (o != NULL && nr < GROUP_REPLIES &&
           bytes + o->iov.iov_len <= GROUP_BYTES);
  *list = o;
  return nr;
}

/* As the sender: send o, and what comes meanwhile.  To a client that is gone,
 * or goes now, nothing is sent, and all is done with at once. */
static void
send_all (struct conn *c, struct outgoing *o)
{
  while (o != NULL) {
    struct iovec iov[GROUP_REPLIES];
    struct outgoing *group = o, *next;
    int nr = take_group (&o, iov);

    conn_send (c, iov, nr, 0);
    if (o == NULL)
      o = more_or_leave (c);
    /* Each reply that is not done with keeps the connection: those of o while
     * this thread is the sender, then those of the group up to the last, with
     * which it may end. */
    for (int i = 0; i < nr; i++, group = next) {
      next = group->next;
      if (group->sent != NULL)
        group->sent (group->owner);
    }
  }
}

void
conn_post (struct conn *c, struct outgoing *o)
{
  o->next = NULL;
  if (enter (c, o))
    send_all (c, o);
}

struct wait {
  struct conn *c;
  bool over;                    /* under c->lock */
};

static void
end_wait (void *owner)
{
  struct wait *w = owner;
  struct conn *c = w->c;

  pthread_mutex_lock (&c->lock);
  w->over = true;
  pthread_cond_signal (&c->room);
  pthread_mutex_unlock (&c->lock);
}

void
conn_send_reply (struct conn *c, struct iovec iov)
{
  struct wait w = { .c = c };
  struct outgoing o = { .iov = iov, .sent = end_wait, .owner = &w };

  if (enter (c, &o)) {
    o.sent = NULL;              /* it need not wait for itself */
    send_all (c, &o);
    return;
  }
  pthread_mutex_lock (&c->lock);
  while (!w.over)
    pthread_cond_wait (&c->room, &c->lock);
  pthread_mutex_unlock (&c->lock);
}
