"""Promise 3: nothing is compared beside a PostgreSQL of ours that may still write."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog

from sitter import comparer
from sitter.postgres.errors import CompareFailed
from sitter.view import Compare
from tests.core.views import A


@pytest.mark.parametrize(
    ("running", "standby", "compares"),
    [(True, False, False), (True, True, True), (False, False, True)],
    ids=["a primary runs", "a standby runs", "nothing runs"],
)
async def test_a_primary_that_is_still_being_stopped_is_not_compared(
    monkeypatch: pytest.MonkeyPatch, running: bool, standby: bool, compares: bool
) -> None:
    asked = []

    async def compare(*_: object) -> None:
        asked.append(True)
        raise CompareFailed("far enough")

    monkeypatch.setattr(comparer, "compare", compare)
    settings = cast(Any, SimpleNamespace(tls=None))
    server = cast(Any, SimpleNamespace(running=running, standby=standby))
    under_test = comparer.Comparer(settings, structlog.get_logger(), lambda: None, server)
    await under_test._compare(Compare(A, 4, 4))
    assert bool(asked) is compares
