"""How fast a new peer's data come through the backup server, against the same by hand, and what it takes.

By hand is `zfs send | zfs receive` in the same pool, and `pg_basebackup | tar -x` for the basebackup driver. Both ways
take turns, so that they meet the same load. `python -m bench.bootstrap [--megabytes N] [--rounds N]`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import psutil

from bench.machine import describe
from demo import zfs
from demo.authority import Authority
from demo.directory import run_directory
from demo.postgresql import choose, unprivileged_user, within_reach
from manatee.config import Tls
from manatee.storage import open_storage
from tests.backup.sandbox import Peer, Sandbox, opened

PHASES = ("until the first byte", "stream", "until complete and durable", "switch")
CHUNK = 64 << 20
PAGE = 8192
_LIMIT = 80.0
"""MiB that a process may take, whatever the size."""


@dataclass
class Way:
    """One way of copying, and what was measured of it."""

    name: str
    seconds: list[float] = field(default_factory=list)
    bytes: float = 0.0
    runs: list[dict[str, float]] = field(default_factory=list)
    server_memory: float = 0.0
    server_processor: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """MB/s, of the median."""
        return self.bytes / statistics.median(self.seconds) / 1e6

    def median(self, what: str) -> float:
        return statistics.median(run[what] for run in self.runs)


@click.command()
@click.option("--megabytes", default=2048, show_default=True, help="Of the database.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--only", type=click.Choice(["zfs", "basebackup"]), help="One of the drivers.")
def main(megabytes: int, rounds: int, only: str | None) -> None:
    user = unprivileged_user()
    for driver in ("zfs", "basebackup"):
        if only not in (None, driver):
            continue
        if driver == "zfs" and (missing := zfs.missing()):
            click.echo(f"zfs is not measured: {missing}")
            continue
        with (
            run_directory(readable_by=user) as directory,
            _pool(directory, driver, megabytes) as pool,
            opened(directory, user, remove=False) as sandbox,
        ):
            ways, difference = _measure(sandbox, directory, pool, megabytes, rounds)
        click.echo(f"{driver}: a database of {megabytes} MiB, medians of {rounds}")
        _report(ways, difference)
    click.echo(describe())


@contextmanager
def _pool(directory: Path, driver: str, megabytes: int) -> Iterator[str | None]:
    if driver != "zfs":
        yield None
        return
    with zfs.pool(directory, size=(megabytes << 20) * 4 + (2 << 30)) as pool:
        yield pool


def _measure(
    sandbox: Sandbox, directory: Path, pool: str | None, megabytes: int, rounds: int
) -> tuple[list[Way], Way | None]:
    postgresql = within_reach(choose(), sandbox.user, directory)
    authority = Authority(directory)
    tls = authority.sign("peer", None)

    def peer(name: str, encrypted: Tls | None = None) -> Peer:
        if pool is not None:
            zfs.create(f"{pool}/{name}")
        return sandbox.peer(postgresql, dataset=f"{pool}/{name}/manatee" if pool else None, tls=encrypted)

    source = peer("source")
    sandbox.initialize(source)
    _fill(source, megabytes)
    sandbox.give(source.data, deep=True)
    if pool is None:
        source.start()
    hand = _by_zfs(source, f"{pool}/hand") if pool else _by_tar(source, directory / "hand")
    ways = [Way("by hand"), Way("through the backup server"), Way("through it, with TLS")]
    plain, encrypted = peer("plain"), peer("encrypted", tls)
    with _also_serving(source, tls) as addresses:
        for _ in range(rounds):
            ways[0].seconds.append(hand())
            for way, target, address in zip(ways[1:], (plain, encrypted), addresses, strict=True):
                _one(way, target, address, postgresql.major)
        difference = Way("a difference of 1 %") if pool else None
        if difference is not None:
            _change(source)
            _one(difference, plain, addresses[0], postgresql.major, base=True)
    ways[0].bytes = ways[1].bytes
    return ways, difference


@dataclass
class _Server:
    identity: str
    process: psutil.Process

    def memory(self) -> float:
        """The most it ever had resident, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def processor(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def _also_serving(source: Peer, tls: Tls) -> Iterator[list[_Server]]:
    """The source's backup server, and one with TLS beside it, on another port."""
    source.serve()
    assert source.server is not None
    plain = _Server(source.settings.identity.content().decode(), psutil.Process(source.server.pid))
    first, settings = source.server, source.root / "manatee.toml"
    files = "\n".join(f'{name} = "{path}"' for name, path in tls.model_dump().items())
    settings.write_text(
        settings.read_text().replace("backup_port = 12345", "backup_port = 12346") + f"\n[tls]\n{files}\n"
    )
    (source.root / "server.log").unlink()
    source.serve()
    identity = source.settings.identity.replace(backup_url=f"https://{source.ip}:12346")
    try:
        yield [plain, _Server(identity.content().decode(), psutil.Process(source.server.pid))]
    finally:
        first.terminate()
        first.wait(10)


def _one(way: Way, target: Peer, server: _Server, major: int, *, base: bool = False) -> None:
    """One restore; what was there before goes first, or with `base` is what a difference can build on."""

    async def clear() -> None:
        storage = open_storage(target.settings)
        await storage.isolate("bench", base=base)
        if not base:
            await storage.drop_isolated(0)

    asyncio.run(clear())
    before = server.processor()
    settings = str(target.root / "manatee.toml")
    command = [sys.executable, "-m", "bench.requester", settings, server.identity, str(major)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    run = json.loads(done.stdout)
    way.runs.append(run)
    way.seconds.append(run["seconds"])
    way.bytes = run["bytes"]
    way.server_processor.append(server.processor() - before)
    way.server_memory = max(way.server_memory, server.memory())


def _fill(peer: Peer, megabytes: int) -> None:
    """Bytes that do not compress, in files as large as a table's."""
    directory = peer.data / "base" / "1"
    for number in range(-(-megabytes * (1 << 20) // (1 << 30))):
        left = min(1 << 30, (megabytes << 20) - number * (1 << 30))
        with (directory / f"{900000 + number}").open("wb") as file:
            while left > 0:
                left -= file.write(os.urandom(min(left, CHUNK)))
            os.fsync(file.fileno())


def _change(peer: Peer) -> None:
    """One page in a hundred, here and there."""
    chance = random.Random(1)
    for file in sorted((peer.data / "base" / "1").glob("90000*")):
        with file.open("r+b") as pages:
            for number in chance.sample(range(file.stat().st_size // PAGE), file.stat().st_size // PAGE // 100):
                pages.seek(number * PAGE)
                pages.write(os.urandom(PAGE))
            os.fsync(pages.fileno())


def _by_zfs(source: Peer, target: str) -> Callable[[], float]:
    """`zfs send | zfs receive`, timed."""

    def copy() -> float:
        snapshot = f"{source.dataset}@by-hand"
        zfs.run("zfs", "snapshot", snapshot)
        began = time.monotonic()
        subprocess.run(["sh", "-c", f"zfs send {snapshot} | zfs receive -u {target}"], check=True)
        seconds = time.monotonic() - began
        for name in (target, snapshot):
            _destroy(name)
        return seconds

    return copy


def _destroy(name: str) -> None:
    """zfs-fuse says for a moment after its last use that it is busy."""
    for _ in range(100):
        try:
            zfs.run("zfs", "destroy", "-r", name)
        except zfs.ZfsFailed:
            time.sleep(0.2)
        else:
            return


def _by_tar(source: Peer, target: Path) -> Callable[[], float]:
    """`pg_basebackup | tar -x`, timed, with the sync(1) that makes it durable."""

    def copy() -> float:
        target.mkdir()
        send = [source.postgresql.bin_dir / "pg_basebackup", "-D-", "-Ft", "-Xfetch", "-cfast", "--no-manifest"]
        address = ["-h", source.root / "socket", "-U", "postgres"]
        began = time.monotonic()
        with subprocess.Popen([*map(str, send + address)], stdout=subprocess.PIPE) as sender:
            subprocess.run(["tar", "-x", "-C", target], stdin=sender.stdout, check=True)
        subprocess.run(["sync", "-f", target], check=True)
        seconds = time.monotonic() - began
        shutil.rmtree(target)
        return seconds

    return copy


def _report(ways: list[Way], difference: Way | None) -> None:
    click.echo(f"  {'':28} {'seconds':>8} {'MB/s':>7} {'of by hand':>10} {'server MiB':>10} {'sitter MiB':>10}")
    for way in ways:
        line = f"  {way.name:28} {statistics.median(way.seconds):8.2f} {way.rate:7.1f} {way.rate / ways[0].rate:10.2f}"
        if way.runs:
            line += f" {way.server_memory:10.1f} {max(run['memory'] for run in way.runs):10.1f}"
        click.echo(line)
    for way in ways[1:]:
        parts = ", ".join(f"{phase} {way.median(phase):.2f}" for phase in PHASES)
        work = f"processor: server {statistics.median(way.server_processor):.2f}, sitter {way.median('processor'):.2f}"
        click.echo(f"  {way.name}: seconds {parts}; {work}")
        most = max(way.server_memory, *(run["memory"] for run in way.runs))
        if most > _LIMIT:
            click.echo(f"  over the limit of {_LIMIT:g} MiB: {most:.1f}", err=True)
    if difference is not None:
        share = 100 * difference.bytes / ways[1].bytes
        click.echo(
            f"  {difference.name}: {difference.bytes / 1e6:.1f} MB in {difference.seconds[0]:.2f} s, {share:.1f} %"
        )


if __name__ == "__main__":
    main()
