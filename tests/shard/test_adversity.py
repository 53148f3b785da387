"""Bad nights: what superusers set, what hangs without dying, what is taken away. Nothing is lost, nobody is called."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, LiteralString

import psutil
import psycopg
import pytest

from demo.shard import LocalPeer, LocalShard
from tests.shard.conftest import (
    acknowledges,
    complete,
    next_generation,
    primary_of,
    raw_client,
    shard_of,
    sync_of,
    writing,
)
from tests.shard.conftest import ask as http

NAMES = "synchronous_standby_names"
STATE = "/manatee/test/state"


@pytest.mark.slow
async def test_no_setting_of_a_superuser_loosens_a_promise_or_stops_the_shard() -> None:
    """ALTER SYSTEM is undone within seconds, ALTER ROLE blocks no takeover, a raised setting pauses no sync."""
    patient = {"sitter": {"evict_dead": False}}  # a sitter is restarted here by SIGKILL
    async with shard_of(3, overrides=patient) as shard, writing(shard) as writer:
        before = await complete(shard)
        primary, sync = primary_of(shard, before), sync_of(shard, before)
        names = await ask(primary, f"show {NAMES}")
        await alter(primary, f"alter system set {NAMES} = ''")
        await until(lambda: says(primary, f"show {NAMES}", names))
        await alter(primary, "alter system set synchronous_commit = off")
        await until(lambda: says(primary, "show synchronous_commit", "on"))
        await alter(primary, "alter system set default_transaction_read_only = on")
        await until(lambda: says(primary, "show default_transaction_read_only", "off"))
        await alter(sync, "alter system set primary_conninfo = 'host=127.0.0.99 connect_timeout=1'")
        await until(lambda: says(sync, "select count(*) from pg_stat_wal_receiver", "1"))
        await alter(primary, "alter role postgres set default_transaction_read_only = off")
        await _raise_connections(shard, primary)
        await until(lambda: says(sync, "show max_connections", "77"))
        await acknowledges(writer)
        before = await complete(shard)
        assert sync_of(shard, before) == sync
        await shard.kill_peer(primary_of(shard, before))
        after = await next_generation(shard, before)
        assert primary_of(shard, after) == sync
        await acknowledges(writer)


@pytest.mark.slow
async def test_a_receiver_that_hangs_keeps_neither_the_primary_nor_a_takeover_waiting() -> None:
    """As one does whose disk has stopped answering: it holds its connection, and no signal but SIGKILL ends it."""
    async with shard_of(3) as shard, writing(shard) as writer:
        before = await complete(shard)
        with hanging(receiver(sync_of(shard, before))):
            after = await next_generation(shard, before)
            assert primary_of(shard, after) == primary_of(shard, before)
            await acknowledges(writer)
        after = await complete(shard)
        with hanging(receiver(sync_of(shard, after))):
            await shard.kill_peer(primary_of(shard, after))
            last = await next_generation(shard, after)
            assert primary_of(shard, last) == sync_of(shard, after)
            await acknowledges(writer)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_zookeeper_that_is_not_believed_changes_nothing() -> None:
    """Garbage for a state, then an empty ZooKeeper: the primary goes on, and load balancers go on finding it."""
    async with shard_of(3) as shard, writing(shard) as writer:
        before = await complete(shard)
        assert before.state is not None
        primary = primary_of(shard, before)
        with raw_client(shard) as client:
            client.set(STATE, b"garbage")
            await until(lambda: refuses(primary))
            await acknowledges(writer)
            assert (await http(primary, "/primary"))[0] == 200
            client.set(STATE, before.state.content())
        await complete(shard)
        await shard.zookeeper.kill()
        shutil.rmtree(shard.zookeeper.directory / "data")
        await shard.zookeeper.start()
        await until(lambda: refuses(primary))
        assert (await http(primary, "/primary"))[0] == 200
        assert await ask(primary, "select pg_is_in_recovery()") == "False"
        with raw_client(shard) as client:
            client.create(STATE, before.state.content(), makepath=True)
        after = await complete(shard)
        assert after.state == before.state
        await acknowledges(writer)


async def refuses(peer: LocalPeer) -> bool:
    _, state = await http(peer, "/state")
    return str(state["reason"]).startswith("refusing:")


@contextlib.contextmanager
def hanging(pid: int) -> Iterator[None]:
    """Within, the process is stopped."""
    process = psutil.Process(pid)
    process.suspend()
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


def receiver(peer: LocalPeer) -> int:
    """The pid of the standby's WAL receiver."""
    postmaster = int((peer.settings.storage.data_dir / "postmaster.pid").read_text().split()[0])
    return next(
        child.pid for child in psutil.Process(postmaster).children() if "walreceiver" in " ".join(child.cmdline())
    )


async def _raise_connections(shard: LocalShard, peer: LocalPeer) -> None:
    """In a base file of this peer's own, and restart its sitter."""
    common, own = shard.directory / "postgresql.conf", peer.directory / "postgresql.conf"
    own.write_text(common.read_text() + "max_connections = 77\n")
    own.chmod(0o644)
    peer.settings_file.write_text(peer.settings_file.read_text().replace(str(common), str(own)))
    sitter = shard.supervisor.status(peer.programs[0]).pid
    assert sitter is not None
    os.kill(sitter, signal.SIGKILL)


async def ask(peer: LocalPeer, query: LiteralString) -> str:
    async with await _connect(peer) as connection:
        row = await (await connection.execute(query)).fetchone()
    assert row is not None
    return str(row[0])


async def says(peer: LocalPeer, query: LiteralString, answer: str) -> bool:
    try:
        return await ask(peer, query) == answer
    except psycopg.OperationalError:
        return False


async def alter(peer: LocalPeer, statement: LiteralString) -> None:
    """Where ALTER SYSTEM is allowed: from PostgreSQL 17 on the sitter forbids it."""
    async with await _connect(peer) as connection:
        await connection.execute("set default_transaction_read_only = off")
        with contextlib.suppress(psycopg.errors.FeatureNotSupported):
            await connection.execute(statement)
        await connection.execute("select pg_reload_conf()")


async def _connect(peer: LocalPeer) -> psycopg.AsyncConnection[tuple[Any, ...]]:
    return await psycopg.AsyncConnection.connect(
        host=peer.ip, port=peer.settings.peer.postgres_port, user="postgres", autocommit=True, connect_timeout=5
    )


async def until(holds: Callable[[], Awaitable[bool]], *, timeout: float = 30) -> None:
    async with asyncio.timeout(timeout):
        while not await holds():
            await asyncio.sleep(0.1)
