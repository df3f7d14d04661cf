/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tests/sim-disk-internal.h"

void
sim_disk_arm (uint64_t crash_at)
{
  pthread_mutexattr_t attr;

  pthread_mutexattr_init (&attr);
  pthread_mutexattr_setpshared (&attr, PTHREAD_PROCESS_SHARED);
  pthread_mutex_init (&sim_shared->mutex, &attr);
  pthread_mutexattr_destroy (&attr);
  sim_shared->calls = 0;
  sim_shared->crash_at = crash_at;
}

uint64_t
sim_disk_calls (void)
{
  return sim_shared->calls;
}

void
sim_disk_slow_syncs (unsigned us)
{
  sim_shared->sync_delay_us = us;
}

void
sim_disk_fault (const SimFault *fault)
{
  pthread_mutex_lock (&sim_shared->mutex);
  sim_shared->fault = fault != NULL ? *fault : (SimFault) { .at = UINT64_MAX };
  sim_shared->fault_calls = sim_shared->fault_hits = 0;
  sim_shared->hit = 0;
  pthread_mutex_unlock (&sim_shared->mutex);
}

void
sim_disk_fault_lift (void)
{
  pthread_mutex_lock (&sim_shared->mutex);
  sim_shared->fault.at = UINT64_MAX;
  pthread_mutex_unlock (&sim_shared->mutex);
}

uint64_t
sim_disk_fault_calls (void)
{
  return sim_shared->fault_calls;
}

unsigned
sim_disk_fault_hit (void)
{
  unsigned hit;

  pthread_mutex_lock (&sim_shared->mutex);
  hit = sim_shared->hit;
  pthread_mutex_unlock (&sim_shared->mutex);
  return hit;
}

static unsigned
kind_of_path (const char *path)
{
  if (strstr (path, "/maps/") != NULL)
    return g_str_has_suffix (path, ".i") ? SIM_HIT_INTENTS : SIM_HIT_MAP;
  if (g_str_has_prefix (path, "/images"))
    return SIM_HIT_IMAGE;
  return strstr (path, "/scratch") != NULL ? SIM_HIT_SCRATCH : SIM_HIT_STATE;
}

/* Is this call one that the fault is for? */
static bool
is_target (const char *path, unsigned what)
{
  const SimFault *fault = &sim_shared->fault;

  if (fault->at == UINT64_MAX ||
      (fault->err == ENOSPC && !(what & (ALLOCATES | SYNCS))))
    return false;
  for (unsigned i = 0; i < SIM_FAULT_TARGETS; i++)
    if (fault->target[i][0] != '\0' &&
        g_str_has_prefix (path, fault->target[i]))
      return true;
  return false;
}

/* The mutex is held.  0 or -errno. */
static int
fault_locked (const char *path, unsigned what)
{
  const SimFault *fault = &sim_shared->fault;
  uint64_t nr;

  if (!is_target (path, what))
    return 0;
  nr = sim_shared->fault_calls++;
  if (nr < fault->at || (nr > fault->at && !fault->for_good))
    return 0;
  sim_shared->hit |= kind_of_path (path);
  sim_shared->fault_hits++;
  if (fault->err != 0)
    return -fault->err;
  /* Slow: the others go on meanwhile. */
  pthread_mutex_unlock (&sim_shared->mutex);
  g_usleep (fault->delay_us);
  pthread_mutex_lock (&sim_shared->mutex);
  return 0;
}

int
sim_begin (const char *path, unsigned what)
{
  if ((what & SYNCS) && sim_shared->sync_delay_us > 0)
    g_usleep (g_random_int_range (0, (gint32) sim_shared->sync_delay_us));
  pthread_mutex_lock (&sim_shared->mutex);
  if ((what & CHANGES) && sim_shared->calls++ == sim_shared->crash_at)
    /* By the kernel alone: TSan would first look for threads that have ended
     * and nobody has joined yet, and call them a leak. */
    syscall (SYS_exit_group, SIM_CRASHED);
  return fault_locked (path, what);
}

void
sim_end (void)
{
  pthread_mutex_unlock (&sim_shared->mutex);
}
