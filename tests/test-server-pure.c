/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-server-pure.c - the server's pure parts: extents, requests, replies,
 * queries, block sizes, parsing of parameters.
 */
#include <config.h>

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <glib.h>

#include "server/backend.h"
#include "server/bytes.h"
#include "server/export.h"
#include "server/extents.h"
#include "server/metactx.h"
#include "server/nbd-errno.h"
#include "server/nbd-wire.h"
#include "server/reply.h"
#include "server/request.h"

/* What nbdkit-parse.c reports to. */
static char last_error[500];

void
nbdkit_error (const char *fs, ...)
{
  va_list args;

  va_start (args, fs);
  vsnprintf (last_error, sizeof last_error, fs, args);
  va_end (args);
}

/* Random runs, added, cut and aligned, against a model with one byte a flag. */
static void
test_extents (void)
{
  for (int round = 0; round < 500; round++) {
    unsigned align = 1 << g_test_rand_int_range (0, 6);
    uint64_t start = g_test_rand_int_range (0, 100) * align;
    uint64_t size = g_test_rand_int_range (1, 40) * align, end;
    bool and_flags = g_test_rand_int_range (0, 2);
    unsigned char model[40 * 32], flags = 0;
    struct extent_list list;
    uint64_t at = 0;

    extent_list_init (&list, start, start + size, 100000);
    while (at < size) {
      uint64_t n = g_test_rand_int_range (0, 50);
      int r;

      flags = g_test_rand_int_range (0, 4);
      r = extent_list_add (&list, n, flags);
      n = MIN (n, size - at);
      memset (model + at, flags, n);
      at += n;
      g_assert_cmpint (r, ==, at < size);
    }
    g_assert_cmpint (extent_list_add (&list, 5, 9), ==, 0);
    for (uint64_t block = 0; align > 1 && block < size; block += align) {
      unsigned char all = and_flags ? 255 : 0;

      for (unsigned i = 0; i < align; i++)
        all = and_flags ? all & model[block + i] : all | model[block + i];
      memset (model + block, all, align);
    }
    g_assert_cmpint (extent_list_align (&list, align, and_flags), ==, 0);
    end = start + g_test_rand_int_range (1, size + 1);
    extent_list_cut (&list, end);

    at = 0;
    for (size_t i = 0; i < list.nr; i++) {
      g_assert_cmpuint (list.v[i].length, >, 0);
      if (i > 0)
        g_assert_cmpuint (list.v[i].flags, !=, list.v[i - 1].flags);
      for (uint64_t j = 0; j < list.v[i].length; j++)
        g_assert_cmpuint (model[at++], ==, list.v[i].flags);
    }
    g_assert_cmpuint (at, ==, end - start);
    g_assert_cmpuint (list.next, ==, end);
    extent_list_clear (&list);
  }
}

/* No more than allowed; merging goes on where no new extent is needed. */
static void
test_extents_full (void)
{
  struct extent_list list;

  extent_list_init (&list, 0, 1000, 2);
  g_assert_cmpint (extent_list_add (&list, 10, 0), ==, 1);
  g_assert_cmpint (extent_list_add (&list, 10, 1), ==, 1);
  g_assert_cmpint (extent_list_add (&list, 10, 1), ==, 1);
  g_assert_cmpint (extent_list_add (&list, 10, 0), ==, 0);
  g_assert_cmpint (extent_list_add (&list, 10, 1), ==, 0);
  g_assert_cmpuint (list.next, ==, 30);
  g_assert_true (list.full);
  extent_list_clear (&list);
}

static void
test_block_sizes (void)
{
  struct block_sizes b;

  g_assert_true (block_sizes_from_plugin (0, 0, 0, &b));
  g_assert_cmpuint (b.min, ==, 1);
  g_assert_cmpuint (b.preferred, ==, 4096);
  g_assert_cmpuint (b.max, ==, 32 << 20);
  g_assert_true (block_sizes_from_plugin (1, 1, 0xffffffff, &b));
  g_assert_cmpuint (b.preferred, ==, 512);
  g_assert_cmpuint (b.max, ==, 32 << 20);
  g_assert_true (block_sizes_from_plugin (65536, 65536, 65536, &b));
  g_assert_cmpuint (b.max, ==, 65536);
  for (uint32_t bad = 0; bad < 8; bad++) {
    static const uint32_t v[8][3] = {
      { 0, 4096, 4096 }, { 3, 4096, 4096 }, { 131072, 131072, 131072 },
      { 512, 256, 4096 }, { 1, 5000, 65536 }, { 1, 4096, 2048 },
      { 512, 512, 1000 }, { 1, 64 << 20, 64 << 20 } };

    g_assert_false (block_sizes_from_plugin (v[bad][0], v[bad][1], v[bad][2],
                                             &b));
  }
}

/* Any bytes: parsed and judged without a fault; nothing that would leave the
 * export is let through. */
static void
test_requests (void)
{
  static const uint16_t all = 0xffff;

  for (int round = 0; round < 200000; round++) {
    unsigned char bytes[REQUEST_MAX_SIZE], again[REQUEST_MAX_SIZE];
    uint64_t size = g_test_rand_int_range (0, 5000);
    struct export_info info = {
      .size = size, .flags = g_test_rand_int () & all,
      .block = block_sizes_default () };
    struct request_rules rules = {
      .info = &info, .mode = g_test_rand_int_range (0, 3),
      .nr_contexts = g_test_rand_int_range (0, 4) };
    struct request rq;
    const char *text = NULL;
    uint32_t error;

    for (size_t i = 0; i < sizeof bytes; i++)
      bytes[i] = g_test_rand_int ();
    if (round % 100 == 0)
      g_assert_false (request_parse (bytes, rules.mode, &rq));
    put_be32 (bytes, rules.mode == REPLY_EXTENDED ?
              NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC);
    if (round % 3) {
      put_be16 (bytes + 4, g_test_rand_int () & g_test_rand_int () & 63);
      put_be16 (bytes + 6, g_test_rand_int_range (0, 9));
      put_be64 (bytes + 16, g_test_rand_int_range (0, 6000));
      put_be32 (bytes + 24, g_test_rand_int_range (0, 6000));
      if (rules.mode == REPLY_EXTENDED)
        put_be64 (bytes + 24, g_test_rand_int_range (0, 6000));
    }
    g_assert_true (request_parse (bytes, rules.mode, &rq));
    request_format (&rq, rules.mode, again);
    g_assert_cmpmem (again, request_size (rules.mode), bytes,
                     request_size (rules.mode));
    if (rq.type == NBD_CMD_DISC)
      continue;
    error = request_check (&rq, &rules, &text);
    if (error == NBD_SUCCESS && rq.type == NBD_CMD_BLOCK_STATUS &&
        rq.payload > 0) {
      unsigned char payload[8 + 4 * 4];

      g_assert_cmpuint (rq.payload, <=, sizeof payload);
      for (size_t i = 0; i < sizeof payload; i++)
        payload[i] = i % 4 < 3 && i != 6 ? 0 : g_test_rand_int_range (0, 5);
      error = request_take_range (&rq, &rules, payload, &text);
      if (error == NBD_SUCCESS) {
        g_assert_true (rq.contexts > 0 &&
                       rq.contexts < UINT64_C (1) << rules.nr_contexts);
        error = request_check (&rq, &rules, &text);
      }
    }
    if (error) {
      g_assert_nonnull (text);
      continue;
    }
    g_assert_cmpuint (rq.type, <=, NBD_CMD_BLOCK_STATUS);
    g_assert_cmpuint (rq.length, <=, size);
    g_assert_cmpuint (rq.offset, <=, size - rq.length);
    if (info.flags & NBD_FLAG_READ_ONLY)
      g_assert_true (rq.type != NBD_CMD_WRITE && rq.type != NBD_CMD_TRIM &&
                     rq.type != NBD_CMD_WRITE_ZEROES);
    if (!(info.flags & NBD_FLAG_SEND_FUA))
      g_assert_false (rq.flags & NBD_CMD_FLAG_FUA);
    g_assert_cmpuint (rq.flags, <, rules.mode == REPLY_EXTENDED ? 64 : 32);
  }
}

/* Texts of any length fit. */
static void
test_replies (void)
{
  struct request rq = { .type = NBD_CMD_READ, .offset = 7, .length = 9 };
  unsigned char out[REPLY_MAX_HEADER + 1];
  g_autofree char *text = g_strnfill (1000, 'x');
  size_t length;

  out[REPLY_MAX_HEADER] = 0xa5;
  g_assert_cmpuint (reply_status (out, REPLY_EXTENDED, &rq, NBD_EIO, text),
                    ==, REPLY_MAX_HEADER);
  g_assert_cmpuint (get_be64 (out + 24), ==, REPLY_MAX_HEADER - 32);
  length = reply_status (out, REPLY_STRUCTURED, &rq, NBD_EIO, text);
  g_assert_cmpuint (length, <=, REPLY_MAX_HEADER);
  g_assert_cmpuint (out[REPLY_MAX_HEADER], ==, 0xa5);
  g_assert_cmpuint (get_be32 (out + 16), ==, length - 20);
  g_assert_cmpuint (reply_status (out, REPLY_SIMPLE, &rq, NBD_EIO, text), ==,
                    16);
}

/* The chunks of the reply to a READ, put together by another hand. */
static void
check_read_reply (const unsigned char *reply, size_t length,
                  enum reply_mode mode, const struct request *rq,
                  const unsigned char *data)
{
  size_t head = mode == REPLY_EXTENDED ? 32 : 20, at = 0;
  uint64_t next = rq->offset;
  bool done = false;

  while (at < length) {
    uint64_t n = mode == REPLY_EXTENDED ? get_be64 (reply + at + 24) :
      get_be32 (reply + at + 16);
    unsigned type = get_be16 (reply + at + 6);

    g_assert_false (done);
    done = get_be16 (reply + at + 4);
    at += head;
    g_assert_cmpuint (get_be64 (reply + at), ==, next);
    if (type == NBD_REPLY_TYPE_OFFSET_HOLE) {
      g_assert_cmpuint (n, ==, 12);
      for (uint32_t i = get_be32 (reply + at + 8); i > 0; i--)
        g_assert_cmpuint (data[next++ - rq->offset], ==, 0);
    }
    else {
      g_assert_cmpuint (type, ==, NBD_REPLY_TYPE_OFFSET_DATA);
      g_assert_cmpuint (n, >, 8);
      g_assert_cmpmem (reply + at + 8, n - 8, data + (next - rq->offset),
                       n - 8);
      next += n - 8;
    }
    at += n;
  }
  g_assert_true (done);
  g_assert_cmpuint (at, ==, length);
  g_assert_cmpuint (next, ==, rq->offset + rq->length);
}

/* Random blocks of zeroes and data at any offset become chunks; with DF, or
 * without zeroes, there is one. */
static void
test_read_reply (void)
{
  enum { MAX = 80000 };
  g_autofree unsigned char *out = g_malloc (REPLY_READ_ROOM + MAX);
  g_autofree unsigned char *data = g_malloc (MAX);

  for (int round = 0; round < 2000; round++) {
    enum reply_mode mode = g_test_rand_int_range (0, 3);
    struct request rq = {
      .type = NBD_CMD_READ, .cookie = 5,
      .flags = round % 5 == 0 ? NBD_CMD_FLAG_DF : 0,
      .offset = g_test_rand_int_range (0, 1 << 20),
      .length = g_test_rand_int_range (1, MAX) };
    unsigned char *body = out + reply_read_header_size (mode);
    uint32_t align = 4096 << g_test_rand_int_range (0, 3);
    int density = g_test_rand_int_range (0, 5);
    size_t length;

    for (size_t i = 0; i < rq.length; i += 4096) {
      size_t n = MIN (4096, rq.length - i);

      memset (data + i, 0, n);
      if (g_test_rand_int_range (0, 4) < density)
        data[i + g_test_rand_int_range (0, n)] = 0xab;
    }
    memcpy (body, data, rq.length);
    length = reply_read (out, mode, &rq, align);
    g_assert_cmpuint (length, <=, body + rq.length - out);
    if (mode == REPLY_SIMPLE) {
      g_assert_cmpmem (out + 16, length - 16, data, rq.length);
      continue;
    }
    check_read_reply (out, length, mode, &rq, data);
    if (rq.flags & NBD_CMD_FLAG_DF)
      g_assert_cmpuint (length, ==, body + rq.length - out);
  }
  memset (out, 0, MAX);
  g_assert_cmpuint (reply_read (out, REPLY_EXTENDED, &(struct request) {
                      .offset = 1 << 20, .length = 65536 }, 65536), ==, 44);
  memset (out, 0, MAX);
  g_assert_cmpuint (reply_read (out, REPLY_STRUCTURED, &(struct request) {
                      .offset = 8192, .length = 65536 }, 4096), ==, 32);
}

/* Every prefix of well-formed queries is refused, and random bytes are no
 * fault. */
static void
test_queries (void)
{
  static const unsigned char good[] =
    "\0\0\0\3abc" "\0\0\0\2" "\0\0\0\5base:" "\0\0\0\0";
  size_t length = sizeof good - 1;
  struct metactx_queries q;

  g_assert_cmpuint (metactx_queries_parse (good, length, &q), ==, 0);
  g_assert_cmpstr (q.export_name, ==, "abc");
  g_assert_cmpuint (q.queries->len, ==, 2);
  metactx_queries_clear (&q);
  for (size_t n = 0; n < length; n++) {
    g_autofree unsigned char *copy = g_memdup2 (good, n);

    g_assert_cmpuint (metactx_queries_parse (copy, n, &q), ==,
                      NBD_REP_ERR_INVALID);
  }
  for (int round = 0; round < 20000; round++) {
    unsigned char bytes[sizeof good];

    memcpy (bytes, good, sizeof good);
    for (int i = 0; i < 3; i++)
      bytes[g_test_rand_int_range (0, length)] =
        g_test_rand_int_range (0, round % 2 ? 8 : 256);
    if (metactx_queries_parse (bytes, length, &q) == 0)
      metactx_queries_clear (&q);
  }
}

static void
test_errno (void)
{
  for (int err = 1; err < 200; err++)
    for (unsigned flags = 0; flags < 32; flags++) {
      uint32_t n = nbd_errno (err, flags);

      g_assert_true (n == NBD_EPERM || n == NBD_EIO || n == NBD_ENOMEM ||
                     n == NBD_EINVAL || n == NBD_ENOSPC ||
                     n == NBD_EOVERFLOW || n == NBD_ENOTSUP ||
                     n == NBD_ESHUTDOWN);
      g_assert_cmpstr (nbd_errno_text (n), !=, "unknown error");
      if (n == NBD_ENOTSUP)
        g_assert_true (flags & NBD_CMD_FLAG_FAST_ZERO);
      if (n == NBD_EOVERFLOW)
        g_assert_true (flags & NBD_CMD_FLAG_DF);
    }
  g_assert_cmpuint (nbd_errno (0, 0), ==, 0);
}

static void
test_parse (void)
{
  static const struct {
    const char *str;
    int64_t size;
  } sizes[] = {
    { "0", 0 }, { "1", 1 }, { "1b", 1 }, { "1k", 1024 }, { "3K", 3072 },
    { "1s", 512 }, { "2M", 2 << 20 }, { "1G", 1 << 30 },
    { "1T", INT64_C (1) << 40 }, { "7E", INT64_C (7) << 60 },
    { "8E", -1 }, { "9223372036854775807", INT64_MAX },
    { "9223372036854775808", -1 }, { "99999999999999999999999", -1 },
    { "", -1 }, { "x", -1 }, { "-1", -1 }, { "1kk", -1 }, { "1 k", -1 },
    { "1Q", -1 }, { "k", -1 }, { "1.5M", -1 },
  };
  int8_t i8 = 77;
  uint8_t u8 = 77;
  uint64_t u64;
  int64_t i64;
  int i;
  char *str;

  for (size_t n = 0; n < G_N_ELEMENTS (sizes); n++) {
    *last_error = '\0';
    g_assert_cmpint (nbdkit_parse_size (sizes[n].str), ==, sizes[n].size);
    g_assert_cmpint (*last_error != '\0', ==, sizes[n].size == -1);
  }
  g_assert_cmpint (nbdkit_parse_bool ("On"), ==, 1);
  g_assert_cmpint (nbdkit_parse_bool ("f"), ==, 0);
  g_assert_cmpint (nbdkit_parse_bool ("maybe"), ==, -1);

  g_assert_cmpint (nbdkit_parse_int8_t ("x", "-128", &i8), ==, 0);
  g_assert_cmpint (i8, ==, -128);
  g_assert_cmpint (nbdkit_parse_int8_t ("x", "128", &i8), ==, -1);
  g_assert_cmpint (i8, ==, -128);
  g_assert_cmpint (nbdkit_parse_uint8_t ("what", "256", &u8), ==, -1);
  g_assert_nonnull (strstr (last_error, "what: "));
  g_assert_cmpint (nbdkit_parse_uint8_t ("x", "0xff", &u8), ==, 0);
  g_assert_cmpint (u8, ==, 255);
  g_assert_cmpint (nbdkit_parse_uint8_t ("x", "-1", &u8), ==, -1);
  g_assert_cmpint (nbdkit_parse_uint64_t ("x", "-1", &u64), ==, -1);
  g_assert_cmpint (nbdkit_parse_uint64_t ("x", "18446744073709551615", &u64),
                   ==, 0);
  g_assert_cmpint (nbdkit_parse_uint64_t ("x", "18446744073709551616", &u64),
                   ==, -1);
  g_assert_cmpint (nbdkit_parse_int64_t ("x", "-9223372036854775808", &i64),
                   ==, 0);
  g_assert_cmpint (nbdkit_parse_int ("x", "0x10", &i), ==, 0);
  g_assert_cmpint (i, ==, 16);
  g_assert_cmpint (nbdkit_parse_int ("x", "010", NULL), ==, 0);
  g_assert_cmpint (nbdkit_parse_int ("x", "", &i), ==, -1);
  g_assert_cmpint (nbdkit_parse_int ("x", "1 ", &i), ==, -1);
  g_assert_cmpint (nbdkit_parse_int ("x", "4294967296", &i), ==, -1);

  g_assert_null (nbdkit_absolute_path (""));
  str = nbdkit_absolute_path ("/a/b");
  g_assert_cmpstr (str, ==, "/a/b");
  free (str);
  str = nbdkit_absolute_path ("x");
  g_assert_true (str[0] == '/' && g_str_has_suffix (str, "/x"));
  free (str);
  g_assert_null (nbdkit_realpath ("/no/such/file"));
  str = nbdkit_realpath ("/usr/../usr/./");
  g_assert_cmpstr (str, ==, "/usr");
  free (str);

  g_assert_cmpint (nbdkit_read_password ("secret", &str), ==, 0);
  g_assert_cmpstr (str, ==, "secret");
  free (str);
  g_assert_cmpint (nbdkit_read_password ("-2", &str), ==, -1);
  g_assert_cmpint (nbdkit_read_password ("-x", &str), ==, -1);
  g_assert_cmpint (nbdkit_read_password ("+/no/such/file", &str), ==, -1);
  g_assert_cmpint (nbdkit_read_password ("+/dev/null", &str), ==, 0);
  g_assert_cmpstr (str, ==, "");
  free (str);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/server/extents", test_extents);
  g_test_add_func ("/server/extents-full", test_extents_full);
  g_test_add_func ("/server/block-sizes", test_block_sizes);
  g_test_add_func ("/server/requests", test_requests);
  g_test_add_func ("/server/replies", test_replies);
  g_test_add_func ("/server/read-reply", test_read_reply);
  g_test_add_func ("/server/queries", test_queries);
  g_test_add_func ("/server/errno", test_errno);
  g_test_add_func ("/server/parse", test_parse);
  return g_test_run ();
}
