/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* main.c - bring everything up in order, and down again. */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access-file.h"
#include "activation.h"
#include "backend.h"
#include "command-line.h"
#include "conn.h"
#include "endpoints.h"
#include "listen.h"
#include "metrics.h"
#include "notify.h"
#include "plugin-path.h"
#include "pool.h"
#include "privileges.h"
#include "process.h"
#include "quit.h"
#include "reexec.h"
#include "reload.h"
#include "single.h"
#include "steal.h"

static void
dump_config (void)
{
  g_autofree char *exe = g_file_read_link ("/proc/self/exe", NULL);
  g_autofree char *fleece = plugin_path_default ();

  printf ("binary=%s\n", exe ? exe : "");
  printf ("default_plugin=%s\n", fleece);
  printf ("handover=%d\n", HANDOVER_VERSION);
  printf ("name=%s\n", PACKAGE_NAME);
  printf ("nbdkit_plugindir=%s\n", NBDKIT_PLUGINDIR);
  printf ("plugindir=%s\n", PLUGINDIR);
  printf ("root_tls_certificates_dir=%s/pki/%s\n", SYSCONFDIR, PACKAGE_NAME);
  printf ("tls=yes\n");
  printf ("version=%s\n", PACKAGE_VERSION);
}

/* script: comes before all parameters; NULL: none. */
static bool
configure (Backend *b, const char *script, char **parameters)
{
  unsigned n = 0;

  if (script != NULL && !backend_config_bare (b, script, n++))
    return false;
  for (; *parameters; parameters++) {
    bool ok;

    if (!backend_is_setting (*parameters))
      ok = backend_config_bare (b, *parameters, n++);
    else {
      char *equal = strchr (*parameters, '=');

      /* The plugin may keep both strings; argv stays. */
      *equal = '\0';
      ok = backend_config (b, *parameters, equal + 1);
      n++;
    }
    if (!ok)
      return false;
  }
  return true;
}

static void
start_captive (const struct command_line *cl)
{
  g_autofree char *uri = endpoints_uri (cl->exportname);
  const char *path = endpoints_unix_path ();
  g_autofree char *port = *path || endpoints_port () == 0 ? g_strdup ("")
    : g_strdup_printf ("%u", endpoints_port ());
  const char *env[] = {
    "uri", uri, "nbd", uri, "port", port, "unixsocket", path,
    "exportname", cl->exportname, NULL
  };

  process_captive (cl->run, env);
}

/* Where messages go once the server runs. */
static void
set_log_target (const struct command_line *cl)
{
  if (cl->log)
    log_set_target (cl->log);
  else if (!cl->foreground && cl->run == NULL)
    log_set_target ("syslog");
}

static bool
write_pidfile (const char *path)
{
  g_autofree char *text = g_strdup_printf ("%ld\n", (long) getpid ());
  int fd = open (path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  bool ok;

  ok = fd != -1 && write (fd, text, strlen (text)) == (ssize_t) strlen (text);
  if (fd != -1 && close (fd) == -1)
    ok = false;
  if (!ok)
    log_error ("cannot write pid file '%s': %m", path);
  return ok;
}

/* Everything is to go on in another image, unless we have been told to end
 * meanwhile. */
static void
hand_over (void)
{
  Handover *h;

  log_debug ("making way for the next image");
  conn_park_all ();
  quit_hold ();
  if (quit_requested ())
    return;
  h = reexec_begin ();
  listen_hand_over (h);
  conn_hand_over (h);
  h->private_folder = endpoints_steal_private_folder ();
}

/* Go on where an earlier image has stopped. */
static void
resume (const Handover *h)
{
  conn_set_last_number (h->last_conn_number);
  for (guint i = 0; i < h->conns->len; i++)
    conn_resume (h->conns->pdata[i]);
  log_debug ("took over %u clients", h->conns->len);
  reexec_forget_conns ();
}

static void
remove_sockets (void)
{
  listen_close_all ();
  metrics_close ();
  endpoints_close ();
}

/* The plugin does not come back: end as kill -9 would, but for our files. */
static void __attribute__ ((noreturn))
give_up (const char *pidfile)
{
  remove_sockets ();
  if (pidfile)
    unlink (pidfile);
  _exit (EXIT_FAILURE);
}

static bool
reload_access (void)
{
  g_autoptr (GError) error = NULL;

  if (access_file_reload (&error))
    return true;
  log_error ("the rules stay as they were: %s", error->message);
  return false;
}

static bool
become_user (GError **error)
{
  uid_t uid;
  gid_t gid;

  privileges_get (&uid, &gid);
  return log_give_file (uid, gid, error) && privileges_begin (error);
}

/* From the fork to the end. */
static bool
serve (const struct command_line *cl, Backend *b, const char *pidfile)
{
  g_autoptr (GError) error = NULL;
  bool ok = backend_after_fork (b);

  quit_is_heeded ();
  if (ok && !steal_start ()) {
    log_error ("cannot start a thread: %m");
    ok = false;
  }
  else if (ok && !metrics_start (b)) {
    log_error ("cannot start a thread: %m");
    steal_stop ();
    ok = false;
  }
  /* After a re-execution it is there, and somebody may be reading it. */
  if (ok && pidfile && reexec_inherited () == NULL &&
      !write_pidfile (pidfile)) {
    metrics_stop ();
    steal_stop ();
    ok = false;
  }
  if (!ok)
    return false;

  /* Whoever starts it by hand wants to know. */
  if ((cl->print_uri || (cl->foreground && isatty (STDOUT_FILENO))) &&
      reexec_inherited () == NULL)
    endpoints_print_uris (b, cl->settings.readonly);
  set_log_target (cl);
  reload_add ("keys for TLS", tls_reload);
  reload_add ("rules of --access", reload_access);
  process_ready ();
  if (reexec_inherited ())
    resume (reexec_inherited ());
  if (cl->single && !single_start (&error)) {
    log_error ("%s", error->message);
    quit_request ();
  }
  notify_ready ();
  listen_run ();

  if (reexec_scheduled ()) {
    notify_reloading ("replacing the program");
    hand_over ();
  }
  else {
    log_debug ("shutting down");
    notify_stopping ();
  }
  listen_close_all ();
  if (!conn_stop_all ())
    give_up (pidfile);
  single_finish ();
  metrics_stop ();
  steal_stop ();
  pool_finish ();
  if (pidfile && reexec_outgoing () == NULL)
    unlink (pidfile);
  return true;
}

/* Before anything can fail: there is no terminal to tell it, and socket files
 * shall not stay behind. */
static void
take_over (const struct command_line *cl, const Handover *h)
{
  set_log_target (cl);
  listen_take_over (h);
  endpoints_take_private_folder (h->private_folder);
}

static bool
configure_and_serve (struct command_line *cl, Backend *b, const char *script)
{
  g_autofree char *pidfile = NULL;
  g_autoptr (GError) error = NULL;
  bool ok;

  if (cl->log && !log_prepare (cl->log, &error)) {
    log_error ("%s", error->message);
    return false;
  }
  if (reexec_inherited ())
    take_over (cl, reexec_inherited ());
  if (cl->access_file && !access_file_load (cl->access_file, &error)) {
    log_error ("%s", error->message);
    goto fail;
  }
  if (!configure (b, script, cl->parameters) || !backend_config_complete (b))
    goto fail;
  if (!tls_setup (&cl->tls, &error)) {
    log_error ("%s", error->message);
    goto fail;
  }
  cl->settings.backend = b;
  conn_init (&cl->settings);
  if (cl->pidfile)
    pidfile = g_canonicalize_filename (cl->pidfile, NULL);
  if (!become_user (&error)) {
    log_error ("%s", error->message);
    goto fail;
  }
  if (!backend_get_ready (b))
    goto fail;
  quit_leaves_files ();
  ok = reexec_inherited () || endpoints_open (cl);
  if (ok && cl->metrics && !metrics_listen (cl->metrics, &error)) {
    log_error ("%s", error->message);
    ok = false;
  }
  if (ok && !privileges_drop (&error)) {
    log_error ("%s", error->message);
    ok = false;
  }
  /* The change has made it forget that. */
  if (ok && cl->exit_with_parent && privileges_are_set ())
    ok = process_exit_with_parent ();
  if (ok) {
    if (reexec_inherited ())
      process_resume (!cl->foreground && cl->run == NULL);
    else if (cl->run)
      start_captive (cl);
    else if (!cl->foreground)
      process_daemonize ();
    ok = serve (cl, b, pidfile);
  }
  remove_sockets ();
  return ok;

 fail:
  remove_sockets ();
  return false;
}

static void
show_version (Backend *b)
{
  printf ("%s %s\n", PACKAGE_NAME, PACKAGE_VERSION);
  if (b)
    printf ("%s%s%s\n", backend_name (b), backend_version (b) ? " " : "",
            backend_version (b) ? backend_version (b) : "");
}

/* Without a plugin on the command line, what people ask for can be told even
 * if there is no plugin at all. */
static bool
answer_without_plugin (const struct command_line *cl)
{
  if (cl->mode == DUMP_THE_CONFIG)
    dump_config ();
  else if (cl->mode == SHOW_VERSION && !cl->plugin)
    show_version (NULL);
  else if (cl->mode == SHOW_HELP && !cl->plugin)
    command_line_help ();
  else
    return false;
  return true;
}

/* What comes before the plugin: it shall neither find sockets that were passed
 * to us, nor a client. */
static bool
prepare (const struct command_line *cl, GError **error)
{
  if (!activation_init (error) ||
      !privileges_set (cl->user, cl->group, error) ||
      (cl->single && !single_take_stdio (error)))
    return false;
  if (cl->single)
    reexec_forbid ("it serves standard input and output (-s)");
  else if (privileges_are_set ())
    reexec_forbid ("it has given up the privileges with which it was started "
                   "(-u, -g)");
  return true;
}

int
main (int argc, char **argv)
{
  struct command_line cl;
  g_autoptr (GError) error = NULL;
  g_autofree char *path = NULL, *script = NULL;
  bool ok = true;
  Backend *b;

  setlocale (LC_ALL, "");
  umask (0022);                 /* what nbdkit promises to plugins */
  if (!reexec_init (argc, argv, &error)) {
    log_error ("%s", error->message);
    return EXIT_FAILURE;
  }
  command_line_parse (argc, argv, &cl);
  if (cl.mode == SERVE && !prepare (&cl, &error)) {
    log_error ("%s", error->message);
    command_line_clear (&cl);
    return EXIT_FAILURE;
  }
  /* A service manager waits for nobody but the process that it has started. */
  if (activation_count () > 0)
    cl.foreground = true;
  if (answer_without_plugin (&cl)) {
    command_line_clear (&cl);
    return EXIT_SUCCESS;
  }
  if (!quit_init (reexec_inherited () != NULL) ||
      (cl.exit_with_parent && !process_exit_with_parent ())) {
    log_error ("cannot set up signals: %m");
    return EXIT_FAILURE;
  }
  path = plugin_path (cl.plugin, &script, &error);
  b = path ? backend_load (path, (char **) cl.debug_flags->pdata, &error)
           : NULL;
  if (b == NULL) {
    log_error ("%s", error->message);
    command_line_clear (&cl);
    return EXIT_FAILURE;
  }
  switch (cl.mode) {
  case SHOW_HELP:
    command_line_help ();
    backend_print_help (b);
    break;
  case SHOW_VERSION:
    show_version (b);
    break;
  case DUMP_THE_PLUGIN:
    ok = configure (b, script, cl.parameters);
    if (ok)
      backend_dump_plugin (b);
    break;
  default:
    ok = configure_and_serve (&cl, b, script);
  }
  command_line_clear (&cl);
  backend_unload (b);
  tls_cleanup ();
  if (reexec_outgoing ()) {
    reexec_exec ();
    return EXIT_FAILURE;
  }
  return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
