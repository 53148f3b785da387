"""A stretch of network between a requester and a backup server, on which things go wrong at a chosen byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from manatee.cluster import Peer as Identity
from tests.backup.sandbox import Peer, new_address

Fault = Literal["none", "cut", "garble", "hold"]


class Proxy:
    """Stands in front of a peer's backup server; `identity` is that peer as reached through here.

    The fault befalls every answer to `GET /v2/backup` that reaches `at` bytes, until `fault` is set to "none".
    """

    def __init__(self, peer: Peer, fault: Fault, at: int) -> None:
        self.fault = fault
        self.at = at
        self.held = asyncio.Event()
        """Set when a held answer has come to its byte."""
        self.release = asyncio.Event()
        """Set to let it go on."""
        self.streams = 0
        self._behind = peer.settings.peer
        ip = new_address()
        self.identity: Identity = peer.settings.identity.replace(backup_url=f"http://{ip}:12345")
        self.ip = ip

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        there, back = await asyncio.open_connection(self._behind.ip, self._behind.backup_port)
        back.write(request)
        is_stream = request.split(b" ")[1].split(b"?")[0] == b"/v2/backup"
        self.streams += is_stream
        onward = asyncio.create_task(_copy(reader, back))
        try:
            await self._answer(there, writer, onward, is_stream)
        except ConnectionError:
            pass
        finally:
            onward.cancel()
            for each in (back, writer):
                each.transport.abort()

    async def _answer(
        self, there: asyncio.StreamReader, writer: asyncio.StreamWriter, onward: asyncio.Task[None], is_stream: bool
    ) -> None:
        passed = 0
        while chunk := await there.read(1 << 16):
            if is_stream and passed <= self.at < passed + len(chunk):
                middle = self.at - passed
                if self.fault == "garble":
                    chunk = chunk[:middle] + bytes([chunk[middle] ^ 1]) + chunk[middle + 1 :]
                elif self.fault == "cut":
                    writer.write(chunk[:middle])
                    await writer.drain()
                    return
                elif self.fault == "hold":
                    self.held.set()
                    released = asyncio.create_task(self.release.wait())
                    await asyncio.wait([released, onward], return_when=asyncio.FIRST_COMPLETED)
                    released.cancel()
            passed += len(chunk)
            writer.write(chunk)
            await writer.drain()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(1 << 16):
        writer.write(chunk)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def between(peer: Peer, fault: Fault, at: int = 4 << 20) -> AsyncIterator[Proxy]:
    proxy = Proxy(peer, fault, at)
    server = await asyncio.start_server(proxy.serve, proxy.ip, 12345)
    try:
        yield proxy
    finally:
        server.close()
