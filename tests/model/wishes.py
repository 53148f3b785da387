"""Asks the real `decide()` what a peer of the model's world wants: the small world in the core's words and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

from manatee.cluster import Cluster, ClusterState, Comparison, Peer, PeerStatus, written_time
from manatee.lsn import Lsn
from sitter.decide import decide
from sitter.shard import Shard
from sitter.view import Database, Death, Decision, Link, Memory, Parting, Present, Rejoin, Seal, View
from tests.model.parts import NAMES, Remembered, Said, State, Violation, World, broken
from tests.model.wal import streams

NOW = 1_700_000_000.0
FAR = written_time(NOW + 3600)
IDENTIFIER = "7000000000000000001"

_decide: Callable[[View], Decision] = decide


@cache
def peer(index: int) -> Peer:
    ip = f"10.0.0.{index + 1}"
    return Peer.of(
        {
            "id": f"{ip}:5432:12345",
            "ip": ip,
            "zoneId": NAMES[index],
            "pgUrl": f"tcp://postgres@{ip}:5432/postgres",
            "backupUrl": f"http://{ip}:12345",
        }
    )


INDEX = {peer(index).id: index for index in range(len(NAMES))}


@cache
def wide(state: State) -> ClusterState:
    """The cluster state as the core reads it."""
    document: dict[str, Any] = {
        "generation": state.generation,
        "primary": peer(state.primary).document(),
        "sync": None if state.sync is None else peer(state.sync).document(),
        "async": [peer(one).document() for one in state.asyncs],
        "deposed": [peer(one).document() for one in state.deposed],
        "initWal": str(Lsn(state.init_wal)),
    }
    if state.frozen:
        document["freeze"] = True
    if state.alone:
        document["oneNodeWriteMode"] = True
    if state.forced:
        taken = {"taken": FAR} if state.forced == "taken" else {}
        document["override"] = {"id": peer(state.primary).id, "generation": state.generation, **taken}
    if state.promote:
        whom, role, index, generation = state.promote
        document["promote"] = {"id": peer(whom).id, "role": role, "generation": generation, "expireTime": FAR}
        if index is not None:
            document["promote"]["asyncIndex"] = index
    return ClusterState.of(document)


def narrow(state: ClusterState) -> State:
    asked = state.promote
    return State(
        state.generation,
        INDEX[state.primary.id],
        None if state.sync is None else INDEX[state.sync.id],
        tuple(INDEX[one.id] for one in state.asyncs),
        tuple(INDEX[one.id] for one in state.deposed),
        int(state.init_wal),
        state.frozen,
        None if asked is None else (INDEX[asked.id], asked.role, asked.async_index, asked.generation),
        state.one_node_write_mode,
        ("due" if state.override_due else "taken") if state.forced else None,
    )


@cache
def _present(index: int, said: Said | None, late: bool, evicted: bool) -> Present:
    unready_for = math.inf if late and not (said and said.ready) else 0.0
    evicted_for = 0.0 if evicted else math.inf
    if said is None:
        return Present(peer(index), None, unready_for=unready_for, node=NAMES[index], evicted_for=evicted_for)
    status = PeerStatus.of(
        {
            "initialized": said.initialized,
            "serving": said.serving,
            "ready": said.ready,
            "compares": said.compares,
            "generation": said.generation,
            "proof": said.proof,
            "running": said.running,
        }
    )
    return Present(peer(index), status, unready_for=unready_for, node=NAMES[index], evicted_for=evicted_for)


@cache
def _cluster(cluster: tuple[int, bool] | None) -> Cluster | None:
    if cluster is None:
        return None
    by, completed = cluster
    return Cluster(created=FAR, by=peer(by).id, system_identifier=IDENTIFIER if completed else None)


class Wish(NamedTuple):
    """A decision in small."""

    decision: Decision
    memory: Remembered
    said: Said
    write: State | None
    founds: bool


_wishes: dict[Any, Wish] = {}


def wish(world: World, me: int, late: bool, dead: int | None = None) -> Wish:
    """What this peer wants now. Decisions are pure, so each is made once.

    `late` is a clock by which every timeout has passed; without it none has. Both always happen. `dead` is whom it has
    seen dead, rightly or not.
    """
    one = world.peers[me]
    pg, lag = one.pg, one.lag
    state, cluster, active = (lag.state, lag.cluster, lag.active) if lag else (world.state, world.cluster, world.active)
    torn = "sealed at the received position" in broken  # a half record, that everyone received and nobody can replay
    attached = tuple(
        (other, len(theirs.wal or ()) + torn)
        for other, theirs in enumerate(world.peers)
        if pg and theirs.pg and theirs.pg.upstream == me and streams(world, other)
    )
    key = (
        me,
        late,
        state,
        cluster,
        active,
        None if one.wal is None else len(one.wal),
        pg and (pg.primary, pg.sealed, pg.upstream),
        one.handing_over,
        bool(pg and not pg.primary and streams(world, me)),
        attached,
        one.memory,
        one.link,
        one.open,
        one.resigned,
        one.failed,
        one.singleton,
        one.leaving,
        one.rejoin,
        one.torn,
        one.vain,
        dead,
        one.evicted,
        one.ahead,
        connected(world, me),
    )
    found = _wishes.get(key)
    if found is None:
        found = _wishes[key] = _ask(world, me, late, dead, state, cluster, active, dict(attached))
    return found


def connected(world: World, me: int) -> frozenset[int]:
    """Whom replication goes on with."""
    pg = world.peers[me].pg
    if pg is None:
        return frozenset()
    below = {other for other, one in enumerate(world.peers) if one.pg and one.pg.upstream == me}
    above = {pg.upstream} if pg.upstream is not None and streams(world, me) else set()
    return frozenset({other for other in below if streams(world, other)} | above)


def use(core: Callable[[View], Decision]) -> None:
    """From now on this core decides."""
    global _decide  # noqa: PLW0603 - every world of a process is driven by one core
    _decide = core
    _wishes.clear()


def _ask(
    world: World,
    me: int,
    late: bool,
    dead: int | None,
    state: State | None,
    cluster: tuple[int, bool] | None,
    active: tuple[tuple[int, Said | None], ...],
    attached: dict[int, int],
) -> Wish:
    one = world.peers[me]
    pg, memory = one.pg, one.memory
    passed = math.inf if late else 0.0
    seal = memory.seal
    link = one.link
    parting = Parting.TIMELINES if link and link[3] == Comparison.DIVERGED else None
    database = Database(
        initialized=one.wal is not None,
        identifier=IDENTIFIER if one.wal is not None else None,
        version="15",
        running=pg is not None,
        online=pg is not None,
        writable_for=math.inf if pg and pg.primary else 0.0,
        end=Lsn(len(one.wal)) if pg and one.wal is not None else None,
        sealed=Lsn(pg.sealed) if pg and pg.sealed is not None else None,
        sealed_for=passed,
        upstream=peer(pg.upstream).id if pg and pg.upstream is not None else None,
        streaming=bool(pg and not pg.primary and streams(world, me)),
        connected=frozenset(peer(other).id for other in connected(world, me)),
        attached={peer(other).id: Lsn(end) for other, end in attached.items()},
        ahead=frozenset(peer(other).id for other in one.ahead),
        link=Link(peer(link[0]).id, link[1], link[2], Comparison(link[3]), Lsn(link[4]), "", parting) if link else None,
        failing_for=passed if one.failed and pg is None else None,
        handing_over=one.handing_over,
        torn=one.torn and "a torn database bears no mark" not in broken,
        unrewindable="it was tried" if one.vain else None,
    )
    view = View(
        me=peer(me),
        now=NOW,
        active=tuple(_present(index, said, late, index in one.evicted) for index, said in active),
        state=wide(state) if state else None,
        version=1 if state else None,
        cluster=_cluster(cluster),
        has_history=bool(world.begins),
        database=database,
        memory=Memory(
            IDENTIFIER if memory.identified else None,
            memory.generation,
            memory.proof,
            Seal(seal[0], Lsn(seal[1])) if seal else None,
        ),
        write_open=one.open,
        resigned_for=passed if one.resigned else None,
        singleton=one.singleton,
        leaving=one.leaving,
        rejoin=Rejoin(one.rejoin),
        death=Death(NAMES[dead], state.generation, "") if dead is not None and state else None,
    )
    if late and view.state and Shard(view, view.state).unreached:
        view = replace(view, unreached_for=passed)
    try:
        decision = _decide(view)
    except Exception as error:
        raise Violation(f"the core of {NAMES[me]} fails: {error}") from error
    then = decision.memory
    remembered = Remembered(
        then.identifier is not None,
        then.generation,
        then.proof,
        (then.seal.generation, int(then.seal.position)) if then.seal else None,
    )
    said = Said(
        one.wal is not None,
        decision.serving,
        decision.ready,
        decision.compares and str(decision.compares),
        then.generation,
        then.proof,
        pg is not None,
    )
    write = decision.write
    return Wish(decision, remembered, said, narrow(write.state) if write else None, bool(write and write.cluster))
