"""Looks at PostgreSQL: whenever somebody needs to know now, and every `postgres.health_interval` in any case.

Health is a fresh connection with a deadline, because an old one still answers when the postmaster hangs. Refused is not
the same as silent: a server that starts or has died refuses, one that accepts and does not answer hangs. The connection
of the last such look is asked in between: a look on the way to a takeover costs one millisecond then instead of ten.

The daemon looks in every turn, and the first look after `postgres.health_interval` is the fresh one. Only a daemon that
is held up, by ZooKeeper for one, leaves it to `Watch.run`: so an idle sitter does not look twice.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import psycopg

from manatee.config import Settings
from sitter.postgres import controldata, queries, versions
from sitter.postgres.errors import Hung, PostgresError, Unreachable
from sitter.postgres.queries import Facts
from sitter.postgres.server import Server

PATIENCE = 0.25
"""Seconds for which the daemon's loop waits for a look; a slower one goes on beside it."""

SLACK = 0.25
"""How long a fresh look that is due is left to the daemon's next turn, as a share of `postgres.health_interval`."""

QUICK = 1.0
"""Seconds for an answer over a connection that is there already; then a new one is made."""


class Watch:
    """The newest facts, and how good they are."""

    def __init__(self, settings: Settings, server: Server) -> None:
        self._settings = settings
        self._server = server
        self._control_file = settings.storage.data_dir / "global" / "pg_control"
        self._looking: asyncio.Task[None] | None = None
        self._seen_at = -float("inf")
        self._kept: queries.Connection | None = None
        self._due = -float("inf")
        """When the next look is to be one over a fresh connection."""
        self.facts: Facts | None = None
        """What the last successful look saw; None while PostgreSQL lets nobody in."""
        self.asked_at = -float("inf")
        """When that look began, by the monotonic clock."""
        self._last: Facts | None = None
        self.problem: str | None = None
        """Why the last look failed."""
        self.hung = asyncio.Event()
        """PostgreSQL runs, but has not answered within `postgres.health_timeout`, or has let nobody in for twice that
        (which counts once it has been up: recovery may take hours)."""
        self._refused_since: float | None = None
        self.identifier: str | None = None
        """The system identifier of the database on disk; None if there is none, or it is not identified."""
        self.unidentified: str | None = "it has not been looked at yet"
        """Why it is not known which database is on disk, or whether there is one; None if it is known."""
        self.version: int | None = None
        """The major version of that database."""

    @property
    def healthy(self) -> bool:
        """PostgreSQL has answered lately."""
        return self.facts is not None and time.monotonic() - self._seen_at < self._settings.postgres.health_timeout

    @property
    def initialized(self) -> bool:
        """There is a database on disk."""
        return self.identifier is not None

    async def run(self) -> None:
        """See to it that there is a fresh look at every `postgres.health_interval`, until cancelled."""
        try:
            while True:
                latest = self._due + SLACK * self._settings.postgres.health_interval
                if time.monotonic() >= latest:
                    await self.look()
                else:
                    await asyncio.sleep(latest - time.monotonic())
        finally:
            if self._looking:
                self._looking.cancel()
            self._drop()

    async def look(self) -> None:
        """Look now, or share the look that is under way; returns after `PATIENCE` seconds in any case."""
        self._raise_the_unexpected()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        await asyncio.wait((self._looking,), timeout=PATIENCE)
        self._raise_the_unexpected()

    def _raise_the_unexpected(self) -> None:
        """Of the last look: what it did not expect is for whoever runs us, and ends the sitter."""
        if self._looking is not None and self._looking.done() and not self._looking.cancelled():
            self._looking.result()

    async def answers(self) -> bool:
        """Look now, and say whether PostgreSQL lets us in."""
        await self.look()
        return self.healthy

    def forget_identity(self) -> None:
        """The database on disk is another one now."""
        self.identifier, self.version, self.unidentified = None, None, "it has just been replaced"

    async def _identify(self) -> None:
        """Not knowing which database this is, is another fact than that there is none: nothing is decided on it."""
        there = self._control_file.exists()
        timeout = self._settings.postgres.query_timeout
        if self.identifier is None:
            await versions.check(self._settings, timeout=timeout)
        if there and self.identifier is None:
            self.identifier = (await controldata.read(self._settings, timeout=timeout)).system_identifier
            self.version = versions.of_data(self._settings.storage.data_dir)
        elif not there and not self._server.running:
            self.identifier, self.version = None, None
        elif not there and self.identifier is not None:
            raise Hung("its data are no longer there")  # the postmaster itself would notice within a minute
        self.unidentified = None

    async def _look(self) -> None:
        begun = time.monotonic()
        if begun >= self._due:
            self._due = begun + self._settings.postgres.health_interval
            self._drop()
        try:
            await self._identify()
            if not self._server.running:
                self._drop()
                self.facts, self.problem, self._refused_since = None, None, None
                self.hung.clear()
                return
            self.facts = self._on_newest_timeline(await self._quick_look() or await self._fresh_look())
            self.asked_at = begun
            self.problem, self._refused_since = None, None
            self.hung.clear()
        except Hung as error:
            self.facts, self.problem = None, str(error)
            self.hung.set()
        except (PostgresError, OSError) as error:
            self.facts, self.problem = None, str(error)
            now = time.monotonic()
            self._refused_since = self._refused_since or now
            if now - self._refused_since > 2 * self._settings.postgres.health_timeout:
                self.hung.set()
            else:
                self.hung.clear()
            if self.identifier is None and self.unidentified is not None:
                self.unidentified = self.problem

    def _on_newest_timeline(self, seen: Facts) -> Facts:
        """A standby's timeline is its receiver's; one without falls back to what its control file says of the latest
        restartpoint, which may be several timelines old. What a standby has begun to receive, it stays on."""
        before = self._last
        self._last = seen
        if before is None or before.started != seen.started or not seen.in_recovery:
            return seen
        self._last = replace(seen, timeline=max(before.timeline, seen.timeline))
        return self._last

    async def _fresh_look(self) -> Facts:
        """Over a new connection, which is kept for the next looks. Raises Hung, Unreachable."""
        limit = self._settings.postgres.health_timeout
        ends = time.monotonic() + limit
        self._drop()
        self._kept = await queries.open_connection(self._settings, timeout=limit)
        facts = await self._asked(self._kept, max(0.1, ends - time.monotonic()))
        if facts is None:
            raise Hung(f"PostgreSQL did not answer within {limit:g} s")
        self._seen_at = time.monotonic()
        return facts

    async def _quick_look(self) -> Facts | None:
        """Over the connection that is there; None if there is none, or it is of no use any more."""
        if self._kept is None:
            return None
        try:
            return await self._asked(self._kept, QUICK)
        except Unreachable:
            return None

    async def _asked(self, connection: queries.Connection, seconds: float) -> Facts | None:
        """None if there is no answer in time: the connection is cut then; a cancellation would wait for the server."""
        asking = asyncio.create_task(queries.look(connection))
        try:
            await asyncio.wait((asking,), timeout=seconds)
            if not asking.done():
                return None
            return asking.result()
        except psycopg.Error as error:
            self._drop()
            raise Unreachable(f"PostgreSQL did not answer: {str(error).strip()}") from error
        finally:
            if not asking.done():
                self._drop()
                await asyncio.gather(asking, return_exceptions=True)

    def _drop(self) -> None:
        if self._kept is not None:
            self._kept.pgconn.finish()
            self._kept = None
