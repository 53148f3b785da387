"""Destroys what restores have left, the data that they replaced included, beside a PostgreSQL that serves without."""

from __future__ import annotations

import asyncio

from manatee.log import Logger
from manatee.storage import Storage

INTERVAL = 60.0
"""Seconds between two attempts."""


async def tidy_up(storage: Storage, ready: asyncio.Event, log: Logger, *, keep: int) -> None:
    """Returns when nothing is left but the newest `keep` of what was replaced. Begins when this peer is `ready`: the
    data here need none of it then.

    What cannot go now is tried again. The storage says what stays, and why, when that is news.
    """
    problem = None
    while True:
        await ready.wait()
        try:
            left = await storage.clear_leftovers(resumable=True)
            dropped = await storage.drop_isolated(keep)
        except Exception as error:  # noqa: BLE001 - no leftover is worth a PostgreSQL that serves
            reason = str(error) or repr(error)
            if reason != problem:
                log.warning("what restores have left stays for now", reason=reason)
            problem = reason
        else:
            problem = None
            if dropped.count:
                log.info("destroyed data that restores had replaced", count=dropped.count)
            if not (left or dropped.stay):
                return
        await asyncio.sleep(INTERVAL)
