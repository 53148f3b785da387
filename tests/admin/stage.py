"""What the end-to-end tests stand on: servers, a shard's nodes in ZooKeeper, and the program itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from click.testing import CliRunner

from demo.postgresql import Installation
from demo.zookeeper import ZooKeeperServer
from manatee.cluster import ClusterState, Peer, application_name
from manatee.coordination import Coordination
from tests.admin.shapes import peer

REPOSITORY = Path(__file__).parents[2]
PORT = 5432
ZONES = {"a": 2, "b": 3, "c": 4}
PEERS = tuple(peer(f"{letter * 8}-0000-4000-8000-000000000000", f"127.14.0.{n}") for letter, n in ZONES.items())

T = TypeVar("T")


async def until(look: Callable[[], Awaitable[T]], *, timeout: float = 20.0) -> T:
    """Look until the answer is true; the answer."""
    deadline = time.monotonic() + timeout
    while not (answer := await look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"did not come true within {timeout} s")
        await asyncio.sleep(0.02)
    return answer


# --- The program --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One call of `manatee-adm`, as a shell sees it."""

    status: int
    out: str
    err: str
    seconds: float


def environment(**values: str) -> dict[str, str]:
    return {"PATH": os.defpath, "PYTHONPATH": str(REPOSITORY), "LC_ALL": "C.UTF-8", **values}


_one_at_a_time = asyncio.Lock()


async def manatee_adm(*arguments: object, typed: str = "", **values: str) -> Run:
    """Call it in this process, which is quicker, with these arguments and only these environment variables."""
    from admin.main import cli

    began = time.monotonic()
    names = {"ZK_IPS": None, "SHARD": None, "MANATEE_SITTER_CONFIG": None}
    async with _one_at_a_time:
        found = await asyncio.to_thread(
            CliRunner().invoke, cli, [str(each) for each in arguments], input=typed, env={**names, **values}
        )
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return Run(found.exit_code, found.stdout, found.stderr, time.monotonic() - began)


async def program(*arguments: object, **values: str) -> Run:
    """Call it as a shell does: what it costs to load and to end counts too."""
    began = time.monotonic()
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "admin.main", *map(str, arguments),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=environment(**values), cwd="/",
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            out, err = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    assert child.returncode is not None
    assert b"Traceback" not in err, err.decode()
    return Run(child.returncode, out.decode(), err.decode(), time.monotonic() - began)


# --- ZooKeeper ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coordinated:
    """A shard in ZooKeeper, as the tests write it."""

    name: str
    zookeeper: ZooKeeperServer
    coordination: Coordination

    @property
    def options(self) -> tuple[str, ...]:
        return ("-z", self.zookeeper.servers, "-s", self.name)

    async def write(self, state: ClusterState) -> None:
        view = await self.coordination.read()
        await self.coordination.write_state(state, version=view.version)

    async def state(self) -> ClusterState:
        state = (await self.coordination.read()).state
        assert state is not None
        return state

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """ZooKeeper accepts connections and answers nothing."""
        pid = self.zookeeper.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    async def write_after_garbage(self, state: ClusterState) -> None:
        """Over a state that does not validate, which nothing of ours would do."""
        await self.raw("state", state.content())

    async def raw(self, path: str, content: bytes) -> None:
        """Put any content at a path below the shard's."""
        from kazoo.client import KazooClient

        def put() -> None:
            client = KazooClient(hosts=self.zookeeper.servers)
            client.start(timeout=10)
            try:
                full = f"{self.coordination.root}/{path}"
                client.ensure_path(full)
                client.set(full, content)
            finally:
                client.stop()
                client.close()

        await asyncio.to_thread(put)


# --- PostgreSQL ---------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """One PostgreSQL server of a peer."""

    peer: Peer
    installation: Installation
    user: str | None
    data: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        with (self.data.parent / f"{self.data.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.installation.bin_dir / "postgres", "-D", self.data],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/", **_as(self.user),
            )  # fmt: skip

    def stop(self) -> None:
        """At once, also if it was suspended."""
        if self.process is not None:
            self.send(signal.SIGCONT)
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(20)
            self.process = None

    def send(self, number: signal.Signals) -> None:
        """To the postmaster and its children."""
        import psutil

        assert self.process is not None
        postmaster = psutil.Process(self.process.pid)
        for each in [postmaster, *postmaster.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(number)

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """It accepts connections, as the kernel does that for it, and answers nothing."""
        self.send(signal.SIGSTOP)
        try:
            yield
        finally:
            self.send(signal.SIGCONT)


Chain = Sequence[Server]


def _as(user: str | None) -> Any:
    return {} if user is None else {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


@contextlib.contextmanager
def chain_of_three(installation: Installation, user: str | None, directory: Path) -> Iterator[Chain]:
    """Primary, sync and async, streaming from each other, one after the other."""
    directory.mkdir(mode=0o755)
    if user is not None:
        shutil.chown(directory, user)
    servers = [Server(each, installation, user, directory / f"data{n}") for n, each in enumerate(PEERS)]
    first = servers[0].data
    subprocess.run(
        [installation.bin_dir / "initdb", "-D", first, "-U", "postgres", "-A", "trust", "-N", "--no-instructions"],
        check=True, capture_output=True, cwd="/", **_as(user),
    )  # fmt: skip
    (first / "pg_hba.conf").write_text("host all all 127.0.0.0/8 trust\nhost replication all 127.0.0.0/8 trust\n")
    for server in servers[1:]:
        shutil.copytree(first, server.data)
        (server.data / "standby.signal").touch()
    for server, upstream in zip(servers, [None, *servers], strict=False):
        _configure(server, upstream)
    for path in directory.rglob("*"):
        if user is not None:
            shutil.chown(path, user)
    try:
        for server in servers:
            server.start()
        _await_streaming(servers)
        yield servers
    finally:
        for server in servers:
            server.stop()


def _await_streaming(servers: Chain, timeout: float = 30.0) -> None:
    """Until each but the last has a standby that streams."""
    import psycopg

    ends = time.monotonic() + timeout
    waiting = list(servers[:-1])
    while waiting:
        assert time.monotonic() < ends, "the servers do not stream from each other"
        try:
            with psycopg.connect(host=waiting[0].peer.ip, user="postgres", dbname="postgres") as connection:
                row = connection.execute(
                    "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
                ).fetchone()
        except psycopg.OperationalError:
            row = None
        if row is not None and row[0]:
            waiting.pop(0)
        else:
            time.sleep(0.02)


def _configure(server: Server, upstream: Server | None) -> None:
    lines = [
        f"listen_addresses = '{server.peer.ip}'",
        f"port = {PORT}",
        "unix_socket_directories = ''",
        "shared_buffers = 16MB",
        "max_connections = 100",
        "fsync = off",
        "wal_retrieve_retry_interval = 100ms",
        "hot_standby = on",
    ]
    if upstream is None:
        lines.append(f"synchronous_standby_names = '\"{application_name(PEERS[1])}\"'")
    else:
        name = application_name(server.peer)
        conninfo = f"host={upstream.peer.ip} port={PORT} user=postgres application_name={name}"
        lines.append(f"primary_conninfo = '{conninfo}'")
    with (server.data / "postgresql.conf").open("a") as conf:
        conf.write("\n".join(lines) + "\n")
    server.data.chmod(0o700)


def state_of_chain(**changes: object) -> ClusterState:
    """Generation 1 of the three servers."""
    a, b, c = (each.document() for each in PEERS)
    document = {"generation": 1, "primary": a, "sync": b, "async": [c], "deposed": [], "initWal": "0/00000000"}
    return ClusterState.of({**document, **changes})
