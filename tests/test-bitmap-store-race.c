/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* While writers mark, cuts are made and epochs stored, "changed since" never
 * misses what was marked before it was asked, and is exact in the end; also
 * while and after the log is closed. */
#include "config.h"

#include <pthread.h>
#include <stdatomic.h>

#include "bitmap-test.h"
#include "bitmap/epoch.h"

#define GRAN UINT64_C (4096)
#define NR   20000u
#define NR_CUTS 60
#define NR_CLOSES 60

static const DiskIdentity identity = { NR * GRAN, 1, 2, 3 };

static Catalog *cat;
static EpochLog *log_;
static atomic_bool done;

/* Marks run under a read lock and cuts under the write lock, in place of the
 * admission counter that drains writers.  marked: granules [0, marked) are. */
static pthread_rwlock_t admission = PTHREAD_RWLOCK_INITIALIZER;
static atomic_uint marked;

static void *
writer (void *arg)
{
  for (unsigned g = 0; g < NR; g++) {
    pthread_rwlock_rdlock (&admission);
    dirty_bitmap_set (epoch_log_current (log_)->bitmap, g * GRAN, 1);
    pthread_rwlock_unlock (&admission);
    atomic_store (&marked, g + 1);
  }
  return NULL;
}

static void *
storer (void *arg)
{
  while (!atomic_load (&done)) {
    GError *error = NULL;

    epoch_log_store (log_, &error);
    g_assert_no_error (error);
  }
  return NULL;
}

static void
reader_once (uint64_t first)
{
  GError *error = NULL;
  unsigned nr = atomic_load (&marked);
  bool damaged = true;
  g_autoptr (ChangeSet) cs = epoch_log_changed (log_, first, 0, &damaged,
                                                &error);

  g_assert_no_error (error);
  g_assert_false (damaged);
  for (unsigned g = 0; g < nr; g++)
    g_assert_true (change_set_get (cs, g * GRAN));
}

static void *
reader (void *arg)
{
  const uint64_t *first = arg;

  while (!atomic_load (&done))
    reader_once (*first);
  return NULL;
}

static void
cut (void)
{
  GError *error = NULL;
  Epoch *next = epoch_log_prepare (log_, NR * GRAN, GRAN, &error);

  g_assert_no_error (error);
  g_assert_true (catalog_begin (cat, &error));
  pthread_rwlock_wrlock (&admission);
  g_assert_true (epoch_log_seal (log_, next, &error));
  pthread_rwlock_unlock (&admission);
  g_assert_true (catalog_commit (cat, &error));
}

static void
test_race (void)
{
  char *dir = test_dir_new ();
  pthread_t threads[3];
  uint64_t boundaries[NR_CUTS + 1];
  unsigned counts[NR_CUTS + 2] = { 0 };
  GError *error = NULL;

  cat = test_catalog (dir);
  log_ = epoch_log_open (cat, "vda", GRAN, &identity, NULL, &error);
  g_assert_no_error (error);
  boundaries[0] = epoch_log_current (log_)->id;
  pthread_create (&threads[0], NULL, writer, NULL);
  pthread_create (&threads[1], NULL, storer, NULL);
  pthread_create (&threads[2], NULL, reader, &boundaries[0]);
  for (unsigned i = 1; i <= NR_CUTS; i++) {
    cut ();
    boundaries[i] = epoch_log_current (log_)->id;
  }
  pthread_join (threads[0], NULL);
  atomic_store (&done, true);
  pthread_join (threads[1], NULL);
  pthread_join (threads[2], NULL);

  /* Every granule was marked once, so the epochs' counts add up. */
  for (unsigned i = 0; i <= NR_CUTS; i++) {
    uint64_t to = i < NR_CUTS ? boundaries[i + 1] : 0;
    g_autoptr (ChangeSet) cs = epoch_log_changed (log_, boundaries[i], to, NULL,
                                                  &error);

    g_assert_no_error (error);
    counts[i + 1] = counts[i] + (unsigned) change_set_count (cs);
  }
  g_assert_cmpuint (counts[NR_CUTS + 1], ==, NR);
  epoch_log_close (log_, &identity, &error);
  g_assert_no_error (error);
  epoch_log_free (log_);
  catalog_free (cat);
  test_dir_free (dir);
}

/* The thread that stores is stopped only after the disks. */
static void
test_close (void)
{
  for (unsigned i = 0; i < NR_CLOSES; i++) {
    char *dir = test_dir_new ();
    pthread_t threads[2];
    uint64_t first;
    GError *error = NULL;

    cat = test_catalog (dir);
    log_ = epoch_log_open (cat, "vda", GRAN, &identity, NULL, &error);
    g_assert_no_error (error);
    first = epoch_log_current (log_)->id;
    for (unsigned g = 0; g < 8; g++) {
      dirty_bitmap_set (epoch_log_current (log_)->bitmap, g * GRAN, 1);
      if (g < 7)
        cut ();
    }
    atomic_store (&marked, 8);
    atomic_store (&done, false);
    pthread_create (&threads[0], NULL, storer, NULL);
    pthread_create (&threads[1], NULL, reader, &first);
    g_assert_true (epoch_log_close (log_, &identity, &error));
    g_assert_no_error (error);
    atomic_store (&done, true);
    pthread_join (threads[0], NULL);
    pthread_join (threads[1], NULL);
    reader_once (first);
    epoch_log_free (log_);
    catalog_free (cat);
    test_dir_free (dir);
  }
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/bitmap/store-race", test_race);
  g_test_add_func ("/bitmap/store-race/close", test_close);
  return g_test_run ();
}
