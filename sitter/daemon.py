"""The loop of the sitter: it feeds the core views and carries its decisions out.

Every turn looks at everything, asks `decide`, and acts in the order of `Decision`'s contract. Turns come when ZooKeeper
or PostgreSQL changed, when the core asked to be asked again, and once a second. What takes long (starting, sealing,
promoting, restoring, comparing) runs beside the loop, in `Transitions` and `Comparer`; what they reach are facts of
later views. While ZooKeeper cannot be asked nothing is decided: PostgreSQL goes on as it was told last.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import replace

from manatee import __version__
from manatee.cluster import PeerStatus, Role
from manatee.config import Settings
from manatee.coordination import Conflict, Coordination, CoordinationError, OutcomeUnknown
from manatee.log import Logger
from manatee.lsn import Lsn
from sitter.comparer import Comparer
from sitter.decide import decide
from sitter.fence import cut_off
from sitter.memory import MemoryFile
from sitter.neighbour import Lookout
from sitter.observer import Observer
from sitter.postgres.at_rest import AtRest
from sitter.postgres.server import Server
from sitter.postgres.upkeep import Upkeep
from sitter.postgres.watch import Watch
from sitter.report import Report, Sources, report
from sitter.transitions import Transitions
from sitter.view import Decision, Initialize, Keep, Primary, Restore, Rewind, Stopped, View

TURN = 1.0
"""Seconds between turns in which nothing happened: PostgreSQL is looked at this often."""

IDLE = 2.0
"""The same while this peer is what it should be, and neither it nor the shard waits for anything."""

BACK_AFTER = 1.0
"""Seconds for which a former primary that has made way stays away: who takes over needs the processors, and the peers'
attention, for something else than its coming back."""

PATIENCE = 0.01
"""The share of a wait that may be added to it by looking more rarely the longer it lasts."""

STATUS_INTERVAL = 10.0
"""Seconds before a status is written again although only its position has changed."""


class Daemon:
    """One sitter, from `run` until it has left."""

    def __init__(self, settings: Settings, log: Logger) -> None:
        self._settings = settings
        self._log = log
        self._me = settings.identity
        self._changed = asyncio.Event()
        self._memory = MemoryFile(settings.sitter.state_dir)
        self._coordination = Coordination(settings.zookeeper, settings.shard.root, log, self.wake)
        self._server = Server(settings, log)
        self._watch = Watch(settings, self._server)
        self._transitions = Transitions(settings, self._server, self._watch, log, self.wake)
        self._comparer = Comparer(settings, log, self.wake, self._server)
        self._upkeep = Upkeep(settings, self._server, log)
        self._at_rest = AtRest(settings, log, self.wake)
        self._lookout = Lookout(log, self.wake)
        self._observer = Observer(
            settings, self._coordination, self._watch, self._transitions, self._comparer, self._at_rest, self._lookout
        )
        self._fenced = False
        self._unidentified: str | None = None
        self._leaving = False
        self._resigned_at: float | None = None
        self._returned_at = -math.inf
        self._published: tuple[PeerStatus, float] | None = None
        self._evictions = 0
        self._view: View | None = None
        self._decision: Decision | None = None
        self._decided_at = -math.inf
        """When its reason was new."""
        self.turned_at = time.monotonic()
        """When the loop last turned, for the watchdog."""

    def wake(self) -> None:
        """Look again: something has changed."""
        self._changed.set()

    def leave(self) -> None:
        """Hand over if that is possible, stop PostgreSQL, and end `run`."""
        self._leaving = True
        self.wake()

    def reload(self) -> None:
        """Have PostgreSQL read the operator's files again, and ours made anew from the settings as they are now."""
        self._server.stale.set()
        self.wake()

    def report(self) -> Report:
        """What the sitter has to say of itself now."""
        return report(
            Sources(
                self._settings,
                self._view,
                self._decision,
                self._watch,
                self._transitions,
                self._comparer,
                self._upkeep,
                self._at_rest,
                self._coordination,
                self._lookout,
                self._fenced,
                self._evictions,
            )
        )

    async def open(self) -> None:
        """Make the data reachable, before anybody looks whether there are any. Raises StorageError."""
        await self._transitions.replacement.open()

    async def run(self) -> None:
        """Until `leave` has been carried out. PostgreSQL is dead when this returns or raises."""
        if self._memory.memory.seal is not None:
            self._coordination.assume_open()
        try:
            await self._coordination.start()
            async with asyncio.TaskGroup() as tasks:
                parts = (
                    *(self._transitions, self._comparer, self._watch, self._upkeep, self._at_rest),
                    self._lookout,
                )
                beside = [tasks.create_task(part.run()) for part in parts]
                while not await self._turn():
                    pass
                for task in beside:
                    task.cancel()
        finally:
            await self._server.stop("immediate")
            with contextlib.suppress(CoordinationError):
                await self._coordination.close()

    # --- One turn -----------------------------------------------------------------------------------------------

    async def _turn(self) -> bool:
        """Look, decide, act, wait; returns whether we have left."""
        self._changed.clear()
        self.turned_at = time.monotonic()
        await self._watch.look()
        resigned_for = None if self._resigned_at is None else time.monotonic() - self._resigned_at
        try:
            view = await self._observer.view(
                self._memory.memory,
                leaving=self._leaving,
                resigned_for=resigned_for,
                returned_for=time.monotonic() - self._returned_at,
            )
        except CoordinationError as error:
            self._log.debug("ZooKeeper cannot be asked", error=str(error))
            view = None
        look_again: float | None = None
        longest = TURN
        if view is None:
            self._go_on_unheard()
        else:
            self._fenced = False
            decision = decide(view)
            self._note(decision)
            self._view, self._decision = view, decision
            look_again, longest = decision.look_again, IDLE if _all_is_well(view, decision) else TURN
            if (away := self._stays_away(decision)) > 0:
                look_again = away
            else:
                await self._carry_out(view, decision)
        if self._leaving and not self._server.running and (view is None or self._resigned_at is not None):
            return True
        if self._leaving and view is None:
            return True  # nobody can be told, and nobody could take over: run() ends PostgreSQL
        await self._wait(look_again, longest)
        return False

    def _stays_away(self, decision: Decision) -> float:
        """For how many more seconds what is decided is left undone."""
        if self._resigned_at is None or self._leaving or decision.role is not Role.DEPOSED:
            return 0.0
        return self._resigned_at + BACK_AFTER - time.monotonic()

    def _go_on_unheard(self) -> None:
        """PostgreSQL goes on as it was told last, but for a primary that is cut off from its sync, too."""
        if self._watch.unidentified != self._unidentified:
            self._unidentified = self._watch.unidentified
            if self._unidentified:
                self._log.warning("the database here is not identified", reason=self._unidentified)
        wanted = self._transitions.wanted
        if self._view is None or not isinstance(wanted, Primary):
            return
        fenced = cut_off(
            self._view,
            self._watch.facts,
            disconnected_for=self._coordination.disconnected_for,
            session_timeout=self._settings.zookeeper.session_timeout,
        )
        if fenced != self._fenced:
            self._log.error("fencing: neither ZooKeeper nor the sync is there" if fenced else "no longer fenced")
        self._fenced = fenced
        self._transitions.want(replace(wanted, fenced=fenced))

    async def _wait(self, look_again: float | None, longest: float) -> None:
        """Until something changes, or it is time to look again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_pause(look_again, longest, waited=time.monotonic() - self._decided_at)):
                await self._changed.wait()

    def _note(self, decision: Decision) -> None:
        """Log what is decided, when it is news."""
        before = self._decision
        if before is None or (before.reason, before.role) != (decision.reason, decision.role):
            self._decided_at = time.monotonic()
            self._log.info(
                decision.reason,
                role=decision.role,
                generation=decision.memory.generation,
                waiting_for=decision.waiting_for,
            )

    async def _carry_out(self, view: View, decision: Decision) -> None:
        """In the order of Decision's contract: the memory first."""
        try:
            if self._memory.remember(decision.memory):
                self._log.info("remembered", **_words(decision))
        except OSError as error:
            self._log.error("nothing is done: what must be remembered first cannot be written", error=str(error))
            if isinstance(decision.database, Stopped):  # which relies on no memory: nobody may write here any more
                self._transitions.want(decision.database)
            elif self._transitions.open and not isinstance(decision.database, Primary | Keep):
                self._transitions.want(Stopped())
            return
        self._transitions.system_identifier = view.cluster.system_identifier if view.cluster else None
        if not isinstance(decision.database, Restore | Rewind) or self._admitted:
            if isinstance(decision.database, Initialize | Restore | Rewind):
                self._comparer.forget()
            self._transitions.want(decision.database)
        self._at_rest.tell(view.database.identifier if self._rests else None)
        if decision.ready:
            self._transitions.ready.set()
        self._comparer.want(decision.compare)
        self._lookout.want(decision.neighbour)
        self._upkeep.tell(dict(_needed(view)), frozenset(_unproven(view)))
        try:
            if decision.resign:
                await self._resign()
            elif view.me.id not in view.present:
                await self._join()
                return  # what was decided is void: who was evicted looks again before it does anything else
            if decision.evict:
                await self._evict(view, decision.evict)
            if not decision.resign:
                await self._publish(view, decision)
            if decision.cluster:
                await self._coordination.complete_cluster(decision.cluster)
            if decision.write:
                await self._write(decision)
        except CoordinationError as error:
            self._log.warning("ZooKeeper: not done", error=str(error), kind=type(error).__name__)

    @property
    def _admitted(self) -> bool:
        """The others have been told that our data prove nothing: only then may they be replaced."""
        return self._published is not None and self._published[0].restoring and self._published[0].proof == 0

    @property
    def _rests(self) -> bool:
        """PostgreSQL is stopped, and is to stay so."""
        wanted = self._transitions.wanted
        return isinstance(wanted, Stopped | Keep) and self._transitions.idle and not self._server.running

    async def _write(self, decision: Decision) -> None:
        assert decision.write is not None
        write, begun = decision.write, time.monotonic()
        try:
            await self._coordination.write_state(write.state, version=write.version, cluster=write.cluster)
        except Conflict as error:
            self._log.info("the cluster state had changed already", error=str(error))
        else:
            self._log.info(
                "wrote the cluster state",
                generation=write.state.generation,
                primary=write.state.primary.label,
                sync=write.state.sync.label if write.state.sync else None,
                reason=write.reason,
                seconds=round(time.monotonic() - begun, 3),
            )
        self.wake()

    async def _resign(self) -> None:
        """Leave the active list, once PostgreSQL is dead."""
        if not self._server.running and self._transitions.idle:
            await self._coordination.resign()
            if self._resigned_at is None:
                self._resigned_at = time.monotonic()
                self.wake()

    async def _join(self) -> None:
        await self._coordination.join(self._me)
        if self._resigned_at is not None:
            self._returned_at = time.monotonic()
        self._resigned_at, self._published = None, None
        self._transitions.failures.forgive()  # who comes back has as long as before to come up
        self.wake()

    async def _evict(self, view: View, node: str) -> None:
        """The rest is for the ordinary rules, once ZooKeeper has told us that the node is gone."""
        begun = time.monotonic()
        try:
            await self._coordination.evict(node)
        except OutcomeUnknown:
            self._observer.evicted(node)
            raise
        self._observer.evicted(node)
        self._evictions += 1
        self._log.warning(
            "evicted a dead peer: its election node was removed",
            node=node,
            detail=view.death and view.death.detail,
            seconds=round(time.monotonic() - begun, 3),
        )

    async def _publish(self, view: View, decision: Decision) -> None:
        """Say of ourselves what the others need to know; a position alone is news only now and then."""
        facts, at_rest, now = self._watch.facts, self._at_rest.end, time.monotonic()
        status = PeerStatus(
            initialized=view.database.initialized,
            system_identifier=view.database.identifier,
            serving=decision.serving,
            ready=decision.ready,
            compares=decision.compares,
            restoring=isinstance(decision.database, Restore | Rewind),
            torn=view.database.torn,
            running=self._server.running,
            status_port=self._settings.status_port,
            diverged=decision.diverged,
            generation=decision.memory.generation,
            proof=decision.memory.proof,
            timeline=facts.timeline if facts else at_rest.timeline if at_rest else None,
            lsn=view.database.end or view.database.at_rest,
            redo=facts.redo if facts else None,
            version=__version__,
        )
        if self._published is not None:
            said, at = self._published
            if now - at < STATUS_INTERVAL and said.model_copy(update={"lsn": status.lsn}) == status:
                return
        if self._published is None or self._published[0] != status:
            await self._coordination.publish(status)
            self._published = status, now
            if isinstance(decision.database, Restore | Rewind):
                self.wake()


def _pause(look_again: float | None, longest: float, *, waited: float) -> float:
    """Seconds until the next look, of a decision that may ask for it and has been the same for so long."""
    return longest if look_again is None else min(longest, max(look_again, PATIENCE * waited))


def _all_is_well(view: View, decision: Decision) -> bool:
    return decision.ready and decision.waiting_for is None and not any(one.unready_for for one in view.active)


def _needed(view: View) -> Iterator[tuple[str, Lsn]]:
    """From where on each peer that is present needs WAL: of one that is being restored, whatever there is."""
    for one in view.active:
        if one.status and (one.status.redo or one.status.restoring):
            yield one.peer.id, one.status.redo or Lsn(0)


def _unproven(view: View) -> Iterator[tuple[str, int]]:
    """Who serves, but without proof of the present generation, and which that is."""
    for one in view.active:
        if view.state and one.status and one.status.serving and one.status.proof < view.state.generation:
            yield one.peer.id, view.state.generation


def _words(decision: Decision) -> dict[str, object]:
    memory = decision.memory
    seal = f"{memory.seal.position} of generation {memory.seal.generation}" if memory.seal else None
    return {"generation": memory.generation, "proof": memory.proof, "seal": seal}
