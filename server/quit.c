/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "quit.h"

static atomic_bool requested;
static int event = -1;

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

int
quit_fd (void)
{
  return event;
}

static void
on_signal (int signum)
{
  quit_request ();
}

static bool
set_mask (int how)
{
  sigset_t set;

  sigemptyset (&set);
  sigaddset (&set, SIGINT);
  sigaddset (&set, SIGQUIT);
  sigaddset (&set, SIGTERM);
  return pthread_sigmask (how, &set, NULL) == 0;
}

bool
quit_init (void)
{
  /* Handlers rather than a blocked mask and signalfd: a mask would be inherited
   * by what plugins execute (the sh plugin's scripts). */
  struct sigaction sa = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
  struct sigaction ignore = { .sa_handler = SIG_IGN };

  event = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  return event != -1 &&
    sigaction (SIGINT, &sa, NULL) == 0 &&
    sigaction (SIGQUIT, &sa, NULL) == 0 &&
    sigaction (SIGTERM, &sa, NULL) == 0 &&
    sigaction (SIGPIPE, &ignore, NULL) == 0 &&
    set_mask (SIG_UNBLOCK);     /* see quit_hold */
}

bool
quit_hold (void)
{
  return set_mask (SIG_BLOCK);
}
