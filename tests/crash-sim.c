/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* crash-sim.c - the real bitmap/ and fleece/ on a simulated disk, ended at any
 * call (durability.md 7-L1).
 *
 *   crash-sim [STEP HISTORIES [CRASH]]
 *
 * STEP: of the scripts, every STEP-th call.  HISTORIES: random ones.  CRASH: 0 .. 5,
 * only this kind (as in crash_name).  Without arguments: the short form.
 *
 * CRASH_SEED repeats a run of the same kind, but for the timing of threads.
 *
 * A history runs in a child process that ends at call number N, with what it had
 * promised kept in memory shared with us.  Then the crash takes its due:
 *   killed        all that was written is there
 *   power loss    each unsynced sector is kept, dropped or torn
 * each with the folder of the runtime maps kept or deleted.  The recovery may be
 * ended in the same way, again and again, at each of its calls.  At last
 * another child starts on what is left and checks; see sim-history.h.
 */
#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bitmap/epoch.h"
#include "bitmap/runtime.h"
#include "tests/fleece-fixture.h"
#include "tests/sim-history.h"

#define MAX_OPS 200

static const char *const crash_name[] = {
  "kill -9", "kill -9 and the tmpfs lost", "power loss with the tmpfs kept",
  "power loss", "power loss, then maps of another life",
  "power loss with the maps on a disk",
};

/* sim.runtime_folder is either. */
static char *tmpfs_folder, *disk_folder;

/* --- histories --- */

static const Op script_cuts[] = {
  { WRITE, 0, 0, 8192 }, { WRITE, 1, 65536, 4096 }, { FLUSH, 0 },
  { CUT }, { WRITE, 0, 4096, 4096 }, { WRITE, 0, 1 << 20, 12288 },
  { FLUSH, 0 }, { ZERO, 0, 0, 65536 }, { MIXED }, { FUA, 1, 65536, 512 },
  { WRITE, 1, 512, 1536 }, { TRIM, 0, 1 << 20, 65536 }, { STORE },
  { END, 0, 0 }, { WRITE, 0, 131072, 65536 }, { CHECKPOINT },
  { WRITE, 0, 2 << 20, 131072 }, { FLUSH, 0 }, { CHECKPOINT },
  { RESIZE, 1, 0, DISK_BYTES }, { RESIZE, 0, 0, LEAST_BYTES + 3584 },
  { WRITE, 0, 0, 512 }, { WRITE, 1, 5 << 20, 1536 }, { FLUSH, 1 },
  { RESIZE, 0, 0, DISK_BYTES - 512 },
  { WRITE, 1, 3 << 20, 4096 }, { FLUSH, 1 }, { WRITE, 0, 4 << 20, 4096 },
  { RESTART }, { RESIZE, 0, 0, 4 << 20 }, { WRITE, 0, 262144, 4096 }, { CUT },
  { WRITE, 0, 262144, 4096 },
  { WRITE, 1, 0, 4096 }, { END, 0, 1 }, { STORE }, { WRITE, 1, 4096, 4096 },
};

/* Ends in every order, epochs forgotten, volatile among durable, restarts. */
static const Op script_ends[] = {
  { WRITE, 0, 0, 4096 }, { DURABLE }, { WRITE, 0, 0, 4096 }, { CUT },
  { WRITE, 1, 8192, 8192 }, { ONE, 1, 0 }, { ONE, 0, 1 },
  { WRITE, 0, 0, 12288 }, { WRITE, 1, 0, 12288 }, { FLUSH, 0 }, { END, 0, 1 },
  { STORE }, { WRITE, 0, 4096, 512 }, { END, 0, 3 }, { RESTART },
  { WRITE, 1, 2 << 20, 4096 }, { MIXED }, { END, 0, 2 }, { FORGET, 0, 2 },
  { ZERO, 1, 0, 8192 }, { FORGET, 0, 4 }, { RESIZE, 1, 0, LEAST_BYTES },
  { RESTART }, { END, 0, 0 },
  { WRITE, 0, 0, 512 }, { CUT }, { FORGET, 0, 5 }, { END, 0, 4 },
  { WRITE, 0, 8192, 512 }, { WRITE, 1, 8192, 512 }, { END, 0, 5 },
  { WRITE, 0, 3 << 20, 512 }, { STORE }, { RESTART }, { CHECKPOINT },
  { FORGET, 0, 6 }, { WRITE, 0, 0, 512 },
};

static const struct {
  const Op *ops;
  size_t nr;
} scripts[] = {
  { script_cuts, G_N_ELEMENTS (script_cuts) },
  { script_ends, G_N_ELEMENTS (script_ends) },
};

typedef struct {
  unsigned script;              /* unless there is a seed */
  uint64_t seed;
  bool threads;                 /* cuts and writes at the same time */
} History;

static void *
cutter (void *opaque)
{
  for (unsigned i = 0; i < 4; i++)
    sim_random_cut (opaque);
  return NULL;
}

static void
run_history (const History *h)
{
  if (h->seed == 0) {
    for (size_t i = 0; i < scripts[h->script].nr; i++)
      sim_op (&scripts[h->script].ops[i]);
    return;
  }
  GRand *rand = g_rand_new_with_seed ((guint32) h->seed);
  GRand *cuts = g_rand_new_with_seed ((guint32) h->seed + 1);
  unsigned nr = g_rand_int_range (rand, 10, MAX_OPS);
  pthread_t thread;

  if (h->threads)
    g_assert_cmpint (pthread_create (&thread, NULL, cutter, cuts), ==, 0);
  for (unsigned i = 0; i < nr; i++) {
    Op op = sim_random_op (rand);

    if (h->threads && op.kind >= CUT)
      op = (Op) { .kind = FLUSH };
    sim_op (&op);
  }
  if (h->threads)
    pthread_join (thread, NULL);
  g_rand_free (rand);
  g_rand_free (cuts);
}

/* --- the parent --- */

typedef enum { HISTORY, RECOVERY, VERIFY } Part;

typedef struct {
  const History *history;
  Crash crash;
  uint64_t seed;
  bool recovered;               /* once already: what it saw is not known */
} Run;

static void
child (Part part, const Run *run)
{
  sim_disk_use ();
  switch (part) {
  case HISTORY:
    sim_start ();
    run_history (run->history);
    sim_stop ();
    break;
  case RECOVERY:
    sim_start ();
    break;
  case VERIFY:
    sim_start ();
    sim_check_base (run->crash);
    sim_check_all (run->crash, sim_is_precise (run->crash, run->recovered));
    sim_check_life (run->crash, run->seed);
  }
  /* The recovered server is killed as well. */
  _exit (0);
}

/* True: it ended at the crash.  A failure ends us. */
static bool
run_child (Part part, const Run *run, uint64_t crash_at)
{
  pid_t pid;
  int status;

  sim_disk_arm (crash_at);
  fflush (NULL);
  pid = fork ();
  g_assert_cmpint (pid, >=, 0);
  if (pid == 0)
    child (part, run);
  while (waitpid (pid, &status, 0) < 0)
    g_assert_cmpint (errno, ==, EINTR);
  if (WIFEXITED (status) && WEXITSTATUS (status) == 0)
    return false;
  if (WIFEXITED (status) && WEXITSTATUS (status) == SIM_CRASHED)
    return true;
  fprintf (stderr, "script %u, history %" G_GUINT64_FORMAT "%s, then %s: %s "
           "failed, status 0x%x, call %" G_GUINT64_FORMAT " of it\n",
           run->history->script, run->history->seed,
           run->history->threads ? " (threads)" : "", crash_name[run->crash],
           part == HISTORY ? "the history" : part == RECOVERY ? "the recovery"
           : "the check", status, sim_disk_calls ());
  sim_tear_down ();
  fixture_remove_tree (disk_folder);
  exit (1);
}

static struct {
  uint64_t crashes, recoveries, over[NR_CRASHES], n[NR_CRASHES];
} total;

/* Maps of the same names and sizes: empty ones of another life, or those that
 * are there with some pages that never reached the disk. */
static void
change_map (Runtime *rt, const char *path, bool other_life, GRand *rand)
{
  g_autoptr (GError) error = NULL;
  g_autofree char *name = g_path_get_basename (path), *bytes = NULL;
  size_t length, page = getpagesize ();

  g_file_get_contents (path, &bytes, &length, &error);
  g_assert_no_error (error);
  if (length <= page)           /* the crash was while it was made */
    return;
  if (other_life) {
    uint8_t nonce[RUNTIME_NONCE_BYTES];
    RuntimeMap *map;

    runtime_draw_nonce (nonce);
    map = runtime_map_create (rt, name, length - page, nonce, false, &error);
    g_assert_no_error (error);
    runtime_map_close (map);
    return;
  }
  for (size_t at = page; at < length; at += page)
    if (g_rand_boolean (rand))
      memset (bytes + at, 0, MIN (page, length - at));
  g_file_set_contents (path, bytes, length, &error);
  g_assert_no_error (error);
}

static void
change_maps (bool other_life, uint64_t seed)
{
  g_autoptr (GDir) top = g_dir_open (sim.runtime_folder, 0, NULL);
  GRand *rand = g_rand_new_with_seed ((guint32) seed);
  const char *uuid, *name;

  while (top != NULL && (uuid = g_dir_read_name (top)) != NULL) {
    g_autofree char *path = g_build_filename (sim.runtime_folder, uuid, NULL);
    g_autoptr (Runtime) rt = runtime_new (sim.runtime_folder, uuid, NULL);
    g_autoptr (GDir) maps = g_dir_open (path, 0, NULL);
    g_autoptr (GPtrArray) all = g_ptr_array_new_with_free_func (g_free);

    while ((name = g_dir_read_name (maps)) != NULL)
      if (!g_str_has_suffix (name, EPOCH_MARK_SUFFIX))
        g_ptr_array_add (all, g_build_filename (path, name, NULL));
    for (unsigned i = 0; i < all->len; i++)
      change_map (rt, all->pdata[i], other_life, rand);
  }
  g_rand_free (rand);
}

static void
strike (Crash crash, uint64_t seed)
{
  if (crash >= POWER)
    sim_disk_lose_power (seed);
  if (crash == KILLED_NO_TMPFS || crash == POWER_NO_TMPFS)
    sim_empty_folder (sim.runtime_folder);
  else if (crash == POWER_OTHER_MAPS)
    change_maps (true, seed);
  else if (crash == POWER_MAPS_ON_DISK)
    change_maps (false, seed);
}

/* False: the history is over before call number crash_at. */
static bool
crash_once (const History *history, uint64_t crash_at, Crash crash,
            unsigned recoveries, uint64_t seed)
{
  Run run = { history, crash, seed, recoveries > 0 };
  static const unsigned paces[] = { 1, 4, 5000 };

  sim.runtime_folder = crash == POWER_MAPS_ON_DISK ? disk_folder
    : tmpfs_folder;
  sim.pace_ms = paces[seed % G_N_ELEMENTS (paces)];
  sim_empty_folder (tmpfs_folder);
  sim_empty_folder (disk_folder);
  sim_new_disks ();
  sim_disk_slow_syncs (history->threads ? 400 : 0);
  if (!run_child (HISTORY, &run, crash_at))
    return false;
  total.crashes++;
  strike (crash, seed);
  /* Each recovery goes on from what the one before left. */
  for (uint64_t at = 0; at < recoveries; at++) {
    bool over = !run_child (RECOVERY, &run, at);

    strike (crash, seed + at + 1);
    total.recoveries++;
    if (over)
      break;
  }
  run_child (VERIFY, &run, UINT64_MAX);
  total.over[crash] += oracle->over_bytes;
  total.n[crash]++;
  return true;
}

/* Every call of the scripts, each kind of crash in turn. */
static void
every_call (unsigned step, unsigned first, int only)
{
  for (unsigned i = 0; i < G_N_ELEMENTS (scripts); i++) {
    History h = { .script = i };

    for (uint64_t at = first; ; at += step)
      if (!crash_once (&h, at, only >= 0 ? only
                       : (int) ((at / step + i) % NR_CRASHES),
                       at % 97 == 0 ? 1000 : at % 3, at * 7919 + 1))
        break;
  }
}

static void
random_histories (unsigned nr, uint64_t seed, int only)
{
  GRand *rand = g_rand_new_with_seed ((guint32) seed);

  for (unsigned i = 0; i < nr; ) {
    History h = { .seed = 1 + g_rand_int_range (rand, 0, G_MAXINT32),
                  .threads = g_rand_boolean (rand) };
    int any = g_rand_int_range (rand, 0, NR_CRASHES);
    Crash crash = only >= 0 ? only : any;
    uint64_t at = g_rand_int_range (rand, 0, 1500);
    unsigned recoveries = g_rand_int_range (rand, 0, 4);

    if (crash_once (&h, at, crash, recoveries * g_rand_int_range (rand, 0, 8),
                    h.seed + at))
      i++;
  }
  g_rand_free (rand);
}

int
main (int argc, char **argv)
{
  /* Under TSan a fork takes ten times as long, and what is lost in a crash is
   * the same: only races are looked for, most of them in random histories. */
  bool tsan = g_strcmp0 (g_getenv ("SANITIZERS"), "thread") == 0;
  unsigned step = argc > 2 ? MAX (atoi (argv[1]), 1) : tsan ? 401 : 67;
  unsigned histories = argc > 2 ? atoi (argv[2]) : 10;
  int only = argc > 3 ? atoi (argv[3]) : -1;
  const char *seed_text = g_getenv ("CRASH_SEED");
  uint64_t seed = seed_text != NULL ? g_ascii_strtoull (seed_text, NULL, 10)
    : g_random_int ();

  sim_set_up ();
  /* Trusted, being in a tmpfs; and not. */
  tmpfs_folder = g_build_filename (sim.dir, "runtime", NULL);
  disk_folder = g_mkdtemp (g_build_filename (g_get_tmp_dir (),
                                             "nbdfleece-sim.XXXXXX", NULL));
  g_assert_nonnull (disk_folder);
  printf ("# CRASH_SEED=%" G_GUINT64_FORMAT "\n", seed);
  fflush (stdout);

  every_call (step, seed % step, only);
  random_histories (histories, seed, only);
  sim_tear_down ();
  fixture_remove_tree (disk_folder);
  printf ("1..1\nok 1 simulated disk\n");
  printf ("# simulated disk: %" G_GUINT64_FORMAT " crashes, 0 lost blocks, %"
          G_GUINT64_FORMAT " recoveries ended\n", total.crashes,
          total.recoveries);
  for (unsigned i = 0; i < NR_CRASHES; i++)
    printf ("#   %s: %" G_GUINT64_FORMAT " times\n", crash_name[i],
            total.n[i]);
  return 0;
}
