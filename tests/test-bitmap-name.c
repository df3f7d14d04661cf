/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which names disks, backups, bitmaps and checkpoints may have, and that a bad
 * one is quoted safely. */
#include "config.h"

#include <string.h>

#include "bitmap-test.h"
#include "bitmap/checkpoint.h"

typedef bool (*Check) (const char *, const char *, GError **);

static void
good (Check check, const char *name)
{
  GError *error = NULL;

  check ("disk name", name, &error);
  g_assert_no_error (error);
}

static void
bad (Check check, const char *name, const char *text)
{
  g_autoptr (GError) error = NULL;

  g_assert_false (check ("disk name", name, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_INVALID);
  if (strstr (error->message, text) == NULL)
    g_error ("'%s' does not have '%s'", error->message, text);
  g_assert_true (g_str_has_prefix (error->message, "disk name"));
  g_assert_cmpuint (strlen (error->message), <, 400);
  for (const char *p = error->message; *p != '\0'; p++)
    g_assert_true (*p >= ' ' && *p <= '~');
}

static void
test_id (void)
{
  g_autofree char *longest = g_strnfill (64, 'a');
  g_autofree char *longer = g_strnfill (65, 'a');

  good (name_check_id, "vda");
  good (name_check_id, "A-z_0.9");
  good (name_check_id, "...");
  good (name_check_id, longest);
  bad (name_check_id, longer, "longer than 64 bytes");
  bad (name_check_id, "", "is empty");
  bad (name_check_id, ".", "not allowed");
  bad (name_check_id, "..", "not allowed");
  bad (name_check_id, "a/b", "'a/b' has a character other than");
  bad (name_check_id, "a b", "'a b'");
  bad (name_check_id, "vda@x", "'vda@x'");
  bad (name_check_id, "a\nb", "'a\\nb'");
  bad (name_check_id, "\xc3\xa4", "character");
}

static void
test_bitmap (void)
{
  g_autofree char *longest = g_strnfill (1023, 'a');
  g_autofree char *longer = g_strnfill (1024, 'a');

  good (name_check_bitmap, "mon day/1@2");
  good (name_check_bitmap, "\xc3\xa4\xe2\x82\xac");
  good (name_check_bitmap, longest);
  bad (name_check_bitmap, longer, "longer than 1023 bytes");
  bad (name_check_bitmap, "", "is empty");
  bad (name_check_bitmap, "a\nb", "control character");
  bad (name_check_bitmap, "a\x7f", "control character");
  bad (name_check_bitmap, "a\xc2\x85", "control character");
  bad (name_check_bitmap, "\xff\xfe", "not UTF-8");
  bad (name_check_bitmap, "\xc3", "not UTF-8");
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/bitmap/name/id", test_id);
  g_test_add_func ("/bitmap/name/bitmap", test_bitmap);
  return g_test_run ();
}
