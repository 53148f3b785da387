"""The driver in small: each part of a decision is a step of its own, taken on a view that may be old.

What the core relies on is marked "Driver:"; `broken` names the ways in which a driver may be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from manatee.cluster import Comparison
from sitter.view import Compare, Decision, Initialize, Keep, Primary, Restore, Rewind, Standby, Stopped
from tests.model.parts import ALONE, NAMES, NOBODY, One, Pg, Step, Violation, World, broken, spend, with_peer, with_pg
from tests.model.promises import known_newer, land
from tests.model.wal import ahead, append, hear_of
from tests.model.wishes import INDEX, Wish, connected, wish


def settle(world: World) -> World:
    """Every sitter that can remembers and says what follows from what it sees; `cluster` is completed."""
    for _ in range(20):
        before = world
        for me, one in enumerate(world.peers):
            if not one.up:
                continue
            if one.ahead != (found := _ahead(world, me)):
                world = with_peer(world, me, ahead=found)
            now = wish(world, me, late=False)
            if now.memory != one.memory:
                world = with_peer(world, me, memory=now.memory)
            world = _publish(world, me, now)
        if world == before:
            return world
    raise AssertionError("memory and status do not settle")


def _ahead(world: World, me: int) -> tuple[int, ...]:
    """Driver: who was once found to have more than our primary stays so, until nothing is proven of its data."""
    one, active = world.peers[me], world.active
    found = set(one.ahead)
    if one.pg:
        below = (other for other, theirs in enumerate(world.peers) if theirs.pg and theirs.pg.upstream == me)
        found = {*found, *(other for other in below if ahead(world, other))} if one.pg.primary else set()
    return tuple(sorted(found - {other for other, said in active if said and not said.proof}))


def _publish(world: World, me: int, now: Wish) -> World:
    one = world.peers[me]
    if not one.heard or one.lag:
        return world
    if now.decision.cluster and (world.cluster is None or not world.cluster[1]) and now.decision.cluster.by:
        world = world._replace(cluster=(INDEX[now.decision.cluster.by], True))
    at = next((place for place, (other, _) in enumerate(world.active) if other == me), None)
    if at is None or world.active[at][1] == now.said or now.decision.resign:
        return world
    active = (*world.active[:at], (me, now.said), *world.active[at + 1 :])
    return world._replace(active=active)


def sitter_steps(world: World, me: int, one: One) -> Iterator[Step]:
    """What this sitter can do now: each is one part of a decision, made by a slow or by a fast clock."""
    name = NAMES[me]
    seen: list[Wanted] = []
    for late in (False, True):
        now = wish(world, me, late)
        remembered = with_peer(world, me, memory=now.memory)
        clock = " late" if late else ""
        wanted: Wanted = (now.memory, now.decision.database, now.write, now.decision.resign, now.decision.compare)
        if wanted in seen:
            continue
        seen.append(wanted)
        if world.forgot and one.lag is None and known_newer(world, one) and not isinstance(now.decision.database, Keep):
            raise Violation(f"promise 6: {NAMES[me]} believes a ZooKeeper that forgot")
        for what, after in apply(remembered, me, now.decision):
            yield f"{what} {name}{clock}", after
        if one.heard and now.write and not one.open and (one.lag is None or one.lag.fresh):
            yield from _write(remembered, me, now, clock)
        present = any(other == me for other, _ in world.active)
        if now.decision.resign:
            if present and one.heard and one.pg is None:
                gone = tuple(entry for entry in world.active if entry[0] != me)
                yield f"resign {name}{clock}", with_peer(remembered, me, resigned=True)._replace(active=gone)
        elif not present and one.heard and one.lag is None:
            yield f"join {name}{clock}", _joined(remembered, me)
        if now.decision.compare:
            after_comparison = _compare(remembered, me, now.decision.compare)
            if after_comparison:
                yield f"compare {name}{clock}", after_comparison
    if one.open and one.heard and one.lag is None:
        yield f"settle {name}", _settled(world, me)
    if one.heard:
        yield from _evictions(world, me, one)


def _joined(world: World, me: int) -> World:
    peers = [
        one._replace(lag=one.lag._replace(renewed=tuple(sorted({*one.lag.renewed, me})))) if one.lag else one
        for one in world.peers
    ]
    return with_peer(world._replace(peers=tuple(peers), active=(*world.active, (me, None))), me, resigned=False)


def _evictions(world: World, me: int, one: One) -> Iterator[Step]:
    """It sees somebody dead, rightly or not. Driver: the node that is removed is the one that was seen, or none."""
    spent = spend(world, "evict")
    state, seen = (one.lag.state, one.lag.active) if one.lag else (world.state, world.active)
    if spent is None or state is None:
        return
    for whom in [other for other, _ in seen if other != me]:
        if wish(world, me, late=False, dead=whom).decision.evict != NAMES[whom]:
            continue
        if {me, whom} != {state.primary, state.sync}:
            raise Violation("an eviction of, or by, neither primary nor sync")
        if state.frozen:
            raise Violation("promise 5: an eviction in a frozen shard")
        if whom in connected(world, me):
            raise Violation("an eviction of a peer that replication goes on with")
        if whom in one.evicted:
            raise Violation("a peer that has lived is evicted again")
        renewed = one.lag is not None and whom in one.lag.renewed
        if renewed and "evicted by its id" in broken:
            raise Violation("a newer election node than the one that was seen is removed")
        gone = () if renewed else (whom,)
        active = tuple(entry for entry in spent.active if entry[0] not in gone)
        evicted = tuple(sorted({*one.evicted, whom}))
        yield f"evict-{NAMES[whom]} {NAMES[me]}", with_peer(spent, me, evicted=evicted)._replace(active=active)


Wanted = tuple[Any, ...]


def _write(world: World, me: int, now: Wish, clock: str) -> Iterator[Step]:
    """A write lands; or its answer is lost, and it lands later or never. Driver: at the version that was read."""
    assert now.write is not None
    if now.founds:
        if world.state is None:
            yield f"write {NAMES[me]}{clock}", land(world._replace(cluster=(me, False)), me, now.write)
        return
    yield f"write {NAMES[me]}{clock}", land(world, me, now.write)
    if world.pending is None:
        lost = spend(world, "lost")
        if lost:
            yield f"lose-write {NAMES[me]}{clock}", with_peer(lost, me, open=True)._replace(pending=(me, now.write))


def _settled(world: World, me: int) -> World:
    """Driver: an open write is settled by a write of the same content, which succeeds only if the other did not."""
    if world.pending and world.pending[0] == me and "an open write is settled by reading" not in broken:
        assert world.state is not None
        world = land(world, None, world.state)
    return with_peer(world, me, open=False)


def _compare(world: World, me: int, asked: Compare) -> World | None:
    """Driver: compares the WAL itself with that of the upstream's PostgreSQL, which runs; ours must not be writing.

    The upstream must still say afterwards that it has the proof which the comparison is worth.
    """
    upstream = INDEX[asked.upstream.id]
    mine, theirs, pg = world.peers[me].wal, world.peers[upstream], world.peers[me].pg
    writing = pg and pg.primary and "compared while writing" not in broken
    if mine is None or theirs.wal is None or theirs.pg is None or writing:
        return None
    says = next((said for other, said in world.active if other == upstream), None)
    confirmed = says is not None and says.proof >= asked.proof and world.peers[me].heard
    if not confirmed and "a comparison is worth what the upstream said before" not in broken:
        return None
    if mine == theirs.wal[: len(mine)]:
        answer = Comparison.PREFIX
    elif theirs.wal == mine[: len(theirs.wal)]:
        answer = Comparison.AHEAD
    else:
        answer = Comparison.DIVERGED
    link = (upstream, asked.generation, asked.proof, str(answer), len(theirs.wal))
    return with_peer(world, me, link=link) if world.peers[me].link != link else None


def apply(world: World, me: int, decision: Decision) -> Iterator[Step]:
    """One transition of PostgreSQL towards what is wanted."""
    wanted, one = decision.database, world.peers[me]
    pg = one.pg
    if isinstance(wanted, Keep):
        return
    if isinstance(wanted, Stopped):
        if pg:
            yield from _stop(world, me, one, pg, wanted)
    elif isinstance(wanted, Initialize):
        if world.cluster == (me, True) or world.acked or any(other.wal for other in world.peers):
            raise Violation("promise 4: initdb beside an existing database")
        yield "initdb", append(with_peer(world, me, wal=(), was_primary=True, link=None), me)
    elif isinstance(wanted, Restore):
        yield from _restore(world, me, wanted)
    elif isinstance(wanted, Rewind):
        yield from _rewind(world, me, wanted)
    elif isinstance(wanted, Primary):
        yield from _run_primary(world, me, one, pg, wanted)
    elif isinstance(wanted, Standby):
        yield from _run_standby(world, me, one, pg, wanted)


def _stop(world: World, me: int, one: One, pg: Pg, wanted: Stopped) -> Iterator[Step]:
    """A clean stop writes its record and lets the sync have it, if that is quick enough."""
    if wanted.clean and pg.primary and not one.handing_over:
        yield "shut", append(with_peer(world, me, handing_over=True), me)
    else:
        yield "stop", with_peer(world, me, pg=None)


def _restore(world: World, me: int, wanted: Restore) -> Iterator[Step]:
    """Driver: the memory of the old data is gone, durably, before. A snapshot may be old."""
    for source in wanted.sources:
        other = INDEX[source.id]
        theirs = world.peers[other]
        if other != me and theirs.wal and theirs.pg:
            new = with_peer(
                world, me, wal=theirs.wal, was_primary=False, link=None, pg=None, failed=False, torn=False, vain=False
            )
            if "the memory travels with a snapshot" in broken:
                new = with_peer(new, me, memory=theirs.memory._replace(seal=None))
            yield f"restore-from-{NAMES[other]}", new
            old = spend(new, "old-snapshot")
            if old and len(theirs.wal) > 1:
                yield f"restore-old-from-{NAMES[other]}", with_peer(old, me, wal=theirs.wal[:-1])


def _rewind(world: World, me: int, wanted: Rewind) -> Iterator[Step]:
    """Driver: our PostgreSQL is dead before; a rewind that finds nothing to do, or cannot be, says so and is not tried
    again; what is left of one that is cut short is marked.
    """
    one, source = world.peers[me], INDEX[wanted.source.id]
    theirs = world.peers[source]
    if one.pg:
        yield "stop", with_peer(world, me, pg=None)
        return
    if one.vain or one.torn:
        raise Violation("a rewind that came to nothing is tried again")
    if theirs.wal is None or theirs.pg is None or not theirs.pg.primary:
        return
    world = with_peer(world, me, link=None)
    yield "rewind", with_peer(world, me, wal=theirs.wal, was_primary=False)
    outcomes: list[tuple[str, dict[str, Any]]] = [
        ("rewind-in-vain", {"vain": True}),
        ("rewind-cut", {"torn": True, "vain": True, "wal": theirs.wal}),  # the log may be all there, and the data not
    ]
    for what, outcome in outcomes:
        spent = spend(world, what)
        if spent:
            yield what, with_peer(spent, me, **outcome)


def _run_primary(world: World, me: int, one: One, pg: Pg | None, wanted: Primary) -> Iterator[Step]:
    if one.wal is None:
        raise Violation("promise 4: a primary without data")
    if one.torn and not pg:
        raise Violation("promise 3: data that a rewind left half done are started")
    name, state = ALONE if wanted.sync is None else INDEX[wanted.sync.id], world.state
    if state and state.forced == "due" and state.primary == me and one.memory.generation == state.generation:
        raise Violation("an operator's word is acted on before it is taken: it would count again")
    if pg and pg.primary and one.handing_over:
        yield "stop", with_peer(world, me, pg=None, handing_over=False)  # a stop that has begun cannot be called off
        return
    world = with_peer(world, me, handing_over=False)
    if pg is None:
        if one.was_primary:
            sealed = len(one.wal or ()) if wanted.sealed else None
            started = with_peer(world, me, pg=Pg(True, NOBODY if wanted.sealed else name, sealed), failed=False)
            yield "start", hear_of(started, me)
        else:
            yield "start", with_peer(world, me, pg=Pg(False), failed=False)
    elif not pg.primary:
        if "promoted before the names are set" in broken:
            name = ALONE
        promoted = append(with_peer(world, me, was_primary=True, pg=Pg(True, name)), me, new_timeline=True)
        yield "pg-promote", hear_of(promoted, me)
    elif wanted.sealed and pg.sealed is None:
        # Driver: commits wait for nobody, and what the old sync may have confirmed is dead, before the position.
        sealed, dead = len(one.wal or ()), {"waits_for": NOBODY, "confirmed": 0}
        if "the old sync still confirms to a sealed primary" in broken:
            dead = {}
        yield "seal", with_pg(world, me, sealed=sealed, **dead)
    elif not wanted.sealed and (pg.sealed is not None or pg.waits_for != name):
        opened = with_pg(world, me, waits_for=name, confirmed=0, sealed=None)
        yield "open", hear_of(opened, me)


def _run_standby(world: World, me: int, one: One, pg: Pg | None, wanted: Standby) -> Iterator[Step]:
    upstream = INDEX[wanted.upstream.id] if wanted.upstream else None
    if one.torn and not pg:
        raise Violation("promise 3: data that a rewind left half done are started")
    world = with_peer(world, me, handing_over=False)
    sealed = len(one.wal or ()) if wanted.sealed else None
    if sealed and "sealed at the momentary replay position" in broken:
        sealed -= 1
    if sealed and "sealed at the received position" in broken:
        sealed += 1
    if pg is None:
        # A sealed standby has no receiver, and follows nobody: what it followed before, it forgot with its end.
        new = Pg(False, upstream=None if wanted.sealed else upstream, sealed=sealed)
        yield "start", _tells(with_peer(world, me, pg=new, was_primary=False, failed=False), me)
    elif pg.primary:
        yield "stop", with_peer(world, me, pg=None)
    elif wanted.sealed and pg.sealed is None:
        # Driver: the receiver is gone, and the position is the end of the last complete record.
        yield "seal", with_pg(world, me, sealed=sealed)
    elif not wanted.sealed and (pg.sealed is not None or pg.upstream != upstream):
        yield "follow", _tells(with_pg(world, me, sealed=None, upstream=upstream), me)


def _tells(world: World, me: int) -> World:
    """A receiver that connects says first what it has."""
    pg = world.peers[me].pg
    return hear_of(world, pg.upstream) if pg and pg.upstream is not None else world
