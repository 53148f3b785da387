"""A real ZooKeeper for these tests, and a shard of its own for each of them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from kazoo.client import KazooClient

from demo.zookeeper import ZooKeeperServer
from tests.coordination.stage import ADDRESS, Party, Proxy, free_port, raw_client


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def zookeeper(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ZooKeeperServer]:
    """Shared by the tests that do not stop it."""
    async with ZooKeeperServer(tmp_path_factory.mktemp("zk"), address=ADDRESS, port=free_port()) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="session")
async def own_zookeeper(tmp_path: Path) -> AsyncIterator[ZooKeeperServer]:
    """One that the test may stop, kill and wipe."""
    async with ZooKeeperServer(tmp_path / "zk", address=ADDRESS, port=free_port()) as server:
        yield server


_shards = itertools.count(1)


@pytest.fixture
def root() -> str:
    return f"/manatee/{next(_shards)}.test"


@pytest.fixture
def raw(zookeeper: ZooKeeperServer) -> Iterator[KazooClient]:
    """What another program does to ZooKeeper, and how the test looks at it."""
    with raw_client(zookeeper.servers) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="session")
async def connect(root: str) -> AsyncIterator[Party]:
    party = Party(root)
    yield party
    for one in party.made:
        await one.close()


@pytest_asyncio.fixture(loop_scope="session")
async def proxy(zookeeper: ZooKeeperServer) -> AsyncIterator[Proxy]:
    proxy = Proxy(zookeeper.port)
    await proxy.open()
    yield proxy
    await proxy.close()
