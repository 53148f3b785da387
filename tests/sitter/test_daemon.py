"""The order in which a decision is carried out is part of its contract: what must be remembered is durable first."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from demo.shard import as_toml
from manatee.cluster import Peer, Role
from manatee.config import load
from manatee.coordination import Unreachable
from manatee.lsn import Lsn
from sitter.daemon import BACK_AFTER, TURN, Daemon, _all_is_well, _needed, _pause
from sitter.view import Decision, Keep, Memory, Primary, Restore, Seal, Standby, Stopped, View, Wanted, Write
from tests.core.views import A, B, C, D, says, state, view

SEALED = Memory(identifier="1", generation=4, proof=4, seal=Seal(4, Lsn(100)))


class Recorder:
    """Stands in for the parts that a decision is carried out by, and notes in which order they are asked."""

    def __init__(self, *, broken: str | None = None) -> None:
        self.done: list[str] = []
        self.wanted: object = None
        self.open = False
        self._broken = broken

    def _note(self, what: str, error: Exception) -> None:
        if self._broken == what:
            raise error
        self.done.append(what)

    def remember(self, memory: Memory) -> bool:
        self._note("remember", OSError(28, "No space left on device"))
        return True

    def want(self, wanted: object) -> None:
        self.wanted = wanted
        self._note("compare" if wanted is None else "database", RuntimeError())

    async def join(self, peer: Peer) -> None:
        self._note("join", Unreachable("gone"))

    async def publish(self, status: object) -> None:
        self._note("publish", Unreachable("gone"))

    async def write_state(self, new: object, **_: object) -> None:
        self._note("write", Unreachable("gone"))

    def forget(self) -> None:
        self.done.append("forget")


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    path = tmp_path / "manatee.toml"
    directory = tmp_path / "state"
    directory.mkdir()
    sections: dict[str, dict[str, object]] = {
        "shard": {"name": "test"},
        "peer": {"ip": "127.22.1.2", "zone_id": "zone"},
        "zookeeper": {"servers": "127.22.1.1:2181"},
        "postgres": {"bin_dir": tmp_path, "socket_dir": tmp_path},
        "storage": {"directory": tmp_path},
        "backup": {"token_file": tmp_path / "token"},
        "sitter": {"state_dir": directory},
    }
    path.write_text(as_toml(sections))
    return Daemon(load(path), structlog.get_logger())


def carried_out_by(daemon: Daemon, recorder: Recorder) -> Daemon:
    parts: dict[str, Any] = {"_memory": recorder, "_transitions": recorder, "_comparer": recorder}
    for name, part in {**parts, "_coordination": recorder}.items():
        setattr(daemon, name, part)
    return daemon


def declaring(seen: View) -> Decision:
    new = state()
    return Decision("declaring", Standby(None, sealed=True), memory=SEALED, write=Write(new, seen.version, "test"))


async def test_the_memory_comes_first_and_the_write_last(daemon: Daemon) -> None:
    recorder = Recorder()
    seen = view(B)
    await carried_out_by(daemon, recorder)._carry_out(seen, declaring(seen))
    assert recorder.done[0] == "remember"
    assert recorder.done[-1] == "write"
    assert "database" in recorder.done


async def test_nothing_is_done_when_the_memory_cannot_be_written(daemon: Daemon) -> None:
    recorder = Recorder(broken="remember")
    seen = view(B)
    await carried_out_by(daemon, recorder)._carry_out(seen, declaring(seen))
    assert recorder.done == []


@pytest.mark.parametrize(
    ("was_open", "decided", "wanted"),
    [
        (True, Stopped(), Stopped()),
        (True, Standby(A), Stopped()),
        (False, Standby(A), None),
        (True, Primary(A), None),
        (True, Keep(), None),
    ],
)
async def test_a_primary_that_is_none_any_more_stops_although_the_memory_cannot_be_written(
    daemon: Daemon, was_open: bool, decided: Wanted, wanted: Wanted | None
) -> None:
    """A full disk must not keep a deposed primary accepting writes."""
    recorder = Recorder(broken="remember")
    recorder.open = was_open
    await carried_out_by(daemon, recorder)._carry_out(view(B), Decision("deposed", decided, memory=SEALED))
    assert recorder.wanted == wanted
    assert recorder.done == ([] if wanted is None else ["database"])


async def test_what_zookeeper_refuses_does_not_end_the_daemon(daemon: Daemon) -> None:
    recorder = Recorder(broken="publish")
    seen = view(B)
    await carried_out_by(daemon, recorder)._carry_out(seen, declaring(seen))
    assert "write" not in recorder.done, "what comes after is left for the next turn"


async def test_a_restore_begins_when_the_others_know_that_our_data_prove_nothing(daemon: Daemon) -> None:
    """Whoever compares with us must not take what we said of the old data for the new."""
    recorder = Recorder()
    seen = view(B, initialized=False, identifier=None)
    restoring = Decision("restoring", Restore((A,)), memory=Memory(generation=4))
    carried_out_by(daemon, recorder)
    await daemon._carry_out(seen, restoring)
    assert "publish" in recorder.done
    assert "database" not in recorder.done
    await daemon._carry_out(seen, restoring)
    assert "database" in recorder.done


def test_wal_is_kept_for_who_is_being_restored_too() -> None:
    others = (says(B, redo="0/5000000"), says(C, restoring=True, proof=0), says(D))
    assert dict(_needed(view(A, active=others))) == {B.id: Lsn(0x5000000), C.id: Lsn(0)}


async def test_no_restore_begins_when_the_others_cannot_be_told(daemon: Daemon) -> None:
    recorder = Recorder(broken="publish")
    seen = view(B, initialized=False, identifier=None)
    restoring = Decision("restoring", Restore((A,)), memory=Memory(generation=4))
    for _ in range(2):
        await carried_out_by(daemon, recorder)._carry_out(seen, restoring)
    assert "database" not in recorder.done


async def test_what_was_to_be_looked_at_soon_is_not_when_nothing_can_be_decided(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ZooKeeper that is away for hours would have PostgreSQL asked fifty times a second."""
    waited: list[float | None] = []
    seen: list[View | None] = [view(B), None]

    async def look(*_: object, **__: object) -> View | None:
        return seen.pop(0) if seen else None

    async def done(*_: object) -> None:
        """Nothing is carried out, and nothing waited for."""

    async def wait(look_again: float | None, _: float) -> None:
        waited.append(look_again)

    monkeypatch.setattr("sitter.daemon.decide", lambda _: Decision("waiting", Keep(), memory=SEALED, look_again=0.02))
    for part, name, stand_in in (
        (daemon._watch, "look", done),
        (daemon._observer, "view", look),
        (daemon, "_carry_out", done),
        (daemon, "_wait", wait),
    ):
        monkeypatch.setattr(part, name, stand_in)
    for _ in range(2):
        await daemon._turn()
    assert waited == [0.02, None]


async def test_a_former_primary_stays_out_of_the_takeover_that_it_has_made_way_for(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    deposed, done, waited = Decision("deposed", Stopped(), role=Role.DEPOSED), [], []

    async def view_(*_: object, **__: object) -> View | None:
        return view(A)

    async def look(*_: object) -> None:
        """PostgreSQL is of no interest here."""

    async def carry_out(_: View, decision: Decision) -> None:
        done.append(decision)

    async def wait(look_again: float | None, _: float) -> None:
        waited.append(look_again)

    monkeypatch.setattr("sitter.daemon.decide", lambda _: deposed)
    for part, name, stand_in in (
        (daemon._watch, "look", look),
        (daemon._observer, "view", view_),
        (daemon, "_carry_out", carry_out),
        (daemon, "_wait", wait),
    ):
        monkeypatch.setattr(part, name, stand_in)
    daemon._resigned_at = time.monotonic()
    await daemon._turn()
    assert done == []
    assert waited[0] is not None
    assert 0 < waited[0] <= BACK_AFTER
    daemon._resigned_at = time.monotonic() - BACK_AFTER
    await daemon._turn()
    assert done == [deposed]


def test_who_is_ready_among_peers_that_are_looks_more_rarely() -> None:
    here = view(B)
    ready = Decision("following A", Keep(), ready=True)
    assert _all_is_well(here, ready)
    assert not _all_is_well(here, replace(ready, ready=False))
    assert not _all_is_well(here, replace(ready, waiting_for="an operator"))
    assert not _all_is_well(here.timed({A.id: 0.1}, unreached_for=0.0), ready)


def test_the_longer_it_is_waited_the_more_rarely_it_is_looked() -> None:
    """An async that cannot be compared may be waited for for days; a takeover is over within a second."""
    assert [_pause(0.02, TURN, waited=waited) for waited in (0.0, 1.0, 20.0, 3600.0)] == [0.02, 0.02, 0.2, TURN]
    assert _pause(None, TURN, waited=0.0) == _pause(4.0, TURN, waited=0.0) == TURN
