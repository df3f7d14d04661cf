/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <glib.h>

#include "bitmap/storage.h"
#include "fleece/copier.h"
#include "plugin/node-file.h"
#include "plugin/thread.h"

/* How often who waits for late requests looks, microseconds. */
#define LOOK_TIME (100 * 1000)

/* How long a file may take to be closed before that goes on without us. */
#define CLOSE_TIME G_USEC_PER_SEC

struct NodeFile {
  atomic_uint refs;             /* the node's, and one of each request */
  atomic_uint users;            /* the same, but a request's ends with its call:
                                 * the last one closes the file */
  StorageFile *file;            /* NULL: not opened yet, or that has failed */
  atomic_uint late;
};

typedef struct Request Request;
struct Request {
  CopierJob job;
  int (*fn) (Request *request);
  NodeFile *file;               /* a reference */
  char *path;                   /* of do_open; else NULL */
  char *data;                   /* g_atomic_rc_box, a reference; or NULL */
  bool flag;                    /* open: read only; zero: may punch */
  uint64_t offset, length;
};

static pthread_mutex_t copier_lock = PTHREAD_MUTEX_INITIALIZER;
static Copier *copier;          /* made when it is needed; under copier_lock */

static Copier *
get_copier (void)
{
  SCOPED_LOCK (&copier_lock);

  if (copier == NULL)
    copier = copier_new ();
  return copier;
}

void
node_file_stop (void)
{
  SCOPED_LOCK (&copier_lock);

  g_clear_pointer (&copier, copier_free);
}

/* --- requests, on their threads --- */

static int
do_open (Request *r)
{
  return storage_posix.ops->open (&storage_posix, r->path, STORAGE_LOCK |
                                  (r->flag ? STORAGE_READ_ONLY : 0), 0,
                                  &r->file->file);
}

static int
do_pread (Request *r)
{
  StorageFile *file = r->file->file;

  return file->ops->pread (file, r->data, r->length, r->offset);
}

static int
do_pwrite (Request *r)
{
  StorageFile *file = r->file->file;

  return file->ops->pwrite (file, r->data, r->length, r->offset, false);
}

static int
do_zero (Request *r)
{
  StorageFile *file = r->file->file;
  int err = -EOPNOTSUPP;

  if (r->flag)
    err = file->ops->punch (file, r->offset, r->length);
  return err == -EOPNOTSUPP ? file->ops->zero (file, r->offset, r->length)
    : err;
}

static int
do_set_size (Request *r)
{
  StorageFile *file = r->file->file;

  return file->ops->set_size (file, r->length);
}

static int
do_sync (Request *r)
{
  StorageFile *file = r->file->file;

  return file->ops->sync (file);
}

/* The node's own use of it ends; this request is one, and may be the last. */
static int
do_leave (Request *r)
{
  atomic_fetch_sub (&r->file->users, 1);
  return 0;
}

/* Here and not when the request is freed, since closing may hang as well. */
static void
leave (NodeFile *file)
{
  if (atomic_fetch_sub (&file->users, 1) == 1 && file->file != NULL)
    file->file->ops->close (file->file);
}

static int
run_request (CopierJob *job)
{
  Request *r = (Request *) job;
  int err = r->fn (r);

  leave (r->file);
  return err;
}

static void
unref (NodeFile *file)
{
  if (atomic_fetch_sub (&file->refs, 1) == 1)
    g_free (file);
}

static void
free_request (CopierJob *job)
{
  Request *r = (Request *) job;

  unref (r->file);
  g_free (r->path);
  if (r->data != NULL)
    g_atomic_rc_box_release (r->data);
  g_free (r);
}

/* --- asking for them --- */

typedef struct {
  const NodeFileWait *wait;
  int64_t since;                /* monotonic */
} Waiting;

static bool
is_patient (void *opaque)
{
  const Waiting *w = opaque;

  return g_get_monotonic_time () - w->since <
    w->wait->patience (w->wait->opaque);
}

/* What is late may be what this one must come after.  While patience is
 * limited, nobody waits for that; else until it has ended. */
static int
wait_for_late (const NodeFile *file, const NodeFileWait *wait)
{
  while (atomic_load (&file->late) > 0) {
    if (wait->patience (wait->opaque) != INT64_MAX)
      return -ECANCELED;
    g_usleep (LOOK_TIME);
  }
  return 0;
}

/* Fields of r but these may be set. */
static int
ask (NodeFile *file, const Request *request, const NodeFileWait *wait)
{
  Request *r = g_memdup2 (request, sizeof *request);
  Waiting waiting = { wait, g_get_monotonic_time () };
  int err;

  atomic_fetch_add (&file->refs, 1);
  atomic_fetch_add (&file->users, 1);
  r->job.fn = run_request;
  r->job.free = free_request;
  r->file = file;
  if (r->data != NULL)
    g_atomic_rc_box_acquire (r->data);
  err = copier_run_while (get_copier (), &r->job, is_patient, &waiting,
                          &file->late);
  return err == -ETIMEDOUT ? -ECANCELED : err;
}

int
node_file_open (const char *path, bool read_only, const NodeFileWait *wait,
                NodeFile **out_file)
{
  NodeFile *file = g_new0 (NodeFile, 1);
  Request request = {
    .fn = do_open, .path = g_strdup (path), .flag = read_only,
  };
  int err;

  atomic_init (&file->refs, 1);
  atomic_init (&file->users, 1);
  atomic_init (&file->late, 0);
  err = ask (file, &request, wait);
  if (err == 0)
    *out_file = file;
  else
    node_file_unref (file);
  return err;
}

int
node_file_pread (NodeFile *file, void *buf, size_t length, uint64_t offset,
                 const NodeFileWait *wait)
{
  int err = wait_for_late (file, wait);
  Request request = { .fn = do_pread, .length = length, .offset = offset };

  if (err < 0)
    return err;
  request.data = g_atomic_rc_box_alloc (length);
  err = ask (file, &request, wait);
  if (err == 0)
    memcpy (buf, request.data, length);
  g_atomic_rc_box_release (request.data);
  return err;
}

int
node_file_pwrite (NodeFile *file, const void *buf, size_t length,
                  uint64_t offset, const NodeFileWait *wait)
{
  int err = wait_for_late (file, wait);
  Request request = { .fn = do_pwrite, .length = length, .offset = offset };

  if (err < 0)
    return err;
  request.data = g_atomic_rc_box_alloc (length);
  memcpy (request.data, buf, length);
  err = ask (file, &request, wait);
  g_atomic_rc_box_release (request.data);
  return err;
}

int
node_file_zero (NodeFile *file, bool punch, uint64_t length, uint64_t offset,
                const NodeFileWait *wait)
{
  int err = wait_for_late (file, wait);
  Request request = {
    .fn = do_zero, .flag = punch, .length = length, .offset = offset,
  };

  return err < 0 ? err : ask (file, &request, wait);
}

int
node_file_set_size (NodeFile *file, uint64_t size, const NodeFileWait *wait)
{
  int err = wait_for_late (file, wait);
  Request request = { .fn = do_set_size, .length = size };

  return err < 0 ? err : ask (file, &request, wait);
}

int
node_file_sync (NodeFile *file, const NodeFileWait *wait)
{
  int err = wait_for_late (file, wait);
  Request request = { .fn = do_sync };

  return err < 0 ? err : ask (file, &request, wait);
}

/* --- the rest --- */

static int64_t
close_time (void *opaque)
{
  return CLOSE_TIME;
}

void
node_file_unref (NodeFile *file)
{
  static const NodeFileWait wait = { close_time, NULL };
  Request request = { .fn = do_leave };

  if (file == NULL)
    return;
  ask (file, &request, &wait);
  unref (file);
}

uint64_t
node_file_size (const NodeFile *file)
{
  return atomic_load (&file->file->size);
}

bool
node_file_is_block (const NodeFile *file)
{
  return file->file->is_block;
}

bool
node_file_is_late (const NodeFile *file)
{
  return atomic_load (&file->late) > 0;
}
