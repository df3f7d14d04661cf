/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <assert.h>
#include <pthread.h>
#include <string.h>

#include "tools/copy-plan.h"

/* No more block status is asked for while so many extents are waiting: 2 MiB
 * of them.  A reply may bring a million more, which is the true bound.
 */
#define ENOUGH_WAITING 131072

/* The first status request asks for so much, each further one for twice what
 * the last did: the first reads need not wait for the map of a whole disk.
 */
#define FIRST_STATUS ((uint64_t) 128 << 20)

/* An extent in the queue; its offset is the sum of those before it. */
struct waiting {
  uint64_t length;
  enum plan_kind kind;
};

struct Plan {
  /* set in new, never changed */
  uint64_t size, align, read_max, zero_max;

  pthread_mutex_t lock;         /* protects all that follows */
  struct waiting *queue;        /* [head, tail) of allocated */
  size_t head, tail, allocated;
  uint64_t next;                /* offset of queue[head] */
  uint64_t scanned;             /* offset up to which status is known */
  uint64_t block_fill;          /* bytes known of a block not yet queued */
  enum plan_kind block_kind;
  bool status_in_flight;
  uint64_t status_step;
  struct plan_totals totals;
};

Plan *
plan_new (uint64_t size, uint64_t align, uint64_t read_max, uint64_t zero_max)
{
  Plan *plan = g_new0 (Plan, 1);

  assert (align > 0 && (align & (align - 1)) == 0);
  assert (read_max > 0 && read_max % align == 0);
  assert (zero_max > 0 && zero_max % align == 0);
  plan->size = size;
  plan->align = align;
  plan->read_max = read_max;
  plan->zero_max = zero_max;
  plan->status_step = FIRST_STATUS;
  pthread_mutex_init (&plan->lock, NULL);
  return plan;
}

void
plan_free (Plan *plan)
{
  if (plan == NULL)
    return;
  pthread_mutex_destroy (&plan->lock);
  g_free (plan->queue);
  g_free (plan);
}

bool
plan_wants_status (Plan *plan, uint64_t max_length, uint64_t *out_offset,
                   uint64_t *out_length)
{
  bool wanted;

  pthread_mutex_lock (&plan->lock);
  wanted = !plan->status_in_flight && plan->scanned < plan->size &&
           plan->tail - plan->head < ENOUGH_WAITING;
  if (wanted) {
    plan->status_in_flight = true;
    *out_offset = plan->scanned;
    *out_length = MIN (plan->size - plan->scanned,
                       MIN (plan->status_step, max_length));
    plan->status_step = MIN (plan->status_step * 2, UINT64_C (1) << 40);
  }
  pthread_mutex_unlock (&plan->lock);
  return wanted;
}

void
plan_status_done (Plan *plan)
{
  pthread_mutex_lock (&plan->lock);
  plan->status_in_flight = false;
  pthread_mutex_unlock (&plan->lock);
}

static void
push_locked (Plan *plan, uint64_t length, enum plan_kind kind)
{
  if (length == 0)
    return;
  switch (kind) {
  case PLAN_READ: plan->totals.to_read += length; break;
  case PLAN_ZERO: plan->totals.zero += length; break;
  case PLAN_SKIP: plan->totals.skipped += length; break;
  }
  if (plan->tail > plan->head && plan->queue[plan->tail - 1].kind == kind) {
    plan->queue[plan->tail - 1].length += length;
    return;
  }
  if (plan->tail == plan->allocated && plan->head > plan->allocated / 2) {
    memmove (plan->queue, plan->queue + plan->head,
             (plan->tail - plan->head) * sizeof plan->queue[0]);
    plan->tail -= plan->head;
    plan->head = 0;
  }
  else if (plan->tail == plan->allocated) {
    plan->allocated = MAX (64, plan->allocated * 2);
    plan->queue = g_renew (struct waiting, plan->queue, plan->allocated);
  }
  plan->queue[plan->tail++] = (struct waiting) { length, kind };
}

void
plan_append (Plan *plan, uint64_t length, enum plan_kind kind)
{
  pthread_mutex_lock (&plan->lock);
  length = MIN (length, plan->size - plan->scanned);
  plan->scanned += length;

  if (plan->block_fill > 0) {
    uint64_t n = MIN (length, plan->align - plan->block_fill);

    if (n > 0 && kind != plan->block_kind)
      plan->block_kind = PLAN_READ;
    plan->block_fill += n;
    length -= n;
    if (plan->block_fill == plan->align) {
      push_locked (plan, plan->align, plan->block_kind);
      plan->block_fill = 0;
    }
  }
  if (length > 0) {
    push_locked (plan, length & ~(plan->align - 1), kind);
    plan->block_fill = length & (plan->align - 1);
    plan->block_kind = kind;
  }
  if (plan->scanned == plan->size) {
    push_locked (plan, plan->block_fill, plan->block_kind);
    plan->block_fill = 0;
  }
  plan->totals.scanned = plan->scanned;
  pthread_mutex_unlock (&plan->lock);
}

/* Take up to max bytes, ending at a multiple of max: neighbouring pieces then
 * never share a page or a cluster of the target.
 */
static uint64_t
take_locked (Plan *plan, uint64_t max)
{
  struct waiting *w = &plan->queue[plan->head];
  uint64_t n = MIN (w->length, max - plan->next % max);

  w->length -= n;
  plan->next += n;
  if (w->length == 0)
    plan->head++;
  if (plan->head == plan->tail)
    plan->head = plan->tail = 0;
  return n;
}

enum plan_answer
plan_next (Plan *plan, struct plan_piece *out_piece)
{
  enum plan_answer answer;

  pthread_mutex_lock (&plan->lock);
  while (plan->head < plan->tail &&
         plan->queue[plan->head].kind == PLAN_SKIP)
    take_locked (plan, UINT64_MAX);
  if (plan->head < plan->tail) {
    enum plan_kind kind = plan->queue[plan->head].kind;

    out_piece->kind = kind;
    out_piece->offset = plan->next;
    out_piece->length =
      take_locked (plan, kind == PLAN_READ ? plan->read_max : plan->zero_max);
    answer = PLAN_PIECE;
  }
  else
    answer = plan->scanned == plan->size ? PLAN_END : PLAN_WAIT;
  pthread_mutex_unlock (&plan->lock);
  return answer;
}

void
plan_totals (Plan *plan, struct plan_totals *out_totals)
{
  pthread_mutex_lock (&plan->lock);
  *out_totals = plan->totals;
  pthread_mutex_unlock (&plan->lock);
}
