/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <pthread.h>

#include <glib.h>

#include "conn-internal.h"
#include "rate.h"

#define SECOND_NS INT64_C (1000000000)
/* What a client that was idle may move at once: this part of a second's. */
#define BURST_PART 8
/* A slice is this part of a second's, but not less than so many bytes.  With
 * 100 clients that all have large requests under way, a small one waits for a
 * second. */
#define SLICE_PART 100
#define SLICE_MIN 4096

struct Rate {
  uint64_t bytes;               /* in a second */
  int64_t listener;             /* 0: of a client */
  unsigned refs;                /* under list_lock */
  pthread_mutex_t lock;
  /* Under lock: when all that was taken is paid for, CLOCK_MONOTONIC in ns. */
  double paid[2];
};

/* Of all listeners that have clients: few.  Its lock comes before a rate's. */
static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static GSList *list;

Rate *
rate_new (uint64_t bytes)
{
  Rate *rate = g_new0 (Rate, 1);

  rate->bytes = bytes;
  rate->refs = 1;
  pthread_mutex_init (&rate->lock, NULL);
  return rate;
}

Rate *
rate_of_listener (int64_t listener, uint64_t bytes)
{
  Rate *rate = NULL;

  pthread_mutex_lock (&list_lock);
  for (GSList *i = list; i != NULL && rate == NULL; i = i->next)
    if (((Rate *) i->data)->listener == listener)
      rate = i->data;
  if (rate != NULL)
    rate->refs++;
  else {
    rate = rate_new (bytes);
    rate->listener = listener;
    list = g_slist_prepend (list, rate);
  }
  pthread_mutex_unlock (&list_lock);
  return rate;
}

void
rate_unref (Rate *rate)
{
  bool last;

  if (rate == NULL)
    return;
  pthread_mutex_lock (&list_lock);
  last = --rate->refs == 0;
  if (last)
    list = g_slist_remove (list, rate);
  pthread_mutex_unlock (&list_lock);
  if (last) {
    pthread_mutex_destroy (&rate->lock);
    g_free (rate);
  }
}

uint64_t
rate_slice (const Rate *rate)
{
  return rate == NULL ? UINT64_MAX : MAX (rate->bytes / SLICE_PART, SLICE_MIN);
}

int64_t
rate_take (Rate *rate, enum rate_direction direction, uint64_t bytes)
{
  double now, wait;

  if (rate == NULL)
    return 0;
  now = conn_now_ns ();
  pthread_mutex_lock (&rate->lock);
  if (rate->paid[direction] < now - SECOND_NS / BURST_PART)
    rate->paid[direction] = now - SECOND_NS / BURST_PART;
  rate->paid[direction] += (double) bytes / rate->bytes * SECOND_NS;
  wait = rate->paid[direction] - now;
  pthread_mutex_unlock (&rate->lock);
  /* A day is as good as for ever. */
  return wait <= 0 ? 0 : wait > 86400.0 * SECOND_NS ? 86400 * SECOND_NS : wait;
}
