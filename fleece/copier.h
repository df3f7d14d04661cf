/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* copier.h - calls that may hang, made where a guest's write need not hang with
 * them: on another thread, which the caller waits for only so long.
 *
 * A system call on a file cannot be taken back: once given up on, it still ends
 * some day, in its thread, and does then what it does.  So a job owns all that
 * it touches (its buffer, and a reference to what it writes to), and nobody
 * starts another one on the same thing until it has ended; `late` tells.
 *
 * Locking: one mutex, a leaf.  Threads are started as needed and kept.
 */
#ifndef COPIER_H
#define COPIER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct Copier Copier;
typedef struct CopierJob CopierJob;

/* Embedded in what the job needs; zeroed but for the first two. */
struct CopierJob {
  /* May outlast whoever asked for it, and the disk.  Returns what copier_run
   * does. */
  int (*fn) (CopierJob *job);
  void (*free) (CopierJob *job);
  /* The Copier's. */
  CopierJob *next;
  atomic_uint *late;
  pthread_cond_t cond;
  int result;
  enum { COPIER_QUEUED = 0, COPIER_RUNNING, COPIER_DONE, COPIER_LATE } state;
};

/* 0 for never, else a time of copier_now_ms. */
typedef int64_t CopierDeadline;
int64_t copier_now_ms (void);                   /* CLOCK_MONOTONIC */

Copier *copier_new (void);
/* NULL is fine.  Jobs that are late go on; when they end nothing of them is
 * freed, since what they refer to may be gone. */
void copier_free (Copier *copier);

/* Run job->fn and job->free: here if there is no deadline or no thread can be
 * had, else on a thread.  Returns what fn returned, or -ETIMEDOUT: then *late
 * has been incremented, and is decremented (and job freed) when fn has ended.
 * late: kept by something that the job holds a reference to. */
int copier_run (Copier *copier, CopierJob *job, CopierDeadline deadline,
                atomic_uint *late);
/* The same for as long as go_on says; it is asked every 100 ms, without a
 * lock. */
int copier_run_while (Copier *copier, CopierJob *job,
                      bool (*go_on) (void *opaque), void *opaque,
                      atomic_uint *late);

#endif
