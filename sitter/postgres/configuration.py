"""The configuration that the promises rest on: rendered outside the data directory, and seen to be in force.

The operator's file is the base and is included; what the sitter owns comes after it and wins. What could win over that
again is `postgresql.auto.conf`, which lies in the data directory and travels with it: `clean_auto_conf` takes our
settings out of it before every start, and `read_back` tells after a reload what is not as it should be.

All values are written in their base units (milliseconds, blocks, plain numbers), as pg_settings shows them.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from manatee import link
from manatee.cluster import Peer, application_name
from manatee.config import Settings
from manatee.watched import together
from sitter.postgres import access, versions
from sitter.postgres.account import Account, remove_durably, write_at_once, write_durably
from sitter.postgres.controldata import FLOORS, ControlData
from sitter.postgres.errors import PostgresError
from sitter.postgres.tools import run_tool
from sitter.postgres.versions import of_data

NOBODY = "manatee: nobody"
"""A standby's name that nobody bears: commits that wait for it wait until the names change."""

ALONE = ""
"""No standby's name: commits wait for nobody. For a one-node-write primary only."""

FILE_NAME = "postgresql.conf"
"""Of the rendered file, in `sitter.state_dir`."""

HALF_OPEN = 8000
"""Milliseconds of silence after which either end of a replication connection gives it up."""

NOTICES = {
    "connect_timeout": "3",
    "keepalives_idle": "4",
    "keepalives_interval": "2",
    "keepalives_count": "2",
    "tcp_user_timeout": str(HALF_OPEN),
}
"""libpq's parameters by which a connection to another peer notices that its machine is gone."""

_DEFAULTS = {"wal_keep_size": "512"}
"""Better than PostgreSQL's own (megabytes here), but the operator's word counts."""

_SYNCFS = {"recovery_init_sync_method": "syncfs"}
"""The same, from PostgreSQL 14 on where the kernel has syncfs(2) and tells of its failures (Linux 5.8): recovery after
a crash begins by syncing what is there, and file by file that takes most of a restart in place."""

_AT_LEAST = {"max_wal_senders": 10, "max_replication_slots": 10, "superuser_reserved_connections": 3}
"""Below these the shard cannot work, whatever the operator's file says."""

_OWNED = {
    "hot_standby": "on",
    "fsync": "on",
    "full_page_writes": "on",
    "wal_log_hints": "on",
    "synchronous_commit": "on",
    # The sitter restarts a crashed server itself, with the write gate closed.
    "restart_after_crash": "off",
    # At its default of 5 s a promotion took 5.1 s one time in four (design, section 6).
    "wal_retrieve_retry_interval": "100",
    "wal_receiver_status_interval": "1",
    "wal_receiver_timeout": str(HALF_OPEN),
    "wal_sender_timeout": str(HALF_OPEN),
    "tcp_keepalives_idle": "4",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "2",
    # A standby follows its proven upstream and nothing else: no archive, no slot (`slots`), no target to stop at.
    "restore_command": "",
    "primary_slot_name": "",
    "recovery_target_timeline": "latest",
    "recovery_target": "",
    "recovery_target_lsn": "",
    "recovery_target_name": "",
    "recovery_target_time": "",
    "recovery_target_xid": "",
}

_ROLE = (
    "synchronous_standby_names",
    "default_transaction_read_only",
    "primary_conninfo",
    "max_standby_streaming_delay",
    "max_standby_archive_delay",
    "recovery_min_apply_delay",
)

_PLACES = (
    *("listen_addresses", "port", "unix_socket_directories"),
    *("data_directory", "hba_file", "ident_file", "wal_level", "allow_alter_system", "promote_trigger_file"),
)

PROMISED = frozenset({"fsync", "full_page_writes", "synchronous_commit"})
"""What a reload can change for the worse that holds from one start to the next."""

OWNED = frozenset({*_OWNED, *_ROLE, *_PLACES, *_AT_LEAST, *FLOORS})
"""Every setting that the sitter always decides on: none of them may stand in postgresql.auto.conf."""


@dataclass(frozen=True)
class Replication:
    """The part of the configuration that changes while the server runs; a reload is enough for all of it."""

    commits_wait_for: str
    """The application name of the one standby whose flush a commit waits for; or NOBODY, or ALONE."""
    read_only: bool
    """The write gate: `default_transaction_read_only`."""
    upstream: str | None = None
    """`primary_conninfo`, from `conninfo`; None on a primary, and on a standby that is to follow nobody."""
    sealed: bool = False
    """A sealed standby: nothing may keep replay from running to the end of what is there."""
    max_standby_delay: float = 30.0
    """Seconds for which a query on a standby may hold replay up; finite."""

    def values(self) -> dict[str, str]:
        """Every setting of this part, as pg_settings shows it when it is in force."""
        delay = "0" if self.sealed else str(round(self.max_standby_delay * 1000))
        values = {
            "synchronous_standby_names": standby_names(self.commits_wait_for),
            "default_transaction_read_only": "on" if self.read_only else "off",
            "primary_conninfo": self.upstream or "",
            "max_standby_streaming_delay": delay,
            "max_standby_archive_delay": delay,
        }
        return {**values, "recovery_min_apply_delay": "0"} if self.sealed else values


@dataclass(frozen=True)
class Wrong:
    """A setting that is not in force as it was rendered."""

    name: str
    wanted: str
    found: str
    source: str
    """Where the value in force comes from: a file, or PostgreSQL's word for it (`database`, `user`, ...)."""

    def __str__(self) -> str:
        return f"{self.name} is {self.found!r} by {self.source}, not {self.wanted!r}"


def file(settings: Settings) -> Path:
    """Where the rendered configuration stands."""
    return settings.sitter.state_dir / FILE_NAME


def standby_names(name: str) -> str:
    """The value of synchronous_standby_names that makes commits wait for the standby of this one name."""
    return "" if name == ALONE else '"' + name.replace('"', '""') + '"'


def conninfo(settings: Settings, upstream: Peer, *, database: str | None = None) -> str:
    """`primary_conninfo` with which this peer follows `upstream`, under the name that `upstream` knows it by.

    With a `database` (`postgres`), what pg_rewind wants to know of its source. Secrets are not in it: it names files,
    which PostgreSQL's user can read.
    """
    words = {
        **link.parameters(settings, upstream),
        **({"dbname": database} if database else {}),
        "application_name": application_name(settings.identity),
        **NOTICES,
    }
    return " ".join(f"{word}={_conninfo_value(value)}" for word, value in words.items())


async def foundation(
    settings: Settings, control: ControlData | None, *, version: int, timeout: float | None = None
) -> dict[str, str]:
    """The settings that hold from one start to the next: where the server is, what never changes, what is the least.

    For a standby `control` is its control file, whose values count where they are greater than the operator's; None for
    a primary. `version` is the programs' major version. Raises ToolFailed if the operator's file cannot be used,
    PostgresError if these programs cannot do what the settings ask for.
    """
    names = ("wal_level", *(("ssl_library",) if settings.tls else ()), *{**FLOORS, **_AT_LEAST})
    given = settings.postgres.config_file
    found = await _values(settings, given.absolute() if given else None, names, timeout=timeout)
    base = dict(zip(names, found, strict=True))
    if not base.get("ssl_library", "not asked"):
        where = settings.postgres.bin_dir
        raise PostgresError(f"[tls] is set, and the PostgreSQL in postgres.bin_dir = '{where}' was built without TLS")
    least: dict[str, int] = dict(_AT_LEAST)
    for name, value in (control.floors if control else {}).items():
        least[name] = max(least.get(name, 0), value)
    raised = {name: str(value) for name, value in least.items() if int(base[name]) < value}
    data_dir = settings.storage.data_dir
    return {
        "listen_addresses": settings.peer.ip,
        "port": str(settings.peer.postgres_port),
        "unix_socket_directories": str(settings.postgres.socket_dir),
        "data_directory": str(data_dir),
        "hba_file": str(data_dir / "pg_hba.conf"),
        "ident_file": str(data_dir / "pg_ident.conf"),
        "wal_level": base["wal_level"] if base["wal_level"] == "logical" else "replica",
        **({"promote_trigger_file": ""} if version < versions.NO_TRIGGER_FILE else {}),
        **({"allow_alter_system": "off"} if version >= versions.FORBIDS_ALTER_SYSTEM else {}),
        **_OWNED,
        **_chosen(settings, version),
        **raised,
    }


def owned(settings: Settings) -> frozenset[str]:
    """Every setting that the sitter decides on here."""
    return OWNED | _chosen(settings, versions.NEWEST).keys()


def _chosen(settings: Settings, version: int) -> dict[str, str]:
    """What the sitter decides on only where the operator has chosen so."""
    found = access.tls_settings(settings)
    if settings.postgres.max_slot_wal_keep_size is not None:
        found["max_slot_wal_keep_size"] = str(settings.postgres.max_slot_wal_keep_size)
        if version >= versions.SLOTS_TIME_OUT:
            found["idle_replication_slot_timeout"] = "0"
    return found


def render(settings: Settings, foundation: Mapping[str, str], replication: Replication) -> str:
    """The text of the configuration file."""
    base = settings.postgres.config_file
    lines = [
        "# Written by manatee-sitter, which writes it again on every change of role.",
        *_assignments(
            _DEFAULTS | (_SYNCFS if (of_data(settings.storage.data_dir) or 0) >= 14 and _syncs_all() else {})
        ),
        *([f"include {_quoted(str(base.absolute()))}"] if base else []),
        *_assignments(foundation),
        *_assignments(replication.values()),
    ]
    return "\n".join(lines) + "\n"


def write(settings: Settings, foundation: Mapping[str, str], replication: Replication) -> Path:
    """Render the configuration file and replace it; a start or a reload makes it count. Raises OSError.

    It need not outlast a crash of the machine: every start writes it anew.
    """
    path = file(settings)
    write_at_once(path, render(settings, foundation, replication), Account.of(settings))
    return path


def set_standby_signal(settings: Settings, wanted: bool) -> None:
    """Have the next start be a standby's, or a primary's; durable. Raises OSError."""
    signal = settings.storage.data_dir / "standby.signal"
    if not wanted:
        remove_durably(signal)
    elif not signal.exists():
        write_durably(signal, b"", Account.of(settings))
    remove_durably(settings.storage.data_dir / "recovery.signal")


def clean_auto_conf(settings: Settings) -> dict[str, str]:
    """Take the settings that are the sitter's out of postgresql.auto.conf, and return what was taken.

    For a server that is stopped, or (followed by a reload) to repair one that runs. Raises OSError.
    """
    path, ours = settings.storage.data_dir / "postgresql.auto.conf", owned(settings)
    try:
        lines = path.read_text(errors="surrogateescape").splitlines(keepends=True)
    except FileNotFoundError:
        return {}
    kept, taken = [], {}
    for line in lines:
        match = re.match(r"\s*([A-Za-z_][\w.$]*)\s*=?\s*(.*?)\s*$", line)
        if match is not None and match[1].lower() in ours:
            taken[match[1].lower()] = match[2]
        else:
            kept.append(line)
    if taken:
        write_durably(path, "".join(kept).encode(errors="surrogateescape"), Account.of(settings))
    return taken


async def read_back(
    connection: psycopg.AsyncConnection[Any], settings: Settings, expected: Mapping[str, str]
) -> list[Wrong]:
    """Which of the `expected` settings are not in force, or come from another file than the rendered one.

    `connection` must be new: an older one shows what it has read itself, a new one what the postmaster has. A setting
    the server does not have is wrong too. What only our own role or database overrides is not seen, and not wrong.
    """
    cursor = await connection.execute(
        "select name, setting, source, sourcefile from pg_settings where name = any(%s)", [list(expected)]
    )
    found = {name: (setting, source, origin) for name, setting, source, origin in await cursor.fetchall()}
    wrong = []
    for name, wanted in expected.items():
        if name.startswith("tcp_"):
            continue  # these show what the asking connection has: 0 on a Unix socket
        setting, source, origin = found.get(name, ("", "no such setting", None))
        if source in ("database", "user", "database user"):
            continue  # ALTER ROLE or ALTER DATABASE: what sessions like ours begin with, not what the server has
        if setting != wanted or origin not in (None, str(file(settings))):
            wrong.append(Wrong(name, wanted, setting, origin or source))
    return wrong


async def smaller(settings: Settings, floors: Mapping[str, int], *, timeout: float | None = None) -> str | None:
    """Which settings that this standby was started with are smaller than these of its primary, in words; or None.

    Asks the programs, not the server: one that replay's pause keeps from becoming consistent lets nobody in. Raises
    ToolFailed.
    """
    found = await _values(settings, file(settings), tuple(floors), timeout=timeout)
    words = [
        f"{name} is {value} here and was {least} on the primary"
        for (name, least), value in zip(floors.items(), found, strict=True)
        if int(value) < least
    ]
    return ", ".join(words) or None


async def _values(settings: Settings, path: Path | None, names: tuple[str, ...], *, timeout: float | None) -> list[str]:
    """What a configuration file, or else PostgreSQL's defaults, say of these settings."""
    arguments = ("-D", str(settings.storage.data_dir), "-c", f"config_file={path or '/dev/null'}")
    asked = [run_tool(settings, "postgres", *arguments, "-C", name, timeout=timeout) for name in names]
    return [answer.strip() for answer in await together(*asked)]


def _syncs_all() -> bool:
    """The kernel has a syncfs(2) that can be relied on."""
    release = re.match(r"(\d+)\.(\d+)", platform.release())
    return sys.platform == "linux" and release is not None and (int(release[1]), int(release[2])) >= (5, 8)


def _assignments(values: Mapping[str, str]) -> list[str]:
    return [f"{name} = {_quoted(value)}" for name, value in values.items()]


def _quoted(value: str) -> str:
    """A string as postgresql.conf writes it (documentation, "Parameter Interaction via the Configuration File")."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _conninfo_value(value: str) -> str:
    """A value as libpq reads it: quoted if it must be."""
    if re.fullmatch(r"[\w.:/@~-]+", value, re.ASCII):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
