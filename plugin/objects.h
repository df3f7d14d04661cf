/* SPDX-License-Identifier: BSD-3-Clause */
/* objects.h - object-add and -del: keys for TLS, and who may come with them.
 *
 * An object is what object-add was given.  Whoever uses one takes what it needs
 * at that moment: deleting an object changes nothing for listeners that are
 * there.
 *
 * Locking: a mutex of its own.
 */
#ifndef OBJECTS_H
#define OBJECTS_H

#include <stdbool.h>
#include <glib.h>
#include <jansson.h>

/* args: of object-add, checked by its table.  Errors are QEMU's. */
bool object_add (json_t *args, GError **error);
bool object_del (const char *id, GError **error);

/* The arguments that made it, a new reference; the caller does not change them.
 * endpoint: "server" or "client".  NULL: there is no such object of that
 * kind. */
json_t *object_find_creds (const char *id, const char *endpoint,
                           GError **error);
json_t *object_find_authz (const char *id, GError **error);
/* The file of keys of tls-creds-psk; the caller frees it. */
char *object_psk_file (json_t *object);

/* For the next image of the server: all of them; NULL: none. */
json_t *object_save (void);
void object_restore (json_t *saved);
/* At the end. */
void object_delete_all (void);

#endif /* OBJECTS_H */
