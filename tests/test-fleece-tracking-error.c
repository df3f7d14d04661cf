/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A state directory that fails under tracking is told, with the reason. */
#include <config.h>

#include <errno.h>
#include <string.h>

#include "fleece/disk.h"
#include "tests/fleece-fixture.h"
#include "tests/storage-hook.h"

#define SIZE (64 * 1024 * 1024)

static Fixture *fx;

/* One failing call: the notes, disk_tracking_error, and the guest. */
static void
check (const char *suffix, int err, const char *text, int write_result)
{
  g_autofree char *want = g_strdup_printf ("%s", g_strerror (err));
  g_autofree char *found = NULL;
  FixtureCall *call;

  fx = fixture_new_gated (1, SIZE);
  fx->sync_interval_ms = 50;
  fixture_start (fx);
  g_assert_null (disk_tracking_error (fx->disk[0]));
  hook_gate_arm (fx->gate, HOOK_SYNC, suffix, 0, 0);
  call = fixture_call_write (fx->disk[0], 0, 4096, 'a');
  hook_gate_wait_held (fx->gate);
  hook_gate_release (fx->gate, -err);
  g_assert_cmpint (fixture_call_join (call), ==, write_result);
  while (found == NULL) {       /* told after the writer was woken */
    g_usleep (1000);
    found = disk_tracking_error (fx->disk[0]);
  }
  g_assert_nonnull (strstr (found, text));
  g_assert_nonnull (strstr (found, want));
  fixture_stop (fx);            /* whoever tells has told */
  g_assert_nonnull (strstr (fx->notes->str, "tracking d0 -: cannot "));
  g_assert_nonnull (strstr (fx->notes->str, want));
  fixture_free (fx);
}

static void
test_intents (void)
{
  check (".i", ENOSPC, "write intents", -EIO);
}

static void
test_map (void)
{
  check (".d", EIO, "map of changed blocks", 0);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/fleece/tracking-error/intents", test_intents);
  g_test_add_func ("/fleece/tracking-error/map", test_map);
  return g_test_run ();
}
