/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A stored change set loads as it was; one that was damaged in any byte, cut
 * short or made up with good checksums is refused. */
#include "config.h"

#include <endian.h>
#include <string.h>

#include "bitmap-test.h"
#include "bitmap/crc32c.h"
#include "bitmap/dirty-bitmap.h"

#define HEADER 48

/* Kinds: 0 empty, 1 sparse, 2 dense bits, 3 runs, 4 all of them, 5 full. */
static ChangeSet *
make (int kind)
{
  GError *error = NULL;
  g_autoptr (DirtyBitmap) bm =
    dirty_bitmap_new (UINT64_C (300000) * 4096 - 1, 4096, &error);
  ChangeSet *cs;

  g_assert_no_error (error);
  if (kind == 1 || kind == 4)
    for (int i = 0; i < 100; i++)
      dirty_bitmap_set (bm, (uint64_t) g_test_rand_int_range (0, 300000) * 4096,
                        1);
  if (kind == 2 || kind == 4)
    for (uint64_t g = 70000; g < 90000; g += 2)
      dirty_bitmap_set (bm, g * 4096, 1);
  if (kind == 3 || kind == 4)
    for (uint64_t g = 140000; g < 290000; g += 5000)
      dirty_bitmap_set (bm, g * 4096, (g % 4999) * 4096);
  if (kind == 5)
    dirty_bitmap_set (bm, 0, G_MAXUINT64);
  cs = dirty_bitmap_to_change_set (bm, &error);
  g_assert_no_error (error);
  return cs;
}

static ChangeSet *
load (const void *data, size_t length, GError **error)
{
  g_autoptr (GBytes) blob = g_bytes_new (data, length);

  return change_set_deserialize (blob, error);
}

static void
refused (const void *data, size_t length)
{
  g_autoptr (GError) error = NULL;
  ChangeSet *cs = load (data, length, &error);

  g_assert_null (cs);
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_CORRUPT);
}

static void
test_round_trip (void)
{
  for (int kind = 0; kind <= 5; kind++) {
    GError *error = NULL;
    g_autoptr (ChangeSet) a = make (kind);
    g_autoptr (GBytes) blob = change_set_serialize (a, &error);
    g_autoptr (ChangeSet) b = change_set_deserialize (blob, &error);

    g_assert_no_error (error);
    g_assert_cmpuint (change_set_size (a), ==, change_set_size (b));
    g_assert_cmpuint (change_set_granularity (a), ==,
                      change_set_granularity (b));
    g_assert_cmpuint (change_set_count (a), ==, change_set_count (b));
    for (uint64_t g = 0; g < 300000; g++)
      g_assert_cmpint (change_set_get (a, g * 4096), ==,
                       change_set_get (b, g * 4096));
  }
}

static void
test_every_byte (void)
{
  for (int kind = 0; kind <= 5; kind++) {
    GError *error = NULL;
    g_autoptr (ChangeSet) cs = make (kind);
    g_autoptr (GBytes) blob = change_set_serialize (cs, &error);
    size_t length;
    const uint8_t *data = g_bytes_get_data (blob, &length);
    g_autofree uint8_t *copy = g_memdup2 (data, length);

    g_assert_no_error (error);
    for (size_t i = 0; i < length; i++) {
      copy[i] ^= (uint8_t) g_test_rand_int_range (1, 256);
      refused (copy, length);
      copy[i] = data[i];
    }
  }
}

static void
test_every_length (void)
{
  for (int kind = 0; kind <= 5; kind++) {
    GError *error = NULL;
    g_autoptr (ChangeSet) cs = make (kind);
    g_autoptr (GBytes) blob = change_set_serialize (cs, &error);
    size_t length;
    const uint8_t *data = g_bytes_get_data (blob, &length);
    g_autofree uint8_t *longer = g_malloc0 (length + 1);

    g_assert_no_error (error);
    for (size_t i = 0; i < length; i++)
      refused (data, i);
    memcpy (longer, data, length);
    refused (longer, length + 1);
  }
}

/* Makes checksums and length right again. */
static void
seal (uint8_t *blob, size_t length)
{
  uint64_t data_length = htole64 (length - HEADER);
  uint32_t crc = htole32 (crc32c (0, blob + HEADER, length - HEADER));

  memcpy (blob + 32, &data_length, 8);
  memcpy (blob + 40, &crc, 4);
  crc = htole32 (crc32c (0, blob, 44));
  memcpy (blob + 44, &crc, 4);
}

/* Damage that checksums do not show: what still loads must be consistent. */
static void
test_behind_checksums (void)
{
  unsigned nr_refused = 0;

  for (int round = 0; round < 3000; round++) {
    GError *error = NULL;
    g_autoptr (ChangeSet) cs = make (round % 6);
    g_autoptr (GBytes) blob = change_set_serialize (cs, &error);
    size_t length;
    const uint8_t *data = g_bytes_get_data (blob, &length);
    g_autofree uint8_t *copy = g_memdup2 (data, length);
    size_t new_length = length;
    g_autoptr (ChangeSet) loaded = NULL;

    g_assert_no_error (error);
    for (int n = g_test_rand_int_range (1, 4); n > 0; n--) {
      /* Mostly the heads of chunks. */
      size_t end = g_test_rand_bit () ? MIN (length, HEADER + 60) : length;
      size_t i = (size_t) g_test_rand_int_range (8, (gint32) end);

      copy[i] ^= (uint8_t) (1 << g_test_rand_int_range (0, 8));
    }
    if (g_test_rand_int_range (0, 4) == 0)
      new_length = (size_t) g_test_rand_int_range (HEADER, (gint32) length + 1);
    seal (copy, new_length);
    loaded = load (copy, new_length, &error);
    if (loaded == NULL) {
      g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_CORRUPT);
      g_clear_error (&error);
      nr_refused++;
      continue;
    }
    uint64_t size = change_set_size (loaded), offset = 0, dirty_bytes = 0;
    uint64_t gran = change_set_granularity (loaded);

    while (offset < size) {
      bool dirty;
      uint64_t run = change_set_run (loaded, offset, G_MAXUINT64, &dirty);

      g_assert_cmpuint (run, >, 0);
      g_assert_cmpuint (run, <=, size - offset);
      if (dirty)
        dirty_bytes += (run + gran - 1) / gran;
      offset += run;
    }
    g_assert_cmpuint (dirty_bytes, ==, change_set_count (loaded));
  }
  g_assert_cmpuint (nr_refused, >, 1000);
}

/* One chunk of runs, written by hand. */
static void
test_crafted (void)
{
  uint8_t blob[HEADER + 64] = { 0 };
  uint32_t granularity = htole32 (4096);
  uint64_t size = htole64 (UINT64_C (65536) * 4096), count;
  /* A run of 10 granules from 5; cookie, run flags, key, cardinality - 1, runs,
   * first, length - 1. */
  uint8_t data[] = { 0x3b, 0x30, 0, 0, 1, 0, 0, 9, 0, 1, 0, 5, 0, 9, 0 };
  static const struct { size_t at; uint8_t value; } breaks[] = {
    { 0, 0x3c }, { 2, 1 }, { 5, 1 }, { 7, 8 }, { 9, 2 }, { 9, 0 }, { 13, 8 },
    { 14, 0xff },
  };
  GError *error = NULL;
  g_autoptr (ChangeSet) cs = NULL;

  memcpy (blob, "NBDFDIRT\1\0\0\0", 12);
  memcpy (blob + 12, &granularity, 4);
  memcpy (blob + 16, &size, 8);
  count = htole64 (10);
  memcpy (blob + 24, &count, 8);
  memcpy (blob + HEADER, data, sizeof data);
  seal (blob, HEADER + sizeof data);
  cs = load (blob, HEADER + sizeof data, &error);
  g_assert_no_error (error);
  g_assert_cmpuint (change_set_count (cs), ==, 10);
  g_assert_true (change_set_get (cs, 14 * 4096));

  for (size_t i = 0; i < G_N_ELEMENTS (breaks); i++) {
    memcpy (blob + HEADER, data, sizeof data);
    blob[HEADER + breaks[i].at] = breaks[i].value;
    seal (blob, HEADER + sizeof data);
    refused (blob, HEADER + sizeof data);
  }
  memcpy (blob + HEADER, data, sizeof data);

  /* 65530 + 10 values: past the chunk. */
  blob[HEADER + 11] = 0xfa;
  blob[HEADER + 12] = 0xff;
  seal (blob, HEADER + sizeof data);
  refused (blob, HEADER + sizeof data);
  memcpy (blob + HEADER, data, sizeof data);

  /* A disk that ends inside the run. */
  size = htole64 (UINT64_C (14) * 4096);
  memcpy (blob + 16, &size, 8);
  seal (blob, HEADER + sizeof data);
  refused (blob, HEADER + sizeof data);

  /* A later version. */
  size = htole64 (UINT64_C (65536) * 4096);
  memcpy (blob + 16, &size, 8);
  blob[8] = 2;
  seal (blob, HEADER + sizeof data);
  refused (blob, HEADER + sizeof data);
}

static void
test_crc32c (void)
{
  uint8_t zeroes[32] = { 0 };
  uint32_t crc = crc32c (0, "1234", 4);

  /* RFC 3720, B.4, and the usual check value. */
  g_assert_cmphex (crc32c (0, "123456789", 9), ==, 0xe3069283);
  g_assert_cmphex (crc32c (0, zeroes, sizeof zeroes), ==, 0x8a9136aa);
  g_assert_cmphex (crc32c (crc, "56789", 5), ==, 0xe3069283);
  g_assert_cmphex (crc32c (0, "", 0), ==, 0);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/bitmap/blob/crc32c", test_crc32c);
  g_test_add_func ("/bitmap/blob/round-trip", test_round_trip);
  g_test_add_func ("/bitmap/blob/every-byte", test_every_byte);
  g_test_add_func ("/bitmap/blob/every-length", test_every_length);
  g_test_add_func ("/bitmap/blob/behind-checksums", test_behind_checksums);
  g_test_add_func ("/bitmap/blob/crafted", test_crafted);
  return g_test_run ();
}
