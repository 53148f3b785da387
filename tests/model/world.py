"""The world of a shard in small: everything that can happen next, what goes wrong, and how worlds begin.

A world is an immutable, hashable value. `steps` lists everything that can happen next: what the sitters do, how WAL
flows, and what goes wrong (bounded by a budget). A step that breaks a promise raises `Violation`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from manatee.override import forced_state
from tests.model.parts import NAMES, Lag, One, Pg, Remembered, State, Step, World, broken, spend, with_peer
from tests.model.promises import land
from tests.model.sitter import settle, sitter_steps
from tests.model.wal import acknowledge, append, flow
from tests.model.wishes import NOW, narrow, peer, wide

GONE: dict[str, Any] = {"was_primary": False, "torn": False, "vain": False}
"""What goes with the data."""


def steps(world: World) -> Iterator[Step]:
    """Everything that can happen next; each world is at rest as far as memory and status go."""
    for me, one in enumerate(world.peers):
        if one.up:
            yield from ((what, settle(after)) for what, after in sitter_steps(world, me, one))
        after = flow(world, me)
        if after:
            yield f"flow {NAMES[me]}", settle(after)
        after = acknowledge(world, me)
        if after:
            yield f"acknowledge {NAMES[me]}", after
    yield from ((what, settle(after)) for what, after in _trouble(world))


def _trouble(world: World) -> Iterator[Step]:
    for me, one in enumerate(world.peers):
        name = NAMES[me]
        for what, after in _misfortunes(world, me, one):
            spent = spend(after, what)
            if spent:
                yield f"{what} {name}", spent
        if not one.up:
            yield f"start {name}", start(world, me)
        if one.lag:
            yield f"catch-up {name}", with_peer(world, me, lag=None, heard=True)
        if one.pg and one.pg.primary and not one.handing_over and one.wal is not None:
            left = dict(world.budget)
            if left.get("commit", 0) > 0:
                left["commit"] -= 1
                yield f"commit {name}", append(world, me)._replace(budget=tuple(sorted(left.items())))
    for what, old in (("forget", world.past), ("forget-all", None)):
        if world.state and not world.forgot and (old or what == "forget-all"):
            spent = spend(_forget(world, old), what)
            if spent:
                yield what, spent
    if world.pending:
        by, new = world.pending
        yield f"land-late {NAMES[by]}", land(world, by, new, late=True)
    if world.state:
        yield from _operator(world, world.state)


def _misfortunes(world: World, me: int, one: One) -> Iterator[Step]:
    present = any(other == me for other, _ in world.active)
    if one.up:
        yield "crash", crash(world, me)
        if one.lag is None:
            yield "slow", with_peer(world, me, lag=_lag(world))
            yield "mute", with_peer(world, me, lag=_lag(world), heard=False)
    if one.pg:
        yield "pg-crash", with_peer(world, me, pg=None, failed=True)
    if present and (not one.up or not one.heard or one.lag is None):
        yield "expire", expire(world, me)
    if one.wal is not None:
        yield "wipe", with_peer(crash(world, me), me, wal=None, memory=Remembered(), **GONE)
        yield "lose-data", with_peer(crash(world, me), me, wal=None, **GONE)
    if one.pg and one.pg.upstream is not None and (me, one.pg.upstream) not in world.cut:
        yield "cut", world._replace(cut=((me, one.pg.upstream),))
    if one.pg and one.pg.primary:
        yield "cut-off", world._replace(cut=tuple((other, me) for other in range(len(world.peers)) if other != me))


def _forget(world: World, old: State | None) -> World:
    """ZooKeeper is restored from an old backup, or wiped; the sessions and what they say are new."""
    peers = tuple(one._replace(lag=one.lag._replace(fresh=False)) if one.lag else one for one in world.peers)
    active = tuple((me, None) for me, _ in world.active)
    cluster = world.cluster if old else None
    begins = world.begins if old else ()
    return world._replace(
        state=old, cluster=cluster, peers=peers, active=active, pending=None, forgot=True, begins=begins
    )


def _lag(world: World) -> Lag:
    return Lag(True, world.state, world.cluster, world.active)


def crash(world: World, me: int) -> World:
    """The sitter and its PostgreSQL die; the session lives on for a while."""
    return with_peer(
        world,
        me,
        up=False,
        heard=False,
        pg=None,
        link=None,
        lag=None,
        resigned=False,
        failed=False,
        open=False,
        leaving=False,
        handing_over=False,
        evicted=(),
        ahead=(),
    )


def start(world: World, me: int) -> World:
    """Driver: a sitter that starts with a seal in its memory takes a write of it to be open. Its old node is void."""
    one = world.peers[me]
    gone = tuple(entry for entry in world.active if entry[0] != me)
    opened = one.memory.seal is not None and "a restart forgets the open write" not in broken
    return with_peer(_new_session(world, me), me, up=True, heard=True, open=opened)._replace(active=gone)


def _new_session(world: World, me: int) -> World:
    """Who has evicted it does not take it for the same any more."""
    peers = (one._replace(evicted=tuple(other for other in one.evicted if other != me)) for one in world.peers)
    return world._replace(peers=tuple(peers))


def expire(world: World, me: int) -> World:
    """The session ends: the others see it at once, this sitter goes on by what it knew."""
    one = world.peers[me]
    gone = tuple(entry for entry in world.active if entry[0] != me)
    if one.up and one.lag is None:
        world = with_peer(world, me, lag=_lag(world), heard=False)
    return _new_session(world, me)._replace(active=gone)


def _operator(world: World, state: State) -> Iterator[Step]:
    asked: list[tuple[str, World]] = []
    asked.append(("unfreeze" if state.frozen else "freeze", land(world, None, state._replace(frozen=not state.frozen))))
    if not state.promote:
        for whom, role, index in _promotable(state):
            new = state._replace(promote=(whom, role, index, state.generation))
            asked.append((f"promote {NAMES[whom]}", land(world, None, new)))
    for gone in state.deposed:
        rest = tuple(one for one in state.deposed if one != gone)
        cleared = land(world, None, state._replace(deposed=rest))
        asked.append((f"reap {NAMES[gone]}", cleared))
        wiped = with_peer(crash(cleared, gone), gone, wal=None, memory=Remembered(), **GONE)
        asked.append((f"rebuild {NAMES[gone]}", wiped))
    for what, after in asked:
        spent = spend(after, "operator")
        if spent:
            yield what, spent
    if dict(world.budget).get("force", 0) > 0:
        for what, after in _forced(world):
            spent = spend(after, "force")
            if spent:
                yield what, spent


def _forced(world: World) -> Iterator[tuple[str, World]]:
    """Break glass: a present peer with data is made the primary, while nobody who is absent runs PostgreSQL."""
    present = [me for me, _ in world.active]
    if any(one.pg and me not in present for me, one in enumerate(world.peers)):
        return
    state, acted_on = world.state, [one.memory.generation for one in world.peers]
    for me in present:
        if world.peers[me].wal is not None:
            others = [peer(other) for other in present if other != me]
            new = forced_state(
                wide(state) if state else None, peer(me), others, acted_on=acted_on, now=NOW, reason="a word"
            )
            yield f"force {NAMES[me]}", land(world, None, narrow(new))


def _promotable(state: State) -> Iterator[tuple[int, str, int | None]]:
    if state.sync is not None:
        yield state.sync, "sync", None
    for index, one in enumerate(state.asyncs):
        yield one, "async", index


# --- Beginnings ---


def running(count: int, rejoin: str = "safe", /, **budget: int) -> World:
    """A shard of generation 1 in which all is well: everyone has the first entry, and proof."""
    first = (100,)
    state = State(1, 0, 1, tuple(range(2, count)))
    peers = [
        One(
            wal=first,
            was_primary=me == 0,
            pg=Pg(True, 1, confirmed=1) if me == 0 else Pg(False, upstream=me - 1),
            memory=Remembered(True, 1, 1),
            link=None if me == 0 else (me - 1, 1, 1, "prefix", 1),
            rejoin=rejoin,
        )
        for me in range(count)
    ]
    world = World(
        tuple(peers),
        state,
        (0, True),
        tuple((me, None) for me in range(count)),
        None,
        frozenset(first),
        ((),),
        1,
        tuple(sorted(budget.items())),
    )
    return settle(world)


def empty(count: int, **budget: int) -> World:
    """Peers without data that have just joined."""
    budgeted = tuple(sorted(budget.items()))
    peers = tuple(One() for _ in range(count))
    world = World(peers, None, None, tuple((me, None) for me in range(count)), None, frozenset(), (), 0, budgeted)
    return settle(world)
