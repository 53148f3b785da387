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
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest

from demo import zfs
from demo.restores import restores
from demo.shard import LocalPeer, LocalShard, Seen
from demo.writer import Writer
from manatee.client import Topology
from tests.shard.conftest import primary_of

SLOWNESS = float(os.environ.get("MANATEE_SLOWNESS", "1"))
STEP = 120.0 if SLOWNESS == 1 else 300.0
"""Seconds for each step of the story."""
STEPS = 10
CALM = {
    "zookeeper": {"request_timeout": 5.0 * SLOWNESS},
    "postgres": {
        **dict.fromkeys(("query_timeout", "health_timeout", "handover_timeout", "seal_timeout"), 5.0 * SLOWNESS),
        "health_interval": min(2.0 * SLOWNESS, 5.0),
        "start_timeout": 60.0 * SLOWNESS,
        "crash_restart_timeout": 5.0 * SLOWNESS,
        "sync_grace": 10.0 * SLOWNESS,
    },
    "backup": {"idle_timeout": 30.0 * SLOWNESS},
}
"""Where everything takes longer, nothing is to be taken for dead that is only slow."""
PAUSE = 0.002 if SLOWNESS == 1 else 0.5
"""Seconds between two writes: under emulation they would leave nothing for anybody else."""
NETWORK = "127.23.1"


@pytest.fixture
def needs_zfs() -> None:
    if missing := zfs.missing():
        pytest.skip(missing)


class Story:
    """What the test does and how long it took, said at once: where this is slow, it is minutes until the end."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._began = time.monotonic()
        self._last = ""

    def say(self, what: object) -> None:
        """Unless it is what was said last."""
        if str(what) != self._last:
            self._last = str(what)
            with self._capsys.disabled():
                sys.stdout.write(f"    {time.monotonic() - self._began:6.1f} s  {what}\n")
                sys.stdout.flush()

    @contextlib.asynccontextmanager
    async def step(self, what: str) -> AsyncIterator[None]:
        """Fails, by its name, what has not come to its end in time."""
        began = time.monotonic()
        self.say(f"{what} ...")
        try:
            async with asyncio.timeout(STEP):
                yield
        except TimeoutError:
            pytest.fail(f"{what}: not within {STEP:.0f} s; what was seen last: {self._last}")
        self.say(f"{what}: {time.monotonic() - began:.1f} s")


@pytest.fixture
def story(capsys: pytest.CaptureFixture[str]) -> Story:
    return Story(capsys)


@pytest.mark.slow
@pytest.mark.timeout((STEPS + 1) * STEP)
async def test_bootstrap_takeover_and_rebuild(needs_zfs: None, story: Story) -> None:
    shard = LocalShard(
        [f"{NETWORK}.{number}" for number in (2, 3, 4)],
        name="zfs",
        zookeeper=(f"{NETWORK}.1", 2181),
        storage="zfs",
        session_timeout=min(4.0 * SLOWNESS, 10.0),
        overrides=CALM,
    )
    async with contextlib.AsyncExitStack() as stack:
        async with story.step("a pool, ZooKeeper and the daemons"):
            await stack.enter_async_context(shard)
        await stack.enter_async_context(told(shard))
        for count, what in enumerate(("initdb by the first peer", "a second by send and receive", "a third"), 1):
            async with story.step(what):
                first = await seen(shard, story, partial(are_ready, count))
        async with story.step("a complete shard"):
            first = await seen(shard, story, lambda seen: seen.complete(3))
        primary = primary_of(shard, first)
        assert first.state is not None
        for peer in map(shard.peer, (each.id for each in first.state.assigned[1:])):
            assert in_common(shard, peer, *shard.peers), f"{peer.ip} has no snapshot that another peer has, too"

        writer = await stack.enter_async_context(writing(shard))
        async with story.step("the first writes"):
            await acknowledges(writer)
        async with story.step("failover: from SIGKILL of the primary to the next writes"):
            await shard.kill_peer(primary)
            await seen(shard, story, lambda seen: seen.state and seen.state.primary.id != primary.id)
            await acknowledges(writer)
        assert await writer.missing() == []

        await shard.start_peer(primary)
        async with story.step("incremental rebuild of the deposed peer"):
            await rebuild(primary, story)
        async with story.step("a complete shard again"):
            await seen(shard, story, lambda seen: seen.complete(3))
        (told_of,) = restores(shard, primary)
        assert "only what has changed since a snapshot that both had" in told_of
        assert await writer.missing() == []


@contextlib.asynccontextmanager
async def told(shard: LocalShard) -> AsyncIterator[None]:
    """When something fails: what the daemons said, which goes with the shard."""
    try:
        yield
    except BaseException:
        sys.stdout.write("\n".join(shard.last_words) + "\n" + zfs.run("zfs", "list", "-t", "all"))
        raise


async def seen(shard: LocalShard, story: Story, condition: Callable[[Seen], object]) -> Seen:
    """The first moment at which the condition holds; what comes before it is said. The step has the deadline."""
    return await shard.wait_for(condition, timeout=2 * STEP, progress=story.say)


def are_ready(count: int, seen: Seen) -> bool:
    return seen.state is not None and sum(map(seen.ready, seen.state.assigned)) >= count


async def rebuild(peer: LocalPeer, story: Story) -> None:
    """As an operator: what it says is said as it comes, and where all is slow it is run again if it is asked for."""
    adm = Path(sys.executable).parent / "manatee-adm"
    while True:
        process = await asyncio.create_subprocess_exec(
            *(adm, "-c", peer.settings_file, "rebuild", "-y"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert process.stdout is not None
        try:
            async for line in process.stdout:
                story.say(line.decode().rstrip())
            status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if status == 0:
            return
        assert SLOWNESS > 1, "the rebuild failed"


@contextlib.asynccontextmanager
async def writing(shard: LocalShard) -> AsyncIterator[Writer]:
    async with Topology(shard.zookeeper.servers, shard.name) as topology:
        writer = Writer(topology, pause=PAUSE, patience=5.0 * SLOWNESS)
        task = asyncio.create_task(writer.run())
        try:
            yield writer
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def acknowledges(writer: Writer) -> None:
    """Some more writes."""
    wanted = len(writer.acknowledged) + 5
    while len(writer.acknowledged) < wanted:
        await asyncio.sleep(0.1)


def guids(shard: LocalShard, peer: LocalPeer) -> set[str]:
    """Of the snapshots of the peer's live dataset."""
    listed = zfs.run("zfs", "list", "-H", "-r", "-t", "snapshot", "-o", "name", shard.dataset(peer.number))
    return {zfs.run("zfs", "get", "-H", "-p", "-o", "value", "guid", name).strip() for name in listed.split()}


def in_common(shard: LocalShard, peer: LocalPeer, *others: LocalPeer) -> bool:
    return any(guids(shard, peer) & guids(shard, other) for other in others if other != peer)
