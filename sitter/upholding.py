"""Looks after a PostgreSQL that is as it should be: that what it was told stays in force, and that no standby lags for
want of a restart.

What can be put right while it runs is; what takes a restart ends it, for whoever starts it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from manatee.config import Settings
from manatee.log import Logger
from manatee.lsn import Lsn
from sitter.postgres import tail
from sitter.postgres.errors import PostgresError
from sitter.postgres.queries import Facts
from sitter.postgres.server import Server
from sitter.postgres.watch import Watch

DELAY_MAX = 30.0
"""Seconds between two attempts, at most, at settings that something else keeps winning over."""


@dataclass(frozen=True)
class Restart:
    """Why a PostgreSQL that had not died was ended."""

    reason: str
    whole_up_to: Lsn | None = None
    """There is half a record to be taken away; up to where the log is surely whole."""


class Upholding:
    """`run` until it is cancelled. `follows` says whether this is a standby that its upstream should feed."""

    def __init__(
        self, settings: Settings, server: Server, watch: Watch, log: Logger, *, follows: Callable[[], bool]
    ) -> None:
        self._settings = settings
        self._server = server
        self._watch = watch
        self._log = log
        self._follows = follows
        self.problem: str | None = None
        """Why PostgreSQL is not as it was told to be."""
        self.restart: Restart | None = None
        """Set before it is ended: its death is none."""

    async def run(self) -> None:
        shortest = delay = self._settings.postgres.health_interval
        while True:
            await asyncio.sleep(delay)
            facts = self._watch.facts
            half = facts is not None and await self.holds_half_a_record(facts)
            if facts is None or (self._server.obeys(facts) and not facts.replay_paused and not half):
                self.problem, delay = None, shortest
                continue
            delay = min(2 * delay, DELAY_MAX)
            try:
                await self._put_right(facts, half=half)
            except (PostgresError, OSError) as error:
                if str(error) != self.problem:
                    self._log.error("PostgreSQL is not as it was told to be", error=str(error))
                self.problem = str(error)

    async def _put_right(self, facts: Facts, *, half: bool) -> None:
        if not self._server.obeys(facts):
            await self._server.configure(self._server.replication)
        if facts.replay_paused and (outgrown := await self._server.outgrown()):
            self.restart = Restart(f"its replay is paused: {outgrown}")
        elif half:
            reason = "it holds the beginning of a record that its upstream will never complete"
            self.restart = Restart(reason, whole_up_to=facts.replay)
        if self.restart:
            await self._server.stop("immediate")

    async def holds_half_a_record(self, facts: Facts) -> bool:
        """A standby that is not fed, since it asks for more than its upstream has (`tail`)."""
        if facts.replay is None or not self._follows() or not self._server.said(*tail.SIGNS, since=tail.FED):
            return False
        try:
            half = await tail.cut(self._settings, replayed=facts.replay, only_look=True)
            return half and self._follows()  # it may have been sealed meanwhile, and be about to take over
        except (PostgresError, OSError) as error:
            self._log.debug("the end of the log was not looked at", error=str(error))
            return False
