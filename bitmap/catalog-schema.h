/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* catalog-schema.h - the tables of the catalog, as a list of migrations. */
#ifndef CATALOG_SCHEMA_H
#define CATALOG_SCHEMA_H

/* Marks the file as ours: PRAGMA application_id, "nbdf". */
#define CATALOG_APPLICATION_ID 0x6e626466

/* catalog_migrations[V] takes a database of PRAGMA user_version V to V + 1.
 * Scripts that have been released are never changed. */
extern const char *const catalog_migrations[];
extern const int catalog_schema_version;        /* how many there are */

#endif
