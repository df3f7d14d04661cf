/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* table.h - aligned columns on stdout.
 *
 * Locking: none; one thread owns a Table.
 */
#ifndef NBDFLEECE_TABLE_H
#define NBDFLEECE_TABLE_H

#include <glib.h>

typedef struct Table Table;

/* titles: one a column, NULL ends them; one that begins with '>' is aligned to
 * the right.  Borrowed.
 */
Table *table_new (const char *const *titles);
void table_free (Table *table);                 /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Table, table_free)

/* The next cell, row by row; NULL or "" shows as "-".  Copied, and escaped:
 * control characters never reach the terminal.
 */
void table_cell (Table *table, const char *text);
/* The same, taking the text. */
void table_cell_take (Table *table, char *text);

/* Columns in which no row has anything are left out, but for the first. */
void table_print (const Table *table);

#endif /* NBDFLEECE_TABLE_H */
