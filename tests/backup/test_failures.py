"""What breaks a transfer, with either driver: both ends notice soon, say why, and leave nothing behind.

Each begins with a peer that has data of its own. They stay live, and the restore can be done once the cause is gone.
"""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from demo import zfs
from demo.directory import run_directory
from demo.postgresql import Installation
from manatee.storage import open_storage
from sitter.bootstrap import RestoreFailed
from tests.backup.attempt import Attempt
from tests.backup.conftest import with_a_table
from tests.backup.proxy import Fault, Proxy, between
from tests.backup.sandbox import TOKEN, Peer, Sandbox, eventually, opened
from tests.backup.test_restore import REQUESTER

IDLE = 15.0
"""Seconds without a byte after which a transfer is given up, by the receiver."""
_numbers = itertools.count(1)


@dataclass
class Storage:
    """Where the peers of these tests have their data, and the one that has something to give."""

    driver: str
    source: Peer
    sandbox: Sandbox
    pool: str | None

    def rebuilt(self) -> Peer:
        """A peer with a database of its own, which is to be replaced."""
        dataset = new_dataset(self.pool) if self.pool else None
        peer = self.sandbox.peer(self.source.postgresql, dataset=dataset, idle_timeout=IDLE)
        self.sandbox.initialize(peer)
        (peer.data / "old").touch()
        return peer


def new_dataset(pool: str) -> str:
    """Below a parent of its own, as a peer's zone has one."""
    parent = f"{pool}/{next(_numbers)}"
    zfs.create(parent)
    return f"{parent}/manatee"


@pytest.fixture(scope="module", params=["basebackup", "zfs"])
def _storage(
    request: pytest.FixtureRequest, any_postgresql: Installation, postgres_user: str | None
) -> Iterator[Storage]:
    if request.param == "zfs" and (missing := zfs.missing()):
        pytest.skip(missing)
    with run_directory(readable_by=postgres_user) as directory:
        if request.param == "basebackup":
            with opened(directory, postgres_user) as sandbox:
                source = with_a_table(sandbox.peer(any_postgresql).initialize().serve())
                yield Storage("basebackup", source, sandbox, None)
            return
        with zfs.pool(directory, size=2 << 30) as pool, opened(directory, postgres_user, remove=False) as sandbox:
            source = with_a_table(sandbox.peer(any_postgresql, dataset=new_dataset(pool)).initialize().serve())
            yield Storage("zfs", source, sandbox, pool)


@pytest.fixture
async def storage(_storage: Storage) -> Storage:
    return _storage


async def untouched(storage: Storage, peer: Peer) -> None:
    """The old data are live, and nobody sends or holds anything any more."""
    assert (peer.data / "old").exists()
    assert (peer.data / "global" / "pg_control").exists()
    await eventually(lambda: not peer.beside(), within=60.0)
    await eventually(lambda: storage.source.streams() == 0 and not storage.source.senders(), within=60.0)
    await eventually(lambda: not storage.source.beside(), within=60.0)


async def restores(storage: Storage, peer: Peer) -> None:
    """The new data are there once nothing is in the way, and were about as many as foreseen."""
    attempt = Attempt(peer)
    restored = await attempt.run(storage.source)
    assert not (peer.data / "old").exists()
    assert restored.bytes == attempt.seen[-1].bytes_done == attempt.seen[-1].bytes_total
    # Of the newest segment of the log most is still a hole in ZFS, which counts.
    assert 0.6 < restored.bytes / attempt.estimate <= 1.0


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("cut", "broke off; the sender says|the stream was cut"),
        ("garble", "damaged|does not take the stream"),
        ("hold", "no byte came for 15 s"),
    ],
)
async def test_a_stream_that_does_not_come_whole(storage: Storage, fault: Fault, said: str) -> None:
    peer = storage.rebuilt()
    async with between(storage.source, fault) as proxy:
        attempt = Attempt(peer)
        with pytest.raises(RestoreFailed, match=said):
            await attempt.run(proxy.identity, attempts=1)
        assert attempt.seen[-1].document()["error"] == attempt.errors[-1]
    await untouched(storage, peer)
    await restores(storage, peer)


@pytest.mark.parametrize("end", ["sender", "receiver"])
async def test_a_program_that_moves_the_stream_is_killed_alone(storage: Storage, end: str) -> None:
    """Its pipe is at its end then, as if it had finished."""
    if (storage.driver, end) == ("basebackup", "receiver"):
        pytest.skip("the sitter takes such a stream itself")
    peer = storage.rebuilt()
    attempt = Attempt(peer)
    async with between(storage.source, "hold") as proxy:
        running = asyncio.create_task(attempt.run(proxy.identity, attempts=1))
        await held(proxy)
        programs = storage.source.senders if end == "sender" else peer.receivers
        await eventually(programs, within=60.0)
        programs()[0].kill()
        proxy.release.set()
        with pytest.raises(RestoreFailed, match=r"status -9|does not take the stream"):
            await running
    if end == "sender":
        assert "the sender says: " in attempt.errors[-1]
        await untouched(storage, peer)
    assert (peer.data / "old").exists()
    await restores(storage, peer)
    # zfs-fuse may go on receiving for a program that is dead: what comes of it goes with the next restore.
    assert not [name for name in peer.beside() if ".restoring-" in name]


async def test_the_server_is_killed(storage: Storage) -> None:
    peer, source = storage.rebuilt(), storage.source
    attempt = Attempt(peer)
    async with between(source, "hold") as proxy:
        running = asyncio.create_task(attempt.run(proxy.identity, attempts=1))
        await held(proxy)
        assert source.server is not None
        source.server.kill()
        source.server.wait()
        proxy.release.set()
        with pytest.raises(RestoreFailed, match="the stream ended, and nobody says that it was complete|broke off"):
            await running
    await eventually(lambda: not source.senders())
    (source.root / "server.log").unlink()
    source.serve()
    await untouched(storage, peer)
    await restores(storage, peer)


async def test_the_requester_is_killed(storage: Storage) -> None:
    peer, source = storage.rebuilt(), storage.source
    async with between(source, "hold") as proxy:
        arguments = [peer.root / "manatee.toml", proxy.identity.content().decode(), peer.postgresql.major]
        requester = subprocess.Popen([sys.executable, "-c", REQUESTER, *map(str, arguments)])
        try:
            await held(proxy)
        finally:
            requester.kill()
            requester.wait()
        await eventually(lambda: source.streams() == 0 and not source.senders())
    assert "the receiver went away" in source.server_log()
    await open_storage(peer.settings).clear_leftovers()
    await untouched(storage, peer)
    await restores(storage, peer)


async def test_the_token_is_wrong(storage: Storage) -> None:
    peer = storage.rebuilt()
    (peer.root / "token").write_text("another")
    with pytest.raises(RestoreFailed, match=r"does not take the token in this peer's backup.token_file"):
        await Attempt(peer).run(storage.source, attempts=1)
    (peer.root / "token").write_text(TOKEN)
    await untouched(storage, peer)


async def held(proxy: Proxy) -> None:
    """The stream has come to its byte, and goes no further."""
    async with asyncio.timeout(30):
        await proxy.held.wait()
