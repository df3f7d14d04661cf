/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ctl-lease.h - keeps a backup's lease while this program is at it, however
 * long a step takes in which nothing is read.
 *
 * A thread with a connection of its own for each renewal: the server may be
 * replaced, or away for a while.
 */
#ifndef NBDFLEECE_CTL_LEASE_H
#define NBDFLEECE_CTL_LEASE_H

#include <glib.h>

typedef struct Lease Lease;

/* seconds: the lease that the backup has, at least 1.  NULL: no thread can be
 * had; then reading the backup has to do. */
Lease *lease_keep (const char *control, const char *id, unsigned seconds);
void lease_drop (Lease *lease);                 /* NULL is fine */

#endif /* NBDFLEECE_CTL_LEASE_H */
