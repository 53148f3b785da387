"""The world of a shard in small: peers, ZooKeeper, PostgreSQL with WAL and acknowledgements, driven by `decide()`.

A world is an immutable, hashable value. `steps` lists everything that can happen next: what the sitters do (each part
of a decision is a step of its own, taken on a view that may be old), how WAL flows, and what goes wrong (bounded by a
budget). WAL is a tuple of entries, each with its true origin; the core sees numbers and timelines alone. A step that
breaks a promise raises `Violation`.

What is assumed of the parts around the core (the driver's contract) is written where it is modelled, as "Driver:".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

from manatee.cluster import Cluster, ClusterState, Comparison, Peer, PeerStatus, written_time
from manatee.lsn import Lsn
from sitter.decide import decide
from sitter.view import (
    Compare,
    Database,
    Decision,
    Initialize,
    Keep,
    Link,
    Memory,
    Present,
    Primary,
    Restore,
    Seal,
    Standby,
    Stopped,
    View,
)

NOW = 1_700_000_000.0
FAR = written_time(NOW + 3600)
IDENTIFIER = "7000000000000000001"
NAMES = "ABCDE"
NOBODY = -1
"""The name in synchronous_standby_names that nobody bears."""
ALONE = -2
"""No name at all: one-node-write mode."""


broken: set[str] = set()
"""Ways in which the driver of this world is broken, for the mutants of `tests.model.mutants`."""

_decide: Callable[[View], Decision] = decide


class Violation(Exception):
    """A promise is broken."""


# --- What the world is made of ---------------------------------------------------------------------------------------


class State(NamedTuple):
    """The cluster state, peers by number."""

    generation: int
    primary: int
    sync: int | None
    asyncs: tuple[int, ...] = ()
    deposed: tuple[int, ...] = ()
    init_wal: int = 0
    frozen: bool = False
    promote: tuple[int, str, int | None, int] | None = None
    """Peer, role, index, generation."""
    alone: bool = False


class Said(NamedTuple):
    """A published status."""

    initialized: bool
    serving: bool
    ready: bool
    compares: str | None
    generation: int
    proof: int


class Remembered(NamedTuple):
    identified: bool = False
    generation: int = 0
    proof: int = 0
    seal: tuple[int, int] | None = None


class Pg(NamedTuple):
    """A running PostgreSQL."""

    primary: bool
    waits_for: int = NOBODY
    """A primary's: whose confirmation a commit waits for."""
    sealed: int | None = None
    upstream: int | None = None
    """A standby's."""
    confirmed: int = 0
    """What the standby that is waited for has confirmed, as far as this primary may have heard."""


class Lag(NamedTuple):
    """An old reading that a sitter still goes by."""

    fresh: bool
    """The state has not been written since."""
    state: State | None
    cluster: tuple[int, bool] | None
    active: tuple[tuple[int, Said | None], ...]


class One(NamedTuple):
    """A peer."""

    up: bool = True
    """Its sitter runs."""
    heard: bool = True
    """It has a session that works: it reads, writes and publishes."""
    wal: tuple[int, ...] | None = None
    was_primary: bool = False
    """The data on disk start as a primary, not as a standby."""
    pg: Pg | None = None
    memory: Remembered = Remembered()
    link: tuple[int, int, int, str, int] | None = None
    """Upstream, generation, proof, answer, mark."""
    open: bool = False
    """A write of it has no outcome yet."""
    resigned: bool = False
    lag: Lag | None = None
    failed: bool = False
    """Its PostgreSQL died by itself, and has not been up since. Driver: stopping what is dead does not end that."""
    handing_over: bool = False
    """A clean stop for a handover has begun, and nothing was started since."""
    singleton: bool = False
    """It is configured for one-node-write mode."""
    leaving: bool = False
    """It was asked to stop."""


class World(NamedTuple):
    peers: tuple[One, ...]
    state: State | None
    cluster: tuple[int, bool] | None
    active: tuple[tuple[int, Said | None], ...]
    pending: tuple[int, State] | None
    """A write whose answer was lost and which may still land, unless another does before."""
    acked: frozenset[int]
    begins: tuple[tuple[int, ...], ...]
    """What each generation began with."""
    minted: int
    """Entries written so far: each is unique."""
    budget: tuple[tuple[str, int], ...]
    cut: tuple[tuple[int, int], ...] = ()
    """Replication links (standby, upstream) that are down."""
    past: State | None = None
    """The last state of the generation before, which ZooKeeper might come back with."""
    forgot: bool = False
    """ZooKeeper came back older than it was."""


Step = tuple[str, World]
"""What happens, in the scenarios' language, and the world after it."""


# --- Between the small world and the core's words -------------------------------------------------------------------


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
    )


@cache
def _present(index: int, said: Said | None, late: bool) -> Present:
    if said is None:
        return Present(peer(index), None, unready_for=math.inf if late else 0.0)
    status = PeerStatus.of(
        {
            "initialized": said.initialized,
            "serving": said.serving,
            "ready": said.ready,
            "compares": said.compares,
            "generation": said.generation,
            "proof": said.proof,
        }
    )
    return Present(peer(index), status, unready_for=math.inf if late and not said.ready else 0.0)


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


def wish(world: World, me: int, late: bool) -> Wish:
    """What this peer wants now. Decisions are pure, so each is made once.

    `late` is a clock by which every timeout has passed; without it none has. Both always happen.
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
    )
    found = _wishes.get(key)
    if found is None:
        found = _wishes[key] = _ask(world, me, late, state, cluster, active, dict(attached))
    return found


def use(core: Callable[[View], Decision]) -> None:
    """From now on this core decides."""
    global _decide  # noqa: PLW0603 - every world of a process is driven by one core
    _decide = core
    _wishes.clear()


def _ask(
    world: World,
    me: int,
    late: bool,
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
    database = Database(
        initialized=one.wal is not None,
        identifier=IDENTIFIER if one.wal is not None else None,
        version="15",
        online=pg is not None,
        writable_for=math.inf if pg and pg.primary else 0.0,
        end=Lsn(len(one.wal)) if pg and one.wal is not None else None,
        sealed=Lsn(pg.sealed) if pg and pg.sealed is not None else None,
        sealed_for=passed,
        upstream=peer(pg.upstream).id if pg and pg.upstream is not None else None,
        streaming=bool(pg and not pg.primary and streams(world, me)),
        attached={peer(other).id: Lsn(end) for other, end in attached.items()},
        link=Link(peer(link[0]).id, link[1], link[2], Comparison(link[3]), Lsn(link[4])) if link else None,
        failing_for=passed if one.failed and pg is None else None,
        handing_over=one.handing_over,
    )
    view = View(
        me=peer(me),
        now=NOW,
        active=tuple(_present(index, said, late) for index, said in active),
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
    )
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
    )
    write = decision.write
    return Wish(decision, remembered, said, narrow(write.state) if write else None, bool(write and write.cluster))


# --- PostgreSQL -----------------------------------------------------------------------------------------------------


def timeline(entry: int) -> int:
    return entry // 100


def streams(world: World, me: int) -> bool:
    """This standby's receiver streams: PostgreSQL checks positions and timelines, never what the WAL says."""
    one = world.peers[me]
    pg = one.pg
    if pg is None or pg.primary or pg.upstream is None or (me, pg.upstream) in world.cut:
        return False
    if pg.sealed is not None and "the receiver outlives the seal" not in broken:
        return False
    theirs = world.peers[pg.upstream]
    if theirs.pg is None or one.wal is None or theirs.wal is None:
        return False
    end, mine = len(one.wal), timeline(one.wal[-1]) if one.wal else 0
    if end > len(theirs.wal):
        return False
    later = next((at for at, entry in enumerate(theirs.wal) if timeline(entry) > mine), len(theirs.wal))
    known = any(timeline(entry) == mine for entry in theirs.wal) or not mine
    return known and end <= later


def with_peer(world: World, me: int, **changes: Any) -> World:
    peers = list(world.peers)
    peers[me] = peers[me]._replace(**changes)
    return world._replace(peers=tuple(peers))


def with_pg(world: World, me: int, **changes: Any) -> World:
    pg = world.peers[me].pg
    assert pg is not None
    return with_peer(world, me, pg=pg._replace(**changes))


def append(world: World, me: int, *, new_timeline: bool = False) -> World:
    """One more entry in this primary's WAL: a commit, or the record with which a timeline begins."""
    wal = world.peers[me].wal
    assert wal is not None
    line = max((timeline(entry) for entry in wal), default=0) if wal else 0
    entry = max(1, line + new_timeline) * 100 + world.minted
    return with_peer(world, me, wal=(*wal, entry))._replace(minted=world.minted + 1)


def flow(world: World, me: int) -> World | None:
    """The next entry reaches this standby's disk, and the upstream may hear of it."""
    if not streams(world, me):
        return None
    one = world.peers[me]
    assert one.pg is not None
    assert one.pg.upstream is not None
    assert one.wal is not None
    theirs = world.peers[one.pg.upstream]
    assert theirs.wal is not None
    assert theirs.pg is not None
    end = len(one.wal)
    if one.wal != theirs.wal[:end]:
        raise Violation(f"promise 3: {NAMES[me]} follows {NAMES[one.pg.upstream]}, from which it has diverged")
    if end == len(theirs.wal):
        return None
    world = with_peer(world, me, wal=(*one.wal, theirs.wal[end]))
    return _heard_of(world, one.pg.upstream)


def _heard_of(world: World, primary: int) -> World:
    """The primary hears how far the standby that it waits for has flushed, if that streams."""
    pg = world.peers[primary].pg
    if pg is None or not pg.primary or pg.waits_for < 0:
        return world
    other = world.peers[pg.waits_for]
    if other.pg and other.pg.upstream == primary and streams(world, pg.waits_for) and other.wal:
        return with_pg(world, primary, confirmed=max(pg.confirmed, len(other.wal)))
    return world


def acknowledge(world: World, me: int) -> World | None:
    """The primary answers its clients for everything that is confirmed."""
    one = world.peers[me]
    if one.pg is None or not one.pg.primary or one.wal is None or one.pg.waits_for == NOBODY:
        return None
    confirmed = len(one.wal) if one.pg.waits_for == ALONE else one.pg.confirmed
    news = world.acked.union(one.wal[:confirmed])
    if len(news) == len(world.acked):
        return None
    state = world.state
    if world.forgot:
        return world._replace(acked=news)
    current = state is not None and state.primary == me and one.memory.generation == state.generation
    if not current and not news <= world.acked.union(*world.begins[-1:]):
        # An answer that was on its way when the next generation was declared may come late: it lies below the seal.
        raise Violation(f"promise 2: {NAMES[me]} acknowledges under an old generation")
    waits_for = ALONE if state is None or state.sync is None else state.sync
    if current and one.pg.waits_for != waits_for and not news <= world.acked.union(*world.begins[-1:]):
        raise Violation(f"promise 1: {NAMES[me]} acknowledges what its sync may not hold")
    if current and not world.acked <= set(one.wal):
        raise Violation(f"promise 1: {NAMES[me]} acknowledges without commits acknowledged before")
    return world._replace(acked=news)


# --- ZooKeeper ------------------------------------------------------------------------------------------------------


def land(world: World, by: int | None, new: State, *, late: bool = False) -> World:
    """The cluster state is written; an open write of anybody can no longer land."""
    old, begins, past = world.state, world.begins, world.past
    if world.forgot and by is not None and world.peers[by].lag is None and _known_newer(world, world.peers[by]):
        raise Violation("promise 6: a ZooKeeper that forgot is believed")
    if old is None:
        if new.generation != 1 or world.acked or any(one.wal for one in world.peers):
            raise Violation("promise 4: a shard is set up beside data")
        begins = ((),)
    elif world.forgot:
        pass
    elif new.generation != old.generation:
        assert by is not None
        _check_declaration(world, by, old, new)
        begin, sync = (world.peers[new.primary].wal or ())[: new.init_wal], world.peers[new.sync or 0].wal or ()
        if not old.alone and not late and sync[: len(begin)] != begin:
            raise Violation("the new sync does not hold what its generation begins with")
        wal = world.peers[new.primary].wal
        assert wal is not None
        begins, past = (*begins, wal[: new.init_wal]), old
    elif by is not None:
        _check_same_generation(world, by, old, new)
    peers = tuple(
        one._replace(lag=one.lag._replace(fresh=False)) if one.lag and one.lag.fresh else one for one in world.peers
    )
    return world._replace(state=new, begins=begins, pending=None, peers=peers, past=past)


def _known_newer(world: World, one: One) -> bool:
    """This peer, or one that is present, has acted on a newer generation than ZooKeeper holds."""
    here = world.state.generation if world.state else 0
    return max([one.memory.generation, *(said.generation for _, said in world.active if said)]) > here


def _check_declaration(world: World, by: int, old: State, new: State) -> None:
    wal = world.peers[new.primary].wal
    if new.generation != old.generation + 1:
        raise Violation(f"generation {old.generation} became {new.generation}")
    if new.primary not in (old.primary, old.sync) or new.primary != by:
        raise Violation("the new primary was neither primary nor sync")
    if old.frozen:
        raise Violation("promise 5: a new generation of a frozen shard")
    if wal is None or new.init_wal > len(wal):
        raise Violation("the new primary does not hold what its generation begins with")
    if not world.acked <= set(wal[: new.init_wal]):
        raise Violation("promise 1: a generation begins below an acknowledged commit")
    lost = set(old.deposed) - set(new.deposed)
    if lost and not old.alone:
        raise Violation("a new generation forgets the deposed")
    if new.primary != old.primary and old.primary not in new.deposed:
        raise Violation("the old primary is not deposed")
    if new.promote:
        raise Violation("a new generation keeps the promote")
    if new.alone or new.sync is None:
        raise Violation("a generation without a sync")
    if new.frozen != old.frozen:
        raise Violation("freeze was not kept")


def _check_same_generation(world: World, by: int, old: State, new: State) -> None:
    kept = ("primary", "sync", "init_wal", "frozen", "alone")
    if any(getattr(old, name) != getattr(new, name) for name in kept):
        raise Violation("promise 5: roles, freeze or beginning changed within a generation")
    for gone in set(old.deposed) - set(new.deposed):
        mine, theirs = world.peers[gone].wal, world.peers[old.primary].wal
        if gone != by or mine is None:
            raise Violation("somebody else took a peer off the deposed list")
        if theirs is not None and mine != theirs[: len(mine)]:
            raise Violation("a peer came off the deposed list without its data being a prefix")
    if set(new.deposed) - set(old.deposed):
        raise Violation("a peer was deposed within a generation")


def check(world: World) -> None:
    """What holds of every world in which ZooKeeper forgets nothing."""
    if world.forgot:
        return
    able = [NAMES[me] for me in range(len(world.peers)) if can_acknowledge(world, me)]
    if len(able) > 1:
        raise Violation(f"promise 2: {' and '.join(able)} can acknowledge commits")
    for me, one in enumerate(world.peers):
        proof = one.memory.proof
        if proof and one.wal is not None and proof <= len(world.begins):
            begin = world.begins[proof - 1]
            if one.wal[: len(begin)] != begin:
                raise Violation(f"promise 3: {NAMES[me]} has proof of generation {proof}, but lacks its beginning")


def can_acknowledge(world: World, me: int) -> bool:
    """A commit that a client makes here now may be acknowledged here."""
    one = world.peers[me]
    pg = one.pg
    if pg is None or not pg.primary or pg.waits_for == NOBODY or one.handing_over:
        return False
    if pg.waits_for == ALONE:
        return True
    other = world.peers[pg.waits_for]
    return bool(other.pg and other.pg.upstream == me and streams(world, pg.waits_for))


# --- What can happen ------------------------------------------------------------------------------------------------


def steps(world: World) -> Iterator[Step]:
    """Everything that can happen next; each world is at rest as far as memory and status go."""
    for me, one in enumerate(world.peers):
        if one.up:
            yield from ((what, settle(after)) for what, after in _sitter(world, me, one))
        after = flow(world, me)
        if after:
            yield f"flow {NAMES[me]}", settle(after)
        after = acknowledge(world, me)
        if after:
            yield f"acknowledge {NAMES[me]}", after
    yield from ((what, settle(after)) for what, after in _trouble(world))


def settle(world: World) -> World:
    """Every sitter that can remembers and says what follows from what it sees; `cluster` is completed."""
    for _ in range(20):
        before = world
        for me, one in enumerate(world.peers):
            if not one.up:
                continue
            now = wish(world, me, late=False)
            if now.memory != one.memory:
                world = with_peer(world, me, memory=now.memory)
            world = _publish(world, me, now)
        if world == before:
            return world
    raise AssertionError("memory and status do not settle")


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


def _sitter(world: World, me: int, one: One) -> Iterator[Step]:
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
        if (
            world.forgot
            and one.lag is None
            and _known_newer(world, one)
            and not isinstance(now.decision.database, Keep)
        ):
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
            yield (
                f"join {name}{clock}",
                with_peer(remembered, me, resigned=False)._replace(active=(*world.active, (me, None))),
            )
        if now.decision.compare:
            after_comparison = _compare(remembered, me, now.decision.compare)
            if after_comparison:
                yield f"compare {name}{clock}", after_comparison
    if one.open and one.heard and one.lag is None:
        yield f"settle {name}", _settled(world, me)


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
            new = with_peer(world, me, wal=theirs.wal, was_primary=False, link=None, pg=None, failed=False)
            if "the memory travels with a snapshot" in broken:
                new = with_peer(new, me, memory=theirs.memory._replace(seal=None))
            yield f"restore-from-{NAMES[other]}", new
            old = spend(new, "old-snapshot")
            if old and len(theirs.wal) > 1:
                yield f"restore-old-from-{NAMES[other]}", with_peer(old, me, wal=theirs.wal[:-1])


def _run_primary(world: World, me: int, one: One, pg: Pg | None, wanted: Primary) -> Iterator[Step]:
    if one.wal is None:
        raise Violation("promise 4: a primary without data")
    name = ALONE if wanted.sync is None else INDEX[wanted.sync.id]
    if pg and pg.primary and one.handing_over:
        yield "stop", with_peer(world, me, pg=None, handing_over=False)  # a stop that has begun cannot be called off
        return
    world = with_peer(world, me, handing_over=False)
    if pg is None:
        if one.was_primary:
            sealed = len(one.wal or ()) if wanted.sealed else None
            started = with_peer(world, me, pg=Pg(True, NOBODY if wanted.sealed else name, sealed), failed=False)
            yield "start", _heard_of(started, me)
        else:
            yield "start", with_peer(world, me, pg=Pg(False), failed=False)
    elif not pg.primary:
        if "promoted before the names are set" in broken:
            name = ALONE
        promoted = append(with_peer(world, me, was_primary=True, pg=Pg(True, name)), me, new_timeline=True)
        yield "pg-promote", _heard_of(promoted, me)
    elif wanted.sealed and pg.sealed is None:
        # Driver: commits wait for nobody, and what the old sync may have confirmed is dead, before the position.
        sealed, dead = len(one.wal or ()), {"waits_for": NOBODY, "confirmed": 0}
        if "the old sync still confirms to a sealed primary" in broken:
            dead = {}
        yield "seal", with_pg(world, me, sealed=sealed, **dead)
    elif not wanted.sealed and (pg.sealed is not None or pg.waits_for != name):
        opened = with_pg(world, me, waits_for=name, confirmed=0, sealed=None)
        yield "open", _heard_of(opened, me)


def _run_standby(world: World, me: int, one: One, pg: Pg | None, wanted: Standby) -> Iterator[Step]:
    upstream = INDEX[wanted.upstream.id] if wanted.upstream else None
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
    return _heard_of(world, pg.upstream) if pg and pg.upstream is not None else world


# --- What goes wrong ------------------------------------------------------------------------------------------------


def spend(world: World, what: str) -> World | None:
    """Take one of these from the budget, and one of `trouble` in all; None if either is used up."""
    left = dict(world.budget)
    for kind in (what, "trouble"):
        if left.get(kind, 0) <= 0:
            return None
        left[kind] -= 1
    return world._replace(budget=tuple(sorted(left.items())))


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
        yield "wipe", with_peer(crash(world, me), me, wal=None, memory=Remembered(), was_primary=False)
        yield "lose-data", with_peer(crash(world, me), me, wal=None, was_primary=False)
    if one.pg and one.pg.upstream is not None and (me, one.pg.upstream) not in world.cut:
        yield "cut", world._replace(cut=((me, one.pg.upstream),))


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
    )


def start(world: World, me: int) -> World:
    """Driver: a sitter that starts with a seal in its memory takes a write of it to be open. Its old node is void."""
    one = world.peers[me]
    gone = tuple(entry for entry in world.active if entry[0] != me)
    opened = one.memory.seal is not None and "a restart forgets the open write" not in broken
    return with_peer(world, me, up=True, heard=True, open=opened)._replace(active=gone)


def expire(world: World, me: int) -> World:
    """The session ends: the others see it at once, this sitter goes on by what it knew."""
    one = world.peers[me]
    gone = tuple(entry for entry in world.active if entry[0] != me)
    if one.up and one.lag is None:
        world = with_peer(world, me, lag=_lag(world), heard=False)
    return world._replace(active=gone)


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
        wiped = with_peer(crash(cleared, gone), gone, wal=None, memory=Remembered(), was_primary=False)
        asked.append((f"rebuild {NAMES[gone]}", wiped))
    for what, after in asked:
        spent = spend(after, "operator")
        if spent:
            yield what, spent


def _promotable(state: State) -> Iterator[tuple[int, str, int | None]]:
    if state.sync is not None:
        yield state.sync, "sync", None
    for index, one in enumerate(state.asyncs):
        yield one, "async", index


# --- Beginnings -----------------------------------------------------------------------------------------------------


def running(count: int, **budget: int) -> World:
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


# --- Symmetry -------------------------------------------------------------------------------------------------------


def canonical(world: World) -> tuple[World, list[int] | None]:
    """The same world with the peers renamed in the order of the chain; and who was called what, if that is news."""
    state = world.state
    if state is None:
        return world, None
    order = [state.primary, *(() if state.sync is None else (state.sync,)), *state.asyncs, *state.deposed]
    order += [me for me, _ in world.active if me not in order]
    order += [me for me in range(len(world.peers)) if me not in order]
    if order == list(range(len(order))):
        return world, None
    return renamed(world, {old: new for new, old in enumerate(order)}, order), order


def renamed(world: World, to: dict[int, int], order: list[int]) -> World:
    def state_of(state: State | None) -> State | None:
        if state is None:
            return None
        asked = state.promote
        return state._replace(
            primary=to[state.primary],
            sync=None if state.sync is None else to[state.sync],
            asyncs=tuple(to[one] for one in state.asyncs),
            deposed=tuple(to[one] for one in state.deposed),
            promote=None if asked is None else (to[asked[0]], *asked[1:]),
        )

    def active_of(active: tuple[tuple[int, Said | None], ...]) -> tuple[tuple[int, Said | None], ...]:
        return tuple((to[me], said) for me, said in active)

    def cluster_of(cluster: tuple[int, bool] | None) -> tuple[int, bool] | None:
        return None if cluster is None else (to[cluster[0]], cluster[1])

    def one_of(one: One) -> One:
        pg, lag, link = one.pg, one.lag, one.link
        if pg:
            pg = pg._replace(
                waits_for=to[pg.waits_for] if pg.waits_for >= 0 else pg.waits_for,
                upstream=None if pg.upstream is None else to[pg.upstream],
            )
        if lag:
            lag = Lag(lag.fresh, state_of(lag.state), cluster_of(lag.cluster), active_of(lag.active))
        return one._replace(pg=pg, lag=lag, link=(to[link[0]], *link[1:]) if link else None)

    pending = world.pending
    if pending:
        late = state_of(pending[1])
        assert late is not None
        pending = (to[pending[0]], late)
    return world._replace(
        peers=tuple(one_of(world.peers[me]) for me in order),
        state=state_of(world.state),
        cluster=cluster_of(world.cluster),
        active=active_of(world.active),
        pending=pending,
        cut=tuple(sorted((to[below], to[above]) for below, above in world.cut)),
    )
