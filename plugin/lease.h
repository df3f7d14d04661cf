/* SPDX-License-Identifier: BSD-3-Clause */
/* lease.h - the end of backups that their client has forgotten.
 *
 * A backup with a lease of N seconds is ended when it has not been used for
 * that long: no read and no block status of its exports was answered, and
 * nobody has renewed it.  It ends as failed, since nobody has said that the
 * data were got: the checkpoint that was made with it goes.
 *
 * Who reads is found out by looking at the counters now and then, so that
 * requests cost nothing more; a backup ends N seconds after its last use or up
 * to a quarter later.  The time when no server runs does not count: with a
 * start all leases begin anew.
 *
 * Locking: a mutex of its own, a leaf.
 */
#ifndef LEASE_H
#define LEASE_H

#include <stdbool.h>
#include <glib.h>

#include "plugin/backup.h"

#define LEASE_MAX (366 * 24 * 3600)     /* seconds */

bool lease_start (GError **error);      /* the thread that ends them */
void lease_stop (void);                 /* waits for an end that is under way */

/* The lease of a published backup begins, or begins anew. */
void lease_renew (Backup *backup);

/* Seconds until a backup that has a lease ends, if it is not used: >= 0. */
unsigned lease_left (Backup *backup);

#endif
