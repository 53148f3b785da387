"""Who holds what, why nobody goes on, and what would be lost: what is known, and what is not."""

from __future__ import annotations

from typing import Any

import pytest

from admin.sitters import States
from admin.standing import Holding, acted_on, holdings, loss, standstill, told
from manatee.cluster import ClusterState, Peer
from manatee.coordination import Active
from tests.admin.shapes import A, B, C, D, active, state, view_of

SHARD = "7711045678570147450"


def say(peer: Peer, *, proof: int = 77, lsn: str | None = "B7/20000000", **said: Any) -> Active:
    """A present peer with data, and what it says of them."""
    return active(peer, system_identifier=SHARD, proof=proof, lsn=lsn, timeline=9, **said)


def held(before: ClusterState | None, *present: Active, states: States | None = None) -> list[Holding]:
    return holdings(view_of(before, present), states or {})


def of(found: list[Holding], peer: Peer) -> Holding:
    return next(one for one in found if one.peer == peer)


def sitter(**said: Any) -> dict[str, Any]:
    """What `/state` answers."""
    memory = {"identifier": SHARD, "generation": 77, "proof": said.pop("proof", 77), "seal": None}
    return {"reason": "waiting", "waitingFor": None, "memory": memory, "postgres": {}, "comparison": None, **said}


FINE = "proof of generation 77, timeline 9, WAL flushed up to B7/20000000"


# --- What each peer holds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("present", "states", "said"),
    [
        ((), {}, "absent: what it holds is not known"),
        ((active(B, silent=True),), {}, "present, but has not said how it is"),
        ((active(B, promises=False),), {}, "a Manatee 2 peer, which says nothing of its data"),
        ((active(B, initialized=False),), {}, "has no database"),
        ((active(B, initialized=False, restoring=True),), {}, "is being restored"),
        ((say(B),), {}, FINE),
        (
            (say(B, proof=0, lsn=None),),
            {},
            "no proof that its data are the shard's, PostgreSQL does not run, and its position is not known",
        ),
        ((say(B, running=False),), {}, FINE.replace("flushed", "on disk") + ", PostgreSQL does not run"),
        (
            (say(B, lsn=None),),
            {B.id: sitter(postgres={"end": None, "atRest": {"end": "B7/20000010", "timeline": 10}})},
            "proof of generation 77, timeline 10, WAL on disk up to B7/20000010, PostgreSQL does not run",
        ),
        (
            (say(B, diverged="from 6589d30f's at timeline 8, B6/95000000"),),
            {},
            f"{FINE}, diverged: from 6589d30f's at timeline 8, B6/95000000",
        ),
        (
            (),
            {B.id: sitter(postgres={"end": "B7/30000000", "timeline": 10})},
            "not in the active list, proof of generation 77, timeline 10, WAL flushed up to B7/30000000",
        ),
    ],
)
def test_what_a_peer_holds_is_said_in_a_sentence(present: Any, states: Any, said: str) -> None:
    assert told(of(held(state(), *present, states=states), B)) == f'peer "5e0a09bb" (sync): {said}'


def test_a_sitter_knows_more_than_its_status_which_is_written_now_and_then() -> None:
    found = held(state(), say(B), states={B.id: sitter(postgres={"end": "B7/20000010", "writable": True}, proof=78)})
    assert told(of(found, B)).endswith(
        "proof of generation 78, timeline 9, WAL flushed up to B7/20000010, open for writes"
    )
    assert acted_on(found) == [77, 78]


def test_every_peer_is_there_once_in_the_states_order_and_strangers_last() -> None:
    found = held(state(deposed=[D]), say(C), say(A))
    assert [one.what for one in found] == ["primary", "sync", "async 0", "deposed"]
    assert [one.what for one in held(None, say(C), say(A))] == ["unassigned", "unassigned"]


# --- What would be lost -----------------------------------------------------------------------------------------------


def lost(one: Peer, *present: Active, **changes: Any) -> str:
    before = state(**changes)
    found = held(before, *present)
    return loss(of(found, one), found, before)


def test_primary_and_sync_with_proof_lose_nothing() -> None:
    assert lost(A, say(A)) == "nothing: it is the primary of generation 77, and has all that it wrote"
    wanted = "nothing: as the sync of generation 77 it has all that was acknowledged under it"
    assert lost(B, say(B)) == lost(B, say(B, proof=76)) == wanted
    assert not lost(A, say(A, proof=76)).startswith("nothing:")
    assert not lost(B, say(B, proof=75)).startswith("nothing:")
    assert not lost(B, say(B, diverged="elsewhere")).startswith("nothing:")


def test_an_async_loses_at_most_what_the_sync_or_the_primary_has_beyond_it() -> None:
    """Nothing is acknowledged that not both of them have: the lesser position is the limit."""
    ends = "; acknowledged since generation 77 began, at B6/952E6978"
    behind = say(C, lsn="B7/1FFFF000")
    by_sync = "up to 4,096 bytes of WAL between B7/1FFFF000 and B7/20000000, which 5e0a09bb has" + ends
    assert lost(C, say(B), behind) == lost(C, say(A, lsn="B7/20000010"), say(B), behind) == by_sync
    by_primary = "up to 4,112 bytes of WAL between B7/1FFFF000 and B7/20000010, which 6589d30f has" + ends
    assert lost(C, say(A, lsn="B7/20000010"), behind) == by_primary
    assert lost(C, say(A, lsn="B7/20000010"), say(B, proof=1), behind) == by_primary
    even = "nothing: 5e0a09bb has nothing beyond B7/20000000 that was acknowledged" + ends
    assert lost(C, say(B), say(C)) == even


def test_where_both_are_gone_nobody_knows_how_much() -> None:
    ends = "; acknowledged since generation 77 began, at B6/952E6978"
    assert (
        lost(C, say(C))
        == f"all that 6589d30f and 5e0a09bb had beyond B7/20000000: how much that is, nobody knows{ends}"
    )
    more = "up to 16 bytes of WAL between B7/20000000 and B7/20000010, which d0d0d0d0 has"
    unknown = "and what 6589d30f and 5e0a09bb had beyond that, which nobody knows"
    assert lost(C, say(C), say(D, lsn="B7/20000010")) == f"{more}, {unknown}{ends}"


def test_data_of_an_older_generation_or_without_proof_are_not_praised() -> None:
    old = lost(C, say(B), say(C, proof=75))
    assert old.startswith(
        "its data belong to generation 75; it may lack what generation 77 began with, at B6/952E6978; "
    )
    unproven = lost(C, say(B), say(C, proof=0))
    assert unproven.startswith("it is not known whether its data are the shard's at all; ")
    parted = lost(C, say(B), say(C, diverged="at timeline 8, B6/95000000"))
    assert "they part from the others' (at timeline 8, B6/95000000)" in parted
    assert "as its position is not" in lost(C, say(B), say(C, lsn=None))


def test_data_that_have_diverged_are_no_measure_for_the_others() -> None:
    stray = say(D, lsn="FF/0", diverged="at timeline 8, B6/95000000")
    assert "FF/00000000" not in lost(C, say(B), say(C), stray, deposed=[D])


def test_where_zookeeper_forgot_only_a_peer_that_accepts_writes_is_known_to_lose_nothing() -> None:
    present = say(A, lsn="B7/20000010"), say(B)
    writing = {A.id: sitter(postgres={"writable": True, "end": "B7/20000010"})}
    for before, unknown in (
        (None, ""),
        (state(generation=5), ", and what a7fdcdaa had beyond that, which nobody knows"),
    ):
        found = held(before, *present, states=writing)
        assert loss(of(found, A), found, before) == "nothing: it is the primary of generation 77, and goes on as that"
        assert loss(of(found, B), found, before) == (
            f"up to 16 bytes of WAL between B7/20000000 and B7/20000010, which 6589d30f has{unknown}; "
            "ZooKeeper does not say who was primary and sync of generation 77"
        )


# --- Why nobody goes on -----------------------------------------------------------------------------------------------


def test_a_sync_that_waits_is_quoted_once() -> None:
    says = sitter(reason="the primary 6589d30f is absent; waiting: no async is present", waitingFor="an async peer")
    before = state()
    found = standstill(view_of(before, (say(B),)), held(before, say(B), states={B.id: says}))
    assert found.for_good
    quoted = "waiting: no async is present, and waits for an async peer"
    assert found.why == f"the primary 6589d30f is absent; 5e0a09bb (sync) says: {quoted}"


@pytest.mark.parametrize(
    ("changes", "present", "states", "why", "for_good"),
    [
        ({}, (), {}, "the primary 6589d30f is absent, the sync 5e0a09bb as well, and nobody else may take over", True),
        ({"freeze": True}, (say(B),), {}, "the primary 6589d30f is absent, and the shard is frozen", True),
        (
            {},
            (say(B),),
            {A.id: sitter(reason="resigned")},
            "the primary 6589d30f is absent (it says: resigned); the sitter of 5e0a09bb (sync) does not answer",
            False,
        ),
        ({}, (say(A),), {A.id: sitter(reason="sealing")}, "6589d30f (primary) says: sealing", False),
        (
            {},
            (say(A),),
            {A.id: sitter(reason="waiting", waitingFor="an async", postgres={"writable": True})},
            (
                "commits on 6589d30f wait for the sync 5e0a09bb; 6589d30f (primary) says: waiting, "
                "and waits for an async"
            ),
            True,
        ),
    ],
)
def test_why_nobody_goes_on(changes: Any, present: Any, states: Any, why: str, for_good: bool) -> None:
    before = state(**changes)
    found = standstill(view_of(before, present), held(before, *present, states=states))
    assert (found.why, found.for_good) == (why, for_good)


def test_without_a_state_everybody_says_what_he_remembers_and_the_same_words_once() -> None:
    refusing = sitter(reason="refusing: ZooKeeper holds no cluster state", waitingFor="an operator")
    states = {A.id: refusing, B.id: refusing, C.id: sitter(reason="not set up")}
    present = (say(A), say(B), say(C))
    found = standstill(view_of(None, present), held(None, *present, states=states))
    assert found.why == (
        "ZooKeeper holds no cluster state: "
        "6589d30f, 5e0a09bb says: refusing: ZooKeeper holds no cluster state, and waits for an operator; "
        "a7fdcdaa says: not set up"
    )
