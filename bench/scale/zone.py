"""One zone: a process that holds one peer of every shard. It is told what to do on standard input, and reports.

Each line that it reads is a command, and is answered by a line of JSON: `report`, or `written`, after which clients
write to its databases.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass

from bench.scale.peer import Imagined, SimulatedPeer
from manatee.cluster import Peer
from manatee.config import ZooKeeper

ZONES = 3

START_WITHIN = 5.0
"""Seconds over which a zone's sitters start."""


@dataclass(frozen=True)
class Report:
    """Of all peers in a zone, moments by the monotonic clock, which the machine's processes share."""

    peers: int
    connected: int
    sessions: int
    """How many have been made since the beginning."""
    decided: int
    """How many have decided since they were last connected."""
    decided_at: float
    """When the last of these did."""
    complete: int
    """Peers whose shard is whole."""
    generations: list[int]
    """Of the shards, in order."""
    generations_at: list[float]
    decisions: int
    complaints: dict[str, int]


class Zone:
    def __init__(self, servers: str, shards: int, number: int, session_timeout: float, *, returning: bool) -> None:
        self._complaints: Counter[str] = Counter()
        settings = ZooKeeper(servers=servers, session_timeout=session_timeout)
        self._peers = [
            SimulatedPeer(
                settings,
                f"/manatee/shard-{shard:04d}",
                _peer(shard, number),
                Imagined(f"7{shard:018d}", initialized=returning),
                self._complaints,
            )
            for shard in range(shards)
        ]
        self._first = shards * number // ZONES
        self._running: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Until standard input ends."""
        lines: asyncio.Queue[str] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def read() -> None:
            for line in sys.stdin:
                loop.call_soon_threadsafe(lines.put_nowait, line)
            loop.call_soon_threadsafe(lines.put_nowait, "")

        threading.Thread(target=read, daemon=True).start()
        async with asyncio.TaskGroup() as group:
            starting = group.create_task(self._start(group))
            while line := await lines.get():
                Imagined.written = Imagined.written or line.strip() == "written"
                print(json.dumps(asdict(self.report())), flush=True)
            starting.cancel()
            for task in self._running:
                task.cancel()

    async def _start(self, group: asyncio.TaskGroup) -> None:
        """Each zone begins with other shards, so that each comes to lead as many."""
        for each in (*self._peers[self._first :], *self._peers[: self._first]):
            self._running.append(group.create_task(each.run()))
            await asyncio.sleep(START_WITHIN / len(self._peers))

    def report(self) -> Report:
        peers = self._peers
        decided = [each.decided_at for each in peers if each.decided_at is not None and each.coordination.connected]
        return Report(
            peers=len(peers),
            connected=sum(each.coordination.connected for each in peers),
            sessions=sum(each.sessions for each in peers),
            decided=len(decided),
            decided_at=max(decided, default=time.monotonic()),
            complete=sum(each.complete for each in peers),
            generations=[each.generation for each in peers],
            generations_at=[each.generation_at for each in peers],
            decisions=sum(each.decisions for each in peers),
            complaints=dict(self._complaints),
        )


def _peer(shard: int, zone: int) -> Peer:
    ip = f"10.{zone}.{shard // 250}.{shard % 250 + 1}"
    return Peer(
        id=f"{ip}:5432:12345",
        ip=ip,
        zone_id=f"{zone:08d}-0000-4000-8000-{shard:012d}",
        pg_url=f"tcp://postgres@{ip}:5432/postgres",
        backup_url=f"http://{ip}:12345",
    )


def main() -> None:
    servers, shards, number, session_timeout, returning = sys.argv[1:]
    zone = Zone(servers, int(shards), int(number), float(session_timeout), returning=returning == "returning")
    asyncio.run(zone.run())


if __name__ == "__main__":
    main()
