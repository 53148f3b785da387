"""A real ZooKeeper and three real PostgreSQL servers in a chain, in this directory's own corner of loopback."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import structlog

from demo.postgresql import Installation
from demo.zookeeper import ZooKeeperServer
from manatee.config import ZooKeeper
from manatee.coordination import Coordination
from tests.admin.stage import Chain, Coordinated, chain_of_three

ZOOKEEPER = "127.14.0.1"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def zookeeper_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ZooKeeperServer]:
    async with ZooKeeperServer(tmp_path_factory.mktemp("zookeeper"), address=ZOOKEEPER, port=2181) as server:
        yield server


@pytest.fixture(scope="session")
def chain(postgresql: Installation, postgres_user: str | None, shared_directory: Path) -> Iterator[Chain]:
    """Primary, sync and async on 127.14.0.2, .3 and .4."""
    with chain_of_three(postgresql, postgres_user, shared_directory / f"chain-{postgresql.major}") as servers:
        yield servers


@pytest.fixture
async def shard(zookeeper_server: ZooKeeperServer, request: pytest.FixtureRequest) -> AsyncIterator[Coordinated]:
    """A shard of this test's own, which does not exist until a state is written."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[-60:].strip("-")
    root = f"/manatee/{name}"
    settings = ZooKeeper(servers=zookeeper_server.servers, session_timeout=4)
    coordination = Coordination(settings, root, structlog.get_logger())
    await coordination.start(within=10)
    try:
        yield Coordinated(name, zookeeper_server, coordination)
    finally:
        await coordination.close()
