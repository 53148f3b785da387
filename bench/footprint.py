"""What a daemon costs that looks after one PostgreSQL: memory, CPU, requests to ZooKeeper, the time it takes to start.

`python -m bench.footprint [--rounds N] [--against NAME ...] [--seconds N]`; `--imports` says where our memory is.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import click
import psutil
import psycopg

from bench.machine import machine, programs
from bench.outage.contestant import Daemons
from bench.outage.measure import ENTRIES, TOGETHER, writing
from bench.outage.patroni import VERSION
from bench.page import table
from bench.results import OURS, Row, Section
from demo.zookeeper import four_letters

NAMES = (OURS, *TOGETHER)
COMMITS = 1000
"""A second, for what the daemons cost while the database works."""
SECONDS = 20.0
"""For which they are watched; a multiple of the longest that anybody of them sleeps."""
SETTLED = 10.0
"""Seconds in which what follows the last change dies away."""
PATIENCE = 180.0
LOOK = 0.02

ROWS = {
    "idle-memory": Row(what="resident memory, idle", unit="MiB", digits=1, values={}),
    "idle-own": Row(what="of it its own (not shared), idle", unit="MiB", digits=1, values={}),
    "idle-cpu": Row(what="CPU, idle", unit="% of a core", values={}),
    "idle-requests": Row(what="requests to ZooKeeper, idle", unit="a minute", digits=1, values={}),
    "idle-pings": Row(what="pings to ZooKeeper, idle", unit="a minute", digits=1, values={}),
    "loaded-memory": Row(what=f"resident memory, {COMMITS} commits a second", unit="MiB", digits=1, values={}),
    "loaded-cpu": Row(what=f"CPU, {COMMITS} commits a second", unit="% of a core", values={}),
    "loaded-commits": Row(what="commits that were reached", unit="a second", digits=0, values={}),
    "start": Row(
        what="an async peer: from its start until it streams and its health check says so", unit="s", values={}
    ),
    "nothing-write": Row(what="from nothing until the first acknowledged write", unit="s", values={}),
    "nothing-whole": Row(what="from nothing until all three are in place", unit="s", values={}),
}
NOTES = tuple(
    f"""\
Of the daemon's process alone, and of the three peers' the one whose figure is worst. Beside it our peers run a backup \
server and a snapshotter, which are not in these figures.
Watched for {SECONDS:g} s each time; ZooKeeper itself counts the requests, by connection.
Both Patronis are watched at the same time, but for the load, which they get one after the other.
From nothing: all three daemons are started at the same time, without any data.
""".splitlines()
)


@dataclass
class Measured:
    """Of one contestant: the single values by row."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, key: str, value: float) -> None:
        self.values.setdefault(key, []).append(value)


async def measure(rounds: int, names: Sequence[str] = NAMES, seconds: float = SECONDS) -> Section:
    on = machine(Patroni=VERSION)
    measured, failed = {name: Measured() for name in names}, []
    for group in ([name for name in names if name not in TOGETHER], [name for name in names if name in TOGETHER]):
        if group:
            try:
                await _group({name: measured[name] for name in group}, rounds, seconds)
            except Exception as error:  # noqa: BLE001 - the others are worth measuring
                traceback.print_exc()
                failed.append(" ".join(f"all of {', '.join(group)}: {type(error).__name__} {error}".split()))
    return Section(
        columns={name: ENTRIES[name].name for name in names},
        rows={
            key: Row(**{**dict(row), "values": {name: measured[name].values.get(key, ()) for name in names}})
            for key, row in ROWS.items()
        },
        notes=NOTES,
        failed=failed,
        spans={"idle-memory": _imports()},
        machine=on,
    )


async def _group(group: dict[str, Measured], rounds: int, seconds: float) -> None:
    """Those that are measured at the same time, but for the load, which they get one after the other."""
    async with AsyncExitStack() as stack:
        clusters = [(await stack.enter_async_context(_cluster(name)), measured) for name, measured in group.items()]
        await asyncio.gather(*(cluster.whole() for cluster, _ in clusters))
        await asyncio.sleep(SETTLED)
        for number in range(1, rounds + 1):
            await asyncio.gather(*(_watch(cluster, "idle", measured, seconds) for cluster, measured in clusters))
            click.echo(f"{', '.join(group)}: idle, {number}", err=True)
        for cluster, measured in clusters:
            await _loaded(cluster, measured, rounds, seconds)
        for number in range(1, rounds + 1):
            await asyncio.gather(*(_restart(cluster, measured) for cluster, measured in clusters))
            click.echo(f"{', '.join(group)}: started, {number}", err=True)
    for number in range(1, rounds + 1):
        await asyncio.gather(*(_from_nothing(name, measured) for name, measured in group.items()))
        click.echo(f"{', '.join(group)}: from nothing, {number}", err=True)


@asynccontextmanager
async def _cluster(name: str) -> AsyncIterator[Daemons]:
    async with ENTRIES[name].cluster() as cluster:
        assert isinstance(cluster, Daemons)
        yield cluster


# --- What they cost -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Counts:
    """Of one process, until now."""

    at: float
    cpu: float
    packets: int
    """That ZooKeeper received from it."""
    requests: int
    """Those of them that are no pings."""


async def _count(pid: int, zookeeper: str) -> _Counts:
    host, port = zookeeper.split(":")
    ours = {connection.laddr.port for connection in psutil.Process(pid).net_connections("tcp")}
    packets = requests = 0
    for line in (await four_letters("cons", host, int(port))).splitlines():
        found = re.search(r"/[\d.]+:(\d+)\[.*recved=(\d+),.*lcxid=0x([0-9a-f]+)", line)
        if found and int(found[1]) in ours:
            packets += int(found[2])
            requests += int(found[3], 16)
    return _Counts(time.monotonic(), _cpu(pid), packets, requests)


def _cpu(pid: int) -> float:
    """Seconds, of all threads; more exact than what times(2) says in ticks."""
    spent = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            spent += int((task / "schedstat").read_text().split()[0]) / 1e9
    return spent


async def _watch(cluster: Daemons, what: str, measured: Measured, seconds: float) -> None:
    pids = [cluster.daemon(address) for address in cluster.addresses]
    before = [await _count(pid, cluster.zookeeper) for pid in pids]
    await asyncio.sleep(seconds)
    after = [await _count(pid, cluster.zookeeper) for pid in pids]
    passed = [now.at - then.at for then, now in zip(before, after, strict=True)]
    memory = [psutil.Process(pid).memory_full_info() for pid in pids]
    pairs = list(zip(before, after, passed, strict=True))
    measured.add(f"{what}-memory", max(each.rss for each in memory) / 2**20)
    measured.add(f"{what}-own", max(each.uss for each in memory) / 2**20)
    measured.add(f"{what}-cpu", max(100 * (now.cpu - then.cpu) / seconds for then, now, seconds in pairs))
    requests = [60 * (now.requests - then.requests) / seconds for then, now, seconds in pairs]
    packets = [60 * (now.packets - then.packets) / seconds for then, now, seconds in pairs]
    measured.add(f"{what}-requests", max(requests))
    measured.add(f"{what}-pings", max(all_ - real for all_, real in zip(packets, requests, strict=True)))


async def _loaded(cluster: Daemons, measured: Measured, rounds: int, seconds: float) -> None:
    """The same while a client of PostgreSQL's own commits so many transactions a second."""
    primary, _ = await cluster.whole()
    async with await _connect(primary) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS load (number bigint)")
    for _ in range(rounds):
        before = await _commits(primary)
        begun = time.monotonic()
        async with _committing(primary, seconds + 5):
            await _watch(cluster, "loaded", measured, seconds)
            measured.add("loaded-commits", (await _commits(primary) - before) / (time.monotonic() - begun))


@asynccontextmanager
async def _committing(address: str, seconds: float) -> AsyncIterator[None]:
    script = b"INSERT INTO load VALUES (1);\n"
    words = ("-h", address, "-U", "postgres", "-n", "-c", "8", "-R", str(COMMITS), "-T", str(round(seconds)), "-f", "-")
    process = await asyncio.create_subprocess_exec(
        programs().bin_dir / "pgbench",
        *(*words, "postgres"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdin is not None
        process.stdin.write(script)
        process.stdin.close()
        yield
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _commits(address: str) -> int:
    async with await _connect(address) as connection:
        row = await (await connection.execute("SELECT count(*) FROM load")).fetchone()
        assert row is not None
        return int(row[0])


async def _connect(address: str) -> psycopg.AsyncConnection[tuple[int, ...]]:
    return await psycopg.AsyncConnection.connect(host=address, user="postgres", dbname="postgres", autocommit=True)


# --- How long they take ---------------------------------------------------------------------------------------------


async def _restart(cluster: Daemons, measured: Measured) -> None:
    """Of the peer that is neither primary nor sync; everything of it was stopped before."""
    primary, sync = await cluster.whole()
    async_ = next(address for address in cluster.addresses if address not in (primary, sync))
    await cluster.terminate(async_)
    begun = time.monotonic()
    await cluster.bring_back(async_)
    async with asyncio.timeout(PATIENCE), aiohttp.ClientSession() as session:
        while not (await _says_replica(session, cluster.replica_check(async_)) and await _streams(async_)):
            await asyncio.sleep(LOOK)
    measured.add("start", time.monotonic() - begun)
    await cluster.whole()


async def _says_replica(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=1)) as answer:
            return answer.status == 200
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False


async def _streams(address: str) -> bool:
    with suppress(psycopg.Error):
        async with await _connect(address) as connection:
            found = await connection.execute("SELECT 1 FROM pg_stat_wal_receiver WHERE status = 'streaming'")
            return await found.fetchone() is not None
    return False


async def _from_nothing(name: str, measured: Measured) -> None:
    async with _cluster(name) as cluster:
        # They were started a moment ago: the clock begins with the first of them.
        created = min(psutil.Process(cluster.daemon(address)).create_time() for address in cluster.addresses)
        begun = time.monotonic() - (time.time() - created)
        async with writing(cluster.addresses) as client:
            await cluster.whole()
            measured.add("nothing-whole", time.monotonic() - begun)
            async with asyncio.timeout(PATIENCE):
                while not client.acknowledged:
                    await asyncio.sleep(LOOK)
            measured.add("nothing-write", client.acknowledged[0][1] - begun)


# --- Where our memory is --------------------------------------------------------------------------------------------

STEPS = (
    ("Python itself", ""),
    ("asyncio", "asyncio"),
    ("pydantic", "pydantic, pydantic_core"),
    ("structlog, settings", "manatee.log"),
    ("kazoo", "kazoo.client"),
    ("psycopg", "psycopg"),
    ("aiohttp, both ends", "aiohttp, aiohttp.web"),
    ("prometheus-client", "prometheus_client"),
    ("click", "click"),
    ("the sitter", "sitter.main"),
)
"""Imported one after the other, each on top of those before."""


def _imports() -> list[str]:
    lines, before = ["MiB resident after importing, one on top of the other:"], 0.0
    for index, (name, _) in enumerate(STEPS):
        now = _resident("; ".join(f"import {modules}" for _, modules in STEPS[: index + 1] if modules) or "pass")
        lines.append(f"  {name:20} {now:6.1f}  (+{now - before:.1f})")
        before = now
    return lines


def _resident(imports: str) -> float:
    """MiB, of a fresh interpreter after these imports. Seen from outside: to ask would need one more."""
    command = [sys.executable, "-c", f"{imports}; print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        resident: int = psutil.Process(process.pid).memory_info().rss
        process.communicate("\n")
    return resident / 2**20


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=SECONDS, show_default=True, help="For which the daemons are watched, each time.")
@click.option("--against", multiple=True, type=click.Choice(NAMES), help="Whom to measure; all unless given.")
@click.option("--imports", is_flag=True, help="Only say where our memory is.")
def main(rounds: int, seconds: float, against: Sequence[str], imports: bool) -> None:
    if imports:
        click.echo("\n".join(_imports()))
    else:
        click.echo("\n".join(table(asyncio.run(measure(rounds, against or NAMES, seconds)))))


if __name__ == "__main__":
    main()
