# SPDX-License-Identifier: LGPL-2.1-or-later
"""linearizability.py - is there an order of concurrent calls that explains
what each was answered?

After Wing and Gong: search for a first call, one that was sent before any
other ended, that may be answered like this in the state so far; then the next.
"""
import collections

# From one tick of a clock to another.  end, reply: None if it had no answer; it
# may then have been done, or not.
Call = collections.namedtuple("Call", "start end op reply")
NEVER = float("inf")


def check(calls, first, last, step):
    """step (state, op): (reply, next state); last: what was seen in the end."""
    calls = tuple(calls)
    tried = set()
    stack = [(frozenset(range(len(calls))), first)]
    while stack:
        left, state = stack.pop()
        if (left, state) in tried:
            continue
        tried.add((left, state))
        if state == last and all(calls[i].end is None for i in left):
            return True
        horizon = min((calls[i].end for i in left
                       if calls[i].end is not None), default=NEVER)
        for i in left:
            call = calls[i]
            if call.start > horizon:
                continue
            reply, after = step(state, call.op)
            if call.reply is None or call.reply == reply:
                stack.append((left - {i}, after))
    return False
