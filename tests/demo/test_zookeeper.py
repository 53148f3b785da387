"""The local ZooKeeper: it keeps what it acknowledged through SIGKILL, and a dead client's session ends in time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from kazoo.client import KazooClient

from demo.zookeeper import ZooKeeperFailed, ZooKeeperServer

ADDRESS = "127.15.1.1"


@pytest.fixture
async def zookeeper(tmp_path: Path) -> AsyncIterator[ZooKeeperServer]:
    async with ZooKeeperServer(tmp_path / "zookeeper", address=ADDRESS, port=2181) as server:
        yield server


async def test_what_it_answered_survives_sigkill(zookeeper: ZooKeeperServer) -> None:
    client = KazooClient(zookeeper.servers, timeout=10)
    client.start(timeout=10)
    client.create("/kept", b"row")
    await zookeeper.kill()
    assert not zookeeper.running
    await zookeeper.start()
    again = KazooClient(zookeeper.servers, timeout=10)
    again.start(timeout=10)
    assert again.get("/kept")[0] == b"row"
    for one in (client, again):
        one.stop()
        one.close()


async def test_sessions_as_short_as_the_demo_asks_for_are_granted(zookeeper: ZooKeeperServer) -> None:
    client = KazooClient(zookeeper.servers, timeout=4)
    client.start(timeout=10)
    assert client._session_timeout == 4000
    client.stop()
    client.close()


async def test_stopping_leaves_no_process(zookeeper: ZooKeeperServer) -> None:
    pid = zookeeper.pid
    assert pid is not None
    await zookeeper.stop()
    assert not psutil.pid_exists(pid)


async def test_a_port_that_is_taken_is_said_before_anything_starts(zookeeper: ZooKeeperServer, tmp_path: Path) -> None:
    second = ZooKeeperServer(tmp_path / "second", address=ADDRESS, port=2181)
    with pytest.raises(ZooKeeperFailed, match="port 2181 of 127.15.1.1 is in use"):
        await second.start()
    assert not second.directory.exists()
