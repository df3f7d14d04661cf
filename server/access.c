/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <config.h>

#include <grp.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <pwd.h>
#include <string.h>

#include "access.h"
#include "access-file.h"

static const char *const role_names[NR_ROLES] = {
  [ROLE_ANY] = "any", [ROLE_GUEST] = "guest", [ROLE_BACKUP] = "backup",
  [ROLE_RESTORE] = "restore",
};

enum access_role
access_role_from_name (const char *name)
{
  enum access_role role = 0;

  while (role < NR_ROLES && strcmp (role_names[role], name) != 0)
    role++;
  return role;
}

const char *
access_role_name (enum access_role role)
{
  return role_names[role];
}

bool
access_role_is_readonly (enum access_role role)
{
  return role == ROLE_BACKUP;
}

bool
access_role_allows (enum access_role role, int kind)
{
  switch (kind) {
  case METACONTEXT_EXPORT_NONE:
    return false;
  case METACONTEXT_EXPORT_LIVE:
    return role != ROLE_BACKUP;
  case METACONTEXT_EXPORT_SNAPSHOT:
    return role == ROLE_ANY || role == ROLE_BACKUP;
  case METACONTEXT_EXPORT_RESTORE:
    return role == ROLE_ANY || role == ROLE_RESTORE;
  default:                      /* the plugin does not tell */
    return true;
  }
}

bool
access_glob (const char *pattern, const char *str)
{
  const char *star = NULL, *from = NULL;

  while (*str) {
    if (*pattern == '*') {
      star = pattern++;
      from = str;
    }
    else if (*pattern == '?' || *pattern == *str) {
      pattern++;
      str++;
    }
    else if (star != NULL) {    /* let the last star have one more */
      pattern = star + 1;
      str = ++from;
    }
    else
      return false;
  }
  return pattern[strspn (pattern, "*")] == '\0';
}

/* --- rules */

struct network {
  int family;
  unsigned char address[16];
  unsigned bits;
};

/* A condition that has no values is no condition. */
struct AccessRule {
  gint refs;                    /* atomic */
  char *name;
  bool readonly;
  unsigned roles;               /* bits */
  GArray *uids, *gids;          /* uid_t, gid_t */
  GArray *networks;             /* struct network */
  GPtrArray *listeners, *tls_names, *psk_users, *exports;       /* patterns */
};

AccessRule *
access_rule_new (const char *name)
{
  AccessRule *rule = g_new0 (AccessRule, 1);

  rule->refs = 1;
  rule->name = g_strdup (name);
  rule->uids = g_array_new (FALSE, FALSE, sizeof (uid_t));
  rule->gids = g_array_new (FALSE, FALSE, sizeof (gid_t));
  rule->networks = g_array_new (FALSE, FALSE, sizeof (struct network));
  rule->listeners = g_ptr_array_new_with_free_func (g_free);
  rule->tls_names = g_ptr_array_new_with_free_func (g_free);
  rule->psk_users = g_ptr_array_new_with_free_func (g_free);
  rule->exports = g_ptr_array_new_with_free_func (g_free);
  return rule;
}

AccessRule *
access_rule_ref (AccessRule *rule)
{
  g_atomic_int_inc (&rule->refs);
  return rule;
}

void
access_rule_unref (AccessRule *rule)
{
  if (rule == NULL || !g_atomic_int_dec_and_test (&rule->refs))
    return;
  g_array_unref (rule->uids);
  g_array_unref (rule->gids);
  g_array_unref (rule->networks);
  g_ptr_array_unref (rule->listeners);
  g_ptr_array_unref (rule->tls_names);
  g_ptr_array_unref (rule->psk_users);
  g_ptr_array_unref (rule->exports);
  g_free (rule->name);
  g_free (rule);
}

void
access_rule_set_readonly (AccessRule *rule)
{
  rule->readonly = true;
}

bool
access_parse_uid (const char *value, uid_t *out, GError **error)
{
  guint64 number;
  struct passwd *pw;

  /* -1 stands for "none" in the kernel's interfaces. */
  if (g_ascii_string_to_unsigned (value, 10, 0, UINT32_MAX - 1, &number,
                                  NULL)) {
    *out = number;
    return true;
  }
  pw = *value ? getpwnam (value) : NULL;
  if (pw != NULL)
    *out = pw->pw_uid;
  else
    g_set_error (error, ACCESS_ERROR, 0, "there is no user '%s'", value);
  return pw != NULL;
}

bool
access_parse_gid (const char *value, gid_t *out, GError **error)
{
  guint64 number;
  struct group *gr;

  if (g_ascii_string_to_unsigned (value, 10, 0, UINT32_MAX - 1, &number,
                                  NULL)) {
    *out = number;
    return true;
  }
  gr = *value ? getgrnam (value) : NULL;
  if (gr != NULL)
    *out = gr->gr_gid;
  else
    g_set_error (error, ACCESS_ERROR, 0, "there is no group '%s'", value);
  return gr != NULL;
}

/* Do the first bits agree? */
static bool
same_bits (const unsigned char *a, const unsigned char *b, unsigned bits)
{
  unsigned rest = bits % 8;

  return memcmp (a, b, bits / 8) == 0 &&
    (rest == 0 || ((a[bits / 8] ^ b[bits / 8]) >> (8 - rest)) == 0);
}

static bool
parse_network (const char *value, struct network *out, GError **error)
{
  static const unsigned char zeroes[16];
  const char *slash = strchr (value, '/');
  g_autofree char *address = slash ? g_strndup (value, slash - value)
    : g_strdup (value);
  struct network n = { 0 };
  guint64 bits;
  unsigned max;

  n.family = strchr (address, ':') ? AF_INET6 : AF_INET;
  max = n.family == AF_INET6 ? 128 : 32;
  bits = max;
  if (inet_pton (n.family, address, n.address) != 1 ||
      (slash && !g_ascii_string_to_unsigned (slash + 1, 10, 0, max, &bits,
                                             NULL))) {
    g_set_error (error, ACCESS_ERROR, 0, "'%s' is not an IP address, or a "
                 "network such as 10.0.0.0/8", value);
    return false;
  }
  n.bits = bits;
  for (unsigned i = bits; i < max; i++)
    if (n.address[i / 8] >> (7 - i % 8) & 1) {
      g_set_error (error, ACCESS_ERROR, 0, "'%s': the address has bits behind "
                   "the first %u", value, n.bits);
      return false;
    }
  /* ::ffff:10.0.0.0/104 is how some write 10.0.0.0/8. */
  if (n.family == AF_INET6 && n.bits >= 96 &&
      memcmp (n.address, zeroes, 10) == 0 &&
      n.address[10] == 0xff && n.address[11] == 0xff) {
    memmove (n.address, n.address + 12, 4);
    n.family = AF_INET;
    n.bits -= 96;
  }
  *out = n;
  return true;
}

bool
access_rule_add (AccessRule *rule, const char *kind, const char *value,
                 GError **error)
{
  const struct { const char *kind; GPtrArray *list; } patterns[] = {
    { "listener", rule->listeners }, { "tls-name", rule->tls_names },
    { "psk-user", rule->psk_users }, { "export", rule->exports },
  };
  struct network network;
  enum access_role role;
  uid_t uid;
  gid_t gid;

  for (size_t i = 0; i < G_N_ELEMENTS (patterns); i++)
    if (strcmp (kind, patterns[i].kind) == 0) {
      g_ptr_array_add (patterns[i].list, g_strdup (value));
      return true;
    }
  if (strcmp (kind, "uid") == 0) {
    if (!access_parse_uid (value, &uid, error))
      return false;
    g_array_append_val (rule->uids, uid);
  }
  else if (strcmp (kind, "gid") == 0) {
    if (!access_parse_gid (value, &gid, error))
      return false;
    g_array_append_val (rule->gids, gid);
  }
  else if (strcmp (kind, "address") == 0) {
    if (!parse_network (value, &network, error))
      return false;
    g_array_append_val (rule->networks, network);
  }
  else if (strcmp (kind, "role") == 0) {
    role = access_role_from_name (value);
    if (role == NR_ROLES) {
      g_set_error (error, ACCESS_ERROR, 0, "'%s' is not guest, backup, restore "
                   "or any", value);
      return false;
    }
    rule->roles |= 1u << role;
  }
  else {
    g_set_error (error, ACCESS_ERROR, 0, "'%s' is not role, listener, uid, "
                 "gid, address, tls-name, psk-user or export", kind);
    return false;
  }
  return true;
}

/* --- what a listener grants */

Terms *
terms_new (void)
{
  Terms *terms = g_new0 (Terms, 1);

  terms->refs = 1;
  terms->text = g_strdup ("");
  terms->name = g_strdup ("");
  terms->tls = TERMS_TLS_AS_ALL;
  return terms;
}

Terms *
terms_ref (Terms *terms)
{
  g_atomic_int_inc (&terms->refs);
  return terms;
}

void
terms_unref (Terms *terms)
{
  if (terms == NULL || !g_atomic_int_dec_and_test (&terms->refs))
    return;
  access_rule_unref (terms->rule);
  tls_keys_unref (terms->keys);
  g_free (terms->certificates);
  g_free (terms->psk);
  g_free (terms->identity);
  g_free (terms->text);
  g_free (terms->name);
  g_free (terms);
}

static bool
set_tls (Terms *terms, const char *value, GError **error)
{
  static const char *const names[] = {
    [TLS_OFF] = "off", [TLS_ON] = "on", [TLS_REQUIRE] = "require",
  };

  for (size_t i = 0; i < G_N_ELEMENTS (names); i++)
    if (strcmp (value, names[i]) == 0) {
      terms->tls = i;
      return true;
    }
  g_set_error (error, ACCESS_ERROR, 0, "'%s' is not off, on or require",
               value);
  return false;
}

static bool
set_verify_peer (Terms *terms, const char *value, GError **error)
{
  terms->verify_peer = strcmp (value, "on") == 0;
  if (terms->verify_peer || strcmp (value, "off") == 0)
    return true;
  g_set_error (error, ACCESS_ERROR, 0, "'%s' is not on or off", value);
  return false;
}

static void
set_string (char **where, const char *value)
{
  g_free (*where);
  *where = g_strdup (value);
}

/* Returns the value with a number for a name: what is left to the next image
 * has to be valid there, whoever is a user then.  NULL: it is wrong. */
static char *
set_allow (Terms *terms, const char *value, GError **error)
{
  const char *colon = strchr (value, ':');
  g_autofree char *kind = colon ? g_strndup (value, colon - value) : NULL;
  AccessRule *rule = terms->rule;

  /* Those that the listener itself decides make no sense here. */
  if (kind == NULL || strcmp (kind, "role") == 0 ||
      strcmp (kind, "listener") == 0 || strcmp (kind, "export") == 0) {
    g_set_error (error, ACCESS_ERROR, 0, "'%s' is not uid:, gid:, address:, "
                 "tls-name: or psk-user: and a value", value);
    return NULL;
  }
  if (!access_rule_add (rule, kind, colon + 1, error))
    return NULL;
  if (strcmp (kind, "uid") == 0)
    return g_strdup_printf ("uid:%u", (unsigned) g_array_index (
                              rule->uids, uid_t, rule->uids->len - 1));
  if (strcmp (kind, "gid") == 0)
    return g_strdup_printf ("gid:%u", (unsigned) g_array_index (
                              rule->gids, gid_t, rule->gids->len - 1));
  return g_strdup (value);
}

bool
terms_set (Terms *terms, const char *option, const char *value,
           bool *out_known, GError **error)
{
  bool is_rule = strcmp (option, "allow") == 0 ||
    strcmp (option, "export") == 0;
  g_autofree char *allowed = NULL;
  bool ok = true;
  char *text;

  *out_known = true;
  if (is_rule && terms->rule == NULL)
    terms->rule = access_rule_new ("of the listener");
  if (strcmp (option, "role") == 0) {
    terms->role = access_role_from_name (value);
    ok = terms->role != NR_ROLES;
    if (!ok)
      g_set_error (error, ACCESS_ERROR, 0, "'%s' is not guest, backup, restore "
                   "or any", value);
  }
  else if (strcmp (option, "name") == 0)
    set_string (&terms->name, value);
  else if (strcmp (option, "tls") == 0)
    ok = set_tls (terms, value, error);
  else if (strcmp (option, "tls-certificates") == 0)
    set_string (&terms->certificates, value);
  else if (strcmp (option, "tls-psk") == 0)
    set_string (&terms->psk, value);
  else if (strcmp (option, "tls-verify-peer") == 0)
    ok = set_verify_peer (terms, value, error);
  else if (strcmp (option, "tls-identity") == 0)
    set_string (&terms->identity, value);
  else if (strcmp (option, "allow") == 0) {
    value = allowed = set_allow (terms, value, error);
    ok = allowed != NULL;
  }
  else if (strcmp (option, "export") == 0)
    ok = access_rule_add (terms->rule, "export", value, error);
  else {
    *out_known = false;
    return true;
  }
  if (ok) {
    text = g_strdup_printf ("%s%zu:%s=%s", terms->text,
                            strlen (option) + 1 + strlen (value), option,
                            value);
    g_free (terms->text);
    terms->text = text;
  }
  return ok;
}

/* Each option with its length in front: values may hold any character. */
Terms *
terms_parse (const char *text)
{
  g_autoptr (Terms) terms = terms_new ();

  while (*text) {
    char *end;
    guint64 length = g_ascii_strtoull (text, &end, 10);
    g_autofree char *option = NULL;
    char *equal;
    bool known;

    if (end == text || *end != ':' || length > strlen (end + 1))
      return NULL;
    option = g_strndup (end + 1, length);
    text = end + 1 + length;
    equal = strchr (option, '=');
    if (equal == NULL)
      return NULL;
    *equal = '\0';
    if (!terms_set (terms, option, equal + 1, &known, NULL) || !known)
      return NULL;
  }
  return g_steal_pointer (&terms);
}

/* Else everybody would be rejected. */
static bool
check_identity (const Terms *terms, GError **error)
{
  g_autoptr (TlsCreds) creds = terms->identity ? terms_tls_creds (terms) : NULL;

  if (creds == NULL || tls_creds_knows_peers (creds))
    return true;
  g_set_error (error, ACCESS_ERROR, 0, "option 'tls-identity' needs %s, or "
               "keys of users: without, no client shows a certificate",
               terms->certificates ? "'tls-verify-peer=on'" :
               "--tls-verify-peer");
  return false;
}

bool
terms_load_keys (Terms *terms, GError **error)
{
  bool has_own = terms->certificates || terms->psk;

  if ((terms->certificates && terms->psk) ||
      (terms->verify_peer && !terms->certificates)) {
    g_set_error (error, ACCESS_ERROR, 0, "option 'tls-psk' cannot be used "
                 "together with 'tls-certificates', and 'tls-verify-peer' not "
                 "without that");
    return false;
  }
  if (terms->identity != NULL && terms_tls_mode (terms) != TLS_REQUIRE) {
    g_set_error (error, ACCESS_ERROR, 0, "option 'tls-identity' needs "
                 "tls=require: nobody else is asked who he is");
    return false;
  }
  if (terms_tls_mode (terms) == TLS_OFF)
    return true;
  if (has_own) {
    terms->keys = tls_keys_new (terms->certificates, terms->psk,
                                terms->verify_peer, error);
    return terms->keys != NULL && check_identity (terms, error);
  }
  if (tls_mode () != TLS_OFF)
    return check_identity (terms, error);
  g_set_error (error, ACCESS_ERROR, 0, "option 'tls' needs certificates or "
               "keys: --tls-certificates or --tls-psk, or the listener's own");
  return false;
}

/* Never those of the server for those of its own that are gone. */
TlsCreds *
terms_tls_creds (const Terms *terms)
{
  bool lost = (terms->certificates || terms->psk) && terms->keys == NULL;

  return lost ? NULL : tls_creds (terms->keys);
}

enum tls_mode
terms_tls_mode (const Terms *terms)
{
  if (terms->tls != TERMS_TLS_AS_ALL)
    return terms->tls;
  /* Keys of its own mean it, as on the command line. */
  return tls_mode () == TLS_OFF && (terms->certificates || terms->psk) ?
    TLS_ON : tls_mode ();
}

/* --- decisions */

static bool
has_uid (const GArray *uids, const struct access_peer *peer)
{
  for (guint i = 0; peer->has_uid && i < uids->len; i++)
    if (g_array_index (uids, uid_t, i) == peer->uid)
      return true;
  return uids->len == 0;
}

static bool
has_gid (const GArray *gids, const struct access_peer *peer)
{
  for (guint i = 0; peer->has_uid && i < gids->len; i++) {
    gid_t gid = g_array_index (gids, gid_t, i);

    if (gid == peer->gid)
      return true;
    for (guint j = 0; peer->groups && j < peer->groups->len; j++)
      if (gid == g_array_index (peer->groups, gid_t, j))
        return true;
  }
  return gids->len == 0;
}

static bool
has_address (const GArray *networks, const struct sockaddr_storage *address)
{
  const unsigned char *bytes = address->ss_family == AF_INET ?
    (const void *) &((const struct sockaddr_in *) address)->sin_addr :
    (const void *) &((const struct sockaddr_in6 *) address)->sin6_addr;

  for (guint i = 0; i < networks->len; i++) {
    const struct network *n = &g_array_index (networks, struct network, i);

    if (n->family == address->ss_family &&
        same_bits (n->address, bytes, n->bits))
      return true;
  }
  return networks->len == 0;
}

static bool
has_match (const GPtrArray *patterns, const char *str)
{
  for (guint i = 0; str != NULL && i < patterns->len; i++)
    if (access_glob (patterns->pdata[i], str))
      return true;
  return patterns->len == 0;
}

static bool
has_tls_name (const GPtrArray *patterns, const struct tls_peer *tls)
{
  if (patterns->len == 0)
    return true;
  if (tls == NULL)
    return false;
  for (char **name = tls->alt_names; name && *name; name++)
    if (has_match (patterns, *name))
      return true;
  return has_match (patterns, tls->cn) || has_match (patterns, tls->dn);
}

/* export: NULL: any will do. */
static bool
rule_matches (const AccessRule *rule, const Terms *terms,
              const struct access_peer *peer, const char *export)
{
  bool later = export == NULL && peer->may_have_tls;

  return (rule->roles == 0 || rule->roles & 1u << terms->role) &&
    has_match (rule->listeners, terms->name) &&
    has_uid (rule->uids, peer) && has_gid (rule->gids, peer) &&
    has_address (rule->networks, &peer->address) &&
    (later || (has_tls_name (rule->tls_names, peer->tls) &&
               has_match (rule->psk_users,
                          peer->tls ? peer->tls->psk_user : NULL))) &&
    (export == NULL || has_match (rule->exports, export));
}

static bool
may (const Terms *terms, const struct access_peer *peer, const char *export,
     bool *out_readonly)
{
  g_autoptr (GPtrArray) rules = access_file_rules ();

  if (terms->rule != NULL &&
      !rule_matches (terms->rule, terms, peer, export))
    return false;
  for (guint i = 0; rules != NULL && i < rules->len; i++) {
    const AccessRule *rule = rules->pdata[i];

    if (rule_matches (rule, terms, peer, export)) {
      *out_readonly |= rule->readonly;
      return true;
    }
  }
  return rules == NULL;
}

bool
access_may_connect (const Terms *terms, const struct access_peer *peer)
{
  bool readonly = false;

  return may (terms, peer, NULL, &readonly);
}

bool
access_listener_offers (const Terms *terms, const char *export)
{
  return terms->rule == NULL || has_match (terms->rule->exports, export);
}

bool
access_may_name (const Terms *terms, const struct access_peer *peer,
                 const char *export, bool *out_readonly)
{
  return may (terms, peer, export, out_readonly);
}
