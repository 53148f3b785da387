"""What is wrong beyond what PostgreSQL shows: a ZooKeeper that forgot, data that parted, a standstill and its cost."""

from __future__ import annotations

from typing import Any

import pytest

from admin.inspection import Inspection, stateless
from admin.observed import Observed
from admin.standing import holdings
from manatee.cluster import Cluster, ClusterState
from tests.admin.shapes import A, B, C, D, active, healthy, state, view_of

WRITES = {"reason": "refusing", "waitingFor": "an operator", "postgres": {"writable": True, "end": "B7/20000000"}}


def said(before: ClusterState, *present: Any, states: Any = None, seen: Any = None, **changes: Any) -> list[str]:
    view = view_of(before, present, **changes)
    held = holdings(view, states or {}) if states is not None else ()
    return [str(each) for each in Inspection(view, before, seen or healthy(), held).problems]


def test_a_shard_that_is_well_has_no_problems() -> None:
    assert said(state(), active(A), active(B), active(C)) == []


@pytest.mark.parametrize(
    ("before", "present", "changes", "line"),
    [
        (
            state(),
            (active(A), active(B, diverged="from 6589d30f: at B6/95000000")),
            {},
            'warning: peer "5e0a09bb": diverged: from 6589d30f: at B6/95000000',
        ),
        (
            state(),
            (active(A),),
            {"unreadable": (("lock-1", "not JSON"),)},
            'warning: "lock-1" in election is not a peer, and stops every Manatee 2 peer: not JSON',
        ),
        (
            state(),
            (active(A),),
            {"cluster": Cluster(created="", by=B.id, system_identifier=None)},
            'error: the set-up is not complete: "5e0a09bb" has yet to create the database',
        ),
        (
            state(),
            (active(A, generation=78), active(B), active(C, generation=79)),
            {},
            (
                "error: ZooKeeper holds generation 77, but 6589d30f, a7fdcdaa acted on generation 79: "
                "ZooKeeper has forgotten, and is not believed"
            ),
        ),
    ],
)
def test_each_trouble_is_a_line(before: ClusterState, present: Any, changes: Any, line: str) -> None:
    assert said(before, *present, **changes) == [line]


def test_where_nothing_will_end_it_the_lines_say_who_holds_what_and_what_it_would_cost() -> None:
    waits = {"reason": "waiting: no async", "waitingFor": "an async"}
    gone = {**healthy(), A.id: Observed(error="refused")}
    lines = said(state(), active(B, proof=77, lsn="B7/20000000"), states={B.id: waits}, seen=gone)
    assert lines[:2] == [
        "error: cannot query postgres on primary",
        'error: peer "6589d30f": downstream replication peer not connected',
    ]
    assert lines[2] == (
        "error: no write is acknowledged: the primary 6589d30f is absent; "
        "5e0a09bb (sync) says: waiting: no async, and waits for an async"
    )
    assert [line.split(":")[1].strip() for line in lines[3:]] == [
        'peer "6589d30f" (primary)',
        'peer "5e0a09bb" (sync)',
        'peer "a7fdcdaa" (async 0)',
        'peer "5e0a09bb"',
    ]
    assert lines[-1].startswith('error: peer "5e0a09bb": to go on with its data would lose nothing')


def test_a_takeover_that_is_under_way_is_one_line() -> None:
    gone = {**healthy(), A.id: Observed(error="refused")}
    lines = said(state(), active(B), states={B.id: {"reason": "sealing"}}, seen=gone)
    assert lines[-1] == (
        "error: no write is acknowledged: the primary 6589d30f is absent; 5e0a09bb (sync) says: sealing"
    )


@pytest.mark.parametrize("mode", [{"in_recovery": True}, {"read_only": True}])
def test_a_primary_that_answers_but_takes_no_writes_is_a_standstill(mode: Any) -> None:
    seen = {**healthy(), A.id: Observed(walsenders=healthy()[A.id].walsenders, **mode)}
    lines = said(state(), active(A), active(B), states={A.id: {"reason": "promoting"}}, seen=seen)
    assert lines == ["error: no write is acknowledged: 6589d30f (primary) says: promoting"]


def test_where_zookeeper_forgot_a_peer_that_writes_is_named() -> None:
    """The state names A, but B became primary after it: B goes on, and A follows it."""
    seen = {**healthy(), A.id: Observed(in_recovery=True)}
    lines = said(state(), active(A, generation=78), active(B, generation=78), states={B.id: WRITES}, seen=seen)
    assert any(
        line.startswith("error: 5e0a09bb is open for writes still, but nobody can take over: ") for line in lines
    )
    assert not any("no write is acknowledged" in line for line in lines)


def test_without_a_state_it_is_said_whether_there_ever_was_one() -> None:
    empty = {"reason": "not set up: no other peer is present", "memory": {"generation": 0, "proof": 0}}
    fresh = holdings(view_of(None, (active(D, generation=0),)), {D.id: empty})
    assert stateless("sdc", fresh) == (
        "the shard sdc is not set up: it has no cluster state yet; d0d0d0d0 says: not set up: no other peer is present"
    )
    known = holdings(view_of(None, (active(C, generation=0), active(D, generation=9))), {})
    assert stateless("sdc", known).startswith(
        "ZooKeeper holds no cluster state of sdc, but d0d0d0d0 knows of generation 9: ZooKeeper has lost its data"
    )
