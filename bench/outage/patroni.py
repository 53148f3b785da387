"""Patroni as its documentation sets it up for losing nothing: `synchronous_mode` with `synchronous_mode_strict`.

It is installed beside this project, not into it, and runs as PostgreSQL's user with the system's Python, which that
user can reach. Everything else is what this project's own shard gets: the same ZooKeeper, the same PostgreSQL, the
same addresses and base settings.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import aiohttp
import psutil

from bench import network
from bench.machine import programs
from demo.directory import run_directory
from demo.postgresql import unprivileged_user, within_reach
from demo.process import Child, alive
from demo.zookeeper import ZooKeeperServer

VERSION = "4.1.5"
REST = 8008
PATIENCE = 180.0

_DYING_WITH_US = ("setpriv", "--pdeathsig", "KILL")

DEFAULTS: Mapping[str, object] = {"ttl": 30, "loop_wait": 10, "retry_timeout": 10}
FASTEST: Mapping[str, object] = {"ttl": 20, "loop_wait": 1, "retry_timeout": 3, "primary_start_timeout": 0}
"""The least that Patroni accepts (`Config`: ttl 20, loop_wait 1, retry_timeout 3); a crash fails over at once."""


@dataclass(frozen=True)
class Patroni:
    """Patroni with some settings of its dynamic configuration."""

    name: str
    dynamic: Mapping[str, object]
    part: int
    """Of the network: two of them are measured at the same time."""

    @asynccontextmanager
    async def cluster(self) -> AsyncIterator[Cluster]:
        user = unprivileged_user()
        with run_directory(readable_by=user) as directory:
            packages = _install()
            bin_dir = within_reach(programs(), user, directory).bin_dir
            async with ZooKeeperServer(directory / "zookeeper", address=network.address(self.part, 1)) as zookeeper:
                members = [
                    _Member(ip, directory / f"member{n}", packages, user)
                    for n, ip in enumerate(network.peers(self.part), 1)
                ]
                cluster = Cluster(members, zookeeper.servers)
                for member in members:
                    member.write_settings(zookeeper.servers, bin_dir, self.dynamic)
                try:
                    for member in members:
                        await member.start()
                    yield cluster
                finally:
                    for member in members:
                        await member.kill()


@cache
def _install() -> Path:
    """Patroni and what it needs, until we end, in a directory that PostgreSQL's user can read."""
    directory = tempfile.mkdtemp(prefix="manatee-patroni-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    target = Path(directory) / "packages"
    Path(directory).chmod(0o755)
    wanted = [f"patroni[zookeeper,psycopg3]=={VERSION}", "psycopg-binary"]
    pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", "install", "--target", str(target)]
    subprocess.run([*pip, *wanted], check=True, timeout=300)
    return target


def _python() -> str:
    """A Python that any user can execute, of the version that the packages were installed for."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for name in (f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        if Path(name).exists():
            return name
    raise FileNotFoundError(f"/usr/bin/python{version}: Patroni runs as another user, with the system's Python")


class _Member:
    """One Patroni with its PostgreSQL."""

    def __init__(self, address: str, directory: Path, packages: Path, user: str | None) -> None:
        self.address = address
        self.name = directory.name
        self.log = directory.with_suffix(".log")
        self._directory = directory
        self._packages = packages
        self._user = user
        self._child: Child | None = None
        self._paused: list[psutil.Process] = []

    def write_settings(self, zookeeper: str, bin_dir: Path, dynamic: Mapping[str, object]) -> None:
        self._directory.mkdir(mode=0o700)
        parameters = {
            "max_connections": 50,
            "shared_buffers": "32MB",
            "max_wal_size": "256MB",
        }
        settings = {
            "scope": "bench",
            "name": self.name,
            "restapi": {"listen": f"{self.address}:{REST}", "connect_address": f"{self.address}:{REST}"},
            "zookeeper": {"hosts": [zookeeper]},
            "bootstrap": {
                "dcs": {
                    **dynamic,
                    "synchronous_mode": True,
                    "synchronous_mode_strict": True,
                    "postgresql": {"use_pg_rewind": True, "parameters": parameters},
                },
                "initdb": [{"encoding": "UTF8"}, "data-checksums"],
            },
            "postgresql": {
                "listen": f"{self.address}:5432",
                "connect_address": f"{self.address}:5432",
                "data_dir": str(self._directory / "data"),
                "bin_dir": str(bin_dir),
                "parameters": {"unix_socket_directories": str(self._directory)},
                "pgpass": str(self._directory / "pgpass"),
                "authentication": {"superuser": {"username": "postgres"}, "replication": {"username": "postgres"}},
                "pg_hba": [
                    "local all all trust",
                    "host all all 127.0.0.0/8 trust",
                    "host replication all 127.0.0.0/8 trust",
                ],
            },
        }
        path = self._directory / "patroni.json"  # JSON is YAML
        path.write_text(json.dumps(settings))
        if self._user:
            for each in (self._directory, path):
                shutil.chown(each, self._user)

    async def start(self) -> None:
        become = (
            () if self._user is None else ("setpriv", "--reuid", self._user, "--regid", self._user, "--init-groups")
        )
        self._child = await Child.start(
            # A change of user clears the parent-death signal that the child got before.
            [*become, *_DYING_WITH_US, _python(), "-m", "patroni", self._directory / "patroni.json"],
            log=self.log,
            env={"PYTHONPATH": str(self._packages), "MALLOC_ARENA_MAX": "2"},
        )

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.returncode is None

    def _postgres(self) -> list[psutil.Process]:
        """The postmaster, which Patroni lets go of, and its children."""
        with suppress(OSError, ValueError, psutil.NoSuchProcess):
            first = (self._directory / "data" / "postmaster.pid").read_text().splitlines()[0]
            postmaster = psutil.Process(int(first))
            if postmaster.name() == "postgres":
                return [postmaster, *postmaster.children(recursive=True)]
        return []

    def kill_postmaster(self) -> None:
        self._postgres()[0].kill()

    def pause(self) -> None:
        assert self._child is not None
        self._paused = [*self._child.family(), *self._postgres()]
        for process in self._paused:
            process.suspend()

    async def kill(self) -> None:
        """All at one moment."""
        left = self._postgres()
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        left += [each for each in self._postgres() if each not in left]
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self._child is not None:
            await self._child.kill()
        while any(map(alive, left)):
            await asyncio.sleep(0.01)
        self._paused = []

    async def terminate(self) -> None:
        assert self._child is not None
        await self._child.terminate(grace=60)

    def resume(self) -> None:
        for process in reversed(self._paused):
            with suppress(psutil.NoSuchProcess):
                process.resume()
        self._paused = []


class Cluster:
    def __init__(self, members: Sequence[_Member], zookeeper: str) -> None:
        self.zookeeper = zookeeper
        self.addresses = tuple(member.address for member in members)
        self._members = {member.address: member for member in members}

    async def whole(self) -> tuple[str, str]:
        async with asyncio.timeout(PATIENCE):
            while True:
                for member in self._members.values():
                    assert member.running, f"Patroni has ended: see {member.log}, with MANATEE_KEEP=1"
                for address in self.addresses:
                    seen = await _ask(address, "/cluster")
                    members = json.loads(seen)["members"] if seen else []
                    # A leader runs, a standby that runs and does not stream is not in place yet.
                    placed = [m for m in members if m["state"] == ("running" if m["role"] == "leader" else "streaming")]
                    roles = {member["role"]: member["host"] for member in placed}
                    if len(placed) == len(self._members) and "leader" in roles and "sync_standby" in roles:
                        return roles["leader"], roles["sync_standby"]
                await asyncio.sleep(0.2)

    async def kill_postmaster(self, address: str) -> None:
        self._members[address].kill_postmaster()

    async def kill_peer(self, address: str) -> None:
        await self._members[address].kill()

    async def pause_peer(self, address: str) -> None:
        self._members[address].pause()

    async def terminate(self, address: str) -> None:
        await self._members[address].terminate()

    async def promote(self, primary: str, sync: str) -> None:
        names = {"leader": self._members[primary].name, "candidate": self._members[sync].name}
        async with aiohttp.ClientSession() as session, session.post(_url(primary, "/switchover"), json=names) as answer:
            assert answer.status == 200, await answer.text()

    async def bring_back(self, address: str) -> None:
        member = self._members[address]
        member.resume()
        if not member.running:
            await member.start()

    def daemon(self, address: str) -> int:
        return self._members[address].pid

    def replica_check(self, address: str) -> str:
        return _url(address, "/replica")

    def spans(self, *_: float) -> list[str]:
        return []


def _url(address: str, path: str) -> str:
    return f"http://{address}:{REST}{path}"


async def _ask(address: str, path: str) -> str | None:
    """The answer, if it is a 200 and comes in time."""
    try:
        timeout = aiohttp.ClientTimeout(total=1.0)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(_url(address, path)) as answer:
            return await answer.text() if answer.status == 200 else None
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None
