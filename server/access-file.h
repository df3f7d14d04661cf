/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* access-file.h - the rules of --access=FILE.
 *
 *   [allow NAME]            one a rule; the first that matches decides
 *   role=backup             further conditions: listener, uid, gid, address,
 *   uid=backup;0            tls-name, psk-user, export; several values are
 *   export=vda@*;vdb@*      separated by semicolons
 *   readonly=true           where the export itself could be written
 *
 * From any thread: the rules are replaced as a whole.
 */
#ifndef NBDFLEECE_ACCESS_FILE_H
#define NBDFLEECE_ACCESS_FILE_H

#include "access.h"

/* Rules from this file hold from now on.  false: those from before do. */
bool access_file_load (const char *path, GError **error);
/* Once more what was loaded last; true if nothing was. */
bool access_file_reload (GError **error);

/* Of AccessRule *, a new reference; NULL: there is no file. */
GPtrArray *access_file_rules (void);

/* In access.c: a number or a name. */
bool access_parse_uid (const char *value, uid_t *out, GError **error);
bool access_parse_gid (const char *value, gid_t *out, GError **error);

#endif /* NBDFLEECE_ACCESS_FILE_H */
