"""PostgreSQL servers for these tests: real ones, on loopback, as the unprivileged user when the tests run as root."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import structlog

from demo.directory import user_name
from demo.postgresql import unprivileged_user
from manatee.cluster import application_name
from manatee.config import Settings
from sitter.postgres import configuration, queries
from sitter.postgres.configuration import ALONE, NOBODY, Replication
from sitter.postgres.process import Postmaster
from sitter.postgres.server import Server

USER = unprivileged_user() or user_name()
"""Whom PostgreSQL runs as: we ourselves, unless we are root."""
HBA = """\
local all all trust
local replication all trust
host all all 127.0.0.0/8 trust
host replication all 127.0.0.0/8 trust
"""
BASE = """\
shared_buffers = 16MB
max_connections = 40
fsync = off
log_checkpoints = off
"""


def as_postgres(*command: str | Path) -> None:
    """Run a command as the user that PostgreSQL runs as."""
    change = {"user": USER, "group": pwd.getpwnam(USER).pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    environment = {"PATH": os.defpath, "LC_ALL": "C"}
    subprocess.run(command, check=True, capture_output=True, cwd="/", env=environment, **change)  # type: ignore[call-overload]


def give(path: Path) -> None:
    if os.geteuid() == 0:
        shutil.chown(path, USER, pwd.getpwnam(USER).pw_gid)


T = TypeVar("T")


async def until(look: Callable[[], Awaitable[T]], *, timeout: float = 60.0) -> T:
    """Look again and again until the answer is true; the answer."""
    deadline = time.monotonic() + timeout
    while not (answer := await look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{look} did not come true within {timeout} s")
        await asyncio.sleep(0.01)
    return answer


@dataclass
class Node:
    """One server, with the settings a sitter would have for it."""

    settings: Settings
    version: int
    server: Server = field(init=False)
    postmaster: Postmaster = field(init=False)

    def __post_init__(self) -> None:
        self.server = Server(self.settings, structlog.get_logger(peer=self.settings.peer.zone_id))
        self.postmaster = self.server._postmaster

    @property
    def foundation(self) -> dict[str, str]:
        return self.server._foundation

    @property
    def data_dir(self) -> Path:
        return self.settings.storage.data_dir

    @property
    def name(self) -> str:
        return application_name(self.settings.identity)

    def follows(self, upstream: Node, **changes: Any) -> Replication:
        link = configuration.conninfo(self.settings, upstream.settings.identity)
        return Replication(NOBODY, read_only=False, upstream=link, **changes)

    async def start(self, replication: Replication, *, standby: bool) -> None:
        await self.server.start(replication, as_standby=standby)

    async def start_primary(self, commits_wait_for: str = ALONE) -> None:
        await self.start(Replication(commits_wait_for, read_only=False), standby=False)
        await self.open()

    async def start_standby(self, upstream: Node, **changes: Any) -> None:
        await self.start(self.follows(upstream, **changes), standby=True)
        await self.open()

    async def open(self) -> None:
        """Wait until it lets clients in."""

        async def ready() -> bool:
            assert self.postmaster.running, self.postmaster.last_lines
            return self.postmaster.status == "ready"

        await until(ready)

    async def receives_nothing(self) -> None:
        """Wait until it has no WAL receiver."""

        async def no_receiver() -> bool:
            return (await queries.facts(self.settings)).receiver is None

        await until(no_receiver)

    async def connect(self, **changes: Any) -> psycopg.AsyncConnection[Any]:
        here = {"host": str(self.settings.postgres.socket_dir), "port": self.settings.peer.postgres_port}
        return await psycopg.AsyncConnection.connect(
            **{**here, "user": "postgres", "dbname": "postgres", "autocommit": True, **changes}
        )

    async def sql(self, query: str) -> list[tuple[Any, ...]]:
        """Run one query over a connection of its own; its rows."""
        connection = await self.connect()
        try:
            cursor = await connection.execute(query)
            return await cursor.fetchall() if cursor.description else []
        finally:
            await connection.close()

    async def value(self, query: str) -> Any:
        return (await self.sql(query))[0][0]

    def waldump(self, *arguments: str) -> str:
        """What pg_waldump says; where the log ends it complains, which is no matter here."""
        command: list[str | Path] = [
            self.settings.postgres.bin_dir / "pg_waldump",
            "-p",
            self.data_dir / "pg_wal",
            *arguments,
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    async def crash(self) -> None:
        """End it as a power cut would, as far as a running system allows."""
        await self.postmaster.stop("immediate", timeout=5)


class Machines:
    """Makes nodes of one PostgreSQL version, each with an address of its own, and ends them all."""

    _addresses = 0

    def __init__(self, directory: Path, version: int, bin_dir: Path, template: Path) -> None:
        self.directory = directory
        self.version = version
        self.bin_dir = bin_dir
        self.template = template
        self.nodes: list[Node] = []

    def empty(self, **postgres: Any) -> Node:
        """A node without data."""
        Machines._addresses += 1
        number = Machines._addresses
        home = self.directory / f"n{len(self.nodes)}"
        for place in (home, home / "s", home / "state", home / "store"):
            place.mkdir()
            give(place)
        (home / "base.conf").write_text(BASE)
        (home / "hba.conf").write_text(HBA)
        settings = Settings.model_validate(
            {
                "shard": {"name": "test"},
                "peer": {"ip": f"127.12.{os.getpid() % 256}.{number % 250 + 1}", "zone_id": f"node-{len(self.nodes)}"},
                "zookeeper": {"servers": "127.12.0.1:2181"},
                "postgres": {
                    "bin_dir": self.bin_dir,
                    "user": USER,
                    "socket_dir": home / "s",
                    "config_file": home / "base.conf",
                    "hba_file": home / "hba.conf",
                    **postgres,
                },
                "storage": {"directory": home / "store"},
                "backup": {"token_file": home / "token"},
                "sitter": {"state_dir": home / "state"},
            }
        )
        node = Node(settings, self.version)
        self.nodes.append(node)
        return node

    def initialized(self, **postgres: Any) -> Node:
        """A node with a fresh database; all of one version are copies of each other."""
        node = self.empty(**postgres)
        as_postgres("cp", "-a", self.template, node.data_dir)
        (node.data_dir / "pg_hba.conf").write_text(HBA)
        return node

    async def standby_of(self, upstream: Node, **changes: Any) -> Node:
        """A node with a base backup of a running one, started and streaming."""
        node = self.empty()
        await asyncio.to_thread(self.copy, upstream, node)
        await node.start_standby(upstream, **changes)

        async def streaming() -> bool:
            rows = await upstream.sql("select application_name from pg_stat_replication where state = 'streaming'")
            return (node.name,) in rows

        await until(streaming)
        return node

    def copy(self, upstream: Node, node: Node) -> None:
        here = upstream.settings
        place = f"host={here.postgres.socket_dir} port={here.peer.postgres_port} user=postgres"
        command = ("-D", node.data_dir, "-d", place, "-X", "stream", "-c", "fast", "--no-sync")
        as_postgres(self.bin_dir / "pg_basebackup", *command)

    async def end(self) -> None:
        for node in self.nodes:
            await node.postmaster.stop("immediate", timeout=5)
