/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* handover.h - what one image of the server leaves to the next one, see
 * reexec.h.
 *
 * Plain data, in a sealed memfd: a first line with the version, then one
 * serialized GVariant.  Any change of that type's meaning takes another
 * version, and a server refuses to start with one that it does not know;
 * `--dump-config` tells the version, so that an old image finds out before it
 * gives up anything.
 *
 * The numbers of files are those of the process, which stays the same.
 */
#ifndef NBDFLEECE_HANDOVER_H
#define NBDFLEECE_HANDOVER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include <glib.h>

#include "export.h"
#include "request.h"

#define HANDOVER_VERSION 4

struct handover_listener {
  int64_t id;
  int fd;
  char *path;                   /* of a Unix socket, else NULL */
  dev_t dev;                    /* identity of that file */
  ino_t ino;
  unsigned port;                /* of TCP, else 0 */
  uint32_t max_connections;     /* 0: no limit */
  char *terms;                  /* access.h, Terms.text */
};

/* A client in transmission, of which nothing is in flight. */
struct handover_conn {
  unsigned number;
  int fd;
  int64_t listener;             /* by which it came in */
  uint32_t listener_max;        /* whose limit */
  char *terms;                  /* and its terms */
  char *export_name;
  enum reply_mode mode;
  struct export_info info;      /* what the client was told */
  uint64_t bytes_read, bytes_written, requests, extents;
  GPtrArray *contexts;          /* char *; ids count from 1 */
  GBytes *unparsed;             /* received, but not looked at */
};

struct handover_file {
  char *name;                   /* the plugin's */
  int fd;
};

struct handover {
  char *program;                /* what to execute the next time */
  char *private_folder;         /* of the socket of -U -, else NULL */
  int64_t last_listener_id;
  unsigned last_conn_number;
  GPtrArray *listeners;         /* of struct handover_listener */
  GPtrArray *conns;             /* of struct handover_conn */
  GPtrArray *files;             /* of struct handover_file */
};

typedef struct handover Handover;

Handover *handover_new (void);
/* Closes no file.  NULL is fine. */
void handover_free (Handover *h);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Handover, handover_free)
struct handover_conn *handover_add_conn (Handover *h);
struct handover_listener *handover_add_listener (Handover *h);
void handover_add_file (Handover *h, const char *name, int fd);

/* A new sealed memfd, close-on-exec; or -1. */
int handover_save (const Handover *h, GError **error);
/* Takes nothing on trust: the type, every number's range, and that files are
 * open and of the kind that they should be. */
Handover *handover_load (int fd, GError **error);

/* Of all files that are handed over. */
void handover_set_cloexec (const Handover *h, bool on);

#endif /* NBDFLEECE_HANDOVER_H */
