"""A sitter whose PostgreSQL is imagined: whatever is wanted of that has happened at once. The rest is real."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import MutableMapping
from dataclasses import replace
from typing import Any, cast

import structlog

from manatee.cluster import Comparison, Peer, PeerStatus
from manatee.config import ZooKeeper
from manatee.coordination import Coordination, CoordinationError, ShardView
from manatee.log import Logger
from manatee.lsn import Lsn
from sitter.daemon import STATUS_INTERVAL, TURN
from sitter.decide import decide
from sitter.view import Database, Decision, Initialize, Link, Memory, Present, Primary, Restore, Standby, View, Wanted

GROWTH = 2**20
"""Bytes of WAL a second, of databases that are written to."""


class Imagined:
    """The PostgreSQL of a peer of one shard. All databases of a shard hold the same, and follow without a delay."""

    written = False
    """Whether clients write to the databases of this process."""

    def __init__(self, identifier: str, *, initialized: bool) -> None:
        self._identifier = identifier
        self._initialized = initialized
        self._wanted: Wanted | None = None

    def want(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._initialized = self._initialized or isinstance(wanted, Initialize | Restore)

    def seen(self, view: View) -> Database:
        """What the sitter would know of it beside the rest of this view."""
        wanted, end = self._wanted, self._end()
        runs = isinstance(wanted, Primary | Standby)
        upstream = wanted.upstream.id if isinstance(wanted, Standby) and wanted.upstream else None
        sealed = end if isinstance(wanted, Primary | Standby) and wanted.sealed else None
        return Database(
            initialized=self._initialized,
            identifier=self._identifier if self._initialized else None,
            version="15",
            running=runs,
            online=runs,
            writable_for=60.0 if isinstance(wanted, Primary) else 0.0,
            end=end if runs else None,
            at_rest=None if runs else end,
            sealed=sealed,
            upstream=upstream,
            streaming=upstream in view.present,
            attached={one.peer.id: end for one in view.active if one.status and one.status.running} if runs else {},
            link=self._link(view),
        )

    def _end(self) -> Lsn:
        return Lsn(GROWTH * int(time.time()) if self.written else GROWTH)

    def _link(self, view: View) -> Link | None:
        """What we would follow has been compared with ours, and ours are a prefix of it."""
        state = view.state
        if state is None:
            return None
        chain = state.assigned
        here = next((at for at, peer in enumerate(chain) if peer.id == view.me.id), 1)
        upstream = view.present.get(chain[max(0, here - 1)].id)
        if upstream is None or upstream.status is None or upstream.status.generation != state.generation:
            return None
        proof = upstream.status.proof
        return Link(upstream.peer.id, state.generation, proof, Comparison.PREFIX, upstream.status.lsn or Lsn(0))


class SimulatedPeer:
    """One sitter, from `run` until that is cancelled."""

    def __init__(self, settings: ZooKeeper, root: str, me: Peer, database: Imagined, complaints: Counter[str]) -> None:
        self.coordination = Coordination(settings, root, self._log(complaints), self.wake)
        self._me = me
        self._database = database
        self._memory = Memory()
        self._changed = asyncio.Event()
        self._published: tuple[PeerStatus, float] | None = None
        self.sessions = 0
        """How many it has had."""
        self.decided_at: float | None = None
        """When it first decided since it was last connected, by the monotonic clock; None while it has not."""
        self.generation = 0
        self.generation_at = 0.0
        """When it learned of that one."""
        self.complete = False
        """It has its place, and so have all others of its shard."""
        self.decisions = 0

    def wake(self) -> None:
        self._changed.set()

    async def run(self) -> None:
        try:
            await self.coordination.start()
            while True:
                self._changed.clear()
                look_again = None
                try:
                    look_again = await self._turn()
                except CoordinationError:
                    self.complete = False
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TURN if look_again is None else min(look_again, TURN)):
                        await self._changed.wait()
        finally:
            with contextlib.suppress(CoordinationError):
                await self.coordination.close()

    async def _turn(self) -> float | None:
        """Look, decide, act as `sitter.daemon` does; after how many seconds to look again."""
        if self.coordination.write_open:
            await self.coordination.settle()
        view = self._view(await self.coordination.read())
        decision = decide(view)
        self._memory = decision.memory
        self.decisions += 1
        if self.decided_at is None:
            self.decided_at = time.monotonic()
        self._note(view)
        before = self._database.seen(view)
        self._database.want(decision.database)
        if decision.resign:
            await self.coordination.resign()
        elif view.me.id not in view.present:
            self._published = None
            await self.coordination.join(self._me)
            self.wake()
        if not decision.resign:
            await self._publish(view, decision)
        if decision.cluster:
            await self.coordination.complete_cluster(decision.cluster)
        if decision.write:
            write = decision.write
            await self.coordination.write_state(write.state, version=write.version, cluster=write.cluster)
            self.wake()
        if self._database.seen(view) != before:
            self.wake()
        return decision.look_again

    def _view(self, seen: ShardView) -> View:
        view = View(
            me=self._me,
            now=time.time(),
            active=tuple(
                Present(one.peer, one.status, one.promises_status)
                for one in seen.active
                if one.peer.id != self._me.id or one.node == seen.joined
            ),
            state=seen.state,
            state_problem=seen.state_problem,
            version=seen.version,
            cluster=seen.cluster,
            has_history=seen.has_history,
            memory=self._memory,
            write_open=self.coordination.write_open,
        )
        return replace(view, database=self._database.seen(view))

    def _note(self, view: View) -> None:
        state = view.state
        if state is not None and state.generation != self.generation:
            self.generation, self.generation_at = state.generation, time.monotonic()
        ready = {one.peer.id for one in view.active if one.status and one.status.ready}
        self.complete = state is not None and len(state.assigned) == 3 and {peer.id for peer in state.assigned} <= ready

    async def _publish(self, view: View, decision: Decision) -> None:
        database, now = view.database, time.monotonic()
        status = PeerStatus(
            initialized=database.initialized,
            system_identifier=database.identifier,
            serving=decision.serving,
            ready=decision.ready,
            compares=decision.compares,
            running=database.running,
            generation=decision.memory.generation,
            proof=decision.memory.proof,
            timeline=decision.memory.generation,
            lsn=database.end or database.at_rest,
            version="simulated",
        )
        if self._published is not None:
            said, at = self._published
            if now - at < STATUS_INTERVAL and said.model_copy(update={"lsn": status.lsn}) == status:
                return
        if self._published is None or self._published[0] != status:
            await self.coordination.publish(status)
            self._published = status, now

    def _log(self, complaints: Counter[str]) -> Logger:
        """Listens to what the session says of itself, and counts what would have been logged as a warning or worse."""

        def listen(_: object, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
            if "resumed" in event:
                self.sessions += not event["resumed"]
                self.decided_at = None
            if level in ("warning", "error"):
                complaints[str(event["event"])] += 1
            raise structlog.DropEvent

        return cast(Logger, structlog.wrap_logger(None, processors=[listen]))
