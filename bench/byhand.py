"""Three PostgreSQL servers in a chain, with the configuration that a sitter renders for them and no sitter.

Whoever uses it is the operator: nothing here decides, nothing looks after the servers.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path

import psutil
import psycopg

from bench import network
from bench.machine import programs
from demo.directory import run_directory
from demo.postgresql import Installation, unprivileged_user, within_reach
from demo.process import Child, alive
from demo.shard import POSTGRESQL_CONF, as_toml
from manatee.cluster import application_name
from manatee.config import load
from sitter.postgres import configuration
from sitter.postgres.configuration import NOBODY, Replication
from sitter.postgres.tools import run_tool

PATIENCE = 60.0
LOOK = 0.002
"""Seconds between two looks at what the next step waits for."""

_HBA = "local all all trust\nhost all all 127.0.0.0/8 trust\nhost replication all 127.0.0.0/8 trust\n"


class Server:
    """One PostgreSQL with a directory of its own."""

    def __init__(self, directory: Path, ip: str, postgresql: Installation, user: str | None) -> None:
        self.ip = ip
        self._user = user
        self._major = postgresql.major
        self._child: Child | None = None
        self._paused: list[psutil.Process] = []
        self._foundation: dict[str, str] = {}
        directory.mkdir(mode=0o755)
        for name, mode in (("store", 0o700), ("socket", 0o700), ("state", 0o755)):
            (directory / name).mkdir(mode=mode)
            if user is not None:
                shutil.chown(directory / name, user)
        self.log = directory / "postgres.log"
        base = directory / "base.conf"
        base.write_text(POSTGRESQL_CONF)
        (directory / "manatee.toml").write_text(as_toml(self._document(directory, postgresql, base)))
        self.settings = load(directory / "manatee.toml")

    def _document(self, directory: Path, postgresql: Installation, base: Path) -> dict[str, dict[str, object]]:
        return {
            "shard": {"name": "bench"},
            "peer": {"ip": self.ip, "zone_id": self.ip},
            "zookeeper": {"servers": f"{self.ip}:2181"},
            "postgres": {
                "bin_dir": postgresql.bin_dir,
                "config_file": base,
                "socket_dir": directory / "socket",
                **({"user": self._user} if self._user else {}),
            },
            "storage": {"directory": directory / "store"},
            "backup": {"token_file": directory / "none"},
            "sitter": {"state_dir": directory / "state"},
        }

    @property
    def name(self) -> str:
        """What its upstream knows it by."""
        return application_name(self.settings.identity)

    async def initialize(self) -> None:
        data = self.settings.storage.data_dir
        await run_tool(self.settings, "initdb", "-D", str(data), "-U", "postgres", "-k", "-N", timeout=PATIENCE)
        (data / "pg_hba.conf").write_text(_HBA)

    async def copy(self, source: Server) -> None:
        """Have the data of another server, and be its standby when started."""
        data = self.settings.storage.data_dir
        await asyncio.to_thread(shutil.rmtree, data, ignore_errors=True)
        words = ("-D", str(data), "-h", source.ip, "-U", "postgres", "-c", "fast", "-X", "stream", "-N")
        await run_tool(self.settings, "pg_basebackup", *words, timeout=PATIENCE)
        configuration.set_standby_signal(self.settings, wanted=True)

    async def configure(self, *, sync: Server | None = None, upstream: Server | None = None) -> None:
        """Whom commits wait for (nobody that exists, if None) and whom to follow; in force at a start or a reload."""
        if not self._foundation:
            self._foundation = await configuration.foundation(self.settings, None, version=self._major)
        conninfo = configuration.conninfo(self.settings, upstream.settings.identity) if upstream else None
        wanted = Replication(sync.name if sync else NOBODY, read_only=False, upstream=conninfo)
        configuration.write(self.settings, self._foundation, wanted)

    async def start(self) -> None:
        """Returns when it accepts connections."""
        become = (
            () if self._user is None else ("setpriv", "--reuid", self._user, "--regid", self._user, "--init-groups")
        )
        data, file = self.settings.storage.data_dir, configuration.file(self.settings)
        # A change of user clears the parent-death signal that the child got before.
        postgres = (self.settings.postgres.bin_dir / "postgres", "-D", data, "-c", f"config_file={file}")
        self._child = await Child.start([*become, "setpriv", "--pdeathsig", "KILL", *postgres], log=self.log)
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(psycopg.Error):
                    async with self.connect():
                        return
                assert self._child.returncode is None, self.log.read_text()[-2000:]
                await asyncio.sleep(LOOK)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[psycopg.AsyncConnection[tuple[object, ...]]]:
        connection = await psycopg.AsyncConnection.connect(
            host=str(self.settings.postgres.socket_dir), user="postgres", dbname="postgres", autocommit=True
        )
        async with connection:
            yield connection

    async def until(self, question: str) -> None:
        """Wait until the answer to a question is true."""
        async with asyncio.timeout(PATIENCE), self.connect() as connection:
            while (await (await connection.execute(question.encode())).fetchone()) != (True,):
                await asyncio.sleep(LOOK)

    @property
    def child(self) -> Child:
        assert self._child is not None
        return self._child

    def reload(self) -> None:
        psutil.Process(self.child.pid).send_signal(1)

    async def promote(self, sync: Server) -> None:
        """What an operator would have a script do: follow nobody any more, wait for the next server, `pg_promote`."""
        await self.configure(sync=sync)
        async with asyncio.timeout(PATIENCE), self.connect() as connection:
            self.reload()
            while (await (await connection.execute("SELECT count(*) FROM pg_stat_wal_receiver")).fetchone()) != (0,):
                await asyncio.sleep(LOOK)
            await connection.execute("SELECT pg_promote(wait => false)")
            while (await (await connection.execute("SELECT pg_is_in_recovery()")).fetchone()) != (False,):
                await asyncio.sleep(LOOK)

    async def restart_killed(self) -> None:
        """After SIGKILL of the postmaster: its children end by themselves, and the start waits for that alone."""
        left = [process for process in self.child.family() if process.pid != self.child.pid]
        psutil.Process(self.child.pid).kill()
        while any(map(alive, left)):
            await asyncio.sleep(LOOK)
        await self.child.release()
        await self.start()

    def pause(self) -> None:
        self._paused = self.child.family()
        for process in self._paused:
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    async def stop(self) -> None:
        """Cleanly: what was committed reaches its standby."""
        os.kill(self.child.pid, 2)
        await self.child.wait()
        await self.child.release()

    async def kill(self) -> None:
        if self._child is not None:
            await self._child.kill()
            self._child = None


@asynccontextmanager
async def chain(part: int) -> AsyncIterator[list[Server]]:
    """Primary, sync and async, running, on their part of the network."""
    user = unprivileged_user()
    with run_directory(readable_by=user) as directory:
        postgresql = within_reach(programs(), user, directory)
        servers = [
            Server(directory / f"server{number}", ip, postgresql, user)
            for number, ip in enumerate(network.peers(part), 1)
        ]
        try:
            primary, sync, _ = servers
            await primary.initialize()
            await primary.configure(sync=sync)
            await primary.start()
            for upstream, server in pairwise(servers):
                await append(upstream, server)
            await complete(servers)
            yield servers
        finally:
            for server in servers:
                await server.kill()


async def append(upstream: Server, server: Server) -> None:
    """Have a server's data made anew and let it follow."""
    await server.copy(upstream)
    await server.configure(upstream=upstream)
    await server.start()


async def complete(servers: Sequence[Server]) -> None:
    """Wait until every server has its standby, and commits are acknowledged by the first one's."""
    for upstream, server in pairwise(servers):
        streams = f"application_name = '{server.name}' AND state = 'streaming'"
        synchronous = " AND sync_state = 'sync'" if upstream is servers[0] else ""
        await upstream.until(f"SELECT count(*) > 0 FROM pg_stat_replication WHERE {streams}{synchronous}")
