"""What the tests of coordination need around them: clients, a proxy that loses what it is told to, a shard's words."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import structlog
from kazoo.client import KazooClient
from structlog.testing import CapturingLogger

from manatee.cluster import ClusterState, Peer
from manatee.config import ZooKeeper
from manatee.coordination import Coordination

ADDRESS = "127.11.0.1"


@contextlib.contextmanager
def raw_client(servers: str) -> Iterator[KazooClient]:
    client = KazooClient(servers, timeout=10)
    client.start(timeout=10)
    try:
        yield client
    finally:
        client.stop()
        client.close()


class Party:
    """Makes coordinations, and closes them at the end of the test."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.made: list[Coordination] = []
        self.log = CapturingLogger()

    async def __call__(
        self,
        servers: str,
        *,
        root: str | None = None,
        on_change: Callable[[], None] | None = None,
        session_timeout: float = 4.0,
        request_timeout: float = 5.0,
        within: float | None = 10.0,
    ) -> Coordination:
        settings = ZooKeeper(servers=servers, session_timeout=session_timeout, request_timeout=request_timeout)
        logger: Any = structlog.wrap_logger(self.log, processors=[])
        one = Coordination(settings, root or self.root, logger, on_change)
        self.made.append(one)
        await one.start(within=within)
        return one

    def said(self, event: str) -> list[dict[str, Any]]:
        return [call.kwargs for call in self.log.calls if call.kwargs.get("event") == event]


class Proxy:
    """Stands between a client and ZooKeeper.

    `swallow` loses what the server answers, and `hold` keeps back what the client sends, until `release`; `swallow_on`,
    `hold_on` and `cut_on` begin with a request that holds these bytes. `heal` breaks all connections, and lets
    everything through again.
    """

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._pairs: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.swallow = False
        self.swallow_on: bytes | None = None
        self.hold_on: bytes | None = None
        self.cut_on: bytes | None = None
        self.hold = False
        self.held: list[tuple[asyncio.StreamWriter, bytes]] = []
        self.port = free_port()

    @property
    def servers(self) -> str:
        return f"{ADDRESS}:{self.port}"

    @property
    def connections(self) -> int:
        return len(self._pairs)

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, ADDRESS, self.port)

    async def shut(self) -> None:
        """Take no more connections."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def heal(self) -> None:
        self.swallow = self.hold = False
        self.swallow_on = self.hold_on = self.cut_on = None
        self.held.clear()
        for client, server in self._pairs:
            client.transport.abort()
            server.transport.abort()
        self._pairs.clear()

    def cut_client(self) -> None:
        """Break the client's side; what is held can still be released to the server."""
        for client, _ in self._pairs:
            client.transport.abort()

    async def release(self) -> None:
        for server, data in self.held:
            server.write(data)
            await server.drain()
        self.held.clear()

    async def close(self) -> None:
        await self.shut()
        for client, server in self._pairs:
            client.transport.abort()
            server.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(ADDRESS, self._upstream)
        self._pairs.append((writer, server_writer))
        for pump in (self._up(reader, server_writer), self._down(server_reader, writer)):
            task = asyncio.create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _up(self, reader: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                self.swallow |= self.swallow_on is not None and self.swallow_on in data
                self.hold |= self.hold_on is not None and self.hold_on in data
                if self.hold:
                    self.held.append((server, data))
                else:
                    server.write(data)
                if self.cut_on is not None and self.cut_on in data:
                    self.swallow = True
                    self.cut_client()
        if not self.hold:
            server.close()

    async def _down(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if not self.swallow:
                    client.write(data)
        client.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        port: int = probe.getsockname()[1]
        return port


def peer(number: int) -> Peer:
    ip = f"10.0.0.{number}"
    return Peer(
        id=f"{ip}:5432:12345",
        ip=ip,
        zone_id=f"{number:08d}-aaaa-bbbb-cccc-dddddddddddd",
        pg_url=f"tcp://postgres@{ip}:5432/postgres",
        backup_url=f"http://{ip}:12345",
    )


def state(generation: int, **more: Any) -> ClusterState:
    one, two, three = (peer(number).document() for number in (1, 2, 3))
    return ClusterState.of(
        {
            "generation": generation,
            "primary": one,
            "sync": two,
            "async": [three],
            "deposed": [],
            "initWal": "0/00000000",
            **more,
        }
    )


def manatee2_data(one: Peer) -> bytes:
    """What a Manatee 2 peer writes into its election node."""
    return json.dumps({"zoneId": one.zone_id, "ip": one.ip, "pgUrl": one.pg_url, "backupUrl": one.backup_url}).encode()


async def until(condition: Callable[[], bool | Awaitable[bool]], *, within: float = 10.0) -> None:
    """Wait until the condition holds; the test fails if it does not within so many seconds."""
    async with asyncio.timeout(within):
        while True:
            holds = condition()
            if isinstance(holds, Awaitable):
                holds = await holds
            if holds:
                return
            await asyncio.sleep(0.01)
