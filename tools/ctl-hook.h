/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ctl-hook.h - a command that freezes and thaws the guest's file systems.
 *
 * Whatever happens to the caller, the thaw is run: a process of its own (the
 * guard) runs the hook with "freeze", waits until the caller says that the cut
 * is done, has died, or has taken longer than the timeout, and runs the hook
 * with "thaw".  A hook that takes longer than the timeout is killed with all
 * that it has started.  Signals from the terminal do not reach the guard.
 *
 * Locking: none; one thread owns a Hook.
 */
#ifndef NBDFLEECE_CTL_HOOK_H
#define NBDFLEECE_CTL_HOOK_H

#include <stdbool.h>

#include <glib.h>

typedef struct Hook Hook;

/* Runs `sh -c 'COMMAND freeze'` and waits for it.  Never NULL; a failure is
 * said on stderr.
 */
Hook *hook_freeze (const char *command, unsigned timeout_s);
/* Thaws, and waits for that.  True if the guest was frozen all the time between
 * the two calls.  Frees the hook.
 */
bool hook_thaw (Hook *hook);

#endif /* NBDFLEECE_CTL_HOOK_H */
