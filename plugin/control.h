/* SPDX-License-Identifier: BSD-3-Clause */
/* control.h - the control channel: QMP for several clients at once.
 *
 * One thread does all socket I/O and never waits for a command; each client has
 * a thread that runs its commands in order, so that a long one (backup-begin
 * waits for guest writes) holds up nobody else.  What a client may make us hold
 * is bounded: requests are not read while CONTROL_MAX_QUEUED of them wait or
 * while replies wait to be read, and a client that does not read its events
 * loses the newest; it is told how many (EVENTS_LOST) once it reads again.
 *
 * Locking: one mutex, a leaf: never held across I/O or a command.
 */
#ifndef CONTROL_H
#define CONTROL_H

#include <stdbool.h>
#include <glib.h>

#include "plugin/qmp.h"

#define CONTROL_MAX_CLIENTS 64          /* further ones wait for a greeting */
#define CONTROL_MAX_QUEUED 16           /* requests a client */
#define CONTROL_MAX_EVENT_BYTES (256 * 1024)    /* unread; then some get lost */

typedef struct Control Control;

/* Binds and listens; before the fork and before any thread.  fd: not -1, a
 * socket that an earlier image of the server has bound there: taken. */
Control *control_new (const char *path, int fd, GError **error);

/* Starts serving the commands of table (static). */
bool control_start (Control *control, const struct qmp_command *table,
                    GError **error);

/* To every negotiated client.  data: stolen; NULL: none.  Any thread; does not
 * wait. */
void control_event (Control *control, const char *name, json_t *data);

/* For the command quit, from its own function: its reply is sent by
 * control_stop, behind all events, and then its client is closed. */
void control_quit (struct qmp_session *session);

/* Waits for the commands that are running and lets no other one begin; events
 * still go out.  Not from a command.  NULL is fine. */
void control_drain (Control *control);

/* Announces the shutdown, waits for commands that are running, sends what is
 * still queued (for 2 s at most), closes all clients. */
void control_stop (Control *control);

/* After control_stop: the listening socket, and leave it to somebody else:
 * control_free neither closes nor removes it then. */
int control_fd (const Control *control);
void control_forget_socket (Control *control);

/* Also removes the socket.  After control_stop, or without control_start.  NULL
 * is fine. */
void control_free (Control *control);

#endif
