/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fail-point.c - what FAIL_POINT does in the plugin that crash-points.py runs.
 *
 * The test says what is to happen in a file of a page that both have mapped, at
 * any time: it outlives the server, and nothing has to be started anew to aim
 * at another point.  An error meets the next call to the storage, of SQLite to
 * its file or for memory of the tmpfs that the thread makes after the point,
 * but not after one that is called ...-done: the end of what the thread does
 * for one request.
 */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "bitmap/epoch.h"
#include "bitmap/fail-point.h"

enum { IDLE, ARMED, REACHED, DONE };
enum { KILL, FAIL, STALL };

/* crash-points.py has the same layout. */
struct aim {
  _Atomic uint32_t state;
  uint32_t action;
  int32_t value;                /* FAIL: errno; STALL: milliseconds */
  _Atomic int32_t passes;       /* before it happens */
  char name[48];
};

#define NR_AIMS 4

static struct aim *aims;

/* The error that the next call of this thread gets. */
static _Thread_local struct aim *failing;

static void
stall (int ms)
{
  struct timespec left = { ms / 1000, ms % 1000 * 1000000L };

  while (nanosleep (&left, &left) < 0 && errno == EINTR)
    ;
}

static void
act (struct aim *aim)
{
  atomic_store (&aim->state, REACHED);
  switch (aim->action) {
  case KILL:
    kill (getpid (), SIGKILL);
    for (;;)
      pause ();
  case FAIL:
    failing = aim;
    break;
  case STALL:
    stall (aim->value);
    atomic_store (&aim->state, DONE);
    break;
  }
}

/* What the point was before needed no call: the next thread that comes there
 * gets the error, and not who else this one works for. */
static void
aim_again (void)
{
  struct aim *aim = failing;

  if (aim == NULL)
    return;
  failing = NULL;
  atomic_store (&aim->passes, 0);
  atomic_store (&aim->state, ARMED);
}

void
fail_point (const char *name)
{
  if (g_str_has_suffix (name, "-done"))
    aim_again ();
  for (unsigned i = 0; aims != NULL && i < NR_AIMS; i++) {
    struct aim *aim = &aims[i];

    if (atomic_load (&aim->state) == ARMED && strcmp (aim->name, name) == 0 &&
        atomic_fetch_sub (&aim->passes, 1) == 0)
      act (aim);
  }
}

/* 0, or -errno: the call is not made and fails so. */
static int
take_error (void)
{
  struct aim *aim = failing;

  if (aim == NULL)
    return 0;
  failing = NULL;
  atomic_store (&aim->state, DONE);
  return -aim->value;
}

/* --- the storage */

static const struct storage_ops *real_ops;
static const struct storage_file_ops *real_file_ops;
static struct storage_ops ops;
static struct storage_file_ops file_ops;

#define OR_FAIL(call) \
  int err = take_error (); \
  return err < 0 ? err : call

static int
fail_pread (StorageFile *f, void *buf, size_t length, uint64_t offset)
{
  OR_FAIL (real_file_ops->pread (f, buf, length, offset));
}

static int
fail_pwrite (StorageFile *f, const void *buf, size_t length, uint64_t offset,
             bool dsync)
{
  OR_FAIL (real_file_ops->pwrite (f, buf, length, offset, dsync));
}

static int
fail_sync (StorageFile *f)
{
  OR_FAIL (real_file_ops->sync (f));
}

static int
fail_punch (StorageFile *f, uint64_t offset, uint64_t length)
{
  OR_FAIL (real_file_ops->punch (f, offset, length));
}

static int
fail_zero (StorageFile *f, uint64_t offset, uint64_t length)
{
  OR_FAIL (real_file_ops->zero (f, offset, length));
}

static int
fail_set_size (StorageFile *f, uint64_t size)
{
  OR_FAIL (real_file_ops->set_size (f, size));
}

static int
fail_open (Storage *storage, const char *path, unsigned flags, uint64_t size,
           StorageFile **out_file)
{
  int err = take_error ();

  if (err == 0)
    err = real_ops->open (storage, path, flags, size, out_file);
  if (err == 0)
    (*out_file)->ops = &file_ops;
  return err;
}

static int
fail_remove (Storage *storage, const char *path)
{
  OR_FAIL (real_ops->remove (storage, path));
}

static int
fail_sync_dir (Storage *storage, const char *dir)
{
  OR_FAIL (real_ops->sync_dir (storage, dir));
}

/* A file's own operations are known once one is open. */
static void
wrap_storage (void)
{
  StorageFile *f;

  real_ops = storage_posix.ops;
  if (real_ops->open (&storage_posix, "/proc/self/exe", STORAGE_READ_ONLY, 0,
                      &f) < 0)
    abort ();
  real_file_ops = f->ops;
  f->ops->close (f);

  file_ops = *real_file_ops;
  file_ops.pread = fail_pread;
  file_ops.pwrite = fail_pwrite;
  file_ops.sync = fail_sync;
  file_ops.punch = fail_punch;
  file_ops.zero = fail_zero;
  file_ops.set_size = fail_set_size;
  ops = *real_ops;
  ops.open = fail_open;
  ops.remove = fail_remove;
  ops.sync_dir = fail_sync_dir;
  storage_posix.ops = &ops;
}

/* --- memory of the tmpfs, which is no storage */

int __wrap_fallocate (int fd, int mode, off_t offset, off_t length);
int __real_fallocate (int fd, int mode, off_t offset, off_t length);

int
__wrap_fallocate (int fd, int mode, off_t offset, off_t length)
{
  int err = take_error ();

  if (err == 0)
    return __real_fallocate (fd, mode, offset, length);
  errno = -err;
  return -1;
}

/* --- SQLite's files */

/* The methods of a kind of file: the database has locks, its log has none. */
struct kind {
  sqlite3_io_methods methods;
  const sqlite3_io_methods *real;
};

#define NR_KINDS 2

static const sqlite3_vfs *real_vfs;
static sqlite3_vfs vfs;
static struct kind kinds[NR_KINDS];

static const sqlite3_io_methods *
real_of (sqlite3_file *f)
{
  return ((const struct kind *) f->pMethods)->real;
}

/* How SQLite calls it. */
static int
take_sqlite_error (int eio)
{
  int err = take_error ();

  return err == -ENOSPC ? SQLITE_FULL : err < 0 ? eio : SQLITE_OK;
}

static int
vfs_write (sqlite3_file *f, const void *buf, int length, sqlite3_int64 offset)
{
  int rc = take_sqlite_error (SQLITE_IOERR_WRITE);

  return rc != SQLITE_OK ? rc : real_of (f)->xWrite (f, buf, length, offset);
}

static int
vfs_sync (sqlite3_file *f, int flags)
{
  int rc = take_sqlite_error (SQLITE_IOERR_FSYNC);

  return rc != SQLITE_OK ? rc : real_of (f)->xSync (f, flags);
}

static void
wrap_file (sqlite3_file *f)
{
  for (unsigned i = 0; i < NR_KINDS; i++) {
    struct kind *kind = &kinds[i];

    if (kind->real == NULL) {
      kind->real = f->pMethods;
      kind->methods = *kind->real;
      kind->methods.xWrite = vfs_write;
      kind->methods.xSync = vfs_sync;
    }
    if (kind->real == f->pMethods) {
      f->pMethods = &kind->methods;
      return;
    }
  }
  abort ();
}

/* The catalog's files alone: one thread at a time. */
static int
vfs_open (sqlite3_vfs *v, sqlite3_filename name, sqlite3_file *f, int flags,
          int *out_flags)
{
  int rc = take_sqlite_error (SQLITE_CANTOPEN);

  f->pMethods = NULL;
  if (rc == SQLITE_OK)
    rc = real_vfs->xOpen (v, name, f, flags, out_flags);
  if (rc == SQLITE_OK)
    wrap_file (f);
  return rc;
}

static void
wrap_sqlite (void)
{
  real_vfs = sqlite3_vfs_find (NULL);
  vfs = *real_vfs;
  vfs.zName = "fail-point";
  vfs.xOpen = vfs_open;
  sqlite3_vfs_register (&vfs, 1);
}

/* --- start */

/* Rounds of the committer come as often as a test wants to see them. */
EpochLog *__wrap_epoch_log_open (Catalog *cat, const char *name,
                                 uint32_t granularity,
                                 const DiskIdentity *identity,
                                 const EpochOptions *options, GError **error);
EpochLog *__real_epoch_log_open (Catalog *cat, const char *name,
                                 uint32_t granularity,
                                 const DiskIdentity *identity,
                                 const EpochOptions *options, GError **error);

EpochLog *
__wrap_epoch_log_open (Catalog *cat, const char *name, uint32_t granularity,
                       const DiskIdentity *identity,
                       const EpochOptions *options, GError **error)
{
  EpochOptions often = *options;

  often.sync_interval_ms = 20;
  often.idle_ms = 20;
  return __real_epoch_log_open (cat, name, granularity, identity, &often,
                                error);
}

static void __attribute__ ((constructor))
start (void)
{
  const char *path = getenv ("NBDFLEECE_FAIL_POINTS");
  int fd = path != NULL ? open (path, O_RDWR | O_CLOEXEC) : -1;
  void *map = fd < 0 ? MAP_FAILED
    : mmap (NULL, NR_AIMS * sizeof *aims, PROT_READ | PROT_WRITE, MAP_SHARED,
            fd, 0);

  if (map == MAP_FAILED)
    abort ();                   /* run without what it is for */
  close (fd);
  aims = map;
  wrap_storage ();
  wrap_sqlite ();
}
