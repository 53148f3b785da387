"""Promise 4 and proof rest on it: a database that cannot be identified yet is not one that is not there."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import structlog

from demo.postgresql import unprivileged_user
from manatee.config import Settings
from manatee.lsn import Lsn
from sitter.postgres.errors import Unreachable
from sitter.postgres.queries import Facts
from sitter.postgres.server import Server
from sitter.postgres.watch import Watch

CONTROLDATA = """\
Database system identifier:           7711012921730520080
Database cluster state:               shut down
Latest checkpoint location:           0/1000100
Latest checkpoint's REDO location:    0/10000D8
Latest checkpoint's TimeLineID:       1
Minimum recovery ending location:     0/0
Min recovery ending loc's timeline:   0
max_connections setting:              100
max_worker_processes setting:         8
max_wal_senders setting:              10
max_prepared_xacts setting:           0
max_locks_per_xact setting:           64
Catalog version number:               202209061
Bytes per WAL segment:                16777216
Data page checksum version:           1
"""


@pytest.fixture
def settings() -> Iterator[Settings]:
    with tempfile.TemporaryDirectory(prefix="manatee-watch-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # PostgreSQL's user runs the programs in it
        (directory / "bin").mkdir(mode=0o755)
        postgres = directory / "bin" / "postgres"
        postgres.write_text('#!/bin/sh\necho "postgres (PostgreSQL) 15.1"\n')
        postgres.chmod(0o755)
        yield Settings.model_validate(
            {
                "shard": {"name": "test"},
                "peer": {"ip": "127.22.1.2", "zone_id": "0"},
                "zookeeper": {"servers": "127.22.1.1:2181"},
                "postgres": {"bin_dir": directory / "bin", "user": unprivileged_user(), "socket_dir": directory},
                "storage": {"directory": directory / "store"},
                "backup": {"token_file": directory / "token"},
                "sitter": {"state_dir": directory},
            }
        )


def _controldata(settings: Settings, script: str) -> None:
    """Stands in for pg_controldata."""
    program = settings.postgres.bin_dir / "pg_controldata"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def _database(settings: Settings) -> None:
    (settings.storage.data_dir / "global").mkdir(parents=True)
    (settings.storage.data_dir / "global" / "pg_control").touch()


def _watch(settings: Settings) -> Watch:
    return Watch(settings, Server(settings, structlog.get_logger()))


async def _look_until(watch: Watch, identified: bool) -> None:
    """Until a look has come to its end that says so: on a busy machine one takes longer than anybody waits for it."""
    begun = watch.unidentified
    async with asyncio.timeout(60):
        while (watch.unidentified is None) is not identified or (not identified and watch.unidentified == begun):
            await watch.look()
            await asyncio.sleep(0)


async def test_a_slow_look_at_a_database_is_no_look_at_none(settings: Settings) -> None:
    _database(settings)
    _controldata(settings, f"sleep 1; cat <<EOF\n{CONTROLDATA}EOF")
    watch = _watch(settings)
    await watch.look()
    assert watch.unidentified
    await _look_until(watch, True)
    assert watch.identifier == "7711012921730520080"


async def test_a_database_that_cannot_be_read_is_one(settings: Settings) -> None:
    _database(settings)
    _controldata(settings, "echo could not read file >&2; exit 1")
    watch = _watch(settings)
    await _look_until(watch, False)
    assert watch.unidentified == "pg_controldata: could not read file"
    assert watch.problem == watch.unidentified


async def test_a_database_of_another_major_version_is_refused_with_what_to_do(settings: Settings) -> None:
    """Its control file would be read as garbage: it is not read at all, and the sitter waits."""
    _database(settings)
    (settings.storage.data_dir / "PG_VERSION").write_text("14\n")
    _controldata(settings, f"cat <<EOF\n{CONTROLDATA}EOF")
    watch = _watch(settings)
    await _look_until(watch, False)
    assert not watch.initialized
    assert watch.unidentified == watch.problem
    for said in ("belongs to PostgreSQL 14", "holds PostgreSQL 15", "set postgres.bin_dir to the programs of 14"):
        assert said in (watch.unidentified or "")
    (settings.storage.data_dir / "PG_VERSION").write_text("15\n")
    await _look_until(watch, True)
    assert watch.initialized


async def test_programs_of_a_version_that_is_not_known_are_refused(settings: Settings) -> None:
    postgres = settings.postgres.bin_dir / "postgres"
    postgres.write_text('#!/bin/sh\necho "postgres (PostgreSQL) 12.22"\n')
    watch = _watch(settings)
    await _look_until(watch, False)
    assert watch.unidentified == f"postgres.bin_dir = '{postgres.parent}': expected PostgreSQL 13 to 18, found 12"


async def test_no_database_is_known_to_be_none(settings: Settings) -> None:
    watch = _watch(settings)
    await _look_until(watch, True)
    assert watch.unidentified is None
    assert not watch.initialized


async def test_a_database_that_was_taken_away_is_gone(settings: Settings) -> None:
    _database(settings)
    _controldata(settings, f"cat <<EOF\n{CONTROLDATA}EOF")
    watch = _watch(settings)
    await _look_until(watch, True)
    assert watch.initialized
    shutil.rmtree(settings.storage.data_dir)
    await watch.look()
    assert watch.unidentified is None
    assert not watch.initialized


async def test_a_standby_that_has_lost_its_upstream_is_still_on_its_timeline(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its control file speaks of the latest restartpoint, and verify of what the peers hold."""
    started = datetime.now(UTC)

    def seen(timeline: int, **changes: Any) -> Facts:
        lsn = Lsn(100)
        of_standby = Facts(True, timeline, lsn, lsn, None, False, True, "nobody", started, None, ())
        return replace(of_standby, **changes)

    looks = [seen(3), seen(1), seen(1, started=started + timedelta(seconds=1)), seen(2, in_recovery=False)]
    server: Any = SimpleNamespace(running=True)
    watch = Watch(settings, server)
    watch.identifier = "7000"
    _database(settings)

    async def look() -> Facts:
        return looks.pop(0)

    monkeypatch.setattr(watch, "_fresh_look", look)
    found = []
    while looks:
        before = len(looks)
        async with asyncio.timeout(60):
            while len(looks) == before or watch.facts is None:
                await watch.look()
        found.append(watch.facts.timeline)
    assert found == [3, 3, 1, 2], "a restart begins with what is on disk"


async def test_a_server_whose_data_were_taken_away_counts_as_hung(settings: Settings) -> None:
    """It would let nobody in, and go on for up to a minute before it ends by itself."""

    class Running:
        running = False

    _database(settings)
    _controldata(settings, f"cat <<EOF\n{CONTROLDATA}EOF")
    server: Any = Running()
    watch = Watch(settings, server)
    await _look_until(watch, True)
    server.running = True
    shutil.rmtree(settings.storage.data_dir)
    await watch.look()
    assert watch.hung.is_set()
    assert watch.problem == "its data are no longer there"
    assert watch.initialized, "until it has ended"


async def test_an_error_that_nobody_expected_is_not_lost(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by who looks, nor when it comes after their patience has ended."""
    watch = Watch(settings, Server(settings, structlog.get_logger()))

    async def unheard_of() -> None:
        await asyncio.sleep(0)
        raise ValueError("unheard of")

    monkeypatch.setattr(watch, "_identify", unheard_of)
    for patience in (0.0, 30.0):
        monkeypatch.setattr("sitter.postgres.watch.PATIENCE", patience)
        with pytest.raises(ValueError, match="unheard of"):  # noqa: PT012
            while True:
                await watch.look()
                await asyncio.sleep(0)


async def test_a_daemon_that_is_held_up_leaves_no_postgresql_unwatched(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one that looks all the time keep a fresh connection from being made when one is due."""
    settings.postgres = settings.postgres.model_copy(update={"health_interval": 0.05})
    server: Any = SimpleNamespace(running=True)
    watch = Watch(settings, server)
    fresh = 0

    async def identify() -> None:
        pass

    async def look() -> Facts:
        nonlocal fresh
        fresh += 1
        raise Unreachable("not now")

    monkeypatch.setattr(watch, "_identify", identify)
    monkeypatch.setattr(watch, "_fresh_look", look)
    alone = asyncio.create_task(watch.run())
    async with asyncio.timeout(60):
        while fresh < 3:
            await asyncio.sleep(0.01)
    alone.cancel()
    kept = watch._kept = mock.Mock()
    async with asyncio.timeout(60):
        while not kept.pgconn.finish.called:
            await watch.look()
