"""A peer that slept through a takeover: it acknowledges nothing when it wakes up, and finds its own way back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import psutil
import psycopg
import pytest

from demo.postgresql import Installation
from demo.shard import LocalPeer, LocalShard
from tests.shard.conftest import (
    COMPLETE,
    acknowledges,
    ask,
    complete,
    next_generation,
    primary_of,
    shard_of,
    writing,
)


@pytest.mark.slow
@pytest.mark.timeout(360)
async def test_who_wakes_up_after_a_takeover_acknowledges_nothing_and_rewinds_what_it_wrote(
    postgresql: Installation,
) -> None:
    """The whole peer stops (as when a virtual machine freezes), the others take over, and ZooKeeper is away when it
    wakes up: it does not know, but neither acknowledges nor lets anybody write. `postgres.rejoin = "rewind"` brings it
    back without an operator, although it has written what nobody else has.
    """
    async with shard_of(3, postgresql, overrides={"postgres": {"rejoin": "rewind"}}) as shard, writing(shard) as writer:
        before = await complete(shard)
        sleeper = primary_of(shard, before)
        async with await _connect(sleeper) as connection:
            with asleep(shard, sleeper):
                await next_generation(shard, before)
                await acknowledges(writer)
                await shard.zookeeper.kill()
            with pytest.raises(psycopg.Error):  # fenced: its backends are ended; until then it waits
                async with asyncio.timeout(COMPLETE):
                    await connection.execute("create table written_by_who_woke_up (i int)")
        await _until_it_serves_no_writes(sleeper)
        await acknowledges(writer)  # the others go on without ZooKeeper
        await shard.zookeeper.start()
        await complete(shard)
        await acknowledges(writer)
        async with await _connect(sleeper) as connection:
            cursor = await connection.execute("select to_regclass('written_by_who_woke_up') is null")
            assert await cursor.fetchone() == (True,)
        assert "rewound" in sleeper.log("sitter").read_text()


@contextlib.contextmanager
def asleep(shard: LocalShard, peer: LocalPeer) -> Iterator[None]:
    """Within, nothing of the peer's sitter and its PostgreSQL runs."""
    pid = shard.supervisor.status(peer.programs[0]).pid
    assert pid is not None
    sitter = psutil.Process(pid)
    sitter.suspend()
    stopped = [sitter]
    for child in sitter.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.suspend()
            stopped.append(child)
    try:
        yield
    finally:
        for process in reversed(stopped):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


async def _until_it_serves_no_writes(peer: LocalPeer) -> None:
    async with asyncio.timeout(COMPLETE):
        while (await ask(peer, "/primary"))[0] == 200:
            await asyncio.sleep(0.1)
    assert (await ask(peer, "/state"))[1]["fenced"]


async def _connect(peer: LocalPeer) -> psycopg.AsyncConnection[Any]:
    return await psycopg.AsyncConnection.connect(
        host=peer.ip,
        port=peer.settings.peer.postgres_port,
        user="postgres",
        dbname="postgres",
        autocommit=True,
        connect_timeout=5,
    )
