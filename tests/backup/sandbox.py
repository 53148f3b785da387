"""Peers for these tests: a real PostgreSQL, the real backup server, addresses of their own, nothing left behind."""

from __future__ import annotations

import asyncio
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString

import psutil
import psycopg

from demo import zfs
from demo.postgresql import Installation
from manatee.config import Settings, Tls, load
from manatee.lsn import Lsn
from manatee.storage import open_storage

TOKEN = "a-token-of-the-tests"
_REPOSITORY = Path(__file__).parents[2]
_addresses = (f"127.13.{high}.{low}" for high, low in itertools.product(range(os.getpid() % 250, 256), range(1, 255)))


def new_address() -> str:
    """A loopback address that no other test uses."""
    return next(_addresses)


def until(condition: Callable[[], object], within: float = 20.0) -> Any:
    """Wait until the condition holds; its value."""
    deadline = time.monotonic() + within
    while True:
        if value := condition():
            return value
        assert time.monotonic() < deadline, f"{condition} did not come true within {within} s"
        time.sleep(0.01)


async def eventually(condition: Callable[[], object], within: float = 20.0) -> None:
    """As `until`, for what other tasks of this loop bring about."""
    async with asyncio.timeout(within):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.02)


class Peer:
    """Settings, a directory, a PostgreSQL and a backup server, each when asked for."""

    def __init__(
        self,
        sandbox: Sandbox,
        postgresql: Installation,
        *,
        dataset: str | None = None,
        tls: Tls | None = None,
        **backup: float,
    ) -> None:
        self.dataset = dataset
        self._tls = tls
        self.postgresql = postgresql
        self.ip = new_address()
        self.root = sandbox.root / self.ip
        self.root.mkdir(mode=0o755)
        (self.root / "db").mkdir()
        (self.root / "socket").mkdir(mode=0o700)
        for path in (self.root / "db", self.root / "socket"):
            sandbox.give(path)
        self._sandbox = sandbox
        self.settings = self._write_settings({"idle_timeout": 5.0, "retry_delay": 0.05, **backup})
        self.data = self.settings.storage.data_dir
        self.postgres: subprocess.Popen[bytes] | None = None
        self.server: subprocess.Popen[bytes] | None = None

    def _write_settings(self, backup: dict[str, float]) -> Settings:
        user = self._sandbox.user
        token = self.root / "token"
        token.write_text(TOKEN + "\n")
        path = self.root / "manatee.toml"
        in_zfs = f', driver = "zfs", dataset = "{self.dataset}"' if self.dataset else ""
        files = self._tls.model_dump().items() if self._tls else ()
        encrypted = "\n".join(["[tls]" if files else "", *(f'{key} = "{file}"' for key, file in files)])
        path.write_text(f"""
            shard.name = "test"
            peer = {{ip = "{self.ip}", zone_id = "{self.ip}", postgres_port = 5432, backup_port = 12345}}
            zookeeper.servers = "127.0.0.1:2181"
            storage = {{directory = "{self.root}/db"{in_zfs}}}
            sitter.state_dir = "{self.root}/state"
            service = {{manager = "supervisor", supervisor_socket = "{self.root}/supervisor"}}
            [postgres]
            bin_dir = "{self.postgresql.bin_dir}"
            {f'user = "{user}"' if user else ""}
            socket_dir = "{self.root}/socket"
            [backup]
            token_file = "{token}"
            {chr(10).join(f"{key} = {value}" for key, value in backup.items())}
            {encrypted}
            """)
        return load(path)

    def initialize(self, **settings: object) -> Peer:
        """A new database, running."""
        self._sandbox.initialize(self)
        return self.start(**settings)

    def follow(self, upstream: Peer) -> Peer:
        """Run as a standby of `upstream`."""
        (self.data / "standby.signal").touch()
        self._sandbox.give(self.data / "standby.signal")
        return self.start(primary_conninfo=f"host={upstream.ip} port=5432 user=postgres")

    def start(self, **settings: object) -> Peer:
        wanted = {
            "listen_addresses": self.ip,
            "unix_socket_directories": self.root / "socket",
            "fsync": "off",
            "shared_buffers": "16MB",
            "max_wal_size": "64MB",
            "wal_retrieve_retry_interval": "100ms",
            "wal_keep_size": "256MB",
            **settings,
        }
        options = [word for name, value in wanted.items() for word in ("-c", f"{name}={value}")]
        with (self.root / "postgres.log").open("ab") as log:
            self.postgres = subprocess.Popen(
                [self.postgresql.bin_dir / "postgres", "-D", self.data, *options],
                stderr=log,
                cwd="/",
                **self._sandbox.as_user,
            )
        until(self._answers, 30)
        return self

    def _answers(self) -> bool:
        assert self.postgres is not None
        assert self.postgres.poll() is None, (self.root / "postgres.log").read_text()[-2000:]
        try:
            self.sql("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def sql(self, query: LiteralString) -> Any:
        """The first value of the answer."""
        with psycopg.connect(
            host=str(self.root / "socket"), user="postgres", dbname="postgres", autocommit=True
        ) as connection:
            cursor = connection.execute(query)
            row = cursor.fetchone() if cursor.description else None
            return row[0] if row else None

    @property
    def pid(self) -> int:
        """The postmaster's."""
        assert self.postgres is not None
        return self.postgres.pid

    @contextmanager
    def checkpointer_stopped(self) -> Iterator[None]:
        """While the block lasts no checkpoint comes to its end, so that a backup cannot begin."""
        (checkpointer,) = [
            process for process in psutil.Process(self.pid).children() if "checkpointer" in " ".join(_words(process))
        ]
        checkpointer.suspend()
        try:
            yield
        finally:
            checkpointer.resume()

    def flushed(self) -> Lsn:
        return Lsn.parse(self.sql("SELECT pg_current_wal_flush_lsn()::text"))

    def received(self, position: Lsn) -> bool:
        return Lsn.parse(self.sql("SELECT coalesce(pg_last_wal_replay_lsn(), '0/0')::text")) >= position

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        if self.postgres is not None:
            self.postgres.send_signal(how)
            self.postgres.wait(30)
            self.postgres = None

    def serve(self) -> Peer:
        """Start the backup server."""
        with (self.root / "server.log").open("ab") as log:
            self.server = subprocess.Popen(
                [sys.executable, "-m", "backupserver.main", "-c", self.root / "manatee.toml"],
                stderr=log,
                cwd=_REPOSITORY,
            )
        until(lambda: '"serving"' in self.server_log(), 20)
        return self

    def server_log(self) -> str:
        return (self.root / "server.log").read_text()

    def senders(self) -> list[psutil.Process]:
        """The processes that send this peer's data."""

        def sends(words: list[str]) -> bool:
            if self.dataset is not None:
                sending = words[0].endswith("zfs") and words[1:2] == ["send"]
                # zfs(8) takes the snapshot's name apart in place.
                return sending and any(word.partition("@")[0] == self.dataset for word in words)
            return "pg_basebackup" in words[0] and f"--host={self.root}/socket" in words

        return [process for process in psutil.process_iter() if sends(_words(process))]

    def receivers(self) -> list[psutil.Process]:
        """The processes that receive data for this peer."""

        def receives(words: list[str]) -> bool:
            receiving = words[0].endswith("zfs") and words[1:2] == ["receive"]
            return receiving and any(word.startswith(f"{self.dataset}.restoring-") for word in words)

        return [process for process in psutil.process_iter() if receives(_words(process))]

    def beside(self) -> list[str]:
        """What a restore has left beside the data, isolated data and holds included; empty when all is as it was."""
        if self.dataset is None:
            return sorted(self.names - {"data"})
        parent = self.dataset.rpartition("/")[0]
        names = zfs.run("zfs", "list", "-H", "-r", "-t", "filesystem,snapshot", "-o", "name,userrefs", parent)
        found = [line.split() for line in names.splitlines()]
        left = [name for name, _ in found if name.partition("@")[0] not in (parent, self.dataset, f"{parent}/isolated")]
        return left + [f"{name} is held" for name, holds in found if holds not in "-0"]

    def streams(self) -> int:
        """How many snapshots its backup server says it is sending."""
        with urllib.request.urlopen(f"{self.settings.identity.backup_url}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        return int(float(text.split("\nmanatee_backup_streams ")[1].split()[0]))

    def end(self) -> None:
        for process in (self.server, self.postgres):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGQUIT if process is self.postgres else signal.SIGTERM)
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    @property
    def names(self) -> set[str]:
        """What lies beside the data: `{"data"}` when nothing was left behind."""
        return {path.name for path in (self.root / "db").iterdir()}


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() or [""]
    except psutil.Error:
        return [""]


class Sandbox:
    """A directory that PostgreSQL's user can reach; the peers in it end with it."""

    def __init__(self, root: Path, user: str | None) -> None:
        self.root = root
        self.user = user
        self.as_user: dict[str, Any] = {}
        if user is not None:
            self.as_user = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
        self._peers: list[Peer] = []

    def peer(
        self, postgresql: Installation, *, dataset: str | None = None, tls: Tls | None = None, **backup: float
    ) -> Peer:
        """Its backup server's settings are `backup`; its data are in ZFS if it has a dataset."""
        peer = Peer(self, postgresql, dataset=dataset, tls=tls, **backup)
        self._peers.append(peer)
        return peer

    def initialize(self, peer: Peer) -> None:
        """A new database: the template of the version is copied."""
        if peer.dataset is not None:
            with ThreadPoolExecutor(1) as elsewhere:  # a loop may run here
                elsewhere.submit(asyncio.run, open_storage(peer.settings).prepare()).result()
        shutil.copytree(self.template(peer.postgresql), peer.data, symlinks=True)
        self.give(peer.data, deep=True)

    def template(self, postgresql: Installation) -> Path:
        """A new database of this version, made once."""
        path = self.root.parent / f"template-{postgresql.major}"
        if not path.exists():
            path.mkdir()
            self.give(path)
            command = [postgresql.bin_dir / "initdb", "-D", path, "-U", "postgres", "--auth=trust", "-N", "-k"]
            subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL, cwd="/", **self.as_user)
            with (path / "pg_hba.conf").open("a") as hba:
                hba.write("host all all 127.0.0.0/8 trust\nhost replication all 127.0.0.0/8 trust\n")
        return path

    def give(self, path: Path, *, deep: bool = False) -> None:
        """To PostgreSQL's user."""
        if self.user is not None:
            for each in [path, *(path.rglob("*") if deep else ())]:
                shutil.chown(each, self.user, self.as_user["group"])

    def end(self) -> None:
        for peer in self._peers:
            peer.end()


_number = itertools.count()


@contextmanager
def opened(directory: Path, user: str | None, *, remove: bool = True) -> Iterator[Sandbox]:
    """A sandbox below `directory`, for as long as the block lasts; with `remove` false its files go with others'."""
    root = directory / "backup" / str(next(_number))
    root.mkdir(parents=True)
    sandbox = Sandbox(root, user)
    try:
        yield sandbox
    finally:
        sandbox.end()
        if remove:
            shutil.rmtree(root)
