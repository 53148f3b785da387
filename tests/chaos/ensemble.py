"""Three ZooKeeper servers that elect a leader among themselves, each on a node of its own."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from demo.supervisor import Program
from demo.zookeeper import ZooKeeperServer
from tests.chaos.topology import Network

PORT = 2181
NODES = ("zk1", "zk2", "zk3")


@dataclass(frozen=True)
class Ensemble:
    network: Network
    directory: Path

    @property
    def servers(self) -> str:
        """The connect string."""
        return ",".join(f"{self.network.nodes[node]}:{PORT}" for node in NODES)

    def programs(self) -> list[Program]:
        """Their settings are written; what the supervisor is to run, by the nodes' names."""
        return [self._program(node) for node in NODES]

    def _program(self, node: str) -> Program:
        server = self._server(node)
        server.write_settings()
        return Program(node, (*self.network.inside(node), *server.command()), server.log, grace=5.0)

    def _server(self, node: str) -> ZooKeeperServer:
        members = [self.network.nodes[each] for each in NODES]
        return ZooKeeperServer(self.directory / node, address=self.network.nodes[node], port=PORT, members=members)

    async def mode(self, node: str) -> str | None:
        """`leader`, `follower`, or None while it serves nobody."""
        return await self._server(node).mode()

    async def serves(self, *, within: float) -> bool:
        """Whether there is a leader in so many seconds."""
        deadline = time.monotonic() + within
        while await self.leader() is None:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.1)
        return True

    async def leader(self) -> str | None:
        for node in NODES:
            if await self.mode(node) == "leader":
                return node
        return None
