/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Threads that set bits at once, also in the same words, lose none; readers
 * that run along see no bit that nobody set. */
#include "config.h"

#include <pthread.h>
#include <stdatomic.h>

#include "bitmap-test.h"
#include "bitmap/dirty-bitmap.h"

#define NR_THREADS 8
#define NR         (16 * 65536u)
#define GRAN       UINT64_C (4096)

static DirtyBitmap *bm;
static atomic_int running;
static pthread_barrier_t start;

/* Thread T sets all granules N with N mod 16 = T: never 8 .. 15. */
static void *
writer (void *arg)
{
  unsigned t = GPOINTER_TO_UINT (arg);

  pthread_barrier_wait (&start);
  for (uint64_t g = t; g < NR; g += 16)
    dirty_bitmap_set (bm, g * GRAN, GRAN);
  atomic_fetch_sub (&running, 1);
  return NULL;
}

static void
check (bool complete)
{
  GError *error = NULL;
  g_autoptr (ChangeSet) cs = dirty_bitmap_to_change_set (bm, &error);

  g_assert_no_error (error);
  for (uint64_t g = 0; g < NR; g++) {
    bool dirty = change_set_get (cs, g * GRAN);

    if (dirty ? g % 16 >= NR_THREADS : complete && g % 16 < NR_THREADS)
      g_error ("granule %" G_GUINT64_FORMAT ": dirty is %d", g, dirty);
  }
}

static void
test_race (void)
{
  pthread_barrier_init (&start, NULL, NR_THREADS);
  for (int round = 0; round < 10; round++) {
    pthread_t threads[NR_THREADS];
    GError *error = NULL;

    bm = dirty_bitmap_new (NR * GRAN, GRAN, &error);
    g_assert_no_error (error);
    atomic_store (&running, NR_THREADS);
    for (unsigned t = 0; t < NR_THREADS; t++)
      g_assert_cmpint (pthread_create (&threads[t], NULL, writer,
                                       GUINT_TO_POINTER (t)), ==, 0);
    do
      check (false);
    while (atomic_load (&running) > 0);
    for (unsigned t = 0; t < NR_THREADS; t++)
      pthread_join (threads[t], NULL);
    check (true);
    g_assert_cmpuint (dirty_bitmap_count (bm), ==, NR / 2);
    dirty_bitmap_free (bm);
  }
  pthread_barrier_destroy (&start);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/bitmap/race/set", test_race);
  return g_test_run ();
}
