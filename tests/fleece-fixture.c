/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <glib/gstdio.h>

#include "fleece/fleece-internal.h"
#include "tests/fleece-fixture.h"

Fixture *
fixture_new (unsigned nr_disks, uint64_t size)
{
  Fixture *fx = g_new0 (Fixture, 1);
  g_autoptr (GError) error = NULL;

  g_assert_cmpint (nr_disks, <=, FIXTURE_MAX_DISKS);
  fx->dir = g_dir_make_tmp ("fleece-XXXXXX", &error);
  g_assert_no_error (error);
  fx->state = g_strdup_printf ("%s/state", fx->dir);
  fx->scratch = g_strdup_printf ("%s/scratch", fx->dir);
  fx->runtime = g_strdup ("/dev/shm/fleece-XXXXXX");
  g_assert_nonnull (g_mkdtemp (fx->runtime));
  fx->nr_disks = nr_disks;
  fx->granularity = 65536;
  fx->notes = g_string_new (NULL);
  pthread_mutex_init (&fx->notes_lock, NULL);
  for (unsigned i = 0; i < nr_disks; i++) {
    int fd;

    fx->image[i] = g_strdup_printf ("%s/d%u.img", fx->dir, i);
    fd = open (fx->image[i], O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    g_assert_cmpint (fd, >=, 0);
    g_assert_cmpint (ftruncate (fd, size), ==, 0);
    close (fd);
  }
  return fx;
}

Fixture *
fixture_new_hooked (unsigned nr_disks, uint64_t size, HookFn fn, void *opaque)
{
  Fixture *fx = fixture_new (nr_disks, size);

  fx->storage = fx->hooked = storage_hook_new (fn, opaque);
  return fx;
}

Fixture *
fixture_new_gated (unsigned nr_disks, uint64_t size)
{
  HookGate *gate = hook_gate_new ();
  Fixture *fx = fixture_new_hooked (nr_disks, size, hook_gate_fn, gate);

  fx->gate = gate;
  return fx;
}

static void
note (void *opaque, FleeceNoteKind kind, const char *disk,
      const char *snapshot, const char *text, int error_number)
{
  static const char *const kinds[] = {
    "info", "warning", "broken", "lost", "tracking",
  };
  Fixture *fx = opaque;

  pthread_mutex_lock (&fx->notes_lock);
  g_string_append_printf (fx->notes, "%s %s %s: %s\n", kinds[kind],
                          disk != NULL ? disk : "-",
                          snapshot != NULL ? snapshot : "-", text);
  pthread_mutex_unlock (&fx->notes_lock);
}

void
fixture_start (Fixture *fx)
{
  g_autoptr (GError) error = NULL;
  FleeceOptions options = {
    .storage = fx->storage, .scratch_dir = fx->scratch,
    .runtime_dir = fx->runtime,
    .drain_timeout_ms = fx->drain_timeout_ms,
    .epochs.sync_interval_ms = fx->sync_interval_ms,
    .notify = note, .notify_opaque = fx,
  };

  fx->f = fleece_new (&options, &error);
  g_assert_no_error (error);
  for (unsigned i = 0; i < fx->nr_disks; i++) {
    char name[] = { 'd', '0' + i, '\0' };

    fx->disk[i] = fleece_add_disk (fx->f, name, fx->image[i],
                                   fx->granularity, &error);
    g_assert_no_error (error);
  }
  fx->cat = catalog_new (fx->state, &error);
  g_assert_no_error (error);
  catalog_open (fx->cat, &error);
  g_assert_no_error (error);
  fleece_start (fx->f, fx->cat, &error);
  g_assert_no_error (error);
}

void
fixture_start_full (Fixture *fx, int value)
{
  fixture_start (fx);
  for (unsigned i = 0; i < fx->nr_disks; i++)
    fixture_write (fx->disk[i], 0, disk_size (fx->disk[i]), value);
}

void
fixture_stop (Fixture *fx)
{
  g_autoptr (GError) error = NULL;

  fleece_stop (fx->f, &error);
  g_assert_no_error (error);
  fixture_crash (fx);
}

void
fixture_crash (Fixture *fx)
{
  fleece_free (fx->f);
  catalog_free (fx->cat);
  fx->f = NULL;
  fx->cat = NULL;
}

void
fixture_remove_tree (const char *path)
{
  g_autoptr (GDir) dir = g_dir_open (path, 0, NULL);
  const char *name;

  while (dir != NULL && (name = g_dir_read_name (dir)) != NULL) {
    g_autofree char *child = g_build_filename (path, name, NULL);

    if (g_file_test (child, G_FILE_TEST_IS_DIR))
      fixture_remove_tree (child);
    else
      g_unlink (child);
  }
  g_rmdir (path);
}

void
fixture_lose_runtime (Fixture *fx)
{
  fixture_remove_tree (fx->runtime);
}

void
fixture_lose_maps (Fixture *fx)
{
  g_autofree char *maps = g_build_filename (fx->state, "maps", NULL);

  fixture_lose_runtime (fx);
  fixture_remove_tree (maps);
}

void
fixture_free (Fixture *fx)
{
  if (fx->f != NULL)
    fixture_stop (fx);
  fixture_remove_tree (fx->dir);
  fixture_remove_tree (fx->runtime);
  for (unsigned i = 0; i < fx->nr_disks; i++)
    g_free (fx->image[i]);
  g_free (fx->dir);
  g_free (fx->state);
  g_free (fx->scratch);
  g_free (fx->runtime);
  g_string_free (fx->notes, TRUE);
  pthread_mutex_destroy (&fx->notes_lock);
  free (fx->hooked);
  if (fx->gate != NULL)
    hook_gate_free (fx->gate);
  g_free (fx);
}

/* Of a child. */
static struct {
  const char *suffix;
  atomic_uint calls;
  unsigned die_at;              /* 0: never */
} death;

static int
die_hook (void *opaque, const struct hook_info *info)
{
  if (death.die_at > 0 &&
      (death.suffix == NULL || g_str_has_suffix (info->path, death.suffix)) &&
      atomic_fetch_add (&death.calls, 1) + 1 == death.die_at)
    _exit (42);
  return 0;
}

Fixture *
fixture_new_mortal (unsigned nr_disks, uint64_t size)
{
  return fixture_new_hooked (nr_disks, size, die_hook, NULL);
}

bool
fixture_run_dying (Fixture *fx, void (*fn) (void), const char *suffix,
                   unsigned at)
{
  int status;
  pid_t pid = fork ();

  g_assert_cmpint (pid, >=, 0);
  if (pid == 0) {
    fixture_start (fx);
    death.suffix = suffix;
    death.die_at = at;
    fn ();
    _exit (0);
  }
  g_assert_cmpint (waitpid (pid, &status, 0), ==, pid);
  g_assert_true (WIFEXITED (status));
  if (WEXITSTATUS (status) != 0)
    g_assert_cmpint (WEXITSTATUS (status), ==, 42);
  return WEXITSTATUS (status) == 42;
}

Snapshot *
fixture_cut (Fixture *fx, unsigned i, const char *name,
             uint64_t *out_boundary)
{
  g_autoptr (GError) error = NULL;
  FleeceCutDisk cd = { .disk = fx->disk[i], .snapshot = name };

  fleece_cut (fx->f, &cd, 1, NULL, NULL, &error);
  g_assert_no_error (error);
  if (out_boundary != NULL)
    *out_boundary = cd.boundary;
  return cd.out_snapshot;
}

unsigned
fixture_nr_scratch_files (Fixture *fx)
{
  g_autoptr (GDir) dir = g_dir_open (fx->scratch, 0, NULL);
  unsigned nr = 0;

  while (dir != NULL && g_dir_read_name (dir) != NULL)
    nr++;
  return nr;
}

char *
fixture_read_snapshot (Snapshot *snap)
{
  char *buf = g_malloc (snapshot_size (snap));

  g_assert_cmpint (snapshot_pread (snap, buf, snapshot_size (snap), 0), ==, 0);
  return buf;
}

void
fixture_write (Disk *disk, uint64_t offset, uint64_t length, int value)
{
  g_autofree char *buf = g_malloc (length);

  memset (buf, value, length);
  g_assert_cmpint (disk_pwrite (disk, buf, length, offset, false), ==, 0);
}

/* What a sanitizer hands out again without asking the kernel for it. */
#define PIECE 65536

static void
check_bytes (const char *buf, uint64_t length, int value)
{
  /* Byte by byte took most of the time of some tests under TSan. */
  if (buf[0] == (char) value && memcmp (buf, buf + 1, length - 1) == 0)
    return;
  for (uint64_t i = 0; i < length; i++)
    if (buf[i] != (char) value)
      g_error ("byte %" G_GUINT64_FORMAT " of %" G_GUINT64_FORMAT
               " is %d, not %d", i, length, buf[i], value);
}

void
fixture_check_disk (Disk *disk, uint64_t offset, uint64_t length, int value)
{
  g_autofree char *buf = g_malloc (PIECE);

  for (uint64_t n; length > 0; offset += n, length -= n) {
    n = MIN (length, PIECE);
    g_assert_cmpint (disk_pread (disk, buf, n, offset), ==, 0);
    check_bytes (buf, n, value);
  }
}

void
fixture_check_snapshot (Snapshot *snap, uint64_t offset, uint64_t length,
                        int value)
{
  g_autofree char *buf = g_malloc (PIECE);

  for (uint64_t n; length > 0; offset += n, length -= n) {
    n = MIN (length, PIECE);
    g_assert_cmpint (snapshot_pread (snap, buf, n, offset), ==, 0);
    check_bytes (buf, n, value);
  }
}

bool
fixture_is_dirty (Fixture *fx, unsigned i, uint64_t from, uint64_t to,
                  uint64_t offset)
{
  g_autoptr (GError) error = NULL;
  g_autoptr (ChangeSet) set = NULL;
  bool damaged = true;

  set = epoch_log_changed (disk_epoch_log (fx->disk[i]), from, to, &damaged,
                           &error);
  g_assert_no_error (error);
  g_assert_false (damaged);
  return change_set_get (set, offset);
}

void
fixture_end (Snapshot *snap)
{
  g_autoptr (GError) error = NULL;

  snapshot_end (snap, &error);
  g_assert_no_error (error);
  snapshot_unref (snap);
}

struct FixtureCall {
  pthread_t thread;
  int (*fn) (void *);
  void *opaque;
  int result;
  atomic_bool done;
  /* Of fixture_call_write. */
  Disk *disk;
  uint64_t offset, length;
  int value;
  /* Of fixture_call_cut. */
  Fixture *fx;
  FleeceCutDisk cd;
  GError *error;
};

static void *
call_thread (void *opaque)
{
  FixtureCall *call = opaque;

  call->result = call->fn (call->opaque);
  atomic_store (&call->done, true);
  return NULL;
}

static FixtureCall *
start_call (FixtureCall *call, int (*fn) (void *), void *opaque)
{
  call->fn = fn;
  call->opaque = opaque;
  g_assert_cmpint (pthread_create (&call->thread, NULL, call_thread, call), ==,
                   0);
  return call;
}

FixtureCall *
fixture_call (int (*fn) (void *), void *opaque)
{
  return start_call (g_new0 (FixtureCall, 1), fn, opaque);
}

static int
run_write (void *opaque)
{
  FixtureCall *call = opaque;
  g_autofree char *buf = g_malloc (call->length);

  memset (buf, call->value, call->length);
  return disk_pwrite (call->disk, buf, call->length, call->offset, false);
}

FixtureCall *
fixture_call_write (Disk *disk, uint64_t offset, uint64_t length, int value)
{
  FixtureCall *call = g_new0 (FixtureCall, 1);

  call->disk = disk;
  call->offset = offset;
  call->length = length;
  call->value = value;
  return start_call (call, run_write, call);
}

static int
run_cut (void *opaque)
{
  FixtureCall *call = opaque;

  return fleece_cut (call->fx->f, &call->cd, 1, NULL, NULL, &call->error)
    ? 0 : -1;
}

FixtureCall *
fixture_call_cut (Fixture *fx, unsigned i, const char *name)
{
  FixtureCall *call = g_new0 (FixtureCall, 1);

  call->fx = fx;
  call->cd = (FleeceCutDisk) { .disk = fx->disk[i], .snapshot = name };
  return start_call (call, run_cut, call);
}

bool
fixture_call_done (FixtureCall *call)
{
  return atomic_load (&call->done);
}

static void
join (FixtureCall *call)
{
  g_assert_cmpint (pthread_join (call->thread, NULL), ==, 0);
}

int
fixture_call_join (FixtureCall *call)
{
  int result;

  join (call);
  result = call->result;
  g_free (call);
  return result;
}

Snapshot *
fixture_call_join_cut (FixtureCall *call, uint64_t *out_boundary,
                       GError **error)
{
  Snapshot *snap;

  join (call);
  snap = call->cd.out_snapshot;
  if (out_boundary != NULL)
    *out_boundary = call->cd.boundary;
  if (call->error != NULL)
    g_propagate_error (error, call->error);
  g_free (call);
  return snap;
}

bool
fixture_wait_waiters (Disk *disk, unsigned nr, FixtureCall *call)
{
  while (atomic_load (&disk->inflight->waiters) < nr) {
    if (fixture_call_done (call))
      return false;
    sched_yield ();
  }
  return true;
}
