/* SPDX-License-Identifier: BSD-3-Clause */
/* thread.h - how the plugin starts threads, and a scope guard for mutexes. */
#ifndef THREAD_H
#define THREAD_H

#include <pthread.h>
#include <glib.h>

/* pthread_create with all signals blocked: they belong to the server's main
 * thread.  Returns an errno. */
int thread_create (pthread_t *thread, void *(*fn) (void *), void *opaque);

/* A condition variable whose timed waits use CLOCK_MONOTONIC. */
void thread_cond_init (pthread_cond_t *cond);

static inline void
thread_unlock_p (pthread_mutex_t **lock)
{
  pthread_mutex_unlock (*lock);
}

/* Locked from here to the end of the scope. */
#define SCOPED_LOCK(mutex)                                              \
  __attribute__ ((cleanup (thread_unlock_p), unused))                   \
  pthread_mutex_t *G_PASTE (scoped_lock_, __LINE__) = (mutex);          \
  pthread_mutex_lock (G_PASTE (scoped_lock_, __LINE__))

#endif
