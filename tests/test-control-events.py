#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A control client that does not read its events: the others do not notice, it
stays connected, and once it reads it is told how many it has lost, at the place
where they are missing."""
import json
import socket

import fixture

t = fixture.Fixture()
server = t.start_disks(f"disk=vda:{t.disk('vda', 1 << 20)}")
q = t.qmp()


class Slow:
    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect(t.control)
        self.file = self.socket.makefile("rb")
        assert "QMP" in self.read()
        self.ask("qmp_capabilities")

    def read(self):
        return json.loads(self.file.readline())

    def send(self, command, id_=0):
        self.socket.sendall(json.dumps({"execute": command,
                                        "id": id_}).encode())

    def ask(self, command):
        self.send(command)
        reply = self.read()
        assert "return" in reply, reply


def change_checkpoints(names):
    """Makes and deletes them; the names that the events give, in order."""
    for kind in "checkpoint-create", "checkpoint-delete":
        q.command("transaction", actions=[
            {"type": kind, "data": {"name": name}} for name in names])
    q.events.clear()
    return names + names


def make_events(nr):
    """Until the server has said nr times that a client loses some."""
    sent = []
    while True:
        # Long names: the queue is counted in bytes.
        sent += change_checkpoints([f"{len(sent):04}-{i}" + "n" * 1000
                                    for i in range(60)])
        with open(server.log) as f:
            if f.read().count("lose some") >= nr:
                return sent
        assert len(sent) < 4000, "the server queues events for ever"


def read_all(slow, sent):
    """What came, with one gap or none; checks that it is all of it."""
    slow.send("query-version", "end")
    got, lost, after = [], 0, []
    while True:
        message = slow.read()
        if message.get("id") == "end":
            break
        if message["event"] == "EVENTS_LOST":
            assert lost == 0, "two gaps"
            lost = message["data"]["count"]
            assert lost > 0
            continue
        assert message["event"] == "CHECKPOINT_CHANGE", message
        (after if lost else got).append(message["data"]["name"])
    assert got == sent[:len(got)]
    assert len(got) + lost + len(after) == len(sent), \
        (len(got), lost, len(after), len(sent))
    assert after == sent[len(got) + lost:]
    return lost


slow = Slow()
sent = make_events(1)
sent += change_checkpoints(["x", "y"])          # behind the gap, and short
assert read_all(slow, sent) > 10

# From then on it gets all again.
q.command("checkpoint-create", name="y")
assert slow.read()["data"]["name"] == "y"
assert read_all(slow, []) == 0

# It falls behind a second time, and is told of that one alone.
assert read_all(slow, make_events(2)) > 0
slow.ask("query-commands")

# One that reads all the time and asks for so much that its queue never runs
# empty loses nothing, however many events there are.
busy = Slow()
sent, asked, answered, events = [], 0, 0, 0


def read_one():
    global answered, events
    message = busy.read()
    if "event" in message:
        assert message["event"] == "CHECKPOINT_CHANGE", message
        assert message["data"]["name"] == sent[events]
        events += 1
    else:
        assert message["id"] == answered, message["id"]
        answered += 1


while asked < 400 or answered < asked:
    while asked < 400 and asked - answered < 12:
        busy.send("query-qmp-schema", asked)
        asked += 1
        if asked % 40 == 0:
            sent += change_checkpoints([f"{asked}-{i}" + "m" * 1000
                                        for i in range(40)])
    read_one()
while events < len(sent):
    read_one()
assert len(sent) == 800
