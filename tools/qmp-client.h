/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qmp-client.h - one connection to a control socket that speaks QMP.
 *
 * What comes from the other side is not believed: an object may have at most
 * QMP_MAX_OBJECT bytes, anything that is not a JSON object ends the
 * connection with an error, and texts are escaped and cut before they get into
 * an error message.
 *
 * Locking: none; one thread owns a Qmp.
 */
#ifndef NBDFLEECE_QMP_CLIENT_H
#define NBDFLEECE_QMP_CLIENT_H

#include <stdbool.h>

#include <glib.h>
#include <jansson.h>

#define QMP_MAX_OBJECT ((size_t) 64 << 20)

typedef struct Qmp Qmp;

#define QMP_ERROR qmp_error_quark ()
GQuark qmp_error_quark (void);
enum {
  QMP_ERROR_CONNECT,            /* there is nobody to talk to */
  QMP_ERROR_PROTOCOL,           /* what came is not QMP, or the server left */
  QMP_ERROR_REFUSED             /* the server's own error; message = its desc */
};

/* Connects, reads the greeting (within 10 s: something that says nothing is no
 * QMP server) and negotiates.
 */
Qmp *qmp_connect (const char *path, GError **error);
/* For a server that is about to be replaced: waits until it closes the
 * connection, and connects to the same path.  qmp itself stays. */
Qmp *qmp_connect_again (Qmp *qmp, GError **error);
void qmp_free (Qmp *qmp);                       /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Qmp, qmp_free)

/* The "QMP" member of the greeting; borrowed. */
json_t *qmp_greeting (const Qmp *qmp);

/* Runs one command and waits for its reply, however long that takes; events
 * in between go to the handler.  Takes arguments (an object, or NULL for none).
 * Returns the "return" member, the caller's (json_decref), or NULL.
 */
json_t *qmp_execute (Qmp *qmp, const char *command, json_t *arguments,
                     GError **error);

/* Called by qmp_execute for each event that arrives before its reply; borrowed.
 * NULL: they are dropped, as at the start.
 */
void qmp_set_event_handler (Qmp *qmp,
                            void (*handler) (void *opaque,
                                             const json_t *event),
                            void *opaque);

/* For raw use: sends one object as it is; receives the next, whether reply or
 * event.  The caller's; NULL with *error, also when the server has closed.
 */
bool qmp_send (Qmp *qmp, const json_t *object, GError **error);
json_t *qmp_receive (Qmp *qmp, GError **error);

#endif /* NBDFLEECE_QMP_CLIENT_H */
