"""PostgreSQL processes of a data directory that are not supposed to be there any more: found, ended, seen gone.

A sitter that was killed may leave its postmaster behind, and a killed postmaster leaves its backends: they hold the
shared memory, may still write, and a walsender among them may still release commits. PostgreSQL's processes work in
their data directory, which is how they are recognised; where /proc does not tell, the lock file and `ps` do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from manatee.log import Logger
from sitter.postgres.errors import StopFailed
from sitter.postgres.tools import environment

SERVER = "postgres"
"""The name of PostgreSQL's executable."""

LOOK = 0.01
"""Seconds between two looks at what is still running."""


@dataclass(frozen=True)
class LockFile:
    """What `postmaster.pid` says; PostgreSQL writes it line by line while it starts."""

    pid: int
    """Of the postmaster; negative for a server in single-user mode."""
    status: str | None
    """`starting`, `stopping`, `ready` or `standby` (a standby that lets nobody in yet)."""


def lock_file(data_dir: Path) -> LockFile | None:
    """The data directory's lock file, or None if there is none or nothing legible in it yet."""
    try:
        lines = (data_dir / "postmaster.pid").read_text(errors="replace").splitlines()
        pid = int(lines[0])
    except (OSError, ValueError, IndexError):
        return None
    return LockFile(pid, lines[7].strip() if len(lines) > 7 else None)


async def servers(data_dir: Path) -> set[int]:
    """The pids of all PostgreSQL processes of this data directory, zombies excepted."""
    found = await asyncio.to_thread(_working_in, data_dir)
    lock = lock_file(data_dir)
    if lock is not None and lock.pid > 0 and lock.pid not in found:
        found |= await _family(lock.pid, data_dir)
    return found


async def gone(data_dir: Path, *, timeout: float) -> bool:
    """Whether every PostgreSQL process of this data directory has gone by itself within `timeout` seconds."""
    begun = time.monotonic()
    while await servers(data_dir):
        if time.monotonic() - begun > timeout:
            return False
        await asyncio.sleep(LOOK)
    return True


async def end(data_dir: Path, log: Logger, *, grace: float, timeout: float) -> bool:
    """End every PostgreSQL process of this data directory, and return whether there was one.

    The postmaster is asked first (SIGQUIT: it ends its backends and then itself); what is left after `grace` seconds
    is killed. Raises StopFailed if something is still there after `timeout` seconds in all.
    """
    found = await servers(data_dir)
    if not found:
        return False
    lock = lock_file(data_dir)
    postmaster = lock.pid if lock is not None and lock.pid in found else None
    log.warning("ending PostgreSQL processes left behind", pids=sorted(found), postmaster=postmaster)
    send({postmaster} if postmaster is not None else found, signal.SIGQUIT)
    begun = time.monotonic()
    while found := await servers(data_dir):
        passed = time.monotonic() - begun
        if passed > timeout:
            raise StopFailed(f"{data_dir}: still running after SIGKILL and {timeout:g} s: {sorted(found)}")
        if passed > grace:
            send(found, signal.SIGKILL)
        await asyncio.sleep(LOOK)
    return True


def forget_stale_lock(data_dir: Path, log: Logger) -> None:
    """Remove a lock file whose pid has become another program's; to be called when no server of ours is left.

    PostgreSQL refuses to start while any process of its user has that pid, which after a reboot may be anybody. The
    file goes only if that process is seen to work elsewhere (/proc); otherwise PostgreSQL's own word counts.
    """
    lock = lock_file(data_dir)
    if lock is None:
        return
    try:
        there, here = Path(f"/proc/{abs(lock.pid)}/cwd").stat(), data_dir.stat()
    except OSError:
        return
    if (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
        log.warning("removing a stale lock file: its pid is another program's now", pid=lock.pid)
        (data_dir / "postmaster.pid").unlink(missing_ok=True)


def send(pids: set[int], number: signal.Signals) -> None:
    """Signal each of these processes that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _working_in(data_dir: Path) -> set[int]:
    """Processes of PostgreSQL's executable whose working directory is `data_dir`, by /proc (Linux and illumos)."""
    try:
        here = data_dir.stat()
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    except OSError:
        return set()
    found = set()
    for pid in pids:
        try:
            there = Path(f"/proc/{pid}/cwd").stat()
            if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino) and _executable(pid) == SERVER:
                found.add(pid)
        except OSError:
            continue
    return found


def _executable(pid: int) -> str | None:
    for link in (f"/proc/{pid}/exe", f"/proc/{pid}/path/a.out"):
        try:
            return Path(link).readlink().name.removesuffix(" (deleted)")
        except OSError:
            continue
    return None


async def _family(pid: int, data_dir: Path) -> set[int]:
    """The postmaster `pid`, if it really is one of `data_dir`, and all its descendants, by ps(1)."""
    process = await asyncio.create_subprocess_exec(
        *("ps", "-A", "-o", "pid=", "-o", "ppid=", "-o", "s=", "-o", "args="),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment(),
    )
    output, _ = await process.communicate()
    parents: dict[int, int] = {}
    found = set()
    for line in output.decode(errors="replace").splitlines():
        fields = line.split(None, 3)
        if len(fields) < 4 or fields[2] == "Z":
            continue
        parents[int(fields[0])] = int(fields[1])
        if int(fields[0]) == pid and SERVER in fields[3] and str(data_dir) in fields[3]:
            found.add(pid)
    while found and (more := {child for child, parent in parents.items() if parent in found} - found):
        found |= more
    return found
