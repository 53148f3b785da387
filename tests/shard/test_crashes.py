"""PostgreSQL dies, or cannot live, in every way: it is restarted where that helps, makes way where it does not, says
why, and comes back when the cause is gone. Nothing is lost meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from demo.postgresql import Installation
from demo.shard import LocalPeer, LocalShard, Seen
from tests.shard.conftest import (
    acknowledges,
    adm,
    ask,
    complete,
    generation_of,
    next_generation,
    primary_of,
    promote,
    returns,
    shard_of,
    sync_of,
    writing,
)

PATIENT = {"postgres": {"crash_restart_timeout": 90, "health_timeout": 2}}
"""Time enough to come back in place, on a busy machine, too."""

HASTY = {"postgres": {"crash_restart_timeout": 2}}
"""Where it cannot come back: nothing is gained by waiting."""

FULL = 200
"""MiB of the disk that gets full."""


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_what_dies_or_hangs_is_restarted_in_place(postgresql: Installation) -> None:
    """Its postmaster is killed, one of its backends is, its postmaster is stopped: the generation stays as it is."""
    async with shard_of(3, postgresql, overrides=PATIENT) as shard, writing(shard) as writer:
        before = await complete(shard)
        primary = primary_of(shard, before)
        os.kill(postmaster(primary), signal.SIGKILL)
        await counted(primary, "killed")
        await acknowledges(writer)
        await kill_backend(primary)
        await counted(primary, "backend_crashed")
        await acknowledges(writer)
        psutil.Process(postmaster(primary)).suspend()
        await counted(primary, "hung")
        await acknowledges(writer)
        after = await complete(shard)
        assert generation_of(after) == generation_of(before)
        _, state = await ask(primary, "/state")
        assert state["postgres"]["failures"] == {"killed": 1, "backend_crashed": 1, "hung": 1}
        assert state["postgres"]["restarts"] == 3


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_primary_that_cannot_be_started_makes_way_and_comes_back(postgresql: Installation) -> None:
    """Its configuration was broken by hand; the data directory of the next one cannot be read."""
    async with shard_of(3, postgresql, overrides=HASTY) as shard, writing(shard) as writer:
        before = await complete(shard)
        primary = primary_of(shard, before)
        with broken(primary.directory / "postgresql.conf"):
            os.kill(postmaster(primary), signal.SIGKILL)
            after = await next_generation(shard, before)
            assert primary_of(shard, after) == sync_of(shard, before)
            assert (await counted(primary, "configuration"))["postgres"]["failure"]["detail"]
            await acknowledges(writer)
        before = await back(shard, primary)
        primary = primary_of(shard, before)
        with unreadable(primary.settings.storage.data_dir):
            os.kill(postmaster(primary), signal.SIGKILL)
            after = await next_generation(shard, before)
            assert primary_of(shard, after) == sync_of(shard, before)
            await counted(primary, "data_directory")
            await acknowledges(writer)
        await back(shard, primary)
        await acknowledges(writer)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_full_disk_costs_no_more_than_a_dead_peer(postgresql: Installation, needs_root: None) -> None:
    """No space for WAL, on the sync and then on the primary: whoever cannot write is left out until there is space."""
    async with shard_of(3, postgresql, overrides=HASTY) as shard:
        peer = sync_of(shard, await complete(shard))
        async with small_disk(shard, peer), writing(shard) as writer:
            before = await complete(shard)
            if sync_of(shard, before) != peer:  # it left the shard to be moved
                before = await promote(shard, peer, "-r", "async", "-i", "0")
            assert sync_of(shard, before) == peer
            with full(peer):
                after = await next_generation(shard, before)
                assert primary_of(shard, after) == primary_of(shard, before)
                await counted(peer, "disk_full")
                await acknowledges(writer)
            await complete(shard)
            await promote(shard, peer, "-r", "async", "-i", "0")
            before = await promote(shard, peer, "-r", "sync")
            assert primary_of(shard, before) == peer
            with full(peer):
                async with using_up_wal(peer):
                    after = await next_generation(shard, before)
                assert primary_of(shard, after) == sync_of(shard, before)
                await counted(peer, "disk_full")
                await acknowledges(writer)
            await back(shard, peer)
            await acknowledges(writer)


@contextlib.asynccontextmanager
async def using_up_wal(peer: LocalPeer) -> AsyncIterator[None]:
    """Within, WAL is written: the segments that are there already have to be filled first, whenever PostgreSQL, which
    dies of it, has found some more as it started again.
    """
    writing = asyncio.create_task(_use_up_wal(peer))
    try:
        yield
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


async def _use_up_wal(peer: LocalPeer) -> None:
    while True:
        with contextlib.suppress(psycopg.OperationalError):
            async with await psycopg.AsyncConnection.connect(
                host=peer.ip, port=peer.settings.peer.postgres_port, user="postgres", connect_timeout=5, autocommit=True
            ) as connection:
                for _ in range(2 * FULL):
                    await connection.execute("select pg_logical_emit_message(false, 'full', repeat('x', 1 << 20))")
        await asyncio.sleep(0.1)


def postmaster(peer: LocalPeer) -> int:
    return int((peer.settings.storage.data_dir / "postmaster.pid").read_text().split()[0])


async def kill_backend(peer: LocalPeer) -> None:
    """SIGKILL to that of a client."""
    connection = await psycopg.AsyncConnection.connect(
        host=peer.ip, port=peer.settings.peer.postgres_port, user="postgres", connect_timeout=5
    )
    os.kill(connection.info.backend_pid, signal.SIGKILL)
    await connection.close()


async def counted(peer: LocalPeer, cause: str) -> dict[str, dict[str, dict[str, object]]]:
    """Wait until the peer says that PostgreSQL failed for this cause; what it says of itself then."""
    sign = re.compile(rf'^manatee_postgres_failures_total{{cause="{cause}"}} [1-9]', re.MULTILINE)
    async with asyncio.timeout(60):
        while not sign.search((await ask(peer, "/metrics"))[1]):
            await asyncio.sleep(0.1)
    state: dict[str, dict[str, dict[str, object]]] = (await ask(peer, "/state"))[1]
    assert state["postgres"]["failures"][cause]
    return state


async def back(shard: LocalShard, peer: LocalPeer) -> Seen:
    """Wait until the peer serves again: by itself, unless it had written what nobody else has."""
    if not await returns(shard, peer):
        await adm("-c", str(peer.settings_file), "rebuild", "-y")
    return await complete(shard)


@contextlib.contextmanager
def broken(configuration: Path) -> Iterator[None]:
    """Within, it is not one that PostgreSQL understands."""
    text = configuration.read_text()
    configuration.write_text(text + "this is = not = a setting\n")
    try:
        yield
    finally:
        configuration.write_text(text)


@contextlib.contextmanager
def unreadable(directory: Path) -> Iterator[None]:
    mode = directory.stat().st_mode
    directory.chmod(0)
    try:
        yield
    finally:
        directory.chmod(mode)


@contextlib.asynccontextmanager
async def small_disk(shard: LocalShard, peer: LocalPeer) -> AsyncIterator[None]:
    """Within, the peer's data are on a file system of their own, which is small."""
    store = peer.settings.storage.directory
    await shard.stop_peer(peer)
    owner = store.stat()
    moved = store.with_name("moved")
    shutil.move(store / "data", moved)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={FULL}m,mode=0700,uid={owner.st_uid},gid={owner.st_gid}", "tmpfs", store],
        check=True,
    )
    try:
        subprocess.run(["cp", "-a", moved, store / "data"], check=True)
        await shard.start_peer(peer)
        yield
    finally:
        await shard.kill_peer(peer)
        subprocess.run(["umount", "-l", store], check=True)


@contextlib.contextmanager
def full(peer: LocalPeer) -> Iterator[None]:
    """Within, not a byte is free where the peer's data are."""
    filler = peer.settings.storage.directory / "filler"
    with filler.open("wb") as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        with contextlib.suppress(OSError):
            while True:
                os.write(file.fileno(), bytes(512))
    try:
        yield
    finally:
        filler.unlink()
