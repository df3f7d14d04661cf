/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* notify.h - tell the service manager how far we are (sd_notify(3)).
 *
 * One datagram to the socket that $NOTIFY_SOCKET names, a path or, with @ in
 * front, an abstract name.  Without it these do nothing; what cannot be told is
 * logged.  The variable stays: the next image of the program needs it, too.
 */
#ifndef NBDFLEECE_NOTIFY_H
#define NBDFLEECE_NOTIFY_H

/* Clients can connect; also once more after notify_reloading. */
void notify_ready (void);
void notify_reloading (const char *status);
void notify_stopping (void);

#endif /* NBDFLEECE_NOTIFY_H */
