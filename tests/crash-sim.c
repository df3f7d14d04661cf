/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* crash-sim.c - the real bitmap/ and fleece/ on a simulated disk, ended at any
 * call (durability.md 7-L1).
 *
 *   crash-sim [STEP HISTORIES [CRASH]]
 *
 * STEP: of the scripts, every STEP-th call.  HISTORIES: random ones.  CRASH: 0
 * .. 5, only this kind (as in crash_name).  Without arguments: the short form.
 *
 * CRASH_SEED repeats a run of the same kind, but for the timing of threads.
 * CRASH_JOBS: processes that share the work.
 * CRASH_SCRIPT: of the scripts, only this number.
 *
 * A history runs in a child process that ends at call number N, with what it
 * had promised kept in memory shared with us.  Then the crash takes its due,
 * some times over, of different kinds and dice:
 *   killed        all that was written is there
 *   power loss    each unsynced sector is kept, dropped or torn
 * each with the folder of the runtime maps kept or deleted.  The recovery may
 * be ended in the same way, again and again, at each of its calls.  At last
 * another child starts on what is left and checks; see sim-history.h.
 */
#include <config.h>

#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bitmap/epoch.h"
#include "bitmap/runtime.h"
#include "tests/fleece-fixture.h"
#include "tests/sim-history.h"

#define MAX_OPS 200
#define TURN_CALLS 100          /* between crashes, of one turn */

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

/* Bitmaps of every kind, by themselves and in transactions, and epochs
 * merged. */
static const Op script_bitmaps[] = {
  { ADD, 0, 0 }, { WRITE, 0, 0, 4096 }, { ADD, 1, 1 },
  { WRITE, 1, 65536, 8192 },
  { ADD, 0, 2, 1 }, { WRITE, 0, 131072, 512 }, { ENABLE, 0, 2 },
  { WRITE, 0, 262144, 1024 }, { FLUSH, 0 }, { CUT }, { WRITE, 0, 8192, 4096 },
  { DISABLE, 0, 0 }, { WRITE, 0, 1 << 20, 4096 }, { MERGE, 0, 0, 2 },
  { TRANSACTION, 0, 1, 1 }, { WRITE, 1, 1 << 20, 8192 }, { STORE },
  { END, 0, 0 }, { FORGET, 0, 1 }, { COMPACT }, { CLEAR, 0, 2 },
  { WRITE, 0, 2 << 20, 4096 }, { RESTART }, { WRITE, 0, 524288, 512 },
  { TRANSACTION, 0, 2, 0 }, { WRITE, 1, 4096, 4096 }, { MERGE, 1, 1, 0 },
  { TRANSACTION, 0, 3, 1 }, { RESIZE, 0, 0, 2 << 20 }, { ZERO, 0, 0, 4096 },
  { COMPACT }, { REMOVE, 0, 0 }, { TRANSACTION, 0, 4, 0 }, { END, 0, 1 },
  { FORGET, 0, 2 }, { COMPACT }, { RESIZE, 0, 0, 4 << 20 },
  { TRANSACTION, 0, 5, 0 }, { WRITE, 0, 3 << 20, 4096 }, { REMOVE, 1, 1 },
  { COMPACT }, { WRITE, 1, 0, 512 },
};

/* Layers of new data: on, flushed, moved down and up while guests write, under
 * snapshots, over a disk that changes its size. */
static const Op script_layers[] = {
  { WRITE, 0, 0, 8192 }, { WRITE, 1, 65536, 4096 }, { LAYER_ON, 0 },
  { WRITE, 0, 512, 512 }, { FUA, 0, 8192, 1024 }, { WRITE, 0, 65536, 12288 },
  { FLUSH, 0 }, { WRITE, 0, 1536, 512 }, { WRITE, 0, 1 << 20, 512 },
  { ZERO, 0, 66048, 8192 }, { LAYER_ON, 0 }, { WRITE, 0, 512, 1024 },
  { CUT }, { WRITE, 0, 2048, 4096 }, { FUA, 0, 2 << 20, 512 },
  { LAYER_COMMIT, 0, 1, 1 }, { WRITE, 0, 131072, 4096 }, { LAYER_ON, 0 },
  { WRITE, 0, 131584, 512 }, { FLUSH, 0 }, { LAYER_STREAM, 0, 2 },
  { WRITE, 1, 0, 512 }, { WRITE, 1, 8192, 512 }, { STORE }, { FUA, 1, 0, 512 },
  { WRITE, 1, 2 << 20, 4096 }, { WRITE, 1, 1 << 20, 4096 },
  { RESTART }, { WRITE, 0, 262144, 512 }, { RESIZE, 0, 0, 2 << 20 },
  { RESIZE, 0, 0, 4 << 20 }, { WRITE, 0, 3 << 20, 1024 }, { FLUSH, 0 },
  { LAYER_COMMIT, 0, 3, 0 }, { WRITE, 0, 262144, 512 }, { LAYER_RESTORE, 0, 4 },
  { WRITE, 0, 0, 512 }, { LAYER_ON, 1 }, { WRITE, 1, 66048, 512 }, { DURABLE },
  { LAYER_RESTORE, 1, 5 }, { END, 0, 0 }, { WRITE, 1, 512, 512 },
};

static const struct {
  const Op *ops;
  size_t nr;
} scripts[] = {
  { script_cuts, G_N_ELEMENTS (script_cuts) },
  { script_ends, G_N_ELEMENTS (script_ends) },
  { script_bitmaps, G_N_ELEMENTS (script_bitmaps) },
  { script_layers, G_N_ELEMENTS (script_layers) },
};

/* How the committer works, and where its maps are. */
static const struct way {
  unsigned pace_ms;
  bool maps_on_disk;
} ways[] = { { 5000, false }, { 1, false }, { 4, true } };

typedef struct {
  unsigned script;              /* unless there is a seed */
  uint64_t seed;
  bool threads;                 /* cuts and two writers at the same time */
  const struct way *way;
} History;

static void *
cutter (void *opaque)
{
  for (unsigned i = 0; i < 6; i++)
    sim_random_cut (opaque);
  return NULL;
}

/* NR_WRITERS - 1 of them; the main thread is the other. */
static void *
writer (void *opaque)
{
  for (unsigned i = 0; i < MAX_OPS / 2; i++) {
    Op op = sim_random_write (opaque, 1);

    sim_op_of_thread (&op, 1);
  }
  return NULL;
}

static void
run_threads (const History *h, GRand *rand, unsigned nr)
{
  GRand *other[2];
  pthread_t thread[2];

  for (unsigned i = 0; i < 2; i++)
    other[i] = g_rand_new_with_seed ((guint32) h->seed + 1 + i);
  /* Something to change from the start. */
  for (unsigned i = 0; i < NR_DISKS * NR_BITMAPS; i++)
    sim_op (&(Op) { ADD, i % NR_DISKS, i / NR_DISKS });
  g_assert_cmpint (pthread_create (&thread[0], NULL, cutter, other[0]), ==, 0);
  g_assert_cmpint (pthread_create (&thread[1], NULL, writer, other[1]), ==, 0);
  for (unsigned i = 0; i < nr; i++) {
    Op op = sim_random_write (rand, 0);

    sim_op_of_thread (&op, 0);
  }
  for (unsigned i = 0; i < 2; i++) {
    pthread_join (thread[i], NULL);
    g_rand_free (other[i]);
  }
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
  unsigned nr = g_rand_int_range (rand, 10, MAX_OPS);

  if (h->threads)
    run_threads (h, rand, nr);
  for (unsigned i = 0; !h->threads && i < nr; i++) {
    Op op = sim_random_op (rand);

    sim_op (&op);
  }
  g_rand_free (rand);
}

/* --- the parent --- */

typedef enum { HISTORY, RECOVERY, VERIFY } Part;

typedef struct {
  const History *history;
  uint64_t at;                  /* call */
  Crash crash;
  uint64_t seed;                /* of the dice of the crash */
  unsigned recoveries;          /* to be ended, each one call later */
  bool life;                    /* goes on after it */
} Run;

static void
child (Part part, const Run *run)
{
  sim_disk_use ();
  sim_start ();
  switch (part) {
  case HISTORY:
    run_history (run->history);
    sim_stop ();
    break;
  case RECOVERY:
    break;
  case VERIFY:
    sim_check_base (run->crash);
    /* After more than one recovery, what the first saw is not known. */
    sim_check_all (run->crash, sim_is_precise (run->crash,
                                               run->recoveries > 0));
    if (run->life)
      sim_check_life (run->crash, run->seed);
  }
  /* The recovered server is killed as well. */
  _exit (0);
}

/* Shared by all who do the work. */
static struct totals {
  atomic_uint histories, recoveries, n[NR_CRASHES];
  atomic_bool failed;           /* all end */
} *total;

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
  fprintf (stderr, "script %u, history %" G_GUINT64_FORMAT "%s, call %"
           G_GUINT64_FORMAT ", then %s: %s "
           "failed, status 0x%x, call %" G_GUINT64_FORMAT " of it\n",
           run->history->script, run->history->seed,
           run->history->threads ? " (threads)" : "", run->at,
           crash_name[run->crash],
           part == HISTORY ? "the history" : part == RECOVERY ? "the recovery"
           : "the check", status, sim_disk_calls ());
  sim_tear_down ();
  fixture_remove_tree (disk_folder);
  atomic_store (&total->failed, true);
  exit (1);
}

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

/* One of the crashes from where the history was ended. */
static void
try_crash (Run *run)
{
  strike (run->crash, run->seed);
  /* Each recovery goes on from what the one before left. */
  for (uint64_t at = 0; at < run->recoveries; at++) {
    bool over = !run_child (RECOVERY, run, at);

    strike (run->crash, run->seed + at + 1);
    atomic_fetch_add (&total->recoveries, 1);
    if (over)
      break;
  }
  run_child (VERIFY, run, UINT64_MAX);
  atomic_fetch_add (&total->n[run->crash], 1);
}

/* Which: 0 the one that must leave everything exact, the others lose
 * something. */
static Crash
kind_of (const History *h, uint64_t at, unsigned which)
{
  static const Crash others[] = { POWER_NO_TMPFS, POWER, POWER_OTHER_MAPS,
                                  POWER_NO_TMPFS, KILLED_NO_TMPFS };

  if (h->way->maps_on_disk)
    return POWER_MAPS_ON_DISK;
  return which == 0 ? KILLED
    : others[(at + which * 2) % G_N_ELEMENTS (others)];
}

/* False: the history is over before call number at. */
static bool
crash_at (const History *h, uint64_t at, unsigned tries, int only,
          uint64_t seed)
{
  Run run = { .history = h, .at = at };
  SimMoment *moment = NULL;

  sim.runtime_folder = h->way->maps_on_disk ? disk_folder : tmpfs_folder;
  sim.pace_ms = h->way->pace_ms;
  sim_empty_folder (sim.runtime_folder);
  sim_new_disks ();
  sim_disk_slow_syncs (h->threads ? 400 : 0);
  if (atomic_load (&total->failed) || !run_child (HISTORY, &run, at))
    return false;
  sim_disk_slow_syncs (0);
  atomic_fetch_add (&total->histories, 1);
  if (tries > 1)
    moment = sim_moment_keep ();
  for (unsigned i = 0; i < tries; i++) {
    run.crash = only >= 0 ? (Crash) only
      : kind_of (h, at, tries > 1 ? i : at % 3);
    run.seed = seed + at * 7919 + i;
    run.recoveries = (at + i * 13) % 211 == 0 ? 1000 : (at + i) % 3 == 1;
    run.life = (at + i) % 4 == 0;
    if (i > 0)
      sim_moment_put_back (moment);
    try_crash (&run);
  }
  if (moment != NULL)
    sim_moment_free (moment);
  return true;
}

/* --- campaigns */

typedef struct {
  unsigned step, histories, tries;
  int only;                     /* kind of crash; -1: all */
  int script;                   /* -1: all */
  uint64_t seed;
  unsigned jobs;                /* processes */
} Campaign;

static bool
fits (const Campaign *c, const struct way *way)
{
  return c->only < 0 || way->maps_on_disk == (c->only == POWER_MAPS_ON_DISK);
}

/* Every step-th call of each script, in each way, from number first on. */
static void
some_calls (const Campaign *c, uint64_t first, uint64_t step)
{
  for (unsigned i = 0; i < G_N_ELEMENTS (scripts); i++)
    for (unsigned w = 0; w < G_N_ELEMENTS (ways); w++) {
      History h = { .script = i, .way = &ways[w] };
      /* Of the first way each run makes the same calls. */
      unsigned tries = w == 0 ? c->tries : 1;

      for (uint64_t at = first;
           (c->script < 0 || c->script == (int) i) && fits (c, &ways[w]) &&
           crash_at (&h, at, tries, c->only, c->seed);
           at += step)
        ;
    }
}

/* In turns, so that what is wrong at the end of the last is seen soon too. */
static void
every_call (const Campaign *c, unsigned job)
{
  uint64_t turns = c->step < TURN_CALLS ? TURN_CALLS / c->step : 1;

  for (uint64_t turn = 0; turn < turns; turn++)
    some_calls (c, c->seed % c->step +
                ((c->seed + turn) % turns * c->jobs + job) * c->step,
                turns * c->jobs * c->step);
}

static void
random_histories (const Campaign *c, unsigned job)
{
  GRand *rand = g_rand_new_with_seed ((guint32) c->seed + job);

  for (unsigned i = job; i < c->histories; ) {
    History h = { .seed = 1 + g_rand_int_range (rand, 0, G_MAXINT32),
                  .threads = g_rand_int_range (rand, 0, 3) > 0 };
    uint64_t at = g_rand_int_range (rand, 0, 1500);

    h.way = &ways[h.seed % G_N_ELEMENTS (ways)];
    if (atomic_load (&total->failed))
      break;
    if (fits (c, h.way) && crash_at (&h, at, c->tries, c->only, h.seed))
      i += c->jobs;
  }
  g_rand_free (rand);
}

static void
run_job (const Campaign *c, unsigned job)
{
  /* What is freed at one call is needed again at the next. */
  mallopt (M_MMAP_THRESHOLD, 1 << 30);
  mallopt (M_TRIM_THRESHOLD, 1 << 30);
  sim_set_up ();
  /* Trusted, being in a tmpfs; and not. */
  tmpfs_folder = g_build_filename (sim.dir, "runtime", NULL);
  disk_folder = g_mkdtemp (g_build_filename (g_get_tmp_dir (),
                                             "nbdfleece-sim.XXXXXX", NULL));
  g_assert_nonnull (disk_folder);
  every_call (c, job);
  random_histories (c, job);
  sim_tear_down ();
  fixture_remove_tree (disk_folder);
}

static void
run_jobs (const Campaign *c)
{
  g_autofree pid_t *pid = g_new (pid_t, c->jobs);
  bool ok = true;

  fflush (NULL);
  for (unsigned i = 0; i < c->jobs; i++) {
    pid[i] = fork ();
    g_assert_cmpint (pid[i], >=, 0);
    if (pid[i] == 0) {
      run_job (c, i);
      _exit (0);
    }
  }
  for (unsigned i = 0; i < c->jobs; i++) {
    int status;

    while (waitpid (pid[i], &status, 0) < 0)
      g_assert_cmpint (errno, ==, EINTR);
    ok &= status == 0;
  }
  if (!ok)
    exit (1);
}

int
main (int argc, char **argv)
{
  /* Under TSan a fork takes ten times as long, and what is lost in a crash is
   * the same: only races are looked for, most of them in random histories. */
  bool tsan = g_strcmp0 (g_getenv ("SANITIZERS"), "thread") == 0;
  const char *seed = g_getenv ("CRASH_SEED"), *jobs = g_getenv ("CRASH_JOBS");
  const char *script = g_getenv ("CRASH_SCRIPT");
  Campaign c = { .step = argc > 2 ? MAX (atoi (argv[1]), 1)
                   : tsan ? 4001 : 797,
                 .histories = argc > 2 ? atoi (argv[2]) : 8,
                 .tries = tsan ? 1 : 3, .only = argc > 3 ? atoi (argv[3]) : -1,
                 .script = script != NULL ? atoi (script) : -1,
                 .jobs = jobs != NULL ? MAX (atoi (jobs), 1) : 1 };
  unsigned crashes = 0;

  c.seed = seed != NULL ? g_ascii_strtoull (seed, NULL, 10) : g_random_int ();
  total = mmap (NULL, sizeof *total, PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  g_assert (total != MAP_FAILED);
  printf ("# CRASH_SEED=%" G_GUINT64_FORMAT "\n", c.seed);
  run_jobs (&c);
  for (unsigned i = 0; i < NR_CRASHES; i++)
    crashes += total->n[i];
  printf ("1..1\nok 1 simulated disk\n");
  printf ("# simulated disk: histories ended at %u calls, %u crashes, 0 lost "
          "blocks, %u recoveries ended\n", total->histories, crashes,
          total->recoveries);
  for (unsigned i = 0; i < NR_CRASHES; i++)
    printf ("#   %s: %u times\n", crash_name[i], total->n[i]);
  return 0;
}
