/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* handshake-internal.h - one option in hand; for handshake.c (framing, and what
 * is simple), handshake-info.c, handshake-meta.c, handshake-tls.c and enter.c.
 */
#ifndef NBDFLEECE_HANDSHAKE_INTERNAL_H
#define NBDFLEECE_HANDSHAKE_INTERNAL_H

#include "conn-internal.h"

enum verdict {
  NEXT,                         /* read another option */
  DONE,                         /* on to transmission */
  UPGRADE,                      /* start TLS, then read another option */
  CLOSE,
};

struct option {
  uint32_t number;
  const unsigned char *data;    /* length bytes, and a NUL behind them */
  uint32_t length;
  GByteArray *out;              /* replies, sent when the handler returns */
  int64_t deadline;
  bool told;                    /* that the server ends */
};

/* Add to the replies of the option. */
void option_reply (struct option *opt, uint32_t type, const void *data,
                   uint32_t length);
void option_ack (struct option *opt);
/* The only reply, instead of those added so far.  text: for people. */
enum verdict option_refuse (struct option *opt, uint32_t type,
                            const char *text);
/* A name in the option data; NULL: not well-formed. */
char *option_copy_name (const unsigned char *data, uint32_t length);

/* The handlers of other files. */
enum verdict on_export_name (struct conn *c, struct option *opt);
enum verdict on_info_or_go (struct conn *c, struct option *opt);
enum verdict on_list_meta_context (struct conn *c, struct option *opt);
enum verdict on_set_meta_context (struct conn *c, struct option *opt);
enum verdict on_starttls (struct conn *c, struct option *opt);

/* handshake-tls.c.  The client may have this option only after STARTTLS. */
bool option_needs_tls (const struct conn *c, const struct option *opt);
/* The answer to STARTTLS is out: from here on everything goes through TLS.
 * false: it has failed, which was reported. */
bool conn_start_tls (struct conn *c, int64_t deadline);

/* enter.c.  The canonical name; NULL: there is no such export. */
char *conn_resolve (struct conn *c, const char *name);
/* The selected handle if it is of that export, else another one that ends with
 * the option; NULL: refused.  Where only one handle may be open, the selected
 * one has to make way; GO opens it again. */
Handle *conn_find_or_probe (struct conn *c, const char *name);
void conn_close_handle (struct conn *c, Handle **where);

#endif /* NBDFLEECE_HANDSHAKE_INTERNAL_H */
