/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* change-set-store.c - the stored form; see FORMAT. */
#include "config.h"

#include <endian.h>
#include <string.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/change-set-private.h"
#include "bitmap/crc32c.h"
#include "bitmap/granule.h"

#define BLOB_VERSION 1u

static const uint8_t blob_magic[8] = { 'N', 'B', 'D', 'F', 'D', 'I', 'R', 'T' };

/* Little-endian; no padding. */
struct blob_header {
  uint8_t magic[8];
  uint32_t version;
  uint32_t granularity;         /* bytes */
  uint64_t size;                /* of the disk, bytes */
  uint64_t count;               /* granules in the set */
  uint64_t length;              /* of what follows the header, bytes */
  uint32_t data_crc;            /* crc32c of what follows the header */
  uint32_t header_crc;          /* crc32c of the header up to here */
};
G_STATIC_ASSERT (sizeof (struct blob_header) == 48);

GBytes *
change_set_serialize (const ChangeSet *set, GError **error)
{
  const roaring_bitmap_t *r = change_set_roaring (set);
  size_t length = roaring_bitmap_portable_size_in_bytes (r);
  size_t total = sizeof (struct blob_header) + length;
  uint8_t *buf = g_try_malloc (total);
  struct blob_header header = {
    .version = htole32 (BLOB_VERSION),
    .granularity = htole32 (change_set_granularity (set)),
    .size = htole64 (change_set_size (set)),
    .count = htole64 (change_set_count (set)),
    .length = htole64 (length),
  };
  char *data;

  if (buf == NULL) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NO_MEMORY,
                 "cannot allocate %zu bytes to store a change set", total);
    return NULL;
  }
  data = (char *) buf + sizeof header;
  roaring_bitmap_portable_serialize (r, data);
  memcpy (header.magic, blob_magic, sizeof header.magic);
  header.data_crc = htole32 (crc32c (0, data, length));
  header.header_crc =
    htole32 (crc32c (0, &header, G_STRUCT_OFFSET (struct blob_header,
                                                  header_crc)));
  memcpy (buf, &header, sizeof header);
  return g_bytes_new_take (buf, total);
}

static bool
corrupt (const char *what, GError **error)
{
  g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_CORRUPT,
               "stored change set: %s", what);
  return false;
}

/* On success the header is in host order and its geometry is legal. */
static bool
read_header (struct blob_header *header, const uint8_t *buf, size_t total,
             GError **error)
{
  g_autoptr (GError) geometry = NULL;

  if (total < sizeof *header)
    return corrupt ("cut short", error);
  memcpy (header, buf, sizeof *header);
  if (memcmp (header->magic, blob_magic, sizeof blob_magic) != 0)
    return corrupt ("not a change set", error);
  if (le32toh (header->header_crc) !=
      crc32c (0, header, G_STRUCT_OFFSET (struct blob_header, header_crc)))
    return corrupt ("checksum of the header differs", error);

  header->version = le32toh (header->version);
  header->granularity = le32toh (header->granularity);
  header->size = le64toh (header->size);
  header->count = le64toh (header->count);
  header->length = le64toh (header->length);
  header->data_crc = le32toh (header->data_crc);
  if (header->version != BLOB_VERSION) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_CORRUPT,
                 "stored change set: version %u is not the known %u",
                 header->version, BLOB_VERSION);
    return false;
  }
  if (!granule_check (header->size, header->granularity, &geometry))
    return corrupt (geometry->message, error);
  if (header->length != total - sizeof *header)
    return corrupt ("length differs from the header's", error);
  return true;
}

ChangeSet *
change_set_deserialize (GBytes *blob, GError **error)
{
  size_t total;
  const uint8_t *buf = g_bytes_get_data (blob, &total);
  const uint8_t *data;
  struct blob_header header;
  roaring_bitmap_t *r;
  uint64_t count;

  if (!read_header (&header, buf, total, error))
    return NULL;
  data = buf + sizeof header;
  if (crc32c (0, data, header.length) != header.data_crc) {
    corrupt ("checksum differs", error);
    return NULL;
  }
  if (!chunk_check (data, header.length,
                    granule_count (header.size, header.granularity), &count,
                    error))
    return NULL;
  if (count != header.count) {
    corrupt ("number of granules differs from the header's", error);
    return NULL;
  }
  r = roaring_bitmap_portable_deserialize_safe ((const char *) data,
                                                header.length);
  if (r == NULL) {
    g_set_error_literal (error, BITMAP_ERROR, BITMAP_ERROR_NO_MEMORY,
                         "no memory to load a stored change set");
    return NULL;
  }
  return change_set_take (header.size, header.granularity, r);
}
