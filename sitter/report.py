"""What a sitter tells the world about itself, put together from its parts when somebody asks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from manatee import __version__
from manatee.cluster import Role, application_name, written_time
from manatee.config import Settings
from manatee.coordination import Coordination
from manatee.lsn import Lsn
from sitter.comparer import Comparer
from sitter.failures import Failure
from sitter.neighbour import Lookout
from sitter.postgres.at_rest import AtRest
from sitter.postgres.queries import Facts
from sitter.postgres.upkeep import Upkeep
from sitter.postgres.watch import Watch
from sitter.transitions import Transitions
from sitter.view import Decision, Primary, Restore, Rewind, Stopped, View


@dataclass(frozen=True)
class Sources:
    """Where the report comes from."""

    settings: Settings
    view: View | None
    decision: Decision | None
    watch: Watch
    transitions: Transitions
    comparer: Comparer
    upkeep: Upkeep
    at_rest: AtRest
    coordination: Coordination
    lookout: Lookout
    fenced: bool
    evictions: int


@dataclass(frozen=True)
class Report:
    """The sitter at one moment, for the status server."""

    role: Role | None = None
    generation: int = 0
    healthy: bool = False
    """PostgreSQL answered the last health check."""
    writable: bool = False
    """It is the primary, its sync confirms, and it lets clients write."""
    serving: bool = False
    ready: bool = False
    session: bool = False
    """ZooKeeper is connected."""
    lag_bytes: int | None = None
    """Of a standby: how much WAL its upstream has that is not replayed here."""
    lag_seconds: float | None = None
    """Of a standby: the age of the last commit replayed, 0 when nothing is waiting."""
    downstream_lag_bytes: Mapping[str, int] = field(default_factory=dict)
    """Per peer that streams from here, by label: how much WAL it has not flushed yet."""
    restarts: int = 0
    """How often PostgreSQL was restarted after it had died."""
    evictions: int = 0
    """How many peers were seen dead and removed from the active list by this one."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How PostgreSQL's settings stand to what it was told, and the slots that it keeps (`Upkeep.document`)."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """By cause: how often it has died, or could not be started."""
    failing: str | None = None
    """The cause of the trouble that it is in, or was in until a moment ago."""
    restore: Mapping[str, Any] | None = None
    """The running or last restore."""
    document: Mapping[str, Any] = field(default_factory=dict)
    """All of it, as `/state` shows it."""


def report(sources: Sources) -> Report:
    """The report of this moment."""
    view, decision, facts = sources.view, sources.decision, sources.watch.facts
    # Not by the decision: a sitter that refuses what ZooKeeper holds leaves a primary as it is.
    primary = isinstance(sources.transitions.wanted, Primary)
    healthy = sources.watch.healthy
    restore, failure = sources.transitions.restore, sources.transitions.failures.lasting
    now = Report(
        role=decision.role if decision else None,
        generation=decision.memory.generation if decision else 0,
        healthy=healthy,
        writable=bool(healthy and primary and sources.transitions.open and facts and not sources.fenced),
        serving=bool(decision and decision.serving),
        ready=bool(decision and decision.ready),
        session=sources.coordination.connected,
        lag_bytes=_lag_bytes(facts),
        lag_seconds=_lag_seconds(facts),
        downstream_lag_bytes=_downstream(view, sources.watch),
        restarts=sources.transitions.restarts,
        evictions=sources.evictions,
        settings=sources.upkeep.document(),
        failures=dict(sources.transitions.failures.counts),
        failing=failure.cause if failure else None,
        restore=restore.document() if restore else None,
    )
    return replace(now, document=_document(now, sources))


def _downstream(view: View | None, watch: Watch) -> dict[str, int]:
    facts = watch.facts
    if view is None or view.state is None or facts is None:
        return {}
    labels = {application_name(peer): peer.label for peer in view.state.assigned}
    return {
        labels[row.application_name]: max(0, facts.flush - row.flush)
        for row in facts.downstreams
        if row.flush is not None and row.application_name in labels
    }


def _lag_bytes(facts: Facts | None) -> int | None:
    if facts is None or not facts.in_recovery or facts.replay is None:
        return None
    reported = facts.receiver.latest_end if facts.receiver else None
    return max(0, max(facts.flush, reported or facts.flush) - facts.replay)


def _lag_seconds(facts: Facts | None) -> float | None:
    behind = _lag_bytes(facts)
    if facts is None or behind is None:
        return None
    if behind == 0 or facts.last_replayed is None:
        return 0.0
    return max(0.0, time.time() - facts.last_replayed.timestamp())


def _document(now: Report, sources: Sources) -> dict[str, Any]:
    """`/state`: for people at three in the morning, so it begins with what is wanted and why."""
    view, decision, transitions = sources.view, sources.decision, sources.transitions
    settings, coordination = sources.settings, sources.coordination
    unheard = _unheard(sources)
    return {
        "peer": settings.identity.document(),
        "shard": settings.shard.root,
        "role": now.role,
        "generation": now.generation,
        "reason": unheard[0] if unheard else decision.reason if decision else "starting",
        "waitingFor": unheard[1] if unheard else decision.waiting_for if decision else None,
        "serving": now.serving,
        "ready": now.ready,
        "fenced": sources.fenced,
        "postgres": {
            "healthy": now.healthy,
            "writable": now.writable,
            "wanted": _wanted(decision),
            "doing": transitions.doing,
            "problem": transitions.problem or sources.watch.problem or _not_streaming(sources),
            "restarts": transitions.restarts,
            "failure": _failure(transitions.failures.lasting),
            "failures": dict(now.failures),
            "identifier": view.database.identifier if view else None,
            "replacing": _replacing(sources),
            "torn": transitions.replacement.torn,
            "end": _written(sources.watch.facts.flush if sources.watch.facts else None),
            "timeline": sources.watch.facts.timeline if sources.watch.facts else None,
            "atRest": _at_rest(sources.at_rest),
            "upstream": transitions.upstream.id if transitions.upstream else None,
            "streaming": bool(view and view.database.streaming),
            "sealed": _written(transitions.sealed),
            "downstreamLagBytes": dict(now.downstream_lag_bytes),
            "lagBytes": now.lag_bytes,
            "lagSeconds": now.lag_seconds,
        },
        "settings": now.settings,
        "comparison": _comparison(sources.comparer),
        "memory": _memory(decision),
        "zookeeper": {
            "servers": settings.zookeeper.servers,
            "connected": now.session,
            "disconnectedFor": round(coordination.disconnected_for, 3),
            "writeOpen": coordination.write_open,
        },
        "state": view.state.document() if view and view.state else None,
        "stateProblem": view.state_problem if view else None,
        "active": [one.peer.id for one in view.active] if view else [],
        "neighbour": _neighbour(sources.lookout),
        "evictions": now.evictions,
        "restore": now.restore,
        "storage": {"driver": settings.storage.driver, **transitions.storage.detail},
        "version": __version__,
        "time": written_time(time.time()),
    }


def _unheard(sources: Sources) -> tuple[str, str] | None:
    """Why nothing is decided now, and what would change that; None if all is heard."""
    went = f"; PostgreSQL goes on as it was told last: {sources.decision.reason}" if sources.decision else ""
    if sources.watch.unidentified:
        return f"the database here is not identified: {sources.watch.unidentified}{went}", "pg_controldata"
    if not sources.coordination.connected:
        since = f"has not been reached for {sources.coordination.disconnected_for:.0f} s"
        return f"ZooKeeper {since}{went}", f"ZooKeeper at {sources.settings.zookeeper.servers}"
    return None


def _not_streaming(sources: Sources) -> str | None:
    """What a standby that should stream and does not has said last: its log alone knows why."""
    upstream, view = sources.transitions.upstream, sources.view
    if upstream is None or view is None or view.database.streaming or not sources.watch.healthy:
        return None
    return f"not streaming from {upstream.label}: {sources.transitions.last_words}"


def _failure(failure: Failure | None) -> dict[str, Any] | None:
    """Why PostgreSQL is down, or was until a moment ago."""
    if failure is None:
        return None
    return {"cause": failure.cause, "detail": failure.detail, "time": written_time(failure.at)}


def _written(position: Lsn | None) -> str | None:
    return None if position is None else str(position)


def _at_rest(found: AtRest) -> dict[str, Any] | None:
    """What is on disk while PostgreSQL is stopped."""
    if found.end is None:
        return {"problem": found.problem} if found.problem else None
    return {"end": str(found.end.lsn), "timeline": found.end.timeline}


def _wanted(decision: Decision | None) -> str | None:
    if decision is None:
        return None
    wanted = decision.database
    word = type(wanted).__name__.lower()
    if isinstance(wanted, Stopped):
        return f"{word}, cleanly" if wanted.clean else word
    return f"{word}, sealed" if getattr(wanted, "sealed", False) else word


def _replacing(sources: Sources) -> bool:
    """The data may be others at any moment: not while there is nobody to restore from."""
    wishes = (sources.decision and sources.decision.database, sources.transitions.replacement.under_way)
    return any(isinstance(one, Rewind) or (isinstance(one, Restore) and bool(one.sources)) for one in wishes)


def _comparison(comparer: Comparer) -> dict[str, Any] | None:
    link = comparer.link
    if link is None:
        return {"problem": comparer.problem} if comparer.problem else None
    return {**asdict(link), "mark": str(link.mark), "problem": comparer.problem}


def _neighbour(lookout: Lookout) -> dict[str, Any] | None:
    """Whose death would be noticed at once."""
    one, death = lookout.neighbour, lookout.death
    if one is None:
        return None
    return {"peer": one.label, "connected": lookout.connected, "seenDead": death.detail if death else None}


def _memory(decision: Decision | None) -> dict[str, Any] | None:
    if decision is None:
        return None
    memory = decision.memory
    seal = {"generation": memory.seal.generation, "position": str(memory.seal.position)} if memory.seal else None
    return {"identifier": memory.identifier, "generation": memory.generation, "proof": memory.proof, "seal": seal}
