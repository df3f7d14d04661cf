/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* backend-v1.c - plugins written for version 1 of nbdkit's API.
 *
 * That has no flags: FUA is always emulated, and nobody is promised a fast
 * zero.  Its table is the same but for the data callbacks; they are given a
 * version 2 face here.
 */
#include <config.h>

#include "backend-internal.h"

/* Of the one plugin in this process. */
static struct nbdkit_plugin v1;

static int
v1_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
          uint32_t flags)
{
  return v1._pread_v1 (handle, buf, count, offset);
}

static int
v1_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
           uint32_t flags)
{
  return v1._pwrite_v1 (handle, buf, count, offset);
}

static int
v1_flush (void *handle, uint32_t flags)
{
  return v1._flush_v1 (handle);
}

static int
v1_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  return v1._trim_v1 (handle, count, offset);
}

static int
v1_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  if (flags & NBDKIT_FLAG_FAST_ZERO) {
    nbdkit_set_error (ENOTSUP);
    return -1;
  }
  return v1._zero_v1 (handle, count, offset, !!(flags & NBDKIT_FLAG_MAY_TRIM));
}

static int
v1_can_fua (void *handle)
{
  int r = v1.can_fua (handle);

  return r == NBDKIT_FUA_NATIVE ? NBDKIT_FUA_EMULATE : r;
}

void
backend_adapt_v1 (struct nbdkit_plugin *p)
{
  v1 = *p;
  p->pread = v1._pread_v1 ? v1_pread : NULL;
  p->pwrite = v1._pwrite_v1 ? v1_pwrite : NULL;
  p->flush = v1._flush_v1 ? v1_flush : NULL;
  p->trim = v1._trim_v1 ? v1_trim : NULL;
  p->zero = v1._zero_v1 ? v1_zero : NULL;
  if (v1.can_fua)
    p->can_fua = v1_can_fua;
}
