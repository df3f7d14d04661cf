/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ctl-backup-run.c - backup run: a whole backup of some disks into a folder.
 *
 *   begin     one cut over all disks, with a new checkpoint
 *   copy      each disk by fleececopy: all of it, or what changed since the
 *             checkpoint that its image is a copy of; compared again afterwards
 *   digest    of each image
 *   manifest  from here on the backup is good
 *   end       and checkpoints that no image is a copy of any more are deleted
 *
 * If it fails before the manifest is written, the backup is ended as failed,
 * which deletes the new checkpoint: the next run starts from the same one as
 * this.  That it may: an image then holds, block by block, what the disk had at
 * the old checkpoint K or at the failed one Y, and a block that differs between
 * K and now is among those that changed since K, whether it was copied for Y or
 * not.
 */
#include <config.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "tools/backup-dir.h"
#include "tools/copy-mark.h"
#include "tools/ctl-hook.h"
#include "tools/ctl-lease.h"
#include "tools/ctl-run.h"
#include "tools/ctl.h"
#include "tools/human.h"

/* More of them than this in a row: a full copy is due anyway. */
#define MAX_UNFINISHED 100

static const struct arg_spec run_options[] = {
  { "to", "DIR", "the folder to keep the images in; needed" },
  { "full", NULL, "copy everything, also what is there already" },
  { "checkpoint", "NAME", "of the new checkpoint; default: backup-TIME" },
  { "keep-checkpoints", NULL, "do not delete those that are replaced" },
  { "scratch-limit", "SIZE", "most that old data may take, a disk" },
  { "lease", "SECONDS", "if this program is no more, the server ends the "
    "backup after so long; default 600, 0: never" },
  { "freeze-hook", "COMMAND", "run with 'freeze' before and 'thaw' after the "
    "cut" },
  { "freeze-timeout", "SECONDS", "of the hook, and of the cut; default 10" },
  { "no-verify", NULL, "do not compare the images with the snapshots" },
  { "uri", "URI", "where the server serves NBD" },
  { "progress", NULL, "show progress also without a terminal" },
  { "no-progress", NULL, "show none" },
  { NULL }
};

struct part {
  const char *disk;
  char *since;                  /* NULL: a full copy */
  char *replaced;               /* the image's checkpoint so far, or NULL */
  bool force;                   /* an unfinished image: see the top */
  int64_t grow_from;            /* the disk has grown since; bytes; else -1 */
};

struct run {
  struct ctl *ctl;
  BackupDir *dir;
  GPtrArray *parts;             /* struct part */
  char *id;                     /* of the backup, and of its checkpoint */
  json_t *blocks, *checkpoints; /* query-block, checkpoint-list */
  bool begun, frozen;
  uint64_t lease_s;             /* 0: none */
  Lease *lease;                 /* from begin to end */
  time_t cut_time;
};

static void
part_free (gpointer p)
{
  struct part *part = p;

  g_free (part->since);
  g_free (part->replaced);
  g_free (part);
}

/* --- a run that came to no end --- */

static bool
backup_exists (struct ctl *ctl, const char *id, bool *out_exists)
{
  json_t *backups = ctl_execute (ctl, "query-backups", NULL), *backup;
  size_t i;

  if (backups == NULL)
    return false;
  *out_exists = false;
  json_array_foreach (backups, i, backup)
    if (g_strcmp0 (ctl_get (backup, "id"), id) == 0)
      *out_exists = true;
  json_decref (backups);
  return true;
}

/* Is the id the checkpoint of an image: did that run write its manifest? */
static bool
is_in_manifest (const BackupDir *dir, const char *id)
{
  json_t *entry;
  size_t i;

  json_array_foreach (dir->disks, i, entry)
    if (g_strcmp0 (ctl_get (entry, "checkpoint"), id) == 0)
      return true;
  return false;
}

static bool
list_has (const json_t *list, const char *text)
{
  const json_t *item;
  size_t i;

  json_array_foreach (list, i, item)
    if (g_strcmp0 (json_string_value (item), text) == 0)
      return true;
  return false;
}

/* The names of the run's disks, an array. */
static json_t *
disk_names (const struct run *run)
{
  json_t *names = json_array ();

  for (unsigned i = 0; i < run->parts->len; i++) {
    const struct part *part = run->parts->pdata[i];

    json_array_append_new (names, json_string (part->disk));
  }
  return names;
}

/* The images of these disks may hold blocks of it; NULL: of all. */
static bool
note_unfinished (BackupDir *dir, const char *id, const json_t *disks)
{
  g_autoptr (GError) error = NULL;
  json_t *entry;
  size_t i;

  json_array_foreach (dir->disks, i, entry) {
    json_t *list = json_object_get (entry, "unfinished");

    if (disks != NULL && !list_has (disks, ctl_get (entry, "disk")))
      continue;
    if (!json_is_array (list)) {
      list = json_array ();
      json_object_set_new (entry, "unfinished", list);
    }
    json_array_append_new (list, json_string (id));
    if (json_array_size (list) > MAX_UNFINISHED)
      json_array_remove (list, 0);
  }
  if (json_array_size (dir->disks) > 0 && !backup_dir_save (dir, &error)) {
    ctl_fail ("%s", error->message);
    return false;
  }
  return true;
}

static bool
clean_up (struct run *run)
{
  g_autoptr (GError) error = NULL;
  json_t *disks = NULL;
  g_autofree char *id = backup_dir_running (run->dir, &disks);
  bool good, exists, ok;

  if (id == NULL)
    return true;
  good = is_in_manifest (run->dir, id);
  ok = backup_exists (run->ctl, id, &exists) &&
       (good || note_unfinished (run->dir, id, disks));
  json_decref (disks);
  if (!ok)
    return false;
  if (exists) {
    json_t *reply =
      ctl_execute (run->ctl, "backup-end",
                   json_pack ("{s:s, s:b}", "id", id, "failed", !good));

    if (reply == NULL)
      return false;
    json_decref (reply);
    fprintf (stderr, "fleecectl: ended backup '%s' of a run that came to no "
             "end\n", id);
  }
  if (!backup_dir_set_running (run->dir, NULL, NULL, &error)) {
    ctl_fail ("%s", error->message);
    return false;
  }
  return true;
}

/* --- what to copy --- */

static bool
has_checkpoint (const struct run *run, const char *name, const char *disk)
{
  const json_t *ckpt, *cd;
  size_t i, j;

  json_array_foreach (run->checkpoints, i, ckpt)
    if (g_strcmp0 (ctl_get (ckpt, "name"), name) == 0)
      json_array_foreach (json_object_get (ckpt, "disks"), j, cd)
        if (disk == NULL || g_strcmp0 (ctl_get (cd, "disk"), disk) == 0)
          return true;
  return false;
}

/* Is the image what the manifest says, or what can be repaired (part->force)
 * or made longer (part->grow_from)?  NULL, or why not; these two then mean
 * nothing.
 */
static const char *
check_image (const struct run *run, const json_t *entry, struct part *part)
{
  const char *disk = part->disk;
  g_autofree char *image = backup_dir_image (run->dir, disk);
  g_autofree char *mark_path = g_strconcat (image, MARK_SUFFIX, NULL);
  const char *since = ctl_get (entry, "checkpoint");
  g_autofree char *mtime = NULL;
  g_auto (Mark) mark = { 0 };
  struct stat st;

  if (stat (image, &st) == -1 || !S_ISREG (st.st_mode))
    return "its image is gone";
  if (st.st_size > run_disk_size (run->blocks, disk))
    return "the disk is smaller than its image";
  if (st.st_size < run_disk_size (run->blocks, disk))
    part->grow_from = st.st_size;
  if (mark_load (mark_path, &mark, NULL) != 1 || strcmp (mark.disk, disk) != 0)
    return "its image has no mark that says what it is";
  if (!mark.complete) {
    part->force = true;
    return g_strcmp0 (mark.since, since) == 0 ? NULL
      : "its image is unfinished";
  }
  mtime = g_strdup_printf ("%lld.%09ld", (long long) st.st_mtim.tv_sec,
                           (long) st.st_mtim.tv_nsec);
  if ((mark.mtime != NULL && strcmp (mark.mtime, mtime) != 0) ||
      (uint64_t) st.st_size != mark.size)
    return "its image was modified";
  part->force = strcmp (mark.checkpoint, since) != 0;
  return !part->force ||
    list_has (json_object_get (entry, "unfinished"), mark.checkpoint) ? NULL
    : "its image is of another checkpoint";
}

static bool
plan_part (struct run *run, const char *disk)
{
  const json_t *entry = backup_dir_find (run->dir, disk);
  struct part *part = g_new0 (struct part, 1);
  const char *since = ctl_get (entry, "checkpoint"), *why = NULL;
  g_autofree char *shown = human_escape (disk, 100);

  part->disk = disk;
  part->grow_from = -1;
  part->replaced = g_strdup (since);
  g_ptr_array_add (run->parts, part);
  if (run_find_block (run->blocks, disk) == NULL) {
    ctl_fail ("there is no disk '%s'", shown);
    return false;
  }
  if (entry == NULL || args_flag (run->ctl->args, "full"))
    return true;
  if (!has_checkpoint (run, since, disk))
    why = "the checkpoint of its last backup is gone";
  else
    why = check_image (run, entry, part);
  if (why != NULL) {
    part->force = false;        /* these are for updates only */
    part->grow_from = -1;
    fprintf (stderr, "fleecectl: disk '%s': a full copy, since %s\n", shown,
             why);
  }
  else
    part->since = g_strdup (since);
  return true;
}

static bool
plan (struct run *run)
{
  const GPtrArray *words = args_words (run->ctl->args);
  const char *name = args_value (run->ctl->args, "checkpoint");
  g_autoptr (GDateTime) now = g_date_time_new_now_utc ();
  g_autofree char *base = g_date_time_format (now, "backup-%Y%m%dT%H%M%SZ");

  run->blocks = ctl_execute (run->ctl, "query-block", NULL);
  if (run->blocks == NULL)
    return false;
  run->checkpoints = ctl_execute (run->ctl, "checkpoint-list", NULL);
  if (run->checkpoints == NULL)
    return false;
  for (unsigned i = 0; i < words->len; i++)
    if (!plan_part (run, words->pdata[i]))
      return false;
  run->id = g_strdup (name != NULL ? name : base);
  for (unsigned n = 2; name == NULL && has_checkpoint (run, run->id, NULL);
       n++) {
    g_free (run->id);
    run->id = g_strdup_printf ("%s-%u", base, n);
  }
  return true;
}

/* --- begin --- */

static json_t *
begin_arguments (const struct run *run)
{
  json_t *disks = json_array (), *scratch = json_object ();

  ctl_put_size (run->ctl, scratch, "limit", "scratch-limit");
  for (unsigned i = 0; i < run->parts->len; i++) {
    const struct part *part = run->parts->pdata[i];
    json_t *disk = json_pack ("{s:s}", "disk", part->disk);

    if (part->since != NULL)
      json_object_set_new (disk, "incremental", json_string (part->since));
    if (json_object_size (scratch) > 0)
      json_object_set (disk, "scratch", scratch);
    json_array_append_new (disks, disk);
  }
  json_decref (scratch);
  return json_pack ("{s:s, s:{s:s, s:s}, s:o, s:I}", "id", run->id,
                    "checkpoint", "name", run->id,
                    "description", "fleecectl backup run", "disks", disks,
                    "lease", (json_int_t) run->lease_s);
}

static bool
begin (struct run *run, unsigned timeout_s)
{
  const char *command = args_value (run->ctl->args, "freeze-hook");
  g_autoptr (GError) error = NULL;
  Hook *hook = NULL;
  json_t *reply = NULL;

  if (!backup_dir_set_running (run->dir, run->id, disk_names (run), &error)) {
    ctl_fail ("%s", error->message);
    return false;
  }
  if (command != NULL)
    hook = hook_freeze (command, timeout_s);
  if (!run_interrupted ()) {
    run->cut_time = time (NULL);
    reply = ctl_execute (run->ctl, "backup-begin", begin_arguments (run));
  }
  if (hook != NULL)
    run->frozen = hook_thaw (hook);
  run->begun = reply != NULL;
  if (run->begun && run->lease_s > 0)
    run->lease = lease_keep (run->ctl->control, run->id, run->lease_s);
  json_decref (reply);
  return run->begun;
}

/* --- copy, digest, manifest --- */

/* To the size that the disk has now: zeroes, and what the disk has there
 * counts as changed since.  The mark is of the old size, so --force is needed
 * from here on; after a crash before fleececopy renews it the image counts as
 * modified.
 */
static bool
grow_image (const struct run *run, struct part *part, const char *image)
{
  if (truncate (image, run_disk_size (run->blocks, part->disk)) == -1) {
    ctl_fail ("cannot make '%s' longer: %s", image, g_strerror (errno));
    return false;
  }
  part->force = true;
  return true;
}

/* fleececopy --force leaves no mark if the disk had yet another size than the
 * image when it came to it: the image is then a copy of nothing.
 */
static bool
check_copy (const struct run *run, const struct part *part, const char *image)
{
  g_autofree char *mark_path = g_strconcat (image, MARK_SUFFIX, NULL);
  g_auto (Mark) mark = { 0 };

  if (mark_load (mark_path, &mark, NULL) == 1 && mark.complete &&
      strcmp (mark.checkpoint, run->id) == 0)
    return true;
  ctl_fail ("'%s' is no copy of disk '%s': its size changed meanwhile", image,
            part->disk);
  return false;
}

static bool
copy (const struct run *run, struct part *part)
{
  g_autofree char *export = g_strconcat (part->disk, "@", run->id, NULL);
  g_autofree char *uri = run_export_uri (run->ctl, export);
  g_autofree char *image = backup_dir_image (run->dir, part->disk);
  const char *argv[12];
  unsigned n = 0;

  if (uri == NULL ||
      (part->grow_from >= 0 && !grow_image (run, part, image)))
    return false;
  if (part->since != NULL) {
    argv[n++] = "--since";
    argv[n++] = part->since;
  }
  if (part->force)
    argv[n++] = "--force";
  if (!args_flag (run->ctl->args, "no-verify"))
    argv[n++] = "--verify";
  argv[n++] = "--mark";
  argv[n++] = export;
  argv[n++] = "--";
  argv[n++] = uri;
  argv[n++] = image;
  argv[n] = NULL;
  fprintf (stderr, "%s: %s%s\n", part->disk,
           part->since != NULL ? "what changed since " : "all of it",
           part->since != NULL ? part->since : "");
  return run_fleececopy (run->ctl, argv) && check_copy (run, part, image);
}

static bool
digest (const struct run *run, const struct part *part)
{
  g_autofree char *image = backup_dir_image (run->dir, part->disk);
  g_autofree char *file = g_path_get_basename (image);
  g_autoptr (GDateTime) when = g_date_time_new_from_unix_utc (run->cut_time);
  g_autofree char *time_text = g_date_time_format (when, "%Y-%m-%dT%H:%M:%SZ");
  g_autoptr (GError) error = NULL;
  uint64_t size = 0;
  g_autofree char *sum =
    backup_dir_digest (image, run_progress_style (run->ctl), run_interrupted,
                       &size, &error);
  json_t *entry;

  if (sum == NULL) {
    ctl_fail ("%s", error->message);
    return false;
  }
  entry = json_pack ("{s:s, s:s, s:I, s:s, s:s, s:s, s:b, s:s}",
                     "disk", part->disk, "file", file,
                     "size", (json_int_t) size, "checkpoint", run->id,
                     "mode", part->since != NULL ? "incremental" : "full",
                     "time", time_text, "frozen", run->frozen, "sha256", sum);
  if (part->since != NULL)
    json_object_set_new (entry, "since", json_string (part->since));
  backup_dir_put (run->dir, entry);
  return true;
}

static bool
copy_all (struct run *run)
{
  g_autoptr (GError) error = NULL;
  json_t *before;

  for (unsigned i = 0; i < run->parts->len; i++)
    if (!copy (run, run->parts->pdata[i]))
      return false;
  before = json_deep_copy (run->dir->disks);
  for (unsigned i = 0; i < run->parts->len; i++)
    if (!digest (run, run->parts->pdata[i]))
      goto failed;
  if (!backup_dir_save (run->dir, &error)) {
    ctl_fail ("%s", error->message);
    goto failed;
  }
  json_decref (before);
  return true;

 failed:
  json_decref (run->dir->disks);
  run->dir->disks = before;
  return false;
}

/* --- end --- */

/* The server may have been replaced meanwhile, and the connection lost. */
static bool
end_backup (struct run *run, bool failed)
{
  g_autoptr (GError) error = NULL;
  json_t *reply =
    qmp_execute (run->ctl->qmp, "backup-end",
                 json_pack ("{s:s, s:b}", "id", run->id, "failed", failed),
                 &error);

  if (reply == NULL && g_error_matches (error, QMP_ERROR, QMP_ERROR_PROTOCOL)) {
    Qmp *again = qmp_connect (run->ctl->control, NULL);

    if (again != NULL) {
      qmp_free (run->ctl->qmp);
      run->ctl->qmp = again;
      g_clear_error (&error);
      reply = qmp_execute (again, "backup-end",
                           json_pack ("{s:s, s:b}", "id", run->id,
                                      "failed", failed), &error);
    }
  }
  if (reply == NULL)
    ctl_fail ("cannot end backup '%s': %s", run->id, error->message);
  json_decref (reply);
  return reply != NULL;
}

/* Those that the manifest named before and no longer does. */
static bool
delete_replaced (struct run *run)
{
  bool ok = true;

  for (unsigned i = 0; i < run->parts->len; i++) {
    const struct part *part = run->parts->pdata[i];
    const char *old = part->replaced;

    if (old == NULL || is_in_manifest (run->dir, old) ||
        !has_checkpoint (run, old, NULL))
      continue;
    /* Once, if several disks had the same. */
    for (unsigned j = 0; j < i; j++)
      if (g_strcmp0 (((struct part *) run->parts->pdata[j])->replaced,
                     old) == 0)
        old = NULL;
    if (old != NULL) {
      json_t *reply = ctl_execute (run->ctl, "checkpoint-delete",
                                   json_pack ("{s:s}", "name", old));

      ok = ok && reply != NULL;
      json_decref (reply);
    }
  }
  return ok;
}

static bool
finish (struct run *run, bool good)
{
  g_autoptr (GError) error = NULL;
  bool ok = true;

  g_clear_pointer (&run->lease, lease_drop);
  if (!good && run->begun) {
    json_t *disks = disk_names (run);

    ok = note_unfinished (run->dir, run->id, disks);
    json_decref (disks);
  }
  if (run->begun && !end_backup (run, !good))
    return false;               /* running.json stays for the next run */
  if (ok && !backup_dir_set_running (run->dir, NULL, NULL, &error)) {
    ctl_fail ("%s", error->message);
    ok = false;
  }
  if (good && ok && !args_flag (run->ctl->args, "keep-checkpoints"))
    ok = delete_replaced (run);
  return ok;
}

static void
print_result (const struct run *run)
{
  json_t *entry, *list = json_array ();

  for (unsigned i = 0; i < run->parts->len; i++) {
    const struct part *part = run->parts->pdata[i];

    entry = backup_dir_find (run->dir, part->disk);
    json_array_append (list, entry);
    if (!run->ctl->json)
      printf ("%s: %s backup '%s' in %s/%s%s\n", part->disk,
              ctl_get (entry, "mode"), run->id, run->dir->path,
              ctl_get (entry, "file"),
              args_value (run->ctl->args, "freeze-hook") == NULL ? ""
                : run->frozen ? ", guest frozen" : ", guest NOT frozen");
  }
  ctl_print_json (run->ctl, list);
  json_decref (list);
}

static bool
do_run (struct run *run, unsigned timeout_s)
{
  bool good;

  if (!clean_up (run) || !plan (run))
    return false;
  good = begin (run, timeout_s) && copy_all (run);
  if (!good)
    ctl_fail (run_interrupted () ? "interrupted: there is no new backup"
              : "there is no new backup; the last good one is what the next "
                "run starts from");
  return finish (run, good) && good;
}

/* What can be known without changing anything; EXIT_OK or EXIT_USAGE. */
static int
check_options (struct ctl *ctl, uint64_t *out_timeout_s)
{
  const char *timeout = args_value (ctl->args, "freeze-timeout");
  const GPtrArray *words = args_words (ctl->args);
  json_t *ignored = json_object ();
  g_autofree char *uri = NULL;
  bool ok = ctl_put_size (ctl, ignored, "limit", "scratch-limit");

  json_decref (ignored);
  if (!ok)
    return EXIT_USAGE;
  if (args_value (ctl->args, "to") == NULL)
    return ctl_usage (ctl, "where to? Use --to DIR");
  if (timeout != NULL &&
      !human_parse_uint (timeout, 1, 3600, out_timeout_s))
    return ctl_usage (ctl, "--freeze-timeout needs seconds from 1 to 3600, not "
                      "'%s'", timeout);
  for (unsigned i = 0; i < words->len; i++)
    for (unsigned j = 0; j < i; j++)
      if (strcmp (words->pdata[i], words->pdata[j]) == 0)
        return ctl_usage (ctl, "disk '%s' is there twice", ctl_word (ctl, i));
  uri = run_export_uri (ctl, "x");
  return uri != NULL ? EXIT_OK : EXIT_USAGE;
}

static int
backup_run (struct ctl *ctl)
{
  g_autoptr (GError) error = NULL;
  g_autoptr (BackupDir) dir = NULL;
  struct run run = { .ctl = ctl, .lease_s = 600 };
  uint64_t timeout_s = 10;
  bool ok;

  if (check_options (ctl, &timeout_s) != EXIT_OK ||
      !ctl_get_lease (ctl, &run.lease_s))
    return EXIT_USAGE;
  dir = backup_dir_open (args_value (ctl->args, "to"), true, true, &error);
  if (dir == NULL)
    return ctl_fail ("%s", error->message);
  run.dir = dir;
  run.parts = g_ptr_array_new_with_free_func (part_free);
  run_catch_signals ();
  ok = do_run (&run, timeout_s);
  if (ok)
    print_result (&run);
  g_ptr_array_unref (run.parts);
  g_free (run.id);
  json_decref (run.blocks);
  json_decref (run.checkpoints);
  if (!ok)
    run_die_if_interrupted ();
  return ok ? EXIT_OK : EXIT_FAILED;
}

const struct verb backup_run_verbs[] = {
  { "backup run", "DISK...", 1, 1000, "back disks up to a folder, all steps",
    run_options, backup_run },
  { NULL }
};
