/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* handshake.c - from the greeting to NBD_OPT_GO: one handler per option.
 *
 * The length in an option's header alone decides where the next one starts:
 * the data are read as a whole before the handler looks at them.
 */
#include <config.h>

#include <string.h>

#include "bytes.h"
#include "exports.h"
#include "handshake-internal.h"
#include "log.h"
#include "nbd-wire.h"

void
option_reply (struct option *opt, uint32_t type, const void *data,
              uint32_t length)
{
  unsigned char header[20];

  put_be64 (header, NBD_REP_MAGIC);
  put_be32 (header + 8, opt->number);
  put_be32 (header + 12, type);
  put_be32 (header + 16, length);
  g_byte_array_append (opt->out, header, sizeof header);
  g_byte_array_append (opt->out, data, length);
}

void
option_ack (struct option *opt)
{
  option_reply (opt, NBD_REP_ACK, "", 0);
}

enum verdict
option_refuse (struct option *opt, uint32_t type, const char *text)
{
  log_debug ("option %u refused: %s", opt->number, text);
  g_byte_array_set_size (opt->out, 0);
  option_reply (opt, type, text, strlen (text));
  return NEXT;
}

char *
option_copy_name (const unsigned char *data, uint32_t length)
{
  return bytes_are_string (data, length) ?
    g_strndup ((const char *) data, length) : NULL;
}

static bool
send_bytes (struct conn *c, void *data, size_t length, int64_t deadline)
{
  struct iovec iov = { .iov_base = data, .iov_len = length };

  return conn_send (c, &iov, 1, deadline);
}

static bool
skip (struct conn *c, uint64_t length, int64_t deadline)
{
  unsigned char buf[4096];

  while (length > 0) {
    size_t n = MIN (length, sizeof buf);

    if (!conn_recv (c, buf, n, deadline))
      return false;
    length -= n;
  }
  return true;
}

static enum verdict
on_abort (struct conn *c, struct option *opt)
{
  option_ack (opt);
  return CLOSE;
}

static enum verdict
on_list (struct conn *c, struct option *opt)
{
  struct nbdkit_exports *exports =
    backend_list_exports (c->b, conn_is_readonly (c), conn_is_tls (c));

  if (exports == NULL)
    return option_refuse (opt, NBD_REP_ERR_INVALID,
                          "the exports cannot be listed");
  for (size_t i = 0; i < exports_count (exports); i++) {
    const struct export_entry *e = exports_get (exports, i);
    size_t name_length = strlen (e->name);
    size_t length = e->description ? strlen (e->description) : 0;
    g_autofree unsigned char *data = NULL;

    if (!conn_may_list (c, e->name))
      continue;
    data = g_malloc (4 + name_length + length);
    put_be32 (data, name_length);
    memcpy (data + 4, e->name, name_length);
    if (length > 0)
      memcpy (data + 4 + name_length, e->description, length);
    option_reply (opt, NBD_REP_SERVER, data, 4 + name_length + length);
  }
  nbdkit_exports_free (exports);
  option_ack (opt);
  return NEXT;
}

static enum verdict
on_structured_reply (struct conn *c, struct option *opt)
{
  if (c->mode == REPLY_EXTENDED)
    return option_refuse (opt, NBD_REP_ERR_EXT_HEADER_REQD,
                          "extended headers have been negotiated");
  if (c->settings->no_structured_replies)
    return option_refuse (opt, NBD_REP_ERR_UNSUP,
                          "structured replies are disabled");
  c->mode = REPLY_STRUCTURED;
  option_ack (opt);
  return NEXT;
}

/* With or without structured replies before. */
static enum verdict
on_extended_headers (struct conn *c, struct option *opt)
{
  if (c->settings->no_structured_replies)
    return option_refuse (opt, NBD_REP_ERR_UNSUP,
                          "structured replies are disabled");
  c->mode = REPLY_EXTENDED;
  option_ack (opt);
  return NEXT;
}

static const struct option_handler {
  uint32_t number;
  const char *name;
  bool takes_data;
  enum verdict (*handle) (struct conn *c, struct option *opt);
} handlers[] = {
  { NBD_OPT_EXPORT_NAME, "EXPORT_NAME", true, on_export_name },
  { NBD_OPT_ABORT, "ABORT", true, on_abort },
  { NBD_OPT_LIST, "LIST", false, on_list },
  { NBD_OPT_STARTTLS, "STARTTLS", true, on_starttls },
  { NBD_OPT_INFO, "INFO", true, on_info_or_go },
  { NBD_OPT_GO, "GO", true, on_info_or_go },
  { NBD_OPT_STRUCTURED_REPLY, "STRUCTURED_REPLY", false,
    on_structured_reply },
  { NBD_OPT_LIST_META_CONTEXT, "LIST_META_CONTEXT", true,
    on_list_meta_context },
  { NBD_OPT_SET_META_CONTEXT, "SET_META_CONTEXT", true, on_set_meta_context },
  { NBD_OPT_EXTENDED_HEADERS, "EXTENDED_HEADERS", false,
    on_extended_headers },
};

/* The server ends.  The first to be told so has a moment left: in it an ABORT
 * is answered, as is what was sent before the client knew. */
static enum verdict
refuse_shutdown (struct option *opt)
{
  int64_t leave = conn_now_ns () + CONN_SEE_OFF_NS;

  if (!opt->told && (opt->deadline == 0 || opt->deadline > leave))
    opt->deadline = leave;
  opt->told = true;
  return option_refuse (opt, NBD_REP_ERR_SHUTDOWN,
                        "the server is shutting down");
}

static enum verdict
handle_option (struct conn *c, struct option *opt)
{
  if (option_needs_tls (c, opt))
    return opt->number == NBD_OPT_EXPORT_NAME ? CLOSE :
      option_refuse (opt, NBD_REP_ERR_TLS_REQD, "TLS has to be started first");
  if (atomic_load (&c->closing) && opt->number != NBD_OPT_ABORT)
    return opt->number == NBD_OPT_EXPORT_NAME ? CLOSE : refuse_shutdown (opt);
  for (size_t i = 0; i < G_N_ELEMENTS (handlers); i++) {
    if (handlers[i].number != opt->number)
      continue;
    log_debug ("option NBD_OPT_%s, %u bytes", handlers[i].name, opt->length);
    if (!handlers[i].takes_data && opt->length > 0)
      return option_refuse (opt, NBD_REP_ERR_INVALID, "option takes no data");
    return handlers[i].handle (c, opt);
  }
  return option_refuse (opt, NBD_REP_ERR_UNSUP, "unknown option");
}

/* Read the data of an option and answer it. */
static enum verdict
option_round (struct conn *c, struct option *opt)
{
  unsigned char *data = NULL;
  enum verdict verdict;

  if (opt->length > c->settings->limits.option_size) {
    limit_count (LIMIT_OPTION_SIZE);    /* skipped, not stored */
    if (opt->number == NBD_OPT_EXPORT_NAME ||
        !skip (c, opt->length, opt->deadline))
      return CLOSE;
    return option_refuse (opt, NBD_REP_ERR_TOO_BIG, "option data is too long");
  }
  data = g_malloc (opt->length + 1);
  if (conn_recv (c, data, opt->length, opt->deadline)) {
    data[opt->length] = '\0';
    opt->data = data;
    verdict = handle_option (c, opt);
  }
  else
    verdict = CLOSE;
  g_free (data);
  return verdict;
}

/* false: close. */
static bool
greet (struct conn *c, bool *out_fixed, int64_t deadline)
{
  uint16_t offered = (NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES) &
    c->settings->mask_handshake;
  unsigned char greeting[18], answer[4];
  uint32_t flags;

  put_be64 (greeting, NBD_MAGIC);
  put_be64 (greeting + 8, NBD_OPTION_MAGIC);
  put_be16 (greeting + 16, offered);
  if (!send_bytes (c, greeting, sizeof greeting, deadline) ||
      !conn_recv (c, answer, sizeof answer, deadline))
    return false;
  flags = get_be32 (answer);
  if (flags & ~(uint32_t) offered) {
    log_debug ("client flags 0x%x were not offered", flags);
    return false;
  }
  c->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
  *out_fixed = flags & NBD_FLAG_FIXED_NEWSTYLE;
  return true;
}

bool
conn_handshake (struct conn *c)
{
  struct option opt = { 0 };
  enum verdict verdict = NEXT;
  unsigned char header[16];
  bool fixed;

  if (c->settings->handshake_timeout > 0)
    opt.deadline = conn_now_ns () +
      c->settings->handshake_timeout * INT64_C (1000000000);
  if (!greet (c, &fixed, opt.deadline))
    return false;
  opt.out = g_byte_array_new ();
  for (uint64_t n = 0; verdict == NEXT; n++) {
    if (!conn_recv (c, header, sizeof header, opt.deadline) ||
        get_be64 (header) != NBD_OPTION_MAGIC)
      break;
    if (n >= c->settings->limits.options) {
      limit_enforced (c, LIMIT_OPTIONS, "client dropped: %" G_GUINT64_FORMAT
                      " options, and no export chosen", n);
      break;
    }
    opt.number = get_be32 (header + 8);
    opt.length = get_be32 (header + 12);
    if (!fixed && opt.number != NBD_OPT_EXPORT_NAME)
      break;                    /* such a client understands no refusal */
    g_byte_array_set_size (opt.out, 0);
    verdict = option_round (c, &opt);
    if (opt.out->len > 0 &&
        !send_bytes (c, opt.out->data, opt.out->len, opt.deadline))
      verdict = CLOSE;
    if (verdict == UPGRADE)
      verdict = conn_start_tls (c, opt.deadline) ? NEXT : CLOSE;
  }
  g_byte_array_free (opt.out, TRUE);
  return verdict == DONE;
}
