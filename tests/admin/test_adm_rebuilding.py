"""A rebuild throws a copy away: when that is refused, and how it is told to be going."""

from __future__ import annotations

import re
from typing import Any

import pytest

from admin.rebuilding import Look, NoSource, amount, judge, plan
from admin.requests import Refused
from manatee.cluster import ClusterState, Peer, PeerStatus
from manatee.service import State
from tests.admin.shapes import A, B, C, D, active, singleton, state

ALL = (active(A), active(B), active(C), active(D))


@pytest.mark.parametrize(
    ("before", "me", "role", "sources"),
    [
        (state(), C, "async 0", [A, B]),
        (state(deposed=[D]), D, "deposed", [A, B, C]),
        (state(), D, "not assigned a role", [A, B, C]),
        (state(deposed=[D], freeze=True), D, "deposed", [A, B, C]),
    ],
)
def test_peers_whose_copy_the_shard_does_not_count_on_may_be_rebuilt(
    before: ClusterState, me: Peer, role: str, sources: list[Peer]
) -> None:
    found = plan(before, ALL, me)
    assert found.role == role
    assert list(found.sources) == sources


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("before", "present", "me", "said"),
    [
        (state(), ALL, A, "this peer is the primary"),
        (singleton(), ALL, B, "one-node-write mode"),
        (state(), (), C, "nobody to restore from"),
        (state(), (active(C), active(A, serving=False), active(B, silent=True)), C, "nobody to restore from"),
        (state(), (active(A, generation=76),), C, "nobody to restore from"),
        (state(), (active(A, promises=False),), C, "nobody to restore from"),
    ],
)
def test_the_data_stay_where_they_are_needed_or_nobody_can_replace_them(
    before: ClusterState, present: Any, me: Peer, said: str, force: bool
) -> None:
    with pytest.raises(Refused, match=re.escape(said)):
        plan(before, present, me, force=force)


def test_nobody_to_restore_from_is_told_peer_by_peer_and_may_change_by_itself() -> None:
    present = (active(A, serving=False), active(B, generation=76))
    with pytest.raises(NoSource) as nobody:
        plan(state(deposed=[D]), present, D)
    assert str(nobody.value) == (
        "no other peer of the shard serves (6589d30f does not serve yet, 5e0a09bb has not acted on generation 77 yet, "
        "a7fdcdaa is absent): there is nobody to restore from"
    )


def test_the_sync_is_rebuilt_only_when_the_operator_says_so() -> None:
    with pytest.raises(Refused, match=r"this peer is the sync.*promote a7fdcdaa first.*--force"):
        plan(state(), ALL, B)
    assert plan(state(), ALL, B, force=True).role == "sync"


@pytest.mark.parametrize(
    ("before", "present", "said"),
    [
        (state(), (active(B), active(C)), "the primary does not serve"),
        (state(freeze=True), ALL, "the shard is frozen"),
        (state(), (active(A), active(B)), "no async serves"),
        (state(**{"async": []}), (active(A), active(B)), "no async serves"),
    ],
)
def test_not_even_then_if_writes_would_stop_or_it_may_be_the_only_copy(
    before: ClusterState, present: Any, said: str
) -> None:
    with pytest.raises(Refused, match=re.escape(said)):
        plan(before, present, B, force=True)


def test_a_sync_that_does_not_stream_stops_no_write_by_going() -> None:
    present = (active(A), active(B, ready=False, serving=False))
    assert plan(state(freeze=True), present, B, force=True).sources == (A,)


# --- How it is going ----------------------------------------------------------------------------------------------


def status(**said: Any) -> PeerStatus:
    return PeerStatus(**{"initialized": True, "serving": True, "ready": True, "generation": 77, **said})


RUNNING = {"state": "running", "source": "http://10.65.68.51:12345", "bytes_done": 5, "bytes_total": 10, "error": None}


@pytest.mark.parametrize(
    ("look", "verdict", "said"),
    [
        (Look(), "going on", "waiting for the sitter to join"),
        (Look(service=State.FAILED), "failed", "service has failed"),
        (Look(state=state(), restore=RUNNING), "going on", "restoring from http://10.65.68.51:12345"),
        (Look(restore={**RUNNING, "source": None}), "going on", "looking for a peer to restore from"),
        (
            Look(restore={**RUNNING, "state": "waiting", "attempt": 2, "error": "refused"}),
            "going on",
            "attempt 2 to restore failed: refused; trying again",
        ),
        (Look(restore={**RUNNING, "state": "failed", "error": "disk full"}), "failed", "disk full"),
        (
            Look(
                state=state(), present=True, status=status(ready=False), restore={"state": "done"}, reason="catching up"
            ),
            "going on",
            "catching up",
        ),
        (Look(state=state(), present=True, status=status(generation=76)), "going on", "waiting for the sitter to say"),
        (Look(state=state(), present=True, status=status()), "ready", "async 0 of generation 77"),
        (Look(state=state(deposed=[C], **{"async": []}), present=True, status=status()), "failed", "deposed again"),
    ],
)
def test_every_look_is_told_in_a_sentence(look: Look, verdict: str, said: str) -> None:
    found = judge(look, C)
    assert (found.verdict, said in found.text) == (verdict, True)


def test_bytes_are_shown_as_people_read_them() -> None:
    assert judge(Look(restore=RUNNING), C).done == 5
    assert judge(Look(restore=RUNNING), C).total == 10
    assert amount(1 << 20, 4 << 20) == "1.0 of 4.0 MiB (25 %)"
    assert amount(5 << 20, 4 << 20) == "5.0 of 4.0 MiB (100 %)"
    assert amount(1 << 19, None) == "0.5 MiB"
    assert amount(1 << 20, 4 << 20, 3 << 19, 62.4) == "1.0 of 4.0 MiB (25 %), 1.5 MiB/s, 1m02s left"
