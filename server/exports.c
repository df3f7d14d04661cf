/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <string.h>

#include "backend.h"
#include "exports.h"
#include "nbd-wire.h"

struct nbdkit_exports {
  GArray *entries;              /* struct export_entry */
  bool wants_default;
};

static void
entry_clear (void *p)
{
  struct export_entry *e = p;

  g_free (e->name);
  g_free (e->description);
}

struct nbdkit_exports *
exports_new (void)
{
  struct nbdkit_exports *exports = g_new0 (struct nbdkit_exports, 1);

  exports->entries = g_array_new (FALSE, FALSE, sizeof (struct export_entry));
  g_array_set_clear_func (exports->entries, entry_clear);
  return exports;
}

void
nbdkit_exports_free (struct nbdkit_exports *exports)
{
  if (exports == NULL)
    return;
  g_array_free (exports->entries, TRUE);
  g_free (exports);
}

size_t
exports_count (const struct nbdkit_exports *exports)
{
  return exports->entries->len;
}

const struct export_entry *
exports_get (const struct nbdkit_exports *exports, size_t i)
{
  return &g_array_index (exports->entries, struct export_entry, i);
}

bool
exports_wants_default (const struct nbdkit_exports *exports)
{
  return exports->wants_default;
}

void
exports_set_default (struct nbdkit_exports *exports, const char *name)
{
  exports->wants_default = false;
  if (name != NULL)
    nbdkit_add_export (exports, name, NULL);
}

int
nbdkit_add_export (struct nbdkit_exports *exports, const char *name,
                   const char *description)
{
  struct export_entry e;

  if (exports->entries->len >= EXPORTS_MAX) {
    nbdkit_error ("more than %d exports", EXPORTS_MAX);
    errno = EINVAL;
    return -1;
  }
  if (strlen (name) > NBD_MAX_STRING ||
      (description && strlen (description) > NBD_MAX_STRING)) {
    nbdkit_error ("export name or description is longer than %d bytes",
                  NBD_MAX_STRING);
    errno = EINVAL;
    return -1;
  }
  /* Nobody can ask for it: what is asked for has to be that. */
  if (!g_utf8_validate (name, -1, NULL)) {
    g_autofree char *shown = g_strescape (name, NULL);

    nbdkit_error ("warning: export '%s' is left out of the list: its name is "
                  "not UTF-8", shown);
    return 0;
  }
  e = (struct export_entry) { g_strdup (name), g_strdup (description) };
  g_array_append_val (exports->entries, e);
  return 0;
}

int
nbdkit_use_default_export (struct nbdkit_exports *exports)
{
  exports->wants_default = true;
  return 0;
}
