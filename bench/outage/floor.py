"""The least that an outage can take: the same chain, set up and operated by a script that has nothing to decide.

It knows at once what has happened, and does at once what must be done: `pg_promote` and the first synchronous commit.
It proves nothing, seals nothing and writes nothing down, so nobody should run a database with it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bench import byhand

PART = 2


@dataclass(frozen=True)
class Floor:
    name: str

    @asynccontextmanager
    async def cluster(self) -> AsyncIterator[Cluster]:
        async with byhand.chain(PART) as servers:
            yield Cluster(servers)


class Cluster:
    def __init__(self, servers: Sequence[byhand.Server]) -> None:
        self.addresses = tuple(server.ip for server in servers)
        self._chain = list(servers)
        self._out: byhand.Server | None = None

    async def whole(self) -> tuple[str, str]:
        await byhand.complete(self._chain)
        return self._chain[0].ip, self._chain[1].ip

    async def kill_postmaster(self, _: str) -> None:
        await self._chain[0].restart_killed()

    async def kill_peer(self, address: str) -> None:
        if address == self._chain[0].ip:
            await self._chain[0].kill()
            await self._take_over()
        else:
            primary, self._out, last = self._chain
            await self._out.kill()
            self._chain = [primary, last]
            await primary.configure(sync=last)
            await last.configure(upstream=primary)
            for server in self._chain:
                server.reload()

    async def pause_peer(self, _: str) -> None:
        self._chain[0].pause()
        await self._take_over()

    async def terminate(self, _: str) -> None:
        await self._chain[0].stop()
        await self._take_over()

    async def promote(self, primary: str, _: str) -> None:
        await self.terminate(primary)

    async def bring_back(self, _: str) -> None:
        if self._out is not None:
            server, self._out = self._out, None
            await server.kill()
            await byhand.append(self._chain[-1], server)
            self._chain.append(server)

    def spans(self, *_: float) -> list[str]:
        return []

    async def _take_over(self) -> None:
        self._out, *self._chain = self._chain
        await self._chain[0].promote(self._chain[1])
