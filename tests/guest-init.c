// SPDX-License-Identifier: LGPL-2.1-or-later
/* guest-init.c - all of user space of the guest that guest.py starts.
 *
 * As /init of the initramfs: loads the modules beside it, mounts the disk vda,
 * and goes on from there as /sbin/init.  That one writes until it is told to
 * stop, every write synced or to O_DIRECT, all of it following from numbers:
 *
 *   chains  CHAINS threads on /dev/vdb, each its own part, one thing after the
 *           other: write n, 4 KiB, then read it again
 *   files   a thread on vda: file n, synced, renamed to n % FILES, the folder
 *           synced; then its number to vdb's last block
 *
 * The second serial port has a command a byte: p, how far is it; s, stop,
 * flush, say so and power off.  The answer is one line of numbers, each that of
 * the first step of its thread that is not known to be done: CHAINS, then
 * files.  Whatever goes wrong is a line that begins with `error`.  guest.py
 * knows the same numbers.
 */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#define CHAINS 2
#define CHAIN_BYTES (UINT64_C (48) << 20)
#define FILES 16
#define BLOCK 4096
#define GRANULE 65536
#define MAGIC UINT64_C (0x6e62646675657374)
#define WHO_FILE CHAINS

static int port = -1;           /* the second serial port */
static atomic_uint_fast64_t done[CHAINS + 1];
static atomic_bool stopping;

static void __attribute__ ((format (printf, 1, 2)))
say (const char *format, ...)
{
  char line[256];
  va_list args;
  int n;

  va_start (args, format);
  n = vsnprintf (line, sizeof line, format, args);
  va_end (args);
  if (n < 0 || write (port, line, n) != n)
    perror ("serial port");     /* to the console */
}

/* Tells of it, and ends the thread: what has failed once must not be hidden
 * by a second try. */
static _Noreturn void
failed (const char *what, uint64_t n)
{
  say ("error: %s of %llu: %s\n", what, (unsigned long long)n,
       strerror (errno));
  pthread_exit (NULL);
}

static uint64_t
mix (uint64_t x)
{
  x = (x ^ (x >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
  x = (x ^ (x >> 27)) * UINT64_C (0x94d049bb133111eb);
  return x ^ (x >> 31);
}

/* `length` bytes, a multiple of 32. */
static void
stamp (uint64_t *to, uint64_t who, uint64_t n, uint64_t at, size_t length)
{
  for (size_t i = 0; i < length / 8; i += 4) {
    to[i] = MAGIC;
    to[i + 1] = who;
    to[i + 2] = n;
    to[i + 3] = at;
  }
}

/* 64 writes go to 4 granules, the next 64 to others. */
static uint64_t
chain_offset (uint64_t chain, uint64_t n)
{
  uint64_t how = mix (n * CHAINS + chain);
  uint64_t place = mix ((n / 64 * 4 + how % 4) * CHAINS + chain);

  return chain * CHAIN_BYTES + place % (CHAIN_BYTES / GRANULE) * GRANULE +
    (how >> 8) % (GRANULE / BLOCK) * BLOCK;
}

static int
open_direct (void)
{
  int fd = open ("/dev/vdb", O_RDWR | O_DIRECT);

  if (fd == -1)
    failed ("opening /dev/vdb", 0);
  return fd;
}

static void *
run_chain (void *arg)
{
  _Alignas (BLOCK) static uint64_t buffers[CHAINS][2][BLOCK / 8];
  uint64_t chain = (uintptr_t)arg, *out = buffers[chain][0],
    *in = buffers[chain][1];
  int fd = open_direct ();

  for (uint64_t n = 0; !stopping; n++) {
    uint64_t at = chain_offset (chain, n);
    stamp (out, chain, n, at, BLOCK);
    if (pwrite (fd, out, BLOCK, at) != BLOCK)
      failed ("write", n);
    done[chain] = n + 1;
    if (pread (fd, in, BLOCK, at) != BLOCK)
      failed ("read", n);
    if (memcmp (in, out, BLOCK) != 0) {
      errno = EILSEQ;
      failed ("what was read", n);
    }
  }
  if (close (fd) == -1)
    failed ("close", 0);
  return NULL;
}

static void *
run_files (void *arg)
{
  static uint64_t text[32 * BLOCK / 8];
  _Alignas (BLOCK) static uint64_t block[BLOCK / 8];
  int folder = open ("/f", O_RDONLY | O_DIRECTORY), disk = open_direct ();

  if (folder == -1)
    failed ("opening /f", 0);
  for (uint64_t n = 0; !stopping; n++) {
    ssize_t length = (1 + mix (n) % 32) * BLOCK;
    char name[8];
    stamp (text, WHO_FILE, n, length, length);
    int fd = openat (folder, "new", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd == -1)
      failed ("creating file", n);
    if (write (fd, text, length) != length)
      failed ("writing file", n);
    if (fsync (fd) == -1)
      failed ("fsync of file", n);
    if (close (fd) == -1)
      failed ("closing file", n);
    snprintf (name, sizeof name, "%u", (unsigned)(n % FILES));
    if (renameat (folder, "new", folder, name) == -1)
      failed ("renaming file", n);
    if (fsync (folder) == -1)
      failed ("fsync of the folder, file", n);
    stamp (block, WHO_FILE, n, CHAINS * CHAIN_BYTES, BLOCK);
    if (pwrite (disk, block, BLOCK, CHAINS * CHAIN_BYTES) != BLOCK)
      failed ("writing the number of file", n);
    done[WHO_FILE] = n + 1;
  }
  return arg;
}

static void
answer (void)
{
  char line[(CHAINS + 1) * 21 + 1];
  int n = 0;

  for (int i = 0; i <= CHAINS; i++)
    n += snprintf (line + n, sizeof line - n, " %llu",
                   (unsigned long long)done[i]);
  say ("%s\n", line + 1);
}

static void
work (void)
{
  pthread_t threads[CHAINS + 1];
  char command;

  for (uintptr_t i = 0; i <= CHAINS; i++)
    if (pthread_create (&threads[i], NULL, i == WHO_FILE ? run_files :
                        run_chain, (void *)i) != 0)
      failed ("creating a thread", i);
  say ("up\n");
  while (read (port, &command, 1) == 1 && command == 'p')
    answer ();
  stopping = true;
  for (int i = 0; i <= CHAINS; i++)
    pthread_join (threads[i], NULL);
  if (mount (NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL) == -1)
    say ("error: remount: %s\n", strerror (errno));
  answer ();
}

/* In the order of their names. */
static void
load_modules (void)
{
  glob_t g;

  if (glob ("/*.ko", 0, NULL, &g) != 0)
    return;
  for (size_t i = 0; i < g.gl_pathc; i++) {
    int fd = open (g.gl_pathv[i], O_RDONLY);
    if (fd == -1 || syscall (SYS_finit_module, fd, "", 0) == -1)
      say ("error: %s: %s\n", g.gl_pathv[i], strerror (errno));
    close (fd);
  }
}

static void
open_port (void)
{
  struct termios t;

  port = open ("/dev/ttyS1", O_RDWR | O_NOCTTY);
  if (port == -1 || tcgetattr (port, &t) == -1) {
    perror ("ttyS1");
    return;
  }
  cfmakeraw (&t);
  if (tcsetattr (port, TCSANOW, &t) == -1)
    perror ("tcsetattr");
}

int
main (void)
{
  if (access ("/init", F_OK) == 0) {
    if (mount ("devtmpfs", "/dev", "devtmpfs", 0, NULL) == -1)
      perror ("/dev");
    open_port ();
    load_modules ();
    if (mount ("/dev/vda", "/root", "ext4", 0, NULL) == -1 ||
        mount ("/dev", "/root/dev", NULL, MS_MOVE, NULL) == -1 ||
        chdir ("/root") == -1 || mount (".", "/", NULL, MS_MOVE, NULL) == -1 ||
        chroot (".") == -1 || execl ("/sbin/init", "init", NULL) == -1)
      say ("error: starting from vda: %s\n", strerror (errno));
  }
  else {
    open_port ();
    work ();
  }
  reboot (RB_AUTOBOOT);         /* QEMU was told to end then */
  return 1;
}
