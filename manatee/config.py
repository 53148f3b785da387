"""One TOML file per peer, read once and validated: `load` is the only way to settings.

Every time is in seconds. Every mistake is one `BadConfiguration` that names the key, the value and what was expected.
`etc/manatee.toml` is the commented sample.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from manatee.cluster import Peer

Seconds = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=1, le=65535)]


EXIT_BAD_CONFIGURATION = 96
"""Exit status of a daemon whose settings cannot be used: SMF's SMF_EXIT_ERR_CONFIG, so that nobody restarts it until
they have been put right (smf_method(7)); systemd is told the same by RestartPreventExitStatus."""

SOCKET_PATH = 107
"""Bytes that the path of a Unix socket may have (unix(7))."""


class BadConfiguration(Exception):
    """The settings file cannot be used; the message says which key, what it holds and what was expected."""


def _address(written: str) -> str:
    ipaddress.ip_address(written)
    return written


def _role_name(written: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", written) or len(written) > 63:
        raise ValueError("expected letters, digits, dots, dashes and underscores, 63 at most")
    if written == "postgres" or written.startswith("pg_"):
        raise ValueError("expected a role of its own: postgres and pg_... are PostgreSQL's")
    return written


def _shard_name(written: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", written):
        raise ValueError("expected letters, digits, dots, dashes and underscores")
    return written


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shard(_Section):
    name: Annotated[str, AfterValidator(_shard_name)]
    """The shard's name; its place in ZooKeeper is `/manatee/<name>` unless `path` says otherwise."""
    path: Annotated[str, Field(pattern=r"^/.*[^/]$")] | None = None
    singleton: bool = False
    """Set the shard up, and run it, with this one peer: one-node-write mode."""

    @property
    def root(self) -> str:
        return self.path or f"/manatee/{self.name}"


class PeerSettings(_Section):
    ip: Annotated[str, AfterValidator(_address)]
    """The address that the other peers and the clients reach this one at; a literal address."""
    zone_id: Annotated[str, Field(min_length=1)]
    postgres_port: Port = 5432
    backup_port: Port = 12345
    status_port: Port | None = None
    """Of the sitter's HTTP server; one above PostgreSQL's unless set."""


class ZooKeeper(_Section):
    servers: Annotated[str, Field(pattern=r"^[^\s:,]+:\d+(,[^\s:,]+:\d+)*$")]
    """`host:port`, several separated by commas."""
    session_timeout: Annotated[float, Field(ge=1)] = 10.0
    """How long a dead peer stays in the active list; ZooKeeper rounds it up to its next tick."""
    request_timeout: Seconds = 5.0


class Postgres(_Section):
    bin_dir: Path
    """Where `postgres`, `initdb`, `pg_controldata`, `pg_waldump` and `pg_basebackup` are."""
    user: str | None = None
    """Whom PostgreSQL runs as when the sitter is root; required then."""
    config_file: Path | None = None
    """The operator's postgresql.conf: the base that the sitter's own settings go on top of."""
    hba_file: Path | None = None
    ident_file: Path | None = None
    """Templates of pg_hba.conf and pg_ident.conf, copied into the data directory after initdb and after a restore."""
    socket_dir: Path
    """Of PostgreSQL's Unix socket: a directory that only the sitter's and PostgreSQL's users may enter."""
    start_timeout: Seconds = 60.0
    """For a start that makes no progress; recovery that does is never given up."""
    query_timeout: Seconds = 5.0
    health_interval: Seconds = 2.0
    health_timeout: Seconds = 5.0
    """A fresh connection and a query that take longer count as PostgreSQL's death."""
    crash_restart_timeout: Seconds = 5.0
    """After a crash: how long until a primary makes way, if a takeover is possible."""
    handover_timeout: Seconds = 5.0
    seal_timeout: Seconds = 5.0
    """How long a sealed peer waits for a candidate to have flushed everything."""
    sync_grace: Seconds = 10.0
    """How long a link of the chain may be unready before its neighbours pass it by."""
    rejoin: Literal["never", "safe", "rewind", "rebuild"] = "safe"
    """What a deposed or returning peer may do by itself: nothing; rejoin when its WAL is proven a prefix; also rewind
    data that have diverged (pg_rewind); also restore them anew."""
    manage_hba: bool = True
    """Whether the templates are copied into the data directory; if not, its own files stay as they are."""
    replication_user: Annotated[str, AfterValidator(_role_name)] | None = None
    """The role that peers connect to each other as, with a password (SCRAM); the superuser without one unless set. The
    primary's sitter creates it."""
    replication_password_file: Path | None = None
    """Holds that role's password; required with `replication_user`, and the same on every peer."""
    max_slot_wal_keep_size: Annotated[int, Field(ge=1, le=1 << 30)] | None = None
    """Megabytes of WAL that a physical replication slot may keep for another peer; no slots are used unless set."""

    @model_validator(mode="after")
    def _complete(self) -> Postgres:
        if (self.replication_user is None) != (self.replication_password_file is None):
            missing = "replication_user" if self.replication_user is None else "replication_password_file"
            raise ValueError(f"{missing} is missing: the role and the file with its password go together")
        return self


class Storage(_Section):
    driver: Literal["basebackup", "zfs"] = "basebackup"
    directory: Path
    """Holds `data/`, PostgreSQL's data directory; with ZFS the mountpoint of the dataset."""
    dataset: str | None = None
    """The ZFS dataset; required by the zfs driver."""
    zfs_interface: Literal["auto", "libzfs_core", "zfs"] = "auto"
    """How the zfs driver reaches ZFS: the library where it imports, else the command; or one of them, forced."""
    keep_isolated: Annotated[int, Field(ge=0)] = 0
    """How many of the data that restores have replaced are kept, once PostgreSQL runs on the new ones."""

    @model_validator(mode="after")
    def _complete(self) -> Storage:
        if self.driver == "zfs" and self.dataset is None:
            raise ValueError('dataset is missing: expected the name of a ZFS dataset, since driver is "zfs"')
        if self.dataset is not None and not re.fullmatch(r"[A-Za-z0-9][\w.:-]*(/[\w.:-]+)+", self.dataset, re.ASCII):
            raise ValueError(f"dataset = {self.dataset!r}: expected pool/name, as zfs list shows it, not a whole pool")
        return self

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"


class Backup(_Section):
    token_file: Path
    """Holds the bearer token that the shard's peers show to each other's backup servers."""
    max_streams: Annotated[int, Field(ge=1)] = 2
    bandwidth_limit: Annotated[int, Field(ge=1)] | None = None
    """Bytes per second that this peer's backup server sends, all its streams together; unlimited unless set."""
    idle_timeout: Seconds = 30.0
    """A transfer that moves no byte for this long is given up, on both ends."""
    retry_delay: Seconds = 1.0
    """After a failed restore; doubles with every failure up to `retry_delay_max`."""
    retry_delay_max: Seconds = 60.0


class Snapshotter(_Section):
    interval: Seconds = 3600.0
    keep: Annotated[int, Field(ge=1)] = 24


class Sitter(_Section):
    state_dir: Path
    """Outside the data and its dataset: what the peer must remember, and the configuration rendered for PostgreSQL."""
    evict_dead: bool = True
    """Whether primary and sync remove each other from the active list, when they see that the other is dead, instead of
    waiting for its session to end."""

    @property
    def rewind_mark(self) -> Path:
        """There while the data are being rewound, and after a rewind that was cut short: they are of no use then."""
        return self.state_dir / "rewinding.json"


class Service(_Section):
    manager: Literal["supervisor", "smf", "systemd"] = "smf"
    """Who starts and stops the daemons; `manatee-adm rebuild` asks it."""
    sitter: str = "manta/application/manatee-sitter"
    """The sitter's name there: an FMRI, a unit, or the supervisor's word for it."""
    supervisor_socket: Path | None = None

    @model_validator(mode="after")
    def _complete(self) -> Service:
        if self.manager == "supervisor" and self.supervisor_socket is None:
            raise ValueError('supervisor_socket is missing: expected a path, since manager is "supervisor"')
        return self


class Log(_Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"
    """`auto` is readable text on a terminal and JSON elsewhere."""


class Tls(_Section):
    """Encryption between the peers: their replication connections and their backup servers. All peers or none."""

    ca_file: Path
    """Certificates of the authority that signed every peer's."""
    cert_file: Path
    key_file: Path


_AT_START = {
    **dict.fromkeys(("shard", "peer", "zookeeper", "service", "log", "snapshotter", "tls")),
    "sitter": ("state_dir",),
    "postgres": ("bin_dir", "user", "socket_dir"),
    "storage": ("driver", "directory", "dataset", "zfs_interface"),
    "backup": (),
}
"""What only a start can take up: whole sections, or some of their settings. The files that `tls` and others name are
read again; where they are is not."""


@dataclass(frozen=True)
class Changes:
    """What has become of a settings file that was read again; settings by their names, `section.key`."""

    made: tuple[str, ...] = ()
    need_restart: tuple[str, ...] = ()
    """Different in the file, and as they were in the daemon."""


class Settings(_Section):
    """One object per daemon, shared by all its parts: `take_over` changes it for all of them at one moment."""

    model_config = ConfigDict(frozen=False, extra="forbid")

    shard: Shard
    peer: PeerSettings
    zookeeper: ZooKeeper
    postgres: Postgres
    storage: Storage
    backup: Backup
    snapshotter: Snapshotter = Snapshotter()
    sitter: Sitter
    service: Service = Service()
    log: Log = Log()
    tls: Tls | None = None
    """Plain connections unless set."""

    @model_validator(mode="after")
    def _fit_together(self) -> Settings:
        here = self.peer
        ports = (here.postgres_port, here.backup_port, self.status_port)
        if len(set(ports)) < len(ports):
            raise ValueError(
                f"peer: postgres_port, backup_port and status_port are {', '.join(map(str, ports))}:"
                " expected three different ports (status_port is one above postgres_port unless set)"
            )
        if self.sitter.state_dir.is_relative_to(self.storage.data_dir):
            raise ValueError(
                f"sitter.state_dir = '{self.sitter.state_dir}': expected a place outside of {self.storage.data_dir},"
                " which snapshots carry and restores replace"
            )
        socket = len(os.fsencode(self.postgres.socket_dir / f".s.PGSQL.{here.postgres_port}.lock"))
        if socket > SOCKET_PATH:
            raise ValueError(
                f"postgres.socket_dir = '{self.postgres.socket_dir}': expected a path shorter by"
                f" {socket - SOCKET_PATH} bytes, since a Unix socket's may have {SOCKET_PATH}"
            )
        return self

    def take_over(self, newer: Settings) -> Changes:
        """Become `newer`, but for what only a start can take up."""
        made, need_restart = [], []
        for section in type(self).model_fields:
            old, new = getattr(self, section), getattr(newer, section)
            different = _different(old, new)
            fixed = _AT_START[section]
            kept = different if fixed is None else [key for key in different if key in fixed]
            need_restart += [f"{section}.{key}" for key in kept]
            made += [f"{section}.{key}" for key in different if key not in kept]
            if fixed is not None:
                setattr(self, section, new.model_copy(update={key: getattr(old, key) for key in kept}))
        return Changes(tuple(made), tuple(need_restart))

    @property
    def status_port(self) -> int:
        return self.peer.status_port or self.peer.postgres_port + 1

    @property
    def identity(self) -> Peer:
        """This peer as ZooKeeper knows it."""
        here = self.peer
        host = f"[{here.ip}]" if ":" in here.ip else here.ip
        return Peer(
            id=f"{here.ip}:{here.postgres_port}:{here.backup_port}",
            ip=here.ip,
            zone_id=here.zone_id,
            pg_url=f"tcp://postgres@{host}:{here.postgres_port}/postgres",
            backup_url=f"{'https' if self.tls else 'http'}://{host}:{here.backup_port}",
        )


def _different(old: BaseModel | None, new: BaseModel | None) -> list[str]:
    """The keys in which two sections differ; all of them if one is not there."""
    there = old or new
    if there is None:
        return []
    return [key for key in type(there).model_fields if getattr(old, key, None) != getattr(new, key, None)]


def load(path: Path | str) -> Settings:
    """The settings in the TOML file at `path`; raises BadConfiguration."""
    try:
        document = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise BadConfiguration(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfiguration(f"{path}: not TOML: {error}") from error
    try:
        return Settings.model_validate(document)
    except ValidationError as error:
        raise BadConfiguration(f"{path}: " + "; ".join(_mistakes(error))) from error


def _mistakes(error: ValidationError) -> list[str]:
    """One clause per mistake: the key, what it holds, what was expected."""
    clauses = []
    for mistake in error.errors():
        key = ".".join(str(part) for part in mistake["loc"])
        if mistake["type"] == "missing":
            clauses.append(f"{key} is missing")
        elif mistake["type"] == "extra_forbidden":
            clauses.append(f"{key} is not a setting")
        elif isinstance(mistake["input"], dict):
            clauses.append(f"{key}: ".removeprefix(": ") + mistake["msg"].removeprefix("Value error, "))
        else:
            expected = mistake["msg"].removeprefix("Value error, ").removeprefix("Input ")
            clauses.append(f"{key} = {mistake['input']!r}: {expected}")
    return clauses
