"""One client process, on a node of its own: python -m tests.chaos.client NUMBER SHIFT ZOOKEEPER SHARD PEERS HISTORY.

A client that is started again on the same history is in another SHIFT. Client 1 finds the primary by ZooKeeper, the
others by asking the peers; all of them also have a stubborn worker for each peer. Runs until SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import psycopg

from manatee.client import Address, Topology, connect_primary, connect_writable
from tests.chaos.workloads import (
    SESSION,
    STUBBORN,
    Connection,
    Inserter,
    ListAppender,
    ListReader,
    RegisterWriter,
    StubbornInserter,
)

SEARCH = 4.0
"""Seconds for one search for the primary."""


async def main(number: int, shift: int, zookeeper: str, shard: str, peers: list[str], history: Path) -> None:
    ended = asyncio.Event()
    for signalled in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signalled, ended.set)
    async with contextlib.AsyncExitStack() as stack:
        connect = await _by_zookeeper(stack, zookeeper, shard) if number == 1 else _by_asking(peers)
        file = stack.enter_context(history.open("a", buffering=1))
        name = f"client{number}"
        ordinary = (Inserter, RegisterWriter, ListAppender, ListReader)
        workers = [kind(name, number * 100 + each, connect, file, shift=shift) for each, kind in enumerate(ordinary)]
        workers += [
            StubbornInserter(name, number * 100 + 50 + each, _to(peer), file, shift=shift)
            for each, peer in enumerate(peers)
        ]
        tasks = [asyncio.create_task(worker.run()) for worker in workers]
        ending = asyncio.create_task(ended.wait())
        await asyncio.wait([ending, *tasks], return_when=asyncio.FIRST_COMPLETED)
        broken = [task for task in tasks if task.done()]
        for task in (ending, *tasks):
            task.cancel()
        await asyncio.gather(ending, *tasks, return_exceptions=True)
        for task in broken:
            task.result()


async def _by_zookeeper(
    stack: contextlib.AsyncExitStack, zookeeper: str, shard: str
) -> Callable[[], Awaitable[Connection]]:
    topology = await stack.enter_async_context(Topology(zookeeper, shard, arrival=60.0))
    return lambda: connect_primary(topology, deadline=SEARCH, options=SESSION)


def _by_asking(peers: list[str]) -> Callable[[], Awaitable[Connection]]:
    addresses = [Address(peer) for peer in peers]
    return lambda: connect_writable(addresses, deadline=SEARCH, options=SESSION)


def _to(peer: str) -> Callable[[], Awaitable[Connection]]:
    async def connect() -> Connection:
        async with asyncio.timeout(SEARCH):
            return await psycopg.AsyncConnection.connect(
                host=peer,
                user="postgres",
                dbname="postgres",
                autocommit=True,
                options=STUBBORN,
                tcp_user_timeout=10_000,
            )

    return connect


if __name__ == "__main__":
    asyncio.run(
        main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5].split(","), Path(sys.argv[6]))
    )
