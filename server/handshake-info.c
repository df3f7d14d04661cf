/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* handshake-info.c - the options that tell about an export and enter it. */
#include <config.h>

#include <string.h>

#include "bytes.h"
#include "handshake-internal.h"
#include "nbd-wire.h"

static uint16_t
transmission_flags (const struct conn *c, const Handle *h)
{
  uint16_t flags = handle_info (h)->flags;

  if (c->mode != REPLY_SIMPLE)
    flags |= NBD_FLAG_SEND_DF;
  if (c->mode == REPLY_EXTENDED && metactx_set_count (c->contexts) > 0 &&
      strcmp (metactx_set_export (c->contexts), handle_name (h)) == 0)
    flags |= NBD_FLAG_BLOCK_STATUS_PAYLOAD;
  return flags;
}

enum verdict
on_export_name (struct conn *c, struct option *opt)
{
  g_autofree char *asked = option_copy_name (opt->data, opt->length);
  g_autofree char *name = asked ? conn_resolve (c, asked) : NULL;
  unsigned char reply[8 + 2 + 124] = { 0 };

  /* There is no error reply to this option.  Its own reply is not allowed after
   * extended headers. */
  if (c->mode == REPLY_EXTENDED || name == NULL || !conn_enter_export (c, name))
    return CLOSE;
  put_be64 (reply, handle_info (c->handle)->size);
  put_be16 (reply + 8, transmission_flags (c, c->handle));
  g_byte_array_append (opt->out, reply, c->no_zeroes ? 10 : sizeof reply);
  return DONE;
}

static void
add_info_string (struct option *opt, uint16_t type, const char *str)
{
  size_t length = strlen (str);
  g_autofree unsigned char *data = g_malloc (2 + length);

  put_be16 (data, type);
  memcpy (data + 2, str, length);
  option_reply (opt, NBD_REP_INFO, data, 2 + length);
}

static void
add_infos (struct conn *c, struct option *opt, Handle *h, uint32_t wanted)
{
  const struct export_info *info = handle_info (h);
  unsigned char data[14];

  put_be16 (data, NBD_INFO_EXPORT);
  put_be64 (data + 2, info->size);
  put_be16 (data + 10, transmission_flags (c, h));
  option_reply (opt, NBD_REP_INFO, data, 12);

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
    option_reply (opt, NBD_REP_INFO, data, 14);
  }
}

enum verdict
on_info_or_go (struct conn *c, struct option *opt)
{
  bool go = opt->number == NBD_OPT_GO;
  g_autofree char *asked = NULL, *name = NULL;
  uint32_t name_length, wanted = 0;
  uint16_t nr;
  Handle *h;

  if (opt->length < 6)
    return option_refuse (opt, NBD_REP_ERR_INVALID, "option is too short");
  name_length = get_be32 (opt->data);
  if (name_length > opt->length - 6)
    return option_refuse (opt, NBD_REP_ERR_INVALID,
                          "export name reaches past the option");
  asked = option_copy_name (opt->data + 4, name_length);
  if (asked == NULL)
    return option_refuse (opt, NBD_REP_ERR_INVALID, "export name is not valid");
  nr = get_be16 (opt->data + 4 + name_length);
  if (opt->length - 6 - name_length != nr * 2u)
    return option_refuse (opt, NBD_REP_ERR_INVALID,
                          "number of information requests does not match");
  for (uint32_t i = 0; i < nr; i++) {
    uint16_t type = get_be16 (opt->data + 6 + name_length + 2 * i);

    if (type < 32)
      wanted |= UINT32_C (1) << type;
  }

  name = conn_resolve (c, asked);
  h = name == NULL ? NULL :
    go ? (conn_enter_export (c, name) ? c->handle : NULL) :
    conn_find_or_probe (c, name);
  if (h == NULL)
    return option_refuse (opt, NBD_REP_ERR_UNKNOWN, "no such export");
  add_infos (c, opt, h, wanted);
  if (c->probe)
    conn_close_handle (c, &c->probe);
  option_ack (opt);
  return go ? DONE : NEXT;
}
