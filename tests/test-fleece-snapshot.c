/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Random histories of writes, zeroes, trims, cuts and ends in any order: every
 * snapshot reads as the disk was at its cut, also when read again later; the
 * extents since every boundary are exactly what was written. */
#include <config.h>

#include <errno.h>
#include <string.h>

#include "tests/fleece-fixture.h"

#define SIZE (2 * 1024 * 1024 + 1536)   /* an odd last block */
#define GRANULE 65536
#define NR_GRANULES (SIZE / GRANULE + 1)
#define MAX_SNAPS 12

typedef struct {
  Snapshot *snap;
  char *content;                /* of the disk at its cut */
  uint64_t boundary;
  bool dirty[NR_GRANULES];      /* since the cut */
} Model;

static Fixture *fx;
static char *disk_content;
static Model model[MAX_SNAPS];
static unsigned nr_models, next_name;

static void
mark (uint64_t offset, uint64_t length)
{
  for (unsigned i = 0; i < nr_models; i++)
    for (uint64_t b = offset / GRANULE; b <= (offset + length - 1) / GRANULE;
         b++)
      model[i].dirty[b] = true;
}

static void
random_range (uint64_t *offset, uint64_t *length)
{
  uint64_t max = g_test_rand_bit () ? 9000 : SIZE / 2;

  *offset = g_test_rand_int_range (0, SIZE);
  *length = g_test_rand_int_range (1, MIN (max, SIZE - *offset) + 1);
  if (g_test_rand_bit ()) {     /* as guests do */
    *offset = *offset / 512 * 512;
    *length = MIN (*length + 511, SIZE - *offset) / 512 * 512;
    if (*length == 0)
      *length = SIZE - *offset;
  }
}

static void
do_write (void)
{
  uint64_t offset, length;
  g_autofree char *buf = NULL;

  random_range (&offset, &length);
  buf = g_malloc (length);
  memset (buf, g_test_rand_int_range (0, 256), length);
  g_assert_cmpint (disk_pwrite (fx->disk[0], buf, length, offset,
                                g_test_rand_bit ()), ==, 0);
  memcpy (disk_content + offset, buf, length);
  mark (offset, length);
}

static void
do_zero (void)
{
  uint64_t offset, length;

  random_range (&offset, &length);
  g_assert_cmpint (disk_zero (fx->disk[0], length, offset,
                              g_test_rand_bit () ? DISK_MAY_PUNCH : 0), ==, 0);
  memset (disk_content + offset, 0, length);
  mark (offset, length);
}

/* What a trimmed range reads as is the disk's choice: ask it. */
static void
do_trim (void)
{
  uint64_t offset, length;

  random_range (&offset, &length);
  g_assert_cmpint (disk_trim (fx->disk[0], length, offset, false), ==, 0);
  g_assert_cmpint (disk_pread (fx->disk[0], disk_content + offset, length,
                               offset), ==, 0);
  mark (offset, length);
}

static void
do_cut (void)
{
  Model *m;
  g_autofree char *name = g_strdup_printf ("s%u", next_name++);

  if (nr_models == MAX_SNAPS)
    return;
  m = &model[nr_models++];
  memset (m, 0, sizeof *m);
  /* Now and then a checkpoint without a snapshot. */
  m->snap = fixture_cut (fx, 0, g_test_rand_int_range (0, 4) ? name : NULL,
                         &m->boundary);
  m->content = g_memdup2 (disk_content, SIZE);
}

static void
do_end (void)
{
  g_autoptr (GError) error = NULL;
  Model *m;
  char byte;

  if (nr_models == 0)
    return;
  m = &model[g_test_rand_int_range (0, nr_models)];
  if (m->snap != NULL) {
    snapshot_end (m->snap, &error);
    g_assert_no_error (error);
    g_assert_cmpint (snapshot_pread (m->snap, &byte, 1, 0), ==, -ESHUTDOWN);
    snapshot_unref (m->snap);
  }
  g_free (m->content);
  *m = model[--nr_models];
}

struct walk {
  const char *content;
  uint64_t offset;
};

static int
check_run (void *opaque, uint64_t length, bool zero)
{
  struct walk *w = opaque;

  g_assert_cmpint (length, >, 0);
  for (uint64_t i = 0; zero && i < length; i++)
    g_assert_cmpint (w->content[w->offset + i], ==, 0);
  w->offset += length;
  return 0;
}

static void
check_model (Model *m)
{
  g_autoptr (ChangeSet) set = NULL;
  g_autoptr (GError) error = NULL;
  bool damaged = false;

  set = epoch_log_changed (disk_epoch_log (fx->disk[0]), m->boundary, 0,
                           &damaged, &error);
  g_assert_no_error (error);
  g_assert_false (damaged);
  for (uint64_t g = 0; g < NR_GRANULES; g++)
    g_assert_cmpint (change_set_get (set, g * GRANULE), ==, m->dirty[g]);
  if (m->snap != NULL) {
    g_autofree char *got = fixture_read_snapshot (m->snap);
    uint64_t offset, length;
    struct walk w = { m->content, 0 };

    g_assert_cmpmem (got, SIZE, m->content, SIZE);
    random_range (&offset, &length);
    g_assert_cmpint (snapshot_pread (m->snap, got, length, offset), ==, 0);
    g_assert_cmpmem (got, length, m->content + offset, length);
    g_assert_cmpint (snapshot_extents (m->snap, SIZE, 0, check_run, &w), ==,
                     0);
    g_assert_cmpint (w.offset, ==, SIZE);
    w.offset = offset;
    g_assert_cmpint (snapshot_extents (m->snap, length, offset, check_run,
                                       &w), ==, 0);
    g_assert_cmpint (w.offset, ==, offset + length);
  }
}

static void
test_histories (void)
{
  g_autofree char *got = g_malloc (SIZE);

  for (int round = 0; round < 8; round++) {
    g_autoptr (GError) error = NULL;

    fx = fixture_new (1, SIZE);
    fixture_start (fx);
    disk_content = g_malloc0 (SIZE);
    for (int step = 0; step < 120; step++) {
      switch (g_test_rand_int_range (0, 10)) {
      case 0: do_cut (); break;
      case 1: do_end (); break;
      case 2: do_zero (); break;
      case 3: do_trim (); break;
      case 4:
        fleece_store_epochs (fx->f, &error);
        g_assert_no_error (error);
        break;
      default: do_write ();
      }
      if (step % 10 == 9)
        for (unsigned i = 0; i < nr_models; i++)
          check_model (&model[i]);
    }
    g_assert_cmpint (disk_pread (fx->disk[0], got, SIZE, 0), ==, 0);
    g_assert_cmpmem (got, SIZE, disk_content, SIZE);
    while (nr_models > 0)
      do_end ();
    g_assert_cmpint (fixture_nr_scratch_files (fx), ==, 0);
    g_assert_cmpstr (fx->notes->str, ==, "");
    fixture_free (fx);
    g_free (disk_content);
  }
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/fleece/snapshot/histories", test_histories);
  return g_test_run ();
}
