# SPDX-License-Identifier: LGPL-2.1-or-later
"""tlskeys.py - certificates and keys of one test, and sessions made with them.

    keys = tlskeys.Keys(t)              # of a Fixture
    t.start_nbdfleece("--tls=require", "--tls-certificates", keys.server, ...)
    h = t.connect_uri(keys.uri(server, "export", keys.client))
"""
import os
import ssl
import subprocess
import urllib.parse

import fixture
import nbdraw

FAR = "activation_date = \"2020-01-01 00:00:00\"\n" \
      "expiration_date = \"2100-01-01 00:00:00\"\n"
PAST = "activation_date = \"2020-01-01 00:00:00\"\n" \
       "expiration_date = \"2021-01-01 00:00:00\"\n"
FUTURE = "activation_date = \"2090-01-01 00:00:00\"\n" \
         "expiration_date = \"2100-01-01 00:00:00\"\n"


class Keys:
    """A CA in .ca; folders .server and .client as the programs want them.

    Of a client with the name alice: CN=alice,O=guests."""

    def __init__(self, t, name="tls"):
        fixture.requires_cmd("certtool", "psktool")
        self.t = t
        self.dir = t.path(name)
        self.ca = self.path("ca")
        os.makedirs(self.ca)
        self._key(f"{self.ca}/ca-key.pem")
        self.certtool(f"cn = {name}\nca\ncert_signing_key\n" + FAR,
                      "--generate-self-signed",
                      "--load-privkey", f"{self.ca}/ca-key.pem",
                      "--outfile", f"{self.ca}/ca-cert.pem")
        self.server = self.issue("server")
        self.client = self.issue("client", "alice")

    def path(self, name):
        return os.path.join(self.dir, name)

    def certtool(self, template, *args):
        with open(self.path("template"), "w") as f:
            f.write(template)
        r = subprocess.run(["certtool", "--template", self.path("template"),
                            *args], stderr=subprocess.PIPE, text=True,
                           stdin=subprocess.DEVNULL)
        assert r.returncode == 0, r.stderr

    def _key(self, path):
        self.certtool("", "--generate-privkey", "--key-type=ecdsa",
                      "--outfile", path)

    def issue(self, kind, name=None, dates=FAR, more="", folder=None):
        """A folder with the certificate of a server or client: kind."""
        out = self.path(folder or (kind if name in (None, "alice") else name))
        os.makedirs(out, exist_ok=True)
        self._key(f"{out}/{kind}-key.pem")
        if kind == "server":
            more += "dns_name = localhost\nip_address = 127.0.0.1\n" \
                    "tls_www_server\n"
        else:
            more += "organization = guests\ntls_www_client\n"
        self.certtool(f"cn = {name or 'localhost'}\nsigning_key\n{dates}{more}",
                      "--generate-certificate",
                      "--load-ca-certificate", f"{self.ca}/ca-cert.pem",
                      "--load-ca-privkey", f"{self.ca}/ca-key.pem",
                      "--load-privkey", f"{out}/{kind}-key.pem",
                      "--outfile", f"{out}/{kind}-cert.pem")
        with open(f"{self.ca}/ca-cert.pem") as ca, \
                open(f"{out}/ca-cert.pem", "w") as copy:
            copy.write(ca.read())
        return out

    def psk(self, *users):
        """A key file."""
        path = self.path("keys.psk")
        for user in users:
            subprocess.run(["psktool", "-u", user, "-p", path], check=True,
                           stdout=subprocess.DEVNULL)
        return path

    def uri(self, server, export="", certificates=None, psk=None, user=""):
        """For libnbd; certificates: a folder, psk: a file."""
        more = f"&tls-certificates={certificates}" if certificates else ""
        if psk:
            more += f"&tls-psk-file={psk}"
        name = urllib.parse.quote(export)
        return f"nbds+unix://{user + '@' if user else ''}/{name}" \
               f"?socket={server.sock}{more}"

    def context(self, folder=None, **attributes):
        """For Python's ssl; folder: of a client with a certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(f"{self.ca}/ca-cert.pem")
        if folder:
            context.load_cert_chain(f"{folder}/client-cert.pem",
                                    f"{folder}/client-key.pem")
        for name, value in attributes.items():
            setattr(context, name, value)
        return context

    def start(self, raw, context=None):
        """TLS in a nbdraw.Raw, from STARTTLS on."""
        assert raw.kind(nbdraw.STARTTLS) == nbdraw.ACK
        raw.s = (context or self.context()).wrap_socket(
            raw.s, server_hostname="localhost", suppress_ragged_eofs=False)
