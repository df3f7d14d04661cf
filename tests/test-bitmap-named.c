/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Named bitmaps against a model that keeps a flag a granule for each of them
 * and is told every write: random writes, cuts, commands, merges over two
 * disks, restarts; with epochs merged in between, which must change no
 * answer. */
#include "config.h"

#include <string.h>

#include "bitmap-test.h"
#include "bitmap/epoch.h"
#include "bitmap/granule.h"
#include "bitmap/named-bitmap.h"

#define NR_DISKS 2
#define NR_BITMAPS 6
#define DISK_SIZE (UINT64_C (3) * 1024 * 1024 + 5000)
#define UNIT 4096
#define NR_UNITS ((DISK_SIZE + UNIT - 1) / UNIT)
#define DISK_GRANULARITY 65536

typedef struct {
  bool exists, recording;
  uint32_t granularity;
  bool dirty[NR_UNITS];
} Model;

static char *dir;
static Catalog *cat;
static EpochLog *logs[NR_DISKS];
static uint32_t recorded[NR_DISKS];     /* granularity of the open epoch */
static Model model[NR_DISKS][NR_BITMAPS];

static void
start (void)
{
  DiskIdentity identity = { .size = DISK_SIZE };
  GError *error = NULL;

  cat = test_catalog (dir);
  for (unsigned d = 0; d < NR_DISKS; d++) {
    char name[] = { 'd', '0' + d, '\0' };

    logs[d] = epoch_log_open (cat, name, DISK_GRANULARITY, &identity, NULL,
                              &error);
    g_assert_no_error (error);
    recorded[d] = epoch_log_current (logs[d])->granularity;
  }
}

static void
stop (void)
{
  DiskIdentity identity = { .size = DISK_SIZE };
  GError *error = NULL;

  for (unsigned d = 0; d < NR_DISKS; d++) {
    epoch_log_close (logs[d], &identity, &error);
    g_assert_no_error (error);
    epoch_log_free (logs[d]);
  }
  catalog_free (cat);
}

static EpochLog *
find_log (void *opaque, int64_t disk)
{
  for (unsigned d = 0; d < NR_DISKS; d++)
    if (epoch_log_disk_id (logs[d]) == disk)
      return logs[d];
  return NULL;
}

static char *
bitmap_name (unsigned b)
{
  return g_strdup_printf ("b%u", b);
}

static NamedBitmap *
load (unsigned d, unsigned b)
{
  g_autofree char *name = bitmap_name (b);
  GError *error = NULL;
  NamedBitmap *bm = named_bitmap_find (cat, epoch_log_disk_id (logs[d]), 0,
                                       name, &error);

  g_assert_no_error (error);
  return bm;
}

/* A cut of both disks that puts bm, if not NULL, into effect. */
static void
cut (NamedBitmap *bm, uint32_t finer)
{
  GError *error = NULL;
  Epoch *next[NR_DISKS];

  for (unsigned d = 0; d < NR_DISKS; d++) {
    uint32_t granularity;

    named_bitmap_finest (cat, epoch_log_disk_id (logs[d]), DISK_GRANULARITY,
                         &granularity, &error);
    g_assert_no_error (error);
    granularity = MIN (granularity, MAX (finer, UNIT));
    next[d] = epoch_log_prepare (logs[d], DISK_SIZE, granularity, &error);
    g_assert_no_error (error);
    recorded[d] = granularity;
  }
  catalog_begin (cat, &error);
  g_assert_no_error (error);
  for (unsigned d = 0; d < NR_DISKS; d++) {
    if (bm != NULL)
      named_bitmap_resolve (bm, epoch_log_disk_id (logs[d]), next[d]->id);
    epoch_log_seal (logs[d], next[d], &error);
    g_assert_no_error (error);
  }
  if (bm != NULL) {
    named_bitmap_put (cat, bm, &error);
    g_assert_no_error (error);
  }
  catalog_commit (cat, &error);
  g_assert_no_error (error);
}

/* Dirty in units of granularity. */
static void
model_mark (Model *m, uint64_t offset, uint64_t length, uint32_t granularity)
{
  uint64_t first = offset / granularity * granularity;
  uint64_t end = (offset + length - 1) / granularity * granularity +
    granularity;

  for (uint64_t at = first; at < end && at < DISK_SIZE; at += UNIT)
    m->dirty[at / UNIT] = true;
}

static void
do_write (unsigned d)
{
  uint64_t offset = (uint64_t) g_test_rand_int_range (0, DISK_SIZE);
  uint64_t length = (uint64_t) g_test_rand_int_range (1, 20000);

  length = MIN (length, DISK_SIZE - offset);
  dirty_bitmap_set (epoch_log_current (logs[d])->bitmap, offset, length);
  for (unsigned b = 0; b < NR_BITMAPS; b++) {
    Model *m = &model[d][b];

    if (m->exists && m->recording)
      model_mark (m, offset, length, MAX (m->granularity, recorded[d]));
  }
}

static void
do_add (unsigned d, unsigned b)
{
  static const uint32_t granularities[] = {
    512, 4096, 8192, 65536, 1 << 20, 1 << 21, 1 << 30,
  };
  g_autofree char *name = bitmap_name (b);
  g_autoptr (NamedBitmap) bm = NULL;
  Model *m = &model[d][b];

  memset (m, 0, sizeof *m);
  m->exists = true;
  m->recording = g_test_rand_bit ();
  m->granularity =
    granularities[g_test_rand_int_range (0, G_N_ELEMENTS (granularities))];
  bm = named_bitmap_new (epoch_log_disk_id (logs[d]), name, m->granularity,
                         DISK_SIZE, m->recording);
  bm->persistent = true;
  cut (bm, m->recording ? m->granularity : UINT32_MAX);
}

static void
do_merge (unsigned d, unsigned b)
{
  unsigned from_d = (unsigned) g_test_rand_int_range (0, NR_DISKS);
  unsigned from_b = (unsigned) g_test_rand_int_range (0, NR_BITMAPS);
  Model *m = &model[d][b], *from = &model[from_d][from_b];
  g_autoptr (NamedBitmap) bm = load (d, b);
  g_autoptr (NamedBitmap) source = load (from_d, from_b);

  if (!from->exists)
    return;
  named_bitmap_merge (bm, source);
  for (uint64_t u = 0; u < NR_UNITS; u++)
    if (from->dirty[u])
      model_mark (m, u * UNIT, 1, m->granularity);
  cut (bm, UINT32_MAX);
}

static void
do_blob (unsigned d, unsigned b)
{
  Model *m = &model[d][b];
  g_autoptr (NamedBitmap) bm = load (d, b);
  g_autoptr (DirtyBitmap) bits = NULL;
  g_autoptr (ChangeSet) set = NULL;
  uint64_t offset = (uint64_t) g_test_rand_int_range (0, DISK_SIZE);
  GError *error = NULL;
  int64_t blob;

  bits = dirty_bitmap_new (DISK_SIZE, UNIT, &error);
  dirty_bitmap_set (bits, offset, 1);
  set = dirty_bitmap_to_change_set (bits, &error);
  catalog_begin (cat, &error);
  named_bitmap_store_blob (cat, set, &blob, &error);
  g_assert_no_error (error);
  named_bitmap_add_blob (bm, blob);
  named_bitmap_put (cat, bm, &error);
  g_assert_no_error (error);
  catalog_commit (cat, &error);
  g_assert_no_error (error);
  model_mark (m, offset, 1, MAX (m->granularity, UNIT));
}

static void
do_command (unsigned d, unsigned b)
{
  Model *m = &model[d][b];
  g_autoptr (NamedBitmap) bm = load (d, b);
  GError *error = NULL;

  g_assert_true ((bm != NULL) == m->exists);
  if (!m->exists) {
    do_add (d, b);
    return;
  }
  g_assert_true (bm->recording == m->recording);
  switch (g_test_rand_int_range (0, 7)) {
  case 0:
    named_bitmap_clear (bm, DISK_SIZE);
    memset (m->dirty, 0, sizeof m->dirty);
    cut (bm, UINT32_MAX);
    break;
  case 1:
    named_bitmap_enable (bm);
    m->recording = true;
    cut (bm, bm->granularity);
    break;
  case 2:
    named_bitmap_disable (bm);
    m->recording = false;
    cut (bm, UINT32_MAX);
    break;
  case 3:
  case 4:
    do_merge (d, b);
    break;
  case 5:
    do_blob (d, b);
    break;
  case 6:
    named_bitmap_delete (cat, bm->id, &error);
    g_assert_no_error (error);
    m->exists = false;
    break;
  }
}

static void
check (unsigned d, unsigned b)
{
  Model *m = &model[d][b];
  g_autoptr (NamedBitmap) bm = load (d, b);
  g_autoptr (ChangeSet) set = NULL;
  GError *error = NULL;
  bool damaged;
  uint64_t granules = 0;

  if (!m->exists)
    return;
  set = named_bitmap_changes (cat, bm, DISK_SIZE, find_log, NULL, &damaged,
                              &error);
  g_assert_no_error (error);
  g_assert_false (damaged);
  for (uint64_t u = 0; u < NR_UNITS; u++)
    if (change_set_get (set, u * UNIT) != m->dirty[u])
      g_error ("disk %u, bitmap %u (%u): unit %u is %s", d, b, m->granularity,
               (unsigned) u, m->dirty[u] ? "clean" : "dirty");
  for (uint64_t at = 0; at < DISK_SIZE; at += m->granularity)
    granules += m->dirty[at / UNIT];
  g_assert_cmpuint (named_bitmap_count (bm, set), ==,
                    granules * m->granularity);
}

/* The counts of all at once are those of each. */
static void
check_counts (unsigned d)
{
  GError *error = NULL;
  g_autoptr (GPtrArray) list =
    named_bitmap_list (cat, epoch_log_disk_id (logs[d]), 0, &error);
  g_autofree NamedBitmapCount *counts =
    named_bitmap_count_all (cat, list, DISK_SIZE, find_log, NULL, &error);

  g_assert_no_error (error);
  for (guint i = 0; i < list->len; i++) {
    g_autoptr (ChangeSet) set =
      named_bitmap_changes (cat, list->pdata[i], DISK_SIZE, find_log, NULL,
                            NULL, &error);

    g_assert_no_error (error);
    g_assert_false (counts[i].damaged);
    g_assert_cmpuint (counts[i].bytes, ==,
                      named_bitmap_count (list->pdata[i], set));
  }
}

static void
check_all (void)
{
  for (unsigned d = 0; d < NR_DISKS; d++) {
    for (unsigned b = 0; b < NR_BITMAPS; b++)
      check (d, b);
    check_counts (d);
  }
}

static void
test_random (void)
{
  GError *error = NULL;

  memset (model, 0, sizeof model);
  dir = test_dir_new ();
  start ();
  for (unsigned i = 0; i < 600; i++) {
    unsigned d = (unsigned) g_test_rand_int_range (0, NR_DISKS);

    switch (g_test_rand_int_range (0, 12)) {
    default:
      do_write (d);
      break;
    case 7:
    case 8:
    case 9:
      do_command (d, (unsigned) g_test_rand_int_range (0, NR_BITMAPS));
      break;
    case 10:
      epoch_log_store (logs[d], &error);
      g_assert_no_error (error);
      epoch_log_compact (logs[d], &error);
      g_assert_no_error (error);
      break;
    case 11:
      if (g_test_rand_int_range (0, 8) == 0) {
        stop ();
        start ();
      }
      break;
    }
    if (i % 10 == 0)
      check_all ();
  }
  check_all ();
  stop ();
  test_dir_free (dir);
}

/* Epochs between boundaries that are gone become one; those at boundaries
 * stay. */
static void
test_compact (void)
{
  g_autoptr (NamedBitmap) old = NULL;
  g_autoptr (NamedBitmap) young = NULL;
  g_autoptr (ChangeSet) set = NULL;
  GError *error = NULL;
  bool damaged;

  dir = test_dir_new ();
  start ();
  old = named_bitmap_new (epoch_log_disk_id (logs[0]), "old", 65536, DISK_SIZE,
                          true);
  cut (old, UINT32_MAX);
  for (unsigned i = 0; i < 100; i++) {
    dirty_bitmap_set (epoch_log_current (logs[0])->bitmap, i % 7 * 65536, 1);
    cut (NULL, UINT32_MAX);
    if (i == 49) {
      young = named_bitmap_new (epoch_log_disk_id (logs[0]), "young", 65536,
                                DISK_SIZE, true);
      cut (young, UINT32_MAX);
    }
  }
  epoch_log_store (logs[0], &error);
  g_assert_no_error (error);
  g_assert_cmpint (test_sql_int (cat, "SELECT count (*) FROM epoch"
                                 " WHERE disk = 1"), >, 100);
  epoch_log_compact (logs[0], &error);
  g_assert_no_error (error);
  /* Before "old", from there to "young", from there on, and the open one. */
  g_assert_cmpint (test_sql_int (cat, "SELECT count (*) FROM epoch"
                                 " WHERE disk = 1"), ==, 4);
  set = named_bitmap_changes (cat, young, DISK_SIZE, find_log, NULL, &damaged,
                              &error);
  g_assert_no_error (error);
  g_assert_false (damaged);
  g_assert_cmpuint (change_set_count (set), ==, 7);
  stop ();
  start ();
  g_clear_pointer (&set, change_set_unref);
  set = named_bitmap_changes (cat, old, DISK_SIZE, find_log, NULL, &damaged,
                              &error);
  g_assert_no_error (error);
  g_assert_false (damaged);
  g_assert_cmpuint (change_set_count (set), ==, 7);
  stop ();
  test_dir_free (dir);
}

/* An epoch that cannot be read: dirty, and told. */
static void
test_damaged (void)
{
  g_autoptr (NamedBitmap) bm = NULL;
  g_autoptr (ChangeSet) set = NULL;
  GError *error = NULL;
  bool damaged = false;

  dir = test_dir_new ();
  start ();
  bm = named_bitmap_new (epoch_log_disk_id (logs[0]), "b", 65536, DISK_SIZE,
                         true);
  cut (bm, UINT32_MAX);
  dirty_bitmap_set (epoch_log_current (logs[0])->bitmap, 0, 1);
  cut (NULL, UINT32_MAX);
  epoch_log_store (logs[0], &error);
  g_assert_no_error (error);
  test_sql (cat, "UPDATE epoch SET blob = x'00' WHERE blob IS NOT NULL");
  set = named_bitmap_changes (cat, bm, DISK_SIZE, find_log, NULL, &damaged,
                              &error);
  g_assert_no_error (error);
  g_assert_true (damaged);
  g_assert_cmpuint (change_set_count (set), ==, 49);
  stop ();
  test_dir_free (dir);
}

/* What a disk has lost and got back is dirty, also for one that does not record
 * (QEMU's would say that it is clean). */
static void
test_resize (void)
{
  static const uint64_t sizes[] = { DISK_SIZE / 2, DISK_SIZE };
  g_autoptr (NamedBitmap) bm = NULL;
  g_autoptr (ChangeSet) set = NULL;
  GError *error = NULL;
  bool damaged;

  dir = test_dir_new ();
  start ();
  bm = named_bitmap_new (epoch_log_disk_id (logs[0]), "off", 65536, DISK_SIZE,
                         false);
  cut (bm, UINT32_MAX);
  g_clear_pointer (&bm, named_bitmap_free);
  for (unsigned i = 0; i < 2; i++) {
    Epoch *next = epoch_log_prepare (logs[0], sizes[i], 65536, &error);

    g_assert_no_error (error);
    catalog_begin (cat, &error);
    epoch_log_seal (logs[0], next, &error);
    g_assert_no_error (error);
    catalog_commit (cat, &error);
    g_assert_no_error (error);
    g_clear_pointer (&bm, named_bitmap_free);
    bm = named_bitmap_find (cat, epoch_log_disk_id (logs[0]), 0, "off",
                            &error);
    g_clear_pointer (&set, change_set_unref);
    set = named_bitmap_changes (cat, bm, sizes[i], find_log, NULL, &damaged,
                                &error);
    g_assert_no_error (error);
    g_assert_false (damaged);
    g_assert_false (change_set_get (set, 0));
    g_assert_true (change_set_get (set, sizes[i] - 1) == (i == 1));
  }
  stop ();
  test_dir_free (dir);
}

/* Fine into coarse into fine: what went through the coarse one comes out
 * coarse, as if the bits had been copied. */
static void
test_chain (void)
{
  static const uint32_t granularities[] = { 4096, 65536, 4096 };
  NamedBitmap *bm[3];
  g_autoptr (ChangeSet) set = NULL;
  GError *error = NULL;
  bool damaged;

  dir = test_dir_new ();
  start ();
  for (unsigned i = 0; i < 3; i++) {
    char name[] = { 'c', '0' + i, '\0' };

    bm[i] = named_bitmap_new (epoch_log_disk_id (logs[0]), name,
                              granularities[i], DISK_SIZE, i == 0);
    cut (bm[i], granularities[0]);
  }
  dirty_bitmap_set (epoch_log_current (logs[0])->bitmap, 70000, 1);
  for (unsigned i = 1; i < 3; i++) {
    named_bitmap_merge (bm[i], bm[i - 1]);
    cut (bm[i], UINT32_MAX);
  }
  for (unsigned i = 0; i < 3; i++) {
    g_clear_pointer (&set, change_set_unref);
    set = named_bitmap_changes (cat, bm[i], DISK_SIZE, find_log, NULL,
                                &damaged, &error);
    g_assert_no_error (error);
    g_assert_cmpuint (named_bitmap_count (bm[i], set), ==,
                      i == 0 ? 4096 : 65536);
    named_bitmap_free (bm[i]);
  }
  stop ();
  test_dir_free (dir);
}

/* What a snapshot keeps stays as it was, whatever becomes of the live one. */
static void
test_freeze (void)
{
  g_autoptr (NamedBitmap) bm = NULL;
  g_autoptr (NamedBitmap) kept = NULL;
  g_autoptr (ChangeSet) set = NULL;
  GError *error = NULL;
  bool damaged = false;
  int64_t disk;

  dir = test_dir_new ();
  start ();
  disk = epoch_log_disk_id (logs[0]);
  bm = named_bitmap_new (disk, "b", 65536, DISK_SIZE, true);
  cut (bm, UINT32_MAX);
  dirty_bitmap_set (epoch_log_current (logs[0])->bitmap, 0, 1);
  cut (NULL, UINT32_MAX);
  test_sql (cat, "INSERT INTO snapshot (id, disk, name, boundary, size, state,"
            " created, on_error, scratch_limit)"
            " VALUES (5, 1, 's', 3, 1, 'live', 0, '', 0)");
  named_bitmap_freeze (cat, disk, 5, epoch_log_current (logs[0])->id, &error);
  g_assert_no_error (error);
  dirty_bitmap_set (epoch_log_current (logs[0])->bitmap, 1 << 20, 1);
  named_bitmap_delete (cat, bm->id, &error);
  g_assert_no_error (error);
  kept = named_bitmap_find (cat, disk, 5, "b", &error);
  g_assert_no_error (error);
  g_assert_nonnull (kept);
  set = named_bitmap_changes (cat, kept, DISK_SIZE, find_log, NULL, &damaged,
                              &error);
  g_assert_no_error (error);
  g_assert_false (damaged);
  g_assert_cmpuint (change_set_count (set), ==, 1);
  g_assert_true (change_set_get (set, 0));
  test_sql (cat, "DELETE FROM snapshot");
  g_assert_cmpint (test_sql_int (cat, "SELECT count (*) FROM bitmap"), ==, 0);
  stop ();
  test_dir_free (dir);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/bitmap/named/random", test_random);
  g_test_add_func ("/bitmap/named/compact", test_compact);
  g_test_add_func ("/bitmap/named/damaged", test_damaged);
  g_test_add_func ("/bitmap/named/resize", test_resize);
  g_test_add_func ("/bitmap/named/chain", test_chain);
  g_test_add_func ("/bitmap/named/freeze", test_freeze);
  return g_test_run ();
}
