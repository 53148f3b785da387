"""Promise 3: nothing is compared beside a PostgreSQL of ours that may still write."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog

from manatee.lsn import Lsn
from sitter import comparer
from sitter.postgres.compare import their_digest
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


async def test_an_error_that_nobody_expected_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async def compare(*_: object) -> None:
        raise ValueError("unheard of")

    monkeypatch.setattr(comparer, "compare", compare)
    settings = cast(Any, SimpleNamespace(tls=None))
    server = cast(Any, SimpleNamespace(running=False, standby=False))
    under_test = comparer.Comparer(settings, structlog.get_logger(), lambda: None, server)
    under_test.want(Compare(A, 4, 4))
    with pytest.raises(ValueError, match="unheard of"):
        await asyncio.wait_for(under_test.run(), 30)


async def test_a_token_that_is_none_is_said_to_be(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_bytes(b"\xff\n")
    settings = cast(Any, SimpleNamespace(backup=SimpleNamespace(token_file=token)))
    with pytest.raises(CompareFailed, match="cannot be read"):
        await their_digest(settings, A, cast(Any, None), 1, Lsn(1), Lsn(2))
