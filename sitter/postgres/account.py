"""Whom PostgreSQL runs as, and files written so that this user can read them and a power cut cannot halve them."""

from __future__ import annotations

import os
import pwd
import tempfile
from dataclasses import dataclass
from pathlib import Path

from manatee.config import BadConfiguration, Settings


@dataclass(frozen=True)
class Account:
    """An operating system user that children are started as."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]

    @classmethod
    def of(cls, settings: Settings) -> Account | None:
        """The user of PostgreSQL's processes, or None when that is simply ourselves (we are not root).

        Raises BadConfiguration if we are root and no unprivileged user is named: PostgreSQL refuses to run as root.
        """
        if os.geteuid() != 0:
            return None
        name = settings.postgres.user
        if name is None:
            raise BadConfiguration("postgres.user is missing: expected an unprivileged user, since this runs as root")
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            raise BadConfiguration(f"postgres.user = {name!r}: expected a user that exists here") from None
        if entry.pw_uid == 0:
            raise BadConfiguration(f"postgres.user = {name!r}: expected an unprivileged user")
        return cls(name, entry.pw_uid, entry.pw_gid, tuple(os.getgrouplist(name, entry.pw_gid)))


def write_durably(path: Path, content: str | bytes, account: Account | None, *, mode: int = 0o600) -> None:
    """Replace the file at `path` in one step: after a crash it holds either the old content or the new, whole.

    It belongs to `account` (to us if None). Raises OSError.
    """
    write_at_once(path, content, account, mode=mode, durable=True)
    sync_directory(path.parent)


def write_at_once(
    path: Path, content: str | bytes, account: Account | None, *, mode: int = 0o600, durable: bool = False
) -> None:
    """Replace the file at `path` so that nobody ever reads half of it; after a crash it may hold anything."""
    data = content.encode() if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if account:
                os.fchown(file.fileno(), account.uid, account.gid)
            if durable:
                os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def remove_durably(path: Path) -> None:
    """Remove a file so that it does not come back after a crash; no error if there is none. Raises OSError."""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make renames and removals in `directory` outlast a crash (fsync(2))."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
