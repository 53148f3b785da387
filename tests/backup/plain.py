"""A storage whose format checks itself, without a database: so many bytes, by a thread that writes them to a pipe.

What these tests look at lies between the pipes: the server, the network, the source.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import structlog
from aiohttp import web

from backupserver.server import BackupServer
from manatee.cluster import Peer as Identity
from manatee.config import Settings
from manatee.storage import Offer, SendFailed, Storage, StorageError, pipe
from manatee.storage.datadir import Identity as Database
from manatee.tls import server_context
from sitter.source import Stream, connect
from tests.backup.sandbox import Peer

BLOCK = bytes(range(256)) * 256


@dataclass
class Sender:
    """Sends `size` bytes to each who asks: a `Storage`, and the `Sending` of each stream."""

    size: int
    stops_at: int | None = None
    """Gives so many bytes and then no more, until `go_on` is set."""
    fails: str | None = None
    """Why it was not the whole snapshot."""
    untidy: bool = False
    """What belongs to a stream cannot be tidied up, and that takes until `go_on` is set."""
    offer: Offer = field(init=False)
    fd: int = -1
    moved: int = 0
    checks_itself: bool = True
    driver: str = "plain"
    wanted: Mapping[str, str] = field(default_factory=dict)
    go_on: threading.Event = field(default_factory=threading.Event)
    running: int = 0

    def __post_init__(self) -> None:
        self.offer = Offer("plain", "1700000000000", Database("7", "15"), self.size)

    @asynccontextmanager
    async def send(self, wanted: Mapping[str, str]) -> AsyncIterator[Sender]:
        self.wanted = wanted
        fd, write = pipe.open_pipe()
        os.set_blocking(fd, False)
        task = asyncio.create_task(asyncio.to_thread(self._fill, write))
        self.running += 1
        stream = replace(self, fd=fd)
        try:
            yield stream
        finally:
            self.moved = stream.moved
            os.close(fd)
            if self.untidy:
                await asyncio.to_thread(self.go_on.wait)
            self.go_on.set()
            await task
            self.running -= 1
            if self.untidy:
                raise StorageError("the snapshot stays held")

    async def finished(self) -> None:
        if self.fails:
            raise SendFailed(self.fails)

    def _fill(self, write: int) -> None:
        with contextlib.suppress(BrokenPipeError), open(write, "wb", buffering=0) as target:
            left = self.size
            while left:
                if self.stops_at is not None and self.size - left >= self.stops_at:
                    self.go_on.wait()
                left -= target.write(BLOCK[: min(left, len(BLOCK))])


@dataclass
class Taken:
    """What came out at the receiving end."""

    bytes: int = 0
    sha256: str = ""
    offer: Offer | None = None


def expected(size: int) -> str:
    """The digest of what a sender of so many bytes sends."""
    hashed, left = hashlib.sha256(), size
    while left:
        hashed.update(BLOCK[: min(left, len(BLOCK))])
        left -= min(left, len(BLOCK))
    return hashed.hexdigest()


@asynccontextmanager
async def serving(peer: Peer | Settings, sender: Sender) -> AsyncIterator[Identity]:
    """The peer's backup server, in this process."""
    settings = peer.settings if isinstance(peer, Peer) else peer
    log = structlog.get_logger()
    server = BackupServer(settings, cast(Storage, sender), log)
    runner = server.runner()
    await runner.setup()
    encrypted = server_context(settings.tls, settings.peer.ip, log) if settings.tls else None
    await web.TCPSite(runner, settings.peer.ip, settings.peer.backup_port, ssl_context=encrypted).start()
    try:
        yield settings.identity
    finally:
        await server.end_transfers()
        await runner.cleanup()


async def take(source: Identity, settings: Settings, *, wanted: Mapping[str, str] | None = None, **how: Any) -> Taken:
    """Receive all of it, as a restore does, up to the sender's word for it."""
    async with connect(source, settings) as server, server.backup(wanted or {}) as stream:
        return await drain(stream, **how)


async def drain(stream: Stream, *, stops_at: int | None = None) -> Taken:
    """Into a pipe, and out of it by a thread; with `stops_at`, no more than so many bytes."""
    taken = Taken(offer=stream.offer)
    seen: list[int] = []
    read, write = pipe.open_pipe()
    os.set_blocking(write, False)
    closed = threading.Event()

    def empty() -> None:
        hashed = hashlib.sha256()
        with open(read, "rb", buffering=0) as source:  # noqa: PTH123 - a descriptor
            while chunk := source.read(1 << 18):
                hashed.update(chunk)
                taken.bytes += len(chunk)
                if stops_at is not None and taken.bytes >= stops_at:
                    closed.wait()
                    return
        taken.sha256 = hashed.hexdigest()

    emptying = asyncio.create_task(asyncio.to_thread(empty))
    try:
        await stream.into(write, seen.append)
    finally:
        os.close(write)
        closed.set()
        await emptying
    await stream.check_complete()
    assert taken.bytes == stream.bytes
    assert seen == sorted(seen)
    return taken
