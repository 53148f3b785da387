"""When a primary may let clients write: once its sync confirms what was there when it was asked.

Until then `default_transaction_read_only` is on, so that clients fail at once instead of hanging in their commit.
"""

from __future__ import annotations

import asyncio
import time

from manatee.lsn import Lsn
from sitter.postgres.errors import Unreachable
from sitter.postgres.watch import Watch

FAST, SLOW, PATIENCE = 0.005, 0.25, 5.0
"""Seconds between looks in the first `PATIENCE` seconds, and after."""


async def caught_up(watch: Watch, name: str) -> None:
    """Returns when the standby of this name is the sync and has flushed all that the primary has now.

    May wait for ever: whoever calls it gives it up when something else is wanted. Raises Unreachable if PostgreSQL
    stops answering.
    """
    begun = time.monotonic()
    mark: Lsn | None = None
    while True:
        await watch.look()
        facts = watch.facts
        if facts is None:
            raise Unreachable(f"PostgreSQL did not say whether {name} has caught up: {watch.problem or 'it has ended'}")
        if watch.asked_at >= begun:  # one that was under way already may have seen what was before
            mark = mark or facts.flush
            row = facts.downstream(name)
            confirms = row and (row.state, row.sync_state) == ("streaming", "sync") and not row.ahead
            if row and confirms and row.flush and row.flush >= mark:
                return
        await asyncio.sleep(FAST if time.monotonic() - begun < PATIENCE else SLOW)
