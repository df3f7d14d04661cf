/* SPDX-License-Identifier: BSD-3-Clause */
/* config-file.h - the plugin's parameters in an ini file, for services.
 *
 *   [fleece]                any parameter but disk and config, as KEY=VALUE
 *   state=/var/lib/nbdfleece
 *   [disk NAME]             one a disk, in their order
 *   path=/srv/vda.raw
 *
 * Locking: as params.h.
 */
#ifndef CONFIG_FILE_H
#define CONFIG_FILE_H

#include "plugin/params.h"

/* Of a disk's group, before its name. */
#define CONFIG_FILE_DISK "disk "

/* Sets all of it.  INVALID with the file, and group and key where that is
 * known: it cannot be read, a group or key that there is not, something given
 * twice in it or here and elsewhere, a path that is not absolute. */
bool config_file_read (Params *params, const char *path, GError **error);
/* Of a file that has groups of disks alone. */
bool config_file_read_disks (Params *params, const char *path, GError **error);

#endif
