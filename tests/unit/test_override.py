"""An operator's word about whose data are the shard's: the state that says it, and when it still counts."""

from __future__ import annotations

from typing import Any

from manatee.cluster import ClusterState, Peer
from manatee.override import FREEZE, forced_state

NOW = 1_700_000_000.0


def peer(number: int) -> Peer:
    ip = f"10.65.68.{number}"
    return Peer.of(
        {
            "id": f"{ip}:5432:12345",
            "ip": ip,
            "zoneId": f"{number:08x}-5fe7-4e79-899e-c6b0f540b9c0",
            "pgUrl": f"tcp://postgres@{ip}:5432/postgres",
            "backupUrl": f"http://{ip}:12345",
        }
    )


A, B, C, D, E = (peer(number) for number in range(1, 6))


def state(**changes: Any) -> ClusterState:
    return ClusterState.of(
        {
            "generation": 7,
            "primary": A.document(),
            "sync": B.document(),
            "async": [C.document(), D.document()],
            "deposed": [E.document()],
            "initWal": "1/0000ABCD",
            "promote": {"id": B.id},
            "ours": {"kept": True},
            **changes,
        }
    )


def forced(before: ClusterState | None, primary: Peer, *present: Peer, acted_on: tuple[int, ...] = ()) -> ClusterState:
    return forced_state(before, primary, present, acted_on=acted_on, now=NOW, reason="both disks are gone")


def labels(peers: tuple[Peer, ...]) -> list[str]:
    return [each.label[-1] for each in peers]


def test_it_names_the_primary_and_the_present_in_order_and_deposes_who_may_hold_what_is_given_up() -> None:
    new = forced(state(), C, C, D, E)
    assert (new.primary, new.sync, new.asyncs) == (C, D, ())
    assert labels(new.deposed) == ["1", "2", "5"]
    assert str(new.init_wal) == "0/00000000"
    assert new.override is not None
    assert new.override.document() == {
        "id": C.id,
        "generation": new.generation,
        "date": "2023-11-14T22:13:20.000Z",
        "reason": "both disks are gone",
    }
    assert new.promote is None
    assert not new.frozen
    assert new.document()["ours"] == {"kept": True}


def test_a_deposed_peer_may_be_the_one() -> None:
    new = forced(state(), E, B, E, B)
    assert (new.primary, new.sync, new.asyncs) == (E, B, ())
    assert labels(new.deposed) == ["1", "3", "4"]


def test_no_generation_and_no_proof_of_before_counts_in_it() -> None:
    """A standby needs proof of the generation before: nobody has proof of the one that is skipped."""
    assert forced(state(), C, D).generation == 9
    assert forced(state(), C, D, acted_on=(3, 11, 8)).generation == 13


def test_a_primary_with_nobody_beside_it_takes_writes_alone_and_nobody_joins_before_an_operator_has_looked() -> None:
    new = forced(state(), C, C)
    assert (new.sync, new.asyncs, new.one_node_write_mode) == (None, (), True)
    assert new.freeze is not None
    assert new.document()["freeze"] == {"date": "2023-11-14T22:13:20.000Z", "reason": FREEZE}
    again = forced(new, C, C, D, B)
    assert (again.sync, again.one_node_write_mode, again.frozen) == (D, False, True)
    assert labels(again.deposed) == ["1", "2", "5"]


def test_a_freeze_is_the_operators_and_stays() -> None:
    why = {"date": "then", "reason": "maintenance"}
    assert forced(state(freeze=why), C).document()["freeze"] == why
    assert forced(state(freeze=why), C, D).document()["freeze"] == why


def test_without_a_state_it_makes_the_first() -> None:
    new = forced(None, B, A, B, C, acted_on=(4,))
    assert (new.generation, new.primary, new.sync, new.asyncs, new.deposed) == (6, B, A, (C,), ())


def test_it_is_due_once_in_its_own_generation_and_for_its_own_primary() -> None:
    new = forced(state(), C, D)
    assert new.forced
    assert new.override_due
    assert not new.replace(generation=new.generation + 1).forced
    assert not new.replace(generation=new.generation + 1).override_due
    assert not new.replace(primary=D, sync=C).override_due
    assert new.override is not None
    taken = new.replace(override=new.override.replace(taken="2026-01-16T08:08:33.000Z"))
    assert taken.forced
    assert not taken.override_due
    assert not state().forced
    assert not state(override={"id": A.id, "generation": "7"}).forced
