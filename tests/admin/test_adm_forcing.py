"""When an operator may break glass, with whose data, and what is written then."""

from __future__ import annotations

import re
from typing import Any

import pytest

from admin.forcing import candidates, check_stuck, chosen, forced
from admin.observed import Observations, Observed
from admin.requests import Refused
from admin.standing import Holding, holdings
from manatee.cluster import Cluster, ClusterState, Peer
from manatee.coordination import Active, HistoryEntry, ShardView
from tests.admin.shapes import NOW, A, B, C, D, active, singleton, state, view_of

SHARD = "7711045678570147450"


def say(peer: Peer, *, proof: int = 77, lsn: str | None = "B7/20000000", **said: Any) -> Active:
    facts = {"system_identifier": SHARD, "generation": 77, "serving": True, **said}
    return active(peer, proof=proof, lsn=lsn, timeline=9, **facts)


def look(before: ClusterState | None, *present: Active, **states: Any) -> tuple[ShardView, list[Holding]]:
    view = view_of(before, present, cluster=Cluster(created="", by=A.id, system_identifier=SHARD))
    return view, holdings(view, {peer.id: states[key] for key, peer in PEERS.items() if key in states})


PEERS = {"a": A, "b": B, "c": C, "d": D}
WRITES = {"reason": "primary", "postgres": {"writable": True}, "memory": {"generation": 77, "proof": 77}}
RESIGNED = {"reason": "resigned", "memory": {"generation": 77, "proof": 0, "identifier": SHARD}}


@pytest.mark.parametrize(
    ("before", "present", "states", "said"),
    [
        (state(), (say(A), say(B)), {"a": WRITES}, "the primary lives: 6589d30f has all that was acknowledged"),
        (state(), (say(A),), {}, "the primary lives: 6589d30f has all that was acknowledged"),
        (state(), (say(B), say(C)), {}, "a takeover is possible without losing anything: 5e0a09bb has all"),
        (state(), (say(B, proof=76), say(C)), {}, "a takeover is possible"),
        (state(freeze=True), (say(B), say(C)), {}, "`manatee-adm unfreeze`"),
        (None, (active(A, initialized=False), active(B, initialized=False)), {}, "there is nothing to go on with"),
    ],
)
def test_it_is_refused_where_the_shard_goes_on_or_could(
    before: ClusterState | None, present: Any, states: Any, said: str
) -> None:
    with pytest.raises(Refused, match=re.escape(said)):
        check_stuck(*look(before, *present, **states), {})


@pytest.mark.parametrize(
    ("before", "present"),
    [
        (state(), (say(B),)),  # nobody to become the sync
        (state(), (say(B), say(C, serving=False))),
        (state(), (say(C),)),  # primary and sync are gone
        (state(), (say(B, proof=0), say(C))),  # the sync was restored
        (state(), (say(A, serving=False), say(B))),  # the primary's PostgreSQL does not come up
        (state(freeze=True), (say(B),)),
        (singleton(), ()),
        (None, (say(A), say(B), say(C))),  # ZooKeeper was wiped
        (state(generation=5), (say(A), say(B), say(C))),  # or restored from an old backup
    ],
)
def test_it_is_for_shards_that_nothing_else_gets_going(before: ClusterState | None, present: Any) -> None:
    check_stuck(*look(before, *present), {})


def test_where_zookeeper_forgot_a_primary_that_writes_may_be_confirmed() -> None:
    view, held = look(None, say(A), say(B), a=WRITES)
    check_stuck(view, held, {})
    first = candidates(view, held)[0]
    assert (first.holding.peer, first.lost[:8]) == (A, "nothing:")


@pytest.mark.parametrize("absent", [A, B])
def test_a_postgresql_that_lives_without_its_sitter_must_end_first(absent: Peer) -> None:
    """Together, out of everybody's sight, old primary and old sync go on acknowledging."""
    seen: Observations = {absent.id: Observed()}
    with pytest.raises(Refused, match=f"its PostgreSQL answers at {absent.ip}: it may still acknowledge"):
        check_stuck(*look(state(), say(C)), seen)


def test_who_loses_least_comes_first_and_only_who_has_the_shards_data_counts() -> None:
    view, held = look(
        state(deposed=[D]), say(B, proof=0), say(C), say(D, lsn="B7/2F000000", diverged="at timeline 8"), a=RESIGNED
    )
    assert [one.holding.peer for one in candidates(view, held)] == [C, A, B, D]
    for stranger in (
        say(C, system_identifier="1"),
        active(C, initialized=False),
        active(C, promises=False),
        active(C, silent=True),
    ):
        assert candidates(*look(state(), stranger)) == []
    assert candidates(*look(state())) == []


@pytest.mark.parametrize(
    ("said", "states"),
    [
        ({"torn": True}, {}),
        ({"restoring": True}, {}),
        ({}, {"c": {"reason": "", "postgres": {"torn": True}}}),
        ({}, {"c": {"reason": "", "postgres": {"replacing": True}}}),
    ],
)
def test_half_rewound_data_and_data_that_are_being_replaced_are_nobodys_to_force(said: Any, states: Any) -> None:
    """Promise 3: what the operator was told of them is not what would be started."""
    assert candidates(*look(state(), say(C, proof=0, **said), **states)) == []


def test_who_waits_for_somebody_to_restore_from_has_its_data_still() -> None:
    waits = {"reason": "waiting", "postgres": {"replacing": False, "torn": False}}
    found = candidates(*look(state(), say(C, proof=0, restoring=True), c=waits))
    assert [one.holding.peer for one in found] == [C]


def test_a_candidate_goes_by_its_zone_label_id_or_address() -> None:
    found = candidates(*look(state(), say(B), say(C)))
    for name in (C.zone_id, C.label, C.id, C.ip):
        assert chosen(found, name).holding.peer == C
    with pytest.raises(Refused, match=re.escape('"6589d30f" cannot be forced: 5e0a09bb, a7fdcdaa has a database')):
        chosen(found, A.label)


def test_the_generation_is_beyond_all_that_anybody_speaks_of_and_the_rest_is_kept() -> None:
    before = state(unknown={"kept": 1}, deposed=[D])
    view, held = look(before, say(C, generation=77), say(D, proof=79, generation=77))
    entries = [HistoryEntry("0-1", NOW, 78, None, "bad")]
    new = forced(view, held, entries, held[2], now=NOW, reason="two machines burnt")
    assert (new.generation, new.primary, new.sync) == (81, C, D)
    assert [peer.id for peer in new.deposed] == [A.id, B.id]
    assert new.document()["unknown"] == {"kept": 1}
    assert new.override is not None
    assert (new.override.id, new.override.reason, new.override.generation) == (C.id, "two machines burnt", 81)
    with pytest.raises(Refused, match="a reason is needed"):
        forced(view, held, entries, held[2], now=NOW, reason=" ")


def test_who_is_likeliest_to_follow_becomes_the_sync() -> None:
    """A peer that is ahead of the forced primary diverges from it; one without data can be restored."""
    view, held = look(
        state(**{"async": [C, D]}),
        say(A, lsn="B7/20000010", serving=False),
        say(B, proof=0),
        say(C),
        say(D, lsn="B7/1"),
    )
    new = forced(view, held, (), next(one for one in held if one.peer == C), now=NOW, reason="x")
    assert new.sync == D
    assert new.asyncs == (B, A)
    empty = [*held[:1], Holding(B, held[1].role, present=True, heard=True)]
    assert forced(view, empty, (), held[2], now=NOW, reason="x").sync == B


def test_alone_it_writes_alone_and_is_frozen() -> None:
    view, held = look(state(), say(C))
    new = forced(view, held, (), held[2], now=NOW, reason="x")
    assert (new.sync, new.one_node_write_mode, new.frozen) == (None, True, True)
