/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* plugin-path.h - which file a plugin's name on the command line means. */
#ifndef NBDFLEECE_PLUGIN_PATH_H
#define NBDFLEECE_PLUGIN_PATH_H

#include <glib.h>

/* The fleece plugin: uninstalled, that of the same build. */
char *plugin_path_default (void);

/* name: NULL: the default one; a name with a "/" or "." is a file; else it is
 * looked for in our folder of plugins and then in nbdkit's.  Newly allocated,
 * whether there is such a file or not.
 *
 * A plugin in one of those folders may be a script, for the plugin that its
 * first line names ("#!/usr/bin/nbdkit perl"): then the result is that
 * plugin's path, and *out_script, newly allocated, is what it has to be given
 * as its first parameter; else NULL.
 *
 * NULL with error: such a script is not for an nbdkit plugin. */
char *plugin_path (const char *name, char **out_script, GError **error);

#endif /* NBDFLEECE_PLUGIN_PATH_H */
