/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <pthread.h>
#include <string.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/named-bitmap.h"
#include "fleece/disk.h"
#include "tests/sim-bitmap.h"

/* As the names: b0 .. */
static const uint32_t granularity[NR_BITMAPS] = { GRANULE, 65536, 8192 };
#define COARSEST 65536

/* Between what is known before a call and after it; not over calls. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

/* phase: bit 0: the state that was promised; bit 1: the other is under way. */
#define UNDER_WAY 2

static void
bitmap_name (unsigned b, char out[4])
{
  g_snprintf (out, 4, "b%u", b);
}

unsigned
sim_bitmaps_promised (void)
{
  return atomic_load (&oracle->phase) & 1;
}

static struct oracle_bitmap *
model (unsigned state, unsigned d, unsigned b)
{
  return &oracle->state[state].bitmap[d][b];
}

/* --- writes */

static void
mark (uint8_t *granules, uint64_t offset, uint64_t length, uint32_t unit)
{
  uint64_t first = offset / unit * unit / GRANULE;
  uint64_t end = (offset + length + unit - 1) / unit * unit / GRANULE;

  for (uint64_t g = first; g < MIN (end, NR_GRANULES); g++)
    granules[g] = 1;
}

/* On whichever side of a change it is. */
static void
mark_all (unsigned state, const struct oracle_write *w)
{
  for (unsigned d = 0; d < NR_DISKS; d++)
    for (unsigned b = 0; b < NR_BITMAPS; b++)
      mark (model (state, d, b)->may, w->offset, w->length, COARSEST);
}

uint32_t
sim_submit (unsigned thread, unsigned d, uint64_t offset, uint64_t length,
            bool all)
{
  struct oracle_write *w = &oracle->in_flight[thread];
  uint32_t version;
  unsigned phase;

  pthread_mutex_lock (&mutex);
  phase = atomic_load (&oracle->phase);
  w->disk = d;
  w->offset = offset;
  w->length = length;
  w->after = oracle->changes;
  w->version = version = ++oracle->version;
  w->resize = all;
  w->active = true;
  for (unsigned b = 0; b < NR_BITMAPS; b++) {
    struct oracle_bitmap *bm = model (phase & 1, d, b);

    if (bm->exists && (bm->recording || all))
      mark (bm->may, offset, length, granularity[b]);
  }
  if (phase & UNDER_WAY)
    mark_all (!(phase & 1), w);
  pthread_mutex_unlock (&mutex);
  return version;
}

uint32_t
sim_oldest_in_flight (void)
{
  uint32_t oldest;

  pthread_mutex_lock (&mutex);
  oldest = oracle->version + 1;
  for (unsigned i = 0; i < NR_WRITERS; i++)
    if (oracle->in_flight[i].active)
      oldest = MIN (oldest, oracle->in_flight[i].version);
  pthread_mutex_unlock (&mutex);
  return oldest;
}

/* Of those that record for sure since before it.  Of a resize, the granule that
 * the disk ended in may have been dirty already or not. */
static void
must_have (unsigned state, const struct oracle_write *w)
{
  uint64_t first = w->offset, end = w->offset + w->length;

  if (w->resize)
    first = (first + GRANULE - 1) / GRANULE * GRANULE;
  for (unsigned b = 0; first < end && b < NR_BITMAPS; b++) {
    struct oracle_bitmap *bm = model (state, w->disk, b);

    if (bm->exists && bm->recording && bm->since <= w->after)
      mark (bm->must, first, end - first, GRANULE);
  }
}

void
sim_ack (unsigned thread, bool done)
{
  struct oracle_write *w = &oracle->in_flight[thread];
  unsigned phase;

  pthread_mutex_lock (&mutex);
  phase = atomic_load (&oracle->phase);
  if (done) {
    must_have (phase & 1, w);
    if (phase & UNDER_WAY)
      must_have (!(phase & 1), w);
  }
  w->active = false;
  pthread_mutex_unlock (&mutex);
}

/* --- changes */

struct SimChange {
  BitmapEdit edit[MAX_EDITS];
  unsigned nr;
  NamedBitmap *bitmap[NR_DISKS][NR_BITMAPS];    /* that were looked up */
  int64_t removed[MAX_EDITS];
  unsigned nr_removed;
};

static void
merge_model (struct oracle_bitmap *to, const struct oracle_bitmap *from,
             uint32_t unit)
{
  for (uint64_t g = 0; g < NR_GRANULES; g++) {
    to->must[g] |= from->must[g];
    if (from->may[g])
      mark (to->may, g * GRANULE, GRANULE, unit);
  }
}

static void
clear_model (struct oracle_bitmap *bm, unsigned change)
{
  memset (bm->must, 0, sizeof bm->must);
  memset (bm->may, 0, sizeof bm->may);
  bm->since = change;
}

/* False: it makes no sense. */
static bool
edit_model (unsigned state, const BitmapEdit *edit, unsigned change)
{
  struct oracle_bitmap *bm = model (state, edit->disk, edit->bitmap);
  const struct oracle_bitmap *from = model (state, edit->from_disk,
                                            edit->from);

  if (bm->exists != (edit->kind != ADD))
    return false;
  switch (edit->kind) {
  case ADD:
    clear_model (bm, change);
    bm->exists = true;
    bm->recording = !edit->disabled;
    return true;
  case CLEAR:
    clear_model (bm, change);
    return true;
  case ENABLE:
    if (bm->recording)
      return false;
    bm->recording = true;
    bm->since = change;
    return true;
  case DISABLE:
    if (!bm->recording)
      return false;
    bm->recording = false;
    return true;
  case MERGE:
    if (from == bm || !from->exists)
      return false;
    /* Of one disk, others may be resizing it. */
    if (edit->disk != edit->from_disk &&
        oracle->disk[edit->disk].size != oracle->disk[edit->from_disk].size)
      return false;
    merge_model (bm, from, granularity[edit->bitmap]);
    return true;
  default:
    g_assert_cmpint (edit->kind, ==, REMOVE);
    bm->exists = false;
    return true;
  }
}

static NamedBitmap *
look_up (SimChange *change, unsigned d, unsigned b)
{
  NamedBitmap **at = &change->bitmap[d][b];
  g_autoptr (GError) error = NULL;
  char name[4];

  bitmap_name (b, name);
  if (*at == NULL)
    *at = named_bitmap_find (sim_catalog,
                             epoch_log_disk_id (disk_epoch_log (disk[d])), 0,
                             name, &error);
  g_assert_no_error (error);
  g_assert_nonnull (*at);
  return *at;
}

static void
edit_bitmap (SimChange *change, const BitmapEdit *edit)
{
  NamedBitmap **at = &change->bitmap[edit->disk][edit->bitmap], *bm;
  uint64_t size = disk_size (disk[edit->disk]);
  char name[4];

  if (edit->kind == ADD) {
    bitmap_name (edit->bitmap, name);
    *at = named_bitmap_new (epoch_log_disk_id
                            (disk_epoch_log (disk[edit->disk])), name,
                            granularity[edit->bitmap], size, !edit->disabled);
    (*at)->persistent = true;
    return;
  }
  bm = look_up (change, edit->disk, edit->bitmap);
  switch (edit->kind) {
  case CLEAR:
    named_bitmap_clear (bm, size);
    return;
  case ENABLE:
    named_bitmap_enable (bm);
    return;
  case DISABLE:
    named_bitmap_disable (bm);
    return;
  case MERGE:
    named_bitmap_merge (bm, look_up (change, edit->from_disk, edit->from));
    return;
  default:                      /* REMOVE */
    if (bm->id != 0)
      change->removed[change->nr_removed++] = bm->id;
    g_clear_pointer (at, named_bitmap_free);
  }
}

SimChange *
sim_change_begin (const BitmapEdit *edit, unsigned nr)
{
  SimChange *change = g_new0 (SimChange, 1);
  unsigned now = sim_bitmaps_promised (), number = oracle->changes + 1;

  g_assert_cmpuint (nr, <=, MAX_EDITS);
  pthread_mutex_lock (&mutex);
  oracle->state[!now] = oracle->state[now];
  for (unsigned i = 0; i < nr; i++)
    if (edit_model (!now, &edit[i], number))
      change->edit[change->nr++] = edit[i];
  for (unsigned i = 0; i < NR_WRITERS; i++)
    if (oracle->in_flight[i].active)
      mark_all (!now, &oracle->in_flight[i]);
  if (change->nr > 0)
    atomic_store (&oracle->phase, now | UNDER_WAY);
  pthread_mutex_unlock (&mutex);
  for (unsigned i = 0; i < change->nr; i++)
    edit_bitmap (change, &change->edit[i]);
  if (change->nr == 0)
    g_clear_pointer (&change, g_free);
  return change;
}

bool
sim_change_needs_cut (const SimChange *change, unsigned d)
{
  int64_t id = epoch_log_disk_id (disk_epoch_log (disk[d]));

  for (unsigned i = 0; i < NR_DISKS; i++)
    for (unsigned b = 0; b < NR_BITMAPS; b++)
      if (change->bitmap[i][b] != NULL &&
          named_bitmap_needs_cut (change->bitmap[i][b], id))
        return true;
  return false;
}

bool
sim_change_write (SimChange *change, const FleeceCutDisk *part, unsigned nr,
                  GError **error)
{
  for (unsigned i = 0; i < change->nr_removed; i++)
    if (!named_bitmap_delete (sim_catalog, change->removed[i], error))
      return false;
  for (unsigned d = 0; d < NR_DISKS; d++)
    for (unsigned b = 0; b < NR_BITMAPS; b++) {
      NamedBitmap *bm = change->bitmap[d][b];

      for (unsigned i = 0; bm != NULL && i < nr; i++)
        named_bitmap_resolve (bm, epoch_log_disk_id
                              (disk_epoch_log (part[i].disk)),
                              part[i].boundary);
      if (bm != NULL && !named_bitmap_put (sim_catalog, bm, error))
        return false;
    }
  return true;
}

void
sim_change_end (SimChange *change)
{
  pthread_mutex_lock (&mutex);
  oracle->changes++;
  atomic_store (&oracle->phase, !sim_bitmaps_promised ());
  pthread_mutex_unlock (&mutex);
  for (unsigned d = 0; d < NR_DISKS; d++)
    for (unsigned b = 0; b < NR_BITMAPS; b++)
      named_bitmap_free (change->bitmap[d][b]);
  g_free (change);
}

/* --- of snapshots */

void
sim_bitmaps_freeze (struct oracle_part *part, unsigned d)
{
  pthread_mutex_lock (&mutex);
  for (unsigned b = 0; b < NR_BITMAPS; b++)
    part->frozen[b] = *model (sim_bitmaps_promised (), d, b);
  pthread_mutex_unlock (&mutex);
}

void
sim_bitmaps_frozen (struct oracle_part *part, unsigned d, unsigned old)
{
  pthread_mutex_lock (&mutex);
  for (unsigned b = 0; b < NR_BITMAPS; b++)
    memcpy (part->frozen[b].may, model (old, d, b)->may,
            sizeof part->frozen[b].may);
  pthread_mutex_unlock (&mutex);
}

/* --- checks */

static EpochLog *
find_log (void *opaque, int64_t id)
{
  for (unsigned d = 0; d < NR_DISKS; d++)
    if (epoch_log_disk_id (disk_epoch_log (disk[d])) == id)
      return disk_epoch_log (disk[d]);
  return NULL;
}

static NamedBitmap *
find_bitmap (unsigned d, unsigned b, int64_t snapshot)
{
  g_autoptr (GError) error = NULL;
  NamedBitmap *bm;
  char name[4];

  bitmap_name (b, name);
  bm = named_bitmap_find (sim_catalog,
                          epoch_log_disk_id (disk_epoch_log (disk[d])),
                          snapshot, name, &error);
  g_assert_no_error (error);
  return bm;
}

static ChangeSet *
changes_of (const NamedBitmap *bm, uint64_t size)
{
  g_autoptr (GError) error = NULL;
  ChangeSet *set = named_bitmap_changes (sim_catalog, bm, size, find_log, NULL,
                                         NULL, &error);

  g_assert_no_error (error);
  return set;
}

/* NULL, or what is wrong; the caller frees. */
static char *
compare (const struct oracle_bitmap *bm, const NamedBitmap *is,
         uint64_t size, bool exact, bool live)
{
  g_autoptr (ChangeSet) set = NULL;

  if (bm->exists != (is != NULL))
    return g_strdup (is != NULL ? "should have gone" : "is missing");
  if (is == NULL)
    return NULL;
  if (live && is->recording != bm->recording)
    return g_strdup (is->recording ? "records" : "does not record");
  set = changes_of (is, size);
  for (uint64_t at = 0; at < size; at += GRANULE) {
    bool dirty = change_set_get (set, at);

    if (bm->must[at / GRANULE] && !dirty)
      return g_strdup_printf ("says offset %" G_GUINT64_FORMAT " is clean, "
                              "which was written", at);
    if (exact && dirty && !bm->may[at / GRANULE])
      return g_strdup_printf ("says offset %" G_GUINT64_FORMAT " is dirty, "
                              "which was not written", at);
  }
  return NULL;
}

static char *
compare_all (unsigned state, bool exact)
{
  for (unsigned d = 0; d < NR_DISKS; d++)
    for (unsigned b = 0; b < NR_BITMAPS; b++) {
      g_autoptr (NamedBitmap) is = find_bitmap (d, b, 0);
      g_autofree char *wrong = compare (model (state, d, b), is,
                                        disk_size (disk[d]), exact, true);

      if (wrong != NULL)
        return g_strdup_printf ("b%u of disk %u %s", b, d, wrong);
    }
  return NULL;
}

/* A write that nobody told the end of, but that is there. */
static void
settle_writes (uint64_t *const *now)
{
  for (unsigned i = 0; i < NR_WRITERS; i++) {
    struct oracle_write *w = &oracle->in_flight[i], sector = *w;

    for (uint64_t s = w->offset / SIM_SECTOR;
         w->active && !w->resize && s < (w->offset + w->length) / SIM_SECTOR;
         s++) {
      sector.offset = s * SIM_SECTOR;
      sector.length = SIM_SECTOR;
      if (now[w->disk][s] >> 32 == w->version)
        for (unsigned state = 0; state < 2; state++)
          must_have (state, &sector);
    }
    w->active = false;
  }
}

/* Both may be: then what is sure is what both are sure of. */
static void
join_states (unsigned a, unsigned b)
{
  for (unsigned d = 0; d < NR_DISKS; d++)
    for (unsigned i = 0; i < NR_BITMAPS; i++) {
      struct oracle_bitmap *to = model (a, d, i);
      const struct oracle_bitmap *from = model (b, d, i);

      for (uint64_t g = 0; g < NR_GRANULES; g++) {
        to->must[g] &= from->must[g];
        to->may[g] |= from->may[g];
      }
    }
}

/* The tmpfs has all. */
static bool
is_exact (Crash crash, bool precise)
{
  return precise && (crash == KILLED || crash == POWER);
}

void
sim_check_bitmaps (Crash crash, bool precise, uint64_t *const *now,
                   bool *out_old, bool *out_new)
{
  unsigned phase = atomic_load (&oracle->phase), old = phase & 1;
  bool under_way = phase & UNDER_WAY, exact = is_exact (crash, precise);
  g_autofree char *not_old = NULL, *not_new = NULL;

  settle_writes (now);
  not_old = compare_all (old, exact);
  if (under_way)
    not_new = compare_all (!old, exact);
  if (not_old != NULL && !under_way)
    g_error ("bitmap: %s", not_old);
  if (not_old != NULL && not_new != NULL)
    g_error ("bitmap: half of a change: as before, %s; as after, %s", not_old,
             not_new);
  if (under_way && not_old == NULL && not_new == NULL)
    join_states (old, !old);
  *out_old = not_old == NULL;
  *out_new = under_way && not_new == NULL;
  atomic_store (&oracle->phase, not_old != NULL ? !old : old);
}

void
sim_check_frozen (const struct oracle_part *part, unsigned d,
                  const Snapshot *snap, Crash crash, bool precise)
{
  for (unsigned b = 0; b < NR_BITMAPS; b++) {
    g_autoptr (NamedBitmap) is = find_bitmap (d, b, snapshot_id (snap));
    g_autofree char *wrong = compare (&part->frozen[b], is,
                                      snapshot_size (snap),
                                      is_exact (crash, precise), false);

    if (wrong != NULL)
      g_error ("bitmap: b%u of %s of disk %u %s", b, snapshot_name (snap), d,
               wrong);
  }
}

/* --- merging epochs */

static ChangeSet *
reported (unsigned d, unsigned b)
{
  g_autoptr (NamedBitmap) bm = find_bitmap (d, b, 0);

  return bm != NULL ? changes_of (bm, disk_size (disk[d])) : NULL;
}

static void
compact (void)
{
  g_autoptr (GError) error = NULL;

  if (!fleece_store_epochs (fleece, &error) ||
      !fleece_compact_epochs (fleece, &error))
    g_error ("merging epochs: %s", error->message);
}

void
sim_compact (bool alone)
{
  ChangeSet *before[NR_DISKS][NR_BITMAPS];

  for (unsigned d = 0; alone && d < NR_DISKS; d++)
    for (unsigned b = 0; b < NR_BITMAPS; b++)
      before[d][b] = reported (d, b);
  compact ();
  for (unsigned d = 0; alone && d < NR_DISKS; d++)
    for (unsigned b = 0; b < NR_BITMAPS; b++) {
      g_autoptr (ChangeSet) is = reported (d, b), was = before[d][b];

      for (uint64_t at = 0; is != NULL && at < disk_size (disk[d]);
           at += GRANULE)
        if (change_set_get (is, at) != change_set_get (was, at))
          g_error ("bitmap: merging epochs changed b%u of disk %u at offset %"
                   G_GUINT64_FORMAT, b, d, at);
    }
}
