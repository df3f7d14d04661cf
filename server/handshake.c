/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* handshake.c - from the greeting to NBD_OPT_GO: one handler per option.
 *
 * The length in an option's header alone decides where the next one starts:
 * the data are read as a whole before the handler looks at them.
 */
#include <config.h>

#include <string.h>

#include "bytes.h"
#include "conn-internal.h"
#include "context.h"
#include "exports.h"
#include "log.h"
#include "nbd-wire.h"

/* Honest options need a few KiB.  Longer ones are skipped, not stored. */
#define MAX_OPTION_DATA 65536
/* LIST and then INFO for each of very many exports fits. */
#define MAX_OPTIONS     100000

enum verdict {
  NEXT,                         /* read another option */
  DONE,                         /* on to transmission */
  CLOSE,
};

struct option {
  uint32_t number;
  const unsigned char *data;    /* length bytes, and a NUL behind them */
  uint32_t length;
  GByteArray *out;              /* replies, sent when the handler returns */
  int64_t deadline;
};

static void
add_reply (struct option *opt, uint32_t type, const void *data,
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

static void
add_ack (struct option *opt)
{
  add_reply (opt, NBD_REP_ACK, "", 0);
}

/* text: for people. */
static enum verdict
refuse (struct option *opt, uint32_t type, const char *text)
{
  log_debug ("option %u refused: %s", opt->number, text);
  g_byte_array_set_size (opt->out, 0);
  add_reply (opt, type, text, strlen (text));
  return NEXT;
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

/* Store a handle where other threads may look it up. */
static void
set_handle (struct conn *c, Handle **where, Handle *h)
{
  pthread_mutex_lock (&c->lock);
  *where = h;
  pthread_mutex_unlock (&c->lock);
}

static void
close_handle (struct conn *c, Handle **where)
{
  Handle *h = *where;

  set_handle (c, where, NULL);
  handle_close (h);
}

/* The canonical name; NULL: there is no such export. */
static char *
resolve (struct conn *c, const char *name)
{
  return *name ? g_strdup (name) :
    backend_default_export (c->b, c->settings->readonly, conn_is_tls (c));
}

static Handle *
open_handle (struct conn *c, Handle **where, const char *name)
{
  Handle *h = handle_open (c->b, name, c->settings->readonly,
                           conn_is_tls (c));

  if (h != NULL)
    set_handle (c, where, h);
  return h;
}

/* Select again, after the handle had to be closed meanwhile. */
static bool
select_again (struct conn *c)
{
  for (size_t i = 0; i < metactx_set_count (c->contexts); i++) {
    struct metactx *ctx = metactx_set_get (c->contexts, i);

    if (!ctx->is_base &&
        handle_context_select (c->handle, ctx->name, &ctx->cookie) != 1)
      return false;
  }
  return true;
}

static bool
contexts_are_for (const struct conn *c, const char *name)
{
  return c->contexts != NULL &&
    strcmp (metactx_set_export (c->contexts), name) == 0;
}

/* The selected handle if it is of that export, else another one that ends with
 * the option; NULL: refused.  Where only one handle may be open, the selected
 * one has to make way; GO opens it again. */
static Handle *
find_or_probe (struct conn *c, const char *name)
{
  if (c->handle && strcmp (handle_name (c->handle), name) == 0) {
    handle_use (c->handle);
    return c->handle;
  }
  if (c->handle && backend_is_exclusive (c->b))
    close_handle (c, &c->handle);
  return open_handle (c, &c->probe, name);
}

/* GO and EXPORT_NAME: after this, c->handle is of that export, and contexts
 * chosen for another one are void. */
static bool
enter_export (struct conn *c, const char *name)
{
  Handle *h;

  if (c->handle && strcmp (handle_name (c->handle), name) == 0) {
    handle_use (c->handle);     /* not so after INFO of another export */
    return true;
  }
  if (c->handle && backend_is_exclusive (c->b))
    close_handle (c, &c->handle);
  h = open_handle (c, &c->probe, name);
  if (h == NULL)
    return false;
  close_handle (c, &c->handle);
  set_handle (c, &c->handle, h);
  set_handle (c, &c->probe, NULL);
  handle_use (h);
  if (!contexts_are_for (c, name))
    g_clear_pointer (&c->contexts, metactx_set_free);
  else if (!select_again (c)) {
    log_error ("a metadata context of export '%.128s' is no longer there",
               name);
    close_handle (c, &c->handle);
    return false;
  }
  return true;
}

bool
conn_enter_again (struct conn *c, const char *name)
{
  return enter_export (c, name);
}

static uint16_t
transmission_flags (const struct conn *c, const Handle *h)
{
  uint16_t flags = handle_info (h)->flags;

  if (c->mode != REPLY_SIMPLE)
    flags |= NBD_FLAG_SEND_DF;
  return flags;
}

/* A name in the option data at pos; NULL: not well-formed. */
static char *
copy_name (const unsigned char *data, uint32_t length)
{
  if (length > NBD_MAX_STRING || memchr (data, 0, length))
    return NULL;
  return g_strndup ((const char *) data, length);
}

static enum verdict
on_export_name (struct conn *c, struct option *opt)
{
  g_autofree char *asked = copy_name (opt->data, opt->length);
  g_autofree char *name = asked ? resolve (c, asked) : NULL;
  unsigned char reply[8 + 2 + 124] = { 0 };

  /* There is no error reply to this option. */
  if (name == NULL || !enter_export (c, name))
    return CLOSE;
  put_be64 (reply, handle_info (c->handle)->size);
  put_be16 (reply + 8, transmission_flags (c, c->handle));
  g_byte_array_append (opt->out, reply, c->no_zeroes ? 10 : sizeof reply);
  return DONE;
}

static enum verdict
on_abort (struct conn *c, struct option *opt)
{
  add_ack (opt);
  return CLOSE;
}

static enum verdict
on_list (struct conn *c, struct option *opt)
{
  struct nbdkit_exports *exports =
    backend_list_exports (c->b, c->settings->readonly, conn_is_tls (c));

  if (exports == NULL)
    return refuse (opt, NBD_REP_ERR_INVALID, "the exports cannot be listed");
  for (size_t i = 0; i < exports_count (exports); i++) {
    const struct export_entry *e = exports_get (exports, i);
    size_t name_length = strlen (e->name);
    size_t length = e->description ? strlen (e->description) : 0;
    g_autofree unsigned char *data = g_malloc (4 + name_length + length);

    put_be32 (data, name_length);
    memcpy (data + 4, e->name, name_length);
    if (length > 0)
      memcpy (data + 4 + name_length, e->description, length);
    add_reply (opt, NBD_REP_SERVER, data, 4 + name_length + length);
  }
  nbdkit_exports_free (exports);
  add_ack (opt);
  return NEXT;
}

static void
add_info_string (struct option *opt, uint16_t type, const char *str)
{
  size_t length = strlen (str);
  g_autofree unsigned char *data = g_malloc (2 + length);

  put_be16 (data, type);
  memcpy (data + 2, str, length);
  add_reply (opt, NBD_REP_INFO, data, 2 + length);
}

static void
add_infos (struct conn *c, struct option *opt, Handle *h, uint32_t wanted)
{
  const struct export_info *info = handle_info (h);
  unsigned char data[14];

  put_be16 (data, NBD_INFO_EXPORT);
  put_be64 (data + 2, info->size);
  put_be16 (data + 10, transmission_flags (c, h));
  add_reply (opt, NBD_REP_INFO, data, 12);

  if (wanted & (1 << NBD_INFO_NAME))
    add_info_string (opt, NBD_INFO_NAME, handle_name (h));
  if (wanted & (1 << NBD_INFO_DESCRIPTION)) {
    g_autofree char *text = handle_description (h);

    if (text != NULL)
      add_info_string (opt, NBD_INFO_DESCRIPTION, text);
  }
  if (wanted & (1 << NBD_INFO_BLOCK_SIZE)) {
    put_be16 (data, NBD_INFO_BLOCK_SIZE);
    put_be32 (data + 2, info->block.min);
    put_be32 (data + 6, info->block.preferred);
    put_be32 (data + 10, info->block.max);
    add_reply (opt, NBD_REP_INFO, data, 14);
  }
}

static enum verdict
on_info_or_go (struct conn *c, struct option *opt)
{
  bool go = opt->number == NBD_OPT_GO;
  g_autofree char *asked = NULL, *name = NULL;
  uint32_t name_length, wanted = 0;
  uint16_t nr;
  Handle *h;

  if (opt->length < 6)
    return refuse (opt, NBD_REP_ERR_INVALID, "option is too short");
  name_length = get_be32 (opt->data);
  if (name_length > opt->length - 6)
    return refuse (opt, NBD_REP_ERR_INVALID,
                   "export name reaches past the option");
  asked = copy_name (opt->data + 4, name_length);
  if (asked == NULL)
    return refuse (opt, NBD_REP_ERR_INVALID, "export name is not valid");
  nr = get_be16 (opt->data + 4 + name_length);
  if (opt->length - 6 - name_length != nr * 2u)
    return refuse (opt, NBD_REP_ERR_INVALID,
                   "number of information requests does not match");
  for (uint32_t i = 0; i < nr; i++) {
    uint16_t type = get_be16 (opt->data + 6 + name_length + 2 * i);

    if (type < 32)
      wanted |= UINT32_C (1) << type;
  }

  name = resolve (c, asked);
  h = name == NULL ? NULL :
    go ? (enter_export (c, name) ? c->handle : NULL) : find_or_probe (c, name);
  if (h == NULL)
    return refuse (opt, NBD_REP_ERR_UNKNOWN, "no such export");
  add_infos (c, opt, h, wanted);
  if (c->probe)
    close_handle (c, &c->probe);
  add_ack (opt);
  return go ? DONE : NEXT;
}

static enum verdict
on_structured_reply (struct conn *c, struct option *opt)
{
  if (c->settings->no_structured_replies)
    return refuse (opt, NBD_REP_ERR_UNSUP, "structured replies are disabled");
  c->mode = REPLY_STRUCTURED;
  add_ack (opt);
  return NEXT;
}

static void
add_context_reply (struct option *opt, uint32_t id, const char *name)
{
  size_t length = strlen (name);
  g_autofree unsigned char *data = g_malloc (4 + length);

  put_be32 (data, id);
  memcpy (data + 4, name, length);
  add_reply (opt, NBD_REP_META_CONTEXT, data, 4 + length);
}

/* All names that a query finds, without repeating any. */
static bool
list_contexts (Handle *h, const char *query, GPtrArray *names)
{
  guint first = names->len;

  if (*query == '\0' || strcmp (query, "base:") == 0 ||
      strcmp (query, METACTX_BASE_ALLOCATION) == 0)
    g_ptr_array_add (names, g_strdup (METACTX_BASE_ALLOCATION));
  if (!g_str_has_prefix (query, "base:") &&
      !handle_context_list (h, query, names, METACTX_MAX_QUERIES))
    return false;
  for (guint i = first; i < names->len;) {
    guint j = 0;

    while (j < i && strcmp (g_ptr_array_index (names, j),
                            g_ptr_array_index (names, i)) != 0)
      j++;
    if (j < i)
      g_ptr_array_remove_index (names, i);
    else
      i++;
  }
  return true;
}

static enum verdict
on_list_meta_context (struct conn *c, struct option *opt)
{
  struct metactx_queries q;
  uint32_t error = metactx_queries_parse (opt->data, opt->length, &q);
  g_autofree char *name = NULL;
  GPtrArray *names;
  Handle *h;
  bool ok = true;

  if (error)
    return refuse (opt, error, "malformed list of metadata contexts");
  name = resolve (c, q.export_name);
  h = name ? find_or_probe (c, name) : NULL;
  if (h == NULL) {
    metactx_queries_clear (&q);
    return refuse (opt, NBD_REP_ERR_UNKNOWN, "no such export");
  }
  names = g_ptr_array_new_with_free_func (g_free);
  if (q.queries->len == 0)
    ok = list_contexts (h, "", names);
  /* An empty query is a name that nothing has; only no query means all. */
  for (guint i = 0; i < q.queries->len && ok; i++)
    if (*(char *) g_ptr_array_index (q.queries, i))
      ok = list_contexts (h, g_ptr_array_index (q.queries, i), names);
  for (guint i = 0; i < names->len; i++)
    add_context_reply (opt, 0, g_ptr_array_index (names, i));
  g_ptr_array_free (names, TRUE);
  metactx_queries_clear (&q);
  if (c->probe)
    close_handle (c, &c->probe);
  if (!ok)
    return refuse (opt, NBD_REP_ERR_INVALID,
                   "the metadata contexts cannot be listed");
  add_ack (opt);
  return NEXT;
}

/* 0, or an NBD_REP_ERR_*. */
static uint32_t
select_context (struct conn *c, MetaCtxSet *set, const char *query)
{
  bool is_base = strcmp (query, METACTX_BASE_ALLOCATION) == 0;
  struct metactx *ctx;
  uint64_t cookie = 0;
  int r;

  if (metactx_is_wildcard (query) || metactx_set_has (set, query) ||
      (!is_base && g_str_has_prefix (query, "base:")))
    return 0;
  r = is_base ? 1 : handle_context_select (c->handle, query, &cookie);
  if (r == -1)
    return NBD_REP_ERR_INVALID;
  if (r == 0)
    return 0;
  if (metactx_set_count (set) == METACTX_MAX_SELECTED)
    return NBD_REP_ERR_TOO_BIG;
  ctx = metactx_set_add (set, query);
  ctx->is_base = is_base;
  ctx->cookie = cookie;
  return 0;
}

/* What was selected before is void from the start, also when this fails. */
static enum verdict
on_set_meta_context (struct conn *c, struct option *opt)
{
  struct metactx_queries q;
  g_autoptr (MetaCtxSet) set = NULL;
  g_autofree char *name = NULL;
  uint32_t error;

  if (c->contexts != NULL && c->handle != NULL)
    handle_context_deselect_all (c->handle);
  g_clear_pointer (&c->contexts, metactx_set_free);
  if (c->mode == REPLY_SIMPLE)
    return refuse (opt, NBD_REP_ERR_INVALID,
                   "structured replies have to be negotiated first");
  error = metactx_queries_parse (opt->data, opt->length, &q);
  if (error)
    return refuse (opt, error, "malformed list of metadata contexts");

  name = resolve (c, q.export_name);
  if (name == NULL || !enter_export (c, name)) {
    metactx_queries_clear (&q);
    return refuse (opt, NBD_REP_ERR_UNKNOWN, "no such export");
  }
  set = metactx_set_new (name);
  for (guint i = 0; i < q.queries->len && error == 0; i++)
    error = select_context (c, set, g_ptr_array_index (q.queries, i));
  metactx_queries_clear (&q);
  if (error) {
    handle_context_deselect_all (c->handle);
    return refuse (opt, error, error == NBD_REP_ERR_TOO_BIG ?
                   "too many metadata contexts" :
                   "the metadata contexts cannot be selected");
  }
  for (size_t i = 0; i < metactx_set_count (set); i++) {
    const struct metactx *ctx = metactx_set_get (set, i);

    add_context_reply (opt, ctx->id, ctx->name);
  }
  c->contexts = g_steal_pointer (&set);
  add_ack (opt);
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
  { NBD_OPT_INFO, "INFO", true, on_info_or_go },
  { NBD_OPT_GO, "GO", true, on_info_or_go },
  { NBD_OPT_STRUCTURED_REPLY, "STRUCTURED_REPLY", false,
    on_structured_reply },
  { NBD_OPT_LIST_META_CONTEXT, "LIST_META_CONTEXT", true,
    on_list_meta_context },
  { NBD_OPT_SET_META_CONTEXT, "SET_META_CONTEXT", true, on_set_meta_context },
};

static enum verdict
handle_option (struct conn *c, struct option *opt)
{
  for (size_t i = 0; i < G_N_ELEMENTS (handlers); i++) {
    if (handlers[i].number != opt->number)
      continue;
    log_debug ("option NBD_OPT_%s, %u bytes", handlers[i].name, opt->length);
    if (atomic_load (&c->closing) && opt->number == NBD_OPT_EXPORT_NAME)
      return CLOSE;
    if (atomic_load (&c->closing) && opt->number != NBD_OPT_ABORT)
      return refuse (opt, NBD_REP_ERR_SHUTDOWN, "the server is shutting down");
    if (!handlers[i].takes_data && opt->length > 0)
      return refuse (opt, NBD_REP_ERR_INVALID, "option takes no data");
    return handlers[i].handle (c, opt);
  }
  return refuse (opt, NBD_REP_ERR_UNSUP, "unknown option");
}

/* Read the data of an option and answer it. */
static enum verdict
option_round (struct conn *c, struct option *opt)
{
  unsigned char *data = NULL;
  enum verdict verdict;

  if (opt->length > MAX_OPTION_DATA) {
    if (opt->number == NBD_OPT_EXPORT_NAME ||
        !skip (c, opt->length, opt->deadline))
      return CLOSE;
    return refuse (opt, NBD_REP_ERR_TOO_BIG, "option data is too long");
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
  for (unsigned n = 0; verdict == NEXT && n < MAX_OPTIONS; n++) {
    if (!conn_recv (c, header, sizeof header, opt.deadline) ||
        get_be64 (header) != NBD_OPTION_MAGIC)
      break;
    opt.number = get_be32 (header + 8);
    opt.length = get_be32 (header + 12);
    if (!fixed && opt.number != NBD_OPT_EXPORT_NAME)
      break;                    /* such a client understands no refusal */
    g_byte_array_set_size (opt.out, 0);
    verdict = option_round (c, &opt);
    if (opt.out->len > 0 &&
        !send_bytes (c, opt.out->data, opt.out->len, opt.deadline))
      verdict = CLOSE;
  }
  g_byte_array_free (opt.out, TRUE);
  return verdict == DONE;
}
