"""Commits that were waiting when the name that commits wait for was changed.

PostgreSQL releases them when the standby of the new name speaks next, and one that has nothing to say speaks once a
second (`wal_receiver_status_interval`). A record that it has to flush makes it speak at once.
"""

from __future__ import annotations

import asyncio
import time

import psycopg

from manatee.config import Settings
from sitter.postgres import queries
from sitter.postgres.errors import Unreachable

LOOK = 0.005
PATIENCE = 1.0
"""Seconds between two looks at the new sync's walsender, and for how long. Without it the release comes by itself."""

_SYNC = "select from pg_stat_replication where application_name = %s and state = 'streaming' and sync_state = 'sync'"
_RECORD = """
begin read write; set local synchronous_commit = local;
select pg_logical_emit_message(true, 'manatee', ''); commit
"""


async def release(settings: Settings, name: str) -> None:
    """Have the standby of this name confirm what is there, now that commits wait for it. Raises PostgresError."""
    begun = time.monotonic()
    try:
        async with queries.connect(settings) as connection:
            while not (await connection.execute(_SYNC, (name,))).rowcount:
                if time.monotonic() - begun > PATIENCE:
                    return  # it says so when it comes
                await asyncio.sleep(LOOK)
            await connection.execute(_RECORD)
    except psycopg.Error as error:
        raise Unreachable(f"PostgreSQL did not have {name} confirm what is there: {error}") from error
