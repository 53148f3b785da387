"""Whole shards: real sitters, backup servers, PostgreSQL and ZooKeeper, and clients that write to them."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from kazoo.client import KazooClient

from demo.postgresql import Installation
from demo.shard import LocalPeer, LocalShard, Seen, ShardFailed
from demo.writer import Writer
from manatee.client import Topology
from tests.admin.stage import manatee_adm

SESSION_TIMEOUT = 4.0
COMPLETE = 90.0
"""Seconds within which a shard must be complete again, whatever happened to it."""

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_networks = (f"127.{100 + _worker}.{number}" for number in itertools.count(1))


@asynccontextmanager
async def shard_of(peers: int, postgresql: Installation | None = None, **options: Any) -> AsyncIterator[LocalShard]:
    """A complete shard on loopback addresses that no other test uses."""
    network = next(_networks)
    shard = LocalShard(
        [f"{network}.{number}" for number in range(2, 2 + peers)],
        name="test",
        zookeeper=(f"{network}.1", 2181),
        postgresql=postgresql,
        **{"session_timeout": SESSION_TIMEOUT, **options},
    )
    async with shard:
        try:
            await complete(shard)
            yield shard
        except BaseException:
            _show_logs(shard)
            raise


def _show_logs(shard: LocalShard) -> None:
    """What the daemons said, for the report of a failed test: the directory goes with the shard."""
    for peer in shard.peers:
        for daemon in ("sitter", "backupserver"):
            said = peer.log(daemon).read_text(errors="replace").splitlines()[-60:]
            sys.stdout.write("\n".join([f"--- {daemon} of {peer.ip}", *(line[:400] for line in said), ""]))


async def complete(shard: LocalShard, count: int | None = None) -> Seen:
    """Wait until every peer is in the chain and ready."""
    number = len(shard.peers) if count is None else count
    return await shard.wait_for(lambda seen: seen.complete(number), timeout=COMPLETE, what="a complete shard")


async def next_generation(shard: LocalShard, before: Seen) -> Seen:
    """Wait for the generation after the one of `before`."""
    wanted = generation_of(before) + 1
    seen = await shard.wait_for(lambda seen: generation_of(seen) >= wanted, timeout=COMPLETE, what="a new generation")
    assert generation_of(seen) == wanted
    return seen


@asynccontextmanager
async def writing(shard: LocalShard) -> AsyncIterator[Writer]:
    """A client that writes all the time; what was acknowledged to it must be there when it ends."""
    async with Topology(shard.zookeeper.servers, shard.name) as topology:
        writer = Writer(topology)
        task = asyncio.create_task(writer.run())
        try:
            await acknowledges(writer)
            yield writer
            assert await writer.missing() == []
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def acknowledges(writer: Writer, *, timeout: float = COMPLETE) -> None:
    """Wait until some more writes have been acknowledged."""
    wanted = len(writer.acknowledged) + 20
    async with asyncio.timeout(timeout):
        while len(writer.acknowledged) < wanted:
            await asyncio.sleep(0.02)


@contextmanager
def raw_client(shard: LocalShard) -> Iterator[KazooClient]:
    """ZooKeeper without any of our code between."""
    client = KazooClient(hosts=shard.servers)
    client.start(timeout=COMPLETE)
    try:
        yield client
    finally:
        client.stop()
        client.close()


def primary_of(shard: LocalShard, seen: Seen) -> LocalPeer:
    assert seen.state is not None
    return shard.peer(seen.state.primary.id)


def sync_of(shard: LocalShard, seen: Seen) -> LocalPeer:
    assert seen.state is not None
    assert seen.state.sync is not None
    return shard.peer(seen.state.sync.id)


def generation_of(seen: Seen) -> int:
    assert seen.state is not None
    return seen.state.generation


async def returns(shard: LocalShard, peer: LocalPeer) -> bool:
    """Whether the peer takes itself off the deposed list; it may hold WAL that nobody else has, and then cannot."""

    def off_the_list(seen: Seen) -> bool:
        return seen.state is not None and peer.id not in [each.id for each in seen.state.deposed]

    def diverged(seen: Seen) -> bool:
        said = seen.present.get(peer.id)
        return said is not None and said.diverged is not None

    try:
        return off_the_list(await shard.wait_for(lambda seen: off_the_list(seen) or diverged(seen), timeout=15))
    except ShardFailed:
        return False


async def adm(*words: str) -> str:
    """Run manatee-adm; it must succeed."""
    done = await manatee_adm(*words)
    assert done.status == 0, done.out + done.err
    return done.out + done.err


async def promote(shard: LocalShard, peer: LocalPeer, *role: str) -> Seen:
    """An operator moves the peer up (`-r sync`, ...); the complete shard after it."""
    words = ("-z", shard.zookeeper.servers, "-s", shard.name, "promote", "-n", peer.settings.peer.zone_id, *role, "-y")
    async with asyncio.timeout(COMPLETE):
        while True:
            await complete(shard)
            try:
                await adm(*words)
            except AssertionError:  # it was ready a moment ago, and is not now
                await asyncio.sleep(0.5)
            else:
                return await complete(shard)


async def ask(peer: LocalPeer, path: str) -> tuple[int, Any]:
    """What the sitter's HTTP server answers: status and JSON, or text."""

    def get() -> tuple[int, bytes]:
        url = f"http://{peer.ip}:{peer.settings.status_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    status, body = await asyncio.to_thread(get)
    try:
        return status, json.loads(body)
    except ValueError:
        return status, body.decode()
