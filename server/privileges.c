/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <pwd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "access-file.h"
#include "privileges.h"

#define PRIVILEGES_ERROR (g_quark_from_static_string ("nbdfleece-privileges"))

/* Set by privileges_set.  -1: not given, nothing to change. */
static uid_t uid = -1;
static gid_t gid = -1;
static char *groups_of;         /* user whose supplementary groups we take */

bool
privileges_are_set (void)
{
  return uid != (uid_t) -1 || gid != (gid_t) -1;
}

void
privileges_get (uid_t *out_uid, gid_t *out_gid)
{
  *out_uid = uid;
  *out_gid = gid;
}

bool
privileges_set (const char *user, const char *group, GError **error)
{
  struct passwd *pw;

  if (user != NULL && !access_parse_uid (user, &uid, error)) {
    g_prefix_error (error, "-u: ");
    return false;
  }
  if (group != NULL) {
    if (access_parse_gid (group, &gid, error))
      return true;
    g_prefix_error (error, "-g: ");
    return false;
  }
  if (user == NULL)
    return true;
  pw = getpwuid (uid);
  if (pw == NULL) {
    g_set_error (error, PRIVILEGES_ERROR, 0, "-u: nobody has the user id %u: "
                 "its group has to be given by -g", (unsigned) uid);
    return false;
  }
  gid = pw->pw_gid;
  groups_of = g_strdup (pw->pw_name);
  return true;
}

static bool
fail (GError **error, const char *what)
{
  g_set_error (error, PRIVILEGES_ERROR, 0, "cannot change %s: %s%s", what,
               g_strerror (errno), errno == EPERM ?
               " (only root can use -u and -g)" : "");
  return false;
}

/* effective: all that are permitted; else none of any kind. */
static bool
set_capabilities (bool effective)
{
  struct __user_cap_header_struct header = {
    .version = _LINUX_CAPABILITY_VERSION_3
  };
  struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = { { 0 } };

  if (effective) {
    if (syscall (SYS_capget, &header, data) == -1)
      return false;
    for (int i = 0; i < _LINUX_CAPABILITY_U32S_3; i++)
      data[i].effective = data[i].permitted;
  }
  else
    /* Not there in old kernels, which have no such set either. */
    prctl (PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  return syscall (SYS_capset, &header, data) != -1;
}

/* A server that starts as the user that it is to be has nothing to change. */
static bool
is_done (void)
{
  uid_t u[3];
  gid_t g[3];

  return geteuid () != 0 &&
    getresuid (&u[0], &u[1], &u[2]) == 0 &&
    getresgid (&g[0], &g[1], &g[2]) == 0 &&
    (uid == (uid_t) -1 || (u[0] == uid && u[1] == uid && u[2] == uid)) &&
    (gid == (gid_t) -1 || (g[0] == gid && g[1] == gid && g[2] == gid));
}

bool
privileges_begin (GError **error)
{
  if (!privileges_are_set () || is_done ())
    return true;
  /* Those of root's are not to stay, whatever else does. */
  if ((groups_of ? initgroups (groups_of, gid) : setgroups (1, &gid)) == -1)
    return fail (error, "the groups");
  if (setresgid (gid, gid, gid) == -1)
    return fail (error, "the group");
  if (uid == (uid_t) -1 || uid == 0)
    return true;
  /* The saved one remains root's.  The kernel takes the capabilities out of
   * effect with that. */
  if (seteuid (uid) == -1)
    return fail (error, "the user");
  return set_capabilities (true) || fail (error, "capabilities");
}

bool
privileges_drop (GError **error)
{
  if (uid == (uid_t) -1 || uid == 0)
    return true;
  if (!is_done () && setresuid (uid, uid, uid) == -1)
    return fail (error, "the user");
  if (!set_capabilities (false))
    return fail (error, "capabilities");
  if (seteuid (0) == 0) {
    g_set_error (error, PRIVILEGES_ERROR, 0, "the user was changed, and can be "
                 "changed back: refusing to serve");
    return false;
  }
  return true;
}
