/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ctl-restore-run.c - restore run: images of a backup folder back to their
 * disks. */
#include <config.h>

#include <stdio.h>

#include "tools/backup-dir.h"
#include "tools/ctl-run.h"
#include "tools/ctl.h"
#include "tools/human.h"

struct restore {
  struct ctl *ctl;
  BackupDir *dir;
  json_t *blocks;               /* query-block */
};

static const struct arg_spec restore_options[] = {
  { "uri", "URI", "where the server serves NBD" },
  { "progress", NULL, "show progress also without a terminal" },
  { "no-progress", NULL, "show none" },
  { NULL }
};

static bool
check_restore (const struct restore *r, const char *disk)
{
  const json_t *entry = backup_dir_find (r->dir, disk);
  g_autofree char *image = backup_dir_image (r->dir, disk);
  g_autofree char *shown = human_escape (disk, 100);
  g_autoptr (GError) error = NULL;
  g_autofree char *sum = NULL;
  uint64_t size = 0;

  if (entry == NULL) {
    ctl_fail ("'%s' has no backup of disk '%s'", r->dir->path, shown);
    return false;
  }
  if (run_find_block (r->blocks, disk) == NULL) {
    ctl_fail ("there is no disk '%s'", shown);
    return false;
  }
  if (run_disk_size (r->blocks, disk) !=
      json_integer_value (json_object_get (entry, "size"))) {
    ctl_fail ("disk '%s' has %lld bytes and its backup %lld: give it that size "
              "with fleecectl disk resize", shown,
              (long long) run_disk_size (r->blocks, disk),
              (long long) json_integer_value (json_object_get (entry,
                                                               "size")));
    return false;
  }
  sum = backup_dir_digest (image, run_progress_style (r->ctl),
                           run_interrupted, &size, &error);
  if (sum == NULL)
    ctl_fail ("%s", error->message);
  else if (g_strcmp0 (sum, ctl_get (entry, "sha256")) != 0)
    ctl_fail ("'%s' is not what the manifest says: its digest differs%s", image,
              json_array_size (json_object_get (entry, "unfinished")) > 0
                ? " (a later backup run came to no end; run it again)" : "");
  return sum != NULL && g_strcmp0 (sum, ctl_get (entry, "sha256")) == 0;
}

static bool
restore_one (const struct restore *r, const char *disk)
{
  g_autofree char *uri = run_export_uri (r->ctl, disk);
  g_autofree char *image = backup_dir_image (r->dir, disk);
  const char *const argv[] = { "--verify", "--", image, uri, NULL };

  if (uri == NULL)
    return false;
  fprintf (stderr, "%s: from %s\n", disk, image);
  if (!run_fleececopy (r->ctl, argv)) {
    ctl_fail ("disk '%s' is NOT restored: it may hold parts of its backup",
              disk);
    return false;
  }
  return true;
}

static int
restore_run (struct ctl *ctl)
{
  const GPtrArray *words = args_words (ctl->args);
  g_autoptr (GError) error = NULL;
  g_autoptr (BackupDir) dir = NULL;
  g_autofree char *uri = run_export_uri (ctl, "x");
  struct restore r = { .ctl = ctl };
  json_t *restored;
  bool ok = true;

  if (uri == NULL)
    return EXIT_USAGE;
  dir = backup_dir_open (ctl_word (ctl, 0), false, false, &error);
  if (dir == NULL)
    return ctl_fail ("%s", error->message);
  r.dir = dir;
  r.blocks = ctl_execute (ctl, "query-block", NULL);
  if (r.blocks == NULL)
    return EXIT_FAILED;
  run_catch_signals ();
  /* All are checked before any is touched. */
  for (unsigned i = 1; ok && i < words->len; i++)
    ok = check_restore (&r, words->pdata[i]);
  restored = json_array ();
  for (unsigned i = 1; ok && i < words->len; i++) {
    ok = restore_one (&r, words->pdata[i]);
    json_array_append (restored, backup_dir_find (dir, words->pdata[i]));
    if (ok && !ctl->json)
      printf ("%s: restored\n", ctl_word (ctl, i));
  }
  if (ok)
    ctl_print_json (ctl, restored);
  json_decref (restored);
  json_decref (r.blocks);
  if (!ok)
    run_die_if_interrupted ();
  return ok ? EXIT_OK : EXIT_FAILED;
}

const struct verb restore_run_verbs[] = {
  { "restore run", "DIR DISK...", 2, 1000, "write such backups back to disks",
    restore_options, restore_run },
  { NULL }
};
