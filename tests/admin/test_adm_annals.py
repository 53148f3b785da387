"""The history in words: each step says what it did."""

from __future__ import annotations

import json
from typing import Any

import pytest

from admin.annals import changes, told
from admin.history import as_lines, as_table
from manatee.cluster import ClusterState
from manatee.coordination import HistoryEntry
from tests.admin.shapes import NOW, A, B, C, D, singleton, state

PROMOTE_C = {"id": C.id, "role": "async", "asyncIndex": 0, "generation": 77, "expireTime": "2026-01-16T08:09:03.000Z"}
PROMOTE_B = {"id": B.id, "role": "sync", "generation": 77, "expireTime": "2026-01-16T08:09:03.000Z"}
WORD = {"id": C.id, "generation": 79, "date": "2026-01-16T08:08:33.000Z", "reason": "burnt"}


def asyncs(*peers: Any) -> dict[str, Any]:
    return {"async": list(peers)}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            state(**asyncs(C, D)),
            state(generation=78, primary=B, sync=C, deposed=[A], initWal="B7/0", **asyncs(D)),
            "generation 78: 5e0a09bb took over from 6589d30f (deposed) at B7/00000000, new sync a7fdcdaa",
        ),
        (
            state(promote=PROMOTE_B),
            state(generation=78, primary=B, sync=C, deposed=[A], **asyncs()),
            (
                "generation 78: 5e0a09bb took over from 6589d30f (deposed) at B6/952E6978, new sync a7fdcdaa, "
                "as an operator asked"
            ),
        ),
        (
            state(),
            state(generation=78, sync=C, **asyncs()),
            "generation 78: 6589d30f made a7fdcdaa its sync in place of 5e0a09bb, 5e0a09bb left",
        ),
        (
            state(promote=PROMOTE_C),
            state(generation=78, sync=C, **asyncs(B)),
            "generation 78: 6589d30f made a7fdcdaa its sync in place of 5e0a09bb, as an operator asked",
        ),
        (
            state(),
            state(generation=79, primary=C, sync=D, deposed=[A, B], override=WORD, **asyncs()),
            (
                "generation 79: an operator forced a7fdcdaa to be primary in place of 6589d30f (deposed) (burnt), "
                "new sync d0d0d0d0, 5e0a09bb deposed"
            ),
        ),
        (
            state(generation=79, primary=C, override=WORD, **asyncs()),
            state(generation=79, primary=C, override={**WORD, "taken": "2026-01-16T08:09:03.000Z"}, **asyncs()),
            "a7fdcdaa took the operator's word",
        ),
        (
            state(generation=1, initWal="0/0"),
            state(generation=1, initWal="0/0", primary=C, sync=B, **asyncs()),
            "set-up handed over from 6589d30f: primary a7fdcdaa, 6589d30f left",
        ),
        (state(), state(**asyncs(C, D)), "d0d0d0d0 joined"),
        (state(**asyncs(C, D)), state(**asyncs(D)), "a7fdcdaa left"),
        (state(**asyncs(C, D)), state(**asyncs(D, C)), "asyncs now in the order d0d0d0d0, a7fdcdaa"),
        (state(deposed=[D]), state(**asyncs(C, D)), "d0d0d0d0 joined, d0d0d0d0 no longer deposed"),
        (state(), state(freeze={"date": "D", "reason": "racks"}), "frozen: racks"),
        (state(freeze=True), state(freeze=False), "unfrozen"),
        (state(), state(promote=PROMOTE_C), "promotion of async a7fdcdaa asked for, until 2026-01-16T08:09:03.000Z"),
        (state(promote=PROMOTE_C), state(), "request to promote async a7fdcdaa withdrawn"),
        (
            singleton(),
            state(generation=78),
            "generation 78: 6589d30f made 5e0a09bb its sync, left one-node-write mode, a7fdcdaa joined, unfrozen",
        ),
        (state(), state(), "written again, unchanged"),
        (state(), state(generation=76), "error: generation went back from 77 to 76"),
        (state(), state(primary=D), "error: primary d0d0d0d0, sync 5e0a09bb without a new generation, 6589d30f left"),
        (state(), state(initWal="B7/0"), "error: initWal B7/00000000 without a new generation"),
        (
            state(),
            state(generation=78, primary=D, sync=C, deposed=[A, B], **asyncs()),
            (
                "generation 78: d0d0d0d0 took over from 6589d30f (deposed) without having been the sync "
                "at B6/952E6978, new sync a7fdcdaa, 5e0a09bb deposed"
            ),
        ),
    ],
)
def test_each_step_says_what_it_did(before: ClusterState, after: ClusterState, said: str) -> None:
    assert changes(before, after) == said


def entry(number: int, written: ClusterState | None, problem: str | None = None) -> HistoryEntry:
    generation = written.generation if written else None
    return HistoryEntry(f"{generation or 0}-{number:010d}", NOW + number, generation, written, problem)


def test_a_life_from_the_first_state_with_one_that_cannot_be_read() -> None:
    entries = [
        entry(0, state(generation=1)),
        entry(1, None, "async.0.zoneId: Field required"),
        entry(2, state(generation=1, **asyncs())),
    ]
    assert list(told(entries)) == [
        "set up: primary 6589d30f, sync 5e0a09bb, async a7fdcdaa",
        "error: not a cluster state: async.0.zoneId: Field required",
        "a7fdcdaa left",
    ]
    assert (
        as_table(entries, verbose=False).splitlines()[2]
        == "2026-01-16T08:08:34.000Z  - -     -   -        -        -        -       "
    )
    documents = [json.loads(line) for line in as_lines(entries).splitlines()]
    assert [document["zkSeq"] for document in documents] == ["0000000000", "0000000001", "0000000002"]
    assert documents[1] == {
        "zkSeq": "0000000001",
        "time": "2026-01-16T08:08:34.000Z",
        "state": None,
        "problem": "async.0.zoneId: Field required",
    }


def test_a_singletons_life_begins_frozen() -> None:
    assert list(told([entry(0, singleton(generation=1))])) == [
        "set up in one-node-write mode: primary 6589d30f, frozen: manatee setup: one node write mode"
    ]
    assert " 1 singl frz 6589d30f -        -        -       " in as_table(
        [entry(0, singleton(generation=1))], verbose=False
    )
