# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a plugin can ask of the server by metacontext.h: disconnect a client,
count what it did, listen elsewhere, stop."""
import os
import socket

import fixture
from nbdraw import *

t = fixture.Fixture()
server = t.start_nbdfleece(TEST_PLUGIN, "size=1M")
control = Raw(server.sock)
control.go("control")


def host(command):
    text = command.encode().ljust(512, b"\0")
    assert control.error(WRITE, 0, 512, payload=text) == 0
    error, data = control.call(READ, 0, 512)
    assert error == 0
    return data.rstrip(b"\0").decode()


def connect(sock=None, *contexts):
    """The first one is handle 0 of the plugin, and so on."""
    r = Raw(sock or server.sock)
    r.negotiate_structured()
    if contexts:
        assert r.kind(SET_META, meta_data("a", *contexts)) == ACK
    r.go("a")
    return r


# Counters.
a, b = connect(), connect(None, "test:alpha", "base:allocation")
assert host("counters 0") == "0 0 0 0 0"
assert a.error(WRITE, 0, 1000, payload=bytes(1000)) == 0
assert a.error(READ, 0, 10) == 0
assert a.error(READ, 1 << 20, 10) == EINVAL
assert a.error(FLUSH) == 0
assert a.error(READ, 0, 600000) == 0
fixture.wait_until("the last reply to be counted",
                   lambda: host("counters 0") == "0 600010 1000 5 0")
assert b.call(BLOCK_STATUS, 0, 40960)[0] == 0
fixture.wait_until("extents to be counted",
                   lambda: host("counters 1") == "0 0 0 1 12")
assert host("counters 40") == "-1 0 0 0 0", "nobody"

# Disconnect: that one only.
assert host("disconnect 0") == "0"
assert a.at_end()
assert b.alive()
fixture.wait_until("the handle to be closed",
                   lambda: host("disconnect 0") == "-1")
# In the middle of negotiation.
c = Raw(server.sock)
c.negotiate_structured()
assert c.kind(SET_META, meta_data("a", "test:beta")) == ACK
assert host("disconnect 2") == "0"
assert c.at_end()

# Another listener, and away with it.
path = t.path("more socket")
uri = "nbd+unix:///?socket=" + path.replace(" ", "%20")
id1 = int(host(f"listen {uri}"))
assert id1 > 0
assert host(f"listen {uri}") == "-1", "in use"
d = connect(path)
assert d.alive()
port = None
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
id2 = int(host(f"listen nbd://127.0.0.1:{port}"))
assert id2 not in (-1, id1)
assert t.run("nbdinfo", "--size", f"nbd://127.0.0.1:{port}/a") == "1048576\n"
for bad in ("nosuch://x", "nbd+unix:///", "nbd+unix:///?socket=relative",
            "nbd+unix:///?socket=/no/such/folder/s", "nbd://no.such.host.:1",
            "%", "nbd+unix:///?socket=/" + "x" * 200):
    assert host(f"listen {bad}") == "-1", bad
assert host(f"unlisten {id1}") == "0"
assert host(f"unlisten {id1}") == "-1"
assert host("unlisten 12345") == "-1"
assert not os.path.exists(path)
assert host(f"unlisten {id2}") == "0"
with socket.socket() as s:
    assert s.connect_ex(("127.0.0.1", port)) != 0
assert d.alive(), "existing connections go on"
assert b.alive()
# The same place can be used again, and is cleaned up at the end.
assert int(host(f"listen {uri}")) > 0
assert os.path.exists(path)

# nbdkit_shutdown.
assert control.error(WRITE, 0, 8, payload=b"shutdown") == 0
assert server.process.wait(60) == 0
assert not os.path.exists(path) and not os.path.exists(server.sock)
