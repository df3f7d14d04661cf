/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access.h"
#include "handover.h"
#include "metactx.h"
#include "nbd-wire.h"

#define HANDOVER_ERROR (g_quark_from_static_string ("nbdfleece-handover"))

/* Padded with NUL: a GVariant's data have to be aligned. */
#define HEAD_SIZE 32
#define HEAD_FORMAT "nbdfleece handover %d\n"

#define LISTENER "(xiayttuuay)"
#define CONTEXT  "(uay)"
#define CONN     "(uixuayayutuuuutttta" CONTEXT "ay)"
#define FILE_    "(ayi)"
#define STATE    "(ayayxua" LISTENER "a" CONN "a" FILE_ ")"

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

/* Against nonsense only: what clients have sent ahead, at most some 32 MiB
 * each, makes up most of it. */
#define MAX_STATE_SIZE (UINT64_C (16) << 30)

static void
listener_free (void *p)
{
  struct handover_listener *l = p;

  g_free (l->path);
  g_free (l->terms);
  g_free (l);
}

static void
conn_free (void *p)
{
  struct handover_conn *c = p;

  g_free (c->terms);
  g_free (c->export_name);
  g_ptr_array_unref (c->contexts);
  g_clear_pointer (&c->unparsed, g_bytes_unref);
  g_free (c);
}

static void
file_free (void *p)
{
  struct handover_file *f = p;

  g_free (f->name);
  g_free (f);
}

Handover *
handover_new (void)
{
  Handover *h = g_new0 (Handover, 1);

  h->listeners = g_ptr_array_new_with_free_func (listener_free);
  h->conns = g_ptr_array_new_with_free_func (conn_free);
  h->files = g_ptr_array_new_with_free_func (file_free);
  return h;
}

void
handover_free (Handover *h)
{
  if (h == NULL)
    return;
  g_ptr_array_unref (h->listeners);
  g_ptr_array_unref (h->conns);
  g_ptr_array_unref (h->files);
  g_free (h->program);
  g_free (h->private_folder);
  g_free (h);
}

struct handover_conn *
handover_add_conn (Handover *h)
{
  struct handover_conn *c = g_new0 (struct handover_conn, 1);

  c->contexts = g_ptr_array_new_with_free_func (g_free);
  g_ptr_array_add (h->conns, c);
  return c;
}

struct handover_listener *
handover_add_listener (Handover *h)
{
  struct handover_listener *l = g_new0 (struct handover_listener, 1);

  g_ptr_array_add (h->listeners, l);
  return l;
}

void
handover_add_file (Handover *h, const char *name, int fd)
{
  struct handover_file *f = g_new0 (struct handover_file, 1);

  f->name = g_strdup (name);
  f->fd = fd;
  g_ptr_array_add (h->files, f);
}

/* --- out --- */

static const char *
text (const char *str)
{
  return str ? str : "";
}

static GVariant *
listeners_to_variant (const Handover *h)
{
  GVariantBuilder b = G_VARIANT_BUILDER_INIT (G_VARIANT_TYPE ("a" LISTENER));

  for (guint i = 0; i < h->listeners->len; i++) {
    const struct handover_listener *l = h->listeners->pdata[i];

    g_variant_builder_add (&b, "(xi^ayttuu^ay)", l->id, l->fd, text (l->path),
                           (guint64) l->dev, (guint64) l->ino, l->port,
                           l->max_connections, text (l->terms));
  }
  return g_variant_builder_end (&b);
}

static GVariant *
contexts_to_variant (const GPtrArray *contexts)
{
  GVariantBuilder b = G_VARIANT_BUILDER_INIT (G_VARIANT_TYPE ("a" CONTEXT));

  for (guint i = 0; i < contexts->len; i++)
    g_variant_builder_add (&b, "(u^ay)", i + 1, contexts->pdata[i]);
  return g_variant_builder_end (&b);
}

static GVariant *
conns_to_variant (const Handover *h)
{
  GVariantBuilder b = G_VARIANT_BUILDER_INIT (G_VARIANT_TYPE ("a" CONN));

  for (guint i = 0; i < h->conns->len; i++) {
    const struct handover_conn *c = h->conns->pdata[i];

    g_variant_builder_add (
      &b, "(uixu^ay^ayutuuuutttt@a" CONTEXT "@ay)", c->number, c->fd,
      c->listener, c->listener_max, text (c->terms),
      c->export_name, (guint32) c->mode, c->info.size,
      (guint32) c->info.flags, c->info.block.min, c->info.block.preferred,
      c->info.block.max, c->bytes_read, c->bytes_written, c->requests,
      c->extents, contexts_to_variant (c->contexts),
      g_variant_new_from_bytes (G_VARIANT_TYPE_BYTESTRING, c->unparsed,
                                TRUE));
  }
  return g_variant_builder_end (&b);
}

static GVariant *
files_to_variant (const Handover *h)
{
  GVariantBuilder b = G_VARIANT_BUILDER_INIT (G_VARIANT_TYPE ("a" FILE_));

  for (guint i = 0; i < h->files->len; i++) {
    const struct handover_file *f = h->files->pdata[i];

    g_variant_builder_add (&b, "(^ayi)", f->name, f->fd);
  }
  return g_variant_builder_end (&b);
}

static bool
write_all (int fd, const void *data, size_t n)
{
  const char *p = data;

  while (n > 0) {
    ssize_t r = write (fd, p, n);

    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1)
      return false;
    p += r;
    n -= r;
  }
  return true;
}

int
handover_save (const Handover *h, GError **error)
{
  g_autoptr (GVariant) state = g_variant_ref_sink (
    g_variant_new ("(^ay^ayxu@a" LISTENER "@a" CONN "@a" FILE_ ")",
                   text (h->program), text (h->private_folder),
                   h->last_listener_id, h->last_conn_number,
                   listeners_to_variant (h), conns_to_variant (h),
                   files_to_variant (h)));
  char head[HEAD_SIZE] = "";
  int fd = memfd_create ("nbdfleece-handover", MFD_CLOEXEC | MFD_ALLOW_SEALING);

  snprintf (head, sizeof head, HEAD_FORMAT, HANDOVER_VERSION);
  if (fd == -1 || !write_all (fd, head, sizeof head) ||
      !write_all (fd, g_variant_get_data (state),
                  g_variant_get_size (state)) ||
      fcntl (fd, F_ADD_SEALS, SEALS | F_SEAL_SEAL) == -1) {
    g_set_error (error, HANDOVER_ERROR, 0, "cannot write the state down: %s",
                 g_strerror (errno));
    if (fd != -1)
      close (fd);
    return -1;
  }
  return fd;
}

/* --- in --- */

static bool
is_socket (int fd)
{
  struct stat st;

  return fd > STDERR_FILENO && fstat (fd, &st) == 0 && S_ISSOCK (st.st_mode);
}

static bool
is_file (int fd)
{
  return fd > STDERR_FILENO && fcntl (fd, F_GETFD) != -1;
}

static bool
terms_are_valid (const char *text)
{
  g_autoptr (Terms) terms = terms_parse (text);

  return terms != NULL;
}

static void
read_listeners (Handover *h, GVariantIter *iter, bool *ok)
{
  struct handover_listener l;
  guint64 dev, ino;

  while (g_variant_iter_next (iter, "(xi^ayttuu^ay)", &l.id, &l.fd, &l.path,
                              &dev, &ino, &l.port, &l.max_connections,
                              &l.terms)) {
    struct handover_listener *new = handover_add_listener (h);

    if (*l.path == '\0')
      g_clear_pointer (&l.path, g_free);
    l.dev = dev;
    l.ino = ino;
    *new = l;
    *ok &= is_socket (l.fd) && l.id > 0 && terms_are_valid (l.terms);
  }
}

static void
read_contexts (struct handover_conn *c, GVariantIter *iter, bool *ok)
{
  guint32 id;
  char *name;

  while (g_variant_iter_next (iter, "(u^ay)", &id, &name)) {
    g_ptr_array_add (c->contexts, name);
    *ok &= id == c->contexts->len && id <= METACTX_MAX_SELECTED;
  }
}

static void
read_conns (Handover *h, GVariantIter *iter, bool *ok)
{
  GVariant *item;

  while ((item = g_variant_iter_next_value (iter)) != NULL) {
    struct handover_conn *c = handover_add_conn (h);
    g_autoptr (GVariantIter) contexts = NULL;
    g_autoptr (GVariant) unparsed = NULL;
    guint32 mode, flags;

    g_variant_get (item, "(uixu^ay^ayutuuuutttta" CONTEXT "@ay)", &c->number,
                   &c->fd, &c->listener, &c->listener_max, &c->terms,
                   &c->export_name, &mode, &c->info.size, &flags,
                   &c->info.block.min, &c->info.block.preferred,
                   &c->info.block.max, &c->bytes_read, &c->bytes_written,
                   &c->requests, &c->extents, &contexts, &unparsed);
    c->mode = mode;
    c->info.flags = flags;
    c->unparsed = g_variant_get_data_as_bytes (unparsed);
    read_contexts (c, contexts, ok);
    *ok &= is_socket (c->fd) && terms_are_valid (c->terms) &&
      mode <= REPLY_EXTENDED &&
      flags <= UINT16_MAX && strlen (c->export_name) <= NBD_MAX_STRING;
    g_variant_unref (item);
  }
}

static void
read_files (Handover *h, GVariantIter *iter, bool *ok)
{
  char *name;
  gint32 fd;

  /* Not g_variant_iter_loop: that of GLib 2.74 frees ^ay as if it were ^as. */
  while (g_variant_iter_next (iter, "(^ayi)", &name, &fd)) {
    handover_add_file (h, name, fd);
    g_free (name);
    *ok &= is_file (fd);
  }
}

static Handover *
parse (GVariant *state)
{
  g_autoptr (Handover) h = handover_new ();
  g_autoptr (GVariantIter) listeners = NULL, conns = NULL, files = NULL;
  bool ok = true;

  g_variant_get (state, "(^ay^ayxua" LISTENER "a" CONN "a" FILE_ ")",
                 &h->program, &h->private_folder, &h->last_listener_id,
                 &h->last_conn_number, &listeners, &conns, &files);
  if (*h->private_folder == '\0')
    g_clear_pointer (&h->private_folder, g_free);
  read_listeners (h, listeners, &ok);
  read_conns (h, conns, &ok);
  read_files (h, files, &ok);
  return ok && *h->program ? g_steal_pointer (&h) : NULL;
}

/* All of it but the head; NULL: *out_why says why. */
static GBytes *
read_file (int fd, const char **out_why)
{
  char head[HEAD_SIZE], expected[HEAD_SIZE] = "";
  g_autofree unsigned char *data = NULL;
  struct stat st;
  int seals = fcntl (fd, F_GET_SEALS);
  uint64_t size, done = 0;

  if (seals == -1 || (seals & SEALS) != SEALS || fstat (fd, &st) == -1 ||
      st.st_size < HEAD_SIZE || (uint64_t) st.st_size > MAX_STATE_SIZE) {
    *out_why = "it is no sealed memory file";
    return NULL;
  }
  snprintf (expected, sizeof expected, HEAD_FORMAT, HANDOVER_VERSION);
  if (pread (fd, head, sizeof head, 0) != sizeof head ||
      memcmp (head, expected, sizeof head) != 0) {
    *out_why = "it is of another version";
    return NULL;
  }
  size = st.st_size - HEAD_SIZE;
  data = g_try_malloc (size);
  while (data != NULL && done < size) {
    ssize_t r = pread (fd, data + done, size - done, HEAD_SIZE + done);

    if (r <= 0)
      break;
    done += r;
  }
  if (data == NULL || done < size) {
    *out_why = "it cannot be read";
    return NULL;
  }
  return g_bytes_new_take (g_steal_pointer (&data), size);
}

Handover *
handover_load (int fd, GError **error)
{
  const char *why = NULL;
  g_autoptr (GBytes) data = read_file (fd, &why);
  g_autoptr (GVariant) state = NULL;
  Handover *h = NULL;

  if (data != NULL) {
    state = g_variant_ref_sink (
      g_variant_new_from_bytes (G_VARIANT_TYPE (STATE), data, FALSE));
    h = g_variant_is_normal_form (state) ? parse (state) : NULL;
    if (h == NULL)
      why = "it is damaged";
  }
  if (h == NULL)
    g_set_error (error, HANDOVER_ERROR, 0, "cannot take over from another "
                 "image of the server: the state that it left: %s", why);
  return h;
}

static void
set_cloexec (int fd, bool on)
{
  fcntl (fd, F_SETFD, on ? FD_CLOEXEC : 0);
}

void
handover_set_cloexec (const Handover *h, bool on)
{
  for (guint i = 0; i < h->listeners->len; i++)
    set_cloexec (((struct handover_listener *) h->listeners->pdata[i])->fd,
                 on);
  for (guint i = 0; i < h->conns->len; i++)
    set_cloexec (((struct handover_conn *) h->conns->pdata[i])->fd, on);
  for (guint i = 0; i < h->files->len; i++)
    set_cloexec (((struct handover_file *) h->files->pdata[i])->fd, on);
}
