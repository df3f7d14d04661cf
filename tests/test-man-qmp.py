#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""nbdfleece-qmp(7) has every command and event, no other, each with the
arguments that query-qmp-schema tells, and says something of each argument.

UPDATE=1 writes the lists of arguments into the page, where there is a line
` NAME()` or an old list."""
import json
import os
import re
import textwrap

import fixture
from schema import Schema

PAGE = f"{fixture.TOP_SRCDIR}/man/nbdfleece-qmp.pod"
t = fixture.Fixture()
t.start_disks(f"disk=vda:{t.disk('vda', 1 << 20)}")
schema = Schema(t.qmp().command("query-qmp-schema"))
with open(PAGE) as f:
    page = f.read()


def show_members(name):
    return ", ".join(m["name"] + ("?" if "default" in m else "") + ": " +
                     show(m["type"]) for m in schema.types[name]["members"])


def show(name):
    entry = schema.types[name]
    meta = entry["meta-type"]
    if meta == "builtin":
        return name
    if meta == "enum":
        return " | ".join(m["name"] for m in entry["members"])
    if meta == "array":
        return "[" + show(entry["element-type"]) + "]"
    if meta == "alternate":
        return " | ".join(show(m["type"]) for m in entry["members"])
    if "tag" in entry:
        return "{" + show_members(name) + ", data: its arguments}"
    return "{" + show_members(name) + "}"


def signature(entry):
    text = f"{entry['name']}({show_members(entry['arg-type'])})"
    return textwrap.fill(text, 77, initial_indent=" ",
                         subsequent_indent="   ", break_long_words=False,
                         break_on_hyphens=False)


entries = {**schema.commands, **schema.events}
LIST = re.compile(r"^ ([\w-]+)\(.*(?:\n .*)*", re.M)
if os.environ.get("UPDATE"):
    page = LIST.sub(lambda m: signature(entries[m[1]]), page)
    with open(PAGE, "w") as f:
        f.write(page)

bad = []
shown = {}
for m in LIST.finditer(page):
    if m[1] in shown:
        bad.append(f"{m[1]} is there twice")
    shown[m[1]] = m[0]
for name in sorted(set(entries) | set(shown)):
    if name not in entries:
        bad.append(f"{name}: there is no such command or event")
    elif shown.get(name) != signature(entries[name]):
        bad.append(f"{name}: missing or other than:\n"
                   f"{signature(entries[name])}")

# What an item says stands between it and the next.
text = {}
for item in re.split(r"^=item ", page, flags=re.M)[1:]:
    head, _, body = item.partition("\n")
    body = re.split(r"^=(?:back|head)", body, maxsplit=1, flags=re.M)[0]
    words = set(re.findall(r"[\w-]+", " ".join(
        re.findall(r"C<+ ?([^<>]*)>", LIST.sub("", body)))))
    for name in re.findall(r"B<([\w-]+)>", head):
        text[name] = words
for name, entry in sorted(entries.items()):
    if name not in text:
        bad.append(f"{name} is no item")
        continue
    for argument in schema.members(entry["arg-type"]):
        if argument not in text[name]:
            bad.append(f"{name}: nothing is said of C<{argument}>")

# Requests and replies that are shown are right.
shown_requests = 0
for m in re.finditer(r"^ \{(?:.*\n)(?: .*\n)*", page, re.M):
    command = None
    lines = re.split(r"^ (?=\{)", m[0], flags=re.M)[1:]
    for line in lines:
        if "COMMAND" in line:
            continue            # the synopsis
        try:
            message = json.loads(line)
        except json.JSONDecodeError as e:
            bad.append(f"{line!r}: {e}")
            continue
        if "execute" in message:
            shown_requests += 1
            command = schema.commands[message["execute"]]
            why = schema.why_not(message.get("arguments", {}),
                                 command["arg-type"])
        else:
            why = schema.why_not(message["return"], command["ret-type"])
        if why:
            bad.append(f"{line!r}: {why}")
assert shown_requests >= 4, shown_requests

for line in bad:
    print(line)
assert not bad, f"{len(bad)} faults of nbdfleece-qmp.pod"
