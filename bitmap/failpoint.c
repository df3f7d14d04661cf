/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "config.h"

#include "bitmap/failpoint.h"

#ifdef ENABLE_FAILPOINTS
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int
failpoint_hit (const char *name)
{
  static atomic_int nr_hits;
  const char *want = getenv ("NBDFLEECE_FAILPOINT");
  size_t length = strlen (name);
  const char *action, *nth;
  int wanted = 1;

  if (want == NULL || strncmp (want, name, length) != 0 || want[length] != ':')
    return 0;
  action = want + length + 1;
  nth = strchr (action, ':');
  if (nth != NULL)
    wanted = atoi (nth + 1);
  if (atomic_fetch_add (&nr_hits, 1) + 1 != wanted)
    return 0;
  if (strncmp (action, "kill", 4) == 0)
    kill (getpid (), SIGKILL);
  else if (strncmp (action, "stall", 5) == 0)
    sleep (2);
  else if (strncmp (action, "eio", 3) == 0)
    return -EIO;
  else if (strncmp (action, "enospc", 6) == 0)
    return -ENOSPC;
  return 0;
}
#else
/* A file without any declaration is not C. */
extern int failpoint_none;
#endif
