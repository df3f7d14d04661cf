/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* access.h - who may open what: the role of a listener, and rules.
 *
 * A Terms is what a listener grants to those who connect to it.  It never
 * changes; each client holds a reference to that of the listener by which it
 * came in, so that both may go in any order.  The rules of --access are the
 * process's, and replaced as a whole: see access-file.h.
 *
 * A rule lets a client open an export if everything that the rule has matches:
 * of each kind of condition one value is enough, of kinds that it does not have
 * anything will do.  That of a listener (if any) and one of the file's (if
 * there is a file) have to.
 */
#ifndef NBDFLEECE_ACCESS_H
#define NBDFLEECE_ACCESS_H

#include <stdbool.h>
#include <sys/types.h>

#include <glib.h>

#include "access-peer.h"
#include "metacontext.h"
#include "tls.h"

#define ACCESS_ERROR (g_quark_from_static_string ("nbdfleece-access"))

enum access_role {
  ROLE_ANY,                     /* whatever there is, writable where it is */
  ROLE_GUEST,                   /* live */
  ROLE_BACKUP,                  /* snapshots; nothing is writable */
  ROLE_RESTORE,                 /* live, and made to be restored to */
  NR_ROLES,
};

/* NR_ROLES: there is no such role. */
enum access_role access_role_from_name (const char *name);
const char *access_role_name (enum access_role role);

typedef struct AccessRule AccessRule;

AccessRule *access_rule_new (const char *name);
AccessRule *access_rule_ref (AccessRule *rule);
void access_rule_unref (AccessRule *rule);      /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (AccessRule, access_rule_unref)

/* One value of a condition.  kind: role, listener, uid, gid, address (also
 * NETWORK/BITS), tls-name, psk-user, export; patterns with * and ? in those but
 * role, uid, gid and address.  A tls-name is the common name of a certificate,
 * its subject, or an alternative name ("DNS:...") of it.  false: no such kind,
 * or not a value of it. */
bool access_rule_add (AccessRule *rule, const char *kind, const char *value,
                      GError **error);
void access_rule_set_readonly (AccessRule *rule);

typedef struct Terms {
  gint refs;                    /* atomic */
  char *text;                   /* what terms_parse makes the same of */
  enum access_role role;
  char *name;                   /* of the listener; "" */
  int tls;                      /* enum tls_mode; TERMS_TLS_AS_ALL: --tls's */
  char *certificates, *psk;     /* its own folder or file, or both NULL */
  bool verify_peer;             /* with certificates */
  char *identity;               /* who TLS clients must be; NULL: anybody */
  TlsKeys *keys;                /* NULL: the server's */
  AccessRule *rule;             /* NULL: none */
} Terms;

#define TERMS_TLS_AS_ALL -1

/* Grants everything. */
Terms *terms_new (void);
Terms *terms_ref (Terms *terms);
void terms_unref (Terms *terms);        /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Terms, terms_unref)
/* One option of a listener, before the terms are shared: role, name, tls,
 * tls-certificates, tls-psk, tls-verify-peer, tls-identity (a subject as QEMU
 * writes it, or a PSK user), allow (KIND:VALUE), export.  *out_known: is it one
 * of these? */
bool terms_set (Terms *terms, const char *option, const char *value,
                bool *out_known, GError **error);
/* Of Terms.text.  NULL: it is none. */
Terms *terms_parse (const char *text);

/* After the last option, before a listener starts: load its own keys, if it has
 * any, and check that there are some where they are needed. */
bool terms_load_keys (Terms *terms, GError **error);
enum tls_mode terms_tls_mode (const Terms *terms);
/* A new reference; NULL: there are none. */
TlsCreds *terms_tls_creds (const Terms *terms);

/* false: whatever it asked for, it would get nothing. */
bool access_may_connect (const Terms *terms, const struct access_peer *peer);
/* Could anybody open an export of this name by that listener?  Its role
 * aside. */
bool access_listener_offers (const Terms *terms, const char *export);
/* By name alone, which costs nothing and tells nothing about what exists.
 * *out_readonly is set if it may, but may not write. */
bool access_may_name (const Terms *terms, const struct access_peer *peer,
                      const char *export, bool *out_readonly);
/* kind: METACONTEXT_EXPORT_*. */
bool access_role_allows (enum access_role role, int kind);
bool access_role_is_readonly (enum access_role role);

/* With * and ?; linear in each. */
bool access_glob (const char *pattern, const char *str);

#endif /* NBDFLEECE_ACCESS_H */
