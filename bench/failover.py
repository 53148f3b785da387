"""How long no write is acknowledged when all that runs on the primary is killed, and whether anything is lost.

The writer looks for the primary all the time; the outage is the longest time without an acknowledgement after the kill.
`python -m bench.failover [--rounds N]`.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

import click

from bench.machine import describe
from demo.shard import LocalShard, Seen
from demo.writer import Writer
from manatee.client import Topology

ADDRESSES = ("127.31.0.2", "127.31.0.3", "127.31.0.4")
PATIENCE = 90.0


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--session-timeout", default=4.0, show_default=True)
def main(rounds: int, session_timeout: float) -> None:
    outages, missing = asyncio.run(_measure(rounds, session_timeout))
    click.echo(describe())
    click.echo(f"SIGKILL of all that runs on the primary, {rounds} times, session timeout {session_timeout:g} s")
    click.echo("no write acknowledged for: " + ", ".join(f"{seconds:.2f}" for seconds in outages) + " s")
    click.echo(f"median {statistics.median(outages):.2f} s, from {min(outages):.2f} to {max(outages):.2f} s")
    click.echo(f"acknowledged rows that are missing: {missing}")
    sys.exit(1 if missing else 0)


async def _measure(rounds: int, session_timeout: float) -> tuple[list[float], int]:
    shard = LocalShard(ADDRESSES, name="bench", zookeeper=("127.31.0.1", 2181), session_timeout=session_timeout)
    async with shard, Topology(shard.zookeeper.servers, shard.name) as topology:
        await _complete(shard)
        writer = Writer(topology)
        task = asyncio.create_task(writer.run())
        try:
            outages = [await _one_kill(shard, writer) for _ in range(rounds)]
            return outages, len(await writer.missing())
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _one_kill(shard: LocalShard, writer: Writer) -> float:
    """Kill the primary, wait for writes to go on, bring it back; the outage in seconds."""
    before = await _complete(shard)
    assert before.state is not None
    killed = shard.peer(before.state.primary.id)
    await _more(writer)
    moment = time.monotonic()
    await shard.kill_peer(killed)
    await _more(writer, after=moment)
    outage = writer.outage_since(moment)
    assert outage is not None
    await shard.start_peer(killed)
    return outage.seconds


async def _complete(shard: LocalShard) -> Seen:
    return await shard.wait_for(lambda seen: seen.complete(len(shard.peers)), timeout=PATIENCE, what="a complete shard")


async def _more(writer: Writer, *, after: float = 0.0) -> None:
    """Wait for acknowledgements; with `after`, for one that came a second or more after that moment."""
    count = len(writer.acknowledged)
    async with asyncio.timeout(PATIENCE):
        while len(writer.acknowledged) < count + 50 or writer.acknowledged[-1][1] < after + 1:
            await asyncio.sleep(0.02)


if __name__ == "__main__":
    main()
