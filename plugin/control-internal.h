/* SPDX-License-Identifier: BSD-3-Clause */
/* control-internal.h - what control.c, which has the I/O thread and the
 * clients, and control-client.c, one of them, share.
 *
 * A client lives like this: accepted by the I/O thread, which starts its worker
 * and alone reads and writes its socket.  Once the peer sends no more and all
 * is answered, or the client was told to close, it is ended: the worker stops,
 * is joined by the I/O thread, and the client is freed.  A peer that is gone
 * still gets its commands done, as far as they arrived; the replies are
 * dropped.
 */
#ifndef CONTROL_INTERNAL_H
#define CONTROL_INTERNAL_H

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>

#include "plugin/control-socket.h"
#include "plugin/control.h"
#include "plugin/qmp-scan.h"

/* Requests are neither read nor run while so many bytes of replies wait. */
#define MAX_UNREAD (64 * 1024)

typedef struct {
  GString *text;
  bool broken;                  /* text is an error message, not JSON */
} Request;

/* An event that is still in a client's out, wholly or in part. */
typedef struct {
  uint64_t end;                 /* of all that was ever queued for the client */
  size_t length;
} QueuedEvent;

typedef struct {
  Control *control;
  int fd;

  /* The I/O thread's. */
  pthread_t worker;
  QmpScan *scan;
  char in[16384];
  size_t in_pos, in_end;        /* what scan has not eaten yet */
  bool eof;                     /* the peer sends no more */
  struct pollfd *pollfd;

  /* The worker's. */
  struct qmp_session session;
  bool quits;                   /* the command that runs is quit */

  /* Under control->lock. */
  GQueue requests;              /* of Request */
  size_t request_bytes;
  GString *out;
  size_t out_pos;               /* sent up to here */
  uint64_t sent;                /* in all */
  GQueue events;                /* of QueuedEvent */
  size_t event_bytes;           /* of them */
  uint64_t lost_events;         /* not queued, and not told yet */
  bool negotiated;              /* wants events */
  bool busy;                    /* a command is running */
  GString *last_reply;          /* to quit, until control_stop; or NULL */
  bool closing;                 /* takes no more requests; end when sent */
  bool deaf;                    /* the peer is gone: nothing is queued in out */
  bool ended;                   /* the worker shall stop */
  bool worker_done;
} Client;

struct Control {
  ControlSocket *sock;
  const struct qmp_command *table;
  int wake_fd;                  /* eventfd */
  pthread_t thread;
  atomic_bool started;
  bool no_files;                /* the I/O thread's: accept has just failed */
  bool said_no_files;           /* the I/O thread's: since the last client */
  GPtrArray *clients;           /* of Client; changed by the I/O thread only,
                                 * under lock */
  pthread_mutex_t lock;
  pthread_cond_t cond;          /* any worker may have something to do */
  unsigned nr_busy;             /* commands that are running; under lock */
  bool draining;                /* no further ones; under lock */
  bool stop;                    /* under lock */
  bool said_reexec;             /* SERVER_REEXEC; under lock */
  bool quit;                    /* a client wants the end; under lock */
};

/* Makes the I/O thread look at everything again. */
void control_wake (Control *control);

/* Takes fd.  Has no worker yet, and is in no list. */
Client *client_new (Control *control, int fd);
void client_free (Client *client);
void *client_thread (void *client);             /* its worker */

size_t client_unread_locked (const Client *client);     /* bytes of replies */
/* May more be read from this client? */
bool client_wants_input_locked (const Client *client);
/* Turns what was read into requests, as many as may wait. */
void client_scan_locked (Client *client);
void client_read (Client *client);
void client_queue_event_locked (Client *client, const GString *line);
/* The socket is non-blocking: the lock is held for as long as a copy takes. */
void client_send_locked (Client *client);
bool client_is_finished_locked (const Client *client);
/* Nothing comes after it. */
void client_queue_last_reply_locked (Client *client);

#endif
