"""When a primary may let clients write: once its sync confirms what was there when it was asked.

Until then `default_transaction_read_only` is on, so that clients fail at once instead of hanging in their commit.
"""

from __future__ import annotations

import asyncio

from manatee.config import Settings
from manatee.lsn import Lsn
from sitter.postgres import queries

FAST, SLOW, PATIENCE = 0.01, 0.25, 5.0
"""Seconds between looks in the first `PATIENCE` seconds, and after."""

_BEGIN = "select pg_current_wal_flush_lsn()"
_CONFIRMS = """
select 1 from pg_stat_replication
where application_name = %s and state = 'streaming' and sync_state = 'sync' and flush_lsn >= %s
"""


async def caught_up(settings: Settings, name: str) -> None:
    """Returns when the standby of this name is the sync and has flushed all that the primary has now.

    May wait for ever: whoever calls it gives it up when something else is wanted. Raises PostgresError if PostgreSQL
    stops answering.
    """
    async with queries.connect(settings) as connection:
        cursor = await connection.execute(_BEGIN)
        row = await cursor.fetchone()
    assert row is not None
    mark = Lsn.parse(row[0])
    begun = asyncio.get_running_loop().time()
    while True:
        async with queries.connect(settings) as connection:
            cursor = await connection.execute(_CONFIRMS, [name, str(mark)])
            if await cursor.fetchone():
                return
        waited = asyncio.get_running_loop().time() - begun
        await asyncio.sleep(FAST if waited < PATIENCE else SLOW)
