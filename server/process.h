/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* process.h - going into the background, and --run.
 *
 * In both the server runs in a child.  The parent waits until the child says
 * that it is ready, which is after .after_fork: so whoever started us learns of
 * a failure by our exit status, and can connect as soon as we are back.
 */
#ifndef NBDFLEECE_PROCESS_H
#define NBDFLEECE_PROCESS_H

#include <stdbool.h>

/* Fork, and become a daemon in the child.  Returns there only; the parent exits
 * when the child is ready or has failed.  On failure exits. */
void process_daemonize (void);

/* Fork; the parent runs the command by /bin/sh when the child is ready, then
 * stops the child and exits with the command's status.  env: name, value, ...,
 * NULL.  Returns in the child only. */
void process_captive (const char *command, const char *const *env);

/* In place of the two above, in an image that goes on in the process of an
 * earlier one: that has done all the rest. */
void process_resume (bool daemon);

/* Exit by SIGTERM when the parent process does. */
bool process_exit_with_parent (void);

/* Tell the waiting parent, if any; from then on standard streams are those of a
 * daemon. */
void process_ready (void);

#endif /* NBDFLEECE_PROCESS_H */
