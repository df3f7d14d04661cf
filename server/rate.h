/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* rate.h - how fast data may move: a bucket of tokens, bytes, for each
 * direction.
 *
 * Whoever moves bytes takes as many tokens, which may leave the bucket in debt,
 * and then waits until the debt is paid: none needs a timer.
 *
 * Thread-safe.
 */
#ifndef NBDFLEECE_RATE_H
#define NBDFLEECE_RATE_H

#include <stdint.h>

enum rate_direction { RATE_READ, RATE_WRITE };

typedef struct Rate Rate;

/* bytes in a second, in each direction; more than 0. */
Rate *rate_new (uint64_t bytes);
/* That of a listener, one for all of its clients. */
Rate *rate_of_listener (int64_t listener, uint64_t bytes);
void rate_unref (Rate *rate);   /* NULL is fine */

/* The most bytes to take at once; NULL: any number.  Who takes what a large
 * request moves slice by slice, and waits after each, keeps nobody waiting for
 * all of it, and leaves no debt to others when he leaves. */
uint64_t rate_slice (const Rate *rate);
/* Take them.  Returns for how many ns to wait, 0: not at all (as NULL does). */
int64_t rate_take (Rate *rate, enum rate_direction direction, uint64_t bytes);

#endif /* NBDFLEECE_RATE_H */
