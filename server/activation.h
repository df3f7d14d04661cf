/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* activation.h - sockets that the service manager has made: LISTEN_FDS,
 * LISTEN_PID and LISTEN_FDNAMES, as systemd passes them (sd_listen_fds(3)).
 *
 * The main thread's, before it makes others.
 */
#ifndef NBDFLEECE_ACTIVATION_H
#define NBDFLEECE_ACTIVATION_H

#include <stdbool.h>

#include <glib.h>

/* Read the variables, and remove them: children shall not find them.  false:
 * they are for us, and wrong. */
bool activation_init (GError **error);

/* How many there are. */
unsigned activation_count (void);
/* Of the i-th: its number, close-on-exec; its name, "" if it was not told. */
int activation_fd (unsigned i);
const char *activation_name (unsigned i);

#endif /* NBDFLEECE_ACTIVATION_H */
