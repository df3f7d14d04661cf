/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* options.h - the command line: one row an option, read by getopt_long, --help
 * and a test that looks for each of them in the man page.
 *
 * OPTION (letter or 0, long name, argument or NULL, what it does)
 */
#ifndef NBDFLEECE_OPTIONS_H
#define NBDFLEECE_OPTIONS_H

#define OPTIONS                                                             \
  OPTION ('4', "ipv4-only", NULL, "with -i or -p: IPv4 only")               \
  OPTION ('6', "ipv6-only", NULL, "with -i or -p: IPv6 only")               \
  OPTION (0, "access", "FILE", "rules: who may open which exports")         \
  OPTION ('D', "debug", "NAME.FLAG=N", "set a debug flag of the plugin")    \
  OPTION (0, "dump-config", NULL, "print how nbdfleece was built")          \
  OPTION (0, "dump-plugin", NULL, "print what the plugin is and has")       \
  OPTION ('e', "exportname", "NAME", "export to name in $uri of --run")     \
  OPTION (0, "exit-with-parent", NULL, "exit when the parent process does") \
  OPTION ('f', "foreground", NULL, "do not go into the background")         \
  OPTION ('g', "group", "GROUP", "change to this group when ready")         \
  OPTION (0, "handshake-timeout", "SECONDS",                                \
          "time for a client to negotiate, 0 for ever [10]")                \
  OPTION (0, "help", NULL, "this text; with a plugin also its parameters")  \
  OPTION (0, "idle-timeout", "SECONDS",                                     \
          "drop clients that ask for nothing, 0 never [0]")                 \
  OPTION ('i', "ipaddr", "ADDRESS", "listen on this address only")          \
  OPTION (0, "listen", "ADDRESS[,OPTION=VALUE...]", "listen there as well") \
  OPTION (0, "listener-rate", "SIZE",                                       \
          "bytes a second of one listener, 0 any number [0]")               \
  OPTION (0, "log", "stderr|syslog|journal|null|FILE", "where messages go") \
  OPTION (0, "mask-handshake", "MASK", "offer only these handshake flags")  \
  OPTION (0, "max-client-memory", "SIZE",                                   \
          "buffers of one client's requests [64M]")                         \
  OPTION (0, "max-connections", "N", "clients at the same time [100]")      \
  OPTION (0, "max-listener-connections", "N",                               \
          "clients of one listener, 0 any number [0]")                      \
  OPTION (0, "max-memory", "SIZE",                                          \
          "buffers of all clients' requests [1G]")                          \
  OPTION (0, "max-option-size", "SIZE",                                     \
          "data of one option of the handshake [64K]")                      \
  OPTION (0, "max-options", "N", "options of one handshake [100000]")       \
  OPTION (0, "max-peer-connections", "N",                                   \
          "clients of one user or address, 0 any number [0]")               \
  OPTION (0, "max-requests", "N",                                           \
          "requests of all clients on threads of their own [1000]")         \
  OPTION (0, "metrics", "ADDRESS",                                          \
          "numbers for Prometheus, at a socket's path or HOST:PORT")        \
  OPTION (0, "no-sr", NULL, "do not offer structured replies")              \
  OPTION ('P', "pidfile", "FILE", "write the process id there when ready")  \
  OPTION ('p', "port", "PORT", "listen on this TCP port [10809]")           \
  OPTION (0, "print-uri", NULL, "print where clients find what is served")  \
  OPTION (0, "rate", "SIZE",                                                \
          "bytes a second of one client, 0 any number [0]")                 \
  OPTION ('r', "readonly", NULL, "all exports are read-only")               \
  OPTION (0, "run", "COMMAND", "serve only while this command runs")        \
  OPTION (0, "selinux-label", "LABEL", "of the socket")                     \
  OPTION (0, "shutdown-timeout", "SECONDS",                                 \
          "time for requests to finish at the end, 0 for ever [60]")        \
  OPTION ('s', "single", NULL, "serve one client, on standard input and output") \
  OPTION (0, "stall-timeout", "SECONDS",                                    \
          "drop clients that stop in a request or reply, 0 never [300]")    \
  OPTION ('t', "threads", "N", "requests in flight of one client [16]")     \
  OPTION (0, "tls", "off|on|require", "TLS for clients that want it, or all") \
  OPTION (0, "tls-certificates", "DIR", "certificate and key of the server") \
  OPTION (0, "tls-psk", "FILE", "users and their keys, instead of those")   \
  OPTION (0, "tls-verify-peer", NULL, "clients must have a certificate, too") \
  OPTION ('U', "unix", "PATH", "listen on this Unix socket; -: a private one") \
  OPTION (0, "unix-mode", "MODE", "permissions of the Unix socket, octal")  \
  OPTION ('u', "user", "USER", "change to this user when ready")            \
  OPTION ('V', "version", NULL, "print the version")                        \
  OPTION (0, "vsock", NULL, "with -p: listen on that port of AF_VSOCK")     \
  OPTION ('v', "verbose", NULL, "print debugging messages")

#endif /* NBDFLEECE_OPTIONS_H */
