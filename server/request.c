/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include "bytes.h"
#include "nbd-wire.h"
#include "request.h"

/* One row a command: what may come with it, what it needs, and which error
 * tells that it reaches past the end. */
struct command {
  uint16_t flags;               /* allowed beside FUA */
  uint16_t needs;               /* flag that the export must have set */
  bool writes;
  bool has_range;
  uint32_t past_end;
};

static const struct command commands[] = {
  [NBD_CMD_READ] = {
    .flags = NBD_CMD_FLAG_DF, .has_range = true, .past_end = NBD_EINVAL },
  [NBD_CMD_WRITE] = {
    .writes = true, .has_range = true, .past_end = NBD_ENOSPC },
  [NBD_CMD_DISC] = { 0 },
  [NBD_CMD_FLUSH] = { .needs = NBD_FLAG_SEND_FLUSH },
  [NBD_CMD_TRIM] = {
    .needs = NBD_FLAG_SEND_TRIM,
    .writes = true, .has_range = true, .past_end = NBD_EINVAL },
  [NBD_CMD_CACHE] = {
    .needs = NBD_FLAG_SEND_CACHE, .has_range = true, .past_end = NBD_EINVAL },
  [NBD_CMD_WRITE_ZEROES] = {
    .flags = NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
    .needs = NBD_FLAG_SEND_WRITE_ZEROES,
    .writes = true, .has_range = true, .past_end = NBD_ENOSPC },
  [NBD_CMD_BLOCK_STATUS] = {
    .flags = NBD_CMD_FLAG_REQ_ONE, .has_range = true, .past_end = NBD_EINVAL },
};
#define NR_COMMANDS (sizeof commands / sizeof commands[0])

bool
request_parse (const unsigned char *bytes, enum reply_mode mode,
               struct request *out)
{
  bool extended = mode == REPLY_EXTENDED;

  if (get_be32 (bytes) !=
      (extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC))
    return false;
  out->flags = get_be16 (bytes + 4);
  out->type = get_be16 (bytes + 6);
  memcpy (&out->cookie, bytes + 8, sizeof out->cookie);
  out->offset = get_be64 (bytes + 16);
  out->length = extended ? get_be64 (bytes + 24) : get_be32 (bytes + 24);
  out->payload = 0;
  out->contexts = REQUEST_ALL_CONTEXTS;
  /* A WRITE always has one, also if it does not say so: the specification wants
   * it to, but QEMU (8.2 to 10.0) does not. */
  if (out->type == NBD_CMD_WRITE)
    out->payload = out->length;
  else if (extended && out->flags & NBD_CMD_FLAG_PAYLOAD_LEN) {
    out->payload = out->length;
    out->length = 0;
  }
  return true;
}

void
request_format (const struct request *rq, enum reply_mode mode,
                unsigned char *bytes)
{
  uint64_t length = rq->payload ? rq->payload : rq->length;
  bool extended = mode == REPLY_EXTENDED;

  put_be32 (bytes, extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC);
  put_be16 (bytes + 4, rq->flags);
  put_be16 (bytes + 6, rq->type);
  memcpy (bytes + 8, &rq->cookie, sizeof rq->cookie);
  put_be64 (bytes + 16, rq->offset);
  if (extended)
    put_be64 (bytes + 24, length);
  else
    put_be32 (bytes + 24, length);
}

static uint32_t
fail (const char **out_text, uint32_t error, const char *text)
{
  *out_text = text;
  return error;
}

static uint32_t
check_flags (const struct request *rq, const struct command *cmd,
             const struct request_rules *rules, const char **out_text)
{
  uint16_t allowed = cmd->flags;

  if (rules->info->flags & NBD_FLAG_SEND_FUA)
    allowed |= NBD_CMD_FLAG_FUA;
  if (rules->mode == REPLY_SIMPLE)
    allowed &= ~NBD_CMD_FLAG_DF;
  if (!(rules->info->flags & NBD_FLAG_SEND_FAST_ZERO))
    allowed &= ~NBD_CMD_FLAG_FAST_ZERO;
  if (rules->mode == REPLY_EXTENDED &&
      (rq->type == NBD_CMD_WRITE ||
       (rq->type == NBD_CMD_BLOCK_STATUS && rules->nr_contexts > 0)))
    allowed |= NBD_CMD_FLAG_PAYLOAD_LEN;
  if (rq->flags & ~allowed)
    return fail (out_text, NBD_EINVAL, "flag not allowed here");
  return NBD_SUCCESS;
}

static uint32_t
check_range (const struct request *rq, const struct command *cmd,
             const struct request_rules *rules, const char **out_text)
{
  const struct export_info *info = rules->info;

  if (rq->offset > info->size || rq->length > info->size - rq->offset)
    return fail (out_text, cmd->past_end,
                 "request reaches past the end of the export");
  if ((rq->offset | rq->length) & (info->block.min - 1))
    return fail (out_text, NBD_EINVAL,
                 "request is not aligned to the minimum block size");
  if (rq->type == NBD_CMD_READ && rq->length > info->block.max)
    return fail (out_text,
                 rules->mode == REPLY_SIMPLE ? NBD_EINVAL : NBD_EOVERFLOW,
                 "read is larger than the maximum block size");
  if (rq->type == NBD_CMD_WRITE && rq->length > info->block.max)
    return fail (out_text, NBD_EINVAL,
                 "write is larger than the maximum block size");
  return NBD_SUCCESS;
}

/* A length, then ids of contexts; each at most once. */
static uint32_t
check_range_payload (const struct request *rq,
                     const struct request_rules *rules, const char **out_text)
{
  if (rq->payload < 8 + 4 || rq->payload % 4 != 0 ||
      rq->payload > 8 + 4 * (uint64_t) rules->nr_contexts)
    return fail (out_text, NBD_EINVAL,
                 "payload of a block status has no possible size");
  return NBD_SUCCESS;
}

uint32_t
request_take_range (struct request *rq, const struct request_rules *rules,
                    const unsigned char *payload, const char **out_text)
{
  uint64_t wanted = 0;

  for (uint64_t at = 8; at < rq->payload; at += 4) {
    uint32_t id = get_be32 (payload + at);

    if (id == 0 || id > rules->nr_contexts)
      return fail (out_text, NBD_EINVAL, "no such metadata context");
    if (wanted & UINT64_C (1) << (id - 1))
      return fail (out_text, NBD_EINVAL, "metadata context named twice");
    wanted |= UINT64_C (1) << (id - 1);
  }
  rq->contexts = wanted;
  rq->length = get_be64 (payload);
  rq->payload = 0;
  rq->flags &= ~NBD_CMD_FLAG_PAYLOAD_LEN;
  return NBD_SUCCESS;
}

uint32_t
request_check (const struct request *rq, const struct request_rules *rules,
               const char **out_text)
{
  const struct command *cmd;
  uint32_t error;

  if (rq->type >= NR_COMMANDS)
    return fail (out_text, NBD_EINVAL, "unknown command");
  cmd = &commands[rq->type];
  /* First, so that a write-type command to a read-only export is refused for
   * that reason whatever else is wrong with it: EPERM is the error that tells
   * the client what to do. */
  if (cmd->writes && rules->info->flags & NBD_FLAG_READ_ONLY)
    return fail (out_text, NBD_EPERM, "the export is read-only");
  error = check_flags (rq, cmd, rules, out_text);
  if (error)
    return error;
  if ((rules->info->flags & cmd->needs) != cmd->needs)
    return fail (out_text, NBD_EINVAL, "command not supported by this export");
  if (rq->type == NBD_CMD_BLOCK_STATUS && rules->nr_contexts == 0)
    return fail (out_text, NBD_EINVAL, "no metadata context was selected");
  if (rq->flags & NBD_CMD_FLAG_PAYLOAD_LEN &&
      rq->type == NBD_CMD_BLOCK_STATUS)
    return check_range_payload (rq, rules, out_text);
  if (rq->type == NBD_CMD_BLOCK_STATUS && rq->length == 0)
    return fail (out_text, NBD_EINVAL, "block status of nothing");
  if (!cmd->has_range) {
    if (rq->type == NBD_CMD_FLUSH && (rq->offset || rq->length))
      return fail (out_text, NBD_EINVAL, "flush takes no range");
    return NBD_SUCCESS;
  }
  return check_range (rq, cmd, rules, out_text);
}
