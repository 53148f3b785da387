"""How fast a new peer's data come through the backup server, against the same by hand, and what it takes.

`python -m bench.bootstrap [--driver zfs|basebackup] [--size MIB] [--rounds N] [--json FILE]`. In every round each way
takes its turn, so that all meet the same load:

- by hand: `zfs send | zfs receive` in the same pool (`pg_basebackup | tar -x` for the other driver);
- a bare pipe: the same two programs with a pipe as large as ours between them, and nothing of Manatee: what a stream
  can be at most. The stream alone is compared with it, not what comes before and after;
- through the backup server, from the request to live data, plain and with TLS.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import click
import psutil

from bench.machine import machine
from bench.page import table
from bench.results import OURS, Row, Section
from demo import zfs
from demo.authority import Authority
from demo.directory import run_directory
from demo.postgresql import choose, unprivileged_user, within_reach
from manatee.config import Tls
from manatee.storage import open_storage, pipe
from manatee.storage.zfs import properties
from tests.backup.sandbox import Peer, Sandbox, opened

Driver = Literal["zfs", "basebackup"]

SIZE = 2048
"""MiB of the database."""
PHASES = ("until the first byte", "stream", "until complete and durable", "switch")
SETTLED = 3.0
"""Seconds for what has just been destroyed to be freed: nobody is to share the disk with what another way has left."""
CHUNK = 64 << 20
PAGE = 8192
_COLUMNS = {OURS: "through the backup server", "tls": "with TLS", "by-hand": "by hand", "pipe": "a bare pipe"}


@dataclass
class Way:
    """One way of copying, and what was measured of it, by round."""

    seconds: list[float] = field(default_factory=list)
    bytes: float = 0.0
    runs: list[Mapping[str, float]] = field(default_factory=list)
    """What `bench.requester` says."""
    server_memory: list[float] = field(default_factory=list)
    server_processor: list[float] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """MB/s."""
        return [self.bytes / seconds / 1e6 for seconds in self.seconds]

    @property
    def stream_rates(self) -> list[float]:
        """MB/s from the first byte to the last."""
        return [run["bytes"] / run["stream"] / 1e6 for run in self.runs]


@dataclass
class Measured:
    """All ways; bytes are those of the stream."""

    by_hand: Way = field(default_factory=Way)
    pipe: Way = field(default_factory=Way)
    plain: Way = field(default_factory=Way)
    tls: Way = field(default_factory=Way)
    difference: Way = field(default_factory=Way)
    """Of one page in a hundred, where the driver sends differences."""

    def section(self, driver: Driver, size: int) -> Section:
        """As the page shows it, without a machine."""
        ours = {OURS: self.plain, "tls": self.tls}
        rows = {
            "rate": _row("from the request to live data", "MB/s", ours | {"by-hand": self.by_hand}, lambda w: w.rates),
            "plain-share": Row(
                what="of the rate by hand, round by round",
                unit="share",
                values={OURS: _shares(self.plain.rates, self.by_hand.rates)},
            ),
            "tls-share": Row(
                what="of the rate by hand, round by round, with TLS",
                unit="share",
                values={OURS: _shares(self.tls.rates, self.by_hand.rates)},
            ),
            "stream": Row(
                what="the stream alone",
                unit="MB/s",
                digits=1,
                values={key: way.stream_rates for key, way in ours.items()} | {"pipe": self.pipe.rates},
            ),
            "server-memory": _row("the backup server's memory, at most", "MiB", ours, lambda w: w.server_memory),
            "sitter-memory": _row("the sitter's memory, at most", "MiB", ours, lambda w: _all(w, "memory")),
            "server-cpu": _row("the backup server's processor time", "s", ours, lambda w: w.server_processor),
            "sitter-cpu": _row("the sitter's, its start included", "s", ours, lambda w: _all(w, "processor")),
        }
        if self.difference.runs:
            share = 100 * self.difference.bytes / self.plain.bytes
            rows["difference"] = Row(
                what="moved when 1 % of the pages differ", unit="% of all", digits=1, values={OURS: [share]}
            )
        return Section(
            columns=_COLUMNS,
            rows=rows,
            notes=_notes(driver, size),
            spans={"plain-share": _spans(self.plain), "tls-share": _spans(self.tls)},
        )

    def document(self) -> dict[str, object]:
        """The single values: bytes per second, MiB, seconds."""
        ways = {"by_hand": self.by_hand, "pipe": self.pipe, "plain": self.plain, "tls": self.tls}
        return {
            **{name: [rate * 1e6 for rate in way.rates] for name, way in ways.items()},
            "bytes": self.plain.bytes,
            "plain_stream": [rate * 1e6 for rate in self.plain.stream_rates],
            "tls_stream": [rate * 1e6 for rate in self.tls.stream_rates],
            "memory": {
                "server": {"plain": self.plain.server_memory, "tls": self.tls.server_memory},
                "sitter": {"plain": _all(self.plain, "memory"), "tls": _all(self.tls, "memory")},
            },
            "spans": {name: {phase: _all(ways[name], phase) for phase in PHASES} for name in ("plain", "tls")},
            "difference_bytes": self.difference.bytes if self.difference.runs else None,
        }


def measure(rounds: int, size: int = SIZE, driver: Driver = "zfs") -> Section:
    """A section of the page. Raises NoZfs."""
    on = machine(ZFS=zfs.kind()) if driver == "zfs" else machine()
    return run(rounds, size, driver).section(driver, size).model_copy(update={"machine": on})


def run(rounds: int, size: int, driver: Driver) -> Measured:
    """All ways, as often. Raises NoZfs."""
    user = unprivileged_user()
    with run_directory(readable_by=user) as directory:
        room = (size << 20) * 4 + (2 << 30)
        with (
            zfs.pool(directory, size=room) if driver == "zfs" else nullcontext() as pool,
            opened(directory, user, remove=False) as sandbox,
        ):
            return _measure(sandbox, directory, pool, size, rounds)


@click.command()
@click.option("--driver", type=click.Choice(["zfs", "basebackup"]), default="zfs", show_default=True)
@click.option("--size", default=SIZE, show_default=True, help="Of the database, in MiB.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path, dir_okay=False), help="Write the single values here.")
def main(driver: Driver, size: int, rounds: int, output: Path | None) -> None:
    try:
        measured = run(rounds, size, driver)
    except zfs.NoZfs as error:
        raise click.ClickException(str(error)) from error
    section = measured.section(driver, size)
    click.echo("\n".join([*section.notes, "", *table(section), ""]))
    for name in ("plain-share", "tls-share"):
        click.echo("\n".join([f"{section.rows[name].what}; where the time goes:", *section.spans[name]]))
    if output is not None:
        output.write_text(json.dumps(measured.document(), indent=1) + "\n")


def _row(what: str, unit: str, ways: Mapping[str, Way], values: Callable[[Way], list[float]]) -> Row:
    return Row(what=what, unit=unit, digits=1, values={key: values(way) for key, way in ways.items()})


def _all(way: Way, what: str) -> list[float]:
    return [run[what] for run in way.runs]


def _shares(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def _spans(way: Way) -> list[str]:
    """Of the median round: `statistics.median` may lie between two."""
    ranked = sorted(way.runs, key=lambda run: run["seconds"])
    return [f"{ranked[len(ranked) // 2][phase]:8.2f} s  {phase}" for phase in PHASES]


def _notes(driver: Driver, size: int) -> Sequence[str]:
    by_hand = "`zfs send | zfs receive`" if driver == "zfs" else "`pg_basebackup | tar -x`, and sync(1)"
    return (
        f"A database of {size} MiB that does not compress, from and into the same disk. By hand: {by_hand}.",
        *(("All are received with the same properties, compression among them.",) if driver == "zfs" else ()),
        "A bare pipe: the same programs with a pipe as large as ours between them.",
    )


def _measure(sandbox: Sandbox, directory: Path, pool: str | None, size: int, rounds: int) -> Measured:
    postgresql = within_reach(choose(), sandbox.user, directory)
    tls = Authority(directory).sign("peer", None)

    def peer(name: str, encrypted: Tls | None = None) -> Peer:
        if pool is not None:
            zfs.create(f"{pool}/{name}")
        return sandbox.peer(postgresql, dataset=f"{pool}/{name}/manatee" if pool else None, tls=encrypted)

    source = peer("source")
    sandbox.initialize(source)
    _fill(source, size)
    sandbox.give(source.data, deep=True)
    if pool is None:
        source.start()
    copy = _by_zfs(source, f"{pool}/hand") if pool else _by_tar(source, directory / "hand")
    plain, encrypted = peer("plain"), peer("encrypted", tls)
    found = Measured()
    with _also_serving(source, tls) as servers:
        for number in range(rounds):
            turns: list[Callable[[], None]] = [
                lambda: found.by_hand.seconds.append(copy(large_pipe=False)),
                lambda: _one(found.plain, plain, servers[0], postgresql.major),
                lambda: found.pipe.seconds.append(copy(large_pipe=True)),
                lambda: _one(found.tls, encrypted, servers[1], postgresql.major),
            ]
            for turn in turns[number % 4 :] + turns[: number % 4]:  # who comes first finds another machine
                turn()
            click.echo(f"round {number + 1} of {rounds}", err=True)
        if pool:
            _change(source)
            _one(found.difference, plain, servers[0], postgresql.major, base=True)
    found.by_hand.bytes = found.pipe.bytes = found.plain.bytes
    return found


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
    time.sleep(SETTLED)
    before = server.processor()
    settings = str(target.root / "manatee.toml")
    command = [sys.executable, "-m", "bench.requester", settings, server.identity, str(major)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    run = json.loads(done.stdout)
    way.runs.append(run)
    way.seconds.append(run["seconds"])
    way.bytes = run["bytes"]
    way.server_processor.append(server.processor() - before)
    way.server_memory.append(server.memory())


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


class _Copy(Protocol):
    """One copy, timed; what it made is gone again."""

    def __call__(self, *, large_pipe: bool) -> float: ...


def _by_zfs(source: Peer, parent: str) -> _Copy:
    """Below a dataset that gives it the properties that ours has: compressing, or trying to, takes a quarter of it."""
    options = (f"-o{name}={value}" for name, value in properties.NEW.items())
    zfs.run("zfs", "create", "-ocanmount=off", "-omountpoint=none", *options, parent)
    target = f"{parent}/manatee"

    def copy(*, large_pipe: bool) -> float:
        snapshot = f"{source.dataset}@by-hand"
        zfs.run("zfs", "snapshot", snapshot)
        time.sleep(SETTLED)
        began = time.monotonic()
        _through(["zfs", "send", snapshot], ["zfs", "receive", "-u", target], large_pipe=large_pipe)
        seconds = time.monotonic() - began
        for name in (target, snapshot):
            _destroy(name)
        return seconds

    return copy


def _through(send: Sequence[object], receive: Sequence[object], *, large_pipe: bool) -> None:
    """Raises CalledProcessError."""
    read, write = pipe.open_pipe() if large_pipe else os.pipe()
    with subprocess.Popen([*map(str, send)], stdout=write) as sender:
        os.close(write)
        try:
            subprocess.run([*map(str, receive)], stdin=read, check=True)
        finally:
            os.close(read)
    if sender.returncode:
        raise subprocess.CalledProcessError(sender.returncode, sender.args)


def _destroy(name: str) -> None:
    """zfs-fuse says for a moment after its last use that it is busy."""
    for _ in range(100):
        try:
            zfs.run("zfs", "destroy", "-r", name)
        except zfs.ZfsFailed:
            time.sleep(0.2)
        else:
            return


def _by_tar(source: Peer, target: Path) -> _Copy:
    """With the sync(1) that makes it durable."""

    def copy(*, large_pipe: bool) -> float:
        target.mkdir()
        send = [source.postgresql.bin_dir / "pg_basebackup", "-D-", "-Ft", "-Xfetch", "-cfast", "--no-manifest"]
        address = ["-h", source.root / "socket", "-U", "postgres"]
        time.sleep(SETTLED)
        began = time.monotonic()
        _through([*send, *address], ["tar", "-x", "-C", target], large_pipe=large_pipe)
        if not large_pipe:
            subprocess.run(["sync", "-f", target], check=True)
        seconds = time.monotonic() - began
        shutil.rmtree(target)
        return seconds

    return copy


if __name__ == "__main__":
    main()
