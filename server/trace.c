/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <stdio.h>
#include <string.h>

#include "log.h"
#include "nbd-wire.h"
#include "op.h"
#include "trace.h"

static const struct name {
  unsigned number;
  const char *name;
} commands[] = {
  { NBD_CMD_READ, "READ" }, { NBD_CMD_WRITE, "WRITE" },
  { NBD_CMD_DISC, "DISC" }, { NBD_CMD_FLUSH, "FLUSH" },
  { NBD_CMD_TRIM, "TRIM" }, { NBD_CMD_CACHE, "CACHE" },
  { NBD_CMD_WRITE_ZEROES, "WRITE_ZEROES" },
  { NBD_CMD_BLOCK_STATUS, "BLOCK_STATUS" },
}, flags[] = {
  { NBD_CMD_FLAG_FUA, "FUA" }, { NBD_CMD_FLAG_NO_HOLE, "NO_HOLE" },
  { NBD_CMD_FLAG_DF, "DF" }, { NBD_CMD_FLAG_REQ_ONE, "REQ_ONE" },
  { NBD_CMD_FLAG_FAST_ZERO, "FAST_ZERO" },
  { NBD_CMD_FLAG_PAYLOAD_LEN, "PAYLOAD_LEN" },
}, errors[] = {
  { NBD_EPERM, "EPERM" }, { NBD_EIO, "EIO" }, { NBD_ENOMEM, "ENOMEM" },
  { NBD_EINVAL, "EINVAL" }, { NBD_ENOSPC, "ENOSPC" },
  { NBD_EOVERFLOW, "EOVERFLOW" }, { NBD_ENOTSUP, "ENOTSUP" },
  { NBD_ESHUTDOWN, "ESHUTDOWN" },
};

/* buf: for what has no name. */
static const char *
name_of (const struct name *names, size_t nr, unsigned number, char *buf,
         size_t size)
{
  for (size_t i = 0; i < nr; i++)
    if (names[i].number == number)
      return names[i].name;
  snprintf (buf, size, "%u", number);
  return buf;
}

#define NAME_OF(names, number, buf) \
  name_of (names, G_N_ELEMENTS (names), number, buf, sizeof (buf))

/* " FUA|DF", or "". */
static void
format_flags (unsigned value, char *out, size_t size)
{
  size_t n = 0;

  out[0] = '\0';
  for (size_t i = 0; i < G_N_ELEMENTS (flags); i++)
    if (value & flags[i].number) {
      n += snprintf (out + n, size - n, "%c%s", n > 0 ? '|' : ' ',
                     flags[i].name);
      value &= ~flags[i].number;
    }
  if (value != 0)
    snprintf (out + n, size - n, "%c0x%x", n > 0 ? '|' : ' ', value);
}

void
trace_request (const struct request *rq)
{
  uint64_t cookie = GUINT64_FROM_BE (rq->cookie);
  char number[16], text[128];

  format_flags (rq->flags, text, sizeof text);
  log_debug ("request %" G_GINT64_MODIFIER "x: %s offset %"
             G_GUINT64_FORMAT " length %" G_GUINT64_FORMAT "%s", cookie,
             NAME_OF (commands, rq->type, number), rq->offset, rq->length,
             text);
}

void
trace_reply (const struct op *op)
{
  const struct request *rq = &op->rq;
  uint64_t cookie = GUINT64_FROM_BE (rq->cookie);
  char number[16], error[16];
  const char *command = NAME_OF (commands, rq->type, number);

  if (op->error != NBD_SUCCESS)
    log_debug ("reply %" G_GINT64_MODIFIER "x: %s %s%s%s%s", cookie,
               command, NAME_OF (errors, op->error, error),
               op->text ? " (" : "", op->text ? op->text : "",
               op->text ? ")" : "");
  else if (rq->type == NBD_CMD_BLOCK_STATUS)
    log_debug ("reply %" G_GINT64_MODIFIER "x: %s done, %"
               G_GUINT64_FORMAT " extents", cookie, command,
               op->nr_extents);
  else
    log_debug ("reply %" G_GINT64_MODIFIER "x: %s done", cookie,
               command);
}
