"""The ensemble that is measured: three servers on this machine, and what they count."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from demo.zookeeper import ZooKeeperServer, four_letters

ADDRESSES = ("127.27.0.1", "127.27.0.2", "127.27.0.3")
JAVA = ("-Xms256m", "-Xmx512m", "-XX:-UsePerfData", "-XX:+UseSerialGC")
"""As in production, and unlike a test's servers, with all of the compiler and every write on the disk."""

WATCHES = tuple(f"zk_sum_node_{what}_watch_count" for what in ("created", "changed", "children", "deleted"))
COUNTED = ("zk_packets_received", "zk_packets_sent", "zk_watch_count", "zk_cnt_updatelatency", *WATCHES)
"""What `mntr` says that is kept."""


@dataclass(frozen=True)
class Counts:
    """Of all three servers together, at one moment."""

    at: float
    cpu: float
    """Seconds of a core used."""
    resident: float
    """MiB, of the greatest of the three."""
    received: float
    """Packets, those that only keep a session alive among them."""
    sent: float
    """Answers and events."""
    writes: float
    events: float
    """Watches that have fired."""
    watches: float
    """Armed now."""


class Ensemble:
    def __init__(self, directory: Path) -> None:
        self.servers = [
            ZooKeeperServer(directory / str(number), address=address, members=ADDRESSES, java_options=JAVA)
            for number, address in enumerate(ADDRESSES, 1)
        ]

    @property
    def connect(self) -> str:
        return ",".join(server.servers for server in self.servers)

    async def start(self) -> float:
        """All of them; returns when the first one served, by the monotonic clock."""
        serving = asyncio.create_task(self.serves())
        await asyncio.gather(*(server.start() for server in self.servers))
        return await serving

    async def serves(self) -> float:
        """Wait until one of them serves; when that was, by the monotonic clock."""
        while not any(await asyncio.gather(*(server.serving() for server in self.servers))):
            await asyncio.sleep(0.02)
        return time.monotonic()

    async def kill(self) -> None:
        await asyncio.gather(*(server.kill() for server in self.servers))

    async def one(self, mode: str) -> ZooKeeperServer:
        """The leader, or a follower."""
        for server in self.servers:
            if await server.mode() == mode:
                return server
        raise LookupError(f"no {mode}")

    async def counts(self) -> Counts:
        counted = dict.fromkeys(COUNTED, 0.0)
        cpu = resident = 0.0
        for server in self.servers:
            if server.pid is None:
                continue
            for line in (await four_letters("mntr", server.address, server.port)).splitlines():
                name, _, value = line.partition("\t")
                if name in counted:
                    counted[name] += float(value)
            process = psutil.Process(server.pid)
            cpu += sum(process.cpu_times()[:2])
            resident = max(resident, process.memory_info().rss / 2**20)
        return Counts(
            at=time.monotonic(),
            cpu=cpu,
            resident=resident,
            received=counted["zk_packets_received"],
            sent=counted["zk_packets_sent"],
            writes=counted["zk_cnt_updatelatency"],
            events=sum(counted[name] for name in WATCHES),
            watches=counted["zk_watch_count"],
        )
