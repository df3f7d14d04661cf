/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "config.h"

#include "bitmap/named-bitmap.h"

NamedBitmap *
named_bitmap_new (int64_t disk, const char *name, uint32_t granularity,
                  uint64_t disk_size, bool recording)
{
  NamedBitmap *bm = g_new0 (NamedBitmap, 1);

  bm->disk = disk;
  bm->name = g_strdup (name);
  bm->granularity = granularity;
  bm->size = disk_size;
  bm->intervals = g_array_new (FALSE, FALSE, sizeof (BitmapInterval));
  bm->blobs = g_array_new (FALSE, FALSE, sizeof (BitmapBlob));
  if (recording)
    named_bitmap_enable (bm);
  return bm;
}

NamedBitmap *
named_bitmap_copy (const NamedBitmap *bm)
{
  NamedBitmap *copy = g_memdup2 (bm, sizeof *bm);

  copy->name = g_strdup (bm->name);
  copy->intervals = g_array_copy (bm->intervals);
  copy->blobs = g_array_copy (bm->blobs);
  return copy;
}

void
named_bitmap_free (NamedBitmap *bm)
{
  if (bm == NULL)
    return;
  g_free (bm->name);
  g_array_unref (bm->intervals);
  g_array_unref (bm->blobs);
  g_free (bm);
}

/* --- intervals */

static BitmapInterval *
interval (const NamedBitmap *bm, guint i)
{
  return &g_array_index (bm->intervals, BitmapInterval, i);
}

static gint
interval_compare (gconstpointer a, gconstpointer b)
{
  const BitmapInterval *x = a, *y = b;

  if (x->disk != y->disk)
    return x->disk < y->disk ? -1 : 1;
  if (x->granularity != y->granularity)
    return x->granularity < y->granularity ? -1 : 1;
  return (x->from > y->from) - (x->from < y->from);
}

/* Drops what is empty and joins what touches; so that they stay few, however
 * often bitmaps are merged. */
static void
normalize (NamedBitmap *bm)
{
  guint kept = 0;

  g_array_sort (bm->intervals, interval_compare);
  for (guint i = 0; i < bm->intervals->len; i++) {
    BitmapInterval now = *interval (bm, i);
    BitmapInterval *last = kept > 0 ? interval (bm, kept - 1) : NULL;

    if (now.from >= now.to)
      continue;
    if (last != NULL && last->disk == now.disk &&
        last->granularity == now.granularity && now.from <= last->to)
      last->to = MAX (last->to, now.to);
    else
      *interval (bm, kept++) = now;
  }
  g_array_set_size (bm->intervals, kept);
}

static void
add_interval (NamedBitmap *bm, int64_t disk, uint64_t from, uint64_t to,
              uint32_t granularity)
{
  BitmapInterval iv = { disk, from, to, granularity };

  g_array_append_val (bm->intervals, iv);
}

/* Only its own recording is open, so only that is ended. */
static void
end_open (NamedBitmap *bm, uint64_t to)
{
  for (guint i = 0; i < bm->intervals->len; i++)
    if (interval (bm, i)->to == BITMAP_OPEN)
      interval (bm, i)->to = to;
  normalize (bm);
}

/* --- changes */

void
named_bitmap_clear (NamedBitmap *bm, uint64_t disk_size)
{
  g_array_set_size (bm->intervals, 0);
  g_array_set_size (bm->blobs, 0);
  bm->size = disk_size;
  if (bm->recording)
    add_interval (bm, bm->disk, BITMAP_CUT, BITMAP_OPEN, bm->granularity);
}

void
named_bitmap_enable (NamedBitmap *bm)
{
  if (bm->recording)
    return;
  bm->recording = true;
  add_interval (bm, bm->disk, BITMAP_CUT, BITMAP_OPEN, bm->granularity);
  normalize (bm);
}

void
named_bitmap_disable (NamedBitmap *bm)
{
  if (!bm->recording)
    return;
  bm->recording = false;
  end_open (bm, BITMAP_CUT);
}

static void
add_blob (NamedBitmap *bm, int64_t id, uint32_t granularity)
{
  BitmapBlob blob = { id, granularity };

  for (guint i = 0; i < bm->blobs->len; i++) {
    BitmapBlob *b = &g_array_index (bm->blobs, BitmapBlob, i);

    /* Coarser says all that finer says. */
    if (b->id == id) {
      b->granularity = MAX (b->granularity, granularity);
      return;
    }
  }
  g_array_append_val (bm->blobs, blob);
}

void
named_bitmap_merge (NamedBitmap *bm, const NamedBitmap *source)
{
  if (bm == source || (bm->id != 0 && bm->id == source->id))
    return;
  /* What a granule of the source marks, it marks as a whole. */
  for (guint i = 0; i < source->intervals->len; i++) {
    const BitmapInterval *iv = interval (source, i);

    add_interval (bm, iv->disk, iv->from,
                  iv->to == BITMAP_OPEN ? BITMAP_CUT : iv->to,
                  MAX (iv->granularity, source->granularity));
  }
  for (guint i = 0; i < source->blobs->len; i++) {
    const BitmapBlob *b = &g_array_index (source->blobs, BitmapBlob, i);

    add_blob (bm, b->id, MAX (b->granularity, source->granularity));
  }
  bm->size = MIN (bm->size, source->size);
  normalize (bm);
}

void
named_bitmap_add_blob (NamedBitmap *bm, int64_t blob)
{
  add_blob (bm, blob, bm->granularity);
}

NamedBitmap *
named_bitmap_new_since (int64_t disk, const char *name, uint32_t granularity,
                        uint64_t disk_size, uint64_t boundary)
{
  NamedBitmap *bm = named_bitmap_new (disk, name, granularity, disk_size,
                                      true);

  named_bitmap_resolve (bm, disk, boundary);
  return bm;
}

uint64_t
named_bitmap_since (const NamedBitmap *bm)
{
  const BitmapInterval *iv = bm->intervals->len == 1 ? interval (bm, 0) : NULL;

  return bm->recording && !bm->inconsistent && bm->blobs->len == 0 &&
    iv != NULL && iv->disk == bm->disk && iv->to == BITMAP_OPEN &&
    iv->from < BITMAP_CUT ? iv->from : 0;
}

void
named_bitmap_end_at (NamedBitmap *bm, uint64_t boundary)
{
  for (guint i = 0; i < bm->intervals->len; i++) {
    BitmapInterval *iv = interval (bm, i);

    if (iv->disk == bm->disk)
      iv->to = MIN (iv->to, boundary);
  }
  bm->recording = false;
  normalize (bm);
}

void
named_bitmap_begin_at (NamedBitmap *bm, uint64_t boundary, uint64_t disk_size)
{
  g_array_set_size (bm->blobs, 0);
  for (guint i = bm->intervals->len; i > 0; i--) {
    BitmapInterval *iv = interval (bm, i - 1);

    if (iv->disk == bm->disk)
      iv->from = MAX (iv->from, boundary);
    else
      g_array_remove_index (bm->intervals, i - 1);
  }
  bm->size = disk_size;
  normalize (bm);
}

bool
named_bitmap_needs_cut (const NamedBitmap *bm, int64_t disk)
{
  for (guint i = 0; i < bm->intervals->len; i++) {
    const BitmapInterval *iv = interval (bm, i);

    if (iv->disk == disk && (iv->from == BITMAP_CUT || iv->to == BITMAP_CUT))
      return true;
  }
  return false;
}

void
named_bitmap_resolve (NamedBitmap *bm, int64_t disk, uint64_t boundary)
{
  for (guint i = 0; i < bm->intervals->len; i++) {
    BitmapInterval *iv = interval (bm, i);

    if (iv->disk == disk && iv->from == BITMAP_CUT)
      iv->from = boundary;
    if (iv->disk == disk && iv->to == BITMAP_CUT)
      iv->to = boundary;
  }
  normalize (bm);
}
