"""What a PostgreSQL data directory says of itself, read from its files; nothing here starts or asks a server."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from manatee.config import Settings
from manatee.storage.errors import NoDatabase, UnsupportedLayout

RESTORED = "manatee.restored"
"""A file in data that were received, until the sitter has made them this peer's own. PostgreSQL does not mind it."""

LEFTOVERS = (
    *("postmaster.pid", "postmaster.opts", "standby.signal", "recovery.signal", "backup_manifest"),
    *(RESTORED, "manatee.old"),
)
"""Of another server's life: never part of a database that has just been restored."""


@dataclass(frozen=True)
class Identity:
    """Which database it is: what two copies of one have in common."""

    system_identifier: str
    """As the cluster state writes it: a decimal number, in a string since it exceeds 2^53."""
    major_version: str
    """`15`; in versions before 10 two numbers."""


def has_database(data_dir: Path) -> bool:
    """Whether `data_dir` holds a database: what `initdb` and a restore leave, and an empty directory does not."""
    return (data_dir / "global" / "pg_control").is_file() and (data_dir / "PG_VERSION").is_file()


def identity(data_dir: Path) -> Identity:
    """Whose data these are; raises NoDatabase.

    The system identifier is the first field of `pg_control` in every version (`catalog/pg_control.h`).
    """
    try:
        version = (data_dir / "PG_VERSION").read_text().strip()
        with (data_dir / "global" / "pg_control").open("rb") as file:
            (identifier,) = struct.unpack("=Q", file.read(8))
    except (OSError, UnicodeDecodeError, struct.error) as error:
        raise NoDatabase(f"there is no database in {data_dir}: {error}") from error
    if not identifier:
        raise NoDatabase(f"{data_dir}/global/pg_control is empty")
    return Identity(str(identifier), version)


def check_whole(settings: Settings) -> None:
    """Refuse data that cannot be copied. Raises UnsupportedLayout, and NoDatabase for what a rewind has torn."""
    if settings.sitter.rewind_mark.exists():
        raise NoDatabase("the data here are being rewound, or a rewind was cut short: they are no database now")
    check_layout(settings.storage.data_dir)


def check_layout(data_dir: Path) -> None:
    """Refuse a database that does not lie wholly in its directory; raises UnsupportedLayout.

    A snapshot of a part is not one moment of the whole.
    """
    wal = data_dir / "pg_wal"
    if wal.is_symlink():
        raise UnsupportedLayout(f"{wal} leads to {wal.readlink()}: it must lie inside the data directory")
    try:
        outside = [link for link in (data_dir / "pg_tblspc").iterdir() if link.is_symlink()]
    except FileNotFoundError:
        return
    if outside:
        raise UnsupportedLayout(
            f"the tablespace in {outside[0].readlink()} lies outside {data_dir}: move its tables and drop it"
        )


def mark_restored(data_dir: Path) -> None:
    """Take away what belonged to the server the data came from; `backup_label` stays, recovery begins with it.

    Its replication slots, too, which a snapshot of the files brings along: they are promises to that server's own
    downstreams, and nobody would ever move them on here.
    """
    for name in LEFTOVERS:
        (data_dir / name).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        for slot in (data_dir / "pg_replslot").iterdir():
            shutil.rmtree(slot)
    (data_dir / RESTORED).touch()


def make_durable(directory: Path, given_up: threading.Event) -> None:
    """Every file and directory under `directory`, itself and its name are on disk when this returns (fsync of each).

    Stops soon after `given_up` is set.
    """
    for _, _, files, parent in os.fwalk(directory):
        for name in files:
            if given_up.is_set():
                return
            _fsync(name, parent)
        os.fsync(parent)
    sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """The names in `directory` are on disk when this returns."""
    _fsync(directory)


def size_on_the_way(data_dir: Path, leave_out: frozenset[str], per_file: Callable[[int], int]) -> int:
    """The sum of `per_file(size)` over the files of a live database, without the directories named in `leave_out`."""
    total = 0
    for _, directories, files, parent in os.fwalk(data_dir):
        directories[:] = [name for name in directories if name not in leave_out]
        for name in files:
            with contextlib.suppress(FileNotFoundError):  # PostgreSQL goes on working
                total += per_file(os.stat(name, dir_fd=parent, follow_symlinks=False).st_size)
    return total


def _fsync(path: str | Path, parent: int | None = None) -> None:
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        os.fsync(file)
    finally:
        os.close(file)
