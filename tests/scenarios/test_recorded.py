"""`decide()` does what Manatee 2 did, but for the differences that are wanted: recordings of its state machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenarios.replay import Replay, differences

RECORDINGS = sorted((Path(__file__).parent / "recorded").glob("*.json"))

WANTED: dict[tuple[str, int, str], str] = {}
"""(recording, step, what): the rule of ours that makes the difference. So far these recordings show none.

A recording of these would, each wanted:
- a promote request that is still valid when the async list changes: kept, where Manatee 2 dropped it;
- an async that comes or goes while the primary is absent: the sync keeps the list;
- a primary of a later generation without a database: it resigns, where Manatee 2 created an empty one;
- a peer without a database that was never set up beside a database: refused.
"""


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_a_recording_ends_every_step_alike(path: Path) -> None:
    found = [one for one in differences(path) if (path.stem, one.step, one.what) not in WANTED]
    assert not found, "\n".join(f"step {one.step}, {one.what}: {one.ours}, recorded: {one.recorded}" for one in found)


def test_all_recordings_are_here() -> None:
    assert len(RECORDINGS) == 8


def test_the_replay_would_see_a_difference() -> None:
    """Frozen, a primary does not replace its sync; unfrozen it does: the same commands end otherwise."""
    outcomes = []
    for frozen in (True, False):
        replay = Replay({"singleton": False, "pg_setup": False})
        for command, args in [("addpeer", ["node1"]), ("addpeer", []), ("addpeer", []), ("startPeer", [])]:
            replay.run(command, list(args), None)
        replay.run("freeze", [frozen], None)
        replay.run("rmpeer", ["node2"], None)
        outcomes.append(replay.outcome()["clusterState"]["generation"])
    assert outcomes == [1, 2]
