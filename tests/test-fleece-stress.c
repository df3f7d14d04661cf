/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Writers, cutters, readers and enders at once, for the sanitizers above all.
 * Writers stamp what they write, so that each snapshot can be checked by
 * itself: it is stable, no block is torn or older than what was acknowledged
 * before its cut, or newer than what was sent after; and an image rebuilt from
 * a full read and increments, each from another base, equals the snapshot. */
#include <config.h>

#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "tests/fleece-fixture.h"

#define SIZE (2 * 1024 * 1024 + 512)    /* an odd end, which is trimmed too */
#define BLOCK 4096
#define NR_BLOCKS 384           /* stamped: 1.5 MiB; behind: zeroes and trims */
#define FREE (NR_BLOCKS * BLOCK)
#define NR_WRITERS 3
#define NR_CUTS 18
#define KEPT 6                  /* snapshots alive at once */

typedef struct {
  uint32_t disk, block, version, sector;
} Stamp;

static Fixture *fx;
static atomic_bool stop;
/* Each stamped block has one writer: what it has sent, what was
 * acknowledged. */
static atomic_uint sent[NR_BLOCKS], acked[NR_BLOCKS];

typedef struct {
  unsigned index;
  uint64_t random;
} Writer;

static uint32_t
next_random (Writer *w)
{
  w->random = w->random * UINT64_C (6364136223846793005) + 1442695040888963407;
  return w->random >> 33;
}

/* Every sector has a stamp of its own. */
static void
fill (char *buf, uint32_t block, uint32_t version)
{
  for (uint32_t i = 0; i < BLOCK / 512; i++) {
    Stamp stamp = { 0, block, version, i };

    memset (buf + i * 512, (int) version, 512);
    memcpy (buf + i * 512, &stamp, sizeof stamp);
  }
}

/* A block of version n: whole, or its sectors one by one, or zeroed. */
static void
write_block (Writer *w, uint32_t block)
{
  char buf[BLOCK];
  uint32_t version = atomic_load (&sent[block]) + 1;
  uint64_t at = (uint64_t) block * BLOCK;
  int err = 0;

  fill (buf, block, version);
  atomic_store (&sent[block], version);
  switch (next_random (w) % 4) {
  case 0:
    for (unsigned i = 0; err == 0 && i < BLOCK / 512; i++)
      err = disk_pwrite (fx->disk[0], buf + i * 512, 512, at + i * 512, false);
    break;
  default:
    err = disk_pwrite (fx->disk[0], buf, BLOCK, at, next_random (w) % 1024 == 0);
  }
  g_assert_cmpint (err, ==, 0);
  atomic_store (&acked[block], version);
}

/* Behind the stamps all threads may write: any range, any bytes. */
static void
scribble (Writer *w)
{
  static const char bytes[65536] = "scribble";
  uint64_t at = FREE + next_random (w) % (SIZE - FREE);
  uint64_t any = 1 + next_random (w) % 60000;   /* MIN takes its values twice */
  uint64_t length = MIN (any, SIZE - at);
  int err;

  switch (next_random (w) % 4) {
  case 0: err = disk_pwrite (fx->disk[0], bytes, length, at, false); break;
  case 1: err = disk_trim (fx->disk[0], length, at, false); break;
  case 2: err = disk_zero (fx->disk[0], length, at, 0); break;
  default: err = disk_zero (fx->disk[0], length, at, DISK_MAY_PUNCH);
  }
  g_assert_cmpint (err, ==, 0);
}

static int
run_writer (void *opaque)
{
  Writer *w = opaque;

  while (!atomic_load (&stop)) {
    uint32_t block = next_random (w) % (NR_BLOCKS / NR_WRITERS) * NR_WRITERS
      + w->index;

    write_block (w, block);
    if (next_random (w) % 4 == 0)
      scribble (w);
  }
  return 0;
}

/* A snapshot, and what is known about its instant. */
typedef struct {
  Snapshot *snap;
  uint64_t boundary;
  unsigned low[NR_BLOCKS], high[NR_BLOCKS];     /* versions it can have */
  char *content;                /* as first read */
} View;

static void
check_stamps (const View *view)
{
  for (uint32_t b = 0; b < NR_BLOCKS; b++) {
    uint32_t before = UINT32_MAX;

    for (uint32_t i = 0; i < BLOCK / 512; i++) {
      const char *at = view->content + (uint64_t) b * BLOCK + i * 512;
      Stamp stamp;

      memcpy (&stamp, at, sizeof stamp);
      g_assert_cmpuint (stamp.version, >=, view->low[b]);
      g_assert_cmpuint (stamp.version, <=, view->high[b]);
      if (stamp.version == 0)
        continue;
      g_assert_cmpuint (stamp.block, ==, b);
      g_assert_cmpuint (stamp.sector, ==, i);
      /* Sectors are written in order. */
      g_assert_cmpuint (stamp.version, <=, before);
      before = stamp.version;
      for (unsigned k = sizeof stamp; k < 512; k++)
        g_assert_cmpint (at[k], ==, (char) stamp.version);
    }
  }
}

struct walk {
  const char *content;
  uint64_t offset;
};

static int
check_run (void *opaque, uint64_t length, bool zero)
{
  struct walk *walk = opaque;

  for (uint64_t i = 0; zero && i < length; i++)
    g_assert_cmpint (walk->content[walk->offset + i], ==, 0);
  walk->offset += length;
  return 0;
}

/* In a thread of its own: stable, and status never promises too much. */
static int
reread (void *opaque)
{
  View *view = opaque;
  g_autofree char *again = fixture_read_snapshot (view->snap);
  struct walk walk = { view->content, 0 };

  g_assert_cmpmem (again, SIZE, view->content, SIZE);
  g_assert_cmpint (snapshot_extents (view->snap, SIZE, 0, check_run, &walk),
                   ==, 0);
  g_assert_cmpuint (walk.offset, ==, SIZE);
  return 0;
}

/* Bring a copy of base up to date by what changed since, and compare. */
static void
check_increment (const View *base, const View *view)
{
  g_autofree char *image = g_memdup2 (base->content, SIZE);
  g_autoptr (ChangeSet) set = NULL;
  g_autoptr (GError) error = NULL;
  bool damaged = true;

  set = epoch_log_changed (disk_epoch_log (fx->disk[0]), base->boundary,
                           view->boundary, &damaged, &error);
  g_assert_no_error (error);
  g_assert_false (damaged);
  for (uint64_t at = 0; at < SIZE; at += fx->granularity) {
    uint64_t length = MIN (fx->granularity, SIZE - at);

    if (change_set_get (set, at))
      g_assert_cmpint (snapshot_pread (view->snap, image + at, length, at), ==,
                       0);
  }
  g_assert_cmpmem (image, SIZE, view->content, SIZE);
}

static void
take (View *view, unsigned n)
{
  g_autofree char *name = g_strdup_printf ("s%u", n);

  for (unsigned b = 0; b < NR_BLOCKS; b++)
    view->low[b] = atomic_load (&acked[b]);
  view->snap = fixture_cut (fx, 0, name, &view->boundary);
  for (unsigned b = 0; b < NR_BLOCKS; b++)
    view->high[b] = atomic_load (&sent[b]);
  view->content = fixture_read_snapshot (view->snap);
  check_stamps (view);
}

static int
end_view (void *opaque)
{
  View *view = opaque;

  fixture_end (view->snap);
  g_free (view->content);
  g_free (view);
  return 0;
}

static int
keep_storing (void *opaque)
{
  while (!atomic_load (&stop)) {
    g_autoptr (GError) error = NULL;
    struct disk_stats stats;
    struct timespec pause = { 0, 2000000 };

    fleece_store_epochs (fx->f, &error);
    g_assert_no_error (error);
    disk_stats (fx->disk[0], &stats);
    g_assert_cmpuint (stats.snapshots, <=, KEPT + 2);
    nanosleep (&pause, NULL);
  }
  return 0;
}

static void
test_stress (void)
{
  Writer writers[NR_WRITERS];
  FixtureCall *writer_call[NR_WRITERS], *store_call, *end_call = NULL;
  View *views[KEPT] = { NULL };

  fx = fixture_new (1, SIZE);
  fx->granularity = 4096;
  fixture_start (fx);
  for (unsigned i = 0; i < NR_WRITERS; i++) {
    writers[i] = (Writer) { i, g_test_rand_int () };
    writer_call[i] = fixture_call (run_writer, &writers[i]);
  }
  store_call = fixture_call (keep_storing, NULL);
  for (unsigned n = 0; n < NR_CUTS; n++) {
    View *view = g_new0 (View, 1);
    FixtureCall *reader[KEPT] = { NULL };
    /* In no order: the middle, the oldest, the newest. */
    unsigned slot = n < KEPT ? n : n * 5 % KEPT;

    take (view, n);
    if (end_call != NULL)
      fixture_call_join (end_call);
    end_call = NULL;
    for (unsigned i = 0; i < KEPT; i++)
      if (views[i] != NULL) {
        check_increment (views[i], view);
        if ((n + i) % 3 == 0)
          reader[i] = fixture_call (reread, views[i]);
      }
    reread (view);
    for (unsigned i = 0; i < KEPT; i++)
      if (reader[i] != NULL)
        fixture_call_join (reader[i]);
    /* Ends while the next cut is being made. */
    if (views[slot] != NULL)
      end_call = fixture_call (end_view, views[slot]);
    views[slot] = view;
  }
  atomic_store (&stop, true);
  for (unsigned i = 0; i < NR_WRITERS; i++)
    fixture_call_join (writer_call[i]);
  fixture_call_join (store_call);
  if (end_call != NULL)
    fixture_call_join (end_call);
  for (unsigned i = 0; i < KEPT; i++) {
    reread (views[i]);
    end_view (views[i]);
  }
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
  g_assert_cmpstr (fx->notes->str, ==, "");
  fixture_free (fx);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/fleece/stress/all-at-once", test_stress);
  return g_test_run ();
}
