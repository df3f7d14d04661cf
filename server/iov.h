/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* iov.h - what is left to send, as the system calls take it. */
#ifndef NBDFLEECE_IOV_H
#define NBDFLEECE_IOV_H

#include <stddef.h>
#include <sys/uio.h>

/* Take n bytes off the front of an iovec. */
static inline void
iov_consume (struct iovec **iov, int *nr, size_t n)
{
  while (*nr > 0 && n >= (*iov)->iov_len) {
    n -= (*iov)->iov_len;
    (*iov)++;
    (*nr)--;
  }
  if (*nr > 0) {
    (*iov)->iov_base = (char *) (*iov)->iov_base + n;
    (*iov)->iov_len -= n;
  }
}

#endif /* NBDFLEECE_IOV_H */
