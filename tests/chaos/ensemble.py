"""Three ZooKeeper servers that elect a leader among themselves, each on a node of its own."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from demo.supervisor import Program
from demo.zookeeper import ZooKeeperServer, four_letters
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
        return [self._program(number, node) for number, node in enumerate(NODES, 1)]

    def _program(self, number: int, node: str) -> Program:
        home = self.directory / node
        (home / "data").mkdir(parents=True)
        (home / "data" / "myid").write_text(f"{number}\n")
        members = [f"server.{each}={self.network.nodes[name]}:2888:3888" for each, name in enumerate(NODES, 1)]
        settings = [
            f"dataDir={home / 'data'}",
            f"clientPort={PORT}",
            f"clientPortAddress={self.network.nodes[node]}",
            "tickTime=500",
            "initLimit=20",
            "syncLimit=6",
            "minSessionTimeout=1000",
            "maxSessionTimeout=60000",
            "maxClientCnxns=0",
            "admin.enableServer=false",
            "4lw.commands.whitelist=srvr",
            *members,
        ]
        (home / "zoo.cfg").write_text("\n".join(settings) + "\n")
        argv = ZooKeeperServer(home, address=self.network.nodes[node]).command()
        return Program(node, (*self.network.inside(node), *argv), home / "zookeeper.log", grace=5.0)

    async def mode(self, node: str) -> str | None:
        """`leader`, `follower`, or None while it serves nobody."""
        said = await four_letters("srvr", self.network.nodes[node], PORT, timeout=1.0)
        return next((line.split()[1] for line in said.splitlines() if line.startswith("Mode: ")), None)

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
