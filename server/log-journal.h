/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* log-journal.h - lines to systemd's journal, by its native protocol.
 *
 * One datagram a line, of FIELD=VALUE lines.  Nothing waits for the journal:
 * what it does not take at once is lost, and counted.
 */
#ifndef NBDFLEECE_LOG_JOURNAL_H
#define NBDFLEECE_LOG_JOURNAL_H

#include <stdbool.h>

#define JOURNAL_SOCKET "/run/systemd/journal/socket"

/* false: there is none; errno is set. */
bool journal_open (const char *path);
/* priority: of syslog.h.  connection: 0: of none.  text, export_name (may be
 * NULL): without newlines.  false: it is lost; errno is set. */
bool journal_send (int priority, unsigned connection, const char *export_name,
                   const char *text);

#endif /* NBDFLEECE_LOG_JOURNAL_H */
