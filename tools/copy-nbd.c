/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "tools/copy-nbd.h"

/* What the NBD specification lets a client assume when the server says
 * nothing, and the most that libnbd sends or takes in one request.
 */
#define DEFAULT_MAX_BLOCK (UINT64_C (32) << 20)
#define LIBNBD_MAX_BLOCK (UINT64_C (64) << 20)

const char *
peer_nbd_error (void)
{
  const char *text = nbd_get_error ();
  const char *p;

  if (text == NULL)
    return "unknown error";
  /* libnbd begins with the name of its function: "nbd_connect_uri: ". */
  p = strstr (text, ": ");
  if (p != NULL && strncmp (text, "nbd_", 4) == 0 &&
      memchr (text, ' ', p - text) == NULL)
    return p + 2;
  return text;
}

static bool
fail (GError **error, const char *what, const char *name)
{
  g_set_error (error, G_IO_CHANNEL_ERROR, G_IO_CHANNEL_ERROR_FAILED,
               "cannot %s '%s': %s", what, name, peer_nbd_error ());
  return false;
}

static struct nbd_handle *
connect_one (const Peer *peer, const char *context, bool base, GError **error)
{
  struct nbd_handle *h = nbd_create ();

  if (h == NULL ||
      nbd_set_uri_allow_local_file (h, true) == -1 ||
      (base && nbd_add_meta_context (h, LIBNBD_CONTEXT_BASE_ALLOCATION) == -1) ||
      (context != NULL && nbd_add_meta_context (h, context) == -1) ||
      nbd_connect_uri (h, peer->name) == -1) {
    fail (error, "connect to", peer->name);
    nbd_close (h);
    return NULL;
  }
  return h;
}

static bool
connect_since (Peer *peer, const char *since, GError **error)
{
  static const char *const prefixes[] =
    { "qemu:dirty-bitmap:", "qemu-dirty-bitmap:" };

  for (size_t i = 0; i < G_N_ELEMENTS (prefixes); i++) {
    g_autofree char *context = g_strconcat (prefixes[i], since, NULL);
    struct nbd_handle *h = connect_one (peer, context, true, error);

    if (h == NULL)
      return false;
    peer->nbd[0] = h;
    peer->nr_nbd = 1;
    if (nbd_can_meta_context (h, context) == 1) {
      peer->dirty_context = g_steal_pointer (&context);
      return true;
    }
    nbd_shutdown (h, 0);
    nbd_close (h);
    peer->nr_nbd = 0;
  }
  g_set_error (error, G_IO_CHANNEL_ERROR, G_IO_CHANNEL_ERROR_FAILED,
               "cannot copy from '%s': the server has no record of changes "
               "since '%s' for this export", peer->name, since);
  return false;
}

static bool
is_power_of_2 (uint64_t n)
{
  return n > 0 && (n & (n - 1)) == 0;
}

static bool
read_block_sizes (Peer *peer, struct nbd_handle *h, GError **error)
{
  int64_t min = nbd_get_block_size (h, LIBNBD_SIZE_MINIMUM);
  int64_t max = nbd_get_block_size (h, LIBNBD_SIZE_MAXIMUM);

  peer->min_block = min > 0 ? min : 1;
  peer->max_block = max > 0 ? (uint64_t) max : DEFAULT_MAX_BLOCK;
  if (peer->max_block > LIBNBD_MAX_BLOCK)
    peer->max_block = LIBNBD_MAX_BLOCK;
  if (!is_power_of_2 (peer->min_block) || peer->min_block > 65536 ||
      peer->max_block < peer->min_block) {
    g_set_error (error, G_IO_CHANNEL_ERROR, G_IO_CHANNEL_ERROR_FAILED,
                 "cannot use '%s': the server's block sizes make no sense "
                 "(minimum %" G_GUINT64_FORMAT ", maximum %" G_GUINT64_FORMAT
                 ")", peer->name, peer->min_block, peer->max_block);
    return false;
  }
  return true;
}

bool
nbd_peer_open (Peer *peer, bool source, const char *since, GError **error)
{
  struct nbd_handle *h;
  int64_t size;
  char *name;

  peer->nbd = g_new0 (struct nbd_handle *, 1);
  if (since != NULL) {
    if (!connect_since (peer, since, error))
      return false;
  }
  else {
    peer->nbd[0] = connect_one (peer, NULL, source, error);
    if (peer->nbd[0] == NULL)
      return false;
    peer->nr_nbd = 1;
  }
  h = peer->nbd[0];

  size = nbd_get_size (h);
  if (size == -1)
    return fail (error, "get the size of", peer->name);
  peer->size = size;
  if (!read_block_sizes (peer, h, error))
    return false;
  peer->read_only = nbd_is_read_only (h) == 1;
  peer->multi_conn = nbd_can_multi_conn (h) == 1;
  peer->can_zero = nbd_can_zero (h) == 1;
  peer->can_flush = nbd_can_flush (h) == 1;
  peer->has_base =
    source && nbd_can_meta_context (h, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
  name = nbd_get_export_name (h);
  peer->export_name = g_strdup (name != NULL ? name : "");
  free (name);
  return true;
}

bool
nbd_peer_set_connections (Peer *peer, unsigned n, GError **error)
{
  if (!peer->multi_conn)
    n = 1;
  peer->nbd = g_renew (struct nbd_handle *, peer->nbd, n);
  while (peer->nr_nbd < n) {
    struct nbd_handle *h = connect_one (peer, NULL, false, error);

    if (h == NULL)
      return false;
    peer->nbd[peer->nr_nbd++] = h;
    if (nbd_get_size (h) != (int64_t) peer->size) {
      g_set_error (error, G_IO_CHANNEL_ERROR, G_IO_CHANNEL_ERROR_FAILED,
                   "cannot use '%s': its size changed between two connections",
                   peer->name);
      return false;
    }
  }
  return true;
}

bool
nbd_peer_flush (Peer *peer, GError **error)
{
  if (peer->can_flush && nbd_flush (peer->nbd[0], 0) == -1)
    return fail (error, "flush", peer->name);
  return true;
}

void
nbd_peer_close (Peer *peer)
{
  for (unsigned i = 0; i < peer->nr_nbd; i++) {
    struct nbd_handle *h = peer->nbd[i];

    /* With requests in flight a polite goodbye would wait for all of them. */
    if (nbd_aio_is_ready (h) && nbd_aio_in_flight (h) == 0)
      nbd_shutdown (h, 0);
    nbd_close (h);
  }
  g_free (peer->nbd);
  peer->nbd = NULL;
  peer->nr_nbd = 0;
}
