"""What is asked of PostgreSQL's settings comes about, or is said not to."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest
import structlog

from sitter.postgres.errors import PostgresError
from sitter.postgres.server import STOPPED, Server

SETTINGS = cast(
    Any,
    SimpleNamespace(postgres=SimpleNamespace(query_timeout=60.0), storage=SimpleNamespace(data_dir="/nowhere")),
)


async def test_settings_that_are_to_be_read_again_are_even_if_something_newer_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server(SETTINGS, structlog.get_logger())
    begun = asyncio.Event()

    async def never(**_: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(server, "_lay_foundation", never)
    server.stale.set()
    task = asyncio.create_task(server.reread())
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert server.stale.is_set()


async def test_a_question_that_postgresql_refuses_is_an_error_of_postgresql() -> None:
    """Not one that nobody expects."""

    class Refusing:
        async def execute(self, *_: object) -> None:
            raise psycopg.errors.InsufficientPrivilege("permission denied for view pg_settings")

    refusing: Any = Refusing()
    with pytest.raises(PostgresError, match="permission denied"):
        await Server(SETTINGS, structlog.get_logger())._wrong(refusing, STOPPED)
