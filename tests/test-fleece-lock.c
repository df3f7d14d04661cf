/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One user an image: another process of ours, QEMU, and the same image under a
 * second name are refused; so is what is no disk at all. */
#include <config.h>

#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bitmap/bitmap-error.h"
#include "tests/fleece-fixture.h"

#define SIZE (1024 * 1024)

static Fixture *fx;

/* Try to add a disk to a Fleece of its own; returns the error's code, or -1 if
 * it worked; text: what the message must have in it. */
static int
try_add (const char *path, const char *text)
{
  FleeceOptions options = { .scratch_dir = fx->scratch };
  g_autoptr (GError) error = NULL;
  Fleece *f = fleece_new (&options, &error);
  int code = -1;

  if (fleece_add_disk (f, "x", path, 65536, &error) == NULL) {
    code = error->code;
    if (strstr (error->message, text) == NULL ||
        strstr (error->message, path) == NULL)
      g_error ("'%s' does not say '%s' and '%s'", error->message, text, path);
  }
  fleece_free (f);
  return code;
}

static void
test_second_process (void)
{
  pid_t pid;
  int status;

  fx = fixture_new (1, SIZE);
  fixture_start (fx);
  pid = fork ();
  if (pid == 0)
    _exit (try_add (fx->image[0], "in use by another process")
           == BITMAP_ERROR_BUSY ? 0 : 1);
  g_assert_cmpint (waitpid (pid, &status, 0), ==, pid);
  g_assert_cmpint (status, ==, 0);
  fixture_write (fx->disk[0], 0, SIZE, 'a');
  fixture_stop (fx);
  g_assert_cmpint (try_add (fx->image[0], ""), ==, -1);
  fixture_free (fx);
}

static int
add_later (void *opaque)
{
  return try_add (fx->image[0], "");
}

/* Whoever holds it lets go within the time that is spent on trying. */
static void
test_waits_for_release (void)
{
  FixtureCall *call;

  fx = fixture_new (1, SIZE);
  fixture_start (fx);
  call = fixture_call (add_later, NULL);
  fixture_stop (fx);
  g_assert_cmpint (fixture_call_join (call), ==, -1);
  fixture_free (fx);
}

static void
check_second_name (const char *path)
{
  g_autoptr (GError) error = NULL;

  g_assert_null (fleece_add_disk (fx->f, "again", path, 65536, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS);
  g_assert_nonnull (strstr (error->message, "'d0'"));
  g_assert_nonnull (strstr (error->message, "'again'"));
}

static void
test_second_name (void)
{
  g_autofree char *hard = NULL, *soft = NULL, *dotted = NULL, *other = NULL;
  g_autoptr (GError) error = NULL;

  fx = fixture_new (1, SIZE);
  fixture_start (fx);
  hard = g_strdup_printf ("%s/hard", fx->dir);
  soft = g_strdup_printf ("%s/soft", fx->dir);
  dotted = g_strdup_printf ("%s/../%s", fx->state, "d0.img");
  g_assert_cmpint (link (fx->image[0], hard), ==, 0);
  g_assert_cmpint (symlink (fx->image[0], soft), ==, 0);
  check_second_name (fx->image[0]);
  check_second_name (hard);
  check_second_name (soft);
  check_second_name (dotted);
  other = g_strdup_printf ("%s/other", fx->dir);
  g_assert_true (g_file_set_contents (other, "x", 1, NULL));
  g_assert_null (fleece_add_disk (fx->f, "d0", other, 65536, &error));
  g_assert_error (error, BITMAP_ERROR, BITMAP_ERROR_EXISTS);
  fixture_free (fx);
}

static void
test_no_disk (void)
{
  g_autofree char *path = NULL;
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  int fd;

  fx = fixture_new (1, SIZE);
  path = g_strdup_printf ("%s/thing", fx->dir);
  g_assert_cmpint (try_add (path, "No such file"), ==, BITMAP_ERROR_IO);
  g_assert_cmpint (try_add (fx->dir, "neither"), ==, BITMAP_ERROR_INVALID);
  g_assert_cmpint (try_add ("/dev/null", "neither"), ==, BITMAP_ERROR_INVALID);
  g_assert_cmpint (mkfifo (path, 0600), ==, 0);
  g_assert_cmpint (try_add (path, "neither"), ==, BITMAP_ERROR_INVALID);
  g_unlink (path);
  fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  g_strlcpy (addr.sun_path, path, sizeof addr.sun_path);
  g_assert_cmpint (bind (fd, (struct sockaddr *) &addr, sizeof addr), ==, 0);
  g_assert_cmpint (try_add (path, "neither"), ==, BITMAP_ERROR_INVALID);
  close (fd);
  g_unlink (path);
  g_assert_cmpint (symlink (path, path), ==, 0);
  g_assert_cmpint (try_add (path, "Too many levels"), ==, BITMAP_ERROR_IO);
  fixture_free (fx);
}

/* Runs a program; its exit status, -1 if it is not here.  Its stderr must
 * have text in it if it fails. */
static int
run (const char *const *argv, const char *text)
{
  g_autofree char *err = NULL, *out = NULL;
  int status;

  if (!g_spawn_sync (NULL, (char **) argv, NULL, G_SPAWN_SEARCH_PATH, NULL,
                     NULL, &out, &err, &status, NULL))
    return -1;
  if (status != 0 && strstr (err, text) == NULL)
    g_error ("%s: %s", argv[0], err);
  return status != 0;
}

static void
test_qemu_refused (void)
{
  int status;

  fx = fixture_new (1, SIZE);
  fixture_start (fx);
  {
    const char *write[] = {
      "qemu-io", "-f", "raw", "-c", "write 0 4k", fx->image[0], NULL,
    };
    const char *resize[] = {
      "qemu-img", "resize", "-f", "raw", fx->image[0], "2M", NULL,
    };
    g_autofree char *copy = g_strdup_printf ("%s/copy", fx->dir);
    /* A reader too, since what it reads may change. */
    const char *convert[] = {
      "qemu-img", "convert", "-f", "raw", "-O", "raw", fx->image[0], copy,
      NULL,
    };

    status = run (write, "lock");
    if (status >= 0) {
      g_assert_cmpint (status, ==, 1);
      g_assert_cmpint (run (resize, "lock"), ==, 1);
      g_assert_cmpint (run (convert, "lock"), ==, 1);
      fixture_stop (fx);
      g_assert_cmpint (run (write, ""), ==, 0);
      fixture_start (fx);
    }
    else
      g_test_skip ("no qemu-io here");
  }
  fixture_free (fx);
}

static void
test_refused_by_qemu (void)
{
  GPid pid;
  int in, out, status;
  char byte;

  fx = fixture_new (1, SIZE);
  {
    /* It answers the command once it has the image, and holds that until its
     * input ends. */
    const char *argv[] = { "qemu-io", "-f", "raw", fx->image[0], NULL };

    if (g_spawn_async_with_pipes (NULL, (char **) argv, NULL,
                                  G_SPAWN_SEARCH_PATH |
                                  G_SPAWN_DO_NOT_REAP_CHILD, NULL, NULL, &pid,
                                  &in, &out, NULL, NULL)) {
      g_assert_cmpint (write (in, "length\n", 7), ==, 7);
      g_assert_cmpint (read (out, &byte, 1), ==, 1);
      g_assert_cmpint (try_add (fx->image[0], "in use by another process"), ==,
                       BITMAP_ERROR_BUSY);
      close (in);
      while (read (out, &byte, 1) == 1)
        ;
      close (out);
      g_assert_cmpint (waitpid (pid, &status, 0), ==, pid);
      g_assert_cmpint (try_add (fx->image[0], ""), ==, -1);
    }
    else
      g_test_skip ("no qemu-io here");
  }
  fixture_free (fx);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/fleece/lock/second-process", test_second_process);
  g_test_add_func ("/fleece/lock/waits-for-release", test_waits_for_release);
  g_test_add_func ("/fleece/lock/second-name", test_second_name);
  g_test_add_func ("/fleece/lock/no-disk", test_no_disk);
  g_test_add_func ("/fleece/lock/qemu-refused", test_qemu_refused);
  g_test_add_func ("/fleece/lock/refused-by-qemu", test_refused_by_qemu);
  return g_test_run ();
}
