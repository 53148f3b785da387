"""A link over which nothing comes any more although nobody has closed it: both ends find out within ten seconds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from manatee.cluster import Peer
from sitter.postgres import configuration, queries
from sitter.postgres.configuration import NOBODY, Replication
from tests.postgres.local import Machines, Node, until

PATIENCE = 40.0
"""Seconds: less than PostgreSQL's own 60, more than a busy machine makes of our 8."""


@dataclass
class Cable:
    """Between a standby and its upstream. Cut, it holds both connections open and passes nothing on, as a machine does
    that has lost its power, or a firewall that has forgotten."""

    node: Node
    peer: Peer
    passes: asyncio.Event = field(default_factory=asyncio.Event)
    held: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self.node.settings.peer.ip, self.node.settings.peer.postgres_port)
        self.held += 1
        try:
            await asyncio.gather(self._copy(reader, back), self._copy(there, writer))
        except OSError:
            pass
        finally:
            self.held -= 1
            for each in (back, writer):
                each.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await self.passes.wait()
            chunk = await reader.read(1 << 16)
            await self.passes.wait()
            if not chunk:
                raise OSError("closed")
            writer.write(chunk)
            await writer.drain()


@asynccontextmanager
async def cable(node: Node) -> AsyncIterator[Cable]:
    """The node as reached through a cable, at an address of its own."""
    *_, third, last = node.settings.peer.ip.split(".")
    ip = f"127.25.{third}.{last}"
    peer = node.settings.identity
    between = Cable(node, peer.replace(ip=ip, pg_url=peer.pg_url.replace(peer.ip, ip)))
    between.passes.set()
    server = await asyncio.start_server(between.serve, ip, node.settings.peer.postgres_port)
    try:
        yield between
    finally:
        between.passes.set()
        server.close()


async def test_a_link_that_falls_silent_is_given_up_by_both_ends(machines: Machines) -> None:
    """Neither end is closed, killed or stopped: only nothing arrives. A commit that waits is confirmed by who comes
    back over another link."""
    primary = machines.initialized()
    await primary.start_primary()
    async with cable(primary) as between:
        standby = machines.empty()
        await asyncio.to_thread(machines.copy, primary, standby)
        link = configuration.conninfo(standby.settings, between.peer)
        await standby.start(Replication(NOBODY, read_only=False, upstream=link), standby=True)
        await standby.open()

        async def streams() -> bool:
            row = (await queries.facts(primary.settings)).downstream(standby.name)
            return row is not None and row.state == "streaming"

        async def receiver() -> int | None:
            found = (await queries.facts(standby.settings)).receiver
            return found.pid if found else None

        await until(streams)
        await primary.server.configure(Replication(standby.name, read_only=False))
        old = await receiver()
        between.passes.clear()
        async with await primary.connect() as client:
            commit = asyncio.create_task(client.execute("create table t ()"))

            async def noticed() -> bool:
                gone = (await queries.facts(primary.settings)).downstream(standby.name) is None
                return gone and await receiver() != old

            await until(noticed, timeout=PATIENCE)
            assert not commit.done()
            await standby.server.configure(standby.follows(primary))
            async with asyncio.timeout(PATIENCE):
                await commit
        with contextlib.suppress(asyncio.CancelledError):
            await primary.server.configure(Replication(NOBODY, read_only=True))


async def test_a_client_that_falls_silent_is_given_up(machines: Machines) -> None:
    """Over TCP, by the server's keepalives: a session whose client's machine is gone holds no locks for hours."""
    node = machines.initialized()
    await node.start_primary()
    async with await node.connect(host=node.settings.peer.ip) as connection:
        for name, value in (("idle", "4"), ("interval", "2"), ("count", "2")):
            row = await (await connection.execute(f"show tcp_keepalives_{name}")).fetchone()
            assert row == (value,)
