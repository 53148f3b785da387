"""When snapshots are taken and which ones go, on a driver that keeps them."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import cast

import pytest
import structlog

from backupserver.snapshotter import look
from demo.postgresql import Installation
from manatee.log import Logger
from manatee.storage import Snapshot, Storage, StorageError
from tests.backup.sandbox import Sandbox


class Kept:
    """The part of a storage that the snapshotter uses, in memory."""

    def __init__(self, *ages: float, in_use: frozenset[str] = frozenset(), data: bool = True) -> None:
        self.kept = [_taken(age) for age in ages]
        self.in_use = in_use
        self.data = data

    async def has_data(self) -> bool:
        return self.data

    async def snapshots(self) -> list[Snapshot]:
        return list(self.kept)

    async def take_snapshot(self) -> Snapshot:
        self.kept.append(_taken(0))
        return self.kept[-1]

    async def drop_snapshot(self, name: str) -> None:
        if name in self.in_use:
            raise StorageError("in use")
        self.kept = [snapshot for snapshot in self.kept if snapshot.name != name]


async def test_what_a_cut_stream_may_go_on_with_takes_no_periodic_ones_place_and_goes_when_its_time_is_over(
    sandbox: Sandbox, any_postgresql: Installation
) -> None:
    kept = Kept(*(hours * HOUR for hours in range(24, 0, -1)))
    now = time.time()
    kept.kept += [replace(_taken(age), resumable_until=now + until) for age, until in ((20, -10), (10, 10), (5, 10))]
    periodic, (late, *cut) = kept.kept[1:24], [each.name for each in kept.kept[24:]]
    await look(cast(Storage, kept), sandbox.peer(any_postgresql).settings, cast(Logger, structlog.get_logger()))
    assert kept.kept[:23] == periodic
    assert [each.name for each in kept.kept[23:25]] == cut
    assert len(kept.kept) == 26
    assert late not in {each.name for each in kept.kept}


def _taken(age: float) -> Snapshot:
    moment = time.time() - age
    return Snapshot(f"{round(moment * 1000):013d}", moment)


HOUR = 3600.0


@pytest.mark.parametrize(
    ("ages", "data", "left", "pause"),
    [
        ([], True, 1, HOUR),
        ([], False, 0, HOUR),
        ([HOUR / 4], True, 1, 3 / 4 * HOUR),
        ([3 * HOUR, 2 * HOUR], True, 3, HOUR),
        ([-HOUR], True, 2, HOUR),  # the clock was set back
        ([hours * HOUR for hours in range(40, 0, -1)], True, 24, HOUR),
    ],
)
async def test_one_an_interval_and_no_more_than_asked_for(
    sandbox: Sandbox, any_postgresql: Installation, ages: list[float], data: bool, left: int, pause: float
) -> None:
    kept = Kept(*ages, data=data)
    settings = sandbox.peer(any_postgresql).settings
    logger = cast(Logger, structlog.get_logger())
    assert await look(cast(Storage, kept), settings, logger) == pytest.approx(pause, abs=5)
    assert len(kept.kept) == left


async def test_data_that_are_being_rewound_are_kept_in_no_snapshot(
    sandbox: Sandbox, any_postgresql: Installation
) -> None:
    """Whoever restored it would have what looks like a database, and is none."""
    kept = Kept()
    settings = sandbox.peer(any_postgresql).settings
    settings.sitter.rewind_mark.parent.mkdir(exist_ok=True)
    settings.sitter.rewind_mark.touch()
    assert await look(cast(Storage, kept), settings, cast(Logger, structlog.get_logger())) < HOUR
    assert kept.kept == []


async def test_the_oldest_go_but_not_one_in_use(sandbox: Sandbox, any_postgresql: Installation) -> None:
    kept = Kept(*(hours * HOUR for hours in range(30, 0, -1)))
    oldest, newest = kept.kept[0].name, kept.kept[-1].name
    kept.in_use = frozenset({oldest})
    await look(cast(Storage, kept), sandbox.peer(any_postgresql).settings, cast(Logger, structlog.get_logger()))
    names = [snapshot.name for snapshot in kept.kept]
    assert len(names) == 25
    assert names[0] == oldest
    assert newest in names
