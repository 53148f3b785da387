"""What an operator may ask of a shard, and when it is refused: states in, states out."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admin import requests
from admin.requests import Refused, outcome
from manatee.cluster import ClusterState
from manatee.coordination import Active
from tests.admin.shapes import NOW, A, B, C, D, E, active, peer, singleton, state

EVERYONE = (active(A), active(B), active(C), active(D))
CHAIN = state(**{"async": [C, D]})


def promote(before: ClusterState, name: str, role: str, index: int | None = None, **changes: Any) -> ClusterState:
    who = changes.get("active", EVERYONE)
    return requests.promote(before, who, name, role=role, async_index=index, now=changes.get("now", NOW))


def test_a_freeze_says_when_and_why_and_keeps_everything_else() -> None:
    before = state(somethingNew={"x": 1}, promote={"id": B.id, "unknown": 2})
    after = requests.freeze(before, "moving racks", NOW)
    assert after.document() == {
        **before.document(),
        "freeze": {"date": "2026-01-16T08:08:33.000Z", "reason": "moving racks"},
    }
    assert requests.unfreeze(after) == before


def test_a_frozen_shard_is_not_frozen_over_and_one_that_is_not_is_not_unfrozen() -> None:
    frozen = requests.freeze(state(), "the first", NOW)
    with pytest.raises(Refused, match=r"already frozen since 2026.* \(the first\)"):
        requests.freeze(frozen, "the second", NOW)
    with pytest.raises(Refused, match="not frozen"):
        requests.unfreeze(state())
    with pytest.raises(Refused, match="not frozen"):
        requests.unfreeze(state(freeze=False))
    with pytest.raises(Refused, match="a reason is needed"):
        requests.freeze(state(), "  ", NOW)
    assert not requests.unfreeze(state(freeze=True)).frozen


def test_off_the_deposed_list_keeps_generation_freeze_and_promote() -> None:
    before = state(deposed=[D, peer("other", "10.9.9.9")], freeze=True, promote={"id": B.id}, more=[1])
    after = requests.undeposed(before, D.id)
    assert after is not None
    assert after.document() == {**before.document(), "deposed": [before.deposed[1].document()]}
    assert requests.undeposed(after, D.id) is None


def test_reaping_takes_a_deposed_peer_off_and_touches_nothing_else() -> None:
    before = state(deposed=[D, E], freeze=True, promote={"id": B.id}, more=[1])
    for name in (D.zone_id, D.label, D.id, D.ip):
        after = requests.reap(before, EVERYONE[:3], name)
        assert after.document() == {**before.document(), "deposed": [E.document()]}


@pytest.mark.parametrize(
    ("name", "present", "said"),
    [
        (C.label, (), "a7fdcdaa is async 0, not deposed: who is not deposed leaves by itself"),
        (A.label, (), "6589d30f is the primary, not deposed"),
        ("nobody", (), 'no peer is called "nobody"'),
        (D.label, EVERYONE, "d0d0d0d0 is connected to ZooKeeper, so it is not gone: `manatee-adm rebuild` there"),
    ],
)
def test_only_who_is_deposed_and_gone_is_reaped(name: str, present: tuple[Active, ...], said: str) -> None:
    with pytest.raises(Refused, match=re.escape(said)):
        requests.reap(state(deposed=[D]), present, name)


def test_a_deposed_peer_that_is_there_is_reaped_by_force_alone() -> None:
    """Its data are compared as anybody's. Where `postgres.rejoin` is never, this is the way without a restore."""
    assert requests.reap(state(deposed=[D]), EVERYONE, D.label, force=True) == state()
    with pytest.raises(Refused, match="is the primary, not deposed"):
        requests.reap(state(deposed=[D]), EVERYONE, A.label, force=True)


def test_two_peers_of_one_address_are_told_apart_by_their_ids() -> None:
    twin = peer("f0f0f0f0-0000-4000-8000-000000000006", D.ip, 5433)
    with pytest.raises(Refused, match=re.escape(f"could be {D.id} or {twin.id}: say which by its id")):
        requests.reap(state(deposed=[D, twin]), (), D.ip)
    assert requests.reap(state(deposed=[D, twin]), (), twin.id).deposed == (D,)


def test_a_request_is_withdrawn_whatever_it_says() -> None:
    before = state(promote={"id": 7, "nonsense": True}, freeze=True, more=[1])
    assert requests.clear_promote(before).document() == state(freeze=True, more=[1]).document()
    with pytest.raises(Refused, match="no promotion is asked for"):
        requests.clear_promote(state())


@pytest.mark.parametrize(
    ("name", "role", "index"), [(B.zone_id, "sync", None), (B.label, "sync", None), (B.id, "sync", None)]
)
def test_a_peer_goes_by_its_zone_label_or_id(name: str, role: str, index: int | None) -> None:
    after = promote(CHAIN, name, role, index)
    assert after.promote is not None
    assert after.promote.document() == {
        "id": B.id,
        "role": "sync",
        "generation": 77,
        "expireTime": "2026-01-16T08:09:03.000Z",
    }
    assert after.replace(without=("promote",)) == CHAIN


def test_an_asyncs_request_has_its_index() -> None:
    after = promote(CHAIN, D.label, "async", 1)
    assert after.promote is not None
    assert after.promote.async_index == 1
    only = promote(state(), C.label, "async")
    assert only.promote is not None
    assert only.promote.async_index == 0


@pytest.mark.parametrize(
    ("before", "name", "role", "index", "said"),
    [
        (CHAIN, "nobody", "sync", None, 'no peer is called "nobody": there are 6589d30f, 5e0a09bb'),
        (CHAIN, A.label, "sync", None, "is the primary already"),
        (CHAIN, C.label, "sync", None, "a7fdcdaa is async 0, not sync"),
        (CHAIN, B.label, "async", 0, "5e0a09bb is the sync, not async"),
        (CHAIN, C.label, "async", None, "there are 2 asyncs: confirm which one"),
        (CHAIN, C.label, "async", 1, "a7fdcdaa is async 0, not async 1"),
        (CHAIN, B.label, "sync", 0, "goes with --role=async"),
        (state(deposed=[D]), D.label, "async", None, "is deposed"),
        (state(freeze=True), B.label, "sync", None, "frozen"),
        (singleton(freeze=None), A.label, "sync", None, "one-node-write mode"),
        (state(**{"async": []}), B.label, "sync", None, "no async is there"),
    ],
)
def test_a_promotion_that_cannot_be_is_refused_before_anything_is_written(
    before: ClusterState, name: str, role: str, index: int | None, said: str
) -> None:
    with pytest.raises(Refused, match=re.escape(said)):
        promote(before, name, role, index)


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (None, "is not connected to ZooKeeper"),
        (active(C, silent=True), "has not yet said how it is"),
        (active(C, ready=False), "does not stream from its upstream"),
        (active(C, serving=False, ready=False), "does not serve"),
        (active(C, serving=False, ready=False, restoring=True), "is restoring its data"),
        (active(C, generation=76), "has not yet acted on generation 77"),
    ],
)
def test_a_peer_that_is_not_ready_is_not_promoted(one: Active | None, said: str) -> None:
    others = tuple(each for each in EVERYONE if each.peer != C)
    with pytest.raises(Refused, match=said):
        promote(CHAIN, C.label, "async", 0, active=(*others, one) if one else others)


def test_a_manatee_2_peer_says_nothing_and_counts_as_ready() -> None:
    assert promote(CHAIN, C.label, "async", 0, active=(active(C, promises=False),)).promote is not None


def test_one_request_at_a_time() -> None:
    asked = promote(CHAIN, C.label, "async", 0)
    with pytest.raises(Refused, match="under way, until 2026-01-16T08:09:03"):
        promote(asked, D.label, "async", 1)
    later = promote(asked, D.label, "async", 1, now=NOW + 31)
    assert later.promote is not None
    assert later.promote.id == D.id
    elsewhen = asked.replace(generation=78)
    assert promote(elsewhen, D.label, "async", 1, active=[active(D, generation=78)]).promote != asked.promote


# --- What becomes of a request ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "now", "verdict", "said"),
    [
        (
            ("sync", B, None),
            state(generation=78, primary=B, sync=C, deposed=[A], **{"async": [D]}),
            "done",
            "is now the primary",
        ),
        (("async", C, 0), state(generation=78, sync=C, **{"async": [B, D]}), "done", "is now the sync"),
        (("async", D, 1), state(**{"async": [D, C]}), "done", "is now async 0"),
        (("async", C, 0), state(generation=78, primary=B, sync=D, deposed=[A], **{"async": [C]}), "failed", "moved on"),
        (("async", C, 0), CHAIN, "failed", "withdrawn"),
        (("async", C, 0), state(freeze=True, **{"async": [C, D]}), "failed", "frozen"),
    ],
)
def test_the_outcome_of_a_request(
    asked: tuple[str, Any, int | None], now: ClusterState, verdict: str, said: str
) -> None:
    role, who, index = asked
    found = outcome(promote(CHAIN, who.label, role, index), now, NOW + 1)
    assert (found.verdict, said in found.text) == (verdict, True)


def test_a_request_is_pending_until_it_has_expired_for_good() -> None:
    asked = promote(CHAIN, C.label, "async", 0)
    assert outcome(asked, asked, NOW + 29).verdict == "pending"
    assert outcome(asked, asked, NOW + 33).verdict == "pending"
    late = outcome(asked, asked, NOW + 60)
    assert (late.verdict, "expired" in late.text) == ("failed", True)


@given(st.sampled_from([A, B, C, D]), st.sampled_from(["sync", "async"]), st.one_of(st.none(), st.integers(-1, 3)))
def test_a_request_never_touches_anything_but_itself(who: Any, role: str, index: int | None) -> None:
    before = CHAIN.replace(freeze=False)
    try:
        after = promote(before, who.label, role, index)
    except Refused:
        return
    assert after.replace(without=("promote",)) == before
    assert before.role_of(who.id) == role
