"""What is put right while PostgreSQL runs, what it is ended for, and what is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog

from manatee.lsn import Lsn
from sitter.postgres import tail
from sitter.postgres.errors import StopFailed
from sitter.upholding import Restart, Upholding

HALF = "it holds the beginning of a record that its upstream will never complete"


class Server:
    """A standby that obeys, and asked for more than its upstream had: its log says so for long after."""

    replication = "as it was told"

    def __init__(self, *, obeys: bool = True, outgrown: str | None = None) -> None:
        self.done: list[str] = []
        self._obeys = obeys
        self._outgrown = outgrown
        self.moment = asyncio.Event()

    def said(self, *words: str, since: tuple[str, ...]) -> bool:
        return True

    def obeys(self, facts: object) -> bool:
        return self._obeys

    async def outgrown(self) -> str | None:
        return self._outgrown

    async def configure(self, replication: object) -> None:
        self.done.append(f"configured {replication}")
        self._obeys = True
        self.moment.set()

    async def stop(self, mode: str) -> None:
        self.done.append(f"stopped, {mode}")
        self.moment.set()


def upholding(server: Server, *, follows: Callable[[], bool] = lambda: True, paused: bool = False) -> Upholding:
    facts = SimpleNamespace(replay=Lsn(100), replay_paused=paused)
    settings = SimpleNamespace(postgres=SimpleNamespace(health_interval=0.001))
    parts = cast(Any, (settings, server, SimpleNamespace(facts=facts), structlog.get_logger()))
    return Upholding(*parts, follows=follows)


@pytest.fixture
def half_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    async def cut(*_: object, **__: object) -> bool:
        return True

    monkeypatch.setattr(tail, "cut", cut)


@pytest.fixture
def whole_records(monkeypatch: pytest.MonkeyPatch) -> None:
    async def cut(*_: object, **__: object) -> bool:
        return False

    monkeypatch.setattr(tail, "cut", cut)


async def until_something_is_done(each: Upholding, server: Server) -> None:
    running = asyncio.create_task(each.run())
    try:
        await asyncio.wait_for(server.moment.wait(), 30)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize(
    ("follows", "half", "looks"), [([True, True], True, 1), ([True, False], False, 1), ([False], False, 0)]
)
async def test_half_a_record_is_no_reason_to_end_who_follows_nobody(
    monkeypatch: pytest.MonkeyPatch, follows: list[bool], half: bool, looks: int
) -> None:
    """A sealed standby is about to take over, also one that was sealed while its log was looked at."""
    looked: list[bool] = []

    async def cut(*_: object, **__: object) -> bool:
        looked.append(True)
        return True

    monkeypatch.setattr(tail, "cut", cut)
    each = upholding(Server(), follows=lambda: follows.pop(0))
    assert await each.holds_half_a_record(cast(Any, SimpleNamespace(replay=Lsn(100)))) is half
    assert len(looked) == looks


async def test_half_a_record_is_told_with_where_the_log_is_whole(half_a_record: None) -> None:
    server = Server()
    each = upholding(server)
    await until_something_is_done(each, server)
    assert (each.restart, server.done[:1]) == (Restart(HALF, Lsn(100)), ["stopped, immediate"])


async def test_a_replay_that_is_paused_for_a_setting_takes_a_restart(whole_records: None) -> None:
    server = Server(outgrown="max_connections is 50, and 100 on its upstream")
    each = upholding(server, paused=True)
    await until_something_is_done(each, server)
    assert each.restart == Restart("its replay is paused: max_connections is 50, and 100 on its upstream")


async def test_what_something_else_has_won_over_is_configured_again_without_a_restart(whole_records: None) -> None:
    server = Server(obeys=False, outgrown="not that its replay was paused for it")
    each = upholding(server)
    await until_something_is_done(each, server)
    assert (each.restart, server.done) == (None, ["configured as it was told"])


async def test_a_problem_is_said_for_as_long_as_it_lasts(whole_records: None, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(outgrown="max_wal_senders")

    async def stop(mode: str) -> None:
        server.moment.set()
        raise StopFailed("it hangs in the kernel")

    monkeypatch.setattr(server, "stop", stop)
    each = upholding(server, paused=True)
    running = asyncio.create_task(each.run())
    await asyncio.wait_for(server.moment.wait(), 30)
    await asyncio.sleep(0)
    assert each.problem == "it hangs in the kernel"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
