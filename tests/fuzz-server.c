/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-server.c - the server's own objects, in this process, with one client
 * whose bytes are the input.
 *
 * FUZZ_TARGET says where the input begins, and so what it is mostly about:
 *   handshake      behind the greeting
 *   contexts       the data of a LIST_ and of a SET_META_CONTEXT
 *   transmission   the first byte chooses what is negotiated; behind GO
 *   tls            as transmission, but that STARTTLS comes first; the bytes of
 *                  the session are not encrypted (see below)
 *
 * One thread serves and hands over nothing, so that an input always does the
 * same.  main is libFuzzer's, or that of fuzz-replay.c.
 */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server/backend-internal.h"
#include "server/bytes.h"
#include "server/conn.h"
#include "server/handle-internal.h"
#include "server/host.h"
#include "server/iov.h"
#include "server/log.h"
#include "server/nbd-wire.h"
#include "server/quit.h"
#include "server/tls-session.h"
#include "server/tls.h"

int LLVMFuzzerInitialize (int *argc, char ***argv);
int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

/* The plugin: 1 TiB that reads as zeroes, or 1 MiB with minimum blocks of 512
 * bytes under the name "small". */
#define SIZE       (INT64_C (1) << 40)
#define SMALL_SIZE (1 << 20)
#define EXTENT     (UINT64_C (3) << 18)

static int big, small;

static void *
fuzz_open (int readonly)
{
  const char *name = nbdkit_export_name ();

  if (strcmp (name, "refused") == 0) {
    nbdkit_error ("there is no such export");
    return NULL;
  }
  return strcmp (name, "small") == 0 ? &small : &big;
}

static int64_t
fuzz_get_size (void *handle)
{
  return handle == &small ? SMALL_SIZE : SIZE;
}

static int
fuzz_block_size (void *handle, uint32_t *min, uint32_t *preferred,
                 uint32_t *max)
{
  *min = handle == &small ? 512 : 1;
  *preferred = 4096;
  *max = 65536;                 /* more is only slower */
  return 0;
}

static int
fuzz_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
            uint32_t flags)
{
  memset (buf, 0, count);
  return 0;
}

static int
fuzz_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
             uint32_t flags)
{
  const unsigned char *p = buf;
  unsigned sum = 0;

  for (uint32_t i = 0; i < count; i++)  /* for sanitizers: it can be read */
    sum += p[i];
  return sum == 1 ? -1 : 0;
}

static int
fuzz_flush (void *handle, uint32_t flags)
{
  return 0;
}

static int
fuzz_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  return 0;
}

static int
fuzz_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  if (flags & NBDKIT_FLAG_FAST_ZERO) {
    nbdkit_set_error (ENOTSUP);
    return -1;
  }
  return 0;
}

static int
fuzz_extents (void *handle, uint32_t count, uint64_t offset, uint32_t flags,
              struct nbdkit_extents *extents)
{
  uint64_t end = offset + count, o = offset - offset % EXTENT;

  for (; o < end; o += EXTENT)
    if (nbdkit_add_extent (extents, o, EXTENT, o / EXTENT & 3) == -1)
      return -1;
  return 0;
}

static int
fuzz_can_cache (void *handle)
{
  return NBDKIT_CACHE_NATIVE;
}

static int
fuzz_list_exports (int readonly, int is_tls, struct nbdkit_exports *exports)
{
  nbdkit_add_export (exports, "small", "a description");
  return nbdkit_use_default_export (exports);
}

static const char *
fuzz_description (void *handle)
{
  return handle == &small ? "a description" : NULL;
}

static int
fuzz_list (void *handle, const char *query, struct metacontext_list *list)
{
  if (strcmp (query, "") == 0 || g_str_has_prefix ("fuzz:a", query))
    host_table ()->list_add (list, "fuzz:a");
  return 0;
}

static int
fuzz_select (void *handle, const char *name, uint64_t *out_cookie)
{
  *out_cookie = strlen (name);
  return g_str_has_prefix (name, "fuzz:") ? 1 :
    strcmp (name, "fails") == 0 ? -1 : 0;
}

static int
fuzz_context_extents (void *handle, uint64_t cookie, uint64_t count,
                      uint64_t offset, uint32_t flags,
                      struct metacontext_extents *extents)
{
  uint64_t length = EXTENT * cookie;

  if (cookie == strlen ("fuzz:fail"))
    return -1;
  for (uint64_t done = 0; done < count; done += length)
    if (host_table ()->extent_add (extents, length,
                                   (offset + done) / length) != 1)
      break;
  return 0;
}

static const struct metacontext_plugin contexts = {
  .size = sizeof contexts, .list = fuzz_list, .select = fuzz_select,
  .extents = fuzz_context_extents,
};

static struct Backend backend = {
  .path = (char *) "fuzz",
  .contexts = &contexts,
  .thread_model = NBDKIT_THREAD_MODEL_PARALLEL,
  .all_requests = PTHREAD_MUTEX_INITIALIZER,
  .client_lock = PTHREAD_MUTEX_INITIALIZER,
  .client_left = PTHREAD_COND_INITIALIZER,
  .plugin = {
    ._api_version = 2, .name = "fuzz", .open = fuzz_open,
    .get_size = fuzz_get_size, .block_size = fuzz_block_size,
    .pread = fuzz_pread, .pwrite = fuzz_pwrite, .flush = fuzz_flush,
    .trim = fuzz_trim, .zero = fuzz_zero, .extents = fuzz_extents,
    .can_cache = fuzz_can_cache, .can_fast_zero = fuzz_can_cache,
    .list_exports = fuzz_list_exports,
    .export_description = fuzz_description,
  },
};

/* In the place of tls.c and tls-session.c: a session whose records are the data
 * themselves, so that what goes through it can be chosen. */
struct TlsSession {
  unsigned char in[4096], out[4096];
  size_t in_length, in_used, out_length;
};

static enum tls_mode mode = TLS_OFF;

enum tls_mode
tls_mode (void)
{
  return mode;
}

/* There are some; nobody looks at them. */
TlsCreds *
tls_creds (TlsKeys *keys)
{
  return (TlsCreds *) &mode;
}

void
tls_creds_unref (TlsCreds *creds)
{
}

bool
tls_creds_knows_peers (const TlsCreds *creds)
{
  return true;
}

TlsKeys *
tls_keys_new (const char *certificates, const char *psk, bool verify_peer,
              GError **error)
{
  return NULL;
}

void
tls_keys_unref (TlsKeys *keys)
{
}

bool
tls_reload (void)               /* refers to tls.c else */
{
  return true;
}

TlsSession *
tls_session_new (TlsCreds *creds)
{
  return g_new0 (TlsSession, 1);
}

void
tls_session_free (TlsSession *t)
{
  g_free (t);
}

enum tls_progress
tls_handshake (TlsSession *t, char **out_why)
{
  return TLS_DONE;
}

char *
tls_describe (const TlsSession *t)
{
  return g_strdup ("none");
}

const struct tls_peer *
tls_session_peer (const TlsSession *t)
{
  static const struct tls_peer nobody;

  return &nobody;
}

void *
tls_input (TlsSession *t, size_t *out_room)
{
  if (t->in_used != t->in_length)
    abort ();
  t->in_used = t->in_length = 0;
  *out_room = sizeof t->in;
  return t->in;
}

void
tls_input_add (TlsSession *t, size_t n)
{
  t->in_length += n;
}

ssize_t
tls_decrypt (TlsSession *t, void *buf, size_t n)
{
  n = MIN (n, t->in_length - t->in_used);
  if (n == 0)
    return -EAGAIN;
  memcpy (buf, t->in + t->in_used, n);
  t->in_used += n;
  return n;
}

bool
tls_encrypt (TlsSession *t, struct iovec **iov, int *nr)
{
  while (*nr > 0 && t->out_length < sizeof t->out) {
    size_t n = MIN ((*iov)->iov_len, sizeof t->out - t->out_length);

    memcpy (t->out + t->out_length, (*iov)->iov_base, n);
    t->out_length += n;
    iov_consume (iov, nr, n);
  }
  return true;
}

void
tls_bye (TlsSession *t)
{
}

const void *
tls_output (TlsSession *t, size_t *out_size)
{
  *out_size = t->out_length;
  return t->out;
}

void
tls_output_sent (TlsSession *t)
{
  t->out_length = 0;
}


static void
say (GByteArray *out, const void *data, size_t length)
{
  g_byte_array_append (out, data, length);
}

static void
say_option (GByteArray *out, uint32_t number, const void *data, size_t length)
{
  unsigned char header[16];

  put_be64 (header, NBD_OPTION_MAGIC);
  put_be32 (header + 8, number);
  put_be32 (header + 12, length);
  say (out, header, sizeof header);
  say (out, data, length);
}

/* SET_META_CONTEXT of that export: base:allocation and, if so, others. */
static void
say_contexts (GByteArray *out, const char *name, bool more)
{
  static const char *const queries[] = { "base:allocation", "fuzz:a",
                                         "fuzz:other" };
  g_autoptr (GByteArray) data = g_byte_array_new ();
  unsigned nr = more ? 3 : 1;
  unsigned char n[4];

  put_be32 (n, strlen (name));
  say (data, n, 4);
  say (data, name, strlen (name));
  put_be32 (n, nr);
  say (data, n, 4);
  for (unsigned i = 0; i < nr; i++) {
    put_be32 (n, strlen (queries[i]));
    say (data, n, 4);
    say (data, queries[i], strlen (queries[i]));
  }
  say_option (out, NBD_OPT_SET_META_CONTEXT, data->data, data->len);
}

/* choice: bits 0 and 1: simple, structured, extended; 2: contexts; 3: more of
 * them; 4: the small export. */
static void
negotiate (GByteArray *out, unsigned choice)
{
  static const unsigned char nothing[2];
  const char *name = choice & 16 ? "small" : "";
  g_autoptr (GByteArray) go = g_byte_array_new ();
  unsigned char n[4];

  if ((choice & 3) == 1)
    say_option (out, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
  else if (choice & 2)
    say_option (out, NBD_OPT_EXTENDED_HEADERS, NULL, 0);
  if (choice & 4)
    say_contexts (out, name, choice & 8);
  put_be32 (n, strlen (name));
  say (go, n, 4);
  say (go, name, strlen (name));
  say (go, nothing, 2);
  say_option (out, NBD_OPT_GO, go->data, go->len);
}

/* Read whatever there is; false: end of stream. */
static bool
take_replies (int fd)
{
  static char buf[1 << 16];
  ssize_t r;

  while ((r = recv (fd, buf, sizeof buf, MSG_DONTWAIT)) > 0)
    ;
  return r == -1 && (errno == EAGAIN || errno == EINTR);
}

/* Say all of it while taking replies. */
static bool
converse (int fd, const uint8_t *data, size_t size)
{
  while (size > 0) {
    struct pollfd pfd = { .fd = fd, .events = POLLIN | POLLOUT };
    ssize_t r;

    poll (&pfd, 1, -1);
    if ((pfd.revents & (POLLIN | POLLHUP | POLLERR)) && !take_replies (fd))
      return false;
    r = send (fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (r == -1 && errno != EAGAIN && errno != EINTR)
      return false;
    if (r > 0) {
      data += r;
      size -= r;
    }
  }
  return true;
}

/* Greeting, STARTTLS and its answer; the session follows. */
static bool
start_tls (int fd)
{
  g_autoptr (GByteArray) out = g_byte_array_new ();
  unsigned char answer[18 + 20], flags[4];

  put_be32 (flags, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
  say (out, flags, 4);
  say_option (out, NBD_OPT_STARTTLS, NULL, 0);
  return send (fd, out->data, out->len, MSG_NOSIGNAL) == out->len &&
    recv (fd, answer, sizeof answer, MSG_WAITALL) == sizeof answer;
}

static Terms *terms;
static enum { HANDSHAKE, CONTEXTS, TRANSMISSION, TLS } target;

static void
add_input (GByteArray *out, const uint8_t *data, size_t size)
{
  unsigned char flags[4];
  unsigned choice = 0;

  put_be32 (flags, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
  if (target == CONTEXTS || target == TRANSMISSION)
    say (out, flags, 4);
  if (target == CONTEXTS) {
    say_option (out, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    say_option (out, NBD_OPT_LIST_META_CONTEXT, data, size);
    say_option (out, NBD_OPT_SET_META_CONTEXT, data, size);
    negotiate (out, 0);
    return;
  }
  if (target != HANDSHAKE && size > 0) {
    choice = data[0];
    data++;
    size--;
  }
  if (target == TRANSMISSION || (target == TLS && !(choice & 128)))
    negotiate (out, choice);
  say (out, data, size);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  g_autoptr (GByteArray) out = g_byte_array_new ();
  struct pollfd pfd = { .events = POLLIN };
  int fds[2];

  if (socketpair (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == -1)
    abort ();
  add_input (out, data, size);
  conn_start (fds[0], 1, 0, terms);
  if (target != TLS || start_tls (fds[1]))
    converse (fds[1], out->data, out->len);
  shutdown (fds[1], SHUT_WR);
  /* The server closes its end once it is done with this client. */
  pfd.fd = fds[1];
  while (take_replies (fds[1]))
    poll (&pfd, 1, -1);
  close (fds[1]);
  if (conn_count_of_listener (1) != 0)
    abort ();
  return 0;
}

int
LLVMFuzzerInitialize (int *argc, char ***argv)
{
  static const char *const names[] = { "handshake", "contexts",
                                       "transmission", "tls" };
  struct conn_settings settings = {
    .backend = &backend, .threads = 1, .max_connections = 10,
    .mask_handshake = 65535,
  };
  const char *name = getenv ("FUZZ_TARGET");
  unsigned i = 0;

  while (i < G_N_ELEMENTS (names) && g_strcmp0 (name, names[i]) != 0)
    i++;
  if (i == G_N_ELEMENTS (names)) {
    fprintf (stderr, "FUZZ_TARGET=handshake, contexts, transmission or tls\n");
    exit (EXIT_FAILURE);
  }
  target = i;
  if (target == TLS)
    mode = TLS_ON;
  limits_set_defaults (&settings.limits);
  log_set_target ("null");
  if (!quit_init (false))
    abort ();
  terms = terms_new ();
  conn_init (&settings);
  return 0;
}
