"""When a primary may let clients write: once its sync confirms what was there when it was asked.

Until then `default_transaction_read_only` is on, so that clients fail at once instead of hanging in their commit.
"""

from __future__ import annotations

import asyncio
import time

import psycopg

from manatee.config import Settings
from manatee.lsn import Lsn
from sitter.postgres import queries
from sitter.postgres.errors import Unreachable

FAST, SLOW, PATIENCE = 0.005, 0.25, 5.0
"""Seconds between looks in the first `PATIENCE` seconds, and after."""

ANEW = 2.0
"""Seconds for which one connection is asked: an old one still answers when the postmaster hangs."""


async def caught_up(settings: Settings, name: str) -> None:
    """Returns when the standby of this name is the sync and has flushed all that the primary has now.

    May wait for ever: whoever calls it gives it up when something else is wanted. Raises PostgresError if PostgreSQL
    stops answering.
    """
    begun = time.monotonic()
    mark: Lsn | None = None
    while True:
        try:
            async with queries.connect(settings, timeout=settings.postgres.query_timeout + ANEW) as connection:
                anew = time.monotonic() + ANEW
                while time.monotonic() < anew:
                    facts = await queries.look(connection)
                    mark = mark or facts.flush
                    row = facts.downstream(name)
                    if row and (row.state, row.sync_state) == ("streaming", "sync") and row.flush and row.flush >= mark:
                        return
                    await asyncio.sleep(FAST if time.monotonic() - begun < PATIENCE else SLOW)
        except psycopg.Error as error:
            raise Unreachable(f"PostgreSQL did not say whether {name} has caught up: {error}") from error
