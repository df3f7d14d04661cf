/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "quit.h"
#include "reload.h"

static atomic_bool requested, at_once;
static int event = -1;

/* What a signal does; it only ever goes up. */
enum stage { ENDS_PROCESS, ENDS_PROCESS_NEXT_TIME, REQUESTS };
static _Atomic (enum stage) stage = ENDS_PROCESS;

void
quit_leaves_files (void)
{
  atomic_store (&stage, ENDS_PROCESS_NEXT_TIME);
}

void
quit_is_heeded (void)
{
  atomic_store (&stage, REQUESTS);
}

void
quit_request (void)
{
  int saved_errno = errno;
  uint64_t one = 1;
  ssize_t r;

  atomic_store (&requested, true);
  r = write (event, &one, sizeof one);  /* can only fail when it is set */
  (void) r;
  errno = saved_errno;
}

bool
quit_requested (void)
{
  return atomic_load_explicit (&requested, memory_order_relaxed);
}

bool
quit_at_once (void)
{
  return atomic_load (&at_once);
}

int
quit_fd (void)
{
  return event;
}

/* A terminal or a service manager may send the same one to all of us at once,
 * and --run and --exit-with-parent send theirs as well. */
#define MOMENT_NS 500000000

/* Of the first: by signal, CLOCK_MONOTONIC in ns; 0: it has not come. */
static atomic_int_fast64_t first[NSIG];

static void
on_signal (int signum)
{
  int saved_errno = errno;
  enum stage now_in = atomic_load (&stage);
  int_fast64_t none = 0, now;
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  now = ts.tv_sec * INT64_C (1000000000) + ts.tv_nsec;
  if (!atomic_compare_exchange_strong (&first[signum], &none, now) &&
      now - none > MOMENT_NS)
    atomic_store (&at_once, true);
  if (now_in == ENDS_PROCESS ||
      (now_in == ENDS_PROCESS_NEXT_TIME && atomic_load (&at_once))) {
    signal (signum, SIG_DFL);
    raise (signum);             /* comes when this returns */
  }
  quit_request ();
  errno = saved_errno;
}

static void
on_wake_up (int signum)
{
}

static bool
set_mask (int how)
{
  sigset_t set;

  sigemptyset (&set);
  sigaddset (&set, SIGHUP);
  sigaddset (&set, SIGINT);
  sigaddset (&set, SIGQUIT);
  sigaddset (&set, SIGTERM);
  return pthread_sigmask (how, &set, NULL) == 0;
}

bool
quit_init (bool leaves_files)
{
  /* Handlers rather than a blocked mask and signalfd: a mask would be inherited
   * by what plugins execute (the sh plugin's scripts). */
  struct sigaction sa = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
  struct sigaction reload = { .sa_handler = reload_on_signal,
                              .sa_flags = SA_RESTART };
  struct sigaction wake_up = { .sa_handler = on_wake_up,
                               .sa_flags = SA_RESTART };
  struct sigaction ignore = { .sa_handler = SIG_IGN };

  if (leaves_files)
    quit_leaves_files ();
  event = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  return event != -1 &&
    sigaction (SIGINT, &sa, NULL) == 0 &&
    sigaction (SIGQUIT, &sa, NULL) == 0 &&
    sigaction (SIGTERM, &sa, NULL) == 0 &&
    sigaction (SIGHUP, &reload, NULL) == 0 &&
    sigaction (SIGURG, &wake_up, NULL) == 0 &&
    sigaction (SIGPIPE, &ignore, NULL) == 0 &&
    set_mask (SIG_UNBLOCK);     /* see quit_hold */
}

bool
quit_hold (void)
{
  return set_mask (SIG_BLOCK);
}
