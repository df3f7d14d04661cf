/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* endpoints.h - everything that the command line and the service manager say to
 * listen on, and how clients find it.  The main thread's.
 */
#ifndef NBDFLEECE_ENDPOINTS_H
#define NBDFLEECE_ENDPOINTS_H

#include "backend.h"
#include "command-line.h"

/* false: said; what was opened until then is still to be closed. */
bool endpoints_open (const struct command_line *cl);

/* Of the first: its URI for that export (caller frees), the path of its Unix
 * socket or "", and its port or 0. */
char *endpoints_uri (const char *export);
const char *endpoints_unix_path (void);
unsigned endpoints_port (void);

/* To standard output, a line for each listener and export that it offers; where
 * exports cannot be listed, of the default one. */
void endpoints_print_uris (Backend *b, bool readonly);

/* The folder of -U -, which is to be removed at the end; NULL: none. */
void endpoints_take_private_folder (const char *folder);
char *endpoints_steal_private_folder (void);
/* Socket files are gone. */
void endpoints_close (void);

#endif /* NBDFLEECE_ENDPOINTS_H */
