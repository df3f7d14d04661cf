/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* memory-pool.h - the buffers that requests in flight own, of all clients
 * together.
 *
 * The first MEMORY_FREE bytes of each client are not counted, so that no client
 * can keep another from being served, and small requests touch nothing that
 * connections share.  The rest comes from one pool, in steps of that size.
 *
 * A client's bytes are counted by the caller, under a lock of the client's.
 */
#ifndef NBDFLEECE_MEMORY_POOL_H
#define NBDFLEECE_MEMORY_POOL_H

#include <stdbool.h>
#include <stdint.h>

#define MEMORY_FREE (UINT64_C (1) << 20)

/* bytes: of the pool.  Before the first client. */
void memory_init (uint64_t bytes);

/* A client that owns so many bytes is to own more.  false: the pool is used up,
 * nothing has changed; force: it gets them all the same. */
bool memory_take (uint64_t owned, uint64_t more, bool force);
/* It owns less now. */
void memory_give (uint64_t owned, uint64_t less);
/* After memory_take has failed with these numbers: wait until it is worth
 * another try, at most about a second.  Without the client's lock. */
void memory_wait (uint64_t owned, uint64_t more);

/* Bytes taken from the pool. */
uint64_t memory_used (void);

#endif /* NBDFLEECE_MEMORY_POOL_H */
