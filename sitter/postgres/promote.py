"""A standby becomes a primary: by `pg_promote`, never by a restart without the standby signal, so that the timeline
advances.

`synchronous_standby_names` must have been set before, and in force: the server accepts writes the moment it is through.
"""

from __future__ import annotations

import asyncio
import time

import psycopg

from manatee.config import Settings
from manatee.log import Logger
from sitter.postgres import queries
from sitter.postgres.errors import Hung, PromoteFailed, Unreachable

LOOK = 0.002
"""Seconds between two looks at whether recovery has ended."""


async def promote(settings: Settings, log: Logger, *, timeout: float | None = None) -> None:
    """Promote the local standby; returns when it is out of recovery. Nothing to do if it is a primary already.

    Raises PromoteFailed if that takes longer than `timeout` seconds (`postgres.start_timeout`) or the server refuses;
    it may still become a primary after that. Given up and called again, it goes on where it was.
    """
    limit = timeout if timeout is not None else settings.postgres.start_timeout
    begun = time.monotonic()
    try:
        async with queries.connect(settings, timeout=limit) as connection:
            if not await _in_recovery(connection):
                return
            await connection.execute("select pg_promote(wait => false)")
            while await _in_recovery(connection):
                await asyncio.sleep(LOOK)
    except Hung:
        raise PromoteFailed(f"still in recovery {limit:g} s after pg_promote") from None
    except (psycopg.Error, Unreachable) as error:
        raise PromoteFailed(f"pg_promote: {error}") from error
    log.info("promoted", seconds=round(time.monotonic() - begun, 3))


async def _in_recovery(connection: queries.Connection) -> bool:
    row = await (await connection.execute("select pg_is_in_recovery()")).fetchone()
    return row is None or bool(row[0])
