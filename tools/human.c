/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <inttypes.h>
#include <string.h>
#include <time.h>

#include <glib.h>

#include "tools/human.h"

static const char units[] = "KMGTPE";

char *
human_size (uint64_t bytes)
{
  double value = bytes;
  int unit = -1;

  if (bytes < 1024)
    return g_strdup_printf ("%" PRIu64 " B", bytes);
  /* 1023.95 would be printed as 1024.0 */
  while (value >= 1023.95 && units[unit + 1] != '\0') {
    value /= 1024;
    unit++;
  }
  if (unit < 0) {
    value /= 1024;
    unit = 0;
  }
  return g_strdup_printf ("%.1f %ciB", value, units[unit]);
}

bool
human_parse_uint (const char *text, uint64_t min, uint64_t max,
                  uint64_t *out_number)
{
  guint64 n;

  if (!g_ascii_string_to_unsigned (text, 10, min, max, &n, NULL))
    return false;
  *out_number = n;
  return true;
}

bool
human_parse_size (const char *text, uint64_t *out_bytes)
{
  size_t digits = strspn (text, "0123456789");
  const char *suffix = text + digits;
  g_autofree char *number = g_strndup (text, digits);
  unsigned shift = 0;
  uint64_t n;

  if (!human_parse_uint (number, 0, INT64_MAX, &n))
    return false;
  if (*suffix != '\0' && strcmp (suffix, "B") != 0) {
    const char *unit = strchr (units, g_ascii_toupper (*suffix));

    if (unit == NULL || (suffix[1] != '\0' && strcmp (suffix + 1, "B") != 0 &&
                         strcmp (suffix + 1, "iB") != 0))
      return false;
    shift = 10 * (unit - units + 1);
  }
  if (n > (uint64_t) INT64_MAX >> shift)
    return false;
  *out_bytes = n << shift;
  return true;
}

char *
human_duration (uint64_t seconds)
{
  uint64_t minutes = seconds / 60, hours = minutes / 60, days = hours / 24;

  if (days > 0)
    return g_strdup_printf ("%" PRIu64 "d %02" PRIu64 ":%02" PRIu64, days,
                            hours % 24, minutes % 60);
  if (hours > 0)
    return g_strdup_printf ("%" PRIu64 ":%02" PRIu64 ":%02" PRIu64, hours,
                            minutes % 60, seconds % 60);
  return g_strdup_printf ("%" PRIu64 ":%02" PRIu64, minutes, seconds % 60);
}

char *
human_time (int64_t seconds, bool utc)
{
  g_autoptr (GDateTime) t = utc ? g_date_time_new_from_unix_utc (seconds)
                                : g_date_time_new_from_unix_local (seconds);
  char *text = NULL;

  if (t != NULL)
    text = g_date_time_format (t, utc ? "%F %TZ" : "%F %T");
  return text != NULL ? text : g_strdup ("?");
}

char *
human_escape (const char *text, unsigned max)
{
  GString *out = g_string_new (NULL);
  const char *end = text + strlen (text);

  for (unsigned n = 0; text < end; n++) {
    gunichar c = g_utf8_get_char_validated (text, end - text);

    if (n == max) {
      g_string_append (out, "...");
      break;
    }
    if (c == (gunichar) -1 || c == (gunichar) -2 || !g_unichar_isprint (c)) {
      const char *next = c == (gunichar) -1 || c == (gunichar) -2
                           ? text + 1 : g_utf8_next_char (text);
      for (; text < next; text++)
        g_string_append_printf (out, "\\x%02x", (unsigned char) *text);
      continue;
    }
    g_string_append_unichar (out, c);
    text = g_utf8_next_char (text);
  }
  return g_string_free (out, FALSE);
}

bool
human_parse_age (const char *text, uint64_t *out_seconds)
{
  static const char age_units[] = "smhdw";
  static const unsigned seconds[] = { 1, 60, 3600, 86400, 7 * 86400 };
  const uint64_t most = UINT64_C (100) * 366 * 86400;
  size_t length = strlen (text);
  const char *unit = length > 1 ? strchr (age_units, text[length - 1]) : NULL;
  g_autofree char *digits = NULL;
  uint64_t n;

  if (unit == NULL)
    return false;
  digits = g_strndup (text, length - 1);
  if (!human_parse_uint (digits, 0, most / seconds[unit - age_units], &n))
    return false;
  *out_seconds = n * seconds[unit - age_units];
  return true;
}
