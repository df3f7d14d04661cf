/* SPDX-License-Identifier: BSD-3-Clause */
/* metacontext.h - what nbdkit's plugin API v2 lacks for dirty bitmaps.
 *
 * A proposal, small enough to be offered upstream.  A plugin that exports the
 * symbol METACONTEXT_SYMBOL (a function of type metacontext_init_fn) can offer
 * metadata contexts beyond base:allocation, and may ask the server for a few
 * things that a plugin cannot do by itself.  A server that does not know the
 * symbol (stock nbdkit) loads the plugin and never calls it: the plugin can
 * tell by that.  All tables start with their size in bytes: fields are only
 * ever added at the end, so either side may be older than the other; a callee
 * must not read past the size that it was given.
 *
 * base:allocation itself stays with the plugin's ordinary .can_extents and
 * .extents callbacks.  Because contexts are selected on the handle before any
 * .extents call on it, a plugin can let what was selected influence what
 * .extents says.
 *
 * Threads: the plugin's callbacks are called under the plugin's own thread
 * model, as .extents is.  The host's functions may be called from any thread
 * after .after_fork, except where a comment says otherwise.
 */
#ifndef METACONTEXT_H
#define METACONTEXT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define METACONTEXT_API_VERSION 1
#define METACONTEXT_SYMBOL "nbdkit_metacontext_init"

/* Longest context name on the wire, in bytes (NBD spec, "Strings"). */
#define METACONTEXT_NAME_MAX 4096

/* Where list results go; opaque, valid during the call only. */
struct metacontext_list;
/* Where extents go; opaque, valid during the call only. */
struct metacontext_extents;
/* Where numbers for a monitoring system go; opaque, valid during the call
 * only. */
struct metacontext_metrics;

/* Offered by the plugin; static storage, never changes. */
struct metacontext_plugin {
  size_t size;                  /* sizeof (struct metacontext_plugin) */

  /* NBD_OPT_LIST_META_CONTEXT.  query: one query as sent ("qemu:",
   * "qemu:dirty-bitmap:", a full name), or "" when the client sent none, which
   * means all that should be shown.  Call host->list_add for each name; none is
   * no error.  A partial list is allowed by the spec, so that what is shown may
   * be less than what select grants.  base:allocation is the server's business.
   * Returns 0, or -1 after nbdkit_error (the client then gets an error reply).
   */
  int (*list) (void *handle, const char *query, struct metacontext_list *list);

  /* NBD_OPT_SET_META_CONTEXT, once for each full name that the client wants and
   * the server does not serve itself.  The server replies with the very
   * spelling that the client sent.
   * Returns 1 and sets *out_cookie (any value; two spellings of one context
   * should get the same one), 0 if there is no such context here, -1 after
   * nbdkit_error.  Never the wildcard of a whole namespace ("qemu:"): the
   * caller has dealt with those.  Deeper ones ("qemu:dirty-bitmap:") only the
   * plugin can tell from names that end with a colon; they select nothing: 0.
   */
  int (*select) (void *handle, const char *name, uint64_t *out_cookie);

  /* The selection on this handle is void: the client sent another
   * SET_META_CONTEXT.  May be NULL.  select calls may follow. */
  void (*deselect_all) (void *handle);

  /* NBD_CMD_BLOCK_STATUS for one selected context: describe [offset, offset +
   * count) in order from offset, by host->extent_add calls.  May stop early
   * after at least one extent, and may go on past the range; the server cuts
   * all contexts of a reply to the same span and merges neighbours.
   * flags: NBDKIT_FLAG_REQ_ONE or 0, a hint only.
   * Returns 0, or -1 after nbdkit_error and nbdkit_set_error.
   */
  int (*extents) (void *handle, uint64_t cookie, uint64_t count,
                  uint64_t offset, uint32_t flags,
                  struct metacontext_extents *extents);

  /* What an export is, METACONTEXT_EXPORT_*: the server may let a client open
   * some kinds only.  handle: opened, or NULL: what opening that name would
   * give.  A name that cannot be opened is METACONTEXT_EXPORT_NONE, and takes
   * about as long as one that can.  Not an error: report nothing.  May be NULL,
   * and then all are METACONTEXT_EXPORT_UNKNOWN. */
  int (*export_kind) (void *handle, const char *name);

  /* Somebody asks for numbers: call host->metric_add for each.  Seldom, but
   * from a thread of its own, whatever the thread model.  May be NULL. */
  void (*metrics) (struct metacontext_metrics *metrics);
};

/* What a plugin's export is. */
#define METACONTEXT_EXPORT_NONE     -1  /* there is none of that name */
#define METACONTEXT_EXPORT_UNKNOWN  0
#define METACONTEXT_EXPORT_LIVE     1   /* changes while it is in use */
#define METACONTEXT_EXPORT_SNAPSHOT 2   /* never changes, read-only */
#define METACONTEXT_EXPORT_RESTORE  3   /* made for a restore to be written to,
                                           not in use by anybody else */

/* Commands by their numbers in the protocol: 0: READ, 1: WRITE, 3: FLUSH,
 * 4: TRIM, 5: CACHE, 6: WRITE_ZEROES, 7: BLOCK_STATUS; 2: unknown ones. */
#define METACONTEXT_COMMANDS 8

/* Counters of one connection, since it was accepted. */
struct metacontext_counters {
  size_t size;                  /* set by the caller */
  uint64_t bytes_read;          /* payload sent to the client by READ */
  uint64_t bytes_written;       /* payload taken from the client by WRITE */
  uint64_t requests;            /* transmission requests answered */
  uint64_t extents;             /* extents sent by BLOCK_STATUS */
  /* By command; where the server has replaced itself (.reexec) since then
   * without requests and errors from before. */
  struct {
    uint64_t requests;
    uint64_t bytes;             /* that succeeding ones were about */
    uint64_t errors;
  } command[METACONTEXT_COMMANDS];
  uint64_t errors;              /* of all commands */
  uint64_t waits;               /* times that a limit held the client back */
  uint64_t in_flight;           /* requests not yet answered */
  uint64_t connection;          /* its number in the log; 0: more than one */
};

/* What clients are shown, and must show.  Files are as nbdkit's and QEMU's. */
struct metacontext_tls {
  size_t size;                  /* set by the caller */
  const char *certificates;     /* folder; NULL: psk */
  const char *psk;              /* file; NULL: certificates */
  int verify_peer;              /* clients need certificates, too */
  /* The only client: subject of its certificate in the order of the certificate
   * ("O=b,CN=a"), or its PSK user; NULL: any. */
  const char *identity;
};

/* Offered by the server; static storage, never changes. */
struct metacontext_host {
  size_t size;                  /* sizeof (struct metacontext_host) */

  /* To be called from .list only.  name: full context name, copied.
   * Returns 0, or -1 when the list is full (stop then). */
  int (*list_add) (struct metacontext_list *list, const char *name);

  /* To be called from .extents only.  64-bit length (more than 0) and flags.
   * Returns 1: go on, 0: enough, the rest would not be sent, -1: error, already
   * reported; return -1 from .extents. */
  int (*extent_add) (struct metacontext_extents *extents, uint64_t length,
                     uint64_t flags);

  /* Close the connection that has this handle open.  Requests in flight get
   * their replies where that is still possible; the plugin's .close follows as
   * usual.  Does not wait.  Returns 0; -1 if no connection has the handle.
   * The caller must make sure that the handle is not closed meanwhile (hold the
   * lock under which its .close unregisters the handle). */
  int (*disconnect) (void *handle);

  /* Add a listening socket: uri is nbd://HOST:PORT or nbd+unix:///?socket=PATH.
   * Returns an id > 0, or -1 after nbdkit_error. */
  int64_t (*listener_add) (const char *uri);
  /* Stop listening; existing connections go on.  0, or -1: no such id. */
  int (*listener_remove) (int64_t id);

  /* Counters of the connection that has this handle open; 0, or -1: none. */
  int (*counters) (void *handle, struct metacontext_counters *out);

  /* Replace the server's process image by what is now at its program's path,
   * with the same arguments.  Clients in transmission stay connected: their
   * handles are closed, and opened again by the new image, by export name and
   * with the contexts that were selected.  The plugin goes through .cleanup and
   * .unload, then starts as usual.
   * Waits while the new program is asked whether it can take over.  Returns 0
   * once the replacement is under way; -1 after nbdkit_error where it is not
   * possible: nothing has changed then. */
  int (*reexec) (void);

  /* In .cleanup: leave an open file, such as a listening socket, to the plugin
   * in the next image, under a name of the plugin's choice.  Returns 0 and
   * takes fd; -1 if the server is not replacing itself. */
  int (*file_keep) (const char *name, int fd);
  /* From .config_complete on: the file that an earlier image has kept under
   * that name; it is the caller's, and close-on-exec.  -1: there is none. */
  int (*file_take) (const char *name);

  /* As listener_add, but with at most max_connections clients at a time: others
   * wait until one leaves; a limit of 1 is told to clients, which do not try a
   * second connection then.  0: no limit.  Where it fails, why (of why_size
   * bytes, may be NULL) is the reason, and nbdkit_error has not been called. */
  int64_t (*listener_open) (const char *uri, uint32_t max_connections,
                            char *why, size_t why_size);
  /* As listener_remove, and disconnects all who came in by it. */
  int (*listener_close) (int64_t id);

  /* To be called from .metrics only.  name: [a-z_]+, prefixed by the plugin's;
   * ending in _total: it only grows.  help: a phrase.  label, value: one label,
   * copied and escaped, or NULL.  Numbers of one name one after the other. */
  void (*metric_add) (struct metacontext_metrics *metrics, const char *name,
                      const char *help, const char *label, const char *value,
                      uint64_t number);

  /* Call fn for each export that clients have opened, in the order of names,
   * with those who have it open now and the counters of all who ever had.  A
   * name of "(others)" stands for those beyond what the server counts one by
   * one. */
  void (*export_counters) (void (*fn) (void *arg, const char *export_name,
                                       unsigned connections,
                                       const struct metacontext_counters *c),
                           void *arg);
  /* Call fn for each limit, by the name of its option, with how often clients
   * have met it. */
  void (*limit_hits) (void (*fn) (void *arg, const char *option,
                                  uint64_t hits),
                      void *arg);

  /* As listener_open, but clients have to start TLS, and are shown these
   * keys. */
  int64_t (*listener_open_tls) (const char *uri, uint32_t max_connections,
                                const struct metacontext_tls *tls,
                                char *why, size_t why_size);
  /* Whether these keys can be loaded: 0, or -1 and why.  Nothing is kept. */
  int (*tls_check) (const struct metacontext_tls *tls, char *why,
                    size_t why_size);
};

/* The type of the symbol METACONTEXT_SYMBOL.  Called once, before .load's
 * first .config, with api_version the highest version that the host speaks.
 * host stays valid for the life of the process.  Returns the plugin's table,
 * or NULL if it does not want to take part. */
typedef const struct metacontext_plugin *
(*metacontext_init_fn) (int api_version, const struct metacontext_host *host);

#ifdef __cplusplus
}
#endif
#endif /* METACONTEXT_H */
