/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* quit.h - the request to shut down: by signal, plugin, or the end of --run. */
#ifndef NBDFLEECE_QUIT_H
#define NBDFLEECE_QUIT_H

#include <stdbool.h>

/* Before anything else; SIGINT, SIGQUIT and SIGTERM are for this module from
 * then on, SIGHUP is for reload.h, SIGPIPE is ignored, SIGURG only wakes a
 * thread.  false: errno is set.
 *
 * While the server starts nobody looks at a request, and the plugin may take
 * its time: those signals end the process, at once or, where leaves_files, when
 * one comes again more than a moment later. */
bool quit_init (bool leaves_files);
/* From now on there are files to be removed at the end. */
void quit_leaves_files (void);
/* From now on requests are looked at. */
void quit_is_heeded (void);

/* Async-signal-safe, from any thread, any number of times. */
void quit_request (void);
bool quit_requested (void);

/* Block the signals in the calling thread, so that those which come between
 * here and the exec of another image are still there for it: quit_init lets
 * them in. */
bool quit_hold (void);

/* Somebody is in a hurry: the same signal has come again, more than a moment
 * later. */
bool quit_at_once (void);

/* Readable once it was requested; for poll. */
int quit_fd (void);

#endif /* NBDFLEECE_QUIT_H */
