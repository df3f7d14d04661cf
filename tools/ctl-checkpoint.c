/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ctl-checkpoint.c - checkpoint create, delete, list, redefine, validate,
 * prune. */
#include <config.h>

#include <langinfo.h>
#include <stdio.h>
#include <string.h>

#include "tools/ctl.h"
#include "tools/human.h"
#include "tools/table.h"

static const struct arg_spec no_options[] = { { NULL } };

static const struct arg_spec create_options[] = {
  { "disk", "DISK", "only this disk", true },
  { "description", "TEXT", "what it is for" },
  { NULL }
};

/* Those of --disk; none: all that the server has. */
static void
put_disks (struct ctl *ctl, json_t *arguments)
{
  const GPtrArray *disks = args_values (ctl->args, "disk");
  json_t *list;

  if (disks->len == 0)
    return;
  list = json_array ();
  for (unsigned i = 0; i < disks->len; i++)
    json_array_append_new (list, json_pack ("{s:s}", "disk",
                                            disks->pdata[i]));
  json_object_set_new (arguments, "disks", list);
}

static int
create (struct ctl *ctl)
{
  json_t *arguments = json_pack ("{s:s}", "name", ctl_word (ctl, 0));

  ctl_put_string (ctl, arguments, "description", "description");
  put_disks (ctl, arguments);
  return ctl_simple (ctl, "checkpoint-create", arguments, NULL);
}

static const struct arg_spec delete_options[] = {
  { "children", NULL, "delete all that come after it as well" },
  { "children-only", NULL, "delete all that come after it, not itself" },
  { "metadata", NULL, "forget the checkpoint, keep its bitmaps" },
  { NULL }
};

static int
delete (struct ctl *ctl)
{
  json_t *arguments;

  if (args_flag (ctl->args, "children") &&
      args_flag (ctl->args, "children-only"))
    return ctl_usage (ctl, "--children and --children-only exclude each "
                      "other");
  arguments = json_pack ("{s:s}", "name", ctl_word (ctl, 0));
  ctl_put_flag (ctl, arguments, "children", "children");
  ctl_put_flag (ctl, arguments, "children-only", "children-only");
  ctl_put_flag (ctl, arguments, "metadata", "metadata");
  return ctl_simple (ctl, "checkpoint-delete", arguments, NULL);
}

static const struct arg_spec list_options[] = {
  { "size", NULL, "how much has changed since each" },
  { "roots", NULL, "only those without a parent" },
  { "leaves", NULL, "only those without children" },
  { "from", "NAME", "only what comes after this one" },
  { NULL }
};

/* Drawing the tree.  In practice it is a line, years long, so an only child
 * stands right below its parent; only where a tree branches does it indent.
 */
struct tree {
  json_t *list;                 /* as it came, parents first */
  Table *table;
  const struct ctl *ctl;
  GHashTable *children;         /* name -> GPtrArray of json_t */
  bool utf8;
};

static void
add_row (struct tree *t, const json_t *ckpt, const char *prefix)
{
  bool current = json_is_true (json_object_get (ckpt, "current"));
  const char *node = t->utf8 ? (current ? "●" : "○") : (current ? "*" : "o");
  const char *name = ctl_get (ckpt, "name");
  g_autofree char *escaped = human_escape (name != NULL ? name : "?", 200);
  g_autoptr (GString) disks = g_string_new (NULL);
  json_int_t size = 0;
  bool has_size = false;
  const char *state = NULL;
  json_t *disk;
  size_t i;

  json_array_foreach (json_object_get (ckpt, "disks"), i, disk) {
    const json_t *n = json_object_get (disk, "size");
    const char *s = ctl_get (disk, "state");

    g_string_append_printf (disks, "%s%s", i > 0 ? "," : "",
                            ctl_get (disk, "disk") != NULL
                              ? ctl_get (disk, "disk") : "?");
    if (json_is_integer (n)) {
      size += json_integer_value (n);
      has_size = true;
    }
    if (s != NULL && strcmp (s, "ok") != 0 && strcmp (s, "good") != 0 &&
        strcmp (s, "recording") != 0)
      state = s;
  }
  table_cell_take (t->table, g_strconcat (prefix, node, " ", escaped,
                                          current ? " (current)" : "", NULL));
  table_cell_take (t->table, ctl_get_time (t->ctl, ckpt, "creation-time"));
  table_cell (t->table, disks->str);
  table_cell_take (t->table, has_size ? human_size (size) : NULL);
  table_cell (t->table, state);
  table_cell (t->table, ctl_get (ckpt, "description"));
}

/* A line of only children needs no recursion however long it is; branches do,
 * and the depth of those is bounded.
 */
#define MAX_BRANCHES 64

static void
add_branch (struct tree *t, const json_t *ckpt, const char *prefix,
            unsigned depth)
{
  for (;;) {
    const char *name = ctl_get (ckpt, "name");
    GPtrArray *children =
      name != NULL ? g_hash_table_lookup (t->children, name) : NULL;
    g_autofree char *inner = NULL, *fork = NULL;

    add_row (t, ckpt, prefix);
    if (children == NULL)
      return;
    /* Each is drawn once, whatever the parents say. */
    g_hash_table_steal (t->children, name);
    inner = g_strconcat (prefix, t->utf8 ? "│ " : "| ", NULL);
    fork = g_strconcat (prefix, t->utf8 ? "├─" : "|-", NULL);
    for (unsigned i = 0; i + 1 < children->len; i++) {
      if (depth < MAX_BRANCHES)
        add_branch (t, children->pdata[i], inner, depth + 1);
      else
        add_row (t, children->pdata[i], fork);
    }
    ckpt = children->pdata[children->len - 1];
    g_ptr_array_unref (children);
  }
}

static void
draw_tree (struct tree *t)
{
  g_autoptr (GHashTable) names = g_hash_table_new (g_str_hash, g_str_equal);
  json_t *ckpt;
  size_t i;

  json_array_foreach (t->list, i, ckpt)
    if (ctl_get (ckpt, "name") != NULL)
      g_hash_table_add (names, (gpointer) ctl_get (ckpt, "name"));
  json_array_foreach (t->list, i, ckpt) {
    const char *parent = ctl_get (ckpt, "parent");
    GPtrArray *children;

    if (parent == NULL || !g_hash_table_contains (names, parent))
      continue;
    children = g_hash_table_lookup (t->children, parent);
    if (children == NULL) {
      children = g_ptr_array_new ();
      g_hash_table_insert (t->children, (gpointer) parent, children);
    }
    g_ptr_array_add (children, ckpt);
  }
  json_array_foreach (t->list, i, ckpt) {
    const char *parent = ctl_get (ckpt, "parent");

    if (parent == NULL || !g_hash_table_contains (names, parent))
      add_branch (t, ckpt, "", 0);
  }
}

static int
list (struct ctl *ctl)
{
  static const char *const titles[] =
    { "CHECKPOINT", "CREATED", "DISKS", ">CHANGED", "STATE", "DESCRIPTION",
      NULL };
  g_autoptr (Table) table = table_new (titles);
  g_autoptr (GHashTable) children =
    g_hash_table_new_full (g_str_hash, g_str_equal, NULL,
                           (GDestroyNotify) g_ptr_array_unref);
  struct tree t = { .table = table, .ctl = ctl, .children = children };
  json_t *arguments = json_object ();

  ctl_put_flag (ctl, arguments, "size", "size");
  ctl_put_flag (ctl, arguments, "roots", "roots");
  ctl_put_flag (ctl, arguments, "leaves", "leaves");
  ctl_put_string (ctl, arguments, "from", "from");
  t.utf8 = strcmp (nl_langinfo (CODESET), "UTF-8") == 0;
  t.list = ctl_execute (ctl, "checkpoint-list", arguments);
  if (t.list == NULL)
    return EXIT_FAILED;
  if (!ctl_print_json (ctl, t.list)) {
    draw_tree (&t);
    table_print (table);
  }
  json_decref (t.list);
  return EXIT_OK;
}

/* --- prune --- */

static const struct arg_spec prune_options[] = {
  { "keep", "N", "keep the newest N" },
  { "older-than", "AGE", "only those older than 90s, 30m, 12h, 7d or 2w" },
  { "dry-run", NULL, "only say which" },
  { NULL }
};

static gint64
creation_time (gconstpointer ckpt)
{
  return json_integer_value (json_object_get (ckpt, "creation-time"));
}

/* Newest first; of the same second, the one that was listed last. */
static gint
by_age (gconstpointer a, gconstpointer b)
{
  gint64 ta = creation_time (*(json_t *const *) a);
  gint64 tb = creation_time (*(json_t *const *) b);

  return (tb > ta) - (tb < ta);
}

/* Their names, oldest first. */
static json_t *
prunable (json_t *list, uint64_t keep, int64_t before)
{
  g_autoptr (GPtrArray) sorted = g_ptr_array_new ();
  json_t *names = json_array ();

  for (size_t i = json_array_size (list); i > 0; i--)
    g_ptr_array_add (sorted, json_array_get (list, i - 1));
  g_ptr_array_sort (sorted, by_age);    /* stable: a merge sort */
  for (guint i = sorted->len; i > 0 && i > keep; i--) {
    const json_t *ckpt = sorted->pdata[i - 1];

    if (creation_time (ckpt) < before)
      json_array_append (names, json_object_get (ckpt, "name"));
  }
  return names;
}

static int
prune_names (struct ctl *ctl, const json_t *names)
{
  bool dry = args_flag (ctl->args, "dry-run");
  int status = EXIT_OK;
  const json_t *name;
  size_t i;

  json_array_foreach (names, i, name) {
    const char *text = json_string_value (name);
    g_autofree char *shown = human_escape (text != NULL ? text : "?", 200);
    json_t *reply = NULL;

    if (!dry) {
      reply = ctl_execute (ctl, "checkpoint-delete",
                           json_pack ("{s:s*}", "name", text));
      json_decref (reply);
    }
    if (!dry && reply == NULL)
      status = EXIT_FAILED;     /* the others all the same */
    else if (!ctl->json)
      printf ("%s%s\n", dry ? "would delete " : "deleted ", shown);
  }
  return status;
}

static int
prune (struct ctl *ctl)
{
  const char *keep = args_value (ctl->args, "keep");
  const char *older = args_value (ctl->args, "older-than");
  uint64_t nr_kept = 0, age = 0;
  json_t *list, *names;
  int status;

  if (keep == NULL && older == NULL)
    return ctl_usage (ctl, "which ones? Use --keep N, --older-than AGE, or "
                      "both");
  if (keep != NULL && !human_parse_uint (keep, 0, UINT32_MAX, &nr_kept))
    return ctl_usage (ctl, "--keep needs a number, not '%s'", keep);
  if (older != NULL && !human_parse_age (older, &age))
    return ctl_usage (ctl, "--older-than needs an age such as 12h or 7d, not "
                      "'%s'", older);
  list = ctl_execute (ctl, "checkpoint-list", NULL);
  if (list == NULL)
    return EXIT_FAILED;
  names = prunable (list, nr_kept, older == NULL ? INT64_MAX
                    : g_get_real_time () / G_USEC_PER_SEC - (int64_t) age);
  status = prune_names (ctl, names);
  ctl_print_json (ctl, names);
  json_decref (names);
  json_decref (list);
  return status;
}

/* --- redefine, validate --- */

static const struct arg_spec redefine_options[] = {
  { "time", "SECONDS", "when it was made, since 1970; needed" },
  { "parent", "NAME", "the checkpoint before it" },
  { "description", "TEXT", "what it is for" },
  { "disk", "DISK", "only this disk", true },
  { "validate", NULL, "each disk must have a good record of it" },
  { NULL }
};

static int
redefine (struct ctl *ctl)
{
  const char *when = args_value (ctl->args, "time");
  json_t *arguments;
  uint64_t seconds;

  if (when == NULL || !human_parse_uint (when, 0, INT64_MAX, &seconds))
    return ctl_usage (ctl, "when was it made? Use --time SECONDS");
  arguments = json_pack ("{s:s, s:I, s:b}", "name", ctl_word (ctl, 0),
                         "creation-time", (json_int_t) seconds, "redefine", 1);
  ctl_put_string (ctl, arguments, "parent", "parent");
  ctl_put_string (ctl, arguments, "description", "description");
  ctl_put_flag (ctl, arguments, "redefine-validate", "validate");
  put_disks (ctl, arguments);
  return ctl_simple (ctl, "checkpoint-create", arguments, NULL);
}

/* Is there a record of it, on every disk?  Asking for the sizes reads them
 * all. */
static int
validate (struct ctl *ctl)
{
  json_t *found =
    ctl_execute (ctl, "checkpoint-list",
                 json_pack ("{s:s, s:b}", "name", ctl_word (ctl, 0),
                            "size", 1));
  const json_t *disk;
  int status = EXIT_OK;
  size_t i;

  if (found == NULL)
    return EXIT_FAILED;
  json_array_foreach (json_object_get (json_array_get (found, 0), "disks"), i,
                      disk) {
    const char *state = ctl_get (disk, "state");

    if (g_strcmp0 (state, "ok") == 0 || g_strcmp0 (state, "detached") == 0)
      continue;
    status = ctl_fail ("the record of disk '%s' is %s",
                       ctl_get (disk, "disk") != NULL ? ctl_get (disk, "disk")
                       : "?", state != NULL ? state : "unknown");
  }
  ctl_print_json (ctl, found);
  json_decref (found);
  return status;
}

const struct verb checkpoint_verbs[] = {
  { "checkpoint create", "NAME", 1, 1, "name this instant on all disks",
    create_options, create },
  { "checkpoint delete", "NAME", 1, 1, "forget a checkpoint", delete_options,
    delete },
  { "checkpoint list", "", 0, 0, "the tree of checkpoints", list_options,
    list },
  { "checkpoint redefine", "NAME", 1, 1, "describe a known checkpoint again",
    redefine_options, redefine },
  { "checkpoint validate", "NAME", 1, 1,
    "is all that changed since it on record?", no_options, validate },
  { "checkpoint prune", "", 0, 0, "delete old checkpoints", prune_options,
    prune },
  { NULL }
};
