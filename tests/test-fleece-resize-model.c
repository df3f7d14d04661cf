/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Random histories of writes, resizes, snapshots and restarts against a model:
 * every byte of the disk and of each snapshot, and what is dirty between any
 * two of them, exactly. */
#include <config.h>

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/fleece-fixture.h"

#define MAX_SIZE (300 * 1024 + 700)
#define GRANULE 4096
#define NR_GRANULES (MAX_SIZE / GRANULE + 1)
#define MAX_VIEWS 6
#define NR_OPS 60

/* A snapshot that is kept, or its boundary alone. */
typedef struct {
  Snapshot *snap;               /* NULL: none */
  char name[16];
  uint64_t boundary, size;
  uint8_t bytes[MAX_SIZE];
  bool dirty[NR_GRANULES];      /* since then */
} View;

static Fixture *fx;
static GRand *rnd;
static uint8_t bytes[MAX_SIZE];
static uint64_t size;
static View *views[MAX_VIEWS];
static unsigned nr_views, nr_names;

static uint64_t
any (uint64_t end)
{
  return g_rand_int_range (rnd, 0, (gint32) end);
}

static void
mark (uint64_t start, uint64_t end)
{
  for (uint64_t g = start / GRANULE; g * GRANULE < end; g++)
    for (unsigned i = 0; i < nr_views; i++)
      views[i]->dirty[g] = true;
}

static void
write_some (void)
{
  uint64_t at = any (MAX_SIZE), length = 1 + any (40000);
  int value = 1 + (int) any (255);
  bool fits = at + length <= size, zero = any (4) == 0;
  g_autofree uint8_t *buf = g_malloc (length);
  int err;

  memset (buf, zero ? 0 : value, length);
  err = zero ? disk_zero (fx->disk[0], length, at, DISK_MAY_PUNCH)
    : disk_pwrite (fx->disk[0], buf, length, at, false);
  g_assert_cmpint (err, ==, fits ? 0 : -ENOSPC);
  if (!fits)
    return;
  memcpy (bytes + at, buf, length);
  mark (at, at + length);
}

static void
resize (void)
{
  static const uint64_t special[] = {
    0, 1, 511, 4095, 4096, 4097, 65535, 65536, 65537, 131072, 262143, 262144,
    262145, MAX_SIZE,
  };
  uint64_t more = size + any (3000);    /* MIN evaluates it twice */
  uint64_t now = any (2) ? special[any (G_N_ELEMENTS (special))]
    : any (3) == 0 ? MIN (more, MAX_SIZE) : any (MAX_SIZE);
  uint64_t low = MIN (now, size), high = MAX (now, size);
  g_autoptr (GError) error = NULL;
  struct stat st;

  fleece_resize (fx->f, fx->disk[0], now, &error);
  g_assert_no_error (error);
  g_assert_cmpint (stat (fx->image[0], &st), ==, 0);
  g_assert_cmpuint ((uint64_t) st.st_size, ==, now);
  g_assert_cmpuint (disk_size (fx->disk[0]), ==, now);
  memset (bytes + low, 0, high - low);
  if (high > low)
    mark (low, high);
  size = now;
}

static void
cut (void)
{
  bool keep = any (4) != 0;
  View *view;

  if (nr_views == MAX_VIEWS)
    return;
  view = g_new0 (View, 1);
  g_snprintf (view->name, sizeof view->name, "s%u", nr_names++);
  view->snap = fixture_cut (fx, 0, keep ? view->name : NULL, &view->boundary);
  view->size = size;
  memcpy (view->bytes, bytes, size);
  views[nr_views++] = view;
}

static void
end (void)
{
  unsigned i = (unsigned) any (MAX_VIEWS);

  if (i >= nr_views)
    return;
  if (views[i]->snap != NULL)
    fixture_end (views[i]->snap);
  g_free (views[i]);
  memmove (views + i, views + i + 1, (--nr_views - i) * sizeof views[0]);
}

static void
restart (void)
{
  for (unsigned i = 0; i < nr_views; i++)
    if (views[i]->snap != NULL)
      snapshot_unref (views[i]->snap);
  if (any (2))
    fixture_stop (fx);
  else
    fixture_crash (fx);
  fixture_start (fx);
  for (unsigned i = 0; i < nr_views; i++)
    if (views[i]->snap != NULL)
      views[i]->snap = disk_find_snapshot (fx->disk[0], views[i]->name);
}

static int
check_zero_run (void *opaque, uint64_t length, bool zero)
{
  const uint8_t **p = opaque;

  for (uint64_t i = 0; zero && i < length; i++)
    g_assert_cmpint ((*p)[i], ==, 0);
  *p += length;
  return 0;
}

static void
check_view (const View *view)
{
  g_autofree uint8_t *got = g_malloc (MAX_SIZE);
  const uint8_t *walk = view->bytes;

  if (view->snap == NULL)
    return;
  g_assert_cmpuint (snapshot_size (view->snap), ==, view->size);
  g_assert_cmpint (snapshot_pread (view->snap, got, view->size, 0), ==, 0);
  g_assert_cmpmem (got, view->size, view->bytes, view->size);
  g_assert_cmpint (snapshot_extents (view->snap, view->size, 0, check_zero_run,
                                     &walk), ==, 0);
  g_assert_true (walk == view->bytes + view->size);
}

/* Of the disk at boundary to (0: now), which had these bytes. */
static void
check_changed (const View *from, uint64_t to, const uint8_t *content,
               uint64_t content_size, const bool *later_dirty)
{
  g_autoptr (GError) error = NULL;
  g_autoptr (ChangeSet) set = NULL;
  bool damaged = true;

  set = epoch_log_changed (disk_epoch_log (fx->disk[0]), from->boundary, to,
                           &damaged, &error);
  g_assert_no_error (error);
  g_assert_false (damaged);
  g_assert_cmpuint (change_set_size (set), ==, content_size);
  for (uint64_t at = 0; at < content_size; at += GRANULE) {
    uint64_t length = MIN (GRANULE, content_size - at);

    if (change_set_get (set, at)) {
      g_assert_true (from->dirty[at / GRANULE]);
      continue;
    }
    g_assert_cmpuint (at + length, <=, from->size);
    g_assert_cmpmem (content + at, length, from->bytes + at, length);
    if (later_dirty == NULL)    /* exact */
      g_assert_false (from->dirty[at / GRANULE]);
  }
}

static void
check (void)
{
  g_autofree uint8_t *got = g_malloc (MAX_SIZE + 1);

  g_assert_cmpint (disk_pread (fx->disk[0], got, size, 0), ==, 0);
  g_assert_cmpmem (got, size, bytes, size);
  g_assert_cmpint (disk_pread (fx->disk[0], got, 1, size), ==, -EINVAL);
  g_assert_cmpint (disk_pread (fx->disk[0], got, size + 1, 0), ==, -EINVAL);
  g_assert_cmpint (disk_trim (fx->disk[0], 4096, size, false), ==, -EINVAL);
  for (unsigned i = 0; i < nr_views; i++) {
    check_view (views[i]);
    check_changed (views[i], 0, bytes, size, NULL);
    for (unsigned j = i; j < nr_views; j++)
      check_changed (views[i], views[j]->boundary, views[j]->bytes,
                     views[j]->size, views[j]->dirty);
  }
}

static void
run_history (gconstpointer seed)
{
  uint64_t start = GPOINTER_TO_UINT (seed) % 2 == 0 ? 0 : 100 * 1000;

  rnd = g_rand_new_with_seed (GPOINTER_TO_UINT (seed));
  memset (bytes, 0, sizeof bytes);
  size = start;
  fx = fixture_new (1, start);
  fx->granularity = GRANULE;
  fixture_start (fx);
  for (unsigned i = 0; i < NR_OPS; i++) {
    switch (any (12)) {
    case 0: case 1: case 2: resize (); break;
    case 3: case 4: cut (); break;
    case 5: end (); break;
    case 6: restart (); break;
    default: write_some (); continue;
    }
    check ();
  }
  while (nr_views > 0) {
    View *view = views[--nr_views];

    if (view->snap != NULL)
      fixture_end (view->snap);
    g_free (view);
  }
  g_assert_cmpuint (fixture_nr_scratch_files (fx), ==, 0);
  fixture_free (fx);
  g_rand_free (rnd);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  for (unsigned i = 0; i < 6; i++) {
    g_autofree char *path = g_strdup_printf ("/fleece/resize/history/%u", i);
    guint seed = i < 2 ? i : (guint) g_test_rand_int ();

    g_test_add_data_func (path, GUINT_TO_POINTER (seed), run_history);
  }
  return g_test_run ();
}
