/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What fault-calls.c has found, each on its own. */
#include <config.h>

#include <errno.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bitmap/bitmap-error.h"
#include "tests/sim-history.h"

static void
set_up (void)
{
  sim_empty_folder (sim.runtime_folder);
  sim_new_disks ();
}

static void
fail_from_now (const char *target, const char *other)
{
  SimFault fault = { .err = EIO, .for_good = true };

  g_strlcpy (fault.target[0], target, sizeof fault.target[0]);
  if (other != NULL)
    g_strlcpy (fault.target[1], other, sizeof fault.target[1]);
  sim_disk_fault (&fault);
}

static int
write_block (uint64_t offset, char byte)
{
  char buf[4096];

  memset (buf, byte, sizeof buf);
  return disk_pwrite (disk[0], buf, sizeof buf, offset, false);
}

static bool
cut (const char *name, bool durable, uint64_t *out_boundary, GError **error)
{
  FleeceCutDisk cd = { .disk = disk[0], .snapshot = name, .durable = durable };
  bool ok = fleece_cut (fleece, &cd, 1, NULL, NULL, error);

  if (ok && name != NULL)
    snapshot_unref (cd.out_snapshot);
  if (out_boundary != NULL)
    *out_boundary = cd.boundary;
  return ok;
}

static void
in_child (void (*fn) (void))
{
  pid_t pid = fork ();
  int status;

  g_assert_cmpint (pid, >=, 0);
  if (pid == 0) {
    fn ();
    _exit (0);
  }
  g_assert_cmpint (waitpid (pid, &status, 0), ==, pid);
  g_assert_cmpint (status, ==, 0);
  sim_disk_arm (UINT64_MAX);    /* the locks of the dead */
}

/* The commit of a cut fails as its sync does, and what it wrote is then read
 * from memory at the next start, as if it were there: what is committed after
 * it was lost at a power loss. */
static uint64_t *boundary;      /* shared */
static uint64_t fail_at;
static int fail_err;

static void
life_with_failing_commit (void)
{
  g_autofree char *catalog = g_build_filename (sim.state, "catalog", NULL);
  SimFault fault = { .err = EIO, .for_good = true, .at = fail_at };

  sim_start ();
  g_assert_true (cut (NULL, false, NULL, NULL));
  g_strlcpy (fault.target[0], catalog, sizeof fault.target[0]);
  sim_disk_fault (&fault);
  cut (NULL, false, NULL, NULL);
}

static void
life_after_it (void)
{
  sim_start ();
  g_assert_true (cut (NULL, false, boundary, NULL));
}

/* What the last life promised can be told. */
static void
expect_boundary_after_power_loss (void)
{
  g_autoptr (GError) error = NULL;
  g_autoptr (ChangeSet) set = NULL;

  sim_disk_lose_power (fail_at);
  sim_empty_folder (sim.runtime_folder);
  sim_start ();
  set = epoch_log_changed (disk_epoch_log (disk[0]), *boundary, 0, NULL,
                           &error);
  g_assert_no_error (error);
  g_assert_true (sim_stop ());
}

static void
test_failed_commit (void)
{
  uint64_t calls;

  for (fail_at = 0; ; fail_at++) {
    set_up ();
    in_child (life_with_failing_commit);
    calls = sim_disk_fault_calls ();
    sim_disk_fault (NULL);
    in_child (life_after_it);
    expect_boundary_after_power_loss ();
    if (calls <= fail_at)
      break;
  }
  g_assert_cmpuint (fail_at, >, 5);
}

/* The same without a restart: what the failed sync was to write of the commit
 * before, whose last sector SQLite fills up, was never on the medium, and all
 * that was committed later was lost with it. */
static void
life_goes_on (void)
{
  g_autofree char *catalog = g_build_filename (sim.state, "catalog", NULL);
  SimFault fault = { .err = EIO, .at = fail_at };

  sim_start ();
  g_assert_true (cut (NULL, false, NULL, NULL));
  g_strlcpy (fault.target[0], catalog, sizeof fault.target[0]);
  sim_disk_fault (&fault);
  for (unsigned i = 0; i < 12; i++)             /* with a checkpoint */
    cut (NULL, false, NULL, NULL);
  if (!cut (NULL, false, boundary, NULL))       /* it was that call */
    g_assert_true (cut (NULL, false, boundary, NULL));
}

static void
test_failed_sync_once (void)
{
  uint64_t calls;

  for (fail_at = 0; ; fail_at += 3) {
    set_up ();
    in_child (life_goes_on);
    calls = sim_disk_fault_calls ();
    sim_disk_fault (NULL);
    expect_boundary_after_power_loss ();
    if (calls <= fail_at)
      break;
  }
  g_assert_cmpuint (fail_at, >, 100);
}

/* The error of a sync that a cut does is the guest's to know, and what it may
 * have lost is not vouched for. */
static void
test_untold (void)
{
  g_autoptr (GError) error = NULL;
  g_autoptr (ChangeSet) set = NULL;
  uint64_t since;

  set_up ();
  sim_start ();
  g_assert_cmpint (write_block (8192, 'a'), ==, 0);
  for (uint64_t at = 0; ; at++) {
    SimFault fault = { .target = { "/images" }, .err = EIO, .at = at };

    g_clear_error (&error);
    sim_disk_fault (&fault);
    g_assert_false (cut ("s", false, NULL, &error));
    if (strstr (error->message, "cannot sync") != NULL)
      break;
  }
  sim_disk_fault (NULL);
  g_assert_cmpint (disk_flush (disk[0]), ==, -EIO);
  g_assert_cmpint (disk_flush (disk[0]), ==, 0);

  g_clear_error (&error);
  g_assert_true (cut ("s", false, &since, &error));
  set = epoch_log_changed (disk_epoch_log (disk[0]), since, 0, NULL, &error);
  g_assert_no_error (error);
  g_assert_true (change_set_get (set, 8192));
  g_assert_false (change_set_get (set, 65536));
  /* It could not be what it says. */
  g_assert_false (cut ("d", true, NULL, &error));
  g_assert_nonnull (strstr (error->message, "no durable snapshot"));
  g_assert_true (sim_stop ());
}

static void
check_right (const char *name, uint64_t offset, char byte)
{
  g_autoptr (Snapshot) snap = disk_find_snapshot (disk[0], name);
  char got[4096], want[4096];

  g_assert_nonnull (snap);
  memset (want, byte, sizeof want);
  if (snapshot_state (snap) == SNAPSHOT_LIVE) {
    g_assert_cmpint (snapshot_pread (snap, got, sizeof got, offset), ==, 0);
    g_assert_cmpmem (got, sizeof got, want, sizeof want);
  }
  else {
    g_autofree char *reason = snapshot_reason (snap);

    g_assert_nonnull (reason);
    g_assert_cmpint (snapshot_pread (snap, got, sizeof got, offset), ==, -EIO);
  }
  g_assert_true (snapshot_end (snap, NULL));
}

/* A durable snapshot breaks while the catalog and its own folder fail as well:
 * it was live at the next start, with what the guest had written since. */
static void
life_with_lost_news (void)
{
  sim_start ();
  g_assert_cmpint (write_block (0, 'a'), ==, 0);
  g_assert_cmpint (disk_flush (disk[0]), ==, 0);
  g_assert_true (cut ("d", true, NULL, NULL));
  g_assert_cmpint (write_block (65536, 'b'), ==, 0);
  fail_from_now (sim.scratch, sim.state);
  g_assert_cmpint (write_block (0, 'c'), ==, -EIO);
  g_assert_cmpint (write_block (0, 'c'), ==, -EIO);
  g_assert_cmpint (write_block (65536, 'd'), ==, 0);    /* needs nothing */
}

/* The same where only the scratch files fail, and where their folder still
 * takes the removal of the log. */
static void
life_with_news (void)
{
  g_autofree char *catalog = g_build_filename (sim.state, "catalog", NULL);
  g_autofree char *layers = g_build_filename (sim.scratch, "d0-", NULL);
  SimFault fault = { .err = ENOSPC, .for_good = true };

  sim_start ();
  g_assert_cmpint (write_block (0, 'a'), ==, 0);
  g_assert_cmpint (disk_flush (disk[0]), ==, 0);
  g_assert_true (cut ("d", true, NULL, NULL));
  g_strlcpy (fault.target[0], catalog, sizeof fault.target[0]);
  g_strlcpy (fault.target[1], layers, sizeof fault.target[1]);
  sim_disk_fault (&fault);
  g_assert_cmpint (write_block (0, 'c'), ==, 0);
}

static void
test_lost_news (void)
{
  for (unsigned i = 0; i < 2; i++) {
    set_up ();
    in_child (i == 0 ? life_with_lost_news : life_with_news);
    sim_disk_fault (NULL);
    sim_start ();
    check_right ("d", 0, 'a');
    g_assert_true (sim_stop ());
  }
}

/* A scratch file that cannot be removed when its snapshot ends goes at the next
 * start: its row was deleted, and nobody knew of it any more. */
static void
test_not_removed (void)
{
  g_autoptr (Snapshot) snap = NULL;

  set_up ();
  sim_start ();
  g_assert_true (cut ("s", false, NULL, NULL));
  snap = disk_find_snapshot (disk[0], "s");
  fail_from_now (sim.scratch, NULL);
  g_assert_true (snapshot_end (snap, NULL));
  sim_disk_fault (NULL);
  g_assert_cmpuint (sim_disk_files (sim.scratch), ==, 1);
  g_clear_pointer (&snap, snapshot_unref);
  g_assert_true (sim_stop ());
  sim_start ();
  g_assert_cmpuint (sim_disk_files (sim.scratch), ==, 0);
  g_assert_true (sim_stop ());
}

/* A snapshot ends, and the sync of the folder fails that should make sure that
 * its scratch file is removed; the next start found nothing to remove, the row
 * went, and a power loss brought the file back. */
static void
life_with_unsynced_folder (void)
{
  SimFault fault = { .err = ENOSPC, .for_good = true };

  sim_start ();
  g_assert_true (cut ("s", true, NULL, NULL));
  g_strlcpy (fault.target[0], sim.scratch, sizeof fault.target[0]);
  sim_disk_fault (&fault);
  {
    g_autoptr (Snapshot) snap = disk_find_snapshot (disk[0], "s");

    g_assert_true (snapshot_end (snap, NULL));
  }
  g_assert_true (sim_stop ());
  sim_start ();
}

static void
test_removal_unsynced (void)
{
  for (unsigned seed = 0; seed < 8; seed++) {
    set_up ();
    in_child (life_with_unsynced_folder);
    sim_disk_fault (NULL);
    sim_disk_lose_power (seed);
    sim_empty_folder (sim.runtime_folder);
    sim_start ();
    g_assert_cmpuint (sim_disk_files (sim.scratch), ==, 0);
    g_assert_true (sim_stop ());
  }
}

/* A cut fails as its preparation cannot be committed, or so it seems: the row
 * of its layer was found at the next start, and as the files were gone, older
 * snapshots were lost. */
static void
life_with_failing_cut (void)
{
  SimFault fault = { .err = fail_err, .for_good = true, .at = fail_at };

  sim_start ();
  g_assert_cmpint (write_block (0, 'a'), ==, 0);
  g_assert_true (cut ("d", true, NULL, NULL));
  g_strlcpy (fault.target[0], sim.state, sizeof fault.target[0]);
  sim_disk_fault (&fault);
  cut ("e", false, NULL, NULL);
}

static void
failed_prepare (int err)
{
  uint64_t calls;

  fail_err = err;
  for (fail_at = 0; ; fail_at++) {
    g_autoptr (Snapshot) snap = NULL;

    set_up ();
    in_child (life_with_failing_cut);
    calls = sim_disk_fault_calls ();
    sim_disk_fault (NULL);
    sim_start ();
    snap = disk_find_snapshot (disk[0], "d");
    g_assert_nonnull (snap);
    g_assert_cmpint (snapshot_state (snap), ==, SNAPSHOT_LIVE);
    g_clear_pointer (&snap, snapshot_unref);
    g_assert_true (sim_stop ());
    if (calls <= fail_at)
      break;
  }
  g_assert_cmpuint (fail_at, >, 5);
}

static void
test_failed_prepare (void)
{
  failed_prepare (EIO);
}

/* The same on a full file system: the row was set back to what it was, which
 * SQLite did by writing nothing, so that the failed commit stayed in its
 * log. */
static void
test_full_prepare (void)
{
  failed_prepare (ENOSPC);
}

int
main (int argc, char **argv)
{
  int r;

  g_test_init (&argc, &argv, NULL);
  sim_set_up ();
  sim_disk_use ();
  sim.runtime_folder = g_build_filename (sim.dir, "runtime", NULL);
  sim.pace_ms = 5000;
  boundary = &oracle->over_bytes;
  g_test_add_func ("/faults/failed-commit", test_failed_commit);
  g_test_add_func ("/faults/failed-sync-once", test_failed_sync_once);
  g_test_add_func ("/faults/untold", test_untold);
  g_test_add_func ("/faults/lost-news", test_lost_news);
  g_test_add_func ("/faults/not-removed", test_not_removed);
  g_test_add_func ("/faults/removal-unsynced", test_removal_unsynced);
  g_test_add_func ("/faults/failed-prepare", test_failed_prepare);
  g_test_add_func ("/faults/full-prepare", test_full_prepare);
  r = g_test_run ();
  sim_tear_down ();
  return r;
}
