/* SPDX-License-Identifier: BSD-3-Clause */
/* node-nbd.c - nodes that are exports of an NBD server. */
#include <config.h>

#include <errno.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/commands.h"
#include "plugin/node-internal.h"
#include "plugin/objects.h"
#include "plugin/thread.h"

/* Bytes that the other side may be asked to zero at once. */
#define NBD_ZERO_MAX (UINT32_C (1) << 30)

/* How long a connection may take to close, microseconds. */
#define CLOSE_TIME G_USEC_PER_SEC
/* How often who waits looks whether to go on, milliseconds. */
#define LOOK_MS 100

/* -errno of what has just failed. */
static int
last_nbd_error (void)
{
  int err = nbd_get_errno ();

  return err != 0 ? -err : -EIO;
}

/* Of a request, or, without a cookie, until it is connected.  0, -ECANCELED:
 * given up, -ETIMEDOUT: not connected in time, or another -errno as
 * nbd_get_error has it. */
static int
wait_nbd (const Node *node, struct nbd_handle *h, int64_t cookie)
{
  int64_t start = g_get_monotonic_time ();

  for (;;) {
    int64_t waited;
    int r = cookie != 0 ? nbd_aio_command_completed (h, (uint64_t) cookie)
      : nbd_aio_is_connecting (h) == 0;

    if (r == 1 && cookie == 0 && nbd_aio_is_ready (h) != 1)
      return -ENOTCONN;
    if (r == 1)
      return 0;
    if (r == 0)
      r = nbd_poll (h, LOOK_MS);
    if (r == -1)
      return last_nbd_error ();
    waited = g_get_monotonic_time () - start;
    if (waited < LOOK_MS * 1000)
      continue;
    if (waited >= node_patience (node))
      return -ECANCELED;
    if (cookie == 0 && waited >= NODE_OPEN_TIME)
      return -ETIMEDOUT;
  }
}

/* Asks the server to close, and waits for that, but not for ever: what it has
 * open may be wanted by others. */
static void
disconnect_nbd (struct nbd_handle *h)
{
  int64_t until = g_get_monotonic_time () + CLOSE_TIME;

  if (h == NULL)
    return;
  if (nbd_aio_is_ready (h) == 1 && nbd_aio_disconnect (h, 0) == 0)
    while (nbd_aio_is_closed (h) != 1 && nbd_aio_is_dead (h) != 1 &&
           g_get_monotonic_time () < until && nbd_poll (h, LOOK_MS) != -1)
      ;
  nbd_close (h);
}

static bool
set_nbd_error (Node *node, GError **error)
{
  const char *why = nbd_get_error ();

  command_set_error (error, "Node '%s': %s", node->name,
                     why != NULL ? why : "cannot be connected");
  return false;
}

static bool
set_tls (Node *node, json_t *args, struct nbd_handle *h, GError **error)
{
  const char *id = qmp_get_str (args, "tls-creds"), *username;
  g_autoptr (json_t) creds = json_incref (json_object_get (args, NODE_TLS));
  g_autofree char *psk = NULL;
  int r;

  if (id == NULL)
    return true;
  if (creds == NULL)
    creds = object_find_creds (id, "client", error);
  if (creds == NULL)
    return false;
  r = nbd_set_tls (h, LIBNBD_TLS_REQUIRE);
  if (strcmp (qmp_get_str (creds, "qom-type"), "tls-creds-psk") == 0) {
    username = qmp_get_str (creds, "username");
    psk = object_psk_file (creds);
    if (r == 0)
      r = nbd_set_tls_psk_file (h, psk);
    if (r == 0)
      r = nbd_set_tls_username (h, username != NULL ? username : "qemu");
  }
  else {
    if (r == 0)
      r = nbd_set_tls_certificates (h, qmp_get_str (creds, "dir"));
    if (r == 0)
      r = nbd_set_tls_verify_peer (h, qmp_get_bool (creds, "verify-peer",
                                                    true));
  }
  return r == 0 || set_nbd_error (node, error);
}

static bool
connect_nbd (Node *node, json_t *args, struct nbd_handle *h, GError **error)
{
  json_t *server = json_object_get (args, "server");
  const char *type = qmp_get_str (server, "type");
  const char *export = qmp_get_str (args, "export");
  int r;

  if (nbd_set_export_name (h, export != NULL ? export : "") == -1)
    return set_nbd_error (node, error);
  if (!set_tls (node, args, h, error))
    return false;
  if (type != NULL && strcmp (type, "unix") == 0) {
    const char *path = qmp_get_str (server, "path");

    if (path == NULL) {
      command_set_error (error, "Parameter 'server.path' is missing");
      return false;
    }
    r = nbd_aio_connect_unix (h, path);
  }
  else {
    const char *host = qmp_get_str (server, "host");
    const char *port = qmp_get_str (server, "port");

    if (host == NULL || port == NULL) {
      command_set_error (error, "Parameter 'server.%s' is missing",
                         host == NULL ? "host" : "port");
      return false;
    }
    r = nbd_aio_connect_tcp (h, host, port);
  }
  if (r == 0)
    r = wait_nbd (node, h, 0);
  if (r != -ETIMEDOUT && r != -ECANCELED)
    return r == 0 || set_nbd_error (node, error);
  command_set_error (error, "Node '%s': its server does not answer: %s",
                     node->name, r == -ETIMEDOUT ?
                     "not connected after 10 seconds" : "given up");
  return false;
}

bool
node_nbd_open (Node *node, json_t *args, GError **error)
{
  unsigned wanted = 1;

  if (json_object_get (args, "server") == NULL) {
    command_set_error (error, "Parameter 'server' is missing");
    return false;
  }
  while (node->nr_nbd < wanted) {
    struct nbd_handle *h = nbd_create ();

    if (h == NULL)
      return set_nbd_error (node, error);
    pthread_mutex_init (&node->nbd_lock[node->nr_nbd], NULL);
    node->nbd[node->nr_nbd++] = h;
    if (!connect_nbd (node, args, h, error))
      return false;
    if (node->nr_nbd > 1)
      continue;
    node->size = (uint64_t) nbd_get_size (h);
    node->nbd_can_zero = nbd_can_zero (h) == 1;
    node->nbd_can_flush = nbd_can_flush (h) == 1;
    if (!node->read_only && nbd_is_read_only (h) == 1) {
      command_set_error (error, "Node '%s': the export is read-only",
                         node->name);
      return false;
    }
    if (nbd_can_multi_conn (h) == 1)
      wanted = NBD_CONNECTIONS;
  }
  node->filename = nbd_get_uri (node->nbd[0]);
  return true;
}

void
node_nbd_close (Node *node)
{
  for (unsigned i = 0; i < node->nr_nbd; i++) {
    if (atomic_load (&node->given_up))
      nbd_close (node->nbd[i]);
    else
      disconnect_nbd (node->nbd[i]);
    pthread_mutex_destroy (&node->nbd_lock[i]);
  }
}

/* --- I/O --- */

static bool
is_ready (Node *node, unsigned i)
{
  return node->nbd[i] != NULL && nbd_aio_is_ready (node->nbd[i]) == 1;
}

/* A server that has ended may be there again.  lock of i held; 0 or -errno. */
static int
revive_nbd (Node *node, unsigned i)
{
  g_autoptr (GError) error = NULL;
  struct nbd_handle *h;

  if (is_ready (node, i))
    return 0;
  h = nbd_create ();
  if (h == NULL)
    return -ENOMEM;
  if (!connect_nbd (node, node_protocol_options (node->options), h, &error)) {
    nbdkit_debug ("%s", error->message);
    nbd_close (h);
    return node_patience (node) != INT64_MAX ? -ECANCELED : -ENOTCONN;
  }
  if ((uint64_t) nbd_get_size (h) != node->size || nbd_is_read_only (h) == 1) {
    nbdkit_error ("warning: node '%s': its server is there again, but the "
                  "export has another size or is read-only", node->name);
    disconnect_nbd (h);
    return -ESTALE;
  }
  nbd_close (node->nbd[i]);
  node->nbd[i] = h;
  atomic_fetch_add (&node->reconnects, 1);
  return 0;
}

typedef struct {
  void *buf;
  const void *data;
  size_t length;
  uint64_t offset;
} NbdRequest;

static int64_t
do_pread (struct nbd_handle *h, const NbdRequest *r)
{
  return nbd_aio_pread (h, r->buf, r->length, r->offset,
                        NBD_NULL_COMPLETION, 0);
}

static int64_t
do_pwrite (struct nbd_handle *h, const NbdRequest *r)
{
  return nbd_aio_pwrite (h, r->data, r->length, r->offset,
                         NBD_NULL_COMPLETION, 0);
}

static int64_t
do_zero (struct nbd_handle *h, const NbdRequest *r)
{
  return nbd_aio_zero (h, r->length, r->offset,
                       NBD_NULL_COMPLETION, 0);
}

static int64_t
do_flush (struct nbd_handle *h, const NbdRequest *r)
{
  return nbd_aio_flush (h,
                        NBD_NULL_COMPLETION, 0);
}

/* Nobody waits any longer for what the server may or may not do.  lock of i
 * held. */
static int
give_up_nbd (Node *node, unsigned i)
{
  nbd_close (node->nbd[i]);
  node->nbd[i] = NULL;
  node_give_up (node,
                "its server does not answer: its connections are given up");
  return -ECANCELED;
}

/* On a connection of its own for each of a few threads.  That one is dead is
 * found out by the request that fails: it is made again. */
static int
run_nbd (Node *node, int64_t (*fn) (struct nbd_handle *h, const NbdRequest *r),
         const NbdRequest *request)
{
  unsigned i = atomic_fetch_add (&node->next_nbd, 1) % node->nr_nbd;
  SCOPED_LOCK (&node->nbd_lock[i]);

  for (bool again = false; ; again = true) {
    int64_t cookie;
    int r;

    /* No other connection of it needs to be tried, nor a new one. */
    if (atomic_load (&node->given_up)) {
      if (node_patience (node) != INT64_MAX)
        return give_up_nbd (node, i);
      atomic_store (&node->given_up, false);
    }
    r = revive_nbd (node, i);
    if (r == 0) {
      cookie = fn (node->nbd[i], request);
      r = cookie > 0 ? wait_nbd (node, node->nbd[i], cookie)
        : last_nbd_error ();
    }
    if (r == -ECANCELED)
      return give_up_nbd (node, i);
    if (r == 0 || again || is_ready (node, i))
      return r;
  }
}

int
node_nbd_pread (Node *node, void *buf, size_t length, uint64_t offset)
{
  NbdRequest request = { .buf = buf, .length = length, .offset = offset };

  return run_nbd (node, do_pread, &request);
}

int
node_nbd_pwrite (Node *node, const void *buf, size_t length, uint64_t offset)
{
  NbdRequest request = { .data = buf, .length = length, .offset = offset };

  return run_nbd (node, do_pwrite, &request);
}

int
node_nbd_zero (Node *node, uint64_t length, uint64_t offset)
{
  if (!node->nbd_can_zero)
    return -EOPNOTSUPP;
  while (length > 0) {
    uint64_t n = MIN (length, NBD_ZERO_MAX);
    NbdRequest request = { .length = n, .offset = offset };
    int r = run_nbd (node, do_zero, &request);

    if (r < 0)
      return r;
    length -= n;
    offset += n;
  }
  return 0;
}

int
node_nbd_flush (Node *node)
{
  NbdRequest request = { .length = 0 };

  /* One connection's covers all where several are allowed. */
  return node->nbd_can_flush ? run_nbd (node, do_flush, &request) : 0;
}
