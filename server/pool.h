/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* pool.h - threads for whatever may block, kept for reuse.
 *
 * A job never waits for another one to finish: a thread is started when none is
 * idle.  What bounds their number are the callers: connections, and requests
 * in flight for each.
 */
#ifndef NBDFLEECE_POOL_H
#define NBDFLEECE_POOL_H

#include <stdbool.h>

/* Run fn (arg) on another thread.  false: no thread could be started (errno is
 * set) and fn will not run.  From any thread. */
bool pool_run (void (*fn) (void *), void *arg);

/* Wait until all jobs are finished and all threads are gone.  No pool_run may
 * come afterwards. */
void pool_finish (void);

#endif /* NBDFLEECE_POOL_H */
