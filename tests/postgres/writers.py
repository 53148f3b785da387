"""Clients that write without a pause, and know of every commit whether and where it was acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import re
from types import TracebackType
from typing import Any, Self

import psycopg

from manatee.lsn import Lsn
from sitter.postgres import wal_end
from tests.postgres.local import Node, until

_COMMIT = re.compile(r"len \(rec/tot\):\s*\d+/\s*(\d+), tx:\s*(\d+), lsn: (\S+), prev \S+, desc: COMMIT")


class Writers:
    """Some connections to one node, each inserting one row per transaction for as long as they are answered."""

    def __init__(self, node: Node, count: int = 3) -> None:
        self._node = node
        self._count = count
        self._connections: list[psycopg.AsyncConnection[Any]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.acknowledged: list[int] = []
        """Transaction numbers, in the order of their acknowledgement."""
        self.cancelled = 0
        """Waits that the server says it gave up, which it calls a success."""
        self.begin = Lsn(0)

    async def __aenter__(self) -> Self:
        await self._node.sql("create table if not exists written (xid bigint primary key)")
        self.begin = Lsn.parse(await self._node.value("select pg_current_wal_flush_lsn()"))
        for _ in range(self._count):
            connection = await self._node.connect()
            connection.add_notice_handler(self._noticed)
            self._connections.append(connection)
            self._tasks.append(asyncio.create_task(self._write(connection)))
        await self.more()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Never by cancelling a query: that would end its wait, and the server would call it a success.
        for connection in self._connections:
            connection.pgconn.finish()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        assert not self.cancelled

    async def more(self, count: int = 20) -> None:
        """Wait until some more commits have been acknowledged."""
        mark = len(self.acknowledged) + count

        async def written() -> bool:
            return len(self.acknowledged) >= mark

        await until(written)

    def commits(self) -> dict[int, Lsn]:
        """Where the commit record of each transaction ends, by the WAL of the node itself."""
        end = str(wal_end._Log(self._node.data_dir, 16 << 20).limit(1, self.begin))
        output = self._node.waldump("-s", str(self.begin), "-e", end, "-r", "Transaction")
        return {
            int(xid): wal_end.record_end(Lsn.parse(lsn), int(length), 16 << 20)
            for length, xid, lsn in _COMMIT.findall(output)
        }

    def highest(self) -> Lsn:
        """The end of the highest acknowledged commit."""
        commits = self.commits()
        return max(commits[xid] for xid in self.acknowledged)

    def _noticed(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        self.cancelled += "wait" in (diagnostic.message_primary or "")

    async def _write(self, connection: psycopg.AsyncConnection[Any]) -> None:
        with contextlib.suppress(psycopg.Error):
            while True:
                cursor = await connection.execute(
                    "insert into written select pg_current_xact_id()::text::bigint returning xid"
                )
                row = await cursor.fetchone()
                assert row is not None
                self.acknowledged.append(row[0])
