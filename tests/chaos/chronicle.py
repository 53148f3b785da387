"""What the shard does while the faults go on is written down: every state that ZooKeeper has, every decision.

Decisions are read from the sitters' logs as they come, and stamped by our clock: theirs may be off by a day.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.shard import LocalPeer
from manatee.cluster import ClusterState
from manatee.coordination import CoordinationError
from tests.chaos.lab import Lab

LOOK = 0.2
"""Seconds between two looks."""


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
            text = decision(line)
            if text and self._said.get(node) != text:
                self._said[node] = text
                self._lab.journal.note("decision", node, text)


def decision(line: str) -> str | None:
    """The sentence of a line in a sitter's log, if it is one of those that say what was decided, or fenced."""
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    event = str(record.get("event", ""))
    if "role" in record and "waiting_for" in record:
        waits = f" (waits for {record['waiting_for']})" if record["waiting_for"] else ""
        return f"{record['role']} in generation {record.get('generation')}: {event}{waits}"
    return event if event.startswith(("fencing", "no longer fenced", "sitter started", "sitter ended")) else None


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
