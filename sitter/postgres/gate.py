"""When a primary may let clients write: once its sync confirms what was there when it was asked.

Until then `default_transaction_read_only` is on, so that clients fail at once instead of hanging in their commit.
"""

from __future__ import annotations

import asyncio
import time

from manatee.config import Settings
from sitter.postgres import queries

FAST, SLOW, PATIENCE = 0.01, 0.25, 5.0
"""Seconds between looks in the first `PATIENCE` seconds, and after."""


async def caught_up(settings: Settings, name: str) -> None:
    """Returns when the standby of this name is the sync and has flushed all that the primary has now.

    May wait for ever: whoever calls it gives it up when something else is wanted. Raises PostgresError if PostgreSQL
    stops answering.
    """
    timeout = settings.postgres.query_timeout
    mark = (await queries.facts(settings, timeout=timeout)).flush
    begun = time.monotonic()
    while True:
        row = (await queries.facts(settings, timeout=timeout)).downstream(name)
        if row and (row.state, row.sync_state) == ("streaming", "sync") and row.flush and row.flush >= mark:
            return
        await asyncio.sleep(FAST if time.monotonic() - begun < PATIENCE else SLOW)
