/* SPDX-License-Identifier: BSD-3-Clause */
#include <config.h>

#include <stdio.h>
#include <string.h>

#include "plugin/qmp.h"
#include "plugin/qmp-uint64.h"

/* Replies are ASCII, as QEMU's. */
#define DUMP_FLAGS (JSON_COMPACT | JSON_ENSURE_ASCII | JSON_ENCODE_ANY)

/* Names from the wire are cut to this in error texts. */
#define SHOW_MAX 100

G_DEFINE_QUARK (nbdfleece-qmp-error, qmp_error)

static void G_GNUC_PRINTF (2, 3)
set_error (GError **error, const char *format, ...)
{
  va_list args;

  va_start (args, format);
  g_propagate_error (error, g_error_new_valist (QMP_ERROR, QMP_ERROR_GENERIC,
                                                format, args));
  va_end (args);
}

/* Takes the reference to line. */
static GString *
to_line (json_t *line)
{
  char *dump = json_dumps (line, DUMP_FLAGS);
  GString *text;

  json_decref (line);
  /* jansson fails here only without memory, or on strings that are not UTF-8,
   * which its own functions refuse to store. */
  text = g_string_new (dump != NULL ? dump :
                       "{\"error\":{\"class\":\"GenericError\","
                       "\"desc\":\"cannot encode the reply\"}}");
  free (dump);
  qmp_uint64_unmark (text);
  return g_string_append (text, "\r\n");
}

/* --- checking arguments --- */

static const char *
type_name (QmpType type)
{
  switch (type) {
  case QMP_BOOL: return "boolean";
  case QMP_INT: return "integer";
  case QMP_OBJECT: return "object";
  case QMP_STR_OR_OBJECT: return "string or object";
  case QMP_OBJECTS:
  case QMP_STRS:
  case QMP_STRS_OR_OBJECTS:
  case QMP_UNIONS: return "array";
  case QMP_NULL: return "null";
  case QMP_ANY: return "value";
  case QMP_STR:
  case QMP_ENUM: break;
  }
  return "string";
}

static bool
type_matches (QmpType type, const json_t *value)
{
  if (qmp_uint64_is (value))
    return type == QMP_ANY;
  switch (type) {
  case QMP_BOOL: return json_is_boolean (value);
  case QMP_INT: return json_is_integer (value);
  case QMP_OBJECT: return json_is_object (value);
  case QMP_STR_OR_OBJECT:
    return json_is_string (value) || json_is_object (value);
  case QMP_OBJECTS:
  case QMP_STRS:
  case QMP_STRS_OR_OBJECTS:
  case QMP_UNIONS: return json_is_array (value);
  case QMP_NULL: return json_is_null (value);
  case QMP_ANY: return true;
  case QMP_STR:
  case QMP_ENUM: break;
  }
  return json_is_string (value);
}

static bool
wrong_type (const char *path, const char *expected, GError **error)
{
  set_error (error, "Invalid parameter type for '%s', expected: %s",
             path, expected);
  return false;
}

static bool check_members (const struct qmp_arg *args, json_t *object,
                           const char *prefix, GError **error);

/* {"type": T, "data": {...}}.  prefix: with the dot. */
static bool
check_union (const struct qmp_branch *branches, json_t *item,
             const char *prefix, GError **error)
{
  struct qmp_arg args[] = {
    { "type", QMP_STR, .required = true },
    { "data", QMP_OBJECT, .required = true },
    { NULL }
  };
  json_t *type = json_object_get (item, "type");
  const struct qmp_branch *b = branches;

  if (json_is_string (type) && !qmp_uint64_is (type)) {
    while (b->type != NULL && strcmp (b->type, json_string_value (type)) != 0)
      b++;
    if (b->type == NULL) {
      set_error (error, "Parameter '%stype' does not accept value '%.*s'",
                 prefix, SHOW_MAX, json_string_value (type));
      return false;
    }
    args[1].members = b->data;
  }
  return check_members (args, item, prefix, error);
}

static bool
check_item (const struct qmp_arg *arg, json_t *item, const char *path,
            GError **error)
{
  g_autofree char *prefix = g_strconcat (path, ".", NULL);

  if (json_is_string (item) && !qmp_uint64_is (item) &&
      (arg->type == QMP_STRS || arg->type == QMP_STRS_OR_OBJECTS))
    return true;
  if (arg->type == QMP_STRS)
    return wrong_type (path, "string", error);
  if (!json_is_object (item))
    return wrong_type (path, arg->type == QMP_STRS_OR_OBJECTS ?
                       "string or object" : "object", error);
  return arg->type == QMP_UNIONS ?
    check_union (arg->branches, item, prefix, error)
    : check_members (arg->members, item, prefix, error);
}

static bool
check_array (const struct qmp_arg *arg, json_t *array, const char *path,
             GError **error)
{
  for (size_t i = 0; i < json_array_size (array); i++) {
    g_autofree char *item_path = g_strdup_printf ("%s[%zu]", path, i);

    if (!check_item (arg, json_array_get (array, i), item_path, error))
      return false;
  }
  return true;
}

static bool
check_value (const struct qmp_arg *arg, json_t *value, const char *path,
             GError **error)
{
  if (!type_matches (arg->type, value)) {
    /* QEMU reads a uint32_t as an unsigned number of 64 bits. */
    if (arg->type == QMP_INT && arg->max == UINT32_MAX &&
        (json_is_real (value) || qmp_uint64_is (value))) {
      set_error (error, "Parameter '%s' expects %s", path,
                 json_is_real (value) ? "uint64" : arg->range);
      return false;
    }
    return wrong_type (path, type_name (arg->type), error);
  }
  switch (arg->type) {
  case QMP_INT:
    if (json_integer_value (value) < arg->min ||
        json_integer_value (value) > arg->max) {
      set_error (error, "Parameter '%s' expects %s", path, arg->range);
      return false;
    }
    return true;

  case QMP_ENUM:
    for (size_t i = 0; arg->values[i] != NULL; i++)
      if (strcmp (arg->values[i], json_string_value (value)) == 0)
        return true;
    set_error (error, "Parameter '%s' does not accept value '%.*s'",
               path, SHOW_MAX, json_string_value (value));
    return false;

  case QMP_STR_OR_OBJECT:
    if (json_is_string (value))
      return true;
    G_GNUC_FALLTHROUGH;
  case QMP_OBJECT: {
    g_autofree char *prefix = g_strconcat (path, ".", NULL);

    return check_members (arg->members, value, prefix, error);
  }

  case QMP_OBJECTS:
  case QMP_STRS:
  case QMP_STRS_OR_OBJECTS:
  case QMP_UNIONS:
    return check_array (arg, value, path, error);

  case QMP_STR:
  case QMP_BOOL:
  case QMP_NULL:
  case QMP_ANY:
    break;
  }
  return true;
}

/* prefix: "" or where object stands, with the dot. */
static bool
check_members (const struct qmp_arg *args, json_t *object, const char *prefix,
               GError **error)
{
  const char *key;
  json_t *value;

  for (const struct qmp_arg *arg = args; arg && arg->name != NULL; arg++) {
    g_autofree char *path = g_strconcat (prefix, arg->name, NULL);

    value = json_object_get (object, arg->name);
    if (value == NULL) {
      if (!arg->required)
        continue;
      set_error (error, "Parameter '%s' is missing", path);
      return false;
    }
    if (!check_value (arg, value, path, error))
      return false;
  }

  json_object_foreach (object, key, value) {
    const struct qmp_arg *arg = args;

    while (arg != NULL && arg->name != NULL && strcmp (arg->name, key) != 0)
      arg++;
    if (arg == NULL || arg->name == NULL) {
      set_error (error, "Parameter '%s%.*s' is unexpected", prefix,
                 SHOW_MAX, key);
      return false;
    }
  }
  return true;
}

bool
qmp_check (const struct qmp_command *table, const char *command, json_t *args,
           GError **error)
{
  while (strcmp (table->name, command) != 0)
    table++;
  return check_members (table->args, args, "", error);
}

/* --- one request --- */

/* QEMU's checks of the outermost object, with its texts. */
static const char *
check_request (json_t *request, GError **error)
{
  const char *key;
  json_t *value;

  if (!json_is_object (request)) {
    set_error (error, "QMP input must be a JSON object");
    return NULL;
  }
  json_object_foreach (request, key, value) {
    if (strcmp (key, "execute") == 0) {
      if (!json_is_string (value) || qmp_uint64_is (value)) {
        set_error (error, "QMP input member 'execute' must be a string");
        return NULL;
      }
    }
    else if (strcmp (key, "arguments") == 0) {
      if (!json_is_object (value)) {
        set_error (error, "QMP input member 'arguments' must be an object");
        return NULL;
      }
    }
    else if (strcmp (key, "id") != 0) {
      set_error (error, "QMP input member '%.*s' is unexpected",
                 SHOW_MAX, key);
      return NULL;
    }
  }
  value = json_object_get (request, "execute");
  if (value == NULL) {
    set_error (error, "QMP input lacks member 'execute'");
    return NULL;
  }
  return json_string_value (value);
}

static const struct qmp_command *
find_command (const struct qmp_command *table, struct qmp_session *session,
              const char *name, GError **error)
{
  const struct qmp_command *cmd = table;

  while (cmd->name != NULL && strcmp (cmd->name, name) != 0)
    cmd++;
  if (!session->negotiated &&
      (cmd->name == NULL || !cmd->before_negotiation)) {
    g_set_error (error, QMP_ERROR, QMP_ERROR_COMMAND_NOT_FOUND,
                 "Expecting capabilities negotiation with "
                 "'qmp_capabilities'");
    return NULL;
  }
  if (cmd->name == NULL) {
    g_set_error (error, QMP_ERROR, QMP_ERROR_COMMAND_NOT_FOUND,
                 "The command %.*s has not been found", SHOW_MAX, name);
    return NULL;
  }
  return cmd;
}

static json_t *
run_request (const struct qmp_command *table, struct qmp_session *session,
             json_t *request, GError **error)
{
  const struct qmp_command *cmd;
  const char *name;
  g_autoptr (json_t) args = NULL;

  name = check_request (request, error);
  if (name == NULL)
    return NULL;
  cmd = find_command (table, session, name, error);
  if (cmd == NULL)
    return NULL;
  args = json_incref (json_object_get (request, "arguments"));
  if (args == NULL)
    args = json_object ();
  if (!check_members (cmd->args, args, "", error))
    return NULL;
  /* After its arguments, as QEMU. */
  if (session->negotiated && cmd->before_negotiation) {
    g_set_error (error, QMP_ERROR, QMP_ERROR_COMMAND_NOT_FOUND,
                 "Capabilities negotiation is already complete, command "
                 "ignored");
    return NULL;
  }
  return cmd->run (session, args, error);
}

static json_t *
error_object (const GError *error)
{
  const char *class = "GenericError";
  g_autofree char *desc = g_utf8_make_valid (error->message, -1);

  if (g_error_matches (error, QMP_ERROR, QMP_ERROR_COMMAND_NOT_FOUND))
    class = "CommandNotFound";
  else if (g_error_matches (error, QMP_ERROR, QMP_ERROR_DEVICE_NOT_ACTIVE))
    class = "DeviceNotActive";
  else if (g_error_matches (error, QMP_ERROR, QMP_ERROR_DEVICE_NOT_FOUND))
    class = "DeviceNotFound";
  return json_pack ("{s:{s:s, s:s}}", "error", "class", class, "desc", desc);
}

GString *
qmp_error_reply (const char *desc)
{
  g_autoptr (GError) error = g_error_new_literal (QMP_ERROR, QMP_ERROR_GENERIC,
                                                  desc);

  return to_line (error_object (error));
}

/* jansson says a duplicate key in its own words. */
static GString *
parse_failure (const json_error_t *why)
{
  g_autofree char *text = NULL;

  if (json_error_code (why) == json_error_duplicate_key)
    return qmp_error_reply ("JSON parse error, duplicate key");
  if (json_error_code (why) == json_error_stack_overflow)
    return qmp_error_reply ("JSON nesting depth limit exceeded");
  text = g_strdup_printf ("JSON parse error, %s", why->text);
  return qmp_error_reply (text);
}

GString *
qmp_handle (const struct qmp_command *table, struct qmp_session *session,
            const char *text, size_t length)
{
  g_autoptr (GError) error = NULL;
  g_autoptr (json_t) request = NULL;
  GString *marked;
  json_error_t why;
  json_t *result, *reply, *id;

  marked = qmp_uint64_mark (text, length);
  if (marked == NULL)
    return qmp_error_reply ("JSON parse error, \\u0000 is not allowed");
  request = json_loadb (marked->str, marked->len, JSON_REJECT_DUPLICATES |
                        JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);
  g_string_free (marked, TRUE);
  if (request == NULL)
    return parse_failure (&why);

  result = run_request (table, session, request, &error);
  if (result != NULL)
    reply = json_pack ("{s:o}", "return", result);
  else
    reply = error_object (error);
  id = json_object_get (request, "id");
  if (id != NULL)
    json_object_set (reply, "id", id);
  return to_line (reply);
}

/* --- what the server says by itself --- */

json_t *
qmp_version (void)
{
  int major = 0, minor = 0, micro = 0;

  sscanf (PACKAGE_VERSION, "%d.%d.%d", &major, &minor, &micro);
  return json_pack ("{s:{s:i, s:i, s:i}, s:s}", "qemu",
                    "micro", micro, "minor", minor, "major", major,
                    "package", PACKAGE_NAME " " PACKAGE_VERSION);
}

GString *
qmp_greeting (void)
{
  return to_line (json_pack ("{s:{s:o, s:[]}}", "QMP",
                             "version", qmp_version (), "capabilities"));
}

GString *
qmp_event (const char *name, json_t *data)
{
  int64_t now = g_get_real_time ();
  json_t *event = json_pack ("{s:s}", "event", name);

  if (data != NULL)
    json_object_set_new (event, "data", data);
  json_object_set_new (event, "timestamp",
                       json_pack ("{s:I, s:I}",
                                  "seconds", (json_int_t) (now / 1000000),
                                  "microseconds",
                                  (json_int_t) (now % 1000000)));
  return to_line (event);
}

json_t *
qmp_text (const char *text)
{
  g_autofree char *valid = g_utf8_make_valid (text, -1);

  return json_string (valid);
}

/* --- access to checked arguments --- */

const char *
qmp_get_str (json_t *args, const char *name)
{
  return json_string_value (json_object_get (args, name));
}

bool
qmp_get_bool (json_t *args, const char *name, bool fallback)
{
  json_t *value = json_object_get (args, name);

  return value != NULL ? json_is_true (value) : fallback;
}

int64_t
qmp_get_int (json_t *args, const char *name, int64_t fallback)
{
  json_t *value = json_object_get (args, name);

  return value != NULL ? json_integer_value (value) : fallback;
}
