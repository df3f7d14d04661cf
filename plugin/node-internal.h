/* SPDX-License-Identifier: BSD-3-Clause */
/* node-internal.h - a node, for node.c, which has the table of them, and
 * node-nbd.c, which knows those that are exports of an NBD server. */
#ifndef NODE_INTERNAL_H
#define NODE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include <libnbd.h>

#include "plugin/node-file.h"
#include "plugin/node.h"

/* Connections to one NBD server, where it allows several. */
#define NBD_CONNECTIONS 4
/* How long a file may take to be opened, and an NBD server until it is
 * connected, microseconds. */
#define NODE_OPEN_TIME (10 * G_USEC_PER_SEC)

struct Node {
  atomic_uint refs;

  /* Set in node_add, never changed. */
  char *name;
  json_t *options;              /* blockdev-add's, with absolute paths; NULL: a
                                 * filter */
  const char *driver, *format;  /* as QEMU reports them */
  char *filename;
  uint64_t size;
  bool read_only, may_punch;

  NodeFile *file;               /* NULL: NBD, or a filter */
  struct nbd_handle *nbd[NBD_CONNECTIONS];      /* or NULL: given up */
  unsigned nr_nbd;
  bool nbd_can_zero, nbd_can_flush;
  pthread_mutex_t nbd_lock[NBD_CONNECTIONS];    /* and nbd[] under it */
  atomic_uint next_nbd;
  atomic_uint reconnects;
  atomic_bool given_up;         /* requests fail while patience is limited */

  /* The user's, while there is no request. */
  NodePatience patience;        /* NULL: for ever */
  void *patience_opaque;

  const char *user;             /* NULL: nobody; under table_lock */
  /* Likewise: */
  char *lent;                   /* path of the file that is lent; else NULL */
  bool given_back;              /* it is not needed, but may not be free yet */
};

int64_t node_patience (const Node *node);       /* as it is now, microseconds */
void node_give_up (Node *node, const char *why);        /* says so once */
/* What the driver that does the I/O is to know; borrowed. */
json_t *node_protocol_options (json_t *options);
/* Member of those of an NBD node in options: the object that tls-creds
 * named. */
#define NODE_TLS "tls-object"

/* --- node-nbd.c; 0 or -errno */

bool node_nbd_open (Node *node, json_t *args, GError **error);
void node_nbd_close (Node *node);               /* of no NBD node, too */
int node_nbd_pread (Node *node, void *buf, size_t length, uint64_t offset);
int node_nbd_pwrite (Node *node, const void *buf, size_t length,
                     uint64_t offset);
/* -EOPNOTSUPP: it cannot. */
int node_nbd_zero (Node *node, uint64_t length, uint64_t offset);
int node_nbd_flush (Node *node);

#endif
