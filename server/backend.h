/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* backend.h - the nbdkit plugin: load it, configure it, open handles.
 *
 * There is one plugin in a process.  Life cycle, in nbdkit's documented order:
 * backend_load, _config (any number), _config_complete, _get_ready, then
 * (after a fork, if any) _after_fork, then handles, then _unload.
 *
 * Locking: each call takes what the plugin's thread model demands.  Under
 * SERIALIZE_CONNECTIONS the caller brackets a client with backend_enter and
 * backend_leave.  The set-up calls belong to the main thread.
 */
#ifndef NBDFLEECE_BACKEND_H
#define NBDFLEECE_BACKEND_H

#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "export.h"
#include "extents.h"

/* The plugin API; never included twice with other settings. */
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "metacontext.h"

typedef struct Backend Backend;

/* path: a shared object; dlopen'ed with all symbols resolved, .load called,
 * metacontext_init called if it is there.  Debug flags of the command line
 * ("NAME.FLAG=N") are set first. */
Backend *backend_load (const char *path, char **debug_flags, GError **error);

/* The argument is of the form KEY=VALUE, with a KEY that nbdkit allows: a
 * letter, then letters, digits, ".", "_" and "-".  All else is a value only. */
bool backend_is_setting (const char *arg);

/* The plugin's own failures were already reported by nbdkit_error: these
 * return false and, when there is more to say, log it. */
bool backend_config (Backend *b, const char *key, const char *value);
/* An argument without "=": the n-th parameter, counted from 0. */
bool backend_config_bare (Backend *b, const char *value, unsigned n);
bool backend_config_complete (Backend *b);      /* and the thread model */
bool backend_get_ready (Backend *b);
bool backend_after_fork (Backend *b);
/* All handles are closed.  .cleanup only if .after_fork was reached. */
void backend_unload (Backend *b);

const char *backend_name (const Backend *b);
const char *backend_version (const Backend *b); /* or NULL */
bool backend_is_parallel (const Backend *b);
void backend_print_help (const Backend *b);
void backend_dump_plugin (const Backend *b);

/* Under SERIALIZE_CONNECTIONS: wait until no other client is served; false if
 * backend_stop_waiting was called.  Else nothing. */
bool backend_enter (Backend *b);
void backend_leave (Backend *b);
void backend_stop_waiting (Backend *b);
/* Only one handle may be open at a time. */
bool backend_is_exclusive (const Backend *b);

bool backend_preconnect (Backend *b, bool readonly);

/* The names for LIST; NULL when the plugin failed.  Free with
 * nbdkit_exports_free. */
struct nbdkit_exports *backend_list_exports (Backend *b, bool readonly,
                                             bool is_tls);
/* What "" stands for: newly allocated; NULL: there is no default export. */
char *backend_default_export (Backend *b, bool readonly, bool is_tls);

/* METACONTEXT_EXPORT_* of what would be opened by that name. */
int backend_export_kind (Backend *b, const char *name);

/* One opened export.  Data calls may run in parallel on one handle: the thread
 * model is honoured here. */
typedef struct Handle Handle;

/* name: canonical ("" already replaced).  Opens the export and asks the plugin
 * all it has to say about it.  NULL: refused, already reported.
 * The handle belongs to thread_context.conn. */
Handle *handle_open (Backend *b, const char *name, bool readonly,
                     bool is_tls);
/* No call is running on it.  NULL is fine. */
void handle_close (Handle *h);

const struct export_info *handle_info (const Handle *h);
/* The client knows this size, of before the program was replaced: from now on
 * handle_info has no larger one.  No call is running on the handle. */
void handle_limit_size (Handle *h, uint64_t size);
const char *handle_name (const Handle *h);
void *handle_plugin_handle (const Handle *h);
int handle_kind (Handle *h);            /* METACONTEXT_EXPORT_* */
/* Newly allocated; NULL: none. */
char *handle_description (Handle *h);
/* Make this thread's thread_context speak for h. */
void handle_use (Handle *h);

/* Data.  The range was checked.  flags are NBDKIT_FLAG_*; FUA is emulated where
 * the plugin cannot.  Return 0 or a positive errno, already reported.
 * Counts are EXPORT_MAX_PAYLOAD at most; a length beyond 32 bits takes several
 * calls of the plugin, and is given up with ESHUTDOWN when the connection
 * ends. */
int handle_pread (Handle *h, void *buf, uint32_t count, uint64_t offset);
int handle_pwrite (Handle *h, const void *buf, uint32_t count,
                   uint64_t offset, uint32_t flags);
int handle_flush (Handle *h);
int handle_trim (Handle *h, uint64_t length, uint64_t offset, uint32_t flags);
int handle_zero (Handle *h, uint64_t length, uint64_t offset, uint32_t flags);
int handle_cache (Handle *h, uint64_t length, uint64_t offset);
/* base:allocation from list->next on; adds at least one byte or fails.
 * length: how far to look, at most up to the end of the list. */
int handle_allocation (Handle *h, uint64_t length, uint32_t flags,
                       struct extent_list *list);

/* The plugin's own numbers, if it has any. */
struct metacontext_metrics;
void backend_metrics (Backend *b, struct metacontext_metrics *metrics);

/* Contexts offered by the plugin (metacontext.h).  All are fine, and find
 * nothing, when it offers none. */
bool handle_has_contexts (const Handle *h);
/* Adds copies to names, up to max of them; false: the plugin failed. */
bool handle_context_list (Handle *h, const char *query, GPtrArray *names,
                          guint max);
/* 1 granted, 0 unknown, -1 failed. */
int handle_context_select (Handle *h, const char *name, uint64_t *out_cookie);
void handle_context_deselect_all (Handle *h);
/* As handle_allocation. */
int handle_context_extents (Handle *h, uint64_t cookie, uint64_t length,
                            uint32_t flags, struct extent_list *list);

#endif /* NBDFLEECE_BACKEND_H */
