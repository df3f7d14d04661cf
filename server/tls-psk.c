/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <string.h>

#include <gnutls/crypto.h>

#include "tls-file.h"
#include "tls-psk.h"

/* Bytes of the key of a user who is not known: as psktool makes them. */
#define KEY_SIZE 32

struct TlsPsk {
  GHashTable *users;            /* name -> gnutls_datum_t, gnutls' memory */
};

static void
key_free (void *ptr)
{
  gnutls_datum_t *key = ptr;

  if (key->data != NULL)
    gnutls_memset (key->data, 0, key->size);
  gnutls_free (key->data);
  g_free (key);
}

void
tls_psk_free (TlsPsk *psk)
{
  if (psk == NULL)
    return;
  g_hash_table_unref (psk->users);
  g_free (psk);
}

/* As gnutls' own files have it: behind a '#' the name is in hexadecimal, for
 * names with a colon or a line's end in them.  NULL: it is not, or has a
 * NUL. */
static char *
user_name (char *text)
{
  const gnutls_datum_t hex = { (unsigned char *) text + 1, strlen (text) - 1 };
  gnutls_datum_t raw;
  char *name = NULL;

  if (*text != '#')
    return *text ? g_strdup (text) : NULL;
  if (hex.size == 0 || gnutls_hex_decode2 (&hex, &raw) < 0)
    return NULL;
  if (raw.size > 0 && memchr (raw.data, 0, raw.size) == NULL)
    name = g_strndup ((char *) raw.data, raw.size);
  gnutls_free (raw.data);
  return name;
}

/* line: without its end; changed.  NULL: fine; else what is wrong. */
static const char *
add_user (TlsPsk *psk, char *line)
{
  char *colon = strrchr (line, ':');
  g_autofree char *name = NULL;
  gnutls_datum_t hex, *key;

  if (*line == '\0')
    return NULL;
  if (colon == NULL)
    return "is not USER:HEXKEY";
  *colon = '\0';
  name = user_name (line);
  if (name == NULL)
    return "has no valid user name";
  if (g_hash_table_contains (psk->users, name))
    return "has a user who is in a line above";
  hex = (gnutls_datum_t) { (unsigned char *) colon + 1, strlen (colon + 1) };
  key = g_new0 (gnutls_datum_t, 1);
  if (hex.size == 0 || gnutls_hex_decode2 (&hex, key) < 0 || key->size == 0) {
    key_free (key);
    return "has no key in hexadecimal digits";
  }
  g_hash_table_insert (psk->users, g_steal_pointer (&name), key);
  return NULL;
}

static bool
parse (TlsPsk *psk, char *text, const char *file, GError **error)
{
  char *next;

  for (unsigned n = 1; text != NULL; n++, text = next) {
    const char *wrong;

    next = strchr (text, '\n');
    if (next != NULL)
      *next++ = '\0';
    if (*text && text[strlen (text) - 1] == '\r')
      text[strlen (text) - 1] = '\0';
    wrong = add_user (psk, text);
    if (wrong != NULL) {
      g_set_error (error, TLS_ERROR, 0, "line %u of '%s' %s", n, file, wrong);
      return false;
    }
  }
  if (g_hash_table_size (psk->users) == 0) {
    g_set_error (error, TLS_ERROR, 0, "'%s' has no user", file);
    return false;
  }
  return true;
}

TlsPsk *
tls_psk_load (const char *file, GError **error)
{
  g_autoptr (TlsPsk) psk = g_new0 (TlsPsk, 1);
  gnutls_datum_t content;
  bool ok;

  psk->users = g_hash_table_new_full (g_str_hash, g_str_equal, g_free,
                                      key_free);
  if (!tls_file_read (file, &content, error))
    return NULL;
  ok = memchr (content.data, 0, content.size) == NULL;
  if (!ok)
    g_set_error (error, TLS_ERROR, 0, "'%s' is not a text file", file);
  else
    ok = parse (psk, (char *) content.data, file, error);
  tls_file_clear (&content);
  return ok ? g_steal_pointer (&psk) : NULL;
}

bool
tls_psk_find (const TlsPsk *psk, const gnutls_datum_t *user,
              gnutls_datum_t *out_key)
{
  g_autofree char *name = memchr (user->data, 0, user->size) ? NULL :
    g_strndup ((const char *) user->data, user->size);
  const gnutls_datum_t *key = name ? g_hash_table_lookup (psk->users, name) :
    NULL;

  out_key->size = key ? key->size : KEY_SIZE;
  out_key->data = gnutls_malloc (out_key->size);
  if (out_key->data == NULL)
    return false;
  if (key != NULL)
    memcpy (out_key->data, key->data, key->size);
  else if (gnutls_rnd (GNUTLS_RND_KEY, out_key->data, out_key->size) < 0) {
    gnutls_free (out_key->data);
    return false;
  }
  return true;
}
