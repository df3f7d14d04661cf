/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* host.h - the server's half of metacontext.h. */
#ifndef NBDFLEECE_HOST_H
#define NBDFLEECE_HOST_H

#include <glib.h>

#include "extents.h"
#include "metacontext.h"

/* What the opaque types are on this side. */
struct metacontext_list {
  GPtrArray *names;             /* char *, owned */
  guint max;
};

struct metacontext_extents {
  struct extent_list *list;
  bool failed;
};

const struct metacontext_host *host_table (void);

#endif /* NBDFLEECE_HOST_H */
