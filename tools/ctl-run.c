/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/ctl-run.h"

#define URI_VARIABLE "NBDFLEECE_URI"

static volatile sig_atomic_t interrupted_by;

static void
note_signal (int sig)
{
  interrupted_by = sig;
}

void
run_catch_signals (void)
{
  static const int signals[] = { SIGINT, SIGTERM, SIGHUP };
  struct sigaction sa = { .sa_handler = note_signal };

  for (size_t i = 0; i < G_N_ELEMENTS (signals); i++) {
    struct sigaction old;

    /* nohup stays in force. */
    if (sigaction (signals[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
      sigaction (signals[i], &sa, NULL);
  }
}

bool
run_interrupted (void)
{
  return interrupted_by != 0;
}

void
run_die_if_interrupted (void)
{
  if (interrupted_by == 0)
    return;
  fflush (NULL);
  signal (interrupted_by, SIG_DFL);
  raise (interrupted_by);
}

enum progress_style
run_progress_style (const struct ctl *ctl)
{
  if (args_flag (ctl->args, "no-progress"))
    return PROGRESS_NONE;
  if (isatty (STDERR_FILENO))
    return PROGRESS_BAR;
  return args_flag (ctl->args, "progress") ? PROGRESS_LINES : PROGRESS_NONE;
}

/* nbd.sock beside the control socket, as in the man pages. */
static char *
default_uri (const struct ctl *ctl)
{
  g_autofree char *dir = g_path_get_dirname (ctl->control);
  g_autofree char *path = g_build_filename (dir, "nbd.sock", NULL);
  g_autofree char *absolute = g_canonicalize_filename (path, NULL);
  g_autofree char *escaped = g_uri_escape_string (absolute, "/", FALSE);

  if (access (path, F_OK) == -1)
    return NULL;
  return g_strconcat ("nbd+unix:///?socket=", escaped, NULL);
}

char *
run_export_uri (const struct ctl *ctl, const char *export)
{
  g_autofree char *found = NULL, *path = NULL;
  const char *base = args_value (ctl->args, "uri");
  g_autoptr (GUri) uri = NULL;

  if (base == NULL)
    base = g_getenv (URI_VARIABLE);
  if (base == NULL || *base == '\0')
    base = found = default_uri (ctl);
  if (base == NULL) {
    ctl_usage (ctl, "where does the server serve? Use --uri URI or set $"
               URI_VARIABLE ", e.g. nbd+unix:///?socket=PATH");
    return NULL;
  }
  uri = g_uri_parse (base, G_URI_FLAGS_ENCODED, NULL);
  if (uri == NULL || !g_str_has_prefix (g_uri_get_scheme (uri), "nbd") ||
      (strcmp (g_uri_get_path (uri), "") != 0 &&
       strcmp (g_uri_get_path (uri), "/") != 0)) {
    ctl_usage (ctl, "'%s' is no NBD URI without an export, such as "
               "nbd+unix:///?socket=PATH or nbd://HOST", base);
    return NULL;
  }
  path = g_strconcat ("/", export, NULL);
  return g_uri_join (G_URI_FLAGS_ENCODED, g_uri_get_scheme (uri),
                     g_uri_get_userinfo (uri),
                     g_uri_get_host (uri) != NULL ? g_uri_get_host (uri) : "",
                     g_uri_get_port (uri), path, g_uri_get_query (uri), NULL);
}

/* The one that was installed, or built, together with this program. */
static char *
find_fleececopy (void)
{
  g_autofree char *self = g_file_read_link ("/proc/self/exe", NULL);
  g_autofree char *dir = self != NULL ? g_path_get_dirname (self) : NULL;
  g_autofree char *path =
    dir != NULL ? g_build_filename (dir, "fleececopy", NULL) : NULL;

  return path != NULL && access (path, X_OK) == 0 ? g_steal_pointer (&path)
    : g_strdup ("fleececopy");
}

bool
run_fleececopy (const struct ctl *ctl, const char *const *arguments)
{
  g_autofree char *program = find_fleececopy ();
  g_autoptr (GPtrArray) argv = g_ptr_array_new ();
  g_autoptr (GError) error = NULL;
  int status;
  GPid pid;

  if (run_interrupted ())
    return false;
  g_ptr_array_add (argv, program);
  if (run_progress_style (ctl) == PROGRESS_NONE)
    g_ptr_array_add (argv, (gpointer) "--no-progress");
  else if (args_flag (ctl->args, "progress"))
    g_ptr_array_add (argv, (gpointer) "--progress");
  for (; *arguments != NULL; arguments++)
    g_ptr_array_add (argv, (gpointer) *arguments);
  g_ptr_array_add (argv, NULL);
  if (!g_spawn_async (NULL, (char **) argv->pdata, NULL,
                      G_SPAWN_DO_NOT_REAP_CHILD | G_SPAWN_SEARCH_PATH, NULL,
                      NULL, &pid, &error)) {
    ctl_fail ("cannot run fleececopy: %s", error->message);
    return false;
  }
  /* It stops by itself on a signal, leaving the image marked as unfinished. */
  if (run_interrupted ())
    kill (pid, SIGTERM);
  while (waitpid (pid, &status, 0) == -1 && errno == EINTR)
    kill (pid, SIGTERM);
  return WIFEXITED (status) && WEXITSTATUS (status) == 0;
}

const json_t *
run_find_block (const json_t *blocks, const char *disk)
{
  const json_t *block;
  size_t i;

  json_array_foreach (blocks, i, block)
    if (g_strcmp0 (ctl_get (block, "device"), disk) == 0)
      return block;
  return NULL;
}

int64_t
run_disk_size (const json_t *blocks, const char *disk)
{
  const json_t *inserted =
    json_object_get (run_find_block (blocks, disk), "inserted");
  const json_t *size = json_object_get (json_object_get (inserted, "image"),
                                        "virtual-size");

  return json_is_integer (size) ? json_integer_value (size) : -1;
}
