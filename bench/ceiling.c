/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ceiling.c - the least that an NBD server can do.
 *
 * One thread, one connection at a time, data in memory, requests parsed from a
 * big receive buffer, replies gathered into one sendmsg.  What a client reaches
 * against it is the ceiling that the client and the socket set on this machine;
 * a real server's figure is judged against it.
 *
 * It trusts its client: for benchmarks on this machine only.
 *
 * Usage: ceiling SOCKET MEBIBYTES
 */
#include <endian.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

/* The NBD protocol's numbers, as in its specification. */
#define MAGIC_SERVER UINT64_C (0x4e42444d41474943)
#define MAGIC_OPTION UINT64_C (0x49484156454f5054)
#define MAGIC_OPTION_REPLY UINT64_C (0x3e889045565a9)
#define MAGIC_REPLY UINT32_C (0x67446698)
#define GFLAGS 3                /* fixed newstyle, no zeroes */
#define EFLAGS (1 | 4 | 256)    /* flags, flush, multi-conn */
#define CMD_READ 0
#define CMD_WRITE 1
#define CMD_DISC 2

#define MAX_REPLIES 255         /* of one sendmsg: two iovecs each */

struct request {
  uint32_t magic;
  uint16_t flags, type;
  uint64_t cookie, offset;
  uint32_t length;
} __attribute__((packed));

struct reply {
  uint32_t magic, error;
  uint64_t cookie;
} __attribute__((packed));

static uint64_t size;
static char *disk;

static bool
recv_full (int s, void *buf, size_t n)
{
  for (char *p = buf; n > 0; ) {
    ssize_t r = recv (s, p, n, 0);

    if (r <= 0)
      return false;
    p += r;
    n -= r;
  }
  return true;
}

static bool
send_small (int s, const void *buf, size_t n)
{
  return send (s, buf, n, MSG_NOSIGNAL) == (ssize_t) n;
}

static bool
reply_option (int s, uint32_t option, uint32_t type,
              const void *data, uint32_t n)
{
  struct {
    uint64_t magic;
    uint32_t option, type, length;
  } __attribute__((packed)) h = {
    htobe64 (MAGIC_OPTION_REPLY), htobe32 (option), htobe32 (type), htobe32 (n)
  };

  return send_small (s, &h, sizeof h) && (n == 0 || send_small (s, data, n));
}

static bool
handshake (int s)
{
  struct {
    uint64_t magic, option_magic;
    uint16_t flags;
  } __attribute__((packed)) greeting = {
    htobe64 (MAGIC_SERVER), htobe64 (MAGIC_OPTION), htobe16 (GFLAGS)
  };
  struct {
    uint16_t type;
    uint64_t size;
    uint16_t flags;
  } __attribute__((packed)) info = { 0, htobe64 (size), htobe16 (EFLAGS) };
  uint32_t client_flags;

  if (!send_small (s, &greeting, sizeof greeting) ||
      !recv_full (s, &client_flags, sizeof client_flags))
    return false;
  for (;;) {
    struct {
      uint64_t magic;
      uint32_t option, length;
    } __attribute__((packed)) h;
    char data[65536];
    uint32_t option, length;

    if (!recv_full (s, &h, sizeof h))
      return false;
    option = be32toh (h.option);
    length = be32toh (h.length);
    if (length > sizeof data || !recv_full (s, data, length))
      return false;
    switch (option) {
    case 6:                     /* INFO */
    case 7:                     /* GO */
      if (!reply_option (s, option, 3, &info, sizeof info) ||
          !reply_option (s, option, 1, NULL, 0))
        return false;
      if (option == 7)
        return true;
      break;
    case 2:                     /* ABORT */
      reply_option (s, option, 1, NULL, 0);
      return false;
    default:                    /* unsupported */
      if (!reply_option (s, option, UINT32_C (0x80000001), NULL, 0))
        return false;
    }
  }
}

static bool
send_all (int s, struct iovec *iov, int n)
{
  struct msghdr m = { .msg_iov = iov, .msg_iovlen = n };

  while (m.msg_iovlen > 0) {
    ssize_t w = sendmsg (s, &m, MSG_NOSIGNAL);

    if (w < 0)
      return false;
    while (m.msg_iovlen > 0 && (size_t) w >= m.msg_iov->iov_len) {
      w -= m.msg_iov->iov_len;
      m.msg_iov++;
      m.msg_iovlen--;
    }
    if (m.msg_iovlen > 0) {
      m.msg_iov->iov_base = (char *) m.msg_iov->iov_base + w;
      m.msg_iov->iov_len -= w;
    }
  }
  return true;
}

static void
serve (int s)
{
  static char in[4 << 20];
  static struct reply replies[MAX_REPLIES];
  static struct iovec iov[2 * MAX_REPLIES];
  size_t have = 0;

  if (!handshake (s))
    return;
  for (;;) {
    ssize_t r = recv (s, in + have, sizeof in - have, 0);
    size_t pos = 0;
    int nr = 0, nr_iov = 0;

    if (r <= 0)
      return;
    have += r;
    while (have - pos >= sizeof (struct request) && nr < MAX_REPLIES) {
      const struct request *q = (const void *) (in + pos);
      uint16_t type = be16toh (q->type);
      uint32_t length = be32toh (q->length);
      uint64_t offset = be64toh (q->offset);
      size_t need = sizeof *q + (type == CMD_WRITE ? length : 0);

      if (type == CMD_DISC)
        return;
      if (need > sizeof in ||
          (type <= CMD_WRITE && (length > size || offset > size - length))) {
        fprintf (stderr, "ceiling: request out of bounds\n");
        return;
      }
      if (have - pos < need)
        break;
      if (type == CMD_WRITE)
        memcpy (disk + offset, q + 1, length);
      replies[nr] = (struct reply) { htobe32 (MAGIC_REPLY), 0, q->cookie };
      iov[nr_iov++] = (struct iovec) { &replies[nr++], sizeof *replies };
      if (type == CMD_READ)
        iov[nr_iov++] = (struct iovec) { disk + offset, length };
      pos += need;
    }
    memmove (in, in + pos, have - pos);
    have -= pos;
    if (!send_all (s, iov, nr_iov))
      return;
  }
}

int
main (int argc, char *argv[])
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  int listener;

  if (argc != 3 || strlen (argv[1]) >= sizeof addr.sun_path) {
    fprintf (stderr, "Usage: ceiling SOCKET MEBIBYTES\n");
    return 1;
  }
  size = strtoull (argv[2], NULL, 10) << 20;
  disk = mmap (NULL, size, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_POPULATE,
               -1, 0);
  if (disk == MAP_FAILED) {
    perror ("ceiling: mmap");
    return 1;
  }
  strcpy (addr.sun_path, argv[1]);
  unlink (argv[1]);
  listener = socket (AF_UNIX, SOCK_STREAM, 0);
  if (listener == -1 ||
      bind (listener, (struct sockaddr *) &addr, sizeof addr) == -1 ||
      listen (listener, 5) == -1) {
    perror (argv[1]);
    return 1;
  }
  for (;;) {
    int s = accept (listener, NULL, NULL);

    if (s == -1)
      continue;
    serve (s);
    close (s);
  }
}
