"""Puts together what a peer knows at one moment: ZooKeeper, the database, the memory, and since when it has been so."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping

from manatee.cluster import ClusterState, Peer, application_name
from manatee.config import Settings
from manatee.coordination import Active, Coordination
from sitter.comparer import Comparer
from sitter.neighbour import Lookout
from sitter.postgres import rewind
from sitter.postgres.at_rest import AtRest
from sitter.postgres.queries import Facts
from sitter.postgres.watch import Watch
from sitter.shard import Shard
from sitter.transitions import Transitions
from sitter.view import Database, Limits, Link, Memory, Present, Rejoin, View

FLICKER = 1.0
"""Seconds without streaming that do not count: a receiver starts anew when its upstream changes, or its timeline."""

SILENCE = 6.0
"""Seconds without a message after which a receiver that says it streams does not: one that works asks for a sign of
life after 4 (half of `wal_receiver_timeout`) and is answered at once."""


class Observer:
    """Makes views. All it remembers is since when things have been so, by our own monotonic clock."""

    def __init__(
        self,
        settings: Settings,
        coordination: Coordination,
        watch: Watch,
        transitions: Transitions,
        comparer: Comparer,
        at_rest: AtRest,
        lookout: Lookout,
    ) -> None:
        self._settings = settings
        self._me = settings.identity
        self._coordination = coordination
        self._watch = watch
        self._transitions = transitions
        self._comparer = comparer
        self._at_rest = at_rest
        self._lookout = lookout
        self._evicted: dict[str, tuple[int, float]] = {}
        """By peer: the session of the last node of it that we removed, and when."""
        self._unready: Mapping[str, float] = {}
        self._seen: Mapping[str, Active] = {}
        self._streamed_at = -math.inf
        self._ahead: frozenset[str] = frozenset()
        self._sealed_under: int | None = None
        self._writable_since: float | None = None
        self._unreached_since: float | None = None
        self._confirmed: Link | None = None

    @property
    def _limits(self) -> Limits:
        given = self._settings.postgres
        return Limits(given.sync_grace, given.seal_timeout, given.crash_restart_timeout, given.handover_timeout)

    async def view(
        self, memory: Memory, *, leaving: bool, resigned_for: float | None, returned_for: float
    ) -> View | None:
        """Everything known now; None while it is not known which database is here, or whether there is one.

        Raises CoordinationError while ZooKeeper cannot be asked.
        """
        if self._watch.unidentified is not None:
            return None
        if self._coordination.write_open:
            await self._coordination.settle()
        seen = await self._coordination.read()
        # Our id under another session's node is what a former process left: it says nothing of us.
        active = [one for one in seen.active if one.peer.id != self._me.id or one.node == seen.joined]
        state = seen.state
        named = (*state.assigned, *state.deposed) if state else ()
        known = {peer.id: peer for peer in (*(one.peer for one in active), *named)}
        view = View(
            me=self._me,
            now=time.time(),
            active=tuple(self._present(one) for one in active),
            state=state,
            state_problem=seen.state_problem or (seen.cluster_problem and f"cluster: {seen.cluster_problem}"),
            version=seen.version,
            cluster=seen.cluster,
            has_history=seen.has_history,
            database=self._database(known.values(), active, gave_up=self._gave_up(memory, state)),
            memory=memory,
            write_open=self._coordination.write_open,
            singleton=self._settings.shard.singleton,
            leaving=leaving,
            resigned_for=resigned_for,
            returned_for=returned_for,
            limits=self._limits,
            rejoin=Rejoin(self._settings.postgres.rejoin),
            death=self._lookout.death,
            evict_dead=self._settings.sitter.evict_dead,
        )
        self._seen = {one.node: one for one in active}
        return self._timed(view, active)

    def evicted(self, node: str) -> None:
        """This election node was removed, or may have been."""
        if one := self._seen.get(node):
            self._evicted[one.peer.id] = one.session, time.monotonic()

    def _present(self, one: Active) -> Present:
        """Whoever comes back in the session that its removed node was of has lived; a new process has a new one."""
        session, at = self._evicted.get(one.peer.id, (None, -math.inf))
        lived = time.monotonic() - at if session == one.session else math.inf
        return Present(one.peer, one.status, one.promises_status, node=one.node, evicted_for=lived)

    def _timed(self, view: View, active: list[Active]) -> View:
        """The same with the time that each present peer has been unready, and this one unreached."""
        if view.state is None:
            return view
        shard, now = Shard(view, view.state), time.monotonic()
        self._unready = {one.node: self._unready.get(one.node, now) for one in active if not shard.ready(one.peer)}
        since = {one.peer.id: now - self._unready[one.node] for one in active if one.node in self._unready}
        return view.timed(since, unreached_for=self._unreached_for(shard, now))

    def _unreached_for(self, shard: Shard, now: float) -> float:
        if not shard.unreached:
            self._unreached_since = None
        elif self._unreached_since is None and shard.view.database.writable_for > 0:
            self._unreached_since = now
        return 0.0 if self._unreached_since is None else now - self._unreached_since

    # --- The database -------------------------------------------------------------------------------------------

    def _gave_up(self, memory: Memory, state: ClusterState | None) -> bool:
        """The last seal has come to nothing: the generation is still the one that it was made under."""
        if memory.seal is not None:
            self._sealed_under = memory.seal.generation
        return state is not None and state.generation == self._sealed_under

    def _database(self, known: Iterable[Peer], active: list[Active], *, gave_up: bool) -> Database:
        watch, transitions = self._watch, self._transitions
        facts = watch.facts if watch.healthy else None
        names = {application_name(peer): peer.id for peer in known}
        return Database(
            initialized=watch.initialized,
            identifier=watch.identifier,
            version=str(watch.version) if watch.version else None,
            running=transitions.running,
            online=facts is not None,
            writable_for=self._writable_for(facts),
            end=facts.flush if facts else None,
            at_rest=self._at_rest.end.lsn if self._at_rest.end else None,
            sealed=transitions.sealed,
            sealed_for=_since(transitions.sealed_since, never=0.0),
            unsealed_for=_since(transitions.unsealed_since if gave_up else None, never=math.inf),
            upstream=transitions.upstream.id if transitions.upstream else None,
            streaming=self._streaming(facts, transitions.upstream),
            connected=_connected(facts, names, transitions.upstream),
            attached={
                names[row.application_name]: row.flush
                for row in (facts.downstreams if facts else ())
                if row.application_name in names and row.state == "streaming" and row.flush is not None
            },
            ahead=self._found_ahead(facts, names, active),
            link=self._confirmed_link(active),
            incomparable=self._comparer.incomparable,
            failing_for=None if transitions.failures.since is None else _since(transitions.failures.since, never=0.0),
            handing_over=transitions.handing_over,
            replacing=transitions.replacement.under_way,
            rewind_begun=rewind.torn(self._settings),
            torn=transitions.replacement.torn,
            unrewindable=transitions.replacement.unrewindable,
        )

    def _confirmed_link(self, active: list[Active]) -> Link | None:
        """The newest comparison, if the upstream has said after it, too, that its data have the proof they had before.

        Whoever replaces its data says first that they prove nothing; so what was compared was not replaced meanwhile.
        """
        link = self._comparer.link
        if link is None or link is self._confirmed:
            return link
        upstream = next((one for one in active if one.peer.id == link.upstream), None)
        if upstream and (not upstream.promises_status or (upstream.status and upstream.status.proof >= link.proof)):
            self._confirmed = link
        return self._confirmed if self._confirmed is link else None

    def _found_ahead(self, facts: Facts | None, names: Mapping[str, str], active: list[Active]) -> frozenset[str]:
        """Who has once had more than this primary is no downstream either when this one has written as much: the log
        there is overwritten then, but the data are not. They have to be replaced; or ours are, and we follow.
        """
        if facts is not None:
            more = {names.get(row.application_name, "") for row in facts.downstreams if row.ahead}
            self._ahead = frozenset() if facts.in_recovery else self._ahead | more
        self._ahead -= {one.peer.id for one in active if one.status and one.status.proof == 0}
        return self._ahead

    def _streaming(self, facts: Facts | None, upstream: Peer | None) -> bool:
        """It streams from its upstream, or did from this or another until a moment ago.

        One that dies again and again, of a full disk for one, streams for a moment every time: nobody may rely on it.
        """
        if facts is None or upstream is None or self._transitions.failures.flapping:
            return False
        now, receiver = time.monotonic(), facts.receiver
        heard = receiver and receiver.status == "streaming" and (receiver.silent or 0.0) < SILENCE
        words = receiver.conninfo.split() if receiver else ()
        if heard and {f"host={upstream.ip}", f"port={upstream.postgres_port}"} <= set(words):
            self._streamed_at = now
        return now - self._streamed_at < FLICKER

    def _writable_for(self, facts: Facts | None) -> float:
        if facts is None or facts.in_recovery:
            self._writable_since = None
        elif self._writable_since is None:
            self._writable_since = time.monotonic()
        return _since(self._writable_since, never=0.0)


def _connected(facts: Facts | None, names: Mapping[str, str], upstream: Peer | None) -> frozenset[str]:
    """Who replication goes on with, by what PostgreSQL says now: a receiver that has lost its connection is gone."""
    if facts is None:
        return frozenset()
    downstreams = {names[row.application_name] for row in facts.downstreams if row.application_name in names}
    return frozenset(downstreams | ({upstream.id} if upstream and facts.receiver else set()))


def _since(moment: float | None, *, never: float) -> float:
    return never if moment is None else time.monotonic() - moment
