"""Promise 3: data are restored for want of a comparison only if that stays so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog

from manatee.lsn import Lsn
from sitter import comparer
from sitter.postgres.compare import Standing
from sitter.postgres.errors import CompareFailed
from sitter.view import Compare
from tests.core.views import A


async def test_one_answer_that_nothing_can_be_known_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have data restored that are well: a segment was recycled while it was read, an upstream was coming up."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(comparer, "time", SimpleNamespace(monotonic=lambda: clock.now))
    unknown = Standing(None, "A does not hold what is to be compared", Lsn(100), 1)
    answers: list[Any] = []

    async def compare(*_: object) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def restartpoint() -> None:
        pass

    monkeypatch.setattr(comparer, "compare", compare)
    server = cast(Any, SimpleNamespace(running=False, standby=False, restartpoint=restartpoint))
    settings = cast(Any, SimpleNamespace(tls=None))
    under_test = comparer.Comparer(settings, structlog.get_logger(), lambda: None, server)

    async def after(seconds: float, answer: Any) -> bool:
        clock.now += seconds
        answers.append(answer)
        await under_test._compare(Compare(A, 4, 4))
        return under_test.incomparable is not None

    assert not await after(0, unknown)
    assert not await after(1, unknown)
    assert not await after(1, CompareFailed("it restarts"))
    assert not await after(9, unknown)
    assert not await after(1, unknown)
    assert await after(2, unknown)
