/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* progress.h - a progress bar on a terminal, or lines in a log.
 *
 * Locking: none; one thread owns a Progress.  It writes to stderr only and
 * leaves an empty line behind, so that messages printed after
 * progress_clear () start at the left edge.
 */
#ifndef NBDFLEECE_PROGRESS_H
#define NBDFLEECE_PROGRESS_H

#include <stdint.h>

#include <glib.h>

typedef struct Progress Progress;

enum progress_style {
  PROGRESS_NONE,                /* draws nothing */
  PROGRESS_BAR,                 /* one line, redrawn: for a terminal */
  PROGRESS_LINES                /* a line whenever a whole percent is gained */
};

/* verb: what is going on ("copying", "verifying"); borrowed. */
Progress *progress_new (enum progress_style style, const char *verb);
void progress_free (Progress *p);               /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Progress, progress_free)

/* done of total bytes are done; total may change between calls as more becomes
 * known.  Draws at most ten times a second, and whatever the clock when done
 * reaches total.
 */
void progress_update (Progress *p, uint64_t done, uint64_t total);

/* The line that a bar would be, without drawing it; for pictures of several,
 * with PROGRESS_NONE.  What is done by the first call is not part of the rate.
 * g_free.
 */
char *progress_text (Progress *p, uint64_t done, uint64_t total);

/* Take the bar off the screen, for a message or at the end. */
void progress_clear (Progress *p);

#endif /* NBDFLEECE_PROGRESS_H */
