"""Where the log of a database ends that does not run: a position for whoever must know what this peer holds.

It is found by reading the log, which may take seconds of a disk and a processor. So it is read once for each time that
PostgreSQL is stopped, beside everything else, and only when it has stayed stopped for a moment; as soon as PostgreSQL
is to run, or its data are to be replaced, the reading is ended and its answer void.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from manatee.config import Settings
from manatee.log import Logger
from sitter.postgres import controldata, versions, wal_end
from sitter.postgres.errors import PostgresError
from sitter.postgres.wal_end import WalEnd

STAYS = 0.5
"""Seconds for which PostgreSQL must have been stopped: most stops are on the way to a start."""

RETRY = 10.0
RETRY_MAX = 300.0
"""Seconds between two attempts at a log that cannot be read: the first, doubling up to the last."""


class AtRest:
    """One task, from `run` until it is cancelled."""

    def __init__(self, settings: Settings, log: Logger, on_change: Callable[[], None]) -> None:
        self._settings = settings
        self._log = log
        self._on_change = on_change
        self._database: str | None = None
        self._news = asyncio.Event()
        self.end: WalEnd | None = None
        """None while PostgreSQL runs, or is to run, and until it is found."""
        self.problem: str | None = None
        """Why it is not found."""

    def tell(self, database: str | None) -> None:
        """The system identifier of the database that is stopped and to stay so; None if there is none."""
        if database != self._database:
            self._database, self.end, self.problem = database, None, None
            self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._news.clear()
            reading = asyncio.create_task(self._find()) if self._database is not None else None
            news = asyncio.create_task(self._news.wait())
            try:
                if reading is not None:
                    await asyncio.wait((reading, news), return_when=asyncio.FIRST_COMPLETED)
                    if reading.done():
                        reading.result()  # what nobody expected ends the sitter
                await news
            finally:
                for each in (reading, news):
                    if each is not None:
                        each.cancel()
                        await asyncio.gather(each, return_exceptions=True)

    async def _find(self) -> None:
        await asyncio.sleep(STAYS)
        delay = RETRY
        while True:
            try:
                self.end = await self._read()
            except (PostgresError, OSError) as error:
                if str(error) != self.problem:
                    self._log.warning("where the log ends cannot be found", reason=str(error))
                self.problem = str(error)
            else:
                self.problem = None
                self._log.info("the log ends", at=str(self.end.lsn), timeline=self.end.timeline)
                self._on_change()
                return
            await asyncio.sleep(delay)
            delay = min(2 * delay, RETRY_MAX)

    async def _read(self) -> WalEnd:
        limit = self._settings.postgres.start_timeout
        control = await controldata.read(self._settings)
        version = await versions.of_programs(self._settings)
        return await wal_end.find(self._settings, control, version=version, timeout=limit)
