/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* nbdkit-parse.c - the nbdkit_* functions that read parameters and paths. */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <termios.h>
#include <unistd.h>

#include "backend.h"

/* Decimal, 0x or 0 in front; the whole string; white space in front is as
 * strtoll takes it. */
static int
parse_signed (const char *what, const char *str, int64_t min, int64_t max,
              int64_t *out)
{
  char *end;
  long long v;

  errno = 0;
  v = strtoll (str, &end, 0);
  if (end == str || *end) {
    nbdkit_error ("%s: could not parse number: \"%s\"", what, str);
    return -1;
  }
  if (errno == ERANGE || v < min || v > max) {
    nbdkit_error ("%s: number is out of range: \"%s\"", what, str);
    return -1;
  }
  *out = v;
  return 0;
}

static int
parse_unsigned (const char *what, const char *str, uint64_t max,
                uint64_t *out)
{
  char *end;
  unsigned long long v;

  errno = 0;
  v = strtoull (str, &end, 0);
  if (end == str || *end) {
    nbdkit_error ("%s: could not parse number: \"%s\"", what, str);
    return -1;
  }
  /* strtoull takes "-1" for the largest number. */
  if (strchr (str, '-')) {
    nbdkit_error ("%s: negative numbers are not allowed: \"%s\"", what, str);
    return -1;
  }
  if (errno == ERANGE || v > max) {
    nbdkit_error ("%s: number is out of range: \"%s\"", what, str);
    return -1;
  }
  *out = v;
  return 0;
}

#define DEFINE_SIGNED(name, type, min, max)                             \
  int                                                                   \
  nbdkit_parse_##name (const char *what, const char *str, type *r)      \
  {                                                                     \
    int64_t v;                                                          \
                                                                        \
    if (parse_signed (what, str, min, max, &v) == -1)                   \
      return -1;                                                        \
    if (r)                                                              \
      *r = v;                                                           \
    return 0;                                                           \
  }

#define DEFINE_UNSIGNED(name, type, max)                                \
  int                                                                   \
  nbdkit_parse_##name (const char *what, const char *str, type *r)      \
  {                                                                     \
    uint64_t v;                                                         \
                                                                        \
    if (parse_unsigned (what, str, max, &v) == -1)                      \
      return -1;                                                        \
    if (r)                                                              \
      *r = v;                                                           \
    return 0;                                                           \
  }

DEFINE_SIGNED (int, int, INT_MIN, INT_MAX)
DEFINE_SIGNED (int8_t, int8_t, INT8_MIN, INT8_MAX)
DEFINE_SIGNED (int16_t, int16_t, INT16_MIN, INT16_MAX)
DEFINE_SIGNED (int32_t, int32_t, INT32_MIN, INT32_MAX)
DEFINE_SIGNED (int64_t, int64_t, INT64_MIN, INT64_MAX)
DEFINE_UNSIGNED (unsigned, unsigned, UINT_MAX)
DEFINE_UNSIGNED (uint8_t, uint8_t, UINT8_MAX)
DEFINE_UNSIGNED (uint16_t, uint16_t, UINT16_MAX)
DEFINE_UNSIGNED (uint32_t, uint32_t, UINT32_MAX)
DEFINE_UNSIGNED (uint64_t, uint64_t, UINT64_MAX)

int64_t
nbdkit_parse_size (const char *str)
{
  /* 's' is a sector of 512 bytes; the others are powers of 1024. */
  static const char suffixes[] = "kmgtpe";
  const char *suffix;
  char *end;
  unsigned long long v;
  int shift = 0;

  errno = 0;
  v = strtoull (str, &end, 10);
  /* strtoull takes "-1" for the largest number; "-0" does no harm. */
  if (end == str || (v != 0 && strchr (str, '-'))) {
    nbdkit_error ("could not parse size string (%s)", str);
    return -1;
  }
  if (*end) {
    char c = *end | 0x20;       /* lower case */

    if (c == 's')
      shift = 9;
    else if (c != 'b' && (suffix = strchr (suffixes, c)) != NULL)
      shift = 10 * (suffix - suffixes + 1);
    else if (c != 'b')
      shift = -1;
    if (shift == -1 || end[1]) {
      nbdkit_error ("could not parse size: unknown suffix: \"%s\"", end);
      return -1;
    }
  }
  if (errno == ERANGE || v > (uint64_t) INT64_MAX >> shift) {
    nbdkit_error ("size is too large (%s)", str);
    return -1;
  }
  return v << shift;
}

int
nbdkit_parse_bool (const char *str)
{
  static const char *const yes[] = { "1", "true", "t", "yes", "y", "on" };
  static const char *const no[] = { "0", "false", "f", "no", "n", "off" };

  for (size_t i = 0; i < G_N_ELEMENTS (yes); i++) {
    if (strcasecmp (str, yes[i]) == 0)
      return 1;
    if (strcasecmp (str, no[i]) == 0)
      return 0;
  }
  nbdkit_error ("could not decipher boolean (%s)", str);
  return -1;
}

char *
nbdkit_absolute_path (const char *path)
{
  char *cwd, *full;

  if (path == NULL || *path == '\0') {
    nbdkit_error ("cannot convert empty path to an absolute path");
    return NULL;
  }
  if (*path == '/') {
    full = strdup (path);
    if (full == NULL)
      nbdkit_error ("strdup: %m");
    return full;
  }
  cwd = getcwd (NULL, 0);
  if (cwd == NULL) {
    nbdkit_error ("getcwd: %m");
    return NULL;
  }
  if (asprintf (&full, "%s/%s", cwd, path) == -1) {
    nbdkit_error ("asprintf: %m");
    full = NULL;
  }
  free (cwd);
  return full;
}

char *
nbdkit_realpath (const char *path)
{
  char *full;

  if (path == NULL || *path == '\0') {
    nbdkit_error ("cannot resolve an empty path");
    return NULL;
  }
  full = realpath (path, NULL);
  if (full == NULL)
    nbdkit_error ("realpath: %s: %m", path);
  return full;
}

/* One line, without its newline. */
static int
read_line (FILE *fp, const char *from, char **out)
{
  size_t room = 0;
  ssize_t n;

  *out = NULL;
  errno = 0;
  n = getline (out, &room, fp);
  if (n == -1 && errno) {
    nbdkit_error ("could not read password from %s: %m", from);
    free (*out);
    *out = NULL;
    return -1;
  }
  if (n == -1) {                /* an empty file is an empty password */
    free (*out);
    *out = strdup ("");
    return *out ? 0 : -1;
  }
  if (n > 0 && (*out)[n - 1] == '\n')
    (*out)[n - 1] = '\0';
  return 0;
}

static int
read_password_interactively (char **out)
{
  struct termios saved, quiet;
  int r;

  if (!isatty (STDIN_FILENO)) {
    nbdkit_error ("stdin is not a tty, cannot read password interactively");
    return -1;
  }
  printf ("password: ");
  fflush (stdout);
  if (tcgetattr (STDIN_FILENO, &saved) == -1) {
    nbdkit_error ("tcgetattr: %m");
    return -1;
  }
  quiet = saved;
  quiet.c_lflag &= ~ECHO;
  tcsetattr (STDIN_FILENO, TCSAFLUSH, &quiet);
  r = read_line (stdin, "the terminal", out);
  tcsetattr (STDIN_FILENO, TCSAFLUSH, &saved);
  printf ("\n");
  return r;
}

static int
read_password_from_fd (const char *from, int fd, char **out)
{
  FILE *fp = fdopen (fd, "r");
  int r;

  if (fp == NULL) {
    nbdkit_error ("cannot read password from %s: %m", from);
    close (fd);
    return -1;
  }
  r = read_line (fp, from, out);
  fclose (fp);
  return r;
}

int
nbdkit_read_password (const char *value, char **password)
{
  int fd;

  *password = NULL;
  if (value[0] == '-' && value[1] == '\0')
    return read_password_interactively (password);
  if (value[0] == '-') {
    if (nbdkit_parse_int ("password file descriptor", value + 1, &fd) == -1)
      return -1;
    if (fd <= STDERR_FILENO) {
      nbdkit_error ("cannot read password from file descriptor %d: it is "
                    "stdin, stdout, stderr or negative", fd);
      return -1;
    }
    return read_password_from_fd (value, fd, password);
  }
  if (value[0] == '+') {
    fd = open (value + 1, O_RDONLY | O_CLOEXEC);
    if (fd == -1) {
      nbdkit_error ("open %s: %m", value + 1);
      return -1;
    }
    return read_password_from_fd (value + 1, fd, password);
  }
  *password = strdup (value);
  if (*password == NULL) {
    nbdkit_error ("strdup: %m");
    return -1;
  }
  return 0;
}
