"""How long no write is acknowledged after something has happened to a shard, where that time goes, and whether anything
is lost.

    python -m bench.failover [--rounds N] [--spans] [KIND ...]

The time is the longest without an acknowledgement (`bench.client`) between the event and a complete shard. `--spans`
prints, for the median round of each kind, what the sitters logged on the way: milliseconds since the event, who, what,
and how long it took.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import click

from bench.client import Client
from bench.machine import describe
from bench.outage.deeds import EVENTS
from bench.outage.manatee import Cluster, Manatee
from demo.postgresql import choose
from demo.shard import LocalShard, ShardFailed, script

PATIENCE = 90.0
RETURN = 20.0
"""Seconds for a peer to come back by itself, before it is rebuilt by hand."""


@dataclass(frozen=True)
class Round:
    """What one event cost."""

    outage: float
    """Seconds."""
    complete: float
    """Seconds until every peer was in the chain and ready again, without help; infinite if one needed a rebuild."""
    spans: list[str]


@click.command()
@click.argument("kinds", nargs=-1, type=click.Choice(list(EVENTS)))
@click.option("--rounds", default=5, show_default=True)
@click.option("--session-timeout", default=4.0, show_default=True)
@click.option("--postgresql", type=int, metavar="MAJOR")
@click.option("--spans", is_flag=True, help="Print where the time of the median round went.")
def main(kinds: tuple[str, ...], rounds: int, session_timeout: float, postgresql: int | None, spans: bool) -> None:
    missing = asyncio.run(_measure(kinds or tuple(EVENTS), rounds, session_timeout, postgresql, spans))
    click.echo(f"acknowledged rows that are missing: {missing}")
    click.echo(f"{describe()}; session timeout {session_timeout:g} s, {choose(postgresql)}")
    sys.exit(1 if missing else 0)


async def _measure(
    kinds: tuple[str, ...], rounds: int, session_timeout: float, postgresql: int | None, spans: bool
) -> int:
    async with Manatee("Manatee", session_timeout, choose(postgresql)).cluster() as cluster:
        await cluster.whole()
        async with _writing(cluster.shard) as client:
            for kind in kinds:
                _report(kind, [await _one(cluster, client, kind) for _ in range(rounds)], spans=spans)
            return len(await client.missing())


def _report(kind: str, results: list[Round], *, spans: bool) -> None:
    outages = sorted(each.outage for each in results)
    click.echo(
        f"{EVENTS[kind].name}: no write acknowledged for {statistics.median(outages):.2f} s"
        f" ({', '.join(f'{each.outage:.2f}' for each in results)});"
        f" complete again after {', '.join(f'{each.complete:.1f}' for each in results)} s"
    )
    if spans:
        median = min(results, key=lambda each: abs(each.outage - statistics.median(outages)))
        click.echo("\n".join(median.spans))


@contextlib.asynccontextmanager
async def _writing(shard: LocalShard) -> AsyncIterator[Client]:
    client = Client(shard.addresses)
    task = asyncio.create_task(client.run())
    try:
        yield client
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _one(cluster: Cluster, client: Client, kind: str) -> Round:
    primary, sync = await cluster.whole()
    await _acknowledged(client, after=time.monotonic() + 1.0)
    await cluster.whole()
    moment, clock = time.monotonic(), time.time()
    await EVENTS[kind].do(cluster, primary, sync)
    await _acknowledged(client, after=moment + 0.5)
    await cluster.bring_back(sync if EVENTS[kind].harms_sync else primary)
    back = await _back(cluster)
    complete = time.monotonic() - moment
    seconds, began, ended = client.outage(moment)
    return Round(seconds, complete if back else float("inf"), cluster.spans(clock, moment, began, ended))


async def _acknowledged(client: Client, *, after: float) -> None:
    """Wait until a write was acknowledged that long after the last gap, or after that moment."""
    async with asyncio.timeout(PATIENCE):
        while not client.acknowledged or client.acknowledged[-1][1] < after:
            await asyncio.sleep(0.02)


async def _back(cluster: Cluster) -> bool:
    """Whether the shard is complete by itself; if not, it is made so."""
    shard = cluster.shard
    try:
        await shard.wait_for(lambda seen: seen.complete(len(shard.peers)), timeout=RETURN)
        return True
    except ShardFailed:
        seen = await shard.look()
        for peer in seen.state.deposed if seen.state else ():
            await _adm(shard, "-c", str(shard.peer(peer.id).settings_file), "rebuild", "-y")
        await cluster.whole()
        return False


async def _adm(shard: LocalShard, *words: str) -> None:
    process = await asyncio.create_subprocess_exec(
        script("manatee-adm"), *words, env={**os.environ, **shard.environment}
    )
    await process.wait()


if __name__ == "__main__":
    main()
