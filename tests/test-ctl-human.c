/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sizes, durations and dates as people write and read them. */
#include <config.h>

#include <glib.h>

#include "tools/human.h"

#define assert_text(call, expected) \
  do { \
    g_autofree char *text_ = (call); \
    g_assert_cmpstr (text_, ==, expected); \
  } while (0)

static void
test_size (void)
{
  assert_text (human_size (0), "0 B");
  assert_text (human_size (1023), "1023 B");
  assert_text (human_size (1024), "1.0 KiB");
  assert_text (human_size (1536), "1.5 KiB");
  assert_text (human_size ((1 << 20) - 1), "1.0 MiB");
  assert_text (human_size (UINT64_C (10) << 30), "10.0 GiB");
  assert_text (human_size (UINT64_MAX), "16.0 EiB");
}

static void
test_parse_size (void)
{
  static const struct { const char *text; uint64_t bytes; } good[] = {
    { "0", 0 }, { "4096", 4096 }, { "512B", 512 }, { "64k", 65536 },
    { "64K", 65536 }, { "64KiB", 65536 }, { "1M", 1 << 20 },
    { "1GB", 1 << 30 }, { "2T", UINT64_C (2) << 40 },
    { "7E", UINT64_C (7) << 60 }, { "9223372036854775807", INT64_MAX },
  };
  static const char *const bad[] = {
    "", " 1", "1 ", "-1", "+1", "1.5G", "K", "1X", "1Kb", "1KiBs", "8E",
    "9223372036854775808", "0x10", "99999999999999999999",
  };
  uint64_t n;

  for (size_t i = 0; i < G_N_ELEMENTS (good); i++) {
    g_assert_true (human_parse_size (good[i].text, &n));
    g_assert_cmpuint (n, ==, good[i].bytes);
  }
  n = 42;
  for (size_t i = 0; i < G_N_ELEMENTS (bad); i++)
    g_assert_false (human_parse_size (bad[i], &n));
  g_assert_cmpuint (n, ==, 42);
}

static void
test_duration (void)
{
  assert_text (human_duration (0), "0:00");
  assert_text (human_duration (67), "1:07");
  assert_text (human_duration (3723), "1:02:03");
  assert_text (human_duration (86400 * 3 + 4 * 3600 + 300), "3d 04:05");
}

static void
test_time (void)
{
  assert_text (human_time (0, true), "1970-01-01 00:00:00Z");
  assert_text (human_time (INT64_MAX, true), "?");
}

static void
test_escape (void)
{
  assert_text (human_escape ("plain", 10), "plain");
  assert_text (human_escape ("a\033[2Jb\n", 20), "a\\x1b[2Jb\\x0a");
  assert_text (human_escape ("\xff\xc3", 20), "\\xff\\xc3");
  assert_text (human_escape ("grün", 20), "grün");
  assert_text (human_escape ("123456", 3), "123...");
}

static void
test_age (void)
{
  static const char *const bad[] =
    { "", "d", "7", "7 d", "-1d", "1y", "1.5h", "999999999w", "7dd" };
  uint64_t n = 0;

  g_assert_true (human_parse_age ("90s", &n));
  g_assert_cmpuint (n, ==, 90);
  g_assert_true (human_parse_age ("2w", &n));
  g_assert_cmpuint (n, ==, 14 * 86400);
  for (size_t i = 0; i < G_N_ELEMENTS (bad); i++)
    g_assert_false (human_parse_age (bad[i], &n));
  g_assert_cmpuint (n, ==, 14 * 86400);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/human/size", test_size);
  g_test_add_func ("/human/parse-size", test_parse_size);
  g_test_add_func ("/human/duration", test_duration);
  g_test_add_func ("/human/time", test_time);
  g_test_add_func ("/human/escape", test_escape);
  g_test_add_func ("/human/age", test_age);
  return g_test_run ();
}
