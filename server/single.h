/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* single.h - -s: one client, on standard input and output. */
#ifndef NBDFLEECE_SINGLE_H
#define NBDFLEECE_SINGLE_H

#include <stdbool.h>

#include <glib.h>

/* First of all: the plugin shall neither read nor write there.  What it gets
 * instead is /dev/null. */
bool single_take_stdio (GError **error);
/* Is it -s? */
bool single_is_on (void);

/* Begin to serve; listen_run then returns when the client has left. */
bool single_start (GError **error);
/* The client is served no more: let it have what is on the way. */
void single_finish (void);

#endif /* NBDFLEECE_SINGLE_H */
