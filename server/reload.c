/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

#include "listen.h"
#include "log.h"
#include "notify.h"
#include "reload.h"

#define MAX_HOOKS 8

static struct {
  const char *what;
  bool (*fn) (void);
} hooks[MAX_HOOKS];
static size_t nr_hooks;
static atomic_bool requested;

void
reload_add (const char *what, bool (*fn) (void))
{
  assert (nr_hooks < MAX_HOOKS);
  hooks[nr_hooks].what = what;
  hooks[nr_hooks++].fn = fn;
}

void
reload_on_signal (int signum)
{
  int saved_errno = errno;

  atomic_store (&requested, true);
  listen_wake ();               /* only a write */
  errno = saved_errno;
}

void
reload_if_requested (void)
{
  if (!atomic_exchange (&requested, false))
    return;
  notify_reloading ("reading files again");
  for (size_t i = 0; i < nr_hooks; i++) {
    bool ok = hooks[i].fn ();

    log_debug ("read again: %s: %s", hooks[i].what, ok ? "done" : "failed");
  }
  notify_ready ();
}
