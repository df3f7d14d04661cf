/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fault-calls.c - the image, the scratch files or the state fail at any call:
 * EIO, ENOSPC, once or from then on, or are slow.
 *
 *   fault-calls [STEP [TARGET [FAULT CALL END]]]
 *
 * STEP: every STEP-th call.  TARGET: 0 .., only this one (as in targets).
 * FAULT CALL END: only this call, as a failure names it (numbers as in faults and
 * end_name).  Without arguments: the short form.  FAULT_SEED chooses which calls.
 *
 * A history of all operations runs in a child process with one such fault.  In
 * it and after it:
 * - an operation fails only where the fault is, and a guest's write only where
 *   its data is not safe: the image, or an intent that cannot be recorded, or
 *   the scratch file where the snapshot was asked to be kept at that price
 * - a snapshot reads as at its cut, or says broken or lost with a reason, and
 *   never turns live again
 * - the copy of a cut and what is dirty since make the disk of now
 * Then the server stops, is killed, or the power fails; another starts without a
 * fault, and all of that still holds; life goes on, all can be ended, and nothing
 * is left.
 */
#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/sim-history.h"

static const struct target {
  const char *name;
  bool image, scratch, state, guest_fails;
} targets[] = {
  { "image", .image = true },
  { "scratch", .scratch = true },
  { "scratch, snapshots first", .scratch = true, .guest_fails = true },
  { "state", .state = true },
  { "scratch and state", .scratch = true, .state = true },
};

static const struct fault {
  const char *name;
  int err;
  bool for_good;
} faults[] = {
  { "EIO once", EIO, false },
  { "EIO from then on", EIO, true },
  { "ENOSPC once", ENOSPC, false },
  { "ENOSPC from then on", ENOSPC, true },
  { "slow", 0, false },
};

typedef enum { STOP, KILL, POWER_CUT, NR_ENDS } End;
static const char *const end_name[] = { "a stop", "kill -9", "power loss" };

static const Op script[] = {
  { WRITE, 0, 0, 8192 }, { WRITE, 1, 65536, 4096 }, { FLUSH, 0 },
  { CUT }, { WRITE, 0, 4096, 4096 }, { WRITE, 0, 1 << 20, 12288 },
  { MIXED }, { FUA, 0, 4096, 512 }, { ZERO, 0, 0, 65536 },
  { WRITE, 1, 512, 1536 }, { TRIM, 0, 1 << 20, 65536 }, { FLUSH, 0 },
  { STORE }, { CHECKPOINT }, { WRITE, 0, 2 << 20, 4096 }, { END, 0, 0 },
  { WRITE, 0, 0, 512 }, { WRITE, 1, 65536, 4096 }, { RESTART },
  { WRITE, 0, 8192, 4096 }, { ONE, 1, 1 }, { FUA, 1, 0, 4096 },
  { WRITE, 0, 262144, 4096 }, { CUT }, { WRITE, 0, 262144, 512 },
  { WRITE, 1, 512, 4096 }, { FLUSH, 1 }, { END, 0, 1 }, { STORE },
  { RESIZE, 0, 0, DISK_BYTES }, { WRITE, 0, 4 << 20, 4096 }, { FLUSH, 0 },
  { RESIZE, 1, 0, LEAST_BYTES + 512 }, { WRITE, 1, 8192, 512 },
};

typedef struct {
  const struct target *target;
  const struct fault *fault;
  uint64_t at;
  End end;
} Run;

static uint64_t seed;
static uint64_t nr_runs, nr_failures;

static void
set_fault (const Run *run)
{
  SimFault fault = { .err = run->fault->err, .at = run->at,
                     .for_good = run->fault->for_good, .delay_us = 3000 };
  unsigned n = 0;

  if (run->target->image)
    strcpy (fault.target[n++], "/images");
  if (run->target->scratch)
    g_strlcpy (fault.target[n++], sim.scratch, sizeof fault.target[0]);
  if (run->target->state)
    g_strlcpy (fault.target[n++], sim.state, sizeof fault.target[0]);
  sim_disk_fault (&fault);
}

static void
lift_fault (void)
{
  oracle->hit |= sim_disk_fault_hit ();
  sim_disk_fault_lift ();
}

/* Ends without a word, as if killed, unless the end is a stop. */
static void
history (const Run *run)
{
  g_autoptr (GError) error = NULL;

  set_fault (run);
  if (!sim_try_start (&error)) {
    oracle->hit |= sim_disk_fault_hit ();
    if (!(oracle->hit & ~(unsigned) SIM_HIT_SCRATCH))
      g_error ("the first start failed: %s", error->message);
    lift_fault ();
    sim_start ();
  }
  for (size_t i = 0; i < G_N_ELEMENTS (script); i++)
    sim_op (&script[i]);
  if (run->end == STOP && run->at % 2 == 0)
    sim_stop ();                /* with the fault */
  else {
    lift_fault ();
    sim_check_base (KILLED);
    sim_check_all (KILLED, true);
    if (run->end == STOP)
      sim_stop ();
  }
  lift_fault ();
}

static void
verify (const Run *run)
{
  Crash crash = run->end == POWER_CUT ? POWER_NO_TMPFS : KILLED;

  sim_start ();
  sim_check_base (crash);
  sim_check_all (crash, true);
  sim_check_life (crash, run->at);
}

static void
run_child (const Run *run, void (*part) (const Run *), const char *what)
{
  pid_t pid;
  int status;

  fflush (NULL);
  pid = fork ();
  g_assert_cmpint (pid, >=, 0);
  if (pid == 0) {
    sim_disk_use ();
    part (run);
    _exit (0);
  }
  while (waitpid (pid, &status, 0) < 0)
    g_assert_cmpint (errno, ==, EINTR);
  if (WIFEXITED (status) && WEXITSTATUS (status) == 0)
    return;
  fprintf (stderr, "%s: %s at call %" G_GUINT64_FORMAT " (it hit %x), then %s: "
           "%s failed, status 0x%x\n", run->target->name, run->fault->name,
           run->at, oracle->hit | sim_disk_fault_hit (), end_name[run->end],
           what, status);
  if (g_getenv ("FAULT_GO_ON") == NULL) {
    sim_tear_down ();
    exit (1);
  }
}

/* False: there is no such call any more. */
static bool
run_once (const Run *run)
{
  uint64_t calls;

  sim.guest_fails = run->target->guest_fails;
  sim_empty_folder (sim.runtime_folder);
  sim_new_disks ();
  run_child (run, history, "the history");
  calls = sim_disk_fault_calls ();
  nr_failures += oracle->failures;
  nr_runs++;
  sim_disk_fault (NULL);
  sim_disk_arm (UINT64_MAX);
  if (run->end == POWER_CUT) {
    sim_disk_lose_power (run->at);
    sim_empty_folder (sim.runtime_folder);
  }
  run_child (run, verify, "the check");
  return run->at < calls;
}

static void
every_call (const struct target *target, unsigned step)
{
  for (unsigned f = 0; f < G_N_ELEMENTS (faults); f++) {
    uint64_t nr = 0, at;

    for (at = (seed + f * 7) % step; ; at += step) {
      Run run = { target, &faults[f], at, (nr++ + seed) % NR_ENDS };

      if (!run_once (&run))
        break;
    }
    printf ("# %s, %s: %" G_GUINT64_FORMAT " times, of %" G_GUINT64_FORMAT
            " calls\n", target->name, faults[f].name, nr, at);
  }
}

/* Again what a failure named. */
static int
one_call (char **argv)
{
  Run run = { &targets[atoi (argv[2])], &faults[atoi (argv[3])],
              g_ascii_strtoull (argv[4], NULL, 10), atoi (argv[5]) };

  run_once (&run);
  sim_tear_down ();
  return 0;
}

int
main (int argc, char **argv)
{
  const char *seed_text = g_getenv ("FAULT_SEED");
  unsigned step = argc > 1 ? MAX (atoi (argv[1]), 1) : 397;
  int only = argc > 2 ? atoi (argv[2]) : -1;

  seed = seed_text != NULL ? g_ascii_strtoull (seed_text, NULL, 10)
    : g_random_int ();
  sim_set_up ();
  sim.runtime_folder = g_build_filename (sim.dir, "runtime", NULL);
  sim.faults = true;
  sim.pace_ms = 5;
  printf ("# FAULT_SEED=%" G_GUINT64_FORMAT "\n", seed);
  if (argc > 5)
    return one_call (argv);
  for (unsigned i = 0; i < G_N_ELEMENTS (targets); i++)
    if (only < 0 || only == (int) i)
      every_call (&targets[i], step);
  sim_tear_down ();
  printf ("1..1\nok 1 faults at calls\n");
  printf ("# %" G_GUINT64_FORMAT " faults, %" G_GUINT64_FORMAT " operations "
          "that failed, 0 lost blocks\n", nr_runs, nr_failures);
  return 0;
}
