/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "plugin/qmp-uint64.h"

/* How jansson writes what begins a marked one. */
#define MARK "\"\\u0000"

/* The end of a string that begins at text[i]; 0 if it has an escaped NUL. */
static size_t
string_end (const char *text, size_t length, size_t i)
{
  for (i++; i < length && text[i] != '"'; i++)
    if (text[i] == '\\') {
      if (length - i >= 6 && memcmp (text + i, "\\u0000", 6) == 0)
        return 0;
      i++;
    }
  return MIN (i + 1, length);
}

/* Whatever is made of letters and digits: also what is no number, which is left
 * to the parser. */
static void
append_word (GString *out, const char *word, size_t length)
{
  g_autofree char *s = g_strndup (word, length);
  size_t digits = s[0] == '-' ? 1 : 0;

  if (s[digits] >= '1' && s[digits] <= '9' &&
      strspn (s + digits, "0123456789") == length - digits) {
    errno = 0;
    g_ascii_strtoll (s, NULL, 10);
    if (errno == ERANGE) {
      errno = 0;
      if (digits == 0)
        g_ascii_strtoull (s, NULL, 10);
      g_string_append_printf (out, digits != 0 || errno == ERANGE ?
                              "%se0" : MARK "%s\"", s);
      return;
    }
  }
  g_string_append_len (out, word, length);
}

GString *
qmp_uint64_mark (const char *text, size_t length)
{
  GString *out = g_string_sized_new (length + 64);

  for (size_t i = 0, end; i < length; i = end) {
    if (text[i] == '"') {
      end = string_end (text, length, i);
      if (end == 0) {
        g_string_free (out, TRUE);
        return NULL;
      }
      g_string_append_len (out, text + i, end - i);
      continue;
    }
    for (end = i; end < length && (g_ascii_isalnum (text[end]) ||
                                   strchr ("+-.", text[end]) != NULL); end++)
      continue;
    if (end > i)
      append_word (out, text + i, end - i);
    else
      g_string_append_c (out, text[end++]);
  }
  return out;
}

bool
qmp_uint64_is (const json_t *value)
{
  return json_is_string (value) && json_string_length (value) > 0 &&
    json_string_value (value)[0] == '\0';
}

void
qmp_uint64_unmark (GString *line)
{
  char *from = strstr (line->str, MARK), *to = from;

  /* A quote before an escape begins a string: one in a string has a backslash
   * before it, and then what follows is no NUL, which only marked ones have. */
  while (from != NULL) {
    char *next;

    from += strlen (MARK);
    while (*from != '"')
      *to++ = *from++;
    from++;
    next = strstr (from, MARK);
    if (next == NULL)
      break;
    memmove (to, from, next - from);
    to += next - from;
    from = next;
  }
  if (from != NULL) {
    memmove (to, from, strlen (from) + 1);
    g_string_truncate (line, strlen (line->str));
  }
}
