"""The log of a database that is stopped is read to its end once, and never while PostgreSQL is to run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from manatee.lsn import Lsn
from sitter.postgres.at_rest import AtRest
from sitter.postgres.errors import BadWal
from sitter.postgres.wal_end import WalEnd

END = WalEnd(3, Lsn(150))
SETTINGS: Any = SimpleNamespace(postgres=SimpleNamespace(start_timeout=60.0))


class Reader:
    """Stands in for the reading of a log."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0
        self.may_end = asyncio.Event()
        self.problems: list[Exception] = []

    async def find(self, *_: object, **__: object) -> WalEnd:
        self.begun += 1
        try:
            if self.problems:
                raise self.problems.pop()
            await self.may_end.wait()
        finally:
            self.ended += 1
        return END


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    found = Reader()

    async def nothing(*_: object) -> None:
        pass

    monkeypatch.setattr("sitter.postgres.at_rest.STAYS", 0.0)
    monkeypatch.setattr("sitter.postgres.at_rest.RETRY", 0.01)
    monkeypatch.setattr("sitter.postgres.controldata.read", nothing)
    monkeypatch.setattr("sitter.postgres.versions.of_programs", nothing)
    monkeypatch.setattr("sitter.postgres.wal_end.find", found.find)
    return found


@asynccontextmanager
async def watched() -> AsyncIterator[tuple[AtRest, asyncio.Event]]:
    changed = asyncio.Event()
    resting = AtRest(SETTINGS, structlog.get_logger(), changed.set)
    task = asyncio.create_task(resting.run())
    try:
        yield resting, changed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def turns() -> None:
    """Time enough for whatever is about to happen."""
    for _ in range(50):
        await asyncio.sleep(0.001)


async def test_it_is_read_once_for_each_stop(reader: Reader) -> None:
    async with watched() as (resting, changed):
        reader.may_end.set()
        for stops in (1, 2):
            for _ in range(3):  # every turn of the daemon says it again
                resting.tell("7000")
                await asyncio.wait_for(changed.wait(), 30)
            await turns()
            assert (resting.end, reader.begun) == (END, stops)
            changed.clear()
            resting.tell(None)
            assert resting.end is None, "PostgreSQL is to run: what was found is void at once"
            await turns()
    assert reader.begun == 2


async def test_reading_ends_when_postgresql_is_to_run(reader: Reader) -> None:
    async with watched() as (resting, changed):
        resting.tell("7000")
        await until(lambda: reader.begun)
        resting.tell(None)
        await until(lambda: reader.ended)
        reader.may_end.set()
        await turns()
        assert (resting.end, reader.begun) == (None, 1)
        assert not changed.is_set()


async def test_reading_ends_with_its_owner(reader: Reader) -> None:
    async with watched() as (resting, _):
        resting.tell("7000")
        await until(lambda: reader.begun)
    assert reader.ended == 1


async def test_a_log_that_cannot_be_read_is_said_to_be_and_tried_again(reader: Reader) -> None:
    reader.problems = [BadWal("the log here is garbled")]
    async with watched() as (resting, changed):
        resting.tell("7000")
        await until(lambda: reader.begun == 2)
        assert resting.problem == "the log here is garbled"
        reader.may_end.set()
        await asyncio.wait_for(changed.wait(), 30)
        now: tuple[object, object] = (resting.end, resting.problem)
        assert now == (END, None)


async def test_an_error_that_nobody_expected_is_not_lost(reader: Reader) -> None:
    reader.problems = [ValueError("unheard of")]
    resting = AtRest(SETTINGS, structlog.get_logger(), lambda: None)
    resting.tell("7000")
    with pytest.raises(ValueError, match="unheard of"):
        await asyncio.wait_for(resting.run(), 30)
