/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tools/human.h"
#include "tools/qmp-client.h"

#define GREETING_TIMEOUT_MS 10000

/* The longest piece of the server's text in one of our messages. */
#define MAX_DESC 1000

struct Qmp {
  char *path;
  int fd;
  json_t *greeting;
  json_int_t next_id;
  GByteArray *in;               /* received and not yet used */
  size_t scanned;               /* of in: the framing below has seen it */
  unsigned depth;               /* open braces and brackets at `scanned` */
  bool in_string, escaped;
  void (*handler) (void *opaque, const json_t *event);
  void *handler_opaque;
};

G_DEFINE_QUARK (fleecectl-qmp, qmp_error)

static int
open_socket (const char *path, GError **error)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  const char *hint = "";
  int fd, err;

  if (strlen (path) >= sizeof addr.sun_path) {
    g_set_error (error, QMP_ERROR, QMP_ERROR_CONNECT,
                 "cannot connect to '%s': the path has more than %zu bytes",
                 path, sizeof addr.sun_path - 1);
    return -1;
  }
  strcpy (addr.sun_path, path);
  fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd >= 0 && connect (fd, (struct sockaddr *) &addr, sizeof addr) == 0)
    return fd;
  err = errno;
  if (err == ECONNREFUSED)
    hint = " (no server is listening there)";
  else if (err == ENOENT)
    hint = " (is the server running, with control=PATH?)";
  g_set_error (error, QMP_ERROR, QMP_ERROR_CONNECT,
               "cannot connect to '%s': %s%s", path, g_strerror (err), hint);
  if (fd >= 0)
    close (fd);
  return -1;
}

/* Only objects are expected, so the end of one is where the braces balance.
 * The JSON itself is checked by the parser afterwards.  0: more is needed.
 */
static size_t
find_end (Qmp *qmp)
{
  for (; qmp->scanned < qmp->in->len; qmp->scanned++) {
    char c = qmp->in->data[qmp->scanned];

    if (qmp->in_string) {
      if (qmp->escaped)
        qmp->escaped = false;
      else if (c == '\\')
        qmp->escaped = true;
      else if (c == '"')
        qmp->in_string = false;
    }
    else if (c == '"')
      qmp->in_string = true;
    else if (c == '{' || c == '[')
      qmp->depth++;
    else if ((c == '}' || c == ']') && --qmp->depth == 0)
      return qmp->scanned + 1;
  }
  return 0;
}

static void
skip_blanks (Qmp *qmp)
{
  size_t n = 0;

  if (qmp->scanned > 0)         /* in the middle of an object */
    return;
  while (n < qmp->in->len && strchr (" \t\r\n", qmp->in->data[n]) != NULL &&
         qmp->in->data[n] != '\0')
    n++;
  if (n > 0)
    g_byte_array_remove_range (qmp->in, 0, n);
}

static bool
receive_more (Qmp *qmp, int timeout_ms, GError **error)
{
  struct pollfd pfd = { .fd = qmp->fd, .events = POLLIN };
  uint8_t buf[65536];
  ssize_t n;
  int r;

  do
    r = poll (&pfd, 1, timeout_ms);
  while (r == -1 && errno == EINTR);
  if (r == 0) {
    g_set_error (error, QMP_ERROR, QMP_ERROR_PROTOCOL,
                 "'%s' accepted the connection but sent no QMP greeting "
                 "within %d s", qmp->path, timeout_ms / 1000);
    return false;
  }
  do
    n = recv (qmp->fd, buf, sizeof buf, 0);
  while (n == -1 && errno == EINTR);
  if (n <= 0) {
    g_set_error (error, QMP_ERROR, QMP_ERROR_PROTOCOL,
                 "lost the connection to '%s': %s", qmp->path,
                 n == 0 ? "the server closed it" : g_strerror (errno));
    return false;
  }
  g_byte_array_append (qmp->in, buf, n);
  return true;
}

static json_t *
parse_object (Qmp *qmp, size_t length, GError **error)
{
  json_error_t jerr;
  json_t *object = json_loadb ((const char *) qmp->in->data, length,
                               JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &jerr);

  g_byte_array_remove_range (qmp->in, 0, length);
  qmp->scanned = 0;
  if (object == NULL) {
    g_autofree char *why = human_escape (jerr.text, 200);

    g_set_error (error, QMP_ERROR, QMP_ERROR_PROTOCOL,
                 "'%s' sent malformed JSON: %s", qmp->path, why);
  }
  return object;
}

static json_t *
receive (Qmp *qmp, int timeout_ms, GError **error)
{
  for (;;) {
    size_t end;

    skip_blanks (qmp);
    if (qmp->in->len > 0 && qmp->in->data[0] != '{') {
      bool nbd = qmp->in->len >= 8 &&
                 memcmp (qmp->in->data, "NBDMAGIC", 8) == 0;

      g_set_error (error, QMP_ERROR, QMP_ERROR_PROTOCOL, "'%s' is no QMP "
                   "server: what it sent is not a JSON object%s", qmp->path,
                   nbd ? " (this is an NBD socket)" : "");
      return NULL;
    }
    end = find_end (qmp);
    if (end > 0)
      return parse_object (qmp, end, error);
    if (qmp->in->len > QMP_MAX_OBJECT) {
      g_set_error (error, QMP_ERROR, QMP_ERROR_PROTOCOL,
                   "'%s' sent more than %zu MiB in one object", qmp->path,
                   QMP_MAX_OBJECT >> 20);
      return NULL;
    }
    if (!receive_more (qmp, timeout_ms, error))
      return NULL;
  }
}

json_t *
qmp_receive (Qmp *qmp, GError **error)
{
  return receive (qmp, -1, error);
}

bool
qmp_send (Qmp *qmp, const json_t *object, GError **error)
{
  char *text = json_dumps (object, JSON_COMPACT | JSON_ENSURE_ASCII);
  size_t done = 0, length;

  if (text == NULL) {
    g_set_error (error, QMP_ERROR, QMP_ERROR_PROTOCOL,
                 "cannot send the command: a text in it is not UTF-8");
    return false;
  }
  length = strlen (text);
  text[length] = '\n';          /* in place of the NUL */
  while (done < length + 1) {
    ssize_t n = send (qmp->fd, text + done, length + 1 - done, MSG_NOSIGNAL);

    if (n == -1 && errno == EINTR)
      continue;
    if (n == -1) {
      g_set_error (error, QMP_ERROR, QMP_ERROR_PROTOCOL,
                   "lost the connection to '%s': %s", qmp->path,
                   g_strerror (errno));
      free (text);
      return false;
    }
    done += n;
  }
  free (text);
  return true;
}

static void
set_refusal (GError **error, json_t *refusal)
{
  const char *desc = json_string_value (json_object_get (refusal, "desc"));
  g_autofree char *text =
    human_escape (desc != NULL ? desc : "no reason given", MAX_DESC);

  g_set_error_literal (error, QMP_ERROR, QMP_ERROR_REFUSED, text);
}

json_t *
qmp_execute (Qmp *qmp, const char *command, json_t *arguments, GError **error)
{
  json_int_t id = ++qmp->next_id;
  json_t *request = json_pack ("{s:s, s:o*, s:I}", "execute", command,
                               "arguments", arguments, "id", id);
  bool sent;

  if (request == NULL) {
    g_set_error (error, QMP_ERROR, QMP_ERROR_PROTOCOL,
                 "cannot send the command: a text in it is not UTF-8");
    return NULL;
  }
  sent = qmp_send (qmp, request, error);
  json_decref (request);
  if (!sent)
    return NULL;
  for (;;) {
    json_t *reply = qmp_receive (qmp, error), *value, *got;

    if (reply == NULL)
      return NULL;
    got = json_object_get (reply, "id");
    /* Events have no id; neither has the reply to what it could not read. */
    if (json_object_get (reply, "event") != NULL && qmp->handler != NULL)
      qmp->handler (qmp->handler_opaque, reply);
    if (json_object_get (reply, "event") != NULL ||
        (got != NULL && json_integer_value (got) != id)) {
      json_decref (reply);
      continue;
    }
    value = json_incref (json_object_get (reply, "return"));
    if (value == NULL) {
      json_t *refusal = json_object_get (reply, "error");

      if (refusal != NULL)
        set_refusal (error, refusal);
      else
        g_set_error (error, QMP_ERROR, QMP_ERROR_PROTOCOL,
                     "'%s' sent a reply that is neither a return nor an error",
                     qmp->path);
    }
    json_decref (reply);
    return value;
  }
}

void
qmp_set_event_handler (Qmp *qmp,
                       void (*handler) (void *opaque, const json_t *event),
                       void *opaque)
{
  qmp->handler = handler;
  qmp->handler_opaque = opaque;
}

json_t *
qmp_greeting (const Qmp *qmp)
{
  return qmp->greeting;
}

static bool
greet (Qmp *qmp, GError **error)
{
  json_t *first = receive (qmp, GREETING_TIMEOUT_MS, error), *r;

  if (first == NULL)
    return false;
  qmp->greeting = json_incref (json_object_get (first, "QMP"));
  json_decref (first);
  if (!json_is_object (qmp->greeting)) {
    g_set_error (error, QMP_ERROR, QMP_ERROR_PROTOCOL,
                 "'%s' is no QMP server: it sent no QMP greeting", qmp->path);
    return false;
  }
  r = qmp_execute (qmp, "qmp_capabilities", NULL, error);
  json_decref (r);
  return r != NULL;
}

Qmp *
qmp_connect (const char *path, GError **error)
{
  g_autoptr (Qmp) qmp = NULL;
  int fd = open_socket (path, error);

  if (fd == -1)
    return NULL;
  qmp = g_new0 (Qmp, 1);
  qmp->path = g_strdup (path);
  qmp->fd = fd;
  qmp->in = g_byte_array_new ();
  if (!greet (qmp, error))
    return NULL;
  return g_steal_pointer (&qmp);
}

void
qmp_free (Qmp *qmp)
{
  if (qmp == NULL)
    return;
  close (qmp->fd);
  json_decref (qmp->greeting);
  g_byte_array_free (qmp->in, TRUE);
  g_free (qmp->path);
  g_free (qmp);
}

Qmp *
qmp_connect_again (Qmp *qmp, GError **error)
{
  json_t *object;

  while ((object = qmp_receive (qmp, NULL)) != NULL)
    json_decref (object);       /* events */
  return qmp_connect (qmp->path, error);
}
