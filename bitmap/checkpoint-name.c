/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* checkpoint-name.c - which names people may give. */
#include "config.h"

#include <string.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/checkpoint.h"

#define ID_MAX     64           /* bytes */
#define BITMAP_MAX 1023         /* bytes, as in QEMU */
#define SHOWN_MAX  64           /* bytes of a bad name in an error */

/* The name, fit for an error message. */
static char *
shown (const char *name)
{
  g_autofree char *head = g_strndup (name, SHOWN_MAX);
  g_autofree char *escaped = g_strescape (head, NULL);

  return g_strconcat (escaped, strlen (name) > SHOWN_MAX ? "..." : "", NULL);
}

static bool
refuse (const char *what, const char *name, const char *why, GError **error)
{
  g_autofree char *text = shown (name);

  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID, "%s '%s' %s", what,
               text, why);
  return false;
}

bool
name_check_id (const char *what, const char *name, GError **error)
{
  size_t length = strlen (name);

  if (length == 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID, "%s is empty",
                 what);
    return false;
  }
  if (length > ID_MAX)
    return refuse (what, name, "is longer than 64 bytes", error);
  if (strcmp (name, ".") == 0 || strcmp (name, "..") == 0)
    return refuse (what, name, "is not allowed", error);
  for (const char *p = name; *p != '\0'; p++)
    if (!g_ascii_isalnum (*p) && strchr ("._-", *p) == NULL)
      return refuse (what, name, "has a character other than A-Z a-z 0-9 . _ -",
                     error);
  return true;
}

bool
name_check_bitmap (const char *what, const char *name, GError **error)
{
  size_t length = strlen (name);

  if (length == 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID, "%s is empty",
                 what);
    return false;
  }
  if (length > BITMAP_MAX)
    return refuse (what, name, "is longer than 1023 bytes", error);
  if (!g_utf8_validate (name, (gssize) length, NULL))
    return refuse (what, name, "is not UTF-8", error);
  for (const char *p = name; *p != '\0'; p = g_utf8_next_char (p))
    if (g_unichar_iscntrl (g_utf8_get_char (p)))
      return refuse (what, name, "has a control character", error);
  return true;
}
