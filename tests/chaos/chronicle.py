"""What the shard does while the faults go on is written down: every state that ZooKeeper has, every decision.

Decisions are read from the sitters' logs as they come, and stamped by our clock: theirs may be off by a day.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.shard import LocalPeer
from manatee.cluster import ClusterState
from manatee.coordination import CoordinationError
from tests.chaos.history import Event
from tests.chaos.lab import Lab

LOOK = 0.2
"""Seconds between two looks."""

_ANEW = ("sitter started", "ZooKeeper session has ended")
"""From here on nobody remembers whom this peer has evicted, or that it was."""
_NOTED = (*_ANEW, "sitter ended", "fencing", "no longer fenced", "seen dead", "evicted a dead peer")
"""What is worth a line besides decisions."""

PAUSE = 300.0
"""Seconds in which one peer evicts another that lives once at most."""


@dataclass
class _Tail:
    """A log file, from the end on."""

    path: Path
    offset: int = 0
    rest: bytes = b""

    def lines(self) -> list[str]:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            read = file.read()
        self.offset += len(read)
        *lines, self.rest = (self.rest + read).split(b"\n")
        return [line.decode(errors="replace") for line in lines]


class Chronicle:
    """`run` until it is cancelled."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._tails: dict[str, _Tail] = {}
        self._said: dict[str, str] = {}

    async def run(self) -> None:
        while True:
            await self._look()
            for peer in self._lab.peers:
                self._read(peer)
            await asyncio.sleep(LOOK)

    async def _look(self) -> None:
        try:
            seen = await self._lab.look()
        except CoordinationError:
            return
        before, state = self._lab.last_state, seen.state
        self._lab.last_state = state
        if state is not None and (before is None or shape(self._lab, before) != shape(self._lab, state)):
            roles = roles_of(self._lab, state)
            self._lab.journal.note("generation", "shard", shape(self._lab, state), number=state.generation, roles=roles)

    def _read(self, peer: LocalPeer) -> None:
        node = self._lab.node(peer)
        tail = self._tails.setdefault(node, _Tail(peer.log("sitter")))
        for line in tail.lines() if tail.path.exists() else ():
            if text := taken_for_dead(line):
                self._lab.journal.note("evicted", node, text)
            text = decision(line)
            if text and self._said.get(node) != text:
                self._said[node] = text
                self._lab.journal.note("decision", node, text)


def taken_for_dead(line: str) -> str | None:
    """The sentence of a line in a sitter's log, if it says that its peer was evicted although it lives."""
    event = str(_record(line).get("event", ""))
    return event if event.startswith("removed from the active list by another peer") else None


def flapping(events: Iterable[Event], peers: int) -> list[Event]:
    """The evictions of living peers that were too many: more of one within `PAUSE` than there are others to do it."""
    found, lately, ours = [], dict[str, list[float]](), 0
    for event in events:
        if event.kind == "decision" and event.text.startswith(_ANEW):
            lately.clear()
        elif (event.kind, event.subject) == ("fault", "evict"):
            ours += 1
        elif event.kind == "evicted" and ours:
            ours -= 1
        elif event.kind == "evicted":
            times = lately[event.subject] = [at for at in lately.get(event.subject, []) if event.at - at < PAUSE]
            times.append(event.at)
            if len(times) >= peers:
                found.append(event)
    return found


def decision(line: str) -> str | None:
    """The sentence of a line in a sitter's log, if it is one of those that say what was decided, or fenced."""
    record = _record(line)
    event = str(record.get("event", ""))
    if "role" in record and "waiting_for" in record:
        waits = f" (waits for {record['waiting_for']})" if record["waiting_for"] else ""
        return f"{record['role']} in generation {record.get('generation')}: {event}{waits}"
    return event if event.startswith(_NOTED) else None


def _record(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def roles_of(lab: Lab, state: ClusterState) -> dict[str, str]:
    """The role of each node that the state names."""
    named = [("primary", state.primary), ("sync", state.sync)]
    named += [("async", peer) for peer in state.asyncs] + [("deposed", peer) for peer in state.deposed]
    nodes = {peer.id: lab.node(peer) for peer in lab.peers}
    return {nodes[peer.id]: role for role, peer in named if peer is not None and peer.id in nodes}


def shape(lab: Lab, state: ClusterState) -> str:
    """A state in one line."""
    roles = ", ".join(f"{node} {role}" for node, role in roles_of(lab, state).items())
    asked = f", asked to promote {state.promote.role}" if state.promote else ""
    return f"generation {state.generation} from {state.init_wal}: {roles}{', frozen' if state.frozen else ''}{asked}"
