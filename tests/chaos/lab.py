"""The shard in its network: three ZooKeeper servers, the peers and the clients, each on a node of its own.

It is `demo.shard.LocalShard` with other places for the same programs. Every peer's data, and its memory, lie on a small
file system of their own, which can be filled; its clock can be set (libfaketime). `complete` gives a lab in which all
peers are in the chain; leaving it ends everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from pathlib import Path

import psutil

from demo.postgresql import Installation, choose
from demo.process import Child, alive
from demo.shard import LocalPeer, LocalShard, ShardFailed, script
from demo.supervisor import Program
from manatee.client import Address, connect_writable
from manatee.cluster import ClusterState
from tests.chaos.ensemble import NODES, Ensemble
from tests.chaos.history import Journal
from tests.chaos.slot import Slot, processes_in
from tests.chaos.topology import Network
from tests.chaos.workloads import TABLES

CLIENTS = 3
DISK = 640
"""Megabytes that a peer has."""
SLOWNESS = float(os.environ.get("MANATEE_SLOWNESS", "1"))
"""How much more patience to have, where others work on the machine, too."""
COMPLETE = 150.0 * SLOWNESS
"""Seconds within which the shard must be complete when everybody is there, on a machine that is busy with the rest."""
SESSION_TIMEOUT = 4.0
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
POSTGRESQL_CONF = """\
max_connections = 100
shared_buffers = 16MB
max_wal_size = 64MB
min_wal_size = 32MB
wal_keep_size = 64MB
log_line_prefix = '%m [%p] %q%u@%d '
"""
PG_HBA_CONF = """\
local all         all     peer map=manatee
local replication all     peer map=manatee
host  all         all all trust
host  replication all all trust
"""


class Inapplicable(Exception):
    """The target has nothing that this fault could strike now; the message says what is missing."""


class Lab(LocalShard):
    """Peers named peer1, peer2, ...; clients client1, ...; the nodes of `Ensemble`."""

    postgresql_conf = POSTGRESQL_CONF
    pg_hba_conf = PG_HBA_CONF

    def __init__(
        self,
        slot: Slot,
        journal: Journal,
        *,
        peers: int = 3,
        begin_with: int | None = None,
        session_timeout: float = SESSION_TIMEOUT,
        clients: int = CLIENTS,
        postgresql: Installation | None = None,
        broken: str | None = None,
        clocks: bool = False,
        overrides: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        self.slot, self.journal = slot, journal
        self.clients = tuple(f"client{number}" for number in range(1, clients + 1))
        names = [f"peer{number}" for number in range(1, peers + 1)]
        self.network = Network(slot, [*names, *NODES, *self.clients])
        self.broken, self.clocks = broken, clocks
        self.members = peers if begin_with is None else begin_with
        """How many peers the chain is to have; those after them are not started in the beginning."""
        super().__init__(
            [self.network.nodes[name] for name in names],
            name="chaos",
            postgresql=postgresql or choose(15),
            session_timeout=session_timeout,
            overrides=overrides,
        )
        self._shift = 0
        self.clients_since = 0.0
        """When the clients were started, by the monotonic clock."""
        self._writing: list[tuple[str, Child]] = []
        self._under_way: set[asyncio.Task[object]] = set()
        self.last_state: ClusterState | None = None
        """What ZooKeeper held when it could be asked last."""

    async def prepare(self, stack: contextlib.AsyncExitStack) -> Path:
        await self.network.start()
        self.ensemble = Ensemble(self.network, self.slot.directory)
        return self.slot.directory

    @property
    def servers(self) -> str:
        return self.ensemble.servers

    def other_programs(self) -> Sequence[Program]:
        return self.ensemble.programs()

    async def start_zookeeper(self, stack: contextlib.AsyncExitStack) -> None:
        for node in NODES:
            await self.supervisor.start(node)
        if not await self.ensemble.serves(within=60.0 * SLOWNESS):
            raise ShardFailed("ZooKeeper has no leader")

    @property
    def first_peers(self) -> Sequence[LocalPeer]:
        return self.peers[: self.members]

    async def __aexit__(self, *exc: object) -> None:
        try:
            await self.stop_clients()
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)
        finally:
            await super().__aexit__(*exc)

    async def evict(self, peer: LocalPeer) -> bool:
        """Remove its election node; whether it had one. Raises manatee.coordination's errors."""
        nodes = [one.node for one in (await self._coordination.read()).active if one.peer.id == peer.id]
        for node in nodes:
            await self._coordination.evict(node)
        return bool(nodes)

    async def history_names(self) -> list[str]:
        """Of every cluster state ever written."""
        return sorted(entry.name for entry in await self._coordination.history())

    @property
    def histories(self) -> list[Path]:
        return [self.directory / f"{client}.jsonl" for client in self.clients if self._history(client).exists()]

    def _history(self, client: str) -> Path:
        return self.directory / f"{client}.jsonl"

    def node(self, peer: LocalPeer) -> str:
        return f"peer{peer.number}"

    # --- What the seat does -------------------------------------------------------------------------------------

    def begin(self, work: Coroutine[object, object, object]) -> None:
        """Have it done while the faults go on. What goes wrong with it is trouble of the test."""
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self.journal.note("trouble", "seat", f"{type(error).__name__}: {error}")

    @property
    def idle(self) -> bool:
        """Nothing that was begun is still under way."""
        return not self._under_way

    async def adm(self, *words: str, patience: float) -> tuple[bool, str]:
        """Run manatee-adm: whether it succeeded, and its last line. Killed after `patience` seconds."""
        process = await asyncio.create_subprocess_exec(
            script("manatee-adm"),
            *words,
            env={**os.environ, **self.environment, "PYTHONPATH": str(CHECKOUT)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(patience):
                output, _ = await process.communicate()
        except TimeoutError:
            return False, f"no end after {patience:.0f} s"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode == 0, (output.decode(errors="replace").strip().splitlines() or [""])[-1]

    # --- Clients ------------------------------------------------------------------------------------------------

    async def make_tables(self) -> None:
        """Through the primary, once the shard is complete; it may still be about to accept writes."""
        connection = await connect_writable([Address(ip) for ip in self.addresses], deadline=COMPLETE)
        try:
            await connection.execute(TABLES.encode())
        finally:
            await connection.close()

    async def start_clients(self) -> None:
        self._shift += 1
        self.clients_since = time.monotonic()
        for number, client in enumerate(self.clients, 1):
            words = (
                str(number),
                str(self._shift),
                self.ensemble.servers,
                self.name,
                ",".join(self.addresses),
                str(self._history(client)),
            )
            argv = (*self.network.inside(client), sys.executable, "-m", "tests.chaos.client", *words)
            child = await Child.start(argv, log=self.directory / f"{client}.log", env={"PYTHONPATH": str(CHECKOUT)})
            self._writing.append((client, child))

    async def stop_clients(self) -> None:
        """Returns when their histories are complete; notes who had ended before."""
        writing, self._writing = self._writing, []
        for client, child in writing:
            if child.returncode is not None:
                said = (self.directory / f"{client}.log").read_text(errors="replace").splitlines()[-3:]
                self.journal.note("trouble", client, f"ended with status {child.returncode}: {' | '.join(said)}")
        async with asyncio.TaskGroup() as group:
            for _, child in writing:
                group.create_task(child.terminate(grace=20.0))
        self.journal.note("pause", "clients", "nobody writes any more")

    # --- Processes ----------------------------------------------------------------------------------------------

    def all_of(self, peer: LocalPeer) -> list[psutil.Process]:
        """Every process of a peer, that is, of its namespace; parents first."""
        return [process for pid in processes_in(self.slot.namespace(self.node(peer))) if (process := _process(pid))]

    def postmaster(self, peer: LocalPeer) -> psutil.Process | None:
        """The postmaster, if it lives."""
        try:
            pid = int((peer.settings.storage.data_dir / "postmaster.pid").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return None
        return _process(pid) if pid in processes_in(self.slot.namespace(self.node(peer))) else None

    def children_of_postgres(self, peer: LocalPeer, kind: str = "") -> list[psutil.Process]:
        """The server's children whose title contains `kind`, e.g. `walsender`."""
        postmaster = self.postmaster(peer)
        if postmaster is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child for child in postmaster.children() if kind in _title(child)]
        return []

    def program(self, name: str) -> psutil.Process | None:
        """A program of the supervisor, e.g. `sitter-1` or `zk2`, if it runs."""
        pid = self.supervisor.status(name).pid
        return _process(pid) if pid is not None else None

    def fill_disk(self, peer: LocalPeer) -> Path:
        """Leave no byte free on a peer's disk; returns the file to remove."""
        filler = self.directory / f"peer{peer.number}-disk" / "filler"
        free = shutil.disk_usage(filler.parent).free
        with filler.open("ab") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), file.tell(), free)
        with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"\0" * 4096):
                pass
        return filler

    # --- What is written before anything is started -------------------------------------------------------------

    def disk(self, number: int, directory: Path) -> Path:
        (directory / "clock").write_text("+0\n")
        disk = self.directory / f"peer{number}-disk"
        disk.mkdir(mode=0o755)
        options = f"size={DISK}m,mode=755"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, f"chaos-peer{number}", disk], check=True)
        return disk

    def settings_of(self, number: int, ip: str, directory: Path, disk: Path) -> dict[str, dict[str, object]]:
        settings = super().settings_of(number, ip, directory, disk)
        settings["log"] = {"format": "json"}
        if self.clocks:
            settings["postgres"]["bin_dir"] = self._wrapped(directory)
        return settings

    def _wrapped(self, directory: Path) -> Path:
        """PostgreSQL's programs, the server with the peer's clock: the sitter hands its environment on to nobody."""
        place = directory / "bin"
        place.mkdir(mode=0o755)
        for program in self.postgresql.bin_dir.iterdir():
            if program.name != "postgres":
                (place / program.name).symlink_to(program)
        exports = "\n".join(f"export {name}='{value}'" for name, value in _faked(directory / "clock").items())
        (place / "postgres").write_text(f'#!/bin/sh\n{exports}\nexec {self.postgresql.bin_dir / "postgres"} "$@"\n')
        (place / "postgres").chmod(0o755)
        return place

    def clock(self, peer: LocalPeer) -> Path:
        """The file that says how far the peer's clock is off, in libfaketime's words."""
        return peer.directory / "clock"

    def command(self, daemon: str, peer: LocalPeer) -> Program:
        ordinary = super().command(daemon, peer)
        argv, options = ordinary.argv, []
        if self.clocks:
            options += ["--clock", str(self.clock(peer))]
        if daemon == "sitter" and self.broken:
            options += ["--broken", self.broken]
        if options:
            argv = (sys.executable, "-m", "tests.chaos.launch", *options, daemon, *argv[1:])
        env = {**ordinary.env, "PYTHONPATH": str(CHECKOUT)}
        return Program(ordinary.name, (*self.network.inside(self.node(peer)), *argv), ordinary.log, env, grace=20.0)


CHECKOUT = Path(__file__).resolve().parents[2]


@contextlib.asynccontextmanager
async def complete(lab: Lab) -> AsyncIterator[Lab]:
    """The lab, once every peer is in the chain and the clients' tables are there."""
    async with lab:
        await lab.wait_for(
            lambda seen: seen.complete(lab.members), timeout=COMPLETE, what="a complete shard in the beginning"
        )
        await lab.make_tables()
        yield lab


def _faked(clock: Path) -> dict[str, str]:
    """libfaketime's environment: the time of day as the file says, the monotonic clock as it is."""
    return {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DISABLE_SHM": "1",
    }


def suspend(processes: list[psutil.Process]) -> None:
    _signal(processes, signal.SIGSTOP)


def resume(processes: list[psutil.Process]) -> None:
    _signal(processes, signal.SIGCONT)


def kill(processes: list[psutil.Process]) -> None:
    _signal(processes, signal.SIGKILL)


def _signal(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _process(pid: int) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        return process if alive(process) else None
    except psutil.NoSuchProcess:
        return None


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
