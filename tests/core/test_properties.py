"""What holds of every decision, whatever the view: Hypothesis makes views that are possible and many that are not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from manatee.cluster import ClusterState, Comparison, Peer, Role
from manatee.lsn import Lsn
from sitter.decide import decide
from sitter.view import Database, Decision, Initialize, Link, Memory, Present, Primary, Seal, Standby, View
from tests.core.views import (
    CLUSTER,
    EVERYONE,
    FRESH_CLUSTER,
    IDENTIFIER,
    NOW,
    A,
    B,
    C,
    D,
    E,
    manatee_2,
    promote,
    says,
    silent,
    state,
    view,
)

generations = st.integers(1, 4)
positions = st.sampled_from([Lsn(0), Lsn(99), Lsn(100), Lsn(149), Lsn(150), Lsn(151)])
seconds = st.sampled_from([0.0, 1.0, 5.0, 10.0, 1000.0])
somebody = st.sampled_from([*EVERYONE, E])
answers = st.sampled_from([None, *Comparison])


@st.composite
def states(draw: st.DrawFn) -> ClusterState:
    order = draw(st.permutations([A, B, C, D, E]))
    alone = draw(st.integers(0, 9)) == 0
    asyncs, deposed = draw(st.integers(0, 3)), draw(st.integers(0, 1))
    changes: dict[str, Any] = {
        "generation": draw(generations),
        "primary": order[0],
        "sync": None if alone else order[1],
        "async": [] if alone else order[2 : 2 + asyncs],
        "deposed": order[5 - deposed :] if asyncs < 3 else [],
        "initWal": str(draw(positions)),
        "unheardOf": {"kept": True},
    }
    if alone:
        changes["oneNodeWriteMode"] = True
    if draw(st.booleans()):
        changes["freeze"] = draw(st.sampled_from([True, False, None, {"date": "x", "reason": "y", "z": 1}]))
    if draw(st.booleans()):
        whom, role = draw(somebody), draw(st.sampled_from(["sync", "async", "primary"]))
        index = draw(st.sampled_from([None, 0, 1, 2, -1]))
        changes["promote"] = promote(whom, role, index, generation=draw(generations))
    return state(**changes)


@st.composite
def present_peers(draw: st.DrawFn) -> tuple[Present, ...]:
    def one(whom: Peer) -> Present:
        kind = draw(st.integers(0, 9))
        if kind < 2:
            return (silent, manatee_2)[kind](whom)
        return says(
            whom,
            unready_for=draw(seconds),
            initialized=kind > 2,
            serving=kind > 3,
            ready=kind > 4,
            compares=draw(answers) if kind == 5 else Comparison.PREFIX,
            generation=draw(generations) if kind == 6 else 3,
            proof=draw(generations),
        )

    return tuple(one(whom) for whom in draw(st.lists(somebody, unique=True)))


@st.composite
def databases(draw: st.DrawFn) -> Database:
    if draw(st.integers(0, 9)) == 0:
        return Database()
    link = Link(draw(somebody).id, draw(generations), draw(generations), draw(st.sampled_from(Comparison)), Lsn(150))
    return Database(
        initialized=True,
        identifier=draw(st.sampled_from([IDENTIFIER] * 9 + ["another"])),
        version="15",
        online=draw(st.integers(0, 3)) > 0,
        writable_for=draw(seconds),
        end=draw(positions),
        sealed=draw(st.none() | positions),
        sealed_for=draw(seconds),
        unsealed_for=draw(seconds),
        upstream=draw(somebody).id,
        streaming=draw(st.booleans()),
        attached={one.id: draw(positions) for one in draw(st.lists(somebody, max_size=3, unique=True))},
        link=draw(st.none() | st.just(link)),
        failing_for=draw(st.none() | seconds),
        handing_over=draw(st.integers(0, 9)) == 0,
    )


@st.composite
def views(draw: st.DrawFn) -> View:
    known = draw(st.integers(0, 9)) > 0
    seal = Seal(draw(generations), draw(positions)) if draw(st.booleans()) else None
    return View(
        me=draw(somebody),
        now=NOW,
        active=draw(present_peers()),
        state=draw(states()) if known else None,
        state_problem=None if known or draw(st.booleans()) else "primary: Field required",
        version=7 if known else None,
        cluster=draw(st.sampled_from([CLUSTER, CLUSTER, None, FRESH_CLUSTER])),
        has_history=known,
        database=draw(databases()),
        memory=Memory(IDENTIFIER, draw(st.integers(0, 3)), draw(st.integers(0, 4)), seal),
        write_open=draw(st.integers(0, 4)) == 0,
        singleton=draw(st.integers(0, 9)) == 0,
        leaving=draw(st.integers(0, 9)) == 0,
        resigned_for=draw(st.none() | st.none() | seconds),
        returned_for=draw(seconds),
        unreached_for=draw(seconds),
    )


def near_a_declaration() -> st.SearchStrategy[View]:
    """Views of a sync whose primary is gone and of a primary whose sync is gone, sealed, with something amiss."""

    @st.composite
    def strategy(draw: st.DrawFn) -> View:
        me, gone = draw(st.sampled_from([(A, B), (B, A)]))
        others = tuple(one for one in draw(present_peers()) if one.peer.id not in (me.id, gone.id))
        me_there = (says(me),) if draw(st.integers(0, 9)) else ()
        sealed = draw(st.none() | positions)
        changes: dict[str, Any] = {
            "sealed": sealed,
            "seal": Seal(3, sealed) if sealed is not None else None,
            "attached": {one.peer.id: draw(positions) for one in others},
            "write_open": draw(st.integers(0, 5)) == 0,
            "proof": draw(st.integers(1, 3)),
            "leaving": draw(st.integers(0, 9)) == 0,
        }
        found = view(me, active=me_there + others, state=draw(states()), **changes)
        shard = found.state if draw(st.integers(0, 3)) == 0 else state(freeze=draw(st.sampled_from([None, True])))
        return replace(found, state=shard)

    return strategy()


@settings(max_examples=800, deadline=None)
@given(views() | near_a_declaration())
@example(View(me=A, now=NOW))
def test_every_decision(seen: View) -> None:
    decision = decide(seen)
    assert decide(seen) == decision, "not deterministic"
    assert decision.reason.strip()
    assert decision.memory.generation >= seen.memory.generation
    _check_postgresql(seen, decision)
    if decision.write is None:
        return
    assert decision.write.version == seen.version
    if seen.state is None:
        assert decision.write.state.generation == 1
        return
    _check_write(seen, seen.state, decision)


def _check_postgresql(seen: View, decision: Decision) -> None:
    wanted, state = decision.database, seen.state
    if isinstance(wanted, Primary):
        assert state is not None
        assert decision.role == Role.PRIMARY
        assert decision.memory.proof >= state.generation, "a primary opens with proof of this generation alone"
        assert (wanted.sync is None) is state.one_node_write_mode
        assert not decision.resign
    if isinstance(wanted, Standby):
        assert decision.role in (Role.SYNC, Role.ASYNC)
        assert wanted.upstream != seen.me
    if isinstance(wanted, Initialize):
        assert not seen.database.initialized
    if seen.write_open and isinstance(wanted, Primary | Standby) and decision.role != Role.ASYNC:
        receives = isinstance(wanted, Primary) or wanted.upstream is not None
        assert wanted.sealed or not receives or decision.memory.seal is None, "a seal stays while a write is open"
    assert not (decision.ready and not decision.serving)


def _check_write(seen: View, old: ClusterState, decision: Decision) -> None:
    assert decision.write is not None
    new = decision.write.state
    assert new != old, "a write that changes nothing"
    withdrawal = seen.resigned_for is not None and new == old.replace(without=("promote",))
    assert not seen.write_open
    assert seen.me.id in seen.present or withdrawal
    for name in ("freeze", "unheardOf"):
        assert (name in new.document(), new.document().get(name)) == (name in old.document(), old.document().get(name))
    if new.generation == old.generation:
        assert (new.primary, new.sync, new.init_wal) == (old.primary, old.sync, old.init_wal)
        assert new.one_node_write_mode == old.one_node_write_mode
        assert set(old.deposed) - set(new.deposed) <= {seen.me}
        return
    assert new.generation == old.generation + 1
    assert not old.frozen
    assert new.primary in (old.primary, old.sync)
    assert new.primary.id == seen.me.id
    assert new.init_wal == seen.database.sealed
    assert new.init_wal >= old.init_wal
    assert decision.memory.seal == Seal(old.generation, new.init_wal), "the seal is remembered before it is used"
    assert decision.memory.proof >= (old.generation if new.primary == old.primary else old.generation - 1)
    assert new.sync is not None
    assert new.sync.id in seen.present
    assert all(peer.id in seen.present for peer in new.asyncs)
    if not old.one_node_write_mode:
        assert set(old.deposed) <= set(new.deposed)
        assert (old.primary in new.deposed) is (old.primary != new.primary)
    assert new.promote is None
