"""Whose election node may be removed because its peer was seen dead, by whom, and when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from manatee.cluster import Peer
from sitter.decide import decide
from sitter.view import Death, Limits, Present, Standby, View
from tests.core.views import A, B, C, D, active, manatee_2, says, state, view

PORT = 5433


def at(one: Present, **changes: Any) -> Present:
    """With an election node, and a sitter that says where it listens."""
    status = one.status and one.status.model_copy(update={"status_port": PORT})
    return replace(one, node=f"{one.peer.id}-0000000001", status=status, **changes)


def everyone(**changes: Any) -> tuple[Present, ...]:
    """The peers of the chain; `changes` by the first's names: `A={"evicted_for": 3.0}`."""
    names = {"A": A, "B": B, "C": C, "D": D}
    return tuple(at(says(peer), **changes.get(name, {})) for name, peer in names.items())


def dead(one: Peer, generation: int = 3) -> Death:
    return Death(f"{one.id}-0000000001", generation, "refused")


def bereft(me: Peer, **changes: Any) -> View:
    """What `me` knows when replication with the other of primary and sync has ended, and that was seen dead."""
    other = A if me is B else B
    known: dict[str, Any] = {"active": everyone(), "connected": frozenset(), "death": dead(other), **changes}
    return view(me, **known)


@pytest.mark.parametrize(("me", "other"), [(A, B), (B, A)], ids=["the sync", "the primary"])
def test_primary_and_sync_evict_each_other(me: Peer, other: Peer) -> None:
    decision = decide(bereft(me))
    assert decision.evict == dead(other).node
    assert decision.neighbour is not None
    assert decision.neighbour.node == dead(other).node
    assert decision.neighbour.sitter == (other.ip, PORT)
    assert decision.neighbour.postgres == (other.ip, 5432)
    assert decision.neighbour.witnesses == ((C.ip, PORT), (D.ip, PORT))


@pytest.mark.parametrize("me", [C, D], ids=lambda one: one.label)
@pytest.mark.parametrize("other", [A, B], ids=lambda one: one.label)
def test_nobody_else_evicts(me: Peer, other: Peer) -> None:
    decision = decide(bereft(me, death=dead(other)))
    assert decision.evict is None
    assert decision.neighbour is None


FROZEN = state(freeze={"date": "2026-01-01T00:00:00.000Z", "reason": "maintenance"})
NOT = {
    "nobody was seen dead": {"death": None},
    "another node of it was": {"death": Death(f"{B.id}-0000000000", 3, "refused")},
    "in another generation": {"death": dead(B, generation=2)},
    "an async was": {"death": dead(C)},
    "replication goes on": {"connected": frozenset({B.id})},
    "the shard is frozen": {"state": FROZEN},
    "it is switched off": {"evict_dead": False},
    "a write is open": {"write_open": True},
    "we have no proof": {"proof": 2},
    "we are not in the list": {"active": everyone()[1:]},
    "we are leaving": {"leaving": True},
    "PostgreSQL is not online": {"online": False},
    "it lived the last time": {"active": everyone(B={"evicted_for": Limits().retry_pause - 1})},
    "it is of Manatee 2": {"active": (at(says(A)), at(manatee_2(B)), at(says(C)))},
    "no async serves": {"active": (*everyone()[:2], at(says(C, serving=False)))},
    "no async is there": {"active": everyone()[:2]},
}


@pytest.mark.parametrize("changes", NOT.values(), ids=NOT)
def test_nobody_is_evicted_when(changes: dict[str, Any]) -> None:
    assert decide(bereft(A, **changes)).evict is None


def test_who_lived_may_be_evicted_again_after_some_minutes() -> None:
    assert decide(bereft(A, active=everyone(B={"evicted_for": Limits().retry_pause}))).evict is not None


def test_the_sync_evicts_nobody_whom_it_could_not_replace() -> None:
    assert decide(bereft(B, attached={})).evict is None


def test_switched_off_nobody_is_even_watched() -> None:
    assert decide(bereft(A, evict_dead=False)).neighbour is None


def test_the_neighbour_is_asked_about_in_the_present_generation() -> None:
    later = decide(view(A, active=everyone(), state=state(generation=4), proof=4)).neighbour
    assert later is not None
    assert later.generation == 4


def test_an_async_changes_over_to_the_primary_at_once_on_proof_of_the_generation() -> None:
    """What a comparison with it would find stands in the proof already; it comes after."""
    without_sync = active(A, C, D)
    decision = decide(view(C, active=without_sync))
    assert decision.database == Standby(A)
    assert decision.compare is not None
    waiting = decide(view(C, active=without_sync, proof=2, link=None))
    assert waiting.database != Standby(A)
    unproven = (says(A, proof=2), says(C), says(D))
    assert decide(view(C, active=unproven, link=None)).database != Standby(A)
    restarted = decide(view(C, active=without_sync, upstream=None, streaming=False, link=None))
    assert restarted.database == Standby(None), "one that comes up compares first, whatever it remembers"
