/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* handle-internal.h - an opened export, for those who call the plugin on it:
 * handle.c (capabilities), handle-data.c and handle-extents.c.
 */
#ifndef NBDFLEECE_HANDLE_INTERNAL_H
#define NBDFLEECE_HANDLE_INTERNAL_H

#include <errno.h>
#include <pthread.h>

#include "backend-internal.h"
#include "context.h"

struct Handle {
  /* Set by handle_open, never changed afterwards. */
  Backend *b;
  char *name;
  void *handle;                 /* the plugin's */
  bool is_tls;
  struct export_info info;
  bool zero_native;             /* .zero is worth a try */
  bool fua_native;
  bool cache_native;
  bool can_extents;

  pthread_mutex_t request_lock;
};

/* The errno of a callback that has just failed. */
static inline int
callback_errno (const Handle *h)
{
  int err = errno;

  if (thread_context.error)
    return thread_context.error;
  return h->b->plugin.errno_is_preserved && err ? err : EIO;
}

/* Around each data callback: its lock, and a fresh error. */
static inline void
begin (Handle *h)
{
  thread_context.error = 0;
  backend_lock (h->b, h);
}

static inline int
end (Handle *h, int r)
{
  int err = r == -1 ? callback_errno (h) : 0;

  backend_unlock (h->b, h);
  return err;
}

#endif /* NBDFLEECE_HANDLE_INTERNAL_H */
