"""What restores have left goes, sooner or later, and costs no PostgreSQL that serves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, cast

import pytest
import structlog
from structlog.testing import capture_logs

from manatee.storage import Dropped
from sitter.tidying import tidy_up


async def test_leftovers_end_no_postgresql(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with them: they are tried again."""
    tried: list[bool] = []

    class Leftovers:
        async def clear_leftovers(self, **_: object) -> None:
            tried.append(True)
            if len(tried) == 1:
                raise ValueError("unheard of")

        async def drop_isolated(self, keep: int) -> Dropped:
            return Dropped()

    await asyncio.wait_for(tidying(Leftovers(), monkeypatch), 30)
    assert len(tried) == 2


async def test_what_cannot_be_destroyed_yet_is_tried_again_and_complained_of_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody's clone may be gone the next minute, and what depends on it may be as large as all of the data."""
    stays, failed = Dropped(0, {"tank/a": "held"}), OSError("busy")
    rounds: list[tuple[int, Dropped | OSError]] = [
        (0, failed),
        (0, failed),
        (1, Dropped()),
        (0, stays),
        (0, Dropped(1)),
    ]

    class Leftovers:
        async def clear_leftovers(self, **_: object) -> int:
            return rounds[0][0]

        async def drop_isolated(self, keep: int) -> Dropped:
            done = rounds.pop(0)[1]
            if isinstance(done, OSError):
                raise done
            return done

    with capture_logs() as logs:
        await asyncio.wait_for(tidying(Leftovers(), monkeypatch), 30)
    assert [log["log_level"] for log in logs] == ["warning", "info"]
    assert rounds == []


def tidying(storage: object, monkeypatch: pytest.MonkeyPatch) -> Coroutine[Any, Any, None]:
    """The ready peer's tidying up, without pauses."""
    monkeypatch.setattr("sitter.tidying.INTERVAL", 0.0)
    ready = asyncio.Event()
    ready.set()
    return tidy_up(cast(Any, storage), ready, structlog.get_logger(), keep=1)
