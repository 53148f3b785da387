"""A restore that is killed at random moments, on either side, and what must come of it: a running peer, and no orphans.

    python -m tests.backup.kills --storage zfs --moments 20 --seed 1

A peer of a whole shard loses its data and restores them from another; while it does, its sitter (with PostgreSQL), the
backup servers of the others, or both are killed. Started again, the shard is complete, and nothing of the restore is
left: no process, no file or dataset beside the live one, no hold. What a moment was, its number says.
"""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click
import psutil

from demo import zfs
from demo.shard import LocalPeer, LocalShard, program_name
from manatee.client import Topology, connect_primary
from manatee.storage import open_storage
from tests.shard.conftest import ask

PATIENCE = 120.0
"""Seconds for a shard to be complete again."""
TRANSFER = 1.5
"""Seconds that an undisturbed transfer of the ballast takes, at least."""
BALLAST = """
    CREATE TABLE ballast AS
    SELECT number, (SELECT string_agg(decode(md5(random()::text || part), 'hex'), '') FROM generate_series(1, 60) part)
    FROM generate_series(1, 20000) number
"""
"""Some 20 MB that do not compress."""

Storage = Literal["basebackup", "zfs"]


@dataclass(frozen=True)
class Moment:
    """When, after the restore has begun, and who."""

    seconds: float
    victim: Literal["sitter", "server", "both"]

    def __str__(self) -> str:
        return f"{self.victim} after {self.seconds:.2f} s"


def moments(seed: int, count: int) -> Iterator[Moment]:
    """Over the transfer and what follows it: making it durable, the switch, the start."""
    chance = random.Random(seed)
    for _ in range(count):
        yield Moment(chance.uniform(0, 2 * TRANSFER), chance.choice(("sitter", "server", "both")))


def shard_with(storage: Storage, network: str) -> LocalShard:
    """Not entered yet; transfers are slow enough to be killed."""
    limit = 40_000_000 / TRANSFER if storage == "basebackup" else 20_000_000 / TRANSFER
    return LocalShard(
        [f"{network}.{number}" for number in (2, 3, 4)],
        name="kills",
        zookeeper=(f"{network}.1", 2181),
        storage=storage,
        session_timeout=4.0,
        overrides={"backup": {"bandwidth_limit": int(limit), "retry_delay": 0.2, "retry_delay_max": 2.0}},
    )


async def prepare(shard: LocalShard) -> None:
    """Complete, with something to transfer."""
    await complete(shard)
    async with Topology(shard.zookeeper.servers, shard.name) as topology:
        connection = await connect_primary(topology)
        try:
            async with asyncio.timeout(PATIENCE):
                await connection.execute(BALLAST)
                await connection.execute("CHECKPOINT")
        finally:
            await connection.close()
    await complete(shard)


async def complete(shard: LocalShard) -> None:
    await shard.wait_for(lambda seen: seen.complete(len(shard.peers)), timeout=PATIENCE, what="a complete shard")


async def one(shard: LocalShard, moment: Moment) -> str:
    """One restore and one kill; where the kill fell. Raises AssertionError, ShardFailed."""
    seen = await shard.look()
    assert seen.state is not None
    victim = shard.peer(seen.state.asyncs[-1].id)
    others = [peer for peer in shard.peers if peer != victim]
    sitter, servers = program_name("sitter", victim.number), [program_name("backupserver", p.number) for p in others]
    await shard.supervisor.stop(sitter)
    await lose(victim)
    await shard.supervisor.start(sitter)
    await begun(victim)
    await asyncio.sleep(moment.seconds)
    where = await state_of(victim)
    killed = [*([sitter] if moment.victim != "server" else []), *(servers if moment.victim != "sitter" else [])]
    await shard.supervisor.kill(*killed)
    for program in killed:
        await shard.supervisor.start(program)
    await complete(shard)
    await nothing_left(shard)
    return where


async def lose(peer: LocalPeer) -> None:
    """As if the zone were new: no data, no memory, and nothing that a difference could build on."""
    storage = open_storage(peer.settings)
    await storage.isolate("lost", base=False)
    await storage.drop_isolated(0)
    shutil.rmtree(peer.settings.sitter.state_dir)
    peer.settings.sitter.state_dir.mkdir(mode=0o755)


async def begun(peer: LocalPeer) -> None:
    """The first byte has come, or it is through already."""
    async with asyncio.timeout(PATIENCE):
        while not re.match("running [1-9]|done", await state_of(peer)):
            await asyncio.sleep(0.02)


async def state_of(peer: LocalPeer) -> str:
    """Of its restore: the word, and the bytes that have come."""
    try:
        _, answer = await ask(peer, "/restore")
    except OSError:
        return "no sitter"
    restore = answer["restore"]
    return f"{restore['state']} {restore['bytes_done']}" if restore else "none"


async def nothing_left(shard: LocalShard) -> None:
    """What a restore leaves behind goes soon after PostgreSQL runs."""
    ends = time.monotonic() + PATIENCE
    while left := await asyncio.to_thread(lambda: [*orphans(shard), *processes(shard)]):
        assert time.monotonic() < ends, left
        await asyncio.sleep(0.2)


def orphans(shard: LocalShard) -> list[str]:
    """Files, datasets and holds that no peer needs."""
    if shard.storage == "basebackup":
        found = (path for peer in shard.peers for path in peer.settings.storage.directory.iterdir())
        return [str(path) for path in found if path.name != "data" and any(path.iterdir())]
    left = []
    for peer in shard.peers:
        mine, live = shard.dataset(peer.number).rpartition("/")[0], shard.dataset(peer.number)
        for name in zfs.run("zfs", "list", "-H", "-r", "-t", "filesystem,snapshot", "-o", "name", mine).split():
            dataset, _, snapshot = name.partition("@")
            if dataset not in (mine, live, f"{mine}/isolated"):
                left.append(name)
            elif snapshot and zfs.run("zfs", "get", "-H", "-p", "-o", "value", "userrefs", name).strip() not in "-0":
                left.append(f"{name} is held")
    return left


def processes(shard: LocalShard) -> list[str]:
    """What moves data and is still there."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        program, line = Path(words[0]).name if words else "", " ".join(words)
        ours = str(shard.directory) in line or any(shard.dataset(peer.number) in line for peer in shard.peers)
        if ours and (program == "pg_basebackup" or (program == "zfs" and words[1] in ("send", "receive", "recv"))):
            found.append(line)
    return found


@click.command()
@click.option("--storage", type=click.Choice(["basebackup", "zfs"]), default="basebackup", show_default=True)
@click.option("--moments", "count", default=20, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--network", default="127.22.9", show_default=True)
def main(storage: Storage, count: int, seed: int, network: str) -> None:
    """Kill restores at random moments; every one must end with a running peer."""

    async def run() -> None:
        async with shard_with(storage, network) as shard:
            try:
                await prepare(shard)
                for number, moment in enumerate(moments(seed, count), 1):
                    began = time.monotonic()
                    where = await one(shard, moment)
                    click.echo(f"{number:3} {moment!s:24} {where:20} complete after {time.monotonic() - began:.1f} s")
            except BaseException:
                for peer in shard.peers:
                    for daemon in ("sitter", "backupserver"):
                        said = peer.log(daemon).read_text(errors="replace").splitlines()[-80:]
                        click.echo("\n".join([f"--- {daemon} of {peer.ip}", *said]), err=True)
                click.echo("\n".join([*orphans(shard), *processes(shard)]), err=True)
                raise

    asyncio.run(run())
    click.echo(f"{count} restores on {storage}, each killed once: every peer runs, nothing is left")


if __name__ == "__main__":
    main()
