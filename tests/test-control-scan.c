/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-control-scan.c - how a byte stream is cut into JSON texts does not
 * depend on how it arrives, and no bytes at all harm the scanner or the
 * parser. */
#include <config.h>

#include <string.h>

#include "plugin/qmp-scan.h"
#include "plugin/qmp.h"

static json_t *
echo (struct qmp_session *session, json_t *args, GError **error)
{
  return json_incref (args);
}

static const struct qmp_arg no_args[] = { { NULL } };
static const struct qmp_arg echo_args[] = {
  { "s", QMP_STR },
  { "i", QMP_INT, .min = -5, .max = 5, .range = "a small number" },
  { "o", QMP_OBJECT, .members = no_args },
  { "l", QMP_OBJECTS, .members = no_args },
  { NULL }
};
static const struct qmp_command table[] = {
  { "echo", echo_args, echo },
  { NULL }
};

/* All results of a stream that arrives in pieces of at most step bytes (0: of
 * random length), a line each. */
static GString *
scan_all (const char *data, size_t length, size_t step)
{
  QmpScan *scan = qmp_scan_new ();
  GString *out = g_string_new (NULL);

  for (size_t pos = 0; pos < length; ) {
    size_t want = step != 0 ? step : (size_t) g_test_rand_int_range (1, 40);
    size_t part = MIN (want, length - pos);
    size_t used = 0;
    GString *text = NULL;
    QmpScanResult r = qmp_scan_feed (scan, data + pos, part, &used, &text);

    g_assert_cmpuint (used, <=, part);
    pos += used;
    if (r == QMP_SCAN_MORE) {
      g_assert_cmpuint (used, ==, part);
      continue;
    }
    g_string_append_c (out, r == QMP_SCAN_TEXT ? 'T' : 'E');
    g_string_append_len (out, text->str, text->len);
    g_string_append_c (out, '\n');
    g_string_free (text, TRUE);
  }
  qmp_scan_free (scan);
  return out;
}

static void
check (const char *data, const char *expected)
{
  for (size_t step = 1; step < 10; step++) {
    g_autoptr (GString) got = scan_all (data, strlen (data), step);

    g_assert_cmpstr (got->str, ==, expected);
  }
}

static void
test_texts (void)
{
  check ("{}{}", "T{}\nT{}\n");
  check (" [1,\n {\"a\":']}'}] x", "T[1,\n {\"a\":\"]}\"}]\n");
  check ("null{}", "Tnull\nT{}\n");
  check ("1 2\n", "T1\nT2\n");
  check ("'a\"b\\'c\\\"'", "T\"a\\\"b'c\\\"\"\n");
  check ("{'a':\"\\\\\"}", "T{\"a\":\"\\\\\"}\n");
  check ("}{}", "EJSON parse error, stray '}'\nT{}\n");
  check ("{]{}", "EJSON parse error, stray ']'\nT{}\n");
}

/* Random bytes, mostly ones that mean something. */
static void
test_random (void)
{
  static const char alphabet[] = "{}[]\"'\\,: \n\t01.eu-ntrfx\x01\xff\xc3\xa9";
  static const char *const words[] = {
    "{\"execute\":\"echo\",\"arguments\":", "\"id\":", "{\"s\":\"x\"}",
    "{\"i\":1e400}", "{'i':99}", "{\"l\":[{}]}", "true", "\\u0000", "\\ud800",
  };

  for (int round = 0; round < 3000; round++) {
    g_autoptr (GString) data = g_string_new (NULL);
    int nr = g_test_rand_int_range (0, 60);

    for (int i = 0; i < nr; i++) {
      if (g_test_rand_int_range (0, 4) == 0)
        g_string_append (data, words[g_test_rand_int_range
                                     (0, G_N_ELEMENTS (words))]);
      else if (g_test_rand_int_range (0, 10) == 0)
        g_string_append_c (data, g_test_rand_int_range (0, 256));
      else
        g_string_append_c (data, alphabet[g_test_rand_int_range
                                          (0, sizeof alphabet)]);
    }
    g_autoptr (GString) bytewise = scan_all (data->str, data->len, 1);
    g_autoptr (GString) pieces = scan_all (data->str, data->len, 0);

    g_assert_cmpuint (bytewise->len, ==, pieces->len);
    g_assert_cmpmem (bytewise->str, bytewise->len, pieces->str, pieces->len);

    /* The parser, also with what the scanner would not let through. */
    struct qmp_session session = { .negotiated = true };
    g_autoptr (GString) reply =
      qmp_handle (table, &session, data->str, data->len);
    json_t *parsed = json_loadb (reply->str, reply->len, 0, NULL);

    g_assert_true (g_str_has_suffix (reply->str, "\r\n"));
    g_assert_nonnull (parsed);
    g_assert_true (json_object_get (parsed, "error") != NULL ||
                   json_object_get (parsed, "return") != NULL);
    json_decref (parsed);
  }
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/control/scan/texts", test_texts);
  g_test_add_func ("/control/scan/random", test_random);
  return g_test_run ();
}
