/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* reload.h - SIGHUP: read again what can be read again while the server runs.
 *
 * Whoever has such a thing adds a function before listen_run.  They are called
 * in the order they were added, by the thread of listen_run, one after the
 * other; each reports its own failure, and keeps what it had then.
 */
#ifndef NBDFLEECE_RELOAD_H
#define NBDFLEECE_RELOAD_H

#include <stdbool.h>

/* what: a string that stays, for the log.  fn: false: failed. */
void reload_add (const char *what, bool (*fn) (void));

/* The signal's handler. */
void reload_on_signal (int signum);

/* Call them all, if it was requested since the last time. */
void reload_if_requested (void);

#endif /* NBDFLEECE_RELOAD_H */
