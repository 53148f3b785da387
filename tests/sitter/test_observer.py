"""Promise 3: a comparison is worth what the upstream said before it, if it says the same after it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from manatee.cluster import Comparison, PeerStatus
from manatee.coordination import Active
from manatee.lsn import Lsn
from sitter.observer import Observer
from sitter.shard import Shard
from sitter.view import Link, Memory, Seal
from tests.core.views import GENERATION, A, B, state, view

LINK = Link(A.id, 4, 4, Comparison.PREFIX, Lsn(100))


class Comparer:
    link = LINK


GIVEN = SimpleNamespace(sync_grace=10.0, seal_timeout=5.0, crash_restart_timeout=5.0, handover_timeout=5.0)
SETTINGS = SimpleNamespace(identity=B, postgres=GIVEN)


def observer() -> Observer:
    unused = cast(Any, None)
    return Observer(cast(Any, SETTINGS), unused, unused, unused, cast(Any, Comparer), unused, unused)


def upstream(proof: int | None, *, promises: bool = True) -> list[Active]:
    status = None if proof is None else PeerStatus(initialized=True, generation=4, proof=proof)
    return [Active("node", A, promises, status)]


@pytest.mark.parametrize(
    ("active", "counts"),
    [
        (upstream(4), True),
        (upstream(5), True),
        (upstream(None, promises=False), True),
        (upstream(0), False),
        (upstream(None), False),
        ([], False),
    ],
    ids=["the same", "more", "Manatee 2 says nothing", "it lost its data", "it has not said anything", "it is absent"],
)
def test_a_comparison_counts_if_the_upstream_still_has_the_proof(active: list[Active], counts: bool) -> None:
    assert observer()._confirmed_link(active) == (LINK if counts else None)


def test_what_counted_once_stays() -> None:
    watching = observer()
    assert watching._confirmed_link(upstream(4)) == LINK
    assert watching._confirmed_link([]) == LINK


@pytest.mark.parametrize(
    ("conninfo", "streams"),
    [
        ("user=postgres host=10.0.0.1 port=5432 sslmode=prefer", True),
        ("user=postgres host=10.0.0.1 port=5433 sslmode=prefer", False),
        ("user=postgres host=10.0.0.11 port=5432 sslmode=prefer", False),
        ("", False),
    ],
)
def test_a_receiver_streams_from_its_upstream_by_host_and_port(conninfo: str, streams: bool) -> None:
    """Several peers may share an address: what one of them sends was not compared."""
    transitions = SimpleNamespace(failures=SimpleNamespace(flapping=False))
    unused = cast(Any, None)
    parts = (cast(Any, SETTINGS), unused, unused, cast(Any, transitions), cast(Any, Comparer), unused, unused)
    facts = SimpleNamespace(receiver=SimpleNamespace(status="streaming", silent=0.1, conninfo=conninfo))
    assert Observer(*parts)._streaming(cast(Any, facts), A) is streams


def test_a_seal_that_led_to_a_new_generation_was_not_given_up() -> None:
    """The next one need not wait: a sync may die right after a takeover."""
    watching, seal = observer(), Memory(seal=Seal(GENERATION, Lsn(100)))
    assert not watching._gave_up(Memory(), state())
    watching._gave_up(seal, state())
    assert watching._gave_up(Memory(), state())
    watching._gave_up(seal, state(generation=GENERATION + 1))
    assert not watching._gave_up(Memory(), state(generation=GENERATION + 1))


def test_the_time_unreached_begins_while_writes_are_taken_and_goes_on_while_postgresql_is_stopped_for_it() -> None:
    watching = observer()
    down: dict[str, Any] = {"attached": {}, "online": False, "writable_for": 0.0}

    def after(seconds: float, **changes: Any) -> float:
        seen = view(A, **changes)
        assert seen.state is not None
        return watching._unreached_for(Shard(seen, seen.state), seconds)

    assert after(0.0, **down) == 0.0
    assert after(1.0, **down) == 0.0
    assert after(2.0, attached={}) == 0.0
    assert after(5.0, **down) == 3.0
    assert after(6.0, connected=frozenset({B.id})) == 0.0
    assert after(7.0, **down) == 0.0


def test_whoever_has_what_a_primary_lost_is_remembered_until_its_data_or_ours_are_others() -> None:
    """Promise 1: once the primary has written as much, positions say nothing any more."""
    watching, names = observer(), {"a": A.id}

    def found(*, ahead: bool, in_recovery: bool = False, proof: int = 4) -> frozenset[str]:
        row = SimpleNamespace(application_name="a", ahead=ahead)
        facts = SimpleNamespace(in_recovery=in_recovery, downstreams=(row,))
        return watching._found_ahead(cast(Any, facts), names, upstream(proof))

    assert found(ahead=False) == frozenset()
    assert found(ahead=True, in_recovery=True) == frozenset(), "a standby may not have replayed yet what it had sent"
    assert found(ahead=True) == found(ahead=False) == {A.id}
    assert watching._found_ahead(None, names, upstream(4)) == {A.id}, "PostgreSQL was stopped because of it"
    assert found(ahead=False, proof=0) == frozenset(), "its data are being replaced"
    assert found(ahead=True) == {A.id}
    assert found(ahead=False, in_recovery=True) == frozenset(), "ours were"
