/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* reexec.h - replace the program while clients stay connected.
 *
 * In this order:
 *
 *  1. reexec_schedule (any thread) runs the program at its own path twice, as a
 *     question: does it know our version of handover.h, and does it take our
 *     arguments?  Until it has answered, nothing changes.
 *  2. listen_run returns; conn_park_all stops all clients at the border of a
 *     request, after everything in flight was answered; handles are closed.
 *  3. The plugin is unloaded as at any other end: for it, this is one.  In
 *     .cleanup it may leave files to itself (metacontext.h, file_keep).
 *  4. reexec_exec: the same process executes the program with its first
 *     arguments in its first folder.  Sockets stay open; what they are is in a
 *     memfd that the environment variable REEXEC_VARIABLE names.
 *  5. The new image starts as usual, but binds and forks nothing; it opens the
 *     handles again, by name, selects their contexts, and goes on.
 *
 * The environment variable holds VERSION:FD, and is removed at once.
 */
#ifndef NBDFLEECE_REEXEC_H
#define NBDFLEECE_REEXEC_H

#include <stdbool.h>

#include <glib.h>

#include "handover.h"

#define REEXEC_VARIABLE "NBDFLEECE_HANDOVER"

/* First of all, by the main thread.  argv: before getopt has changed it.
 * false: there is something to take over, but it cannot be. */
bool reexec_init (int argc, char **argv, GError **error);

/* What an earlier image has left; NULL: nothing, an ordinary start. */
const Handover *reexec_inherited (void);
/* The clients are served: forget what they had sent. */
void reexec_forget_conns (void);

/* Check, and have listen_run return.  From any thread after the fork; takes the
 * time of two starts of the program.  false: nothing has changed. */
bool reexec_schedule (GError **error);
bool reexec_scheduled (void);

/* It is not possible in this process, for a reason that is a phrase.  Before
 * the fork. */
void reexec_forbid (const char *why);

/* Where the parts of the server put what they leave; NULL: not (yet). */
Handover *reexec_begin (void);
Handover *reexec_outgoing (void);

/* metacontext.h's file_keep and file_take. */
bool reexec_keep_file (const char *name, int fd);
int reexec_take_file (const char *name);

/* No other thread is left.  Returns only if it has failed, and has said so. */
void reexec_exec (void);

#endif /* NBDFLEECE_REEXEC_H */
