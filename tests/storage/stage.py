"""Peers on datasets of their own in one pool on a file, with small databases that are none but look like one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from demo import zfs
from manatee.config import Settings, load
from manatee.storage import Identity, Offer, Receiving, Sending, Storage, datadir, open_storage, pipe

IDENTITY = Identity("7711047635129003611", "15")
_numbers = itertools.count(1)


class Peer:
    """Settings and a storage; `<pool>/<number>/manatee` is its dataset, mounted at `<directory>/store`."""

    def __init__(
        self, pool: str, directory: Path, interface: str, user: str | None, bin_dir: Path, options: Sequence[str] = ()
    ) -> None:
        number = next(_numbers)
        self.parent = f"{pool}/{number}"
        self.dataset = f"{self.parent}/manatee"
        self.directory = directory / str(number)
        self.directory.mkdir(mode=0o755)
        (self.directory / "state").mkdir()
        (self.directory / "token").write_text("a-token\n")
        self.path = self.directory / "manatee.toml"
        self.path.write_text(f"""
            shard.name = "test"
            peer = {{ip = "127.21.{number // 250}.{number % 250 + 1}", zone_id = "{number}"}}
            zookeeper.servers = "127.0.0.1:2181"
            storage.driver = "zfs"
            storage.directory = "{self.directory}/store"
            storage.dataset = "{self.dataset}"
            storage.zfs_interface = "{interface}"
            sitter.state_dir = "{self.directory}/state"
            service = {{manager = "supervisor", supervisor_socket = "{self.directory}/supervisor"}}
            backup.token_file = "{self.directory}/token"
            [postgres]
            bin_dir = "{bin_dir}"
            {f'user = "{user}"' if user else ""}
            socket_dir = "{self.directory}"
            """)
        properties = ("mountpoint=none", "canmount=off", *options)
        zfs.run("zfs", "create", *(word for each in properties for word in ("-o", each)), self.parent)
        self.settings: Settings = load(self.path)
        self.storage: Storage = open_storage(self.settings)
        self.data = self.settings.storage.data_dir

    def restart(self) -> None:
        """Forget what only a running process knows."""
        self.storage = open_storage(self.settings)

    async def fill(self, size: int = 100_000, identity: Identity = IDENTITY) -> Peer:
        """What looks like a database, with `size` bytes in it."""
        await self.storage.prepare()
        for name in ("global", "base", "pg_wal", "pg_tblspc"):
            (self.data / name).mkdir(parents=True)
        (self.data / "PG_VERSION").write_text(f"{identity.major_version}\n")
        control = struct.pack("=Q", int(identity.system_identifier)) + b"control"
        (self.data / "global" / "pg_control").write_bytes(control)
        (self.data / "postmaster.pid").write_text("1\n")
        self.write("bulk", size)
        return self

    def write(self, name: str, size: int = 100_000) -> None:
        """A file that compresses to nothing less."""
        (self.data / "base" / name).write_bytes(os.urandom(size))

    def content(self) -> dict[str, bytes]:
        """Every file of the database, but for what belongs to a running server, and the sitter's mark."""
        files = (path for path in self.data.rglob("*") if path.is_file() and path.name not in datadir.LEFTOVERS)
        return {str(path.relative_to(self.data)): path.read_bytes() for path in files}

    def datasets(self) -> list[str]:
        """All there is of it, by the names below its own parent; `isolated` itself is no more than a place."""
        found = zfs.run("zfs", "list", "-H", "-o", "name", "-r", "-t", "filesystem", self.parent).splitlines()
        return sorted(
            name.removeprefix(f"{self.parent}/")
            for name in found
            if name not in (self.parent, f"{self.parent}/isolated")
        )

    def snapshots(self, dataset: str | None = None) -> list[str]:
        dataset = dataset or self.dataset
        found = zfs.run("zfs", "list", "-H", "-o", "name", "-r", "-t", "snapshot", dataset).splitlines()
        return [name.rpartition("@")[2] for name in found if name.startswith(f"{dataset}@")]

    def get(self, name: str, dataset: str | None = None) -> str:
        return zfs.run("zfs", "get", "-Hp", "-o", "value", name, dataset or self.dataset).strip()

    def holds(self) -> int:
        """Holds on all of its snapshots, and records of such."""
        found = zfs.run("zfs", "get", "-Hp", "-r", "-o", "name,property,value,source", "all", self.parent)
        rows = [line.split("\t") for line in found.splitlines()]
        records = sum(row[1].startswith("manatee:hold-") and row[3] == "local" for row in rows)
        return records + sum(int(row[2]) for row in rows if row[1] == "userrefs" and row[2].isdecimal())

    def destroy(self) -> None:
        """All of it; right after use zfs-fuse says for a moment that a dataset is busy."""
        ends = time.monotonic() + 30
        while True:
            try:
                zfs.run("zfs", "destroy", "-R", "-f", self.parent)
                return
            except zfs.ZfsFailed:
                if time.monotonic() > ends:
                    raise
                time.sleep(0.1)

    def scratch(self) -> list[Path]:
        return list((self.directory / "state").iterdir())


async def move(source: Sending, target: Receiving, on_bytes: Callable[[int], None] = lambda _: None) -> int:
    """All bytes from the one to the other; how many."""
    while chunk := await pipe.read(source.fd):
        await pipe.write(target.fd, chunk)
        source.moved += len(chunk)
        on_bytes(source.moved)
    return source.moved


async def restore(source: Peer, target: Peer, *, on_bytes: Callable[[int], None] = lambda _: None) -> tuple[str, int]:
    """A restore as the sitter does it, without the network; which form it took, and how many bytes."""
    await target.storage.clear_leftovers()
    async with source.storage.send(await target.storage.wanted()) as sending:
        count = await take(target, sending.offer, sending, on_bytes=on_bytes)
    return sending.offer.detail["form"], count


async def take(
    target: Peer, offer: Offer, sending: Sending, *, on_bytes: Callable[[int], None] = lambda _: None
) -> int:
    """Receive what is being sent, and make it live; how many bytes that were."""
    async with target.storage.receive(offer) as receiving:
        count = 0
        try:
            count = await move(sending, receiving, on_bytes)
            await sending.finished()
        except BrokenPipeError:
            pass  # `complete` says why
        assert await receiving.complete() == offer.identity
        await receiving.adopt("restore")
    return count


async def take_bytes(target: Peer, offer: Offer, stream: bytes) -> None:
    """As `take`, of a stream that is here already."""
    async with target.storage.receive(offer) as receiving:
        with contextlib.suppress(BrokenPipeError):
            await pipe.write(receiving.fd, stream)
        await receiving.complete()
        await receiving.adopt("restore")


def sent(peer: Peer, snapshot: str) -> bytes:
    """The stream of a snapshot."""
    command = ["zfs", "send", f"{peer.dataset}@{snapshot}"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


@asynccontextmanager
async def nothing_is_left(*peers: Peer) -> AsyncIterator[None]:
    """After the block: no dataset but the live one, no hold, no scratch directory, no process of ours."""
    yield
    for peer in peers:
        assert peer.datasets() == ["manatee"]
        assert peer.holds() == 0
        assert peer.scratch() == []
    assert streams() == []


def streams() -> list[list[str]]:
    """Our running `zfs send` and `zfs receive`."""
    ours: Iterable[psutil.Process] = psutil.Process().children(recursive=True)
    words = [process.cmdline() for process in ours if process.status() != psutil.STATUS_ZOMBIE]
    return [line for line in words if line[1:2] and line[1] in ("send", "receive")]


async def eventually(condition: Callable[[], object], within: float = 30.0) -> None:
    async with asyncio.timeout(within):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)
