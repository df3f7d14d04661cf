/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* backend-dump.c - what --help and --dump-plugin say about a plugin. */
#include <config.h>

#include <stdio.h>
#include <stdlib.h>

#include "backend-internal.h"

void
backend_print_help (const Backend *b)
{
  printf ("\n%s", b->plugin.longname ? b->plugin.longname : b->plugin.name);
  if (b->plugin.version)
    printf (" %s", b->plugin.version);
  printf (" (%s)\n", b->path);
  if (b->plugin.description)
    printf ("\n%s\n", b->plugin.description);
  if (b->plugin.config_help)
    printf ("\n%s\n", b->plugin.config_help);
}

static const char *
thread_model_name (int model)
{
  switch (model) {
  case NBDKIT_THREAD_MODEL_SERIALIZE_CONNECTIONS:
    return "serialize_connections";
  case NBDKIT_THREAD_MODEL_SERIALIZE_ALL_REQUESTS:
    return "serialize_all_requests";
  case NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS:
    return "serialize_requests";
  default:
    return "parallel";
  }
}

void
backend_dump_plugin (const Backend *b)
{
  const struct nbdkit_plugin *p = &b->plugin;
  int model = b->thread_model;

  if (p->thread_model) {
    int r = p->thread_model ();

    if (r == -1)
      exit (EXIT_FAILURE);
    model = MIN (model, r);
  }
  /* In nbdkit's order. */
  printf ("path=%s\nname=%s\n", b->path, p->name);
  if (p->version)
    printf ("version=%s\n", p->version);
  printf ("api_version=%d\nstruct_size=%" G_GUINT64_FORMAT "\n",
          p->_api_version, b->struct_size);
  printf ("max_thread_model=%s\nthread_model=%s\nerrno_is_preserved=%d\n",
          thread_model_name (p->_thread_model), thread_model_name (model),
          !!p->errno_is_preserved);
  if (p->magic_config_key)
    printf ("magic_config_key=%s\n", p->magic_config_key);
#define HAS(field) if (p->field) printf ("has_%s=1\n", #field)
  HAS (longname); HAS (description); HAS (load); HAS (unload);
  HAS (dump_plugin); HAS (config); HAS (config_complete); HAS (config_help);
  HAS (thread_model); HAS (get_ready); HAS (after_fork); HAS (cleanup);
  HAS (preconnect); HAS (list_exports); HAS (default_export); HAS (open);
  HAS (close); HAS (export_description); HAS (get_size); HAS (block_size);
  HAS (can_write); HAS (can_flush); HAS (is_rotational); HAS (can_trim);
  HAS (can_zero); HAS (can_fast_zero); HAS (can_extents); HAS (can_fua);
  HAS (can_multi_conn); HAS (can_cache);
  if (p->_api_version > 1) {
    HAS (pread); HAS (pwrite); HAS (flush); HAS (trim); HAS (zero);
  }
  HAS (extents); HAS (cache);
  if (p->_api_version == 1) {
    HAS (_pread_v1); HAS (_pwrite_v1); HAS (_flush_v1); HAS (_trim_v1);
    HAS (_zero_v1);
  }
#undef HAS
  if (b->contexts != NULL)
    printf ("has_metadata_contexts=1\n");
  /* Interpreters have buffers of their own. */
  fflush (stdout);
  if (p->dump_plugin)
    p->dump_plugin ();
}
