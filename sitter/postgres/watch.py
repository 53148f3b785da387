"""Looks at PostgreSQL: once a second, and whenever somebody needs to know now.

Every look is a fresh connection with a deadline, because an old one still answers when the postmaster hangs. Refused is
not the same as silent: a server that starts or has died refuses, one that accepts and does not answer hangs.
"""

from __future__ import annotations

import asyncio
import time

from manatee.config import Settings
from sitter.postgres import controldata, queries, versions
from sitter.postgres.errors import Hung, PostgresError
from sitter.postgres.queries import Facts
from sitter.postgres.server import Server

PATIENCE = 0.25
"""Seconds for which the daemon's loop waits for a look; a slower one goes on beside it."""


class Watch:
    """The newest facts, and how good they are."""

    def __init__(self, settings: Settings, server: Server) -> None:
        self._settings = settings
        self._server = server
        self._looking: asyncio.Task[None] | None = None
        self._seen_at = -float("inf")
        self.facts: Facts | None = None
        """What the last successful look saw; None while PostgreSQL lets nobody in."""
        self.problem: str | None = None
        """Why the last look failed."""
        self.hung = asyncio.Event()
        """PostgreSQL runs, but has not answered within `postgres.health_timeout`."""
        self.identifier: str | None = None
        """The system identifier of the database on disk; None if there is none, or it is not identified."""
        self.unidentified: str | None = "it has not been looked at yet"
        """Why it is not known which database is on disk, or whether there is one; None if it is known."""

    @property
    def healthy(self) -> bool:
        """PostgreSQL has answered lately."""
        return self.facts is not None and time.monotonic() - self._seen_at < self._settings.postgres.health_timeout

    @property
    def initialized(self) -> bool:
        """There is a database on disk."""
        return self.identifier is not None

    async def run(self) -> None:
        """Look at every `postgres.health_interval`, until cancelled."""
        try:
            while True:
                await self.look()
                await asyncio.sleep(self._settings.postgres.health_interval)
        finally:
            if self._looking:
                self._looking.cancel()

    async def look(self) -> None:
        """Look now, or share the look that is under way; returns after `PATIENCE` seconds in any case."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        await asyncio.wait((self._looking,), timeout=PATIENCE)

    async def answers(self) -> bool:
        """Look now, and say whether PostgreSQL lets us in."""
        await self.look()
        return self.healthy

    def forget_identity(self) -> None:
        """The database on disk is another one now."""
        self.identifier, self.unidentified = None, "it has just been replaced"

    async def _identify(self) -> None:
        """Not knowing which database this is, is another fact than that there is none: nothing is decided on it."""
        there = (self._settings.storage.data_dir / "global" / "pg_control").exists()
        timeout = self._settings.postgres.query_timeout
        if self.identifier is None:
            await versions.check(self._settings, timeout=timeout)
        if there and self.identifier is None:
            self.identifier = (await controldata.read(self._settings, timeout=timeout)).system_identifier
        elif not there and not self._server.running:
            self.identifier = None
        elif not there and self.identifier is not None:
            raise Hung("its data are no longer there")  # the postmaster itself would notice within a minute
        self.unidentified = None

    async def _look(self) -> None:
        try:
            await self._identify()
            if not self._server.running:
                self.facts, self.problem = None, None
                self.hung.clear()
                return
            self.facts = await queries.facts(self._settings, timeout=self._settings.postgres.health_timeout)
            self._seen_at = time.monotonic()
            self.problem = None
            self.hung.clear()
        except Hung as error:
            self.facts, self.problem = None, str(error)
            self.hung.set()
        except (PostgresError, OSError) as error:
            self.facts, self.problem = None, str(error)
            self.hung.clear()
            if self.identifier is None and self.unidentified is not None:
                self.unidentified = self.problem
