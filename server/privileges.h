/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* privileges.h - -u and -g: start as root, serve as somebody else.
 *
 * From privileges_begin on, we are that user (so that what is made belongs to
 * him: folders, maps, sockets), but with root's capabilities still in effect
 * (so that disks, and ports below 1024, can be opened).  privileges_drop takes
 * these away for good, before any client is served.
 */
#ifndef NBDFLEECE_PRIVILEGES_H
#define NBDFLEECE_PRIVILEGES_H

#include <stdbool.h>
#include <sys/types.h>

#include <glib.h>

/* Names or numbers; NULL: not given. */
bool privileges_set (const char *user, const char *group, GError **error);
/* Were any of them given? */
bool privileges_are_set (void);
/* As whom we are going to serve; -1: as now. */
void privileges_get (uid_t *out_uid, gid_t *out_gid);

bool privileges_begin (GError **error);
bool privileges_drop (GError **error);

#endif /* NBDFLEECE_PRIVILEGES_H */
