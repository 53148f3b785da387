"""The PostgreSQL server of this peer, asked over its Unix socket, by processes other than the one that runs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, LiteralString

import psycopg

from manatee.config import Settings
from manatee.lsn import Lsn
from manatee.storage.errors import NotServing

USER = "postgres"
"""The superuser that `pgUrl` names."""


class LocalServer:
    """One connection; every question has `postgres.query_timeout` to be answered."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout

    async def row(self, query: LiteralString, *values: object) -> tuple[Any, ...]:
        """The first row of the answer. Raises NotServing."""
        try:
            async with asyncio.timeout(self._timeout):
                cursor = await self._connection.execute(query, values or None)
                answer = await cursor.fetchone()
        except (psycopg.Error, TimeoutError) as error:
            raise NotServing(f"PostgreSQL here does not answer: {_reason(error)}") from error
        assert answer is not None
        return tuple(answer)

    async def flushed(self) -> Lsn:
        """Up to where the log is on disk here: written on a primary, received or replayed on a standby."""
        (position,) = await self.row(
            """SELECT CASE WHEN pg_is_in_recovery()
                           THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
                           ELSE pg_current_wal_flush_lsn() END::text"""
        )
        if position is None:
            raise NotServing("PostgreSQL here has not read any of its log yet")
        return Lsn.parse(position)


@asynccontextmanager
async def connect(settings: Settings, purpose: str) -> AsyncIterator[LocalServer]:
    """A connection to the local server. Raises NotServing when it is down, starting or cannot be logged in to."""
    timeout = settings.postgres.query_timeout
    try:
        async with asyncio.timeout(timeout):
            connection = await psycopg.AsyncConnection.connect(
                host=str(settings.postgres.socket_dir),
                port=settings.peer.postgres_port,
                user=USER,
                dbname="postgres",
                application_name=f"manatee {purpose}",
                autocommit=True,
            )
    except (psycopg.Error, TimeoutError) as error:
        raise NotServing(f"PostgreSQL does not accept connections here: {_reason(error)}") from error
    try:
        yield LocalServer(connection, timeout)
    finally:
        await connection.close()


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or "no answer in time"
