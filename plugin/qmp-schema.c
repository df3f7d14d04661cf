/* SPDX-License-Identifier: BSD-3-Clause */
/* The tables in the form of QEMU's query-qmp-schema.
 *
 * Types have numbers for names, as in QEMU, which does not promise them: a
 * client goes from the name of a command or event to the types it refers to.
 * An array is "[ELEMENT]", the object without members is "0".  What is one C
 * table is one type, however often it is referred to.
 */
#include <config.h>

#include "plugin/qmp.h"

typedef struct {
  json_t *types;                /* entries of all but commands and events */
  GHashTable *names;            /* of char *: "what:address", to its name */
} Schema;

static const char *type_of (Schema *s, const struct qmp_arg *arg);

/* The name of the type that is made of the C table at address.  *out_new: it
 * was not asked for before, so its entry has to be made. */
static const char *
name_of (Schema *s, const char *what, const void *address, bool *out_new)
{
  char *key = g_strdup_printf ("%s:%p", what, address);
  const char *name = g_hash_table_lookup (s->names, key);

  *out_new = name == NULL;
  if (name != NULL) {
    g_free (key);
    return name;
  }
  name = g_strdup_printf ("%u", g_hash_table_size (s->names) + 1);
  g_hash_table_insert (s->names, key, (char *) name);
  return name;
}

static void
add_entry (Schema *s, const char *name, const char *meta_type, json_t *entry)
{
  json_object_set_new (entry, "name", json_string (name));
  json_object_set_new (entry, "meta-type", json_string (meta_type));
  json_array_append_new (s->types, entry);
}

static const char *
array_of (Schema *s, const char *element)
{
  g_autofree char *key = g_strdup_printf ("array:%s", element);
  const char *known = g_hash_table_lookup (s->names, key);
  char *name;

  if (known != NULL)
    return known;
  name = g_strdup_printf ("[%s]", element);
  g_hash_table_insert (s->names, g_steal_pointer (&key), name);
  add_entry (s, name, "array", json_pack ("{s:s}", "element-type", element));
  return name;
}

/* As in QEMU 7.2 and later: names with room for more, and the older list. */
static void
add_enum (Schema *s, const char *name, json_t *values)
{
  json_t *members = json_array ();
  size_t i;
  json_t *value;

  json_array_foreach (values, i, value)
    json_array_append_new (members, json_pack ("{s:O}", "name", value));
  add_entry (s, name, "enum", json_pack ("{s:o, s:o}", "members", members,
                                         "values", values));
}

static const char *
enum_of (Schema *s, const char *const *list)
{
  bool is_new;
  const char *name = name_of (s, "enum", list, &is_new);

  if (is_new) {
    json_t *values = json_array ();

    for (size_t i = 0; list[i] != NULL; i++)
      json_array_append_new (values, json_string (list[i]));
    add_enum (s, name, values);
  }
  return name;
}

static json_t *
members_of (Schema *s, const struct qmp_arg *args)
{
  json_t *members = json_array ();

  for (const struct qmp_arg *arg = args; arg->name != NULL; arg++) {
    json_t *member = json_pack ("{s:s, s:s}", "name", arg->name,
                                "type", type_of (s, arg));

    if (!arg->required)
      json_object_set_new (member, "default", json_null ());
    json_array_append_new (members, member);
  }
  return members;
}

static const char *
object_of (Schema *s, const struct qmp_arg *args)
{
  bool is_new;
  const char *name;

  if (args == NULL || args->name == NULL)
    return "0";
  name = name_of (s, "object", args, &is_new);
  if (is_new)
    add_entry (s, name, "object",
               json_pack ("{s:o}", "members", members_of (s, args)));
  return name;
}

/* The object {"data": {...}} of a branch. */
static const char *
variant_of (Schema *s, const struct qmp_arg *data)
{
  bool is_new;
  const char *name = name_of (s, "variant", data, &is_new);

  if (is_new)
    add_entry (s, name, "object",
               json_pack ("{s:[{s:s, s:s}]}", "members", "name", "data",
                          "type", object_of (s, data)));
  return name;
}

static const char *
union_of (Schema *s, const struct qmp_branch *branches)
{
  bool is_new;
  const char *name = name_of (s, "union", branches, &is_new);
  const char *tag;
  json_t *values, *variants;

  if (!is_new)
    return name;
  tag = name_of (s, "tag", branches, &is_new);
  values = json_array ();
  variants = json_array ();
  for (const struct qmp_branch *b = branches; b->type != NULL; b++) {
    json_array_append_new (values, json_string (b->type));
    json_array_append_new (variants,
                           json_pack ("{s:s, s:s}", "case", b->type,
                                      "type", variant_of (s, b->data)));
  }
  add_enum (s, tag, values);
  add_entry (s, name, "object",
             json_pack ("{s:[{s:s, s:s}], s:s, s:o}", "members",
                        "name", "type", "type", tag,
                        "tag", "type", "variants", variants));
  return name;
}

/* A string or such an object. */
static const char *
alternate_of (Schema *s, const struct qmp_arg *members)
{
  bool is_new;
  const char *name = name_of (s, "alternate", members, &is_new);

  if (is_new)
    add_entry (s, name, "alternate",
               json_pack ("{s:[{s:s}, {s:s}]}", "members", "type", "str",
                          "type", object_of (s, members)));
  return name;
}

static const char *
type_of (Schema *s, const struct qmp_arg *arg)
{
  switch (arg->type) {
  case QMP_STR: return "str";
  case QMP_BOOL: return "bool";
  case QMP_INT: return "int";
  case QMP_ENUM: return enum_of (s, arg->values);
  case QMP_OBJECT: return object_of (s, arg->members);
  case QMP_STR_OR_OBJECT: return alternate_of (s, arg->members);
  case QMP_OBJECTS: return array_of (s, object_of (s, arg->members));
  case QMP_STRS: return array_of (s, "str");
  case QMP_STRS_OR_OBJECTS: return array_of (s, alternate_of (s, arg->members));
  case QMP_UNIONS: return array_of (s, union_of (s, arg->branches));
  case QMP_NULL: return "null";
  case QMP_ANY: break;
  }
  return "any";
}

json_t *
qmp_schema (const struct qmp_command *commands,
            const struct qmp_event_type *events)
{
  static const char *const builtins[][2] = {
    { "str", "string" }, { "bool", "boolean" }, { "int", "int" },
    { "null", "null" }, { "any", "value" },
  };
  Schema s = {
    .types = json_array (),
    .names = g_hash_table_new_full (g_str_hash, g_str_equal, g_free, g_free),
  };
  json_t *list = json_array ();

  for (size_t i = 0; i < G_N_ELEMENTS (builtins); i++)
    add_entry (&s, builtins[i][0], "builtin",
               json_pack ("{s:s}", "json-type", builtins[i][1]));
  add_entry (&s, "0", "object", json_pack ("{s:[]}", "members"));

  for (const struct qmp_command *c = commands; c->name != NULL; c++)
    json_array_append_new
      (list, json_pack ("{s:s, s:s, s:s, s:s}", "name", c->name,
                        "meta-type", "command",
                        "arg-type", object_of (&s, c->args),
                        "ret-type", c->returns != NULL ?
                        type_of (&s, c->returns) : "0"));
  for (const struct qmp_event_type *e = events; e->name != NULL; e++)
    json_array_append_new
      (list, json_pack ("{s:s, s:s, s:s}", "name", e->name,
                        "meta-type", "event",
                        "arg-type", object_of (&s, e->data)));
  json_array_extend (list, s.types);
  json_decref (s.types);
  g_hash_table_unref (s.names);
  return list;
}
