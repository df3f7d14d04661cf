/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* steal.h - the safety net under inline calls.
 *
 * A leader (serve.c) that calls the plugin itself cannot look after the rest
 * of its connection meanwhile.  One monitor thread for the whole process looks
 * about once a millisecond, while any connection is busy; a call that it finds
 * unfinished on two looks in a row costs its thread the leadership: another
 * thread goes on with the connection, and the old one only answers its own
 * request when it gets back.
 *
 * c->call counts up: odd inside a call, even outside.  Leader and monitor both
 * end a call by one compare-and-swap from that odd number, so exactly one of
 * them wins; numbers never repeat, so a late leader cannot take a later call
 * for its own.
 */
#ifndef NBDFLEECE_STEAL_H
#define NBDFLEECE_STEAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "conn-internal.h"

/* After the fork.  false: errno is set. */
bool steal_start (void);
/* No connection is left. */
void steal_stop (void);

/* The connection enters or leaves transmission. */
void steal_watch (struct conn *c);
void steal_unwatch (struct conn *c);

/* The leader has something to do, or is about to wait for its client. */
void steal_busy (struct conn *c);
void steal_idle (struct conn *c);

/* Around a call of the plugin by the leader.  What the next leader needs is
 * written before. */
static inline uint64_t
steal_begin (struct conn *c)
{
  uint64_t seq = ++c->call_seq;

  atomic_store_explicit (&c->call, seq, memory_order_release);
  return seq;
}

/* false: the leadership is lost, and with it all that belongs to it. */
static inline bool
steal_end (struct conn *c, uint64_t seq)
{
  uint_fast64_t expected = seq;

  if (!atomic_compare_exchange_strong (&c->call, &expected, seq + 1))
    return false;
  c->call_seq = seq + 1;
  return true;
}

#endif /* NBDFLEECE_STEAL_H */
