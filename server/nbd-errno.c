/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>

#include "nbd-errno.h"
#include "nbd-wire.h"

uint32_t
nbd_errno (int err, uint16_t cmd_flags)
{
  switch (err) {
  case 0:
    return NBD_SUCCESS;
  case EPERM:
  case EROFS:
  case EACCES:
    return NBD_EPERM;
  case ENOMEM:
    return NBD_ENOMEM;
  case EINVAL:
    return NBD_EINVAL;
  case ENOSPC:
  case EDQUOT:
  case EFBIG:
    return NBD_ENOSPC;
  case ESHUTDOWN:
    return NBD_ESHUTDOWN;
  /* These two mean something to a client only with the flag. */
  case EOVERFLOW:
    return cmd_flags & NBD_CMD_FLAG_DF ? NBD_EOVERFLOW : NBD_EINVAL;
  case ENOTSUP:
    return cmd_flags & NBD_CMD_FLAG_FAST_ZERO ? NBD_ENOTSUP : NBD_EINVAL;
  /* A backend that failed in a way the protocol has no word for did not
   * object to the request: EINVAL would blame the client. */
  default:
    return NBD_EIO;
  }
}

const char *
nbd_errno_text (uint32_t nbd_error)
{
  switch (nbd_error) {
  case NBD_EPERM: return "operation not permitted";
  case NBD_EIO: return "input/output error";
  case NBD_ENOMEM: return "out of memory";
  case NBD_EINVAL: return "invalid argument";
  case NBD_ENOSPC: return "no space left";
  case NBD_EOVERFLOW: return "value too large";
  case NBD_ENOTSUP: return "not supported";
  case NBD_ESHUTDOWN: return "shutting down, or no longer available";
  default: return "unknown error";
  }
}
