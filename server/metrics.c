/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "bind.h"
#include "conn-internal.h"
#include "log.h"
#include "metrics.h"

#define MAX_CLIENTS   8
#define MAX_REQUEST   4096
#define MAX_LISTENERS 8         /* addresses of one host name */
#define DEADLINE_NS   (5 * INT64_C (1000000000))

enum phase { READING, WRITING, LEAVING };

struct client {
  int fd;
  enum phase phase;
  int64_t came;
  char request[MAX_REQUEST + 1];
  size_t have;
  GString *reply;               /* NULL while it is READING */
  size_t sent;
};

static GArray *listeners;        /* struct bound_socket; NULL: none */

static struct Backend *backend;
static pthread_t thread;
static bool is_running;
static int stop_fd = -1;
/* The thread's; the oldest first. */
static struct client *clients_here[MAX_CLIENTS];
static unsigned nr_clients;

/* --- listening --- */

bool
metrics_listen (const Address *address, GError **error)
{
  listeners = g_array_new (FALSE, FALSE, sizeof (struct bound_socket));
  if (!bind_address (address, listeners, error)) {
    g_prefix_error (error, "--metrics: ");
    return false;
  }
  if (listeners->len > MAX_LISTENERS) {
    g_set_error (error, ACCESS_ERROR, 0, "--metrics: '%s' stands for more than "
                 "%d addresses", address->host, MAX_LISTENERS);
    return false;
  }
  return true;
}

static struct bound_socket *
listener (unsigned i)
{
  return &g_array_index (listeners, struct bound_socket, i);
}

void
metrics_close (void)
{
  for (unsigned i = 0; listeners != NULL && i < listeners->len; i++) {
    bound_socket_remove_file (listener (i));
    close (listener (i)->fd);
    g_free (listener (i)->path);
  }
  g_clear_pointer (&listeners, g_array_unref);
}

/* --- one client --- */

static void
client_free (unsigned i)
{
  struct client *cl = clients_here[i];

  close (cl->fd);
  if (cl->reply != NULL)
    g_string_free (cl->reply, TRUE);
  g_free (cl);
  nr_clients--;
  memmove (&clients_here[i], &clients_here[i + 1],
           (nr_clients - i) * sizeof clients_here[0]);
}

static void
form_reply (struct client *cl, const char *status, const char *more,
            const char *type, GString *body)
{
  cl->reply = g_string_new (NULL);
  g_string_printf (cl->reply, "HTTP/1.1 %s\r\nContent-Type: %s\r\n"
                   "Content-Length: %zu\r\n%sConnection: close\r\n\r\n",
                   status, type, (size_t) body->len, more);
  g_string_append_len (cl->reply, body->str, body->len);
  g_string_free (body, TRUE);
  cl->phase = WRITING;
}

static void
refuse (struct client *cl, const char *status, const char *more)
{
  GString *body = g_string_new (status);

  g_string_append_c (body, '\n');
  form_reply (cl, status, more, "text/plain", body);
}

/* The first line; the rest of the request says nothing that matters. */
static void
answer (struct client *cl)
{
  char method[16], target[256], version[16];

  if (strlen (cl->request) != cl->have ||
      sscanf (cl->request, "%15[A-Z] %255[!-~] %15[!-~]", method, target,
              version) != 3 || !g_str_has_prefix (version, "HTTP/1."))
    refuse (cl, "400 Bad Request", "");
  else if (strcmp (method, "GET") != 0)
    refuse (cl, "405 Method Not Allowed", "Allow: GET\r\n");
  else if (strcmp (target, "/metrics") != 0 &&
           !g_str_has_prefix (target, "/metrics?"))
    refuse (cl, "404 Not Found", "");
  else
    form_reply (cl, "200 OK", "", "text/plain; version=0.0.4; charset=utf-8",
                metrics_text (backend));
}

/* false: it has gone. */
static bool
read_more (struct client *cl)
{
  ssize_t r = recv (cl->fd, cl->request + cl->have, MAX_REQUEST - cl->have, 0);

  if (r <= 0)
    return r == -1 && (errno == EAGAIN || errno == EINTR);
  cl->have += r;
  cl->request[cl->have] = '\0';
  if (strstr (cl->request, "\r\n\r\n") || strstr (cl->request, "\n\n") ||
      strlen (cl->request) != cl->have)
    answer (cl);
  else if (cl->have == MAX_REQUEST)
    refuse (cl, "431 Request Header Fields Too Large", "");
  return true;
}

static bool
write_more (struct client *cl)
{
  ssize_t r = send (cl->fd, cl->reply->str + cl->sent,
                    cl->reply->len - cl->sent, MSG_NOSIGNAL);

  if (r == -1)
    return errno == EAGAIN || errno == EINTR;
  cl->sent += r;
  if (cl->sent == cl->reply->len) {
    /* Closing with something unread would take the reply back. */
    shutdown (cl->fd, SHUT_WR);
    cl->phase = LEAVING;
  }
  return true;
}

static bool
wait_for_end (struct client *cl)
{
  ssize_t r = recv (cl->fd, cl->request, MAX_REQUEST, 0);

  return r > 0 || (r == -1 && (errno == EAGAIN || errno == EINTR));
}

static bool
serve_client (struct client *cl)
{
  return cl->phase == READING ? read_more (cl) :
    cl->phase == WRITING ? write_more (cl) : wait_for_end (cl);
}

/* --- the thread --- */

static void
accept_one (int listener)
{
  int fd = accept4 (listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
  struct client *cl;

  if (fd == -1)
    return;
  if (nr_clients == MAX_CLIENTS)
    client_free (0);
  cl = g_new0 (struct client, 1);
  cl->fd = fd;
  cl->came = conn_now_ns ();
  clients_here[nr_clients++] = cl;
}

/* Until the oldest has had its time. */
static int
timeout_ms (void)
{
  int64_t left;

  if (nr_clients == 0)
    return -1;
  left = clients_here[0]->came + DEADLINE_NS - conn_now_ns ();
  return left <= 0 ? 0 : left / 1000000 + 1;
}

static void
round_of (struct pollfd *pfds)
{
  unsigned had = nr_clients;
  int64_t now;

  /* From the last, so that indices stay. */
  for (unsigned i = had; i-- > 0;)
    if (pfds[1 + listeners->len + i].revents && !serve_client (clients_here[i]))
      client_free (i);
  now = conn_now_ns ();
  while (nr_clients > 0 && now - clients_here[0]->came >= DEADLINE_NS)
    client_free (0);
  for (unsigned i = 0; i < listeners->len; i++)
    if (pfds[1 + i].revents)
      accept_one (listener (i)->fd);
}

static void *
metrics_thread (void *arg)
{
  struct pollfd pfds[1 + MAX_LISTENERS + MAX_CLIENTS];

  for (;;) {
    unsigned n = 0;

    pfds[n++] = (struct pollfd) { .fd = stop_fd, .events = POLLIN };
    for (unsigned i = 0; i < listeners->len; i++)
      pfds[n++] = (struct pollfd) { .fd = listener (i)->fd, .events = POLLIN };
    for (unsigned i = 0; i < nr_clients; i++)
      pfds[n++] = (struct pollfd) {
        .fd = clients_here[i]->fd,
        .events = clients_here[i]->phase == WRITING ? POLLOUT : POLLIN };
    for (unsigned i = 0; i < n; i++)
      pfds[i].revents = 0;
    if (poll (pfds, n, timeout_ms ()) == -1 && errno != EINTR)
      break;
    if (pfds[0].revents)
      break;
    round_of (pfds);
  }
  while (nr_clients > 0)
    client_free (0);
  return NULL;
}

bool
metrics_start (struct Backend *b)
{
  int err;

  if (listeners == NULL)
    return true;
  backend = b;
  stop_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (stop_fd == -1)
    return false;
  err = pthread_create (&thread, NULL, metrics_thread, NULL);
  if (err) {
    errno = err;
    return false;
  }
  is_running = true;
  return true;
}

void
metrics_stop (void)
{
  uint64_t one = 1;
  ssize_t r;

  if (!is_running)
    return;
  r = write (stop_fd, &one, sizeof one);
  (void) r;                     /* fails only when it is readable already */
  pthread_join (thread, NULL);
  close (stop_fd);
  is_running = false;
}
