"""This project's shard, with the defaults of its settings but for the session timeout and pg_rewind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import psutil

from bench import network
from bench.machine import programs
from bench.outage import spans
from demo.shard import LocalPeer, LocalShard, script

PART = 1
PATIENCE = 180.0
SESSION_TIMEOUT = 4.0


@dataclass(frozen=True)
class Manatee:
    name: str

    @asynccontextmanager
    async def cluster(self) -> AsyncIterator[Cluster]:
        shard = LocalShard(
            network.peers(PART),
            name="bench",
            zookeeper=(network.address(PART, 1), 2181),
            postgresql=programs(),
            session_timeout=SESSION_TIMEOUT,
            # As Patroni with use_pg_rewind: who was stopped in the middle of a write comes back by itself.
            overrides={"postgres": {"rejoin": "rewind"}},
        )
        async with shard:
            yield Cluster(shard)


class Cluster:
    def __init__(self, shard: LocalShard) -> None:
        self.shard = shard
        self._paused: list[psutil.Process] = []

    @property
    def addresses(self) -> Sequence[str]:
        return self.shard.addresses

    def _peer(self, address: str) -> LocalPeer:
        return next(peer for peer in self.shard.peers if peer.ip == address)

    def _family(self, program: str) -> list[psutil.Process]:
        pid = self.shard.supervisor.status(program).pid
        if pid is None:
            return []
        sitter = psutil.Process(pid)
        return [sitter, *sitter.children(recursive=True)]

    async def whole(self) -> tuple[str, str]:
        seen = await self.shard.wait_for(lambda seen: seen.complete(3), timeout=PATIENCE, what="a complete shard")
        assert seen.state is not None
        assert seen.state.sync is not None
        return seen.state.primary.ip, seen.state.sync.ip

    async def kill_postmaster(self, address: str) -> None:
        first = (self._peer(address).settings.storage.data_dir / "postmaster.pid").read_text().splitlines()[0]
        psutil.Process(int(first)).kill()

    async def kill_peer(self, address: str) -> None:
        await self.shard.kill_peer(self._peer(address))

    async def pause_peer(self, address: str) -> None:
        self._paused = [process for program in self._peer(address).programs for process in self._family(program)]
        for process in self._paused:
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    async def terminate(self, address: str) -> None:
        sitter, *_ = self._peer(address).programs
        await self.shard.supervisor.stop(sitter)

    async def promote(self, _: str, sync: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *(script("manatee-adm"), "promote", "-y", "-n", self._peer(sync).label, "-r", "sync"),
            env={**os.environ, **self.shard.environment},
            stdout=asyncio.subprocess.DEVNULL,
        )
        assert await process.wait() == 0

    async def bring_back(self, address: str) -> None:
        for process in reversed(self._paused):
            with suppress(psutil.NoSuchProcess):
                process.resume()
        self._paused = []
        await self.shard.start_peer(self._peer(address))

    def spans(self, clock: float, moment: float, began: float, ended: float) -> list[str]:
        return spans.spans([(p.label, p.log("sitter")) for p in self.shard.peers], clock, moment, began, ended)

    @property
    def zookeeper(self) -> str:
        return self.shard.zookeeper.servers

    def daemon(self, address: str) -> int:
        pid = self.shard.supervisor.status(self._peer(address).programs[0]).pid
        assert pid is not None
        return pid

    def replica_check(self, address: str) -> str:
        return f"http://{address}:{self._peer(address).settings.peer.postgres_port + 1}/replica"
