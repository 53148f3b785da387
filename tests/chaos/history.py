"""What clients did and saw, one JSON line for each operation, and what happened around them, one for each event.

Times are seconds of the machine's monotonic clock, which all processes on it share, whatever is done to the clocks of
the peers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import click

Sort = Literal["insert", "register", "append", "read"]
KINDS: tuple[Sort, ...] = get_args(Sort)
Outcome = Literal["ok", "no", "unknown"]
"""Acknowledged; certainly not carried out; nobody knows."""


@dataclass(frozen=True)
class Operation:
    """One transaction of one client.

    What `key`, `value` and `seen` are depends on `kind`: `insert` (value: the row), `register` (value: the token
    written to register `key`; seen: version and token found there), `append` (value: the element; seen: the list with
    it), `read` (seen: the list).
    """

    client: str
    kind: Sort
    began: float
    sent: float | None
    """When the commit was sent; None if it never was."""
    ended: float
    outcome: Outcome
    value: int = 0
    key: int = 0
    seen: Any = None
    peer: str | None = None
    """The address of the server that did it."""
    timeline: int | None = None
    error: str | None = None

    @property
    def acknowledged(self) -> bool:
        return self.outcome == "ok"


@dataclass(frozen=True)
class Event:
    """Something that happened to the shard."""

    at: float
    kind: str
    """`round`, `fault`, `heal`, `spared`, `generation`, `decision`, `evicted` (although it lives), `operator`,
    `outage`, `again` (writes are taken again), `pause` (the clients were stopped), `finding`, `trouble` (of the test
    itself)."""
    subject: str
    text: str
    detail: dict[str, Any] | None = None


class Journal:
    """Events as they come, in a file and for those who ask."""

    def __init__(self, path: Path, *, echo: bool = False) -> None:
        self._file = path.open("a", buffering=1)
        self._echo = echo
        self._began = time.monotonic()
        self.events: list[Event] = []

    def note(self, kind: str, subject: str, text: str, *, at: float | None = None, **detail: Any) -> Event:
        event = Event(time.monotonic() if at is None else at, kind, subject, text, detail or None)
        self.events.append(event)
        self._file.write(json.dumps(asdict(event)) + "\n")
        if self._echo:
            click.echo(self.line(event))
        return event

    def line(self, event: Event) -> str:
        """An event for people, in one line."""
        return f"{event.at - self._began:8.2f}  {event.kind:<10}  {event.subject:<18}  {event.text}"

    def close(self) -> None:
        self._file.close()


def operations(paths: Iterable[Path]) -> list[Operation]:
    """All of these files, in the order in which the operations began."""
    found = [Operation(**record) for path in paths for record in _records(path)]
    return sorted(found, key=lambda operation: operation.began)


def _records(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        yield json.loads(line)
