"""The PostgreSQL server of this peer, asked over its Unix socket, by processes other than the one that runs it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, LiteralString

import psycopg
import structlog

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

    async def keep_wal(self) -> None:
        """From now on, and as long as this connection lasts, it keeps what follows its latest checkpoint: a snapshot
        taken meanwhile can be followed from there on. Where no slot is to be had `wal_keep_size` must do.
        """
        name = f"manatee_backup_{uuid.uuid4().hex[:12]}"
        try:
            await self.row("SELECT pg_create_physical_replication_slot(%s, true, true)::text", name)
        except NotServing as error:
            problem = "no replication slot for the backup: wal_keep_size must do"
            structlog.get_logger().warning(problem, error=str(error))


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


@asynccontextmanager
async def wal_kept(settings: Settings) -> AsyncIterator[None]:
    """`LocalServer.keep_wal` for the block, as far as the local server can be asked at all."""
    async with AsyncExitStack() as stack:
        try:
            server = await stack.enter_async_context(connect(settings, "backup"))
        except NotServing as error:
            structlog.get_logger().warning("no WAL is kept for the backup", error=str(error))
        else:
            await server.keep_wal()
        yield


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or "no answer in time"
