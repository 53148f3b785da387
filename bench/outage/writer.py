"""The client that all contestants are measured with. It knows the addresses and nothing else.

It writes one row after the other. When an answer is late it looks at every address every 10 ms, each time over a fresh
connection, for a server that takes writes, and moves there. It never sends a cancel: a commit whose wait for the
standby is cancelled would be answered as success.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import psycopg

LATE = 0.02
"""Seconds after which an answer counts as late, and the search begins."""
EVERY = 0.01
PATIENCE = 2.0
"""Seconds for one attempt to connect and look; attempts at one address may overlap."""

_WRITABLE = "SELECT NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off'"


class ProbingWriter:
    """Writes until it is cancelled."""

    def __init__(self, addresses: Sequence[str], port: int, *, user: str = "postgres") -> None:
        self._addresses = tuple(addresses)
        self._conninfo = f"port={port} user={user} dbname=postgres"
        self.acknowledged: list[tuple[int, float]] = []
        """Number and moment (monotonic clock) of each acknowledged row."""

    async def run(self) -> None:
        number = 0
        connection = await self._find(avoid=None)
        await connection.execute("CREATE TABLE IF NOT EXISTS numbered_rows (number bigint PRIMARY KEY)")
        while True:
            number += 1
            connection = await self._write(connection, number)
            await asyncio.sleep(0.002)

    async def _write(self, connection: psycopg.AsyncConnection[Any], number: int) -> psycopg.AsyncConnection[Any]:
        """One row, acknowledged or given up; the connection for the next."""
        host = connection.info.host
        warnings: list[object] = []
        connection.add_notice_handler(lambda diagnostic: warnings.append(diagnostic.message_primary))
        writing = asyncio.create_task(self._insert(connection, number))
        done, _ = await asyncio.wait([writing], timeout=LATE)
        if not done:
            finding = asyncio.create_task(self._find(avoid=host))
            await asyncio.wait([writing, finding], return_when=asyncio.FIRST_COMPLETED)
            if not writing.done():
                _cut(connection)
                await asyncio.gather(writing, return_exceptions=True)
                return finding.result()
            finding.cancel()
            found = (await asyncio.gather(finding, return_exceptions=True))[0]
            if isinstance(found, psycopg.AsyncConnection):
                _cut(found)
        if writing.exception() is None and not warnings:
            self.acknowledged.append((number, time.monotonic()))
            return connection
        _cut(connection)
        return await self._find(avoid=None)

    async def _insert(self, connection: psycopg.AsyncConnection[Any], number: int) -> None:
        await connection.execute("INSERT INTO numbered_rows (number) VALUES (%s)", (number,))

    async def _find(self, avoid: str | None) -> psycopg.AsyncConnection[Any]:
        """The first connection to a server that takes writes; not to `avoid`, whose answer is being waited for."""
        attempts: set[asyncio.Task[psycopg.AsyncConnection[Any] | None]] = set()
        try:
            while True:
                for address in self._addresses:
                    if address != avoid:
                        attempts.add(asyncio.create_task(self._look(address)))
                await asyncio.sleep(EVERY)
                for attempt in [each for each in attempts if each.done()]:
                    attempts.remove(attempt)
                    if (found := attempt.result()) is not None:
                        return found
        finally:
            for attempt in attempts:
                attempt.cancel()
            for left in await asyncio.gather(*attempts, return_exceptions=True):
                if isinstance(left, psycopg.AsyncConnection):
                    _cut(left)

    async def _look(self, address: str) -> psycopg.AsyncConnection[Any] | None:
        with suppress(psycopg.Error, OSError, TimeoutError):
            async with asyncio.timeout(PATIENCE):
                connection = await psycopg.AsyncConnection.connect(self._conninfo, host=address, autocommit=True)
                try:
                    row = await (await connection.execute(_WRITABLE)).fetchone()
                except BaseException:
                    _cut(connection)
                    raise
                if row is not None and row[0]:
                    return connection
                _cut(connection)
        return None

    def outage_since(self, moment: float) -> float:
        """Seconds: the longest time without an acknowledgement that ended after `moment`, or lasts."""
        times = [at for _, at in self.acknowledged]
        ended = [later - earlier for earlier, later in pairwise(times) if later > moment]
        return max((*ended, time.monotonic() - times[-1]))

    async def missing(self) -> list[int]:
        """Acknowledged rows that the primary does not hold."""
        connection = await self._find(avoid=None)
        try:
            rows = await (await connection.execute("SELECT number FROM numbered_rows")).fetchall()
        finally:
            _cut(connection)
        there = {row[0] for row in rows}
        return [number for number, _ in self.acknowledged if number not in there]


def _cut(connection: psycopg.AsyncConnection[Any]) -> None:
    """Close the socket, and send nothing on it."""
    connection.pgconn.finish()
