/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The committer: who waits for which sync, and in which order maps and intents
 * go to the disk. */
#include "config.h"

#include "intent-test.h"

/* A write to a cold region waits for the sync of I; so does a second one to the
 * same region, though its bit is set already (H6). */
static void
test_cold (void)
{
  Rig *rig = rig_new ();
  RigWrite a, b;

  rig_open (rig);
  g_free (rig_calls (rig));
  hook_gate_arm (rig->gate, HOOK_SYNC, ".i", 0, 0);
  rig_write_start (rig, &a, 5 * REGION);
  hook_gate_wait_held (rig->gate);
  rig_write_start (rig, &b, 5 * REGION + GRAN);
  for (unsigned i = 0; i < 100; i++) {
    g_assert_false (atomic_load (&a.done));
    g_assert_false (atomic_load (&b.done));
    g_usleep (100);
  }
  hook_gate_release (rig->gate, 0);
  g_assert_cmpint (rig_write_join (&a), ==, 0);
  g_assert_cmpint (rig_write_join (&b), ==, 0);
  g_assert_cmpuint (epoch_log_intent_bytes (rig->log), ==, REGION);
  {
    g_autofree char *calls = rig_calls (rig);

    g_assert_cmpuint (count_calls (calls, "wi si"), ==, 1);
  }
  /* Warm. */
  g_assert_cmpint (rig_write (rig, 5 * REGION + 2 * GRAN, 1), ==, 0);
  {
    g_autofree char *calls = rig_calls (rig);

    g_assert_cmpstr (calls, ==, "");
  }
  rig_free (rig);
}

/* Each region that a write touches needs an intent of its own. */
static void
test_across (void)
{
  Rig *rig = rig_new ();
  g_autofree char *calls = NULL;

  rig_open (rig);
  g_assert_cmpint (rig_write (rig, 5 * REGION, 1), ==, 0);
  g_free (rig_calls (rig));
  g_assert_cmpint (rig_write (rig, 6 * REGION - 1, 2), ==, 0);
  calls = rig_calls (rig);
  g_assert_cmpstr (calls, ==, "wi si ");
  g_assert_cmpint (rig_write (rig, 30 * REGION, 1), ==, 0);
  g_free (calls);
  g_free (rig_calls (rig));
  g_assert_cmpint (rig_write (rig, 30 * REGION - 1, 2), ==, 0);
  calls = rig_calls (rig);
  g_assert_cmpstr (calls, ==, "wi si ");
  rig_free (rig);
}

static void
test_group (void)
{
  enum { NR = 24 };
  Rig *rig = rig_new ();
  RigWrite first, w[NR];
  g_autofree char *calls = NULL;

  rig_open (rig);
  g_free (rig_calls (rig));
  hook_gate_arm (rig->gate, HOOK_SYNC, ".i", 0, 0);
  rig_write_start (rig, &first, 0);
  hook_gate_wait_held (rig->gate);
  /* Backwards: no stream. */
  for (unsigned i = 0; i < NR; i++)
    rig_write_start (rig, &w[i], (60 - i * 2) * REGION);
  hook_gate_release (rig->gate, 0);
  g_assert_cmpint (rig_write_join (&first), ==, 0);
  for (unsigned i = 0; i < NR; i++)
    g_assert_cmpint (rig_write_join (&w[i]), ==, 0);
  calls = rig_calls (rig);
  g_assert_cmpuint (count_calls (calls, "si"), <=, NR / 2);
  g_assert_cmpuint (epoch_log_intent_bytes (rig->log), ==, (NR + 1) * REGION);
  rig_free (rig);
}

static void
test_stream (void)
{
  Rig *rig = rig_new ();
  g_autofree char *calls = NULL;

  rig_open (rig);
  g_free (rig_calls (rig));
  for (unsigned i = 0; i < 60; i++)
    g_assert_cmpint (rig_write (rig, i * REGION, REGION), ==, 0);
  calls = rig_calls (rig);
  g_assert_cmpuint (count_calls (calls, "si"), <=, 32);
  rig_free (rig);
}

/* A stream that is slower than the disk waits at its start only: it is known by
 * its second region, and intents are then asked for before they are needed. */
static void
test_stream_waits (void)
{
  const unsigned nr = SIZE / REGION;
  Rig *rig = rig_new ();

  rig_open (rig);
  for (unsigned i = 0; i < nr; i++) {
    gint64 until = g_get_monotonic_time () + 60 * G_USEC_PER_SEC;

    g_assert_cmpint (rig_write (rig, i * REGION, 4096), ==, 0);
    /* There are two regions left at the least once what has been asked for
     * is done. */
    while (i > 0 && epoch_log_intent_bytes (rig->log) <
           MIN (i + 3, nr) * REGION) {
      g_assert_cmpint (g_get_monotonic_time (), <, until);
      g_usleep (100);
    }
  }
  g_assert_cmpuint (epoch_log_intent_waits (rig->log), ==, 2);
  rig_free (rig);
}

/* Writes that follow no stream have nothing set ahead, not even where a stream
 * that is gone had wanted more. */
static void
test_stream_gone (void)
{
  Rig *rig = rig_new ();

  rig_open (rig);
  rig_write (rig, 0, 4096);
  rig_write (rig, REGION, 4096);        /* sets ahead 2 to 5 */
  for (unsigned i = 0; i < 8; i++)      /* all that are remembered are others */
    rig_write (rig, (60 - i * 2) * REGION, 4096);
  g_assert_cmpuint (epoch_log_intent_bytes (rig->log), ==, 14 * REGION);
  for (unsigned i = 2; i < 6; i++)
    rig_write (rig, i * REGION, 4096);
  rig_write (rig, 8 * REGION, 4096);    /* after all that was asked for */
  g_assert_cmpuint (epoch_log_intent_bytes (rig->log), ==, 15 * REGION);
  rig_free (rig);
}

/* Nothing is set ahead of the end. */
static void
test_stream_end (void)
{
  Rig *rig = rig_new ();

  rig_open (rig);
  g_assert_cmpint (rig_write (rig, 62 * REGION, 1), ==, 0);
  g_assert_cmpint (rig_write (rig, 63 * REGION, 1), ==, 0);
  g_assert_cmpuint (epoch_log_intent_bytes (rig->log), ==, 2 * REGION);
  rig_free (rig);
}

/* Wait until a note that contains text has been given. */
static void
wait_for_note (Rig *rig, const char *text)
{
  bool told;

  do {
    g_usleep (1000);
    pthread_mutex_lock (&rig->lock);
    told = rig->notes->len > 0 && strstr (rig->notes->str, text) != NULL;
    pthread_mutex_unlock (&rig->lock);
  } while (!told);
}

/* A write of a byte at offset, after which the first sync of D is held.  Of a
 * thread of its own: if a look comes between its bits and its intent, it waits
 * until that is over.  Returns the calls until then; caller frees. */
static char *
write_until_map_sync (Rig *rig, RigWrite *w, uint64_t offset)
{
  rig_open (rig);
  hook_gate_arm (rig->gate, HOOK_SYNC, ".d", 0, 0);
  g_free (rig_calls (rig));
  rig_write_start (rig, w, offset);
  hook_gate_wait_held (rig->gate);
  return rig_calls (rig);
}

/* The clear round, step by step; then what is durable in D needs no intent
 * (H13), and what is not needs a new one. */
static void
test_clear (void)
{
  g_autofree char *first = NULL;
  Rig *rig;
  RigWrite w;

  for (;;) {
    rig = rig_new ();
    rig->options.sync_interval_ms = 200;
    rig->options.idle_ms = 200;
    first = write_until_map_sync (rig, &w, 7 * REGION);
    if (!g_str_equal (first, "wd sd "))
      break;
    /* That look was too early.  Once D has the bits, no intent is wanted. */
    hook_gate_release (rig->gate, 0);
    g_assert_cmpint (rig_write_join (&w), ==, 0);
    rig_free (rig);
    g_clear_pointer (&first, g_free);
  }
  /* Nothing has left I while D is not durable. */
  g_assert_cmpstr (first, ==, "wi si wd sd ");
  hook_gate_release (rig->gate, 0);
  g_assert_cmpint (rig_write_join (&w), ==, 0);
  hook_gate_arm (rig->gate, HOOK_SYNC, ".d", 0, 0);
  /* Something that the next look has to sync. */
  dirty_bitmap_set (epoch_log_current (rig->log)->bitmap, 20 * REGION, 1);
  hook_gate_wait_held (rig->gate);
  /* By now the region is idle: its flag is withdrawn, and the copy of the bits
   * has been made. */
  rig_write_start (rig, &w, 7 * REGION + GRAN);
  for (unsigned i = 0; i < 100; i++) {
    g_assert_false (atomic_load (&w.done));
    g_usleep (100);
  }
  hook_gate_release (rig->gate, 0);
  g_assert_cmpint (rig_write_join (&w), ==, 0);
  {
    g_autofree char *calls = rig_calls (rig);

    /* Out of I, after D; and in again. */
    g_assert_nonnull (strstr (calls, "wd sd wi wi si "));
  }
  while (epoch_log_intent_bytes (rig->log) > 0)
    g_usleep (1000);
  g_free (rig_calls (rig));
  for (unsigned i = 0; i < 2; i++)
    g_assert_cmpint (rig_write (rig, 7 * REGION + i * GRAN, GRAN), ==, 0);
  {
    g_autofree char *calls = rig_calls (rig);

    g_assert_cmpuint (count_calls (calls, "si"), ==, 0);
  }
  g_assert_cmpint (rig_write (rig, 7 * REGION + 2 * GRAN, 1), ==, 0);
  {
    g_autofree char *calls = rig_calls (rig);

    /* Again, if it is cleared before the writer has looked. */
    g_assert_cmpuint (count_calls (calls, "si"), >=, 1);
  }
  rig_free (rig);
}

/* Above the cap, intents go after the shorter time. */
static void
test_cap (void)
{
  Rig *rig = rig_new ();

  rig->options.sync_interval_ms = 10;
  rig->options.idle_ms = 2000;  /* 200 ticks */
  rig->options.idle_over_cap_ms = 10;
  rig->options.cap_bytes = 3 * REGION;
  rig_open (rig);
  for (unsigned i = 0; i < 3; i++)
    g_assert_cmpint (rig_write (rig, (40 - 10 * i) * REGION, 1), ==, 0);
  g_assert_cmpuint (epoch_log_intent_bytes (rig->log), ==, 3 * REGION);
  g_assert_cmpint (rig_write (rig, 50 * REGION, 1), ==, 0);
  while (epoch_log_intent_bytes (rig->log) > 3 * REGION)
    g_usleep (1000);
  rig_free (rig);
}

static void
test_intent_sync_fails (void)
{
  Rig *rig = rig_new ();

  rig_open (rig);
  g_assert_cmpint (rig_write (rig, 0, 1), ==, 0);
  {
    RigWrite w;

    hook_gate_arm (rig->gate, HOOK_SYNC, ".i", 0, 0);
    rig_write_start (rig, &w, 9 * REGION);
    hook_gate_wait_held (rig->gate);
    hook_gate_release (rig->gate, -EIO);
    g_assert_cmpint (rig_write_join (&w), ==, -EIO);
  }
  /* Final, though the disk would work again. */
  g_assert_cmpint (rig_write (rig, 9 * REGION, 1), ==, -EIO);
  g_assert_cmpint (rig_write (rig, 20 * REGION, 1), ==, -EIO);
  g_assert_cmpint (rig_write (rig, GRAN, 1), ==, 0);    /* warm */
  /* Told after the writers have been woken. */
  wait_for_note (rig, "write intents");
  rig_free (rig);
}

/* Region 0 has an intent when that of region 9 fails.  False: it was idle
 * before that, and cleared. */
static bool
fail_second_intent (Rig *rig)
{
  RigWrite w;

  rig->options.sync_interval_ms = 100;
  rig->options.idle_ms = 200;
  rig_open (rig);
  g_assert_cmpint (rig_write (rig, 0, 1), ==, 0);
  hook_gate_arm (rig->gate, HOOK_SYNC, ".i", 0, 0);
  rig_write_start (rig, &w, 9 * REGION);
  hook_gate_wait_held (rig->gate);
  hook_gate_release (rig->gate, -EIO);
  g_assert_cmpint (rig_write_join (&w), ==, -EIO);
  return epoch_log_intent_bytes (rig->log) == REGION;
}

/* Once I has failed, the regions that have an intent keep it, however idle: it
 * was withdrawn after a while, and writes that were safe failed as well. */
static void
test_intent_sync_fails_idle (void)
{
  Rig *rig = rig_new ();

  while (!fail_second_intent (rig)) {
    rig_free (rig);
    rig = rig_new ();
  }
  for (unsigned looks = 0; looks < 4; looks++) {
    g_free (rig_calls (rig));
    dirty_bitmap_set (epoch_log_current (rig->log)->bitmap,
                      (40 + looks) * REGION, 1);
    for (bool synced = false; !synced; g_usleep (1000)) {
      g_autofree char *calls = rig_calls (rig);

      synced = strstr (calls, "sd") != NULL;
    }
  }
  g_assert_cmpint (rig_write (rig, GRAN, 1), ==, 0);
  rig_free (rig);
}

/* Then no intent is cleared; and a cut puts the bits into its row. */
static void
test_map_sync_fails (void)
{
  Rig *rig = rig_new ();
  RigWrite w;
  uint64_t first, at;

  rig->options.sync_interval_ms = 10;
  rig->options.idle_ms = 10;
  g_free (write_until_map_sync (rig, &w, 0));
  first = epoch_log_current (rig->log)->id;
  hook_gate_release (rig->gate, -EIO);
  g_assert_cmpint (rig_write_join (&w), ==, 0);
  wait_for_note (rig, "");
  g_assert_nonnull (strstr (rig->notes->str, "map of changed blocks"));
  g_assert_cmpint (rig_write (rig, 3 * REGION, 1), ==, 0);
  g_usleep (50000);             /* ticks go by */
  g_assert_cmpuint (epoch_log_intent_bytes (rig->log), ==, 2 * REGION);
  at = rig_cut (rig);
  rig_crash (rig);
  rig_lose_runtime (rig);
  rig_open (rig);
  g_assert_cmpuint (rig_count (rig, first, at), ==, 2);
  /* I still covers the new epoch. */
  g_assert_cmpuint (rig_count (rig, at, 0), ==, 2 * REGION / GRAN);
  rig_free (rig);
}

/* A region that is asked for again while its intent is being cleared counts
 * once, whether clearing it works or not: its flag came back and was counted as
 * if it were new. */
static void
test_map_sync_fails_while_asked (void)
{
  Rig *rig = rig_new ();
  RigWrite w;

  rig->options.sync_interval_ms = 100;
  rig->options.idle_ms = 100;
  g_free (write_until_map_sync (rig, &w, 7 * REGION));
  hook_gate_release (rig->gate, 0);
  g_assert_cmpint (rig_write_join (&w), ==, 0);
  hook_gate_arm (rig->gate, HOOK_SYNC, ".d", 0, 0);
  /* Something to sync for the next look, which finds the region idle. */
  dirty_bitmap_set (epoch_log_current (rig->log)->bitmap, 20 * REGION, 1);
  hook_gate_wait_held (rig->gate);
  rig_write_start (rig, &w, 7 * REGION + GRAN);
  for (unsigned i = 0; i < 100; i++) {
    g_assert_false (atomic_load (&w.done));     /* it is in the queue */
    g_usleep (100);
  }
  hook_gate_release (rig->gate, -EIO);
  g_assert_cmpint (rig_write_join (&w), ==, 0);
  wait_for_note (rig, "map of changed blocks");
  /* A round of its own, so that the one before is over. */
  g_assert_cmpint (rig_write (rig, 40 * REGION, 1), ==, 0);
  g_assert_cmpuint (epoch_log_intent_bytes (rig->log), ==, 2 * REGION);
  rig_free (rig);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/bitmap/intent/cold", test_cold);
  g_test_add_func ("/bitmap/intent/across", test_across);
  g_test_add_func ("/bitmap/intent/group", test_group);
  g_test_add_func ("/bitmap/intent/stream", test_stream);
  g_test_add_func ("/bitmap/intent/stream-gone", test_stream_gone);
  g_test_add_func ("/bitmap/intent/stream-waits", test_stream_waits);
  g_test_add_func ("/bitmap/intent/stream-end", test_stream_end);
  g_test_add_func ("/bitmap/intent/clear", test_clear);
  g_test_add_func ("/bitmap/intent/cap", test_cap);
  g_test_add_func ("/bitmap/intent/intent-sync-fails",
                   test_intent_sync_fails);
  g_test_add_func ("/bitmap/intent/intent-sync-fails-idle",
                   test_intent_sync_fails_idle);
  g_test_add_func ("/bitmap/intent/map-sync-fails", test_map_sync_fails);
  g_test_add_func ("/bitmap/intent/map-sync-fails-while-asked",
                   test_map_sync_fails_while_asked);
  return g_test_run ();
}
