"""A whole shard on this machine: ZooKeeper and some peers, each on a loopback address of its own with the same ports.

The processes are the real ones, run by the supervisor as SMF or systemd would run them. Leaving the `async with` block
ends them all and removes what they wrote; `demo.directory` clears what a killed run left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import structlog

from demo import zfs
from demo.directory import run_directory, user_name
from demo.postgresql import Installation, choose, unprivileged_user, within_reach
from demo.process import busy
from demo.supervisor import Program, Supervisor
from demo.zookeeper import ZooKeeperServer
from manatee.cluster import ClusterState, Peer, PeerStatus
from manatee.config import Settings, load

DAEMONS = ("sitter", "backupserver", "snapshotter")

POSTGRESQL_CONF = """\
# The base that an operator would give; the sitter's own settings go on top of it.
max_connections = 50
shared_buffers = 32MB
max_wal_size = 256MB
log_line_prefix = '%m [%p] %q%u@%d '
"""
PG_HBA_CONF = """\
# Everything here is one machine: the peers and their clients are on loopback. A production file is etc/pg_hba.conf.
local all         all              peer map=manatee
local replication all              peer map=manatee
host  all         all  127.0.0.0/8 trust
host  replication all  127.0.0.0/8 trust
"""
PG_IDENT_CONF = """\
# Who may be which role over the Unix socket: map, system user, role.
manatee root    postgres
manatee {owner} postgres
"""


class ShardFailed(Exception):
    """The local shard cannot be started or does not become what was waited for; the message says what is the matter."""


@dataclass(frozen=True)
class LocalPeer:
    """One peer: its settings, as its daemons read them, and where its things are."""

    number: int
    settings: Settings
    directory: Path

    @property
    def id(self) -> str:
        return self.settings.identity.id

    @property
    def label(self) -> str:
        return self.settings.identity.label

    @property
    def ip(self) -> str:
        return self.settings.peer.ip

    @property
    def settings_file(self) -> Path:
        return self.directory / "manatee.toml"

    @property
    def programs(self) -> tuple[str, ...]:
        """What the supervisor calls its daemons."""
        return tuple(program_name(daemon, self.number) for daemon in DAEMONS)

    def log(self, daemon: str) -> Path:
        return self.directory / f"{daemon}.log"


def program_name(daemon: str, number: int) -> str:
    return f"{daemon}-{number}"


@dataclass(frozen=True)
class Seen:
    """The shard as ZooKeeper has it at one moment."""

    state: ClusterState | None
    present: Mapping[str, PeerStatus | None]
    """Peers by id, with what each says of itself."""

    def ready(self, peer: Peer) -> bool:
        status = self.present.get(peer.id)
        return (
            status is not None
            and status.ready
            and self.state is not None
            and status.generation == self.state.generation
        )

    def complete(self, count: int) -> bool:
        """`count` peers are in the chain, all of them ready; none is deposed."""
        state = self.state
        return (
            state is not None
            and not state.deposed
            and len(state.assigned) == count
            and all(map(self.ready, state.assigned))
        )

    def __str__(self) -> str:
        if self.state is None:
            return f"no cluster state yet, {len(self.present)} peers present"
        roles = [("primary", self.state.primary), *((("sync", self.state.sync),) if self.state.sync else ())]
        roles += [("async", peer) for peer in self.state.asyncs]
        words = [f"{role} {peer.ip} {self._word(peer)}" for role, peer in roles]
        words += [f"deposed {peer.ip}" for peer in self.state.deposed]
        return f"generation {self.state.generation}: " + ", ".join(words)

    def _word(self, peer: Peer) -> str:
        status = self.present.get(peer.id)
        if peer.id not in self.present:
            return "absent"
        if status is not None and status.restoring:
            return "restoring"
        return "ready" if self.ready(peer) else "not ready"


class LocalShard:
    """ZooKeeper and one peer for each of `addresses`.

    `session_timeout` is in seconds; `overrides` are settings by section that all peers get on top. With the storage
    driver `zfs` every peer has a dataset of its own in a pool on a file (`demo.zfs`). Entering raises ShardFailed if a
    port is taken or there is no ZFS, before anything is started; it does not wait until the shard is complete.

    >>> async with LocalShard(["127.0.0.2", "127.0.0.3", "127.0.0.4"]) as shard:
    ...     await shard.wait_for(lambda seen: seen.complete(3), timeout=60)
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        name: str = "demo",
        zookeeper: tuple[str, int] = ("127.0.0.1", 2181),
        postgresql: Installation | None = None,
        storage: Literal["basebackup", "zfs"] = "basebackup",
        session_timeout: float = 4.0,
        postgres_port: int = 5432,
        backup_port: int = 12345,
        overrides: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        self.name = name
        self.storage = storage
        self.postgresql = postgresql or choose()
        self.peers: tuple[LocalPeer, ...] = ()
        self.addresses = tuple(addresses)
        self._zookeeper_address = zookeeper
        self._ports = (postgres_port, backup_port)
        self.session_timeout = session_timeout
        self.pool: str | None = None
        """The ZFS pool, where there is one."""
        self._overrides = overrides or {}
        self._closing = contextlib.AsyncExitStack()
        self._user = unprivileged_user()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            self.directory = await self.prepare(stack)
            self.pool = self._open_pool(stack)
            self.postgresql = within_reach(self.postgresql, self._user, self.directory)
            self._write_common()
            self.peers = tuple(self._write_peer(number, ip) for number, ip in enumerate(self.addresses, 1))
            programs = [self.command(daemon, peer) for peer in self.peers for daemon in DAEMONS]
            programs += self.other_programs()
            self.supervisor = await stack.enter_async_context(Supervisor(programs, socket=self.socket))
            await self.start_zookeeper(stack)
            await self._start_coordination(stack)
            for peer in self.first_peers:
                await self.start_peer(peer)
            self._closing = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._closing.aclose()

    @property
    def socket(self) -> Path:
        """The supervisor's Unix socket."""
        return self.directory / "supervisor.socket"

    @property
    def environment(self) -> dict[str, str]:
        """What `manatee-adm` takes to be about this shard."""
        return {"ZK_IPS": self.servers, "SHARD": self.name}

    @property
    def last_words(self) -> list[str]:
        """The last lines that each sitter has logged."""
        lines = []
        for peer in self.peers:
            with contextlib.suppress(OSError):
                said = peer.log("sitter").read_text(errors="replace").splitlines()
                lines += [f"{peer.label} {line}" for line in said[-10:]]
        return lines

    # --- Where it is: for those who have another place for it -----------------------------------------------------

    postgresql_conf = POSTGRESQL_CONF
    pg_hba_conf = PG_HBA_CONF

    async def prepare(self, stack: contextlib.AsyncExitStack) -> Path:
        """The directory for everything. Raises ShardFailed if it is already clear that the shard cannot run."""
        directory = stack.enter_context(run_directory(readable_by=self._user))
        self._check_ports()
        return directory

    @property
    def servers(self) -> str:
        """ZooKeeper's connect string."""
        address, port = self._zookeeper_address
        return f"{address}:{port}"

    async def start_zookeeper(self, stack: contextlib.AsyncExitStack) -> None:
        """Returns when it serves; the supervisor is there already. It ends with the stack."""
        address, port = self._zookeeper_address
        self.zookeeper = ZooKeeperServer(self.directory / "zookeeper", address=address, port=port)
        await stack.enter_async_context(self.zookeeper)

    def other_programs(self) -> Sequence[Program]:
        """What the supervisor has besides the peers' daemons."""
        return ()

    @property
    def first_peers(self) -> Sequence[LocalPeer]:
        """Those that are started in the beginning."""
        return self.peers

    def disk(self, _number: int, directory: Path) -> Path:
        """The directory that is to hold a peer's data and its memory, made; `directory` is for the rest of the peer."""
        return directory

    def settings_of(self, number: int, ip: str, directory: Path, disk: Path) -> dict[str, dict[str, object]]:
        """What a peer's daemons read, by section."""
        common = self.directory
        postgres: dict[str, object] = {
            "bin_dir": self.postgresql.bin_dir,
            "config_file": directory / "postgresql.conf",
            "hba_file": common / "pg_hba.conf",
            "ident_file": common / "pg_ident.conf",
            "socket_dir": directory / "socket",
        }
        if self._user is not None:
            postgres["user"] = self._user
        settings: dict[str, dict[str, object]] = {
            "shard": {"name": self.name},
            "peer": {
                "ip": ip,
                "zone_id": str(uuid.uuid5(uuid.NAMESPACE_OID, ip)),
                "postgres_port": self._ports[0],
                "backup_port": self._ports[1],
            },
            "zookeeper": {"servers": self.servers, "session_timeout": self.session_timeout},
            "postgres": postgres,
            "storage": {"driver": self.storage, "directory": disk / "store"},
            "backup": {"token_file": common / "token"},
            "sitter": {"state_dir": disk / "state"},
            "service": {
                "manager": "supervisor",
                "sitter": program_name("sitter", number),
                "supervisor_socket": self.socket,
            },
        }
        if self.pool is not None:
            settings["storage"]["dataset"] = self.dataset(number)
        for section, values in self._overrides.items():
            settings.setdefault(section, {}).update(values)
        return settings

    def command(self, daemon: str, peer: LocalPeer) -> Program:
        """How a daemon is run."""
        # A program of this size gains nothing from malloc arenas for each thread, and they count as resident memory.
        env = {"MALLOC_ARENA_MAX": "2", "PYTHONUNBUFFERED": "1"}
        argv = (script(f"manatee-{daemon}"), "-c", peer.settings_file)
        return Program(program_name(daemon, peer.number), argv, peer.log(daemon), env, grace=20.0)

    # --- The peers ----------------------------------------------------------------------------------------------

    def peer(self, id: str) -> LocalPeer:
        return next(peer for peer in self.peers if peer.id == id)

    async def start_peer(self, peer: LocalPeer) -> None:
        """Start its daemons, unless they run."""
        for program in peer.programs:
            await self.supervisor.start(program)

    async def stop_peer(self, peer: LocalPeer) -> None:
        """Stop its daemons as a service manager does, all at the same time; returns when they are gone."""
        async with asyncio.TaskGroup() as group:
            for program in peer.programs:
                group.create_task(self.supervisor.stop(program))

    async def kill_peer(self, *peers: LocalPeer) -> None:
        """SIGKILL all that runs on these peers at one moment, PostgreSQL too; it stays down until it is started."""
        await self.supervisor.kill(*(program for peer in peers for program in peer.programs))

    # --- What ZooKeeper knows -----------------------------------------------------------------------------------

    async def look(self) -> Seen:
        """Raises manatee.coordination's errors."""
        view = await self._coordination.read()
        return Seen(view.state, {active.peer.id: active.status for active in view.active})

    async def wait_for(
        self,
        condition: Callable[[Seen], object],
        *,
        timeout: float,
        what: str = "the shard",
        progress: Callable[[Seen], None] = lambda _: None,
    ) -> Seen:
        """The first moment at which the condition holds; ShardFailed, with what was seen last, after `timeout` seconds.

        `progress` is called with everything seen on the way.
        """
        from manatee.coordination import CoordinationError

        last: object = "nothing was seen yet"
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                seen = await self.look()
            except CoordinationError as error:
                last = error
            else:
                progress(seen)
                if condition(seen):
                    return seen
                last = seen
            await self._wait_for_news()
        raise ShardFailed(f"{what}: not within {timeout:.0f} s: {'; '.join([str(last), *self._deaths()])}")

    def _deaths(self) -> list[str]:
        """Which programs ended without being told to."""
        counts = {name: self.supervisor.status(name).deaths for peer in self.peers for name in peer.programs}
        return [f"{name} died {count} times" for name, count in counts.items() if count]

    async def declared(self, generation: int) -> float:
        """When a generation was first written, in seconds since the epoch by ZooKeeper's clock."""
        return min(entry.time for entry in await self._coordination.history() if entry.generation == generation)

    async def verify(self) -> str:
        """What `manatee-adm verify` complains of, in one line; empty if all is well."""
        process = await asyncio.create_subprocess_exec(
            script("manatee-adm"),
            "verify",
            env={**os.environ, **self.environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(30):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return "; ".join(output.decode().split("\n")).strip("; ") if process.returncode else ""

    async def _wait_for_news(self) -> None:
        """A change in ZooKeeper, or a moment."""
        self._news.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await self._news.wait()

    async def _start_coordination(self, stack: contextlib.AsyncExitStack) -> None:
        from manatee.coordination import Coordination

        self._news = asyncio.Event()
        settings = self.peers[0].settings
        self._coordination = Coordination(
            settings.zookeeper, settings.shard.root, structlog.get_logger(), self._news.set
        )
        stack.push_async_callback(self._coordination.close)
        await self._coordination.start()

    # --- What is written before anything is started -------------------------------------------------------------

    def _check_ports(self) -> None:
        postgres, backup = self._ports
        wanted = [self._zookeeper_address]
        wanted += [(ip, port) for ip in self.addresses for port in (postgres, postgres + 1, backup)]
        try:
            taken = [f"{ip}:{port}" for ip, port in wanted if busy(ip, port)]
        except OSError as error:
            raise ShardFailed(f"not all of {', '.join(self.addresses)} can be listened on: {error.strerror}") from error
        if taken:
            raise ShardFailed(
                f"in use by another program: {', '.join(taken)}; nothing was started. `ss -ltnp` shows"
                ' whose they are; other ports can be asked for, as with ARGS="--zookeeper-port 12181"'
            )

    def _open_pool(self, stack: contextlib.AsyncExitStack) -> str | None:
        if self.storage != "zfs":
            return None
        try:
            return stack.enter_context(zfs.pool(self.directory))
        except (zfs.NoZfs, zfs.ZfsFailed) as error:
            raise ShardFailed(str(error)) from error

    def _write_common(self) -> None:
        owner = self._user or user_name()
        for name, text in (
            ("postgresql.conf", self.postgresql_conf),
            ("pg_hba.conf", self.pg_hba_conf),
            ("pg_ident.conf", PG_IDENT_CONF.format(owner=owner)),
        ):
            (self.directory / name).write_text(text)
            (self.directory / name).chmod(0o644)
        token = self.directory / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_urlsafe(32) + "\n")

    def _write_peer(self, number: int, ip: str) -> LocalPeer:
        directory = self.directory / f"peer{number}"
        directory.mkdir(mode=0o711)
        disk = self.disk(number, directory)
        (disk / "state").mkdir(mode=0o755)
        for place in (disk / "store", directory / "socket"):
            place.mkdir(mode=0o700)
            if self._user is not None:
                shutil.chown(place, self._user)
        if self.pool is not None:
            zfs.create(f"{self.pool}/peer{number}")
        base = directory / "postgresql.conf"  # each peer's own, as on machines of their own
        base.write_text(f"include '{self.directory / 'postgresql.conf'}'\n")
        base.chmod(0o644)
        path = directory / "manatee.toml"
        path.write_text(as_toml(self.settings_of(number, ip, directory, disk)))
        return LocalPeer(number, load(path), directory)

    def dataset(self, number: int) -> str:
        """The dataset of a peer's data, which its sitter creates in one that is the peer's own."""
        return f"{self.pool}/peer{number}/manatee"


def script(name: str) -> Path:
    """One of this project's programs; raises ShardFailed where it is not installed."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise ShardFailed(f"{path} is not there: install this project into the environment of {sys.executable}")
    return path


def as_toml(document: Mapping[str, Mapping[str, object]]) -> str:
    """Sections of strings, paths, numbers and booleans. A TOML basic string is written as a JSON string is."""
    return "\n".join(_section_lines(document)) + "\n"


def _section_lines(document: Mapping[str, Mapping[str, object]]) -> Iterator[str]:
    for section, values in document.items():
        yield f"[{section}]"
        for key, value in values.items():
            written: Any = os.fspath(value) if isinstance(value, Path) else value
            yield f"{key} = {json.dumps(written, ensure_ascii=False)}"
        yield ""
