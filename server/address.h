/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* address.h - where to listen, and on what terms: the values of --listen and,
 * of which this is a part, --metrics.
 *
 *   unix:PATH  tcp:[HOST][:PORT]  vsock:[CID]:PORT  fd:NUMBER-OR-NAME
 *
 * and behind it ,OPTION=VALUE any number of times.  Two commas stand for one in
 * a path or value.  Plain data, and no look at the system but for the names of
 * users and groups.
 */
#ifndef NBDFLEECE_ADDRESS_H
#define NBDFLEECE_ADDRESS_H

#include "access.h"

#define DEFAULT_PORT "10809"

enum address_kind { ADDRESS_UNIX, ADDRESS_TCP, ADDRESS_VSOCK, ADDRESS_FD };

struct address {
  enum address_kind kind;
  char *path;                   /* unix; of an fd: its number or name */
  int mode;                     /* unix: permissions; -1: as the umask leaves */
  uid_t owner;                  /* unix; -1: whoever we are */
  gid_t group;
  char *label;                  /* SELinux's; NULL: the default */
  char *host;                   /* tcp; NULL: all interfaces, or */
  bool loopback;                /* this machine's own addresses */
  char *port;                   /* tcp: number or service */
  int family;                   /* tcp: AF_UNSPEC, AF_INET, AF_INET6 */
  uint32_t cid;                 /* vsock; VMADDR_CID_ANY */
  uint32_t vsock_port;
  uint32_t max_connections;     /* 0: no limit of its own */
  Terms *terms;
};

/* Of that kind, all else at its default. */
struct address *address_new (enum address_kind kind);
void address_free (struct address *a);  /* NULL is fine */
typedef struct address Address;
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Address, address_free)

/* text: what follows --listen=.  Errors name the option and the value. */
Address *address_parse (const char *text, GError **error);
/* What follows --metrics=: an absolute path, HOST:PORT, or a PORT, with what
 * --listen calls unix: and tcp: left out.  Options are those of the place. */
Address *address_parse_metrics (const char *text, GError **error);

/* An octal number up to 777. */
bool address_parse_mode (const char *text, int *out);

#endif /* NBDFLEECE_ADDRESS_H */
