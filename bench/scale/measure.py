"""What is measured of hundreds of shards: all set up at once, idle, written to, and with parts of it dead."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import psutil

from bench.machine import machine
from bench.results import OURS, Row, Section
from bench.scale.ensemble import Ensemble
from bench.scale.zone import ZONES, Report

PATIENCE = 600.0
COUNTED = ("sessions", "generations", "shards", "watches")
LOOK = 0.25
"""Seconds between looks at the zones. What is measured are moments that the peers note themselves."""


def measure(shards: int = 300, seconds: float = 30.0, session_timeout: float = 10.0, down: float = 30.0) -> Section:
    """A section of the page. `seconds` for what goes on all the time, `down` for those without ZooKeeper."""
    on = machine()
    with tempfile.TemporaryDirectory(prefix="manatee-scale-") as directory:
        rows = asyncio.run(_measure(Path(directory), shards, seconds, session_timeout, down))
    notes = (
        "Real: three ZooKeeper servers, every write on the disk; sessions; `manatee.coordination`; the rules.",
        "Simulated: PostgreSQL. Whatever is wanted of it has happened. One run, all of it on this machine.",
        f"A shard has three peers, each with a session of {session_timeout:g} s; the peers of a zone share a process.",
        "Packets count what keeps sessions alive, too: while nothing happens there are no others.",
    )
    return Section(columns={OURS: f"{shards} shards"}, rows=rows, machine=on, notes=notes)


async def _measure(
    directory: Path, shards: int, seconds: float, session_timeout: float, down: float
) -> Mapping[str, Row]:
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
            return run.rows
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
        self.rows: dict[str, Row] = {}
        self._ensemble = ensemble
        self._zones = list(running)
        self._shards = shards

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
        digits = 0 if value >= 100 or unit in COUNTED else 2
        self.rows[name] = Row(what=name, unit=unit, digits=digits, values={OURS: (round(value, 3),)})
        click.echo(f"    {name}: {value:,.{digits}f} {unit}", err=True)

    async def _whole(self) -> list[Report]:
        return await self._until(
            "all shards are whole", lambda reports: all(one.complete == self._shards for one in reports)
        )

    async def set_up(self) -> None:
        begun = time.monotonic()
        reports = await self._whole()
        self._note("set up: all shards, from nothing, at once", time.monotonic() - begun, "s")
        self._note("set up: sessions", _sessions(reports), "sessions")
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
        self._note(f"{name}: watches armed", after.watches, "watches")
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
        self._note(f"{what}: sessions lost", _sessions(reports) - _sessions(before), "sessions")
        self._note(f"{what}: generations declared", _declared(before[0], reports[0]), "generations")

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
        self._note(f"{name}: shards that lost primary or sync", len(delays), "shards")
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
