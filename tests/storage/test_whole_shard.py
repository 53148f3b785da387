"""A whole shard of which every peer has a ZFS dataset of its own: bootstrap, takeover, incremental rebuild.

It runs on what ZFS the machine has: zfs-fuse, or the kernel's in the virtual machine of `make test-zfs`, which is so
slow that it says how much more patience it takes (MANATEE_SLOWNESS).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from demo import zfs
from demo.restores import restores
from demo.shard import LocalPeer, LocalShard, Seen
from demo.writer import Writer
from manatee.client import Topology
from tests.shard.conftest import adm, primary_of

SLOWNESS = float(os.environ.get("MANATEE_SLOWNESS", "1"))
PATIENCE = 120.0 * SLOWNESS
"""Seconds for each step of the story."""
CALM = {
    "zookeeper": {"request_timeout": 5.0 * SLOWNESS},
    "postgres": dict.fromkeys(("query_timeout", "health_timeout", "handover_timeout", "seal_timeout"), 5.0 * SLOWNESS),
}
NETWORK = "127.23.1"


@pytest.fixture
def needs_zfs() -> None:
    if missing := zfs.missing():
        pytest.skip(missing)


Phase = Callable[[str], contextlib.AbstractContextManager[None]]


@pytest.fixture
def phase(capsys: pytest.CaptureFixture[str]) -> Phase:
    """Tells at once how long something took: where this is slow, it is minutes until the end of the test."""

    @contextlib.contextmanager
    def told(what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        with capsys.disabled():
            sys.stdout.write(f"\n    {time.monotonic() - began:6.1f} s  {what}")
            sys.stdout.flush()

    return told


@pytest.mark.slow
@pytest.mark.timeout(10 * PATIENCE)
async def test_bootstrap_takeover_and_rebuild(needs_zfs: None, phase: Phase) -> None:
    shard = LocalShard(
        [f"{NETWORK}.{number}" for number in (2, 3, 4)],
        name="zfs",
        zookeeper=(f"{NETWORK}.1", 2181),
        storage="zfs",
        session_timeout=min(4.0 * SLOWNESS, 16.0),
        overrides=CALM,
    )
    async with shard, told(shard):
        with phase("bootstrap: initdb, and two peers by send and receive"):
            first = await complete(shard)
        primary = primary_of(shard, first)
        assert first.state is not None
        for peer in map(shard.peer, (each.id for each in first.state.assigned[1:])):
            assert in_common(shard, peer, *shard.peers), f"{peer.ip} has no snapshot that another peer has, too"

        async with writing(shard) as writer:
            await acknowledges(writer)
            with phase("failover: from SIGKILL of the primary to the first writes"):
                await shard.kill_peer(primary)
                await shard.wait_for(
                    lambda seen: seen.state and seen.state.primary.id != primary.id, timeout=PATIENCE, what="a takeover"
                )
                await acknowledges(writer)
            assert await writer.missing() == []

            await shard.start_peer(primary)
            with phase("incremental rebuild of the deposed peer"):
                async with asyncio.timeout(2 * PATIENCE):
                    await adm("-c", str(primary.settings_file), "rebuild", "-y")
                await complete(shard)
            (told_of,) = restores(shard, primary)
            assert "only what has changed since a snapshot that both had" in told_of
            assert await writer.missing() == []
        await complete(shard)


@contextlib.asynccontextmanager
async def told(shard: LocalShard) -> AsyncIterator[None]:
    """When something fails: what the daemons said, which goes with the shard."""
    try:
        yield
    except BaseException:
        sys.stdout.write("\n".join(shard.last_words) + "\n" + zfs.run("zfs", "list", "-t", "all"))
        raise


async def complete(shard: LocalShard) -> Seen:
    return await shard.wait_for(lambda seen: seen.complete(3), timeout=2 * PATIENCE, what="a complete shard")


@contextlib.asynccontextmanager
async def writing(shard: LocalShard) -> AsyncIterator[Writer]:
    async with Topology(shard.zookeeper.servers, shard.name) as topology:
        writer = Writer(topology)
        task = asyncio.create_task(writer.run())
        try:
            yield writer
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def acknowledges(writer: Writer) -> None:
    """Some more writes."""
    wanted = len(writer.acknowledged) + 5
    async with asyncio.timeout(PATIENCE):
        while len(writer.acknowledged) < wanted:
            await asyncio.sleep(0.1)


def guids(shard: LocalShard, peer: LocalPeer) -> set[str]:
    """Of the snapshots of the peer's live dataset."""
    listed = zfs.run("zfs", "list", "-H", "-r", "-t", "snapshot", "-o", "name", shard.dataset(peer.number))
    return {zfs.run("zfs", "get", "-H", "-p", "-o", "value", "guid", name).strip() for name in listed.split()}


def in_common(shard: LocalShard, peer: LocalPeer, *others: LocalPeer) -> bool:
    return any(guids(shard, peer) & guids(shard, other) for other in others if other != peer)
