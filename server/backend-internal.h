/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* backend-internal.h - shared by backend.c and handle*.c only. */
#ifndef NBDFLEECE_BACKEND_INTERNAL_H
#define NBDFLEECE_BACKEND_INTERNAL_H

#include <pthread.h>

#include "backend.h"

struct Backend {
  /* Set while loading and configuring, never changed afterwards. */
  char *path;
  void *dl;
  struct nbdkit_plugin plugin;  /* ours: fields a plugin lacks are 0 */
  uint64_t struct_size;         /* what the plugin was compiled with */
  const struct metacontext_plugin *contexts;    /* or NULL */
  int thread_model;
  bool after_fork_called;

  pthread_mutex_t all_requests; /* held in each call, up to .._ALL_REQUESTS */

  pthread_mutex_t client_lock;
  pthread_cond_t client_left;
  bool has_client;              /* under client_lock; SERIALIZE_CONNECTIONS */
  bool stopping;                /* under client_lock */
};

/* Make a table of version 1 work like one of version 2.  Fields of the data
 * callbacks of version 2 mean nothing yet. */
void backend_adapt_v1 (struct nbdkit_plugin *p);

/* Around each call of the plugin.  h: NULL when the call is for none. */
void backend_lock (Backend *b, Handle *h);
void backend_unlock (Backend *b, Handle *h);

/* The caller has the lock.  handle: the plugin's, or NULL. */
int backend_ask_kind (const Backend *b, void *handle, const char *name);

/* The request lock of a handle, for SERIALIZE_REQUESTS. */
pthread_mutex_t *handle_request_lock (Handle *h);

#endif /* NBDFLEECE_BACKEND_INTERNAL_H */
