"""What the core is told of a seal must be true at every moment: it declares on the strength of it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog

from manatee.lsn import Lsn
from sitter.postgres.errors import Hung, PostgresError
from sitter.transitions import Transitions
from sitter.view import Keep, Primary, Restore, Standby, Stopped, Wanted
from tests.core.views import A, B


class Settings:
    identity = B


def sealed(wanted: Wanted) -> Transitions:
    """Transitions that have sealed what was wanted."""
    unused = cast(Any, None)
    transitions = Transitions(cast(Any, Settings()), unused, unused, structlog.get_logger(), lambda: None)
    transitions.want(wanted)
    transitions._seal_at(Lsn(100))
    return transitions


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Standby(A, sealed=True), Standby(A)),
        (Standby(A, sealed=True), Stopped()),
        (Standby(A, sealed=True), Primary(A)),
        (Primary(A, sealed=True), Primary(A)),
    ],
    ids=["follow again", "stop", "promote", "go on as primary"],
)
def test_a_seal_is_void_from_the_moment_it_is_to_be_undone(before: Wanted, after: Wanted) -> None:
    """The receiver may be back, and confirm commits above the position, long before the step that undoes it ends."""
    transitions = sealed(before)
    transitions.want(after)
    assert transitions.sealed is None


@pytest.mark.parametrize("after", [Standby(A, sealed=True), Standby(None, sealed=True), Keep()])
def test_a_seal_that_is_still_wanted_stays(after: Wanted) -> None:
    transitions = sealed(Standby(A, sealed=True))
    transitions.want(after)
    assert transitions.sealed == Lsn(100)


def test_a_seal_that_comes_through_too_late_is_none() -> None:
    transitions = sealed(Standby(A, sealed=True))
    transitions.want(Standby(A))
    transitions._seal_at(Lsn(100))
    assert transitions.sealed is None


class Idle:
    """A server that has died."""

    running = False
    standby = False

    async def stop(self, mode: str) -> None:
        """Nothing is left to stop."""


async def test_stopping_what_is_dead_does_not_make_it_well() -> None:
    """A primary that cannot start makes way: while it does, the core must go on seeing why."""
    unused = cast(Any, None)
    transitions = Transitions(cast(Any, Settings()), cast(Any, Idle()), unused, structlog.get_logger(), lambda: None)
    transitions.failures.failed("killed", "")
    since = transitions.failures.since
    await transitions._stop(clean=False)
    assert since is not None
    assert transitions.failures.since == since


def test_a_sealed_standby_is_not_to_be_fed() -> None:
    """It is about to take over: what is in the way of its stream does not matter any more."""
    unused = cast(Any, None)
    transitions = Transitions(cast(Any, Settings()), unused, unused, structlog.get_logger(), lambda: None)
    assert not transitions._follows()
    transitions.upstream = A
    transitions.want(Standby(A))
    assert transitions._follows()
    transitions.want(Standby(A, sealed=True))
    assert not transitions._follows()


async def test_other_data_have_another_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a record that was to be taken from the old data is not looked for in what replaced them."""
    unused = cast(Any, None)
    transitions = Transitions(cast(Any, Settings()), cast(Any, Idle()), unused, structlog.get_logger(), lambda: None)

    async def run(*_: object) -> None:
        pass

    monkeypatch.setattr(transitions.replacement, "run", run)
    transitions._cut_tail = Lsn(100)
    await transitions._replace(Restore((A,)))
    assert transitions._cut_tail is None


class Running(Idle):
    """A standby that runs."""

    running = standby = True

    def said(self, *words: str, since: tuple[str, ...]) -> bool:
        return True

    def __init__(self) -> None:
        self.exited, self.stale = asyncio.Event(), asyncio.Event()

    def obeys(self, facts: object) -> bool:
        raise ValueError("unheard of")


async def test_an_error_that_nobody_expected_is_not_lost() -> None:
    """Otherwise nobody would keep PostgreSQL as it was told to be, and nobody would know."""
    facts = SimpleNamespace(receiver=SimpleNamespace(status="streaming"), replay=Lsn(100))
    watch = cast(Any, SimpleNamespace(hung=asyncio.Event(), facts=facts))
    sections = {"postgres": SimpleNamespace(health_interval=0.0), "storage": SimpleNamespace(keep_isolated=0)}
    settings = cast(Any, SimpleNamespace(**sections))
    transitions = Transitions(settings, cast(Any, Running()), watch, structlog.get_logger(), lambda: None)
    transitions.replacement.__dict__["storage"] = None
    with pytest.raises(ValueError, match="unheard of"):
        await asyncio.wait_for(transitions._watch_over(Standby(A)), 30)


class Hanging(Running):
    """A server that answers nobody, until it is ended."""

    ready = True

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    async def opening(self, *, asked: float) -> None:
        self.asked += 1
        await asyncio.sleep(0)

    async def outgrown(self) -> None:
        """Its settings are great enough."""

    async def stop(self, mode: str) -> None:
        self.running = False
        self.exited.set()


def on(server: Hanging) -> Transitions:
    """Transitions of a server that counts as hung for as long as it has been asked less than ten times."""

    async def answers() -> bool:
        return server.running and server.asked >= 10

    hung = asyncio.Event()
    hung.set()
    watch = cast(Any, SimpleNamespace(hung=hung, problem=None, answers=answers))
    settings = cast(Any, SimpleNamespace(postgres=SimpleNamespace(health_timeout=0.0)))
    return Transitions(settings, cast(Any, server), watch, structlog.get_logger(), lambda: None)


async def test_one_that_hangs_in_the_middle_of_a_transition_is_ended_and_counts_as_failed() -> None:
    """Otherwise nobody would ever restart it, and a primary would never make way."""
    server = Hanging()
    transitions = on(server)
    with pytest.raises(Hung) as raised:
        await asyncio.wait_for(transitions._online(), 30)
    assert not server.running
    transitions._failed(Primary(B), raised.value)
    assert transitions.failures.counts["hung"] == 1
    assert transitions.failures.since is not None


async def test_one_that_recovers_for_long_is_not_ended() -> None:
    """It lets nobody in meanwhile, and is counted as hung for that."""
    server = Hanging()
    server.ready = False
    await asyncio.wait_for(on(server)._online(), 30)
    assert server.running


@pytest.mark.parametrize("wanted", [Primary(B), Standby(None)])
async def test_no_postgresql_is_started_on_data_that_are_not_yet_ours(
    monkeypatch: pytest.MonkeyPatch, wanted: Primary | Standby
) -> None:
    """It would run by another peer's pg_hba.conf, and the mark of a restore would outlive its meaning."""
    done: list[str] = []

    class Dead(Idle):
        is_standby_on_disk = False

        async def start(self, *_: object, **__: object) -> None:
            done.append("start")
            raise PostgresError("it is not about that")

    unused = cast(Any, None)
    transitions = Transitions(cast(Any, Settings()), cast(Any, Dead()), unused, structlog.get_logger(), lambda: None)
    monkeypatch.setattr(transitions.replacement, "make_ours", lambda: done.append("make ours"))
    with pytest.raises(PostgresError):
        await transitions._bring_about(wanted)
    assert done == ["make ours", "start"]
