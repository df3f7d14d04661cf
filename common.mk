# SPDX-License-Identifier: LGPL-2.1-or-later
# Included by every Makefile.am.  C11 atomics and pthreads throughout.
AM_CPPFLAGS = -I$(top_srcdir) -I$(top_builddir) -D_GNU_SOURCE
AM_CFLAGS = -std=gnu11 -pthread $(WARN_CFLAGS) $(SAN_CFLAGS)
AM_LDFLAGS = -pthread $(SAN_LDFLAGS)
