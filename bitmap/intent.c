/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "config.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#include "bitmap/bitmap-error.h"
#include "bitmap/fail-point.h"
#include "bitmap/granule.h"
#include "bitmap/intent.h"
#include "bitmap/sector.h"

/* Regions set ahead for a stream of writes. */
#define AHEAD 4

/* Streams that are told apart. */
#define STREAMS 8

/* The flags of 4096 neighbouring regions, a bit each.  It never moves: a disk
 * that grows gets more of them, while writes look at those that are there. */
#define CHUNK_WORDS 64
typedef struct {
  _Atomic uint64_t durable[CHUNK_WORDS];
  /* A write has relied on the flag since the last look. */
  _Atomic uint64_t used[CHUNK_WORDS];
  /* A stream that gets there wants more regions set ahead.  Set under lock. */
  _Atomic uint64_t milestone[CHUNK_WORDS];
} Chunk;

struct Intents {
  /* Set in create, never changed. */
  EpochLog *log;
  EpochOptions options;         /* all filled in */
  StorageFile *file;
  char *path;
  unsigned shift;               /* log2 (region_bytes) */

  /* A longer one replaces it; old ones stay, in retired. */
  _Atomic (Chunk **) chunks;
  GPtrArray *retired;           /* of Chunk *[] */
  _Atomic uint64_t nr_set, nr_waits;

  /* The committer's; nr_regions also under lock, changed in both. */
  uint64_t nr_regions, nr_sectors, nr_chunks;
  uint64_t *image;              /* what I has */
  uint8_t *age;                 /* ticks a region has been idle */
  bool clearing;                /* false: a durable map has failed */

  pthread_t thread;
  bool running;

  pthread_mutex_t lock;
  pthread_cond_t work, done;
  /* Under lock. */
  GArray *queue;                /* of uint64_t, regions */
  uint64_t *queued;             /* bits */
  uint64_t grow_to;             /* regions wanted; 0: nobody waits for more */
  int grow_result;
  uint64_t stream[STREAMS];     /* where each is expected to go on */
  unsigned next_stream;
  bool stop;
  _Atomic int failed;           /* -errno; also read without the lock */
};

static inline bool
test_bit (const uint64_t *words, uint64_t bit)
{
  return words[bit / 64] >> (bit % 64) & 1;
}

/* Where flags 64 * word and on are. */
static inline Chunk *
chunk_of (const Intents *in, uint64_t word)
{
  return atomic_load_explicit (&in->chunks,
                               memory_order_acquire)[word / CHUNK_WORDS];
}

static inline _Atomic uint64_t *
durable_word (const Intents *in, uint64_t word)
{
  return &chunk_of (in, word)->durable[word % CHUNK_WORDS];
}

static inline _Atomic uint64_t *
used_word (const Intents *in, uint64_t word)
{
  return &chunk_of (in, word)->used[word % CHUNK_WORDS];
}

static inline _Atomic uint64_t *
milestone_word (const Intents *in, uint64_t word)
{
  return &chunk_of (in, word)->milestone[word % CHUNK_WORDS];
}

static inline bool
load_bit (const _Atomic uint64_t *word, uint64_t bit, memory_order order)
{
  return atomic_load_explicit (word, order) >> (bit % 64) & 1;
}

static void
full_fence (void)
{
#ifdef __SANITIZE_THREAD__
  static atomic_int any;

  atomic_fetch_add (&any, 1);
#else
  atomic_thread_fence (memory_order_seq_cst);
#endif
}

char *
intents_path (const char *dir, const char *disk)
{
  return g_strdup_printf ("%s/%s.i", dir, disk);
}

static void
note (Intents *in, int err, const char *text)
{
  g_autofree char *full = g_strdup_printf ("%s: %s", text, g_strerror (-err));

  if (in->options.notify != NULL)
    in->options.notify (in->options.opaque, in->log->name, full, -err);
}

/* --- the write path */

#define NOWHERE UINT64_MAX

/* May a write of the range go on?  *out_milestone: a region of it that a stream
 * has reached, if any. */
static bool
is_covered (Intents *in, const DurableMap *dm, uint64_t offset,
            uint64_t length, uint64_t *out_milestone)
{
  uint64_t end = offset + length;
  uint64_t region = offset >> in->shift;

  if (durable_map_covers (dm, offset, length))
    return true;
  while (offset < end) {
    uint64_t stop = MIN (end, (region + 1) << in->shift);

    if (load_bit (durable_word (in, region / 64), region,
                  memory_order_seq_cst)) {
      _Atomic uint64_t *used = used_word (in, region / 64);

      if (!load_bit (used, region, memory_order_relaxed)) {
        atomic_fetch_or_explicit (used, UINT64_C (1) << (region % 64),
                                  memory_order_relaxed);
        if (load_bit (milestone_word (in, region / 64), region,
                      memory_order_relaxed))
          *out_milestone = region;
      }
    }
    else if (!durable_map_covers (dm, offset, stop - offset))
      return false;
    offset = stop;
    region++;
  }
  return true;
}

static void
enqueue_locked (Intents *in, uint64_t region)
{
  if (region >= in->nr_regions || test_bit (in->queued, region) ||
      load_bit (durable_word (in, region / 64), region, memory_order_relaxed))
    return;
  in->queued[region / 64] |= UINT64_C (1) << (region % 64);
  g_array_append_val (in->queue, region);
}

/* Does region go on where a stream is expected?  Then it is expected after what
 * is set ahead for it. */
static bool
is_stream_locked (Intents *in, uint64_t first, uint64_t last)
{
  for (unsigned i = 0; i < STREAMS; i++)
    if (first <= in->stream[i] && in->stream[i] <= last) {
      in->stream[i] = last + AHEAD + 1;
      return true;
    }
  in->stream[in->next_stream++ % STREAMS] = last + 1;
  return false;
}

/* A stream is writing to region: AHEAD more are wanted, and when it has used
 * half of them, more again, before it has to wait. */
static void
set_ahead_locked (Intents *in, uint64_t region)
{
  uint64_t next = region + AHEAD / 2;

  if (intents_bytes (in) > in->options.cap_bytes)
    return;
  for (unsigned i = 1; i <= AHEAD; i++)
    enqueue_locked (in, region + i);
  if (next < in->nr_regions)
    atomic_fetch_or_explicit (milestone_word (in, next / 64),
                              UINT64_C (1) << (next % 64),
                              memory_order_relaxed);
}

static void
pass_milestone (Intents *in, uint64_t region)
{
  uint64_t bit = UINT64_C (1) << (region % 64);

  if ((atomic_fetch_and_explicit (milestone_word (in, region / 64), ~bit,
                                  memory_order_relaxed) & bit) == 0)
    return;                     /* another write has passed it */
  pthread_mutex_lock (&in->lock);
  for (unsigned i = 0; i < STREAMS; i++)
    /* If not, the stream has been forgotten, or was here long ago. */
    if (region < in->stream[i] && in->stream[i] <= region + AHEAD + 1) {
      in->stream[i] = region + AHEAD + 1;
      set_ahead_locked (in, region);
      break;
    }
  if (in->queue->len > 0)
    pthread_cond_signal (&in->work);
  pthread_mutex_unlock (&in->lock);
}

static void
request_locked (Intents *in, const DurableMap *dm, uint64_t offset,
                uint64_t length, bool first_time)
{
  uint64_t first = offset >> in->shift;
  uint64_t last = (offset + length - 1) >> in->shift;

  for (uint64_t r = first; r <= last; r++)
    enqueue_locked (in, r);
  if (first_time && is_stream_locked (in, first, last))
    set_ahead_locked (in, last);
}

int
intents_wait (Intents *in, const DurableMap *dm, uint64_t offset,
              uint64_t length)
{
  uint64_t milestone = NOWHERE;
  bool first_time = true;
  int err = 0;

  if (is_covered (in, dm, offset, length, &milestone)) {
    if (milestone != NOWHERE)
      pass_milestone (in, milestone);
    return 0;
  }
  atomic_fetch_add_explicit (&in->nr_waits, 1, memory_order_relaxed);
  pthread_mutex_lock (&in->lock);
  while (!is_covered (in, dm, offset, length, &milestone)) {
    if (in->failed < 0) {
      err = -EIO;
      break;
    }
    request_locked (in, dm, offset, length, first_time);
    first_time = false;
    pthread_cond_signal (&in->work);
    pthread_cond_wait (&in->done, &in->lock);
  }
  pthread_mutex_unlock (&in->lock);
  if (milestone != NOWHERE)
    pass_milestone (in, milestone);
  return err;
}

int
intents_grow (Intents *in, uint64_t disk_size)
{
  uint64_t nr = granule_count (disk_size, in->options.region_bytes);
  int err = 0;

  pthread_mutex_lock (&in->lock);
  if (nr > in->nr_regions) {
    in->grow_to = nr;
    pthread_cond_signal (&in->work);
    while (in->grow_to != 0)
      pthread_cond_wait (&in->done, &in->lock);
    err = in->grow_result;
  }
  pthread_mutex_unlock (&in->lock);
  return err;
}

uint64_t
intents_bytes (const Intents *in)
{
  return atomic_load_explicit (&in->nr_set, memory_order_relaxed)
    << in->shift;
}

uint64_t
intents_waits (const Intents *in)
{
  return atomic_load_explicit (&in->nr_waits, memory_order_relaxed);
}

/* --- the committer */

/* Write the sectors whose bit is set in which; sync: and wait for the disk. */
static int
write_sectors (Intents *in, const uint64_t *which, bool sync)
{
  g_autoptr (GArray) out = g_array_new (FALSE, FALSE, sizeof (struct sector));
  int err;

  for (uint64_t i = 0; i < in->nr_sectors; i++)
    if (test_bit (which, i)) {
      struct sector sector;

      sector_fill (&sector, SECTOR_INTENTS, i, in->options.region_bytes,
                   in->image + i * SECTOR_WORDS);
      g_array_append_val (out, sector);
    }
  err = sector_file_write (in->file, (struct sector *) out->data, out->len);
  if (err == 0 && sync) {
    FAIL_POINT ("I-set-sync");
    err = in->file->ops->sync (in->file);
  }
  return err;
}

static uint64_t *
sector_set_new (const Intents *in)
{
  return g_new0 (uint64_t, in->nr_sectors / 64 + 1);
}

static void
sector_set_add (uint64_t *set, uint64_t region)
{
  uint64_t s = region / SECTOR_BITS;

  set[s / 64] |= UINT64_C (1) << (s % 64);
}

/* I is not to be relied on any more: what its sectors hold is unknown, but for
 * the regions whose flags are published. */
static void
fail (Intents *in, int err)
{
  pthread_mutex_lock (&in->lock);
  in->failed = err;
  pthread_cond_broadcast (&in->done);
  pthread_mutex_unlock (&in->lock);
  note (in, err, "cannot record write intents; writes to regions that have "
        "none fail from now on");
}

/* The regions of queue have their intents: those who wait for them go on. */
static void
publish (Intents *in, GArray *queue)
{
  uint64_t fresh = 0;

  for (guint i = 0; i < queue->len; i++) {
    uint64_t r = g_array_index (queue, uint64_t, i), bit;

    in->age[r] = 0;
    bit = UINT64_C (1) << (r % 64);
    /* Counted already if it was asked for while its flag was withdrawn, and the
     * flag was put back since the durable map could not be synced. */
    fresh += !(atomic_fetch_or (durable_word (in, r / 64), bit) & bit);
  }
  atomic_fetch_add (&in->nr_set, fresh);
  FAIL_POINT ("I-set-wake");
  pthread_mutex_lock (&in->lock);
  for (guint i = 0; i < queue->len; i++) {
    uint64_t r = g_array_index (queue, uint64_t, i);

    in->queued[r / 64] &= ~(UINT64_C (1) << (r % 64));
  }
  pthread_cond_broadcast (&in->done);
  pthread_mutex_unlock (&in->lock);
}

static void
set_round (Intents *in, GArray *queue)
{
  g_autofree uint64_t *which = sector_set_new (in);
  int err;

  for (guint i = 0; i < queue->len; i++) {
    uint64_t r = g_array_index (queue, uint64_t, i);

    in->image[r / 64] |= UINT64_C (1) << (r % 64);
    sector_set_add (which, r);
  }
#ifdef BROKEN_FLAG_ORDER        /* see test-crash-controls.sh */
  publish (in, queue);
  g_usleep (2000);              /* the guest goes on */
#endif
  FAIL_POINT ("I-set-write");
  err = write_sectors (in, which, true);
  if (err < 0) {
    fail (in, err);
    return;
  }
  FAIL_POINT ("I-set-publish");
#ifndef BROKEN_FLAG_ORDER
  publish (in, queue);
#endif
}

/* Withdraw the flags of regions that have been idle for ticks looks. */
static GArray *
withdraw_idle (Intents *in, unsigned ticks)
{
  GArray *idle = g_array_new (FALSE, FALSE, sizeof (uint64_t));

  for (uint64_t w = 0; w <= (in->nr_regions - 1) / 64; w++) {
    uint64_t set = atomic_load_explicit (durable_word (in, w),
                                         memory_order_relaxed);
    uint64_t used = set == 0 ? 0
      : atomic_exchange_explicit (used_word (in, w), 0, memory_order_relaxed);
    uint64_t gone = 0;

    for (uint64_t left = set; left != 0; left &= left - 1) {
      unsigned b = (unsigned) __builtin_ctzll (left);
      uint64_t r = w * 64 + b;

      if (used >> b & 1)
        in->age[r] = 0;
      else if (in->age[r] < UINT8_MAX)
        in->age[r]++;
      if (in->age[r] >= ticks) {
        gone |= UINT64_C (1) << b;
        g_array_append_val (idle, r);
      }
    }
    if (gone != 0)
      atomic_fetch_and (durable_word (in, w), ~gone);
  }
  return idle;
}

static unsigned
ticks_of (const Intents *in, unsigned ms)
{
  unsigned every = in->options.sync_interval_ms;

  return CLAMP ((ms + every - 1) / every, 1, UINT8_MAX);
}

/* Flags that were withdrawn are good again: I still has the regions.  Under the
 * lock: a write that finds its flag gone asks for it and waits, in one go, and
 * must not find it back in between; it would ask for nothing and wait for
 * ever. */
static void
put_back (Intents *in, const GArray *regions)
{
  pthread_mutex_lock (&in->lock);
  for (guint i = 0; i < regions->len; i++) {
    uint64_t r = g_array_index (regions, uint64_t, i);

    atomic_fetch_or (durable_word (in, r / 64), UINT64_C (1) << (r % 64));
  }
  pthread_cond_broadcast (&in->done);
  pthread_mutex_unlock (&in->lock);
}

/* The fine sync, and a clear round with it; once I has failed, only the first:
 * a region that lost its intent would not get another one. */
static void
tick (Intents *in)
{
  bool over = intents_bytes (in) > in->options.cap_bytes;
  g_autofree uint64_t *which = sector_set_new (in);
  g_autoptr (GArray) idle = NULL;
  int err;

  if (!in->clearing)
    return;
  FAIL_POINT ("I-clear-withdraw");
  idle = in->failed < 0 ? g_array_new (FALSE, FALSE, sizeof (uint64_t))
    : withdraw_idle (in, ticks_of (in, over ? in->options.idle_over_cap_ms
                                   : in->options.idle_ms));
  full_fence ();
  FAIL_POINT ("I-clear-copy");
  err = epoch_log_sync_maps (in->log);
  if (err < 0) {
    in->clearing = false;
    note (in, err, "cannot store the map of changed blocks; until the next "
          "start a power cut will report more than what changed");
    put_back (in, idle);
    return;
  }
  if (idle->len == 0)
    return;
  for (guint i = 0; i < idle->len; i++) {
    uint64_t r = g_array_index (idle, uint64_t, i);

    in->image[r / 64] &= ~(UINT64_C (1) << (r % 64));
    sector_set_add (which, r);
  }
  atomic_fetch_sub (&in->nr_set, idle->len);
  FAIL_POINT ("I-clear-write");
  err = write_sectors (in, which, false);
  if (err < 0)
    fail (in, err);
}

/* --- growing */

/* A larger copy of nr_old bytes, zeroes behind it; NULL: no memory.  The old
 * one stays. */
static void *
grown_copy (const void *old, size_t nr_old, size_t nr)
{
  void *new = g_try_malloc0 (nr);

  if (new != NULL && nr_old > 0)
    memcpy (new, old, nr_old);
  return new;
}

/* The chunks for nr_regions, those that are there and new ones; NULL: no
 * memory. */
static Chunk **
make_chunks (Intents *in, uint64_t nr_chunks)
{
  Chunk **chunks = grown_copy (atomic_load (&in->chunks),
                               in->nr_chunks * sizeof (Chunk *),
                               nr_chunks * sizeof (Chunk *));
  uint64_t i;

  if (chunks == NULL)
    return NULL;
  for (i = in->nr_chunks; i < nr_chunks; i++) {
    chunks[i] = g_try_new0 (Chunk, 1);
    if (chunks[i] == NULL)
      break;
  }
  if (i == nr_chunks)
    return chunks;
  while (i > in->nr_chunks)
    g_free (chunks[--i]);
  g_free (chunks);
  return NULL;
}

/* Memory for nr_regions, in the place of what there is; also at the start.  The
 * committer's call. */
static int
set_regions (Intents *in, uint64_t nr_regions)
{
  uint64_t nr_sectors = sector_count (nr_regions);
  uint64_t nr_chunks = nr_regions / (CHUNK_WORDS * 64) + 1;
  size_t had = in->nr_sectors * SECTOR_WORDS * 8;
  size_t bytes = nr_sectors * SECTOR_WORDS * 8;
  g_autofree uint64_t *image = grown_copy (in->image, had, bytes);
  g_autofree uint8_t *age = grown_copy (in->age, in->nr_regions, nr_regions);
  g_autofree uint64_t *queued = g_try_malloc0 (bytes);
  Chunk **chunks;

  if (image == NULL || age == NULL || queued == NULL)
    return -ENOMEM;
  chunks = make_chunks (in, nr_chunks);
  if (chunks == NULL)
    return -ENOMEM;
  pthread_mutex_lock (&in->lock);
  g_ptr_array_add (in->retired, atomic_load (&in->chunks));
  atomic_store (&in->chunks, chunks);
  if (had > 0)
    memcpy (queued, in->queued, had);
  g_free (in->queued);
  in->queued = g_steal_pointer (&queued);
  in->nr_regions = nr_regions;
  pthread_mutex_unlock (&in->lock);
  g_free (in->image);
  in->image = g_steal_pointer (&image);
  g_free (in->age);
  in->age = g_steal_pointer (&age);
  in->nr_sectors = nr_sectors;
  in->nr_chunks = nr_chunks;
  return 0;
}

/* The file first: what it does not have cannot be set. */
static void
grow (Intents *in, uint64_t nr_regions)
{
  int err = in->failed;

  if (err == 0)
    err = sector_file_extend (in->file, SECTOR_INTENTS,
                              in->options.region_bytes, in->nr_sectors,
                              sector_count (nr_regions));
  if (err == 0)
    err = set_regions (in, nr_regions);
  pthread_mutex_lock (&in->lock);
  in->grow_result = err;
  in->grow_to = 0;
  pthread_cond_broadcast (&in->done);
  pthread_mutex_unlock (&in->lock);
}

/* --- the thread */

static void
add_ms (struct timespec *ts, unsigned ms)
{
  ts->tv_sec += ms / 1000;
  ts->tv_nsec += (long) (ms % 1000) * 1000000;
  if (ts->tv_nsec >= 1000000000) {
    ts->tv_sec++;
    ts->tv_nsec -= 1000000000;
  }
}

static bool
is_past (const struct timespec *ts)
{
  struct timespec now;

  clock_gettime (CLOCK_MONOTONIC, &now);
  return now.tv_sec > ts->tv_sec ||
    (now.tv_sec == ts->tv_sec && now.tv_nsec >= ts->tv_nsec);
}

static void *
committer (void *opaque)
{
  Intents *in = opaque;
  struct timespec next;

  clock_gettime (CLOCK_MONOTONIC, &next);
  add_ms (&next, in->options.sync_interval_ms);
  pthread_mutex_lock (&in->lock);
  while (!in->stop) {
    g_autoptr (GArray) queue = NULL;
    uint64_t grow_to;

    if ((in->queue->len == 0 || in->failed < 0) && in->grow_to == 0)
      pthread_cond_timedwait (&in->work, &in->lock, &next);
    if (in->queue->len > 0 && in->failed == 0) {
      queue = in->queue;
      in->queue = g_array_new (FALSE, FALSE, sizeof (uint64_t));
    }
    grow_to = in->grow_to;
    pthread_mutex_unlock (&in->lock);
    if (queue != NULL)
      set_round (in, queue);
    if (grow_to > 0)
      grow (in, grow_to);
    if (is_past (&next)) {
      tick (in);
      clock_gettime (CLOCK_MONOTONIC, &next);
      add_ms (&next, in->options.sync_interval_ms);
    }
    pthread_mutex_lock (&in->lock);
  }
  pthread_mutex_unlock (&in->lock);
  return NULL;
}

/* --- set-up */

Intents *
intents_create (EpochLog *log, const char *dir, uint64_t disk_size,
                GError **error)
{
  Intents *in = g_new0 (Intents, 1);
  uint64_t nr_regions;
  pthread_condattr_t attr;
  int err;

  in->log = log;
  in->options = log->options;
  in->path = intents_path (dir, log->name);
  in->shift = granule_shift (in->options.region_bytes);
  in->retired = g_ptr_array_new_with_free_func (g_free);
  in->queue = g_array_new (FALSE, FALSE, sizeof (uint64_t));
  for (unsigned i = 0; i < STREAMS; i++)
    in->stream[i] = UINT64_MAX;
  in->clearing = true;
  pthread_mutex_init (&in->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&in->work, &attr);
  pthread_condattr_destroy (&attr);
  pthread_cond_init (&in->done, NULL);

  nr_regions = MAX (1, granule_count (disk_size, in->options.region_bytes));
  err = set_regions (in, nr_regions);
  if (err == 0)
    err = sector_file_create (in->options.storage, dir, in->path,
                              SECTOR_INTENTS, in->options.region_bytes,
                              in->nr_sectors, &in->file);
  if (err < 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_IO,
                 "cannot create '%s': %s", in->path, g_strerror (-err));
    intents_free (in);
    return NULL;
  }
  return in;
}

bool
intents_start (Intents *in, GError **error)
{
  sigset_t all, before;
  int err;

  sigfillset (&all);            /* they are the main thread's */
  pthread_sigmask (SIG_SETMASK, &all, &before);
  err = pthread_create (&in->thread, NULL, committer, in);
  pthread_sigmask (SIG_SETMASK, &before, NULL);
  if (err != 0) {
    g_set_error (error, BITMAP_ERROR, BITMAP_ERROR_NO_MEMORY,
                 "cannot start the thread of write intents: %s",
                 g_strerror (err));
    return false;
  }
  in->running = true;
  return true;
}

void
intents_stop (Intents *in)
{
  if (!in->running)
    return;
  pthread_mutex_lock (&in->lock);
  in->stop = true;
  pthread_cond_signal (&in->work);
  pthread_mutex_unlock (&in->lock);
  pthread_join (in->thread, NULL);
  in->running = false;
}

void
intents_free (Intents *in)
{
  Chunk **chunks;

  if (in == NULL)
    return;
  intents_stop (in);
  if (in->file != NULL)
    in->file->ops->close (in->file);
  pthread_cond_destroy (&in->done);
  pthread_cond_destroy (&in->work);
  pthread_mutex_destroy (&in->lock);
  g_array_free (in->queue, TRUE);
  g_free (in->age);
  g_free (in->queued);
  g_free (in->image);
  chunks = atomic_load (&in->chunks);
  for (uint64_t i = 0; i < in->nr_chunks; i++)
    g_free (chunks[i]);
  g_free (chunks);
  g_ptr_array_free (in->retired, TRUE);
  g_free (in->path);
  g_free (in);
}
