"""`python -m bench.scale [--shards N] [--seconds S] [--json FILE]`."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
import psutil

from bench.machine import describe
from bench.scale.ensemble import Ensemble
from bench.scale.zone import ZONES, Report

PATIENCE = 600.0
LOOK = 0.25
"""Seconds between looks at the zones. What is measured are moments that the peers note themselves."""


class Figure(NamedTuple):
    name: str
    value: float
    unit: str


@click.command()
@click.option("--shards", default=300, show_default=True, help="Of three peers each.")
@click.option("--seconds", default=30.0, show_default=True, help="For which what goes on all the time is counted.")
@click.option("--session-timeout", default=10.0, show_default=True)
@click.option("--down", default=30.0, show_default=True, help="Seconds for which all of ZooKeeper is away.")
@click.option("--json", "raw", type=click.Path(path_type=Path), help="Where the figures go.")
def main(shards: int, seconds: float, session_timeout: float, down: float, raw: Path | None) -> None:
    """Hundreds of shards on one ZooKeeper ensemble, all of it on this machine."""
    with tempfile.TemporaryDirectory(prefix="manatee-scale-") as directory:
        figures = asyncio.run(_measure(Path(directory), shards, seconds, session_timeout, down))
    click.echo(describe())
    for figure in figures:
        click.echo(f"{figure.name:75} {figure.value:>12,.6g} {figure.unit}")
    if raw:
        rows = [figure._asdict() for figure in figures]
        raw.write_text(json.dumps({"machine": describe(), "shards": shards, "figures": rows}, indent=1) + "\n")


async def _measure(
    directory: Path, shards: int, seconds: float, session_timeout: float, down: float
) -> Sequence[Figure]:
    ensemble = Ensemble(directory)
    try:
        await ensemble.start()
        async with zones(ensemble.connect, shards, session_timeout) as running:
            run = _Run(ensemble, running, shards)
            await run.set_up()
            await run.steady("idle", seconds)
            await run.tell("written")
            await run.steady("written to", seconds)
            await run.without_one("follower")
            await run.without_one("leader")
            await run.without_all(down)
            await run.without_a_zone(session_timeout)
            return run.figures
    finally:
        await ensemble.kill()


# --- The zones ------------------------------------------------------------------------------------------------------


class Zone:
    """The process of one zone."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._process: Process | None = None

    async def start(self, how: str) -> None:
        command = (sys.executable, "-m", "bench.scale.zone", *self._arguments, how)
        self._process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, limit=2**22)

    async def tell(self, command: str) -> Report:
        assert self._process
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{command}\n".encode())
        async with asyncio.timeout(PATIENCE):
            return Report(**json.loads(await self._process.stdout.readline()))

    async def kill(self) -> None:
        """SIGKILL: nobody ends the sessions."""
        if self._process and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    @property
    def cpu(self) -> float:
        assert self._process
        return sum(psutil.Process(self._process.pid).cpu_times()[:2])


@asynccontextmanager
async def zones(servers: str, shards: int, session_timeout: float) -> AsyncIterator[list[Zone]]:
    running = [Zone(servers, str(shards), str(number), str(session_timeout)) for number in range(ZONES)]
    try:
        for zone in running:
            await zone.start("new")
        yield running
    finally:
        for zone in running:
            await zone.kill()


# --- What is measured -----------------------------------------------------------------------------------------------


class _Run:
    """The phases, in order; each adds its figures."""

    def __init__(self, ensemble: Ensemble, running: Sequence[Zone], shards: int) -> None:
        self.figures: list[Figure] = []
        self._ensemble = ensemble
        self._zones = list(running)
        self._shards = shards
        self._complaints: Counter[str] = Counter()

    async def tell(self, command: str) -> list[Report]:
        return list(await asyncio.gather(*(zone.tell(command) for zone in self._zones)))

    async def _until(self, what: str, reached: Callable[[list[Report]], bool]) -> list[Report]:
        click.echo(f"... {what}", err=True)
        deadline = time.monotonic() + PATIENCE
        while not reached(reports := await self.tell("report")):
            if time.monotonic() > deadline:
                raise click.ClickException(f"not reached in {PATIENCE:g} s: {what}: {_shortened(reports)}")
            await asyncio.sleep(LOOK)
        return reports

    def _note(self, name: str, value: float, unit: str) -> None:
        self.figures.append(Figure(name, round(value, 3), unit))
        click.echo(f"    {name}: {value:,.6g} {unit}", err=True)

    async def _whole(self) -> list[Report]:
        return await self._until(
            "all shards are whole", lambda reports: all(one.complete == self._shards for one in reports)
        )

    async def set_up(self) -> None:
        begun = time.monotonic()
        reports = await self._whole()
        self._note("shards", self._shards, "of three peers")
        self._note("set up: all shards, from nothing, at once", time.monotonic() - begun, "s")
        self._note("set up: sessions", sum(one.sessions for one in reports), "")
        await asyncio.sleep(12)  # what follows the last change dies away: a status is repeated within ten seconds

    async def steady(self, name: str, seconds: float) -> None:
        """What goes on all the time."""
        click.echo(f"... {name}, {seconds:g} s", err=True)
        if name != "idle":
            await asyncio.sleep(12)
        peers = ZONES * self._shards
        before, spent, made = await self._ensemble.counts(), self._spent(), await self._decisions()
        await asyncio.sleep(seconds)
        after, spent, made = await self._ensemble.counts(), self._spent() - spent, await self._decisions() - made
        passed = after.at - before.at
        minute = 60 / passed
        self._note(f"{name}: packets to ZooKeeper, all", (after.received - before.received) * minute, "a minute")
        self._note(
            f"{name}: packets to ZooKeeper, a peer", (after.received - before.received) * minute / peers, "a minute"
        )
        self._note(f"{name}: of these writes, all", (after.writes - before.writes) * minute, "a minute")
        self._note(f"{name}: events of watches, all", (after.events - before.events) * minute, "a minute")
        self._note(f"{name}: watches armed", after.watches, "")
        self._note(f"{name}: CPU of the ensemble", 100 * (after.cpu - before.cpu) / passed, "% of a core")
        self._note(f"{name}: resident memory of a server", after.resident, "MiB")
        self._note(f"{name}: CPU of a client", 100 * spent / passed / peers, "% of a core")
        self._note(f"{name}: decisions, a peer", made * minute / peers, "a minute")

    def _spent(self) -> float:
        return sum(zone.cpu for zone in self._zones)

    async def _decisions(self) -> int:
        return sum(one.decisions for one in await self.tell("report"))

    async def without_one(self, mode: str) -> None:
        """SIGKILL of a server; its clients go to the others."""
        before = await self.tell("report")
        server = await self._ensemble.one(mode)
        begun = time.monotonic()
        await server.kill()
        if mode == "follower":  # the others' clients notice nothing
            await asyncio.sleep(2)
            await self._decided(f"{mode} killed", begun, before)
        else:
            await self._nobody_connected()
            served = await self._ensemble.serves()
            self._note(f"{mode} killed: until there is another", served - begun, "s")
            await self._decided(f"{mode} killed, from when there is another", served, before)
        await server.start()

    async def without_all(self, down: float) -> None:
        before = await self.tell("report")
        await self._ensemble.kill()
        await self._nobody_connected()
        click.echo(f"... ZooKeeper is away for {down:g} s", err=True)
        spent, begun = self._spent(), time.monotonic()
        await asyncio.sleep(down)
        share = (self._spent() - spent) / (time.monotonic() - begun) / (ZONES * self._shards)
        self._note("all of ZooKeeper down: CPU of a client", 100 * share, "% of a core")
        begun = time.monotonic()
        served = await self._ensemble.start()
        self._note("all of ZooKeeper down and up: until it serves", served - begun, "s")
        await self._decided("all of ZooKeeper down and up, from when it serves", served, before)

    async def _nobody_connected(self) -> None:
        await self._until("nobody is connected", lambda reports: all(one.connected == 0 for one in reports))

    async def _decided(self, what: str, begun: float, before: list[Report]) -> None:
        reports = await self._until(
            "everybody has decided on what ZooKeeper holds now",
            lambda reports: all(one.decided == one.peers for one in reports),
        )
        self._note(f"{what}: all have decided anew", max(one.decided_at for one in reports) - begun, "s")
        await asyncio.sleep(5)  # sessions that were not resumed in time would end within this
        reports = await self._whole()
        self._note(f"{what}: sessions lost", _sessions(reports) - _sessions(before), "")
        self._note(f"{what}: generations declared", _declared(before[0], reports[0]), "")

    async def without_a_zone(self, session_timeout: float) -> None:
        """SIGKILL of all peers of one zone, which is primary of some shards, sync of others."""
        dead, before = self._zones.pop(), await self.tell("report")
        generations = before[0].generations
        begun = time.monotonic()
        await dead.kill()
        # A shard whose async has gone keeps its generation; the others' next one is known to all that are left.
        await asyncio.sleep(session_timeout + 10)
        reports = await self.tell("report")
        delays = [
            at - begun
            for old, new, at in zip(generations, reports[0].generations, reports[0].generations_at, strict=True)
            if new > old
        ]
        name = "a zone killed"
        self._note(f"{name}: shards that lost primary or sync", len(delays), "")
        self._note(f"{name}: next generation declared, median", statistics.median(delays), "s")
        self._note(f"{name}: next generation declared, last", max(delays), "s")
        begun = time.monotonic()
        self._zones.append(dead)
        await dead.start("returning")
        await dead.tell("written")
        await self._whole()
        self._note(f"{name}: all shards whole, after its return", time.monotonic() - begun, "s")


def _sessions(reports: list[Report]) -> int:
    return sum(one.sessions for one in reports)


def _declared(before: Report, after: Report) -> int:
    return sum(after.generations) - sum(before.generations)


def _shortened(reports: list[Report]) -> list[dict[str, Any]]:
    return [{name: value for name, value in vars(one).items() if not isinstance(value, list)} for one in reports]


if __name__ == "__main__":
    main()
