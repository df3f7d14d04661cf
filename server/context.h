/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* context.h - on whose behalf this thread is running.
 *
 * The functions that plugins call take no handle: nbdkit_export_name and
 * others find the client here.  Whoever starts to work for a connection (or for
 * another handle of it) sets this; leaving it set is harmless as long as the
 * thread does not call a plugin for anybody else.
 */
#ifndef NBDFLEECE_CONTEXT_H
#define NBDFLEECE_CONTEXT_H

#include <stdbool.h>

struct conn;

struct thread_context {
  struct conn *conn;            /* NULL: not serving a client */
  const char *plugin_name;      /* for the log; set with conn */
  const char *export_name;      /* of the handle in use; NULL: none yet */
  bool in_handshake;            /* of conn: anybody may cause what is logged */
  int error;                    /* by nbdkit_set_error; 0: not called */
};

extern _Thread_local struct thread_context thread_context;

#endif /* NBDFLEECE_CONTEXT_H */
