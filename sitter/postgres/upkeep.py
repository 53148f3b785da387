"""What a PostgreSQL that runs needs from time to time: the peers' role, the slots, and that its settings hold.

Beside the transitions and never in their way: nothing here is waited for by a decision, nothing here waits for
replication, and what is new is looked at a moment later, since most of it is new in the midst of a takeover, which has
better use for the processor. Everything is looked at anew each time, so a look that fails is made good by the next.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg

from manatee import link
from manatee.config import BadConfiguration, Settings
from manatee.log import Logger
from manatee.lsn import Lsn
from sitter.postgres import findings, queries, role, slots
from sitter.postgres.errors import PostgresError, Unreachable
from sitter.postgres.findings import Findings
from sitter.postgres.server import Server

INTERVAL = 20.0
"""Seconds between two looks when nothing is new."""

SOON = 1.0
"""Seconds until the next look after one that has found something to do, or that failed, and after news."""


@dataclass(frozen=True)
class Upkept:
    """What the last look has found and done, for the report."""

    findings: Findings = field(default_factory=Findings)
    slots: tuple[slots.Slot, ...] = ()
    problem: str | None = None
    """Why the last look did not come to its end."""


class Upkeep:
    """One task, from `run` until it is cancelled."""

    def __init__(self, settings: Settings, server: Server, log: Logger) -> None:
        self._settings = settings
        self._server = server
        self._log = log
        self._others: Mapping[str, Lsn] = {}
        self._unproven: frozenset[tuple[str, int]] = frozenset()
        self._helped: frozenset[tuple[str, int]] = frozenset()
        """The unproven peers for whom a checkpoint was made."""
        self._known: object = None
        self._news = asyncio.Event()
        self.last = Upkept()
        self.repairs = 0
        """How often something had to be put right."""

    def document(self) -> dict[str, Any]:
        """For `/state`."""
        found = self.last.findings
        return {
            "wrong": [str(one) for one in found.wrong],
            "pendingRestart": list(found.pending_restart),
            "broken": list(found.broken),
            "overridden": [str(one) for one in found.overrides],
            "refused": self._server.refused,
            "repairs": self.repairs + self._server.repairs,
            "encrypted": dict(found.encrypted),
            "slots": {slot.name: {"from": str(slot.restart), "status": slot.status} for slot in self.last.slots},
            "problem": self.last.problem,
        }

    def tell(self, others: Mapping[str, Lsn], unproven: frozenset[tuple[str, int]] = frozenset()) -> None:
        """Which other peers are present, by id, and where the recovery of each would begin; which of them serve without
        proof of the present generation, and which generation that is.
        """
        self._unproven = unproven
        known = (others.keys(), unproven, self._server.running, self._server.standby)
        if known != self._known:
            self._known = known
            self._news.set()
        self._others = others

    async def run(self) -> None:
        """Until cancelled."""
        pause = SOON
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._news.wait()
                    await asyncio.sleep(SOON)
            self._news.clear()
            pause = INTERVAL if await self.look() else SOON

    async def look(self) -> bool:
        """Look once; whether all was well."""
        if not self._server.running:
            self.last = Upkept()
            return True
        before, done = self.last, False
        try:
            async with queries.connect(self._settings, application_name="manatee-upkeep") as connection:
                done = await self._put_right(connection)
        except Unreachable:
            return False  # it starts, or has died: others say so
        except (psycopg.Error, PostgresError, BadConfiguration, OSError) as error:
            self.last = replace(self.last, problem=str(error).strip())
        else:
            self.last = replace(self.last, problem=None)
            await self._help_to_prove()
        self._say(before)
        return not done and self.last.problem is None

    async def _put_right(self, connection: psycopg.AsyncConnection[Any]) -> bool:
        """Whether there was something to do."""
        cursor = await connection.execute("select pg_is_in_recovery()")
        row = await cursor.fetchone()
        primary = row is not None and not row[0] and not self._server.standby
        done = [primary and await self._ensure_role(connection), await self._keep_slots(connection)]
        found = await findings.look(connection, self._settings, self._server.expected)
        self.last = replace(self.last, findings=found)
        if self._server.repair(found.wrong):
            done.append(True)
        for override in found.overrides if primary else ():
            await findings.reset(connection, override)
            self.repairs += 1
            self._log.warning("took away a setting that defeats the sitter's", setting=str(override))
            done.append(True)
        return any(done)

    async def _ensure_role(self, connection: psycopg.AsyncConnection[Any]) -> bool:
        user, password = self._settings.postgres.replication_user, link.password(self._settings)
        if user is None or password is None:
            return False
        done = await role.ensure(connection, user, password)
        if done:
            self._log.info("the role that the peers connect as", role=user, done=done)
        return done is not None

    async def _help_to_prove(self) -> None:
        """A peer compares its log from its latest checkpoint on, which its upstream, restored later, may not hold. With
        a checkpoint here it can make a newer one; there may not be another for as long as `checkpoint_timeout`.
        """
        waiting = self._unproven - self._helped
        if not waiting or self._server.standby:
            return
        self._log.info("making a checkpoint, for peers to compare from", peers=sorted(id for id, _ in waiting))
        newest = max(generation for _, generation in waiting)
        self._helped = waiting | {one for one in self._helped if one[1] == newest}  # once, whatever comes of it
        try:
            await self._server.checkpoint()
        except PostgresError as error:
            self._log.warning("no checkpoint was made", error=str(error))

    async def _keep_slots(self, connection: psycopg.AsyncConnection[Any]) -> bool:
        kept = self._settings.postgres.max_slot_wal_keep_size is not None
        found = await slots.look(connection)
        plan = slots.plan(found, self._others if kept else None, self._settings.identity.id)
        for each in (slot for slot in found if slot.name in plan.drop and slot.lost and kept):
            self._log.warning("a peer was away for longer than its slot keeps WAL", slot=each.name, status=each.status)
        self.last = replace(self.last, slots=tuple(found))
        await slots.carry_out(connection, plan)
        return bool(plan.drop or plan.create)

    def _say(self, before: Upkept) -> None:
        """Log what is news."""
        now = self.last
        if now.problem and now.problem != before.problem:
            self._log.warning("upkeep of PostgreSQL", problem=now.problem)
        if now.findings.pending_restart != before.findings.pending_restart and now.findings.pending_restart:
            names = list(now.findings.pending_restart)
            self._log.warning("settings wait for a restart of PostgreSQL", settings=names)
        if now.findings.broken != before.findings.broken and now.findings.broken:
            self._log.error("PostgreSQL takes no change of its settings", because=list(now.findings.broken))
        if now.findings.wrong != before.findings.wrong and now.findings.wrong:
            words = [str(one) for one in now.findings.wrong]
            self._log.warning("settings are not as they were told to be", settings=words)
