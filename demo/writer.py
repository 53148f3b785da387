"""A client as an application would be: it writes numbered rows, one transaction each, and finds the primary by itself.

It remembers which rows were acknowledged and when: those must be there whatever happens to the primary. A row whose
acknowledgement did not arrive may be there or not; its number is not used again.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from manatee.client import NoPrimary, Topology, connect_primary, within

if TYPE_CHECKING:
    from psycopg.errors import Diagnostic

_CREATE = "CREATE TABLE IF NOT EXISTS numbered_rows (number bigint PRIMARY KEY, written timestamptz DEFAULT now())"
_INSERT = "INSERT INTO numbered_rows (number) VALUES (%s)"
PATIENCE = 5.0
"""Seconds for one write; a server that hangs is left for the next."""


@dataclass(frozen=True)
class Outage:
    """A time in which no write was acknowledged."""

    last: float
    """When the last row before it was acknowledged, by this machine's monotonic clock."""
    first: float | None
    """When the first one after it was; None while it lasts."""

    @property
    def seconds(self) -> float:
        return (self.first if self.first is not None else time.monotonic()) - self.last


class Writer:
    """Writes rows until it is cancelled. `run` is its life; the rest may be looked at all the time."""

    def __init__(self, topology: Topology, *, pause: float = 0.002, patience: float = PATIENCE) -> None:
        self._topology = topology
        self._patience = patience
        self._pause = pause
        self.acknowledged: list[tuple[int, float]] = []
        """Number and moment (monotonic clock) of each acknowledged row, in order."""
        self.uncertain: set[int] = set()
        """Rows that were sent and not acknowledged."""

    async def run(self) -> None:
        import psycopg

        number = 0
        while True:
            try:
                connection = await connect_primary(self._topology, deadline=self._patience)
            except NoPrimary:
                continue
            warnings: list[str] = []
            connection.add_notice_handler(_collector(warnings))
            try:
                await within(connection, self._patience, connection.execute(_CREATE))
                while True:
                    number += 1
                    warnings.clear()
                    self.uncertain.add(number)
                    await within(connection, self._patience, connection.execute(_INSERT, (number,)))
                    if not warnings:
                        self.uncertain.remove(number)
                        self.acknowledged.append((number, time.monotonic()))
                    await asyncio.sleep(self._pause)
            except (TimeoutError, psycopg.Error, OSError):
                continue
            finally:
                await connection.close()

    def outage_since(self, moment: float) -> Outage | None:
        """The longest time without acknowledgements that ended after `moment`, or lasts; None before any write.

        Not simply the one that `moment` lies in: what is killed then may still answer a write or two.
        """
        times = [at for _, at in self.acknowledged]
        if not times:
            return None
        ended = [Outage(last, first) for last, first in pairwise(times) if first > moment]
        return max((*ended, Outage(times[-1], None)), key=lambda outage: outage.seconds)

    async def missing(self) -> list[int]:
        """The rows acknowledged so far that are not in the table on the primary now."""
        acknowledged = [number for number, _ in self.acknowledged]
        connection = await connect_primary(self._topology, deadline=6 * self._patience)
        try:
            cursor = await within(
                connection, 6 * self._patience, connection.execute("SELECT number FROM numbered_rows")
            )
            there = {row[0] for row in await cursor.fetchall()}
        finally:
            await connection.close()
        return [number for number in acknowledged if number not in there]


def _collector(warnings: list[str]) -> Any:
    """PostgreSQL answers a commit whose wait for the sync was cut short with success and a warning: no acknowledgement
    that we count on."""

    def collect(diagnostic: Diagnostic) -> None:
        if diagnostic.severity_nonlocalized == "WARNING":
            warnings.append(diagnostic.message_primary or "")

    return collect
