"""What is asked of PostgreSQL's settings comes about, or is said not to."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest
import structlog

from sitter.postgres import tail
from sitter.postgres.errors import Hung, PostgresError
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


async def test_a_server_that_accepts_and_does_not_answer_is_not_waited_for_however_long_its_answers_may_take(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A sync that seals has minutes to replay what it has; one that hangs must not hold a takeover up for as long."""
    postgres = SimpleNamespace(query_timeout=0.2, socket_dir=tmp_path)
    settings = cast(Any, SimpleNamespace(**{**vars(SETTINGS), "postgres": postgres}))
    settings.peer = SimpleNamespace(postgres_port=5432)
    server = Server(settings, structlog.get_logger())
    monkeypatch.setattr(server, "_tell", lambda _: None)
    silent = await asyncio.start_unix_server(lambda *_: None, tmp_path / ".s.PGSQL.5432")
    async with silent, asyncio.timeout(30):
        with pytest.raises(Hung, match="did not say"):
            async with server.configured(STOPPED, timeout=3600.0):
                pass


def test_who_gets_what_it_asked_for_is_not_one_that_waits_for_it() -> None:
    """PostgreSQL 18.6 says of a receiver that waits that it streams: its log alone tells the two apart."""
    server = Server(SETTINGS, structlog.get_logger())
    log = server._postmaster._lines.last
    ahead = "LOG:  walreceiver requested start point 0/05000000 on timeline 3 is ahead of the upstream server's flush"
    for line, waits in (
        ("LOG:  started streaming WAL from primary at 0/4000000 on timeline 2", False),
        (ahead, True),
        ("LOG:  something else", True),
        ("LOG:  restarted WAL streaming at 0/5000000 on timeline 3", False),
    ):
        log.append(line)
        assert server.said(*tail.SIGNS, since=tail.FED) is waits
