/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "bitmap/bitmap-error.h"
#include "plugin/commands.h"
#include "plugin/lease.h"
#include "plugin/plugin.h"
#include "plugin/thread.h"

/* Of a lease, between two looks at the counters. */
#define LOOKS 4

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_cond_t changed;
/* Under lock. */
static bool stop, renewed;

static pthread_t thread;        /* start and stop: the main thread's */
static bool started;

static void
init_once (void)
{
  thread_cond_init (&changed);
}

static int64_t
now_ms (void)
{
  struct timespec now;

  clock_gettime (CLOCK_MONOTONIC, &now);
  return (int64_t) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Grows with each read or block status that was answered. */
static uint64_t
count_use (const Backup *backup)
{
  uint64_t used = 0;

  for (size_t i = 0; i < backup->disks->len; i++) {
    const BackupDisk *bd = backup->disks->pdata[i];

    used += atomic_load (&bd->served->bytes_read) +
      atomic_load (&bd->served->extents);
  }
  return used;
}

static int64_t
lease_ms (const Backup *backup)
{
  return (int64_t) atomic_load (&backup->lease) * 1000;
}

void
lease_renew (Backup *backup)
{
  atomic_store (&backup->lease_end_ms, now_ms () + lease_ms (backup));
  pthread_once (&once, init_once);
  SCOPED_LOCK (&lock);
  renewed = true;
  pthread_cond_signal (&changed);
}

unsigned
lease_left (Backup *backup)
{
  int64_t left = atomic_load (&backup->lease_end_ms) - now_ms ();

  /* Used since it was last looked at. */
  if (count_use (backup) != atomic_load (&backup->lease_used))
    left = lease_ms (backup);
  return left > 0 ? (unsigned) ((left + 999) / 1000) : 0;
}

static void
expire (Backup *backup)
{
  g_autoptr (GError) error = NULL;

  nbdkit_error ("warning: backup '%s' was not used for its lease of %u s: it "
                "ends as failed", backup->id, atomic_load (&backup->lease));
  if (!command_end_backup (backup, true, &error)) {
    if (error == NULL)          /* somebody else has ended it */
      return;
    nbdkit_error ("warning: %s", error->message);
  }
  if (atomic_load (&backup->ended))
    control_event (plugin.control, "BACKUP_EXPIRED",
                   json_pack ("{s:s, s:I}", "id", backup->id, "lease",
                              (json_int_t) atomic_load (&backup->lease)));
  else                          /* tried again */
    lease_renew (backup);
}

/* Returns when to look again. */
static int64_t
look_at (Backup *backup)
{
  uint64_t used = count_use (backup);
  int64_t now = now_ms (), end, next;

  if (used != atomic_load (&backup->lease_used)) {
    atomic_store (&backup->lease_used, used);
    atomic_store (&backup->lease_end_ms, now + lease_ms (backup));
  }
  end = atomic_load (&backup->lease_end_ms);
  if (now >= end) {
    expire (backup);
    return now;
  }
  next = now + MAX (lease_ms (backup) / LOOKS, 1);
  return MIN (next, end);
}

/* INT64_MAX: there is no lease. */
static int64_t
look_at_all (void)
{
  g_autoptr (GPtrArray) backups = backup_table_list (plugin.backups);
  int64_t next = INT64_MAX;

  for (guint i = 0; i < backups->len; i++) {
    Backup *backup = backups->pdata[i];

    if (atomic_load (&backup->lease) > 0)
      next = MIN (next, look_at (backup));
  }
  return next;
}

static void
wait_until_locked (int64_t when_ms)
{
  struct timespec until = {
    .tv_sec = when_ms / 1000, .tv_nsec = when_ms % 1000 * 1000000
  };

  if (when_ms == INT64_MAX)
    pthread_cond_wait (&changed, &lock);
  else
    pthread_cond_timedwait (&changed, &lock, &until);
}

static void *
lease_thread (void *opaque)
{
  for (;;) {
    int64_t next = look_at_all ();
    SCOPED_LOCK (&lock);

    while (!stop && !renewed && now_ms () < next)
      wait_until_locked (next);
    renewed = false;
    if (stop)
      return NULL;
  }
}

bool
lease_start (GError **error)
{
  g_autoptr (GPtrArray) backups = backup_table_list (plugin.backups);
  int err;

  for (guint i = 0; i < backups->len; i++)
    lease_renew (backups->pdata[i]);
  pthread_once (&once, init_once);
  err = thread_create (&thread, lease_thread, NULL);
  started = err == 0;
  if (started)
    return true;
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NO_MEMORY,
               "cannot start the thread of leases: %s", strerror (err));
  return false;
}

void
lease_stop (void)
{
  if (!started)
    return;
  pthread_mutex_lock (&lock);
  stop = true;
  pthread_cond_signal (&changed);
  pthread_mutex_unlock (&lock);
  pthread_join (thread, NULL);
  started = false;
}
