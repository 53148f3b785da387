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
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import click
import psutil

from bench.client import Client
from bench.machine import describe
from demo.postgresql import choose
from demo.shard import LocalPeer, LocalShard, Seen, ShardFailed

ADDRESSES = ("127.27.0.2", "127.27.0.3", "127.27.0.4")
ZOOKEEPER = ("127.27.0.1", 2181)
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


@dataclass(frozen=True)
class Place:
    """The shard, and who is who in it before the event."""

    shard: LocalShard
    primary: LocalPeer
    sync: LocalPeer


Happens = Callable[[Place], Awaitable[None]]
"""Lets the event happen; returns when it has."""


async def _kill_postmaster(at: Place) -> None:
    os.kill(int((at.primary.settings.storage.data_dir / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)


async def _kill_primary(at: Place) -> None:
    await at.shard.kill_peer(at.primary)


async def _kill_sync(at: Place) -> None:
    await at.shard.kill_peer(at.sync)


async def _stop_primary(at: Place) -> None:
    for process in _processes(at.shard, at.primary):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()


async def _terminate_primary(at: Place) -> None:
    """As a service manager that restarts it would: it is started again when it has gone."""
    pid = at.shard.supervisor.status(at.primary.programs[0]).pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)


async def _promote_sync(at: Place) -> None:
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "manatee-adm"),
        *("promote", "-n", at.sync.settings.peer.zone_id, "-r", "sync", "-y"),
        env={**os.environ, **at.shard.environment},
        stdout=asyncio.subprocess.DEVNULL,
    )
    if await process.wait():
        raise ShardFailed("manatee-adm promote failed")


KINDS: dict[str, tuple[str, Happens]] = {
    "postmaster": ("SIGKILL of the primary's postmaster", _kill_postmaster),
    "peer": ("SIGKILL of all that runs on the primary", _kill_primary),
    "stop": ("SIGSTOP of all that runs on the primary", _stop_primary),
    "terminate": ("SIGTERM of the primary's sitter", _terminate_primary),
    "promote": ("manatee-adm promote of the sync", _promote_sync),
    "sync": ("SIGKILL of all that runs on the sync", _kill_sync),
}


@click.command()
@click.argument("kinds", nargs=-1, type=click.Choice(list(KINDS)))
@click.option("--rounds", default=5, show_default=True)
@click.option("--session-timeout", default=4.0, show_default=True)
@click.option("--postgresql", type=int, metavar="MAJOR")
@click.option("--spans", is_flag=True, help="Print where the time of the median round went.")
def main(kinds: tuple[str, ...], rounds: int, session_timeout: float, postgresql: int | None, spans: bool) -> None:
    missing = asyncio.run(_measure(kinds or tuple(KINDS), rounds, session_timeout, postgresql, spans))
    click.echo(f"acknowledged rows that are missing: {missing}")
    click.echo(f"{describe()}; session timeout {session_timeout:g} s, {choose(postgresql)}")
    sys.exit(1 if missing else 0)


async def _measure(
    kinds: tuple[str, ...], rounds: int, session_timeout: float, postgresql: int | None, spans: bool
) -> int:
    shard = LocalShard(
        ADDRESSES,
        name="bench",
        zookeeper=ZOOKEEPER,
        session_timeout=session_timeout,
        postgresql=choose(postgresql),
    )
    async with shard:
        await _complete(shard)
        async with _writing(shard) as client:
            for kind in kinds:
                _report(kind, [await _one(shard, client, kind) for _ in range(rounds)], spans=spans)
            return len(await client.missing())


def _report(kind: str, results: list[Round], *, spans: bool) -> None:
    outages = sorted(each.outage for each in results)
    click.echo(
        f"{KINDS[kind][0]}: no write acknowledged for {statistics.median(outages):.2f} s"
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


async def _one(shard: LocalShard, client: Client, kind: str) -> Round:
    before = await _complete(shard)
    assert before.state is not None
    assert before.state.sync is not None
    at = Place(shard, shard.peer(before.state.primary.id), shard.peer(before.state.sync.id))
    await _settled(shard, client)
    moment, clock = time.monotonic(), time.time()
    await KINDS[kind][1](at)
    await _acknowledged(client, after=moment + 0.5)
    for hit in (at.primary, at.sync):
        for process in _processes(shard, hit):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        await shard.start_peer(hit)
    back = await _back(shard, at)
    complete = time.monotonic() - moment
    seconds, began, ended = client.outage(moment)
    return Round(seconds, complete if back else float("inf"), _spans(shard, clock, moment, began, ended))


async def _settled(shard: LocalShard, client: Client) -> None:
    """Writes go on, and nobody has anything left to do."""
    await _acknowledged(client, after=time.monotonic() + 1.0)
    await _complete(shard)


async def _acknowledged(client: Client, *, after: float) -> None:
    """Wait until a write was acknowledged that long after the last gap, or after that moment."""
    async with asyncio.timeout(PATIENCE):
        while not client.acknowledged or client.acknowledged[-1][1] < after:
            await asyncio.sleep(0.02)


async def _back(shard: LocalShard, at: Place) -> bool:
    """Whether the shard is complete by itself; if not, it is made so."""
    try:
        await shard.wait_for(lambda seen: seen.complete(len(shard.peers)), timeout=RETURN)
        return True
    except ShardFailed:
        for peer in (at.primary, at.sync):
            seen = await shard.look()
            if seen.state and peer.id in [each.id for each in seen.state.deposed]:
                await _adm(shard, "-c", str(peer.settings_file), "rebuild", "-y")
        await _complete(shard)
        return False


async def _adm(shard: LocalShard, *words: str) -> None:
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "manatee-adm"), *words, env={**os.environ, **shard.environment}
    )
    await process.wait()


async def _complete(shard: LocalShard) -> Seen:
    return await shard.wait_for(lambda seen: seen.complete(len(shard.peers)), timeout=PATIENCE, what="a complete shard")


def _processes(shard: LocalShard, peer: LocalPeer) -> list[psutil.Process]:
    """All that runs on a peer, the daemons first: who is stopped starts nobody any more."""
    found = []
    for program in peer.programs:
        pid = shard.supervisor.status(program).pid
        if pid is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return found


# --- Where the time went --------------------------------------------------------------------------------------------


def _spans(shard: LocalShard, clock: float, moment: float, began: float, ended: float) -> list[str]:
    """What the sitters logged from a little before the event until a little after the outage, by time."""
    found = [
        (began - moment, "client", "the last write is acknowledged"),
        (ended - moment, "client", "the first write is acknowledged"),
    ]
    for peer in shard.peers:
        for line in peer.log("sitter").read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                at = _seconds(entry.pop("timestamp")) - clock
                if -0.1 < at < ended - moment + 0.3:
                    found.append((at, peer.label, _words(entry)))
    return [f"{at * 1000:9.1f} ms  {who:8}  {what}" for at, who, what in sorted(found)]


def _words(entry: dict[str, object]) -> str:
    event = entry.pop("event", "")
    values = " ".join(f"{key}={value}" for key, value in entry.items() if key not in ("peer", "level") and value)
    return f"{event}  {values}"[:220]


def _seconds(written: str) -> float:
    import datetime as dt

    return dt.datetime.fromisoformat(written).timestamp()


if __name__ == "__main__":
    main()
