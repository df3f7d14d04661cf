/* SPDX-License-Identifier: BSD-3-Clause */
/* qmp.h - QMP's requests and replies: from one JSON text to one JSON line.
 *
 * Every command is one entry of a table: its name, what arguments it takes, and
 * the function that does it.  Arguments are checked against the entry before
 * the function runs, so that a function only sees members that it declared, of
 * the right type and in range.  Error texts are QEMU's.
 *
 * Knows nothing of sockets and threads.
 */
#ifndef QMP_H
#define QMP_H

#include <stdbool.h>
#include <stdint.h>
#include <glib.h>
#include <jansson.h>

#define QMP_ERROR (qmp_error_quark ())
GQuark qmp_error_quark (void);
/* The error classes in use; an error of any other domain is a GenericError. */
typedef enum {
  QMP_ERROR_GENERIC,
  QMP_ERROR_COMMAND_NOT_FOUND,
  QMP_ERROR_DEVICE_NOT_ACTIVE,
  QMP_ERROR_DEVICE_NOT_FOUND,
} QmpErrorCode;

G_DEFINE_AUTOPTR_CLEANUP_FUNC (json_t, json_decref)

typedef enum {
  QMP_STR,
  QMP_BOOL,
  QMP_INT,                      /* min .. max */
  QMP_ENUM,                     /* a string out of values */
  QMP_OBJECT,                   /* members */
  QMP_STR_OR_OBJECT,            /* a string or such an object */
  QMP_OBJECTS,                  /* an array of objects with these members */
  QMP_STRS,                     /* an array of strings */
  QMP_STRS_OR_OBJECTS,          /* an array of strings and such objects,
                                   mixed */
  QMP_UNIONS,                   /* an array of {"type": T, "data": {...}}, where
                                 * branches says which members data has for T */
  QMP_NULL,
  QMP_ANY,                      /* any JSON value */
} QmpType;

struct qmp_branch;

struct qmp_arg {
  const char *name;             /* NULL ends a list of arguments */
  QmpType type;
  bool required;
  int64_t min, max;
  const char *range;            /* "Parameter 'P' expects RANGE" */
  const char *const *values;    /* of an enum, NULL at the end */
  const struct qmp_arg *members;
  const struct qmp_branch *branches;
};

struct qmp_branch {
  const char *type;             /* NULL ends the list */
  const struct qmp_arg *data;
};

/* One client's state in the protocol. */
struct qmp_session {
  bool negotiated;
  void *opaque;                 /* the transport's, for commands */
};

struct qmp_command {
  const char *name;             /* NULL ends the table */
  const struct qmp_arg *args;   /* NULL: none */
  /* args: an object, checked, borrowed; empty if the client sent none.
   * Returns a new reference to what "return" shall be, or NULL and an error. */
  json_t *(*run) (struct qmp_session *session, json_t *args, GError **error);
  const struct qmp_arg *returns;        /* its name says nothing; NULL: {} */
  bool before_negotiation;      /* allowed then, and only then */
};

struct qmp_event_type {
  const char *name;             /* NULL ends the table */
  const struct qmp_arg *data;   /* NULL: none */
};

/* What query-qmp-schema replies. */
json_t *qmp_schema (const struct qmp_command *commands,
                    const struct qmp_event_type *events);

/* The reply to one text, CRLF included; never NULL. */
GString *qmp_handle (const struct qmp_command *table,
                     struct qmp_session *session,
                     const char *text, size_t length);

/* Would these be good arguments of a command? */
bool qmp_check (const struct qmp_command *table, const char *command,
                json_t *args, GError **error);

/* The reply to something that was no JSON text: an error without an id. */
GString *qmp_error_reply (const char *desc);

/* The greeting, and an event.  data: stolen; NULL: none. */
GString *qmp_greeting (void);
GString *qmp_event (const char *name, json_t *data);
/* {"qemu": {...}, "package": ...}: of greeting and query-version. */
json_t *qmp_version (void);

/* A string from elsewhere (a path, a message), which may not be UTF-8: what is
 * not is replaced. */
json_t *qmp_text (const char *text);

/* Members of checked arguments; the fallback where the client sent none. */
const char *qmp_get_str (json_t *args, const char *name);       /* or NULL */
bool qmp_get_bool (json_t *args, const char *name, bool fallback);
int64_t qmp_get_int (json_t *args, const char *name, int64_t fallback);

#endif
