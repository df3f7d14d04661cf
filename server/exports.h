/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* exports.h - the list that a plugin's .list_exports fills.
 *
 * The type and three of its functions are nbdkit's: plugins call them (the
 * free function is referred to by every plugin of nbdkit's own).
 */
#ifndef NBDFLEECE_EXPORTS_H
#define NBDFLEECE_EXPORTS_H

#include <stdbool.h>
#include <stddef.h>

struct nbdkit_exports;

struct export_entry {
  char *name;
  char *description;            /* or NULL */
};

/* More than this is a plugin that lost count. */
#define EXPORTS_MAX 10000

struct nbdkit_exports *exports_new (void);
size_t exports_count (const struct nbdkit_exports *exports);
const struct export_entry *exports_get (const struct nbdkit_exports *exports,
                                        size_t i);

/* nbdkit_use_default_export was called: the caller finds out the name (NULL:
 * there is none, and nothing is added) and says it. */
bool exports_wants_default (const struct nbdkit_exports *exports);
void exports_set_default (struct nbdkit_exports *exports, const char *name);

void nbdkit_exports_free (struct nbdkit_exports *exports);
int nbdkit_add_export (struct nbdkit_exports *exports, const char *name,
                       const char *description);
int nbdkit_use_default_export (struct nbdkit_exports *exports);

#endif /* NBDFLEECE_EXPORTS_H */
