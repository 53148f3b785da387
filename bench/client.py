"""A client that loses as little time as a client can: it holds a connection to every server of a shard, writes through
the one that takes writes, and while none answers it asks every one of them every 10 ms.

What it measures is the shard's time, not its own: it needs no ZooKeeper, and a server costs it a connection once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import psycopg

KNOCK = 0.01
"""Seconds between two attempts at a server that does not take writes."""

LATE = 0.03
"""Seconds without an acknowledgement after which the other servers are asked, too."""

CONNECT = 2.0
"""Seconds for one attempt to connect; one that is not answered at all costs no more."""

PATIENCE = 60.0
"""Seconds for somebody to take writes again."""

_CREATE = "CREATE TABLE IF NOT EXISTS numbered_rows (number bigint PRIMARY KEY)"
_TAKES_WRITES = "SELECT NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off'"

Connection = psycopg.AsyncConnection[Any]


class Client:
    """Writes numbered rows, one transaction each, until it is cancelled."""

    def __init__(self, addresses: Sequence[str], *, port: int = 5432) -> None:
        self._addresses = tuple(addresses)
        self._port = port
        self._numbers = iter(range(1, 1 << 62))
        self.acknowledged: list[tuple[int, float]] = []
        """Number and moment (monotonic clock) of each acknowledged row, in order."""

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for address in self._addresses:
                group.create_task(self._keep_at(address))

    async def missing(self) -> list[int]:
        """The rows acknowledged so far that the server which takes writes does not hold. Call it while `run` does.

        Raises TimeoutError if no server takes writes.
        """
        acknowledged = [number for number, _ in self.acknowledged]
        async with asyncio.timeout(PATIENCE):
            while True:
                for address in self._addresses:
                    with contextlib.suppress(psycopg.Error, OSError, TimeoutError):
                        if (there := await self._rows(address)) is not None:
                            return [number for number in acknowledged if number not in there]
                await asyncio.sleep(KNOCK)

    async def _rows(self, address: str) -> set[int] | None:
        """Of the server that takes writes; None if this one does not."""
        connection = await self._connect(address)
        try:
            if not await _takes_writes(connection):
                return None
            rows = await (await connection.execute("SELECT number FROM numbered_rows")).fetchall()
            return {row[0] for row in rows}
        finally:
            connection.pgconn.finish()

    def outage(self, moment: float) -> tuple[float, float, float]:
        """The longest time without acknowledgements that ended after `moment`: seconds, its beginning and its end."""
        times = [at for _, at in self.acknowledged]
        return max((later - earlier, earlier, later) for earlier, later in pairwise(times) if later > moment)

    @property
    def _late(self) -> bool:
        return not self.acknowledged or time.monotonic() - self.acknowledged[-1][1] > LATE

    async def _keep_at(self, address: str) -> None:
        while True:
            with contextlib.suppress(psycopg.Error, OSError, TimeoutError):
                connection = await self._connect(address)
                try:
                    await self._use(connection)
                finally:
                    connection.pgconn.finish()  # no cancel request is ever sent: it would be answered as success
            await asyncio.sleep(KNOCK)

    async def _use(self, connection: Connection) -> None:
        warnings: list[object] = []
        connection.add_notice_handler(warnings.append)
        while True:
            if self._late and await _takes_writes(connection):
                await connection.execute(_CREATE)
                while True:
                    number = next(self._numbers)
                    warnings.clear()
                    await connection.execute("INSERT INTO numbered_rows VALUES (%s)", (number,))
                    if warnings:
                        break
                    self.acknowledged.append((number, time.monotonic()))
                    await asyncio.sleep(0.002)
            await asyncio.sleep(KNOCK)

    async def _connect(self, address: str) -> Connection:
        async with asyncio.timeout(CONNECT):
            return await psycopg.AsyncConnection.connect(
                host=address, port=self._port, user="postgres", dbname="postgres", autocommit=True
            )


async def _takes_writes(connection: Connection) -> bool:
    row = await (await connection.execute(_TAKES_WRITES)).fetchone()
    return bool(row and row[0])
