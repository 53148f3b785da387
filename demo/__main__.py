"""`make demo`: a shard of three at work. Its primary is killed, nothing that was acknowledged is lost, and the killed
peer comes back. Exits 0 only if all of that held."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click

from demo import zfs
from demo.options import local_shard, run, shard_options
from demo.restores import restores
from demo.screen import CommandFailed, Screen
from demo.shard import LocalPeer, LocalShard, script
from demo.writer import Writer
from manatee.client import NoPrimary, Topology

SETTLE = 120.0
"""Seconds for the shard to become complete, at first and after the rebuild."""
TAKEOVER = 60.0
WRITE_BEFORE = 3.0
WRITE_AFTER = 2.0


class NotHeld(Exception):
    """Something that the demo promises did not hold."""


@click.command(help=__doc__)
@shard_options
def main(**options: Any) -> None:
    run(lambda: demonstrate(local_shard(**options)), CommandFailed, NotHeld, NoPrimary)


async def demonstrate(shard: LocalShard) -> None:
    screen = Screen()
    began = time.monotonic()
    screen.step(f"Starting ZooKeeper and three peers on {', '.join(shard.addresses)}: {shard.postgresql}")
    async with shard:
        try:
            await _tell(screen, shard, began)
        except Exception:
            screen.step("Something did not hold; what the sitters said last:")
            for line in shard.last_words:
                screen.say(line)
            raise
        screen.step("Taking everything down")
    screen.say(f"nothing is left running; all of it held, in {time.monotonic() - began:.0f} s")


async def _tell(screen: Screen, shard: LocalShard, began: float) -> None:
    """The story."""
    await _wait_complete(screen, shard)
    screen.say(f"the shard is complete after {time.monotonic() - began:.1f} s")
    await _adm(screen, shard, "show", "-v")
    if shard.pool is not None:
        screen.step(f"How the data came to the peers: each has a dataset of its own ({zfs.kind()}, a pool on a file)")
        await _show_restores(screen, shard, *shard.peers)
    async with Topology(shard.zookeeper.servers, shard.name) as topology, _writing(topology) as writer:
        primary = await _kill_the_primary(screen, shard, writer)
        await _rebuild(screen, shard, primary)
        await _count(screen, writer)


@asynccontextmanager
async def _writing(topology: Topology) -> AsyncIterator[Writer]:
    writer = Writer(topology)
    task = asyncio.create_task(writer.run())
    try:
        yield writer
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _wait_complete(screen: Screen, shard: LocalShard) -> None:
    """Every peer is ready, and the operator's own tool finds nothing wrong."""
    with screen.waiting("waiting until the shard is complete") as show:
        await shard.wait_for(
            lambda seen: seen.complete(len(shard.peers)), timeout=SETTLE, what="a complete shard", progress=show
        )
        ends = time.monotonic() + SETTLE
        while problems := await shard.verify():
            if time.monotonic() > ends:
                raise NotHeld(f"after {SETTLE:.0f} s manatee-adm verify still finds: {problems}")
            show(problems)
            await asyncio.sleep(0.5)


async def _kill_the_primary(screen: Screen, shard: LocalShard, writer: Writer) -> LocalPeer:
    """Write, kill, and say what happened; returns the peer that was killed."""
    screen.step("Writing numbered rows, one transaction each, through a client that finds the primary by itself")
    await _written(screen, writer, WRITE_BEFORE)
    before = await shard.look()
    assert before.state is not None
    primary = shard.peer(before.state.primary.id)
    screen.step(f"Killing the primary: SIGKILL to all that runs on {primary.label} ({primary.ip}), PostgreSQL included")
    killed, killed_at = time.monotonic(), time.time()
    await shard.kill_peer(primary)
    generation = before.state.generation
    with screen.waiting("waiting for a new generation") as show:
        after = await shard.wait_for(
            lambda seen: seen.state is not None and seen.state.generation > generation,
            timeout=TAKEOVER,
            what="a new generation",
            progress=lambda _: show(f"no write was acknowledged for {_outage(writer, killed):.1f} s"),
        )
        assert after.state is not None
        taken_over = time.monotonic()
        await _until(lambda: writer.acknowledged[-1][1] > taken_over, "a write that is acknowledged again")
    declared = await shard.declared(after.state.generation)
    screen.say(
        f"generation {after.state.generation} was declared {declared - killed_at:.2f} s after the kill"
        f" by {after.state.primary.label} ({after.state.primary.ip});"
        f" a session lasts {shard.session_timeout:g} s in ZooKeeper"
    )
    screen.say(f"no write was acknowledged for {_outage(writer, killed):.2f} s")
    await _written(screen, writer, WRITE_AFTER)
    await _adm(screen, shard, "show", "-v")
    await _count(screen, writer)
    return primary


def _outage(writer: Writer, moment: float) -> float:
    outage = writer.outage_since(moment)
    return outage.seconds if outage is not None else 0.0


async def _written(screen: Screen, writer: Writer, seconds: float) -> None:
    """Let the writer work for some seconds after its next row."""
    count = len(writer.acknowledged)
    with screen.waiting("writing") as show:
        await _until(lambda: len(writer.acknowledged) > count, "a write that is acknowledged")
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            await asyncio.sleep(0.1)
            show(f"{len(writer.acknowledged)} rows acknowledged")
    screen.say(f"{len(writer.acknowledged)} rows acknowledged so far")


async def _until(condition: Any, what: str) -> None:
    try:
        async with asyncio.timeout(TAKEOVER):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise NotHeld(f"{what}: not within {TAKEOVER:.0f} s") from None


async def _count(screen: Screen, writer: Writer) -> None:
    """Every acknowledged row must be there."""
    acknowledged = len(writer.acknowledged)
    missing = await writer.missing()
    if missing:
        raise NotHeld(f"{len(missing)} acknowledged rows are missing, the first of them number {missing[0]}")
    screen.step(f"Every one of the {acknowledged} rows that were acknowledged is there")


async def _rebuild(screen: Screen, shard: LocalShard, killed: LocalPeer) -> None:
    screen.step(f"Bringing {killed.label} ({killed.ip}) back: its services start, and its data are rebuilt from a peer")
    await shard.start_peer(killed)
    await _adm(screen, shard, "rebuild", "-y", config=killed.settings_file)
    await _wait_complete(screen, shard)
    if shard.pool is not None:
        await _show_restores(screen, shard, killed, last=True)
    await _adm(screen, shard, "show", "-v")


async def _show_restores(screen: Screen, shard: LocalShard, *peers: LocalPeer, last: bool = False) -> None:
    """What `zfs send` and `zfs receive` have brought to these peers, at last or ever, and their datasets."""
    for peer in peers:
        told = await asyncio.to_thread(restores, shard, peer)
        for sentence in told[-1:] if last else told:
            screen.say(sentence)
    assert shard.pool is not None
    shown = shard.dataset(peers[0].number) if last else shard.pool
    command = ("zfs", "list", "-r", "-t", "all", "-o", "name,used,refer", shown)
    await screen.run(*command, shown=" ".join(command), env={**os.environ, "PATH": zfs.PATH}, timeout=60)


async def _adm(screen: Screen, shard: LocalShard, *arguments: str, config: Path | None = None) -> None:
    """Run manatee-adm as an operator would."""
    environment = {**os.environ, **shard.environment}
    if config is not None:
        environment["MANATEE_SITTER_CONFIG"] = str(config)
    shown = f"manatee-adm {' '.join(arguments)}"
    await screen.run(script("manatee-adm"), *arguments, shown=shown, env=environment, timeout=SETTLE + 60)


if __name__ == "__main__":
    main()
