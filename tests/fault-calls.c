/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fault-calls.c - the image, the scratch files or the state fail at any call:
 * EIO, ENOSPC, once or from then on, or are slow.
 *
 *   fault-calls [STEP [TARGET [FAULT CALL END]]]
 *
 * STEP: every STEP-th call; 1: the campaign.  TARGET: 0 .., only this one (as
 * in targets).  FAULT CALL END: only this call, as a failure names it.  Without
 * arguments: the short form, of some calls that FAULT_SEED chooses.
 * FAULT_JOBS: how many at the same time, each with a disk of its own; else as
 * many as there are processors.  With FAULT_GO_ON set a failure is not the end.
 *
 * A history of all operations runs in a child process with one such fault.  In
 * it and after it:
 * - an operation fails only where the fault is, and a guest's write only where
 *   its data is not safe: the image, or an intent that cannot be recorded, or
 *   the scratch file where the snapshot was asked to be kept at that price
 * - a snapshot reads as at its cut, or says broken or lost with a reason, and
 *   never turns live again
 * - the copy of a cut and what is dirty since make the disk of now
 * Then the server stops, is killed, or the power fails; another starts without
 * a fault, and all of that still holds; life goes on, all can be ended, and
 * nothing is left.
 */
#include <config.h>

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/sim-history.h"

static const struct target {
  const char *name;
  unsigned step;                /* of the short form: a third of its calls */
  bool image, scratch, state, guest_fails;
} targets[] = {
  { "image", 29, .image = true },
  { "scratch", 59, .scratch = true },
  { "scratch, snapshots first", 59, .scratch = true, .guest_fails = true },
  { "state", 347, .state = true },
  { "scratch and state", 397, .scratch = true, .state = true },
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

/* Of a disk: small, since the checks read all of it, but of several regions. */
#define MOST (2 * REGION + 65536 + 3 * SIM_SECTOR)
#define START (REGION + 131072 + SIM_SECTOR)
#define LEAST (REGION / 4)

static const Op script[] = {
  { WRITE, 0, 0, 8192 }, { WRITE, 1, 65536, 4096 }, { FLUSH, 0 },
  { CUT }, { WRITE, 0, 4096, 4096 }, { WRITE, 0, REGION, 12288 },
  { MIXED }, { FUA, 0, 4096, 512 }, { ZERO, 0, 0, 65536 },
  { WRITE, 1, 512, 1536 }, { TRIM, 0, REGION, 65536 }, { FLUSH, 0 },
  { STORE }, { CHECKPOINT }, { WRITE, 0, REGION + 65536, 4096 }, { END, 0, 0 },
  { WRITE, 0, 0, 512 }, { WRITE, 1, 65536, 4096 }, { RESTART },
  { WRITE, 0, 8192, 4096 }, { ONE, 1, 1 }, { FUA, 1, 0, 4096 },
  { WRITE, 0, 262144, 4096 }, { CUT }, { WRITE, 0, 262144, 512 },
  { WRITE, 1, 512, 4096 }, { FLUSH, 1 }, { END, 0, 1 }, { STORE },
  { RESIZE, 0, 0, MOST }, { WRITE, 0, 2 * REGION, 4096 }, { FLUSH, 0 },
  { RESIZE, 1, 0, LEAST + 512 }, { WRITE, 1, 8192, 512 },
};

typedef struct {
  const struct target *target;
  const struct fault *fault;
  uint64_t at;
  End end;
} Run;

static uint64_t seed;
static unsigned job, nr_jobs;

/* Of all jobs; shared. */
static struct {
  struct {
    atomic_uint_least64_t runs, failures;
    /* In the longest history. */
    atomic_uint_least64_t calls[G_N_ELEMENTS (faults)];
  } target[G_N_ELEMENTS (targets)];
  atomic_uint bad;
} *total;

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
           "%s failed, status 0x%x; again: fault-calls 1 %u %u %"
           G_GUINT64_FORMAT " %u\n", run->target->name, run->fault->name,
           run->at, oracle->hit | sim_disk_fault_hit (), end_name[run->end],
           what, status, (unsigned) (run->target - targets),
           (unsigned) (run->fault - faults), run->at, run->end);
  atomic_fetch_add (&total->bad, 1);
  if (g_getenv ("FAULT_GO_ON") == NULL) {
    sim_tear_down ();
    exit (1);
  }
}

static void
keep_largest (atomic_uint_least64_t *largest, uint64_t value)
{
  uint64_t had = atomic_load (largest);

  while (had < value && !atomic_compare_exchange_weak (largest, &had, value))
    ;
}

/* False: there is no such call any more. */
static bool
run_once (const Run *run)
{
  unsigned t = run->target - targets, f = run->fault - faults;
  uint64_t calls;

  sim.guest_fails = run->target->guest_fails;
  sim_empty_folder (sim.runtime_folder);
  sim_new_disks ();
  run_child (run, history, "the history");
  calls = sim_disk_fault_calls ();
  atomic_fetch_add (&total->target[t].failures, oracle->failures);
  atomic_fetch_add (&total->target[t].runs, 1);
  keep_largest (&total->target[t].calls[f], calls);
  sim_disk_arm (UINT64_MAX);    /* the locks of the dead */
  sim_disk_fault (NULL);
  if (run->end == POWER_CUT) {
    sim_disk_lose_power (run->at);
    sim_empty_folder (sim.runtime_folder);
  }
  run_child (run, verify, "the check");
  return run->at < calls;
}

static bool
may_go_on (void)
{
  return atomic_load (&total->bad) == 0 || g_getenv ("FAULT_GO_ON") != NULL;
}

/* Of every step-th call those that are this job's; 0: the short form. */
static void
every_call (unsigned t, unsigned step)
{
  if (step == 0)
    step = targets[t].step;
  for (unsigned f = 0; f < G_N_ELEMENTS (faults); f++)
    for (uint64_t nr = job; may_go_on (); nr += nr_jobs) {
      Run run = { &targets[t], &faults[f], (seed + f * 7) % step + nr * step,
                  (nr + seed) % NR_ENDS };

      if (!run_once (&run))
        break;
    }
}

static void
set_up (void)
{
  sim_set_up ();
  sim.runtime_folder = g_build_filename (sim.dir, "runtime", NULL);
  sim.most_bytes = MOST;
  sim.start_bytes = START;
  sim.least_bytes = LEAST;
  sim.faults = true;
  sim.pace_ms = 5;
}

static pid_t
start_job (unsigned nr, unsigned step, int only)
{
  pid_t pid;

  fflush (NULL);
  pid = fork ();
  g_assert_cmpint (pid, >=, 0);
  if (pid > 0)
    return pid;
  prctl (PR_SET_PDEATHSIG, SIGKILL);
  job = nr;
  set_up ();
  for (unsigned t = 0; t < G_N_ELEMENTS (targets); t++)
    if (only < 0 || only == (int) t)
      every_call (t, step);
  sim_tear_down ();
  _exit (0);
}

static void
run_jobs (unsigned step, int only)
{
  g_autofree pid_t *pid = g_new (pid_t, nr_jobs);

  for (unsigned i = 0; i < nr_jobs; i++)
    pid[i] = start_job (i, step, only);
  for (unsigned i = 0; i < nr_jobs; i++) {
    int status;

    while (waitpid (pid[i], &status, 0) < 0)
      g_assert_cmpint (errno, ==, EINTR);
    if (status != 0 && atomic_load (&total->bad) == 0)
      g_error ("job %u ended with status 0x%x", i, status);
  }
}

static void
report (void)
{
  uint64_t runs = 0, failures = 0;

  for (unsigned t = 0; t < G_N_ELEMENTS (targets); t++) {
    if (total->target[t].runs == 0)
      continue;
    printf ("# %s:", targets[t].name);
    for (unsigned f = 0; f < G_N_ELEMENTS (faults); f++)
      printf (" %s, %" G_GUINT64_FORMAT " calls;", faults[f].name,
              (uint64_t) total->target[t].calls[f]);
    printf (" %" G_GUINT64_FORMAT " runs, %" G_GUINT64_FORMAT " operations "
            "failed\n", (uint64_t) total->target[t].runs,
            (uint64_t) total->target[t].failures);
    runs += total->target[t].runs;
    failures += total->target[t].failures;
  }
  printf ("# %" G_GUINT64_FORMAT " runs with a fault, %" G_GUINT64_FORMAT
          " operations failed; ", runs, failures);
  if (atomic_load (&total->bad) == 0)
    printf ("0 lost blocks, 0 guest errors where data was safe\n");
  else
    printf ("%u runs went wrong\n", atomic_load (&total->bad));
}

/* Again what a failure named. */
static void
one_call (char **argv)
{
  Run run = { &targets[atoi (argv[2])], &faults[atoi (argv[3])],
              g_ascii_strtoull (argv[4], NULL, 10), atoi (argv[5]) };

  set_up ();
  run_once (&run);
  sim_tear_down ();
}

static uint64_t
number_of (const char *variable, uint64_t otherwise)
{
  const char *text = g_getenv (variable);

  return text != NULL ? g_ascii_strtoull (text, NULL, 10) : otherwise;
}

int
main (int argc, char **argv)
{
  unsigned step = argc > 1 ? MAX (atoi (argv[1]), 1) : 0;

  total = mmap (NULL, sizeof *total, PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  g_assert (total != MAP_FAILED);
  seed = number_of ("FAULT_SEED", g_random_int ());
  nr_jobs = MAX (1, number_of ("FAULT_JOBS", sysconf (_SC_NPROCESSORS_ONLN)));
  printf ("1..1\n# FAULT_SEED=%" G_GUINT64_FORMAT "\n", seed);
  if (argc > 5)
    one_call (argv);
  else
    run_jobs (step, argc > 2 ? atoi (argv[2]) : -1);
  report ();
  if (atomic_load (&total->bad) > 0) {
    printf ("not ok 1 faults at calls\n");
    return 1;
  }
  printf ("ok 1 faults at calls\n");
  return 0;
}
